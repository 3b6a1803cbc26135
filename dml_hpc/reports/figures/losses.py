"""Training loss against time, a curve for each way to train."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dml_hpc.reports.figures.canvas import BROAD, CURVES, curve_style, legend, name_few_decades, named, panels, style
from dml_hpc.reports.quantities import count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AT_ONCE = len(CURVES)
"""Curves in one figure: each has its own colour."""


class Curve(NamedTuple):
    """Of one run: (seconds, loss), in order of time; the loss is the mean over ranks as the run met it."""

    name: str
    ranks: int
    points: list[tuple[float, float]]


def curve(name: str, ranks: int, trace: Sequence[Any]) -> Curve | None:
    """Return the curve of a trace: points by rank; None where no rank told of a loss."""
    told: list[list[dict[str, Any]]] = [
        [point for point in rank if isinstance(point, dict)] if isinstance(rank, (list, tuple)) else []
        for rank in trace]
    points = []
    for at in zip(*[rank for rank in told if rank], strict=False):
        losses = [point["loss"] for point in at if _finite(point.get("loss"))]
        times = [point["seconds"] for point in at if _finite(point.get("seconds"))]
        if losses and times:
            points.append((max(times), sum(losses) / len(losses)))
    return Curve(name, ranks, points) if points else None


def losses_figure(curves: Sequence[Curve]) -> Figure:
    """Draw ``curves``. One bad start does not flatten the rest: above a little over the median start they are cut."""
    figure, (axes,) = panels(width=BROAD, height=3.6 + 0.2 * len(curves))
    style(axes, "seconds of training (logarithmic)", "training loss, as it was met")
    for i, one in enumerate(curves):
        look = curve_style(i)
        axes.plot([at for at, _ in one.points if at > 0], [loss for at, loss in one.points if at > 0],
                  markevery=max(1, len(one.points) // 10), label=f"{named(one.name)} ({count(one.ranks, 'rank')})",
                  **{**look, "markersize": 5})
    if any(at > 0 for one in curves for at, _ in one.points):
        axes.set_xscale("log")  # most of it happens at the beginning
        name_few_decades(axes, "x")
    starts = sorted(one.points[0][1] for one in curves)
    least = min(loss for one in curves for _, loss in one.points)
    height = starts[len(starts) // 2] - least
    if height > 0:
        axes.set_ylim(least - 0.06 * height, least + 1.15 * height)
    legend(figure, axes)
    return figure


def _finite(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
