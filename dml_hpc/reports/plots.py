"""The figures of single verbs: all-reduces, traces, singular values; those of a report are in `reports.figures`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dml_hpc.errors import UserError
from dml_hpc.reports.figures.canvas import CURVES, INK, MARKERS, MUTED, as_svg, save_png
from dml_hpc.reports.quantities import count, duration, size

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CURVES", "INK", "MARKERS", "allreduce_figure", "as_svg", "check_matplotlib", "save_png", "scree_figure",
           "traces_figure"]

MOST_MARKED = 60
"""Of more points a line each has no marker."""


def allreduce_figure(results: Sequence[dict[str, Any]], ranks: int, limit_bytes_per_s: float | None = None) -> Figure:
    """Draw time and bus bandwidth against the vector's bytes: two panels a type of element, a curve a reducer.

    ``results`` are those of ``bench allreduce``: points are measured, dotted lines are the fitted cost models. A dashed
    level marks the bus bandwidth ``limit_bytes_per_s`` that no all-reduce can pass. Vectors of 0 bytes are left out.
    Raises `UserError` when matplotlib is missing.
    """
    drawn = [result for result in results if result["bytes"] > 0]
    styles = _styles(list(dict.fromkeys(result["reducer"] for result in drawn)))
    types = list(dict.fromkeys(result["dtype"] for result in drawn))
    figure, panels = _panels(len(types), 2, (12.8, 4.2 * len(types)))
    for dtype, (left, right) in zip(types, panels, strict=True):
        own = [result for result in drawn if result["dtype"] == dtype]
        _style(left, "size of the vector", f"time of an all-reduce ({dtype}, {count(ranks, 'rank')})")
        _style(right, "size of the vector", "bus bandwidth, GB/s" if ranks > 1 else "bandwidth, GB/s")
        sizes = sorted({result["bytes"] for result in own})
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            ticks = sizes[::-(-len(sizes) // 7)]
            axes.set_xticks(ticks, [size(n) for n in ticks])
            axes.minorticks_off()
            axes.set_yscale("log")
        left.yaxis.set_major_formatter(lambda seconds, _: duration(seconds).replace(".00", "").replace(".0", ""))
        right.yaxis.set_major_formatter("{x:g}")
        wire = 2 * (ranks - 1) / ranks / 1e9 if ranks > 1 else 1e-9  # from bytes to what a link carries, in GB
        labels = [_curve((left, right), [r for r in own if r["reducer"] == name], style, wire)
                  for name, style in styles.items() if any(r["reducer"] == name for r in own)]
        rates = [rate for _, rate in labels]
        if limit_bytes_per_s is not None:
            right.axhline(limit_bytes_per_s / 1e9, color=MUTED, linewidth=1, linestyle=(0, (5, 4)))
            rates.append((sizes[-1], limit_bytes_per_s / 1e9, "the wire's limit", MUTED))
        for axes in (left, right):
            _label_few_decades(axes)
        _label_right(left, [time for time, _ in labels], gap=0.065)
        _label_right(right, rates, gap=0.065)
    if any(result["seconds_model"] for result in drawn):
        panels[-1][0].annotate("points: median of the slowest rank; dotted: messages · α + bytes · β, fitted", (0, 0),
                               (0, -48), "axes fraction", "offset points", color=MUTED, fontsize=9)
    return figure


def traces_figure(runs: Sequence[tuple[str, list[list[dict[str, Any]]]]]) -> Figure:
    """Draw the training loss, as it was met, against seconds and against examples: a curve a run.

    ``runs`` are (name, trace), the trace as ``train`` records it: points by rank. The loss is the mean over ranks, by
    point. Raises `UserError` when matplotlib is missing.
    """
    figure, ((left, right),) = _panels(1, 2, (12.8, 4.2))
    _style(left, "seconds of training", "training loss, as met")
    _style(right, "examples learnt from, all ranks", "training loss, as met")
    labels: list[list[Any]] = [[], []]
    first: list[float] = []
    least = float("inf")
    for i, (name, trace) in enumerate(runs):
        style: dict[str, Any] = {"color": CURVES[i % len(CURVES)], "marker": MARKERS[i % len(MARKERS)],
                                 "markersize": 4, "linewidth": 1.6}
        points = [[point for point in at if point["loss"] is not None] for at in zip(*trace, strict=False)]
        points = [at for at in points if at]
        losses = [sum(point["loss"] for point in at) / len(at) for at in points]
        first, least = first + losses[:1], min([least, *losses])
        for axes, own, key, merge in ((left, labels[0], "seconds", max), (right, labels[1], "examples", sum)):
            places = [merge(point[key] for point in at) for at in points]
            if places:
                axes.plot(places, losses, **style)
                own.append((places[-1], losses[-1], name, style["color"]))
    for axes, own in zip((left, right), labels, strict=True):
        axes.set_xscale("log")  # most of it happens at the beginning
        height = sorted(first)[len(first) // 2] - least if first else 0.0
        if height > 0:  # one bad start does not flatten the rest
            axes.set_ylim(least - 0.05 * height, least + 1.1 * height)
        _label_right(axes, own)
    return figure


def scree_figure(singular_values: np.ndarray, energy: np.ndarray, residuals: np.ndarray) -> Figure:
    """Draw singular values, with bars as far as each may be off, and beside them the energy that is theirs in all.

    All are (k,): ``residuals`` are shares of the largest singular value σ₁, so a singular value of the matrix lies
    within ± ``residuals``·σ₁; NaN where σ is zero to rounding, which has no place on a logarithmic axis. ``energy`` is
    the share of the matrix's squared norm in triplets 1 … i. Raises `UserError` when matplotlib is missing.
    """
    figure, ((left, right),) = _panels(1, 2, (12.8, 4.2))
    from matplotlib.ticker import MaxNLocator  # only now it is known to be there

    _style(left, "triplet i", "singular value σ")
    _style(right, "triplet i", "energy: share of ‖A‖² in triplets 1 … i")
    style: dict[str, Any] = {"linewidth": 1.6, "markersize": 4 if len(energy) <= MOST_MARKED else 0}
    drawn = [(i, float(sigma), float(residual * singular_values[0]))
             for i, (sigma, residual) in enumerate(zip(singular_values, residuals, strict=True), 1)
             if sigma > 0 and not math.isnan(residual)]
    if drawn:
        places, values, off = (list(column) for column in zip(*drawn, strict=True))
        below = [min(length, 0.9 * value) for length, value in zip(off, values, strict=True)]
        left.errorbar(places, values, yerr=[below, off], color=CURVES[0], marker=MARKERS[0], elinewidth=1.2,
                      capsize=3 if len(energy) <= MOST_MARKED else 0, ecolor=CURVES[1], **style)
        left.set_yscale("log")
        _label_few_decades(left)
        left.yaxis.set_major_formatter("{x:g}")
        left.annotate(f"bars: σ ± its residual; the largest residual is {max(off) / values[0]:.2g} of the largest σ",
                      (0, 0), (0, -48), "axes fraction", "offset points", color=MUTED, fontsize=9)
    right.plot(range(1, len(energy) + 1), energy, color=CURVES[2], marker=MARKERS[2], **style)
    right.set_ylim(0, 1.04)
    right.yaxis.set_major_formatter("{x:.0%}")
    for axes in (left, right):
        axes.set_xlim(0.5, len(energy) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _label_right(right, [(len(energy), float(energy[-1]), f"{energy[-1]:.2%}", CURVES[2])])
    return figure


def _label_few_decades(axes: Axes) -> None:
    """Number a logarithmic y axis at 1, 2 and 5 where it spans too little for its decades to tell the scale."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_ylim()
    if high < 50 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return how each reducer's curve is drawn: one that compresses, ``name+method``, has its plain one's colour."""
    plain = list(dict.fromkeys(name.partition("+")[0] for name in names))
    methods = list(dict.fromkeys(name.partition("+")[2] for name in names))
    lines: list[Any] = ["-", "--", "-.", (0, (1, 1)), (0, (6, 1, 1, 1, 1, 1))]
    styles = {}
    for name in names:
        i, method = plain.index(name.partition("+")[0]), name.partition("+")[2]
        colour = CURVES[i % len(CURVES)]
        styles[name] = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "markersize": 5, "linewidth": 1.6,
                        "markerfacecolor": "white" if method else colour,
                        "linestyle": lines[methods.index(method) % len(lines)] if method else "-"}
    return styles


def _curve(panels: tuple[Axes, Axes], curve: list[dict[str, Any]], style: dict[str, Any],
           wire: float) -> tuple[Any, Any]:
    """Draw one reducer's times, and bytes · ``wire`` over time; return the label of each for `_label_right`."""
    curve = sorted(curve, key=lambda result: result["bytes"])
    label = curve[0]["reducer"] + " (WRONG)" * any(result["errors"] for result in curve)
    labels = []
    for axes, value in zip(panels, (lambda n, s: s, lambda n, s: n * wire / s), strict=True):
        axes.plot([r["bytes"] for r in curve], [value(r["bytes"], r["seconds_median"]) for r in curve], **style)
        modelled = [r for r in curve if r["seconds_model"]]
        axes.plot([r["bytes"] for r in modelled], [value(r["bytes"], r["seconds_model"]) for r in modelled],
                  color=style["color"], linewidth=1, alpha=0.7, linestyle=(0, (1.5, 2)))
        end = curve[-1]["bytes"]
        labels.append((end, value(end, curve[-1]["seconds_median"]), label, style["color"]))
    return labels[0], labels[1]


def check_matplotlib() -> None:
    """Raise `UserError` when matplotlib is missing: before what is to be drawn is measured."""
    _panels(1, 1, (1, 1))


def _panels(n_rows: int, n_columns: int, inches: tuple[float, float]) -> tuple[Figure, list[list[Axes]]]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need matplotlib: pip install 'dml-hpc[report]'") from None
    figure = Figure(figsize=inches, facecolor="white")
    panels = figure.subplots(n_rows, n_columns, squeeze=False, gridspec_kw={"wspace": 0.55, "hspace": 0.3})
    return figure, [list(row) for row in panels]


def _style(axes: Axes, x_label: str, y_label: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=10)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label, color=INK, fontsize=11)
    axes.set_ylabel(y_label, color=INK, fontsize=11)


def _label_right(axes: Axes, labels: Sequence[tuple[Any, ...]], gap: float = 0.085) -> None:
    """Write each (x, y, text, colour[, swatch]) right of its point, moved apart where texts would touch."""
    axes.autoscale_view()  # else limits are settled when the figure is drawn, too late for us
    to_axes = axes.transAxes.inverted()
    placed = sorted(((to_axes.transform(axes.transData.transform((x, y))), *rest) for x, y, *rest in labels),
                    key=lambda item: item[0][1])
    heights = _spread([float(at[1]) for at, *_ in placed], gap)
    for ((x, y), text, colour, *swatch), height in zip(placed, heights, strict=True):
        box = {"boxstyle": "square,pad=0.25", "facecolor": swatch[0], "linewidth": 0} if swatch else None
        # No mathematics: a name with a dollar sign is a name.
        axes.annotate(text if len(text) <= 40 else text[:39] + "…", (x, y), (x + 0.03, height),
                      xycoords="axes fraction", textcoords="axes fraction", color=colour, fontsize=10,
                      va="center", annotation_clip=False, parse_math=False, bbox=box,
                      arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "relpos": (0, 0.5)}
                      if abs(height - y) > 0.03 else None)


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return the rising ``heights`` at least ``gap`` apart: a sweep up, then one down from the axes' top."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    top = 1.0 + gap
    for i in range(len(moved) - 1, -1, -1):
        moved[i] = top = min(moved[i], top - gap)
    return moved
