"""What became slower or faster from one set of records to another, beyond noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from dml_hpc.reports.intervals import ratio_interval
from dml_hpc.reports.quantities import size

if TYPE_CHECKING:
    from dml_hpc.reports.scaling import Analysis

LEAST_CHANGE = 0.02
"""Less is called the same, however sure it is."""


@dataclass(frozen=True)
class Change:
    """One job at one number of ranks, before and after: medians in seconds, and their ratio with its 95 % interval.

    ``verdict`` is "slower" or "faster" where the interval excludes 1 and the ratio is off by more than 2 %, "same"
    where it is not, "unknown" where either side has fewer than 3 runs (``low`` and ``high`` are None then).
    """

    job: str
    ranks: int
    before_s: float
    after_s: float
    ratio: float
    low: float | None
    high: float | None
    verdict: str


def compare(a: Analysis, b: Analysis) -> tuple[Change, ...]:
    """Return how every job and benchmark in both analyses changed from ``a`` to ``b``, what became slowest first.

    Jobs are the same when their settings are (`dml_hpc.reports.jobs.JOB_KEYS`), whatever else the records hold. One
    that is timed by another clock on either side is left out, as is what only one side has.
    """
    before, after = dict(_measured(a)), dict(_measured(b))
    found = [_change(label, ranks, times, after[key][1]) for key, (label, times) in before.items()
             if key in after for ranks in [key[-1]]]
    order = {"slower": 0, "faster": 1, "same": 2, "unknown": 3}
    return tuple(sorted(found, key=lambda change: (order[change.verdict], -change.ratio)))


def _measured(analysis: Analysis) -> Iterator[tuple[tuple[object, ...], tuple[str, Sequence[float]]]]:
    for group in analysis.groups:
        for point, times in zip(group.points, group.times, strict=True):
            yield (group.job, group.clock, point.ranks), (group.label, times)
    for bench in analysis.benches:
        for cell in bench.cells:
            label = f"{bench.label}: {cell.case}" + ("" if cell.bytes is None else f", {size(cell.bytes)}")
            yield (bench.label, cell.case, cell.bytes, bench.ranks), (label, cell.times)


def _change(label: str, ranks: object, before: Sequence[float], after: Sequence[float]) -> Change:
    assert isinstance(ranks, int)
    before_s, after_s = median(before), median(after)
    ratio = after_s / before_s
    interval = ratio_interval(before, after)
    if interval is None:
        return Change(label, ranks, before_s, after_s, ratio, None, None, "unknown")
    low, high = interval
    verdict = "same"
    if low > 1 and ratio > 1 + LEAST_CHANGE:
        verdict = "slower"
    elif high < 1 and ratio < 1 - LEAST_CHANGE:
        verdict = "faster"
    return Change(label, ranks, before_s, after_s, ratio, low, high, verdict)
