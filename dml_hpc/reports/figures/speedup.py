"""Speed-up and efficiency against ranks: what was measured, the ideal, and apart from both what is predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dml_hpc.errors import UserError
from dml_hpc.reports.figures.canvas import (
    CURVES,
    IDEAL,
    INK,
    MOST_CURVES,
    MUTED,
    PREDICTED,
    curve_style,
    legend,
    named,
    note,
    panels,
    rank_axis,
    style,
)
from dml_hpc.reports.quantities import count
from dml_hpc.reports.scaling import Group, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Bars = list[list[float]]


def speedup_figure(groups: Sequence[Group]) -> Figure:
    """Draw speed-up and efficiency side by side, see `draw_speedup` and `draw_efficiency`.

    Groups measured at one number of ranks have no curve; beyond `MOST_CURVES` the others are left out, and the figure
    says so. Raises `UserError` when no group has a curve or matplotlib is missing.
    """
    left_out = max(0, sum(len(group.points) > 1 for group in groups) - MOST_CURVES)
    groups = with_curve(groups)
    if not groups:
        raise UserError("nothing to plot: no job was measured at two numbers of ranks; run one at another -n")
    many = len(groups) > 1
    figure, (left, right) = panels(2, height=3.6 + 0.2 * math.ceil(len(groups) / 2) * many)
    draw_speedup(left, groups)
    draw_efficiency(right, groups)
    if left_out:
        left.plot([], [], " ", label=f"and {count(left_out, 'more job')} that no colours are left for")
    legend(figure, left, 2 if many else 3, 56 if many else None)
    return figure


def speedup_alone(groups: Sequence[Group]) -> Figure:
    """Draw only the speed-up."""
    figure, (axes,) = panels(height=_height(groups))
    draw_speedup(axes, with_curve(groups))
    legend(figure, axes, 3 if len(groups) == 1 else 1)
    return figure


def efficiency_alone(groups: Sequence[Group]) -> Figure:
    """Draw only the efficiency."""
    figure, (axes,) = panels(height=_height(groups))
    draw_efficiency(axes, with_curve(groups))
    legend(figure, axes, 3 if len(groups) == 1 else 1)
    return figure


def with_curve(groups: Sequence[Group]) -> list[Group]:
    """Return the groups that were measured at two numbers of ranks or more, as many as a panel can show."""
    return [group for group in groups if len(group.points) > 1][:MOST_CURVES]


def draw_speedup(axes: Axes, groups: Sequence[Group]) -> None:
    """Draw speed-up against ranks on two logarithmic axes, where the ideal is a straight line.

    One group brings its prediction, dashed, in the band of its uncertainty; several are drawn as measured. A group
    whose base is not one rank has its own ideal, ranks/base.
    """
    weak = {group.weak for group in groups}
    style(axes, "ranks", "speed-up (weak scaling: scaled)" if len(weak) > 1 else
          "scaled speed-up (times the work per second)" if True in weak else "speed-up (times as fast)")
    most = _x_axis(axes, groups)
    for base in sorted({group.base for group in groups}):
        axes.plot([base, most], [1, most / base], color=MUTED, linewidth=1.2, linestyle=IDEAL,
                  label="ideal" if base == 1 else f"ideal from {base} ranks")
    for i, group in enumerate(groups):
        _measured(axes, group, [point.speedup for point in group.points], i, len(groups) == 1)
    if len(groups) == 1:
        _predicted(axes, groups[0], lambda ranks, efficiency: efficiency * ranks / groups[0].base)
    shown = [point.speedup for group in groups for point in group.points]
    if len(groups) == 1 and (told := groups[0].prediction) is not None:  # however far down it goes, not out of sight
        shown += [max(e * ranks / groups[0].base, 0.25) for ranks, e in zip(told.ranks, told.efficiency, strict=True)]
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}")
    axes.set_ylim(min(0.8, 0.8 * min(shown)), 1.3 * max(*shown, *(most / group.base for group in groups)))
    axes.minorticks_off()


def draw_efficiency(axes: Axes, groups: Sequence[Group]) -> None:
    """Draw efficiency against ranks, its ideal level at 100 %; else as `draw_speedup`."""
    style(axes, "ranks", "efficiency (speed-up / ideal)")
    most = _x_axis(axes, groups)
    axes.plot([min(group.base for group in groups), most], [1, 1], color=MUTED, linewidth=1.2, linestyle=IDEAL,
              label="ideal")
    for i, group in enumerate(groups):
        _measured(axes, group, [point.efficiency for point in group.points], i, len(groups) == 1)
    if len(groups) == 1:
        _predicted(axes, groups[0], lambda ranks, efficiency: efficiency)
    top = max(point.efficiency for group in groups for point in group.points)
    reach = max(value + above for group in groups for values in [[point.efficiency for point in group.points]]
                for value, above in zip(values, bars(group.points, values)[1], strict=True))
    axes.set_ylim(0, 1.12 * max(1.0, top, min(reach, 1.5)))  # a very long bar may leave the figure
    axes.yaxis.set_major_formatter("{x:.0%}")


def bars(points: Sequence[Point], values: Sequence[float]) -> Bars:
    """Return how far below and above ``values``, all ∝ 1/seconds, the error bars reach.

    To the ends of the confidence interval of the median time where there are repeats enough for one, else to the
    slowest and the fastest run.
    """
    slow = [point.seconds_max if point.high is None else point.high for point in points]
    fast = [point.seconds_min if point.low is None else point.low for point in points]
    return [[max(value * (1 - point.seconds / at), 0.0) for value, point, at in zip(values, points, slow, strict=True)],
            [max(value * (point.seconds / at - 1), 0.0) for value, point, at in zip(values, points, fast, strict=True)]]


def _x_axis(axes: Axes, groups: Sequence[Group]) -> int:
    ranks = {point.ranks for group in groups for point in group.points}
    prediction = groups[0].prediction if len(groups) == 1 else None
    if prediction is not None:
        ranks |= set(prediction.ranks)
    rank_axis(axes, sorted(ranks))
    return max(ranks)


def _measured(axes: Axes, group: Group, values: list[float], i: int, alone: bool) -> None:
    axes.errorbar([point.ranks for point in group.points], values, yerr=bars(group.points, values), elinewidth=1.2,
                  capsize=3, label="measured" if alone else named(group.short), zorder=3, **curve_style(i))


def _predicted(axes: Axes, group: Group, value: Any) -> None:
    told, last = group.prediction, group.points[-1]
    if told is None:
        return
    ahead = [i for i, ranks in enumerate(told.ranks) if ranks > last.ranks]
    if not ahead:
        return
    ranks = [last.ranks, *(told.ranks[i] for i in ahead)]
    line, low, high = ([value(n, e) for n, e in zip(ranks, [last.efficiency, *(of[i] for i in ahead)], strict=True)]
                       for of in (told.efficiency, told.efficiency_low, told.efficiency_high))
    axes.fill_between(ranks, low, high, color=CURVES[1], alpha=0.22, linewidth=0)
    axes.plot(ranks, line, color=CURVES[1], linewidth=1.8, linestyle=PREDICTED, label="predicted")
    axes.axvline(told.measured_to, color=INK, linewidth=1, linestyle=(0, (1, 1.5)))
    room = told.ranks[-1] / told.measured_to > (told.ranks[-1] / group.base) ** 0.3
    if room:
        note(axes, "predicted →", told.measured_to, 0.99)
    else:
        note(axes, "← measured", told.measured_to, 0.99, xytext=(-4, 0), ha="right")


def _height(groups: Sequence[Group]) -> float:
    """Return inches: a figure grows with the names under it."""
    return 3.6 + (0.2 * len(groups) if len(groups) > 1 else 0.0)
