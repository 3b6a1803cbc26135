"""What is looked at to explain a loss, and what is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dml_hpc.reports.quantities import listed
from dml_hpc.reports.runs import Phases, Run

if TYPE_CHECKING:
    from dml_hpc.reports.laws import Laws
    from dml_hpc.reports.scaling import Point


class Suspect(NamedTuple):
    """A cause: the seconds it cost, the evidence, what to change."""

    kind: str
    lost_s: float
    text: str
    change: str


@dataclass(frozen=True)
class Scene:
    """What happened at the most ranks: ``last`` against ``base`` (None: nothing to compare with).

    ``shrink`` times the base's seconds are ideal; ``excess`` are the seconds of each phase above that, and add up to
    ``lost_s`` at most. ``phases`` and ``excess`` are None where records do not tell.
    """

    last: Point
    base: Point | None
    runs: Sequence[Run]
    lost_s: float
    shrink: float
    phases: Phases | None
    excess: Phases | None
    laws: Laws | None

    @property
    def emulated(self) -> bool:
        """Say whether the hosts shared one machine."""
        return self.runs[0].record.get("emulated") is True

    @property
    def trains(self) -> bool:
        """Say whether the options of ``train`` apply."""
        return self.runs[0].record.get("command") == "train"

    @property
    def rates(self) -> bool:
        """Say whether it is about ratings, in blocks of users and items."""
        return self.runs[0].record.get("command") == "mf"

    def where(self, ranks: Sequence[int]) -> str:
        """Return "rank 3 on node17", "ranks 4, 5 and 6 on node2"."""
        names = listed([str(rank) for rank in ranks[:6]] + ([f"{len(ranks) - 6} more"] if len(ranks) > 6 else []))
        hosts = list(dict.fromkeys(self.last.hosts[rank] for rank in ranks if rank < len(self.last.hosts)))
        hosts = hosts or _straggling_hosts(self.runs, ranks)
        on = f" on {listed(hosts[:4])}" if hosts else ""
        return f"rank{'s' * (len(ranks) > 1)} {names}{on}"


def _straggling_hosts(runs: Sequence[Run], ranks: Sequence[int]) -> list[str]:
    """Return the hosts that the runs' own straggler lists name for ``ranks``."""
    found = []
    for run in runs:
        told = run.record.get("stragglers")
        found += [str(one["host"]) for one in (told if isinstance(told, list) else [])
                  if isinstance(one, dict) and one.get("rank") in ranks and one.get("host")]
    return list(dict.fromkeys(found))
