"""What limits a job, in plain words, with the evidence and what to change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from dml_hpc.reports.evidence import faults
from dml_hpc.reports.quantities import count, duration
from dml_hpc.reports.runs import Phases, Run
from dml_hpc.reports.scene import Scene, Suspect

if TYPE_CHECKING:
    from dml_hpc.reports.laws import Laws
    from dml_hpc.reports.scaling import Point

LITTLE = 0.05
"""Less than this share of the time is no loss worth explaining."""
NAMED = 0.05
"""A finding with a smaller share of the loss is in the list, not in the paragraph."""
MOST_NAMED = 3
FAULTS = ("slow_rank", "narrow_link", "slow_disk", "oversubscribed")
"""What is seen by itself, however much it cost this run."""


@dataclass(frozen=True)
class Finding:
    """One cause of lost time: ``share`` of the loss (0 … 1), the evidence, and what to change.

    ``kind`` is one of slow_rank, narrow_link, slow_disk, communication, latency, imbalance, serial, oversubscribed,
    too_little_work, noise and none.
    """

    kind: str
    share: float
    text: str
    change: str


@dataclass(frozen=True)
class Explanation:
    """A paragraph for a person, and the findings it is made of, the costliest first."""

    paragraph: str
    findings: tuple[Finding, ...]


def explain(points: Sequence[Point], by_ranks: dict[int, list[Run]], laws: Laws | None) -> Explanation:
    """Say what the job lost at the most ranks measured, and to what; only what the records show.

    The loss is the time above the ideal, which the fewest ranks set; of one number of ranks, what was spent on
    communicating and waiting. The findings' shares add up to 1 at most.
    """
    scene = _scene(points, by_ranks, laws)
    opening = _opening(points, scene)
    found = _findings(faults(scene), scene)
    ending = " Hosts were emulated on one machine, whose cores they shared." if scene.emulated else ""
    if len(points) == 1 and points[0].ranks == 1:
        found = tuple(one for one in found if one.kind in FAULTS)
        return Explanation(_paragraph(opening, found, ending), found)
    if len(points) > 1 and (quiet := _quiet(points, scene)) is not None:
        seen = tuple(one for one in found if one.kind in FAULTS)
        found = (*seen, quiet) if quiet.kind != "none" or not seen else seen
    if not found:
        opening += _unknown(points)
    elif max(point.repeats for point in points) == 1:
        ending += " Nothing was repeated, so how far noise blurs this is not known."
    return Explanation(_paragraph(opening, found, ending), found)


def _scene(points: Sequence[Point], by_ranks: dict[int, list[Run]], laws: Laws | None) -> Scene:
    first, last = points[0], points[-1]
    runs, base = by_ranks[last.ranks], by_ranks[first.ranks]
    before, after = _phases(base), _phases(runs)
    alone = first is last
    shrink = last.seconds * last.efficiency / first.seconds
    if alone:
        lost_s = 0.0 if after is None or last.ranks == 1 else after.communicate + after.wait
        excess = Phases(0.0, after.communicate, after.wait, 0.0) if after and lost_s else None
    else:
        lost_s = max(last.seconds - shrink * first.seconds, 0.0)
        excess = None if before is None or after is None else Phases(
            *(max(new - old * shrink, 0.0) for old, new in zip(before, after, strict=True)))
        if excess is not None and (both := sum(excess)) > lost_s:
            excess = Phases(*(one * lost_s / both for one in excess))
    return Scene(last, None if alone else first, runs, lost_s, shrink, after, excess, laws)


def _phases(runs: Sequence[Run]) -> Phases | None:
    told = [run.phases for run in runs]
    return None if None in told else Phases(*(median(one) for one in zip(*(one for one in told if one), strict=True)))


def _findings(suspects: Sequence[Suspect], scene: Scene) -> tuple[Finding, ...]:
    """Return findings in order of their shares, which add up to 1 at most."""
    together = sum(one.lost_s for one in suspects)
    scale = max(scene.lost_s, together)
    found = [Finding(one.kind, one.lost_s / scale if scale > 0 else 0.0, one.text, one.change) for one in suspects]
    return tuple(sorted(found, key=lambda one: -one.share))


def _opening(points: Sequence[Point], scene: Scene) -> str:
    last = points[-1]
    if len(points) == 1:
        if scene.lost_s == 0:
            return f"Measured at {count(last.ranks, 'rank')} only, so nothing says how this job scales."
        return (f"Measured at {count(last.ranks, 'rank')} only: communicating and waiting took "
                f"{duration(scene.lost_s)} of {duration(last.seconds)} ({scene.lost_s / last.seconds:.0%}).")
    text = f"{last.ranks} ranks are {last.efficiency:.0%} efficient"
    if scene.lost_s > LITTLE * last.seconds:
        text += f": {duration(scene.lost_s)} of {duration(last.seconds)} are lost against the ideal"
    return text + "."


def _quiet(points: Sequence[Point], scene: Scene) -> Finding | None:
    """Return that there is no loss to explain, or none that noise does not hide; None when there is one."""
    first, last = points[0], points[-1]
    blur = math.hypot(_blur(last), _blur(first) * scene.shrink)
    if scene.lost_s <= LITTLE * last.seconds:
        doubt = f" (repeats differ so much that this is sure to ± {blur / last.seconds:.0%} only)"
        return Finding("none", 0.0, "nothing limits it yet: it scales" + doubt * (blur > LITTLE * last.seconds),
                       "nothing; more ranks may pay")
    if scene.lost_s <= blur:
        return Finding("noise", 0.0,
                       f"repeats differ so much that the loss is known to ± {blur / last.seconds:.0%} of the time "
                       f"only: these {scene.lost_s / last.seconds:.0%} cannot be told from none",
                       "repeat more often (bench scaling --repeats), with nothing else on the nodes")
    return None


def _blur(point: Point) -> float:
    """Return half the interval of the median; where runs are few, half their spread, which hides less."""
    half = (point.seconds_max - point.seconds_min) / 2
    return half if point.low is None or point.high is None else min(half, (point.high - point.low) / 2)


def _unknown(points: Sequence[Point]) -> str:
    """Say what the serial fractions alone say, as nothing tells where the time went."""
    fractions = [point.serial_fraction for point in points if point.serial_fraction is not None]
    text = " The records do not say where the time went"
    if len(fractions) > 1:
        if fractions[-1] > 1.25 * fractions[0]:
            text += (f"; the serial fraction grows ({fractions[0]:.3f} to {fractions[-1]:.3f}), which means overhead "
                     "that grows with the ranks")
        elif fractions[-1] > 0:
            text += (f"; the serial fraction stays near {median(fractions):.3f}, which means a part that no rank takes "
                     "off another")
    return text + "."


def _paragraph(opening: str, found: Sequence[Finding], ending: str) -> str:
    named = [one for one in found if one.share >= NAMED or one.kind in (*FAULTS, "noise", "none")][:MOST_NAMED]
    named = named or list(found[:1])
    text = opening
    for one in named:
        much = f" That is {one.share:.0%} of the loss." if one.share >= 0.005 else ""
        text += f" {one.text[0].upper()}{one.text[1:]}.{much}"
    changes = list(dict.fromkeys(one.change for one in named))
    if changes:
        numbered = [f"({at}) {change}" for at, change in enumerate(changes, 1)]
        text += f" What to change: {'; '.join(numbered) if changes[1:] else changes[0]}."
    return text + ending
