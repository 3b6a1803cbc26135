"""The figures of a report, as SVG or PNG; the one file that imports matplotlib, and only for a figure."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.errors import UserError
from dml_hpc.reports.scaling import PHASES, Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision can tell apart; yellow is too pale on white.
CURVES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
PHASE_COLOURS = {"read": "#56B4E9", "compute": "#009E73", "communicate": "#D55E00", "wait": "#E69F00",
                 "other": "#BBBBBB"}
INK, MUTED = "#222222", "#666666"


def speedup_figure(groups: Sequence[Group]) -> Figure:
    """Draw speed-up against ranks: a curve a group with the spread over repeats, and the ideal line.

    Groups measured at one number of ranks have no curve. A group whose base is not one rank has its own
    ideal, ranks/base. Raises `UserError` when no group has a curve or matplotlib is missing.
    """
    groups = [group for group in groups if len(group.points) > 1]
    if not groups:
        raise UserError("nothing to plot: no job was measured at two numbers of ranks; run one at another -n")
    figure, axes = _figure("ranks", "speed-up (times faster)")
    ranks = sorted({point.ranks for group in groups for point in group.points})
    labels = []
    for base in sorted({group.base for group in groups}):
        name = "ideal" if base == 1 else f"ideal from {base} ranks"
        axes.plot([base, ranks[-1]], [1, ranks[-1] / base], color=MUTED, linewidth=1, linestyle=(0, (5, 4)))
        labels.append((ranks[-1], ranks[-1] / base, name, MUTED))
    for i, group in enumerate(groups):
        colour, points = CURVES[i % len(CURVES)], group.points
        speedups = [point.speedup for point in points]
        spread = [[point.speedup * (1 - point.seconds / point.seconds_max) for point in points],
                  [point.speedup * (point.seconds / point.seconds_min - 1) for point in points]]
        axes.errorbar([point.ranks for point in points], speedups, yerr=spread, color=colour, linewidth=2,
                      marker=MARKERS[i % len(MARKERS)], markersize=6, elinewidth=1.2, capsize=3)
        labels.append((points[-1].ranks, speedups[-1], group.short, colour))
    if ranks[-1] > 16 * ranks[0]:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    axes.set_xticks(ranks, [str(n) for n in ranks], minor=False)
    axes.minorticks_off()
    _label_right(axes, labels)
    return figure


def split_figure(group: Group) -> Figure:
    """Draw where one group's time went: a stacked bar a number of ranks, in rank-seconds (ranks × seconds).

    In rank-seconds ideal scaling is a level line, so all that stands above it is what more ranks cost.
    Raises `UserError` when matplotlib is missing.
    """
    figure, axes = _figure("ranks", "rank-seconds (ranks × time)")
    points = [point for point in group.points if point.split]
    places = list(range(len(points)))
    bottom = [0.0] * len(points)
    labels = []
    for phase in (*PHASES, "other"):
        heights = [point.ranks * max(point.other_s if phase == "other" else point.split.get(phase, 0.0), 0.0)
                   for point in points]
        if any(heights):
            axes.bar(places, heights, 0.6, bottom, color=PHASE_COLOURS[phase], edgecolor="white",
                     linewidth=0.8)
            middle = bottom[-1] + heights[-1] / 2
            labels.append((places[-1] + 0.3, middle, phase, INK, PHASE_COLOURS[phase]))
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    ideal = group.points[0].seconds * group.base
    axes.axhline(ideal, color=INK, linewidth=1, linestyle=(0, (5, 4)))
    axes.annotate("ideal", (0, ideal), (2, 3), xycoords=("axes fraction", "data"),
                  textcoords="offset points", color=INK)
    axes.set_xticks(places, [str(point.ranks) for point in points])
    axes.set_xlim(-0.75, len(points) - 0.55)
    axes.set_ylim(0, 1.08 * max(ideal, *bottom))
    _label_right(axes, labels)
    return figure


def as_svg(figure: Figure, title: str) -> str:
    """Return ``figure`` as one ``<svg>`` element for an HTML page: no links; ``title`` stands in for it."""
    import matplotlib

    buffer = io.StringIO()
    # Text stays text: it can be searched and read aloud. A fixed salt makes equal figures equal bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dml-hpc"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg"):], count=1, flags=re.DOTALL)
    svg = re.sub(r'<g id="[\w.]+">', "<g>", svg)  # the same ids in every figure, which a page must not have
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def save_png(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path`` as a PNG of 160 dots an inch, whatever the name's ending."""
    figure.savefig(path, format="png", dpi=160, bbox_inches="tight", metadata={"Software": None})


def _figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need matplotlib: pip install 'dml-hpc[report]'") from None
    figure = Figure(figsize=(6.4, 4.0), facecolor="white")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=10)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label, color=INK, fontsize=11)
    axes.set_ylabel(y_label, color=INK, fontsize=11)
    return figure, axes


def _label_right(axes: Axes, labels: Sequence[tuple[Any, ...]]) -> None:
    """Write each (x, y, text, colour[, swatch]) right of its point, moved apart where texts would touch."""
    to_axes = axes.transAxes.inverted()
    placed = sorted(((to_axes.transform(axes.transData.transform((x, y))), *rest) for x, y, *rest in labels),
                    key=lambda item: item[0][1])
    heights = _spread([float(at[1]) for at, *_ in placed], gap=0.085)
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
