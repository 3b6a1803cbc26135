"""Where each rank's time went: read, compute, communicate, wait, side by side for every number of ranks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dml_hpc.reports.figures.canvas import BROAD, INK, PAPER, panels, style
from dml_hpc.reports.quantities import duration
from dml_hpc.reports.runs import PHASES
from dml_hpc.reports.scaling import Group, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"read": "#56B4E9", "compute": "#009E73", "communicate": "#D55E00", "wait": "#E69F00"}
HATCHES = {"read": "//", "compute": "", "communicate": "\\\\", "wait": ".."}
MOST_BARS = 64
"""Of one number of ranks; of more, each bar is the busiest of some neighbours."""


class Block(NamedTuple):
    """The bars of one number of ranks: ``phases`` of each in seconds, and how many ``neighbours`` a bar stands for."""

    ranks: int
    phases: list[dict[str, float]]
    neighbours: int


def blocks(group: Group) -> list[Block]:
    """Return a block for every number of ranks with a time split; one bar where only maxima over ranks are known."""
    found = []
    for point in group.points:
        each = by_rank(point)
        if not each and not point.split:
            continue
        step = max(1, -(-len(each) // MOST_BARS))
        kept = [max(each[i:i + step], key=busy) for i in range(0, len(each), step)]
        found.append(Block(point.ranks, kept or [dict(point.split)], step))
    return found


def per_step(phases: Sequence[Mapping[str, float]], ranks: int,
             steps: Mapping[int, float] | None) -> list[dict[str, float]]:
    """Return seconds of a step from those of a run."""
    each = steps[ranks] if steps else 1.0
    return [{phase: seconds / each for phase, seconds in of.items()} for of in phases]


def short_duration(seconds: float) -> str:
    """Return a duration for the tick of an axis: without zeros that say nothing."""
    return re.sub(r"\.?0+ ", " ", text) if "." in (text := duration(seconds)) else text


def by_rank(point: Point) -> list[dict[str, float]]:
    """Return the phases of each rank in seconds; empty where no record tells them."""
    return [{phase: seconds(rank, phase) for phase in PHASES} for rank in point.per_rank or ()]


def busy(phases: Mapping[str, float]) -> float:
    """Return the seconds in which a rank had work of its own."""
    return phases.get("read", 0.0) + phases.get("compute", 0.0)


def seconds(rank: Mapping[str, Any], phase: str) -> float:
    """Return a phase's seconds, 0 where the record has no such number."""
    value = rank.get(phase)
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1e300 else 0.0


def phases_figure(group: Group, steps: Mapping[int, float] | None = None) -> Figure:
    """Draw a stacked bar a rank, in equally wide blocks of every number of ranks; see `blocks`.

    Where ``steps`` tell how many each number of ranks took, the time is that of a step.
    """
    figure, (axes,) = panels(width=BROAD, height=3.9)
    style(axes, "ranks of the run; in each block, a bar a rank, from rank 0",
          "time of a step on each rank" if steps else "time of the run on each rank")
    drawn = [block._replace(phases=per_step(block.phases, block.ranks, steps)) for block in blocks(group)]
    shown = [phase for phase in PHASES if any(bar.get(phase) for block in drawn for bar in block.phases)]
    for place, block in enumerate(drawn):
        _draw_block(axes, place, block, shown)
    axes.set_xticks(range(len(drawn)), [str(block.ranks) for block in drawn])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.55, len(drawn) - 0.45)
    top = max((sum(bar.values()) for block in drawn for bar in block.phases), default=0.0)
    axes.set_ylim(0, 1.12 * top or 1.0)
    axes.yaxis.set_major_formatter(lambda value, _: short_duration(value))
    _ideal(axes, group, drawn, steps)
    handles, names = axes.get_legend_handles_labels()
    by_name = dict(zip(names, handles, strict=True))
    figure.legend(by_name.values(), by_name.keys(), fontsize=11, loc="outside lower left", ncols=len(by_name),
                  frameon=False, labelcolor=INK, handlelength=1.4, columnspacing=1.2)
    return figure


def _draw_block(axes: Axes, place: int, block: Block, shown: Sequence[str]) -> None:
    n = len(block.phases)
    width = 0.84 / n if n > 1 else 0.3
    lefts = [place - width * n / 2 + width * i for i in range(n)]
    bottom = [0.0] * n
    for phase in shown:
        heights = [bar.get(phase, 0.0) for bar in block.phases]
        axes.bar(lefts, heights, width, bottom, align="edge", color=COLOURS[phase], edgecolor=PAPER,
                 linewidth=0.8 if n <= 16 else 0.0, hatch=HATCHES[phase] if n <= 16 else None, label=phase)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    work = [busy(bar) for bar in block.phases]
    slowest = max(range(n), key=work.__getitem__)
    more = work[slowest] - sorted(work)[n // 2]
    if n > 2 and more > 0.15 * sorted(work)[n // 2] and more > 0.03 * bottom[slowest]:
        rank = f"rank {slowest}" if block.neighbours == 1 else f"near rank {slowest * block.neighbours}"
        axes.annotate(rank, (lefts[slowest] + width / 2, bottom[slowest]), (0, 3), textcoords="offset points",
                      color=INK, fontsize=11, ha="center", parse_math=False)


def _ideal(axes: Axes, group: Group, drawn: Sequence[Block], steps: Mapping[int, float] | None) -> None:
    """Mark on each block what the base's time would be, were it shared out without loss."""
    at = {point.ranks: point for point in group.points}
    for place, block in enumerate(drawn):
        if block.ranks in at and block.ranks != group.base:
            ideal = at[block.ranks].seconds * at[block.ranks].efficiency / (steps[block.ranks] if steps else 1)
            axes.plot([place - 0.45, place + 0.45], [ideal, ideal], color=INK, linewidth=1.4, linestyle=(0, (3, 2)),
                      label="ideal time")


def caption(group: Group) -> str:
    """Say what the figure leaves out."""
    drawn = blocks(group)
    cut_down = [block for block in drawn if block.neighbours > 1]
    text = "Medians over the runs. A rank that waits had its share done: it waits for the slowest."
    if any(len(block.phases) == 1 and block.ranks > 1 for block in drawn):
        text += " Where the records do not tell ranks apart, one bar shows the largest of each phase over ranks."
    if cut_down:
        text += (f" With {cut_down[-1].ranks} ranks each bar is the busiest of {cut_down[-1].neighbours} neighbours; "
                 "the CSV has all.")
    return text
