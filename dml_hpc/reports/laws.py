"""The classical laws of scaling, fitted to measured times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.cost import fit
from dml_hpc.reports.intervals import CONFIDENCE, least_squares, resampled_medians
from dml_hpc.reports.quantities import number
from dml_hpc.reports.runs import Run, work_of

if TYPE_CHECKING:
    from dml_hpc.comm.cost import Cost

DRAWS = 1000


@dataclass(frozen=True)
class Laws:
    """Constants of one job; None where its runs do not tell them.

    ``amdahl_serial`` is the part of the time at the fewest ranks that no rank takes off another, with its 95 %
    interval; ``gustafson_serial`` the part of the time at the most ranks that does not grow with the work, of weak
    scaling; ``karp_flatt`` pairs of ranks and the serial fraction seen there; ``alpha_s`` and ``beta_s_per_byte``
    what a message and a byte cost in this job's all-reduce, or exchange of factors.
    """

    amdahl_serial: float | None
    amdahl_low: float | None
    amdahl_high: float | None
    gustafson_serial: float | None
    karp_flatt: tuple[tuple[int, float], ...]
    alpha_s: float | None
    beta_s_per_byte: float | None


def karp_flatt(speedup: float, ranks: float) -> float:
    """Return the experimentally determined serial fraction e = (1/S − 1/p) / (1 − 1/p) for ``ranks`` p > 1.

    A constant e over p means a serial part (Amdahl), a growing one means overhead that grows with the ranks.
    For a base of b ranks pass p/b: e is then the part of the base's time that did not shrink.
    Source: A. H. Karp and H. P. Flatt, "Measuring parallel processor performance", CACM 33(5), 1990.
    """
    return (1 / speedup - 1 / ranks) / (1 - 1 / ranks)


def amdahl(ranks: Sequence[float], seconds: np.ndarray) -> np.ndarray:
    """Return the serial fraction s of t(p) = t(1) · (s + (1 − s)/p), nearest to ``seconds`` (…, settings).

    The least squares of relative deviations, s between 0 and 1; for a base of b ranks pass p/b. Source: G. M. Amdahl,
    "Validity of the single processor approach to achieving large scale computing capabilities", AFIPS Conference
    Proceedings 30, 1967.
    """
    p = np.asarray(ranks, np.float64)
    serial, parallel = np.moveaxis(least_squares(np.stack([np.ones_like(p), 1 / p], axis=1), seconds), -1, 0)
    return serial / (serial + parallel)


def gustafson(ranks: Sequence[float], speedups: Sequence[float]) -> float:
    """Return the serial fraction s of the scaled speed-up S(p) = p − s · (p − 1), by least squares; 0 … 1.

    ``speedups`` are those of work that grows as the ranks do. For a base of b ranks pass p/b. Source: J. L.
    Gustafson, "Reevaluating Amdahl's law", CACM 31(5), 1988.
    """
    p, scaled = np.asarray(ranks, np.float64), np.asarray(speedups, np.float64)
    # Relative to p, so that no point counts more than another: (p − S)/p = s · (p − 1)/p.
    missing, grown = (p - scaled) / p, (p - 1) / p
    return float(np.clip(missing @ grown / (grown @ grown), 0, 1))


def hockney(by_ranks: dict[int, list[Run]]) -> tuple[float | None, float | None]:
    """Return α and β of the all-reduces of a job: what they took by the clock, fitted to what they pay.

    Where the numbers of ranks do not tell the two apart, or messages travel while ranks compute, they are those of the
    measured wire, between nodes where there are several. None where neither is known. See `dml_hpc.comm.cost`, Hockney
    1994.
    """
    costs: list[Cost] = []
    seconds = []
    for runs in by_ranks.values():
        told = [run.phases.communicate / run.exchanges for run in runs if run.phases and run.exchanges and run.exchange]
        if (told and len(told) == len(runs) and (each := median(told)) > 0 and runs[0].exchange is not None
                and not runs[0].overlapped):
            costs.append(runs[0].exchange)
            seconds.append(each)
    found = fit(costs, seconds) if len(costs) > 1 else None
    if found is not None and found.alpha_s > 0 and found.beta_s_per_byte > 0:
        return found.alpha_s, found.beta_s_per_byte
    for runs in reversed(by_ranks.values()):
        for run in runs:
            wire = run.record.get("wire")
            for place in ("between_nodes", "within_node"):
                worst = wire.get(place) if isinstance(wire, dict) else None
                if isinstance(worst, dict):
                    alpha, beta = number(worst.get("alpha_s")), number(worst.get("beta_s_per_byte"))
                    if alpha is not None and beta is not None:
                        return alpha, beta
    return None, None


def laws(by_ranks: dict[int, list[Run]], weak: bool) -> Laws | None:
    """Return the laws of one job; None when it ran at one number of ranks only."""
    if len(by_ranks) < 2:
        return None
    work, base = work_of(by_ranks), min(by_ranks)
    times = {ranks: median(run.seconds for run in runs) for ranks, runs in by_ranks.items()}
    ranks = [p / base for p in by_ranks]
    speedups = [times[base] / times[p] * work[p] for p in by_ranks]
    alpha, beta = hockney(by_ranks)
    if weak:
        return Laws(None, None, None, gustafson(ranks[1:], speedups[1:]), (), alpha, beta)
    drawn = resampled_medians([np.array([[run.seconds] for run in runs]) for runs in by_ranks.values()], DRAWS,
                              np.random.default_rng(0))[:, :, 0]
    low, high = np.quantile(amdahl(ranks, drawn), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    serial = float(amdahl(ranks, np.array(list(times.values()))))
    return Laws(serial, min(float(low), serial), max(float(high), serial), None,
                tuple((p, karp_flatt(speedup, relative)) for p, speedup, relative in
                      zip(by_ranks, speedups, ranks, strict=True) if p > base), alpha, beta)
