"""What the figures share: colours that people with any colour vision can tell apart, axes, and SVG for a page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#222222", "#666666", "#E4E4E4", "#FFFFFF"
_THEMED = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"}
"""These a page may replace: in `page_svg` each is a CSS variable of this name."""
# Okabe and Ito's colours; yellow is too pale on white, and the black one is the ink, which is pale on dark paper.
CURVES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
MARKERS = "osD^vPX"
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (1, 1)), (0, (6, 1, 1, 1)))
PREDICTED: Any = (0, (4, 2))
"""The dashes of what was not measured."""
IDEAL: Any = (0, (1.5, 2.5))
MOST_CURVES = len(CURVES) * len(DASHES)
"""That one panel can tell apart; nobody can read as many."""
WIDE, HIGH = 5.2, 3.6
"""Inches of a panel: two stand side by side on a page, and the letters of one can still be read on a phone."""
BROAD = 6.0
"""Inches of a panel that stands alone."""


def panels(n_columns: int = 1, width: float = WIDE, height: float = HIGH) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``n_columns`` panels in a row. Raises `UserError` when matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need matplotlib: pip install 'dml-hpc[report]'") from None
    figure = Figure(figsize=(n_columns * width, height), facecolor="none", layout="constrained")
    return figure, list(figure.subplots(1, n_columns, squeeze=False)[0])


def style(axes: Axes, x_label: str, y_label: str, size: float = 12) -> None:
    """Give ``axes`` the looks of all figures; the name of y stands above its axis, where it need not be turned."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=size)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label, color=INK, fontsize=size)
    axes.set_title(y_label, color=INK, fontsize=size, loc="left", pad=10)


def rank_axis(axes: Axes, ranks: Sequence[int]) -> None:
    """Make x the number of ranks: logarithmic, every number of ``ranks`` named where there is room for it."""
    ranks = sorted(set(ranks))
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    apart = math.log2(ranks[-1] / ranks[0]) / 7  # where two are nearer, their names would touch
    shown = ranks[-1:]
    for n in ranks[-2::-1]:
        if math.log2(shown[0] / n) >= apart:
            shown.insert(0, n)
    if ranks[0] not in shown:  # the first and the last are always named
        shown = [ranks[0], *(shown[1:] or shown)]
    axes.set_xticks(shown, [str(n) for n in shown])
    if len(ranks) == 1:
        axes.set_xlim(ranks[0] / 2, ranks[0] * 2)


def curve_style(i: int) -> dict[str, Any]:
    """Return how the ``i``-th curve is drawn: no two alike in colour, marker and dashes."""
    return {"color": CURVES[i % len(CURVES)], "marker": MARKERS[(i + i // len(CURVES)) % len(MARKERS)],
            "linestyle": DASHES[i // len(CURVES) % len(DASHES)], "linewidth": 1.8, "markersize": 6}


def legend(figure: Figure, axes: Axes, n_columns: int = 1, longest: int | None = None) -> None:
    """Write the names of the curves of ``axes`` under the figure, where they hide nothing; ``longest`` in letters."""
    handles, names = axes.get_legend_handles_labels()
    if not handles:
        return
    # What was measured comes first, and what it is held against last.
    order = sorted(range(len(names)), key=lambda i: names[i].startswith(("ideal", "and ")))
    order = sorted(order, key=lambda i: names[i].startswith(("predicted", "ideal", "and ")))
    handles, names = [handles[i] for i in order], [names[i] for i in order]
    box = figure.legend(handles, [cut(name, longest or 52 // n_columns) for name in names], fontsize=11,
                        loc="outside lower left", ncols=n_columns, frameon=False, labelcolor=INK, handlelength=2.6,
                        borderaxespad=0.2)
    for text in box.get_texts():
        text.set_parse_math(False)


def name_few_decades(axes: Axes, which: str) -> None:
    """Number a logarithmic axis ("x" or "y") inside of its decades, too, where it spans too few of them to do."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis, (low, high) = (axes.xaxis, axes.get_xlim()) if which == "x" else (axes.yaxis, axes.get_ylim())
    numbered = (1, 2, 3, 5, 7) if high < 12 * low else (1, 2, 5) if high < 1000 * low else (1,)
    axis.set_major_locator(LogLocator(subs=numbered))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter("{x:g}")


def named(text: str) -> str:
    """Return a curve's name for the legend, which would leave out one that begins with an underscore."""
    return f" {text}" if text.startswith("_") else text


def cut(text: str, length: int) -> str:
    """Return ``text`` on one line, its end cut off where it is longer than ``length``."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[:length - 1] + "…"


def note(axes: Axes, text: str, x: float, y: float, **more: Any) -> None:
    """Write ``text`` at data place ``x`` and height ``y`` (0 … 1) of ``axes``; nothing in it is mathematics."""
    axes.annotate(text, (x, y), xycoords=axes.get_xaxis_transform(), color=MUTED, fontsize=11, parse_math=False,
                  annotation_clip=False, **{"textcoords": "offset points", "xytext": (4, 0), "va": "top", **more})


def as_svg(figure: Figure, title: str, tight: bool = True) -> str:
    """Return ``figure`` as one ``<svg>`` element for an HTML page: no links; ``title`` stands in for it."""
    import matplotlib

    buffer = io.StringIO()
    # Text stays text: it can be searched and read aloud. A fixed salt makes equal figures equal bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dml-hpc"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight" if tight else None, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg"):], count=1, flags=re.DOTALL)
    svg = re.sub(r'<g id="[\w.]+">', "<g>", svg)  # the same ids in every figure, which a page must not have
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def page_svg(figure: Figure, title: str, prefix: str) -> str:
    """Return ``figure`` for a page in any theme: ink and paper are the page's variables, ids begin with ``prefix``."""
    svg = as_svg(figure, title, tight=False)
    for colour, name in _THEMED.items():
        svg = re.sub(rf"(?<=: ){colour}\b", f"var(--{name}, {colour})", svg, flags=re.IGNORECASE)
    svg = re.sub(r'\bid="(?=[\w-]+")', f'id="{prefix}-', svg)
    svg = re.sub(r'(?<=href=")#', f"#{prefix}-", svg)
    return re.sub(r"url\(#", f"url(#{prefix}-", svg)


def save_png(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path`` as a PNG of 160 dots an inch on white, whatever the name's ending."""
    figure.savefig(path, format="png", dpi=160, bbox_inches="tight", facecolor="white", metadata={"Software": None})
