"""The times of all-reduces on several numbers of nodes, out of records of ``bench allreduce``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from dml_hpc.reports.jobs import job, title
from dml_hpc.reports.quantities import Record, positive, whole
from dml_hpc.reports.runs import MOST_RANKS

REDUCERS = ("ring", "tree", "hierarchical", "mpi")
LEAST_NOISE, LEAST_NOISE_OF_ONE = 0.01, 0.03
"""Relative standard errors that no median is trusted beyond: of several records, and of one, whose repeats met the
machine in one state."""


@dataclass
class Case:
    """One reducer and type on one kind of hosts: all times in seconds, by nodes and bytes."""

    label: str
    case: str
    reducer: str
    per_node: int
    fan_in: int
    times: dict[tuple[int, int], list[float]]
    spreads: dict[tuple[int, int], list[float]]
    wire: dict[int, tuple[float, float]]
    """α and β of the wire between so many nodes."""

    def noise(self, at: tuple[int, int]) -> float:
        """Return the relative standard error of the median time there; few repeats may agree by chance."""
        usual = median(self._spread(one) for one in self.times)
        least = LEAST_NOISE if len(self.times[at]) > 2 else LEAST_NOISE_OF_ONE
        return min(max(self._spread(at), usual, least), 0.25)

    def _spread(self, at: tuple[int, int]) -> float:
        times, spread = self.times[at], median(self.spreads[at])
        if len(times) > 2:
            spread = max(float(np.std(times, ddof=1)) / median(times), 0.3 * spread) / math.sqrt(len(times))
        return spread


def cases_of(records: Sequence[Record]) -> dict[tuple[object, ...], Case]:
    cases: dict[tuple[object, ...], Case] = {}
    for record in records:
        nodes, ranks = whole(record.get("nodes")), record["ranks"]
        if record.get("command") != "bench allreduce" or nodes is None or nodes < 2:
            continue
        if ranks % nodes or ranks > MOST_RANKS:
            continue
        for result in record["results"]:
            if not isinstance(result, dict) or result.get("reducer") not in REDUCERS or result.get("errors"):
                continue
            n_bytes, seconds = whole(result.get("bytes")), positive(result, "seconds_median")
            if n_bytes is None or seconds is None:
                continue
            key = (*job(record), result["reducer"], str(result.get("dtype")), ranks // nodes)
            case = cases.setdefault(key, Case(
                ", ".join(title(record)), str(result.get("case")), result["reducer"], ranks // nodes,
                whole(record.get("fan_in")) or 2, {}, {}, {}))
            if (wire := _wire(record))[1] > 0:
                case.wire[nodes] = wire
            # The slowest of r repeats is above the median by 1 to 2 standard deviations for r of 3 to 40.
            worst, repeats = positive(result, "seconds_p99") or seconds, whole(record.get("repeats")) or 1
            case.times.setdefault((nodes, n_bytes), []).append(float(seconds))
            case.spreads.setdefault((nodes, n_bytes), []).append(
                1.25 * max(worst / seconds - 1, 0.0) / 1.4 / math.sqrt(repeats) if repeats > 1 else 0.05)
    return cases


def _wire(record: Record) -> tuple[float, float]:
    wire = record.get("wire")
    between = wire.get("between_nodes") if isinstance(wire, dict) else None
    told = between if isinstance(between, dict) else {}
    return positive(told, "alpha_s") or 0.0, positive(told, "beta_s_per_byte") or 0.0
