"""What an all-reduce takes on other numbers of nodes than it was measured on; see `bench_models` for how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from dml_hpc.reports.bench_cases import Case, cases_of
from dml_hpc.reports.bench_models import DRAWS, by_terms, stepwise
from dml_hpc.reports.intervals import CONFIDENCE
from dml_hpc.reports.quantities import Record, duration, listed

MOST_NODES = 1024
ROOM = 0.04
"""Relative standard deviation that every doubling beyond what was measured adds."""


@dataclass(frozen=True)
class BenchPrediction:
    """One case at one size: seconds on ``nodes``, each with its 95 % interval, from those on ``measured_nodes``.

    ``wire_share`` is the part of the last measured time that bytes take, the rest is messages: near 1 the size is
    wire-bound.
    ``basis`` says in one sentence what the model is made of and what it assumes.
    """

    label: str
    case: str
    bytes: int
    ranks_per_node: int
    measured_nodes: tuple[int, ...]
    nodes: tuple[int, ...]
    seconds: tuple[float, ...]
    low_s: tuple[float, ...]
    high_s: tuple[float, ...]
    wire_share: float
    basis: str
    checks: tuple[tuple[int, float, float], ...] = ()
    """What the two fewest numbers of nodes would have said of others that were measured: nodes, that, the median."""

    @property
    def hindsight(self) -> str:
        """Say how it would have done from the two fewest numbers of nodes; empty where no others were measured."""
        if not self.checks:
            return ""
        said = listed([f"{duration(said_s)} for {at} ({duration(took_s)} measured, {said_s / took_s - 1:+.0%})"
                       for at, said_s, took_s in self.checks])
        return f"From {self.measured_nodes[0]} and {self.measured_nodes[1]} nodes alone it says {said}."


def predict_benches(records: Sequence[Record]) -> tuple[BenchPrediction, ...]:
    """Return a prediction for each case and size measured on two numbers of nodes or more, each twice the last one.

    ``records`` are those of ``bench allreduce``; others, and what ran on one node, say nothing here.
    """
    found = []
    for case in cases_of(records).values():
        sizes = dict.fromkeys(n_bytes for _, n_bytes in sorted(case.times))
        for n_bytes in sizes:
            nodes = sorted({nodes for nodes, own in case.times if own == n_bytes})
            further = [nodes[-1] << doubling for doubling in range(1, 11) if nodes[-1] << doubling <= MOST_NODES]
            if len(nodes) > 1 and further:
                told = _predict(case, n_bytes, nodes, further)
                if others := nodes[2:]:
                    before = _predict(case, n_bytes, nodes[:2], others)
                    checks = tuple((at, said, median(case.times[at, n_bytes]))
                                   for at, said in zip(others, before.seconds, strict=True))
                    told = replace(told, checks=checks)
                found.append(told)
    return tuple(found)


def _predict(case: Case, n_bytes: int, nodes: Sequence[int], further: Sequence[int]) -> BenchPrediction:
    random = np.random.default_rng(0)
    model = stepwise if case.reducer in ("ring", "hierarchical") else by_terms
    times, wire_share = model(case, n_bytes, nodes, further, random)
    beyond = np.sqrt(np.log2(np.array(further) / nodes[-1]))
    times = times * np.exp(ROOM * beyond * random.standard_normal((DRAWS, 1)))
    low, middle, high = np.quantile(times, [(1 - CONFIDENCE) / 2, 0.5, (1 + CONFIDENCE) / 2], axis=0)
    return BenchPrediction(case.label, case.case, n_bytes, case.per_node, tuple(nodes), tuple(further),
                           tuple(map(float, middle)), tuple(map(float, low)), tuple(map(float, high)), wire_share,
                           _basis(case, nodes))


def _basis(case: Case, nodes: Sequence[int]) -> str:
    what = {"mpi": "published algorithms, each as often as it fits (the library does not say what it does)",
            "tree": "messages · α + bytes · β, and to the crowding of ranks with a parent and several children"}
    counts, last = listed([str(at) for at in nodes]), nodes[-1]
    how = f"the time on {last} nodes, times what more do to {what[case.reducer]}" if case.reducer in what else (
        "more steps, of which each takes what one with such a block took")
    return f"{case.reducer}: {how}, from {counts} nodes; hosts that share cores take longer once those are busy."
