"""Bus bandwidth of all-reduces against what the wire can carry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dml_hpc.reports.allreduce import limit_bus_bandwidth
from dml_hpc.reports.figures.canvas import (
    BROAD,
    INK,
    MOST_CURVES,
    curve_style,
    legend,
    name_few_decades,
    named,
    panels,
    style,
)
from dml_hpc.reports.quantities import size
from dml_hpc.reports.scaling import Bench, Cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def by_case(bench: Bench) -> dict[str, list[Cell]]:
    """Return the cells of each case that have a size and a bandwidth, in order of size."""
    found: dict[str, list[Cell]] = {}
    for cell in bench.cells:
        if cell.bytes and cell.bandwidth:
            found.setdefault(cell.case, []).append(cell)
    return found


def wire_limit(bench: Bench) -> float | None:
    """Return the bus bandwidth, bytes/s, that no all-reduce can pass over the wire between nodes; None if unknown."""
    if not bench.wire or bench.nodes is None or not 1 < bench.nodes <= bench.ranks:
        return None
    return limit_bus_bandwidth({"between_nodes": {"bandwidth_bytes_per_s": bench.wire}}, bench.ranks, bench.nodes)


def bandwidth_figure(bench: Bench) -> Figure:
    """Draw a curve a case, and as a dashed level the `wire_limit` where it is known."""
    limit_bytes_per_s = wire_limit(bench)
    cases = dict(list(by_case(bench).items())[:MOST_CURVES])
    figure, (axes,) = panels(width=BROAD, height=3.6 + 0.2 * len(cases))
    style(axes, "size of the vector", "bus bandwidth, GB/s")
    for i, (case, cells) in enumerate(cases.items()):
        wrong = " (WRONG)" if any(cell.errors for cell in cells) else ""
        axes.plot([cell.bytes or 0 for cell in cells], [(cell.bandwidth or 0.0) / 1e9 for cell in cells],
                  label=named(case + wrong), **curve_style(i))
    sizes = sorted({cell.bytes for cells in cases.values() for cell in cells if cell.bytes})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.minorticks_off()
    ticks = sizes[::-(-len(sizes) // 6)]
    axes.set_xticks(ticks, [size(n) for n in ticks])
    if limit_bytes_per_s:
        axes.axhline(limit_bytes_per_s / 1e9, color=INK, linewidth=1.2, linestyle=(0, (5, 3)))
        low, high = axes.get_ylim()
        axes.set_ylim(low, max(high, 2 * limit_bytes_per_s / 1e9))
        axes.annotate("the wire's limit", (0, limit_bytes_per_s / 1e9), (4, 3), ("axes fraction", "data"),
                      "offset points", color=INK, fontsize=11)
    name_few_decades(axes, "y")
    legend(figure, axes, 2 if len(cases) > 3 else 1, 29 if len(cases) > 3 else 52)
    return figure
