"""A figure of curves: what several contestants have reached after so many seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from dml_hpc.reports.figures.canvas import curve_style, legend, name_few_decades, style

Curve = tuple[Sequence[float], Sequence[float]]
"""x and y of its points."""


def draw_curves(path: Path, curves: Mapping[str, Curve], x_label: str, y_label: str, level: float | None = None,
                highest: float | None = None, log: bool = False) -> None:
    """Write ``path``, an SVG of a curve each, with a dashed ``level``; what is above ``highest`` is cut off.

    With ``log`` both axes are logarithmic, otherwise x alone.
    """
    figure = Figure(figsize=(7.2, 4.6), facecolor="white", layout="constrained")
    axes = figure.subplots()
    style(axes, x_label, y_label)
    for i, (name, (x, y)) in enumerate(curves.items()):
        axes.plot(x, y, label=name, **{**curve_style(i), "markersize": 4, "linewidth": 1.5})
    if level is not None:
        axes.axhline(level, color="#222222", linewidth=0.8, linestyle=(0, (5, 4)))
    axes.set_xscale("log")
    if log:
        axes.set_yscale("log")
        name_few_decades(axes, "y")
    if highest is not None:
        lowest = min(min(y) for _, y in curves.values())
        axes.set_ylim(lowest - 0.05 * (highest - lowest), highest)
    name_few_decades(axes, "x")
    legend(figure, axes, longest=80)
    save_svg(figure, path)


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure, the same bytes for the same figure; its text stays text."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dml-hpc"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
