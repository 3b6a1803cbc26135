"""The straggler map: which rank worked when, while the others waited for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dml_hpc.reports.figures.canvas import BROAD, INK, MUTED, panels, style
from dml_hpc.reports.runs import PHASES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_INTERVALS = 96
MOST_ROWS = 128
"""Of more ranks, a row of the figure is the busiest of some neighbours."""


class Map(NamedTuple):
    """How busy each rank was in each interval.

    ``edges`` (intervals + 1,) float64 are seconds since the run began; ``busy`` (ranks, intervals) float64 the share of
    the interval, 0 … 1, NaN where a rank told nothing. ``told`` says what counts as busy.
    """

    edges: np.ndarray
    busy: np.ndarray
    told: str


def straggler_map(trace: Sequence[Any]) -> Map | None:
    """Return the map of a run from its trace: points by rank; None where there is too little in it to draw.

    Points hold seconds so far of each phase; those of older records only the idle share so far, whence a rank counts as
    busy while it does not wait.
    """
    points = [_points(rank) for rank in trace]
    if len(points) < 2 or not any(points):
        return None
    split = all("wait" in point for rank in points for point in rank)
    courses = [_course(rank, split) for rank in points]
    ends = [course[0][-1] for course in courses if len(course[0]) > 1]
    if not ends or max(ends) <= 0:
        return None
    n = min(MOST_INTERVALS, max(len(course[0]) for course in courses) - 1)
    edges = np.linspace(0.0, max(ends), n + 1)
    shares = np.array([_shares(edges, *course) for course in courses])
    if not np.isfinite(shares).any():
        return None
    return Map(edges, shares, "reading or computing" if split else "not waiting for others")


def stragglers_figure(found: Map) -> Figure:
    """Draw ``found``: rank against time, the brighter the busier; grey where a rank told nothing."""
    figure, (axes,) = panels(width=BROAD, height=2.6 + 1.8 * min(len(found.busy), 24) / 24)
    neighbours = max(1, -(-len(found.busy) // MOST_ROWS))
    rows = busiest(found.busy, neighbours)
    style(axes, "seconds of the run", "rank" if neighbours == 1 else f"rank (each row: the busiest of {neighbours})")
    axes.grid(visible=False)
    import matplotlib

    colours = matplotlib.colormaps["cividis"].with_extremes(bad="#9A9A9A")
    top = float(np.nanmax(rows))
    image = axes.imshow(rows, aspect="auto", interpolation="none", cmap=colours, vmin=0.0, vmax=max(top, 1e-3),
                        extent=(0.0, float(found.edges[-1]), len(found.busy) - 0.5, -0.5))
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    bar = figure.colorbar(image, ax=axes, location="bottom", fraction=0.06, aspect=40, pad=0.02)
    bar.ax.tick_params(colors=INK, labelsize=11)
    bar.ax.xaxis.set_major_formatter("{x:.0%}" if top > 0.05 else "{x:.1%}")
    bar.set_label(f"share of the interval {found.told}", color=INK, fontsize=11)
    bar.outline.set_edgecolor(MUTED)
    return figure


def busiest(shares: np.ndarray, neighbours: int) -> np.ndarray:
    """Return (ranks / ``neighbours``, intervals): of each few neighbouring ranks the one busiest over the run."""
    if neighbours == 1:
        return shares
    whole = np.nan_to_num(shares).sum(axis=1)
    return np.stack([shares[start + int(np.argmax(whole[start:start + neighbours]))]
                     for start in range(0, len(shares), neighbours)])


def _points(rank: Any) -> list[dict[str, Any]]:
    """Return the points of a rank that tell when and how, in order; what a record holds is not to be trusted."""
    told = [point for point in rank if isinstance(point, dict)] if isinstance(rank, (list, tuple)) else []
    kept = []
    for point in told:
        keys = ("seconds", *PHASES) if all(key in point for key in PHASES) else ("seconds", "idle")
        if all(_known(point.get(key)) for key in keys):
            kept.append({key: float(point[key]) for key in keys})
    return kept


def _known(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and 0 <= value < 1e12


def _course(rank: Sequence[dict[str, float]], split: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return when (points,), and up to then the busy seconds and the seconds that were told of, all from 0 on."""
    at = np.maximum.accumulate([0.0, *(point["seconds"] for point in rank)])
    if split:
        busy = [point["read"] + point["compute"] for point in rank]
        whole = [sum(point[phase] for phase in PHASES) for point in rank]
    else:
        whole = [point["seconds"] for point in rank]
        busy = [point["seconds"] * (1 - min(point.get("idle", 0.0), 1.0)) for point in rank]
    return at, np.array([0.0, *busy]), np.array([0.0, *whole])


def _shares(edges: np.ndarray, at: np.ndarray, busy: np.ndarray, whole: np.ndarray) -> np.ndarray:
    if len(at) < 2:
        return np.full(len(edges) - 1, np.nan)
    spent, known = np.diff(np.interp(edges, at, busy)), np.diff(np.interp(edges, at, whole))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(known > 1e-12, np.clip(spent / known, 0.0, 1.0), np.nan)
