"""Time of an all-reduce against nodes: what was measured, and apart from it what is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dml_hpc.reports.figures.canvas import (
    BROAD,
    INK,
    MOST_CURVES,
    PREDICTED,
    curve_style,
    legend,
    name_few_decades,
    named,
    note,
    panels,
    rank_axis,
    style,
)
from dml_hpc.reports.quantities import size
from dml_hpc.reports.scaling import Bench, BenchPrediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def largest(predictions: Sequence[BenchPrediction]) -> list[BenchPrediction]:
    """Return those of the largest vectors: there the wire decides; the table has all."""
    most = max(one.bytes for one in predictions)
    return [one for one in predictions if one.bytes == most][:MOST_CURVES]


def measured(told: BenchPrediction, benches: Sequence[Bench]) -> list[tuple[int, float]]:
    """Return (nodes, seconds) of the measurements that a prediction is made from."""
    return sorted({bench.nodes: cell.seconds for bench in benches for cell in bench.cells
                   if bench.nodes is not None and bench.nodes in told.measured_nodes
                   and bench.ranks == bench.nodes * told.ranks_per_node
                   and (cell.case, cell.bytes) == (told.case, told.bytes)}.items())


def by_nodes_figure(predictions: Sequence[BenchPrediction], benches: Sequence[Bench]) -> Figure:
    """Draw a curve a case, all of one size of vector: solid as measured, dashed and in a band as predicted."""
    figure, (axes,) = panels(width=BROAD, height=3.7 + 0.2 * len(predictions))
    style(axes, "nodes", f"milliseconds of an all-reduce of {size(predictions[0].bytes)}")
    ranks: set[int] = set()
    for i, told in enumerate(predictions):
        look, points = curve_style(i), measured(told, benches)
        ahead = [at for at in range(len(told.nodes)) if told.nodes[at] > max(told.measured_nodes, default=0)]
        ranks |= {*told.measured_nodes, *(told.nodes[at] for at in ahead)}
        axes.plot([at for at, _ in points], [1e3 * seconds for _, seconds in points], label=named(told.case), **look)
        start = points[-1:] if points else []
        nodes = [*(at for at, _ in start), *(told.nodes[at] for at in ahead)]
        line, low, high = ([*(1e3 * seconds for _, seconds in start), *(1e3 * of[at] for at in ahead)]
                           for of in (told.seconds, told.low_s, told.high_s))
        axes.plot(nodes, line, color=look["color"], linestyle=PREDICTED, linewidth=1.6, marker=look["marker"],
                  markersize=6, markerfacecolor="none")
        axes.fill_between(nodes, low, high, color=look["color"], alpha=0.15, linewidth=0)
    rank_axis(axes, sorted(ranks))
    axes.set_yscale("log")
    name_few_decades(axes, "y")
    ends = {max(told.measured_nodes) for told in predictions if told.measured_nodes}
    for end in ends:
        axes.axvline(end, color=INK, linewidth=1, linestyle=(0, (1, 1.5)))
    if len(ends) == 1:
        note(axes, "predicted →", ends.pop(), 0.99)
    legend(figure, axes, 2 if len(predictions) > 3 else 1, 29 if len(predictions) > 3 else 52)
    return figure
