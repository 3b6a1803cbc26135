"""What more ranks brought and what they cost, in a sentence each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dml_hpc.reports.quantities import count, duration, number, positive
from dml_hpc.reports.runs import PHASES, Run

if TYPE_CHECKING:
    from dml_hpc.reports.scaling import Group, Point

MOST_STRAGGLERS = 8
"""That are named for a job."""

_DOING = {"read": "reading", "compute": "computing", "communicate": "communicating",
          "wait": "waiting for the slowest rank", "other": "work outside the time split"}


def verdict(points: Sequence[Point], weak: bool, overlapped: bool = False) -> str:
    """Say what the most ranks brought over the fewest, and which phases hold what is missing.

    ``overlapped``: ranks wait for what travels while they compute, too.
    """
    first, last = points[0], points[-1]
    if first is last:
        return (f"Measured at {count(first.ranks, 'rank')} only ({count(first.repeats, 'run')}): nothing to "
                "compare; run the same job at another number of ranks.")
    base = count(first.ranks, "rank") + ("" if first.ranks == 1 else ", the fewest measured")
    ideal_s = last.seconds * last.efficiency
    ideal = f"(ideal {last.ranks / first.ranks:g}, efficiency {last.efficiency:.0%})"
    if weak:
        text = f"{last.ranks} ranks did {last.speedup:.2f} times as much a second as {base} {ideal}"
    else:
        text = f"{last.ranks} ranks ran {last.speedup:.2f} times as fast as {base} {ideal}"
    if last.efficiency > 1.05:
        text += ": more than ideal, so check that each share fits a cache that the whole did not"
    elif last.efficiency >= 0.95:
        text += ": little is lost"
    else:
        text += (f": it took {duration(last.seconds - ideal_s)} more than the ideal {duration(ideal_s)}, "
                 + _limit(first, last, overlapped))
    best = max(points, key=lambda point: point.speedup)
    if best is not last:
        text += f"; it was fastest at {count(best.ranks, 'rank')}"
    if not weak and first.seconds_min <= last.seconds_max and last.seconds_min <= first.seconds_max:
        text += "; the spreads overlap, so the difference may be noise"
    return text + "."


def _limit(first: Point, last: Point, overlapped: bool) -> str:
    """Say which phases hold the time above the ideal, in which each phase would shrink as the ideal time does."""
    phases = [phase for phase in PHASES if phase in first.split and phase in last.split]
    if not phases:
        return "and without a time split the records do not say where"
    shrink = last.seconds * last.efficiency / first.seconds
    excess = {phase: last.split[phase] - first.split[phase] * shrink for phase in phases}
    excess["other"] = last.seconds - first.seconds * shrink - sum(excess.values())
    order = sorted(excess, key=lambda phase: -excess[phase])
    # A tenth of the largest is worth naming; what is less limits nothing.
    doing = _DOING | ({"wait": "waiting for the slowest rank or for what was on its way"} if overlapped else {})
    text = " + ".join(f"{doing[phase]} {duration(excess[phase])}" for phase in order
                      if excess[phase] >= 0.1 * excess[order[0]])
    if {"communicate", "wait"} <= set(phases):
        before, after = (point.share("communicate", "wait") for point in (first, last))
        text += f"; communicating and waiting went from {before:.0%} to {after:.0%} of the time"
    return text


def stragglers(runs: Sequence[Run]) -> tuple[str, ...]:
    """Say which ranks were slower than the others, where, and by how much, the worst first."""
    found: dict[tuple[int, str, str], dict[int, float]] = {}  # by run, the most that it took
    for at, run in enumerate(runs):
        told = run.record.get("stragglers")
        for one in told if isinstance(told, list) else []:
            if isinstance(one, dict) and number(one.get("rank")) is not None and (ratio := positive(one, "ratio")):
                by_run = found.setdefault((run.ranks, str(one["rank"]), str(one.get("host", "a host unknown"))), {})
                by_run[at] = max(ratio, by_run.get(at, 0.0))
    worst = sorted(found.items(), key=lambda item: -max(item[1].values()))
    lines = []
    for (ranks, rank, host), by_run in worst[:MOST_STRAGGLERS]:
        repeats = sum(run.ranks == ranks for run in runs)
        often = "" if repeats == 1 else f" in {len(by_run)} of {repeats} runs"
        lines.append(f"Slow: rank {rank} of {ranks}, on {host}, took {max(by_run.values()):.2g} times as long as the "
                     f"median rank for the same work{often}.")
    more = len(worst) - len(lines)
    return (*lines, *([f"Slow too: {count(more, 'other rank')}."] if more else []))


def cost(points: Sequence[Point]) -> str | None:
    """Say what the run on the most nodes cost in node hours, and what half the nodes would have; None if unknown."""
    last = points[-1]
    if last.node_hours is None or last.nodes is None:
        return None
    text = f"On {count(last.nodes, 'node')} a run cost {_hours(last.node_hours)}"
    if last.node_hours_per_million is not None:
        text += f", {_hours(last.node_hours_per_million)} a million examples"
    half = next((point for point in points if point.nodes is not None and 2 * point.nodes == last.nodes), None)
    if half is None or half.node_hours is None:
        return text + "."
    saved, longer = 1 - half.node_hours / last.node_hours, half.seconds / last.seconds - 1
    less = "cost as much" if abs(saved) < 0.005 else f"cost {abs(saved):.0%} {'less' if saved > 0 else 'more'}"
    took = "taken as long" if abs(longer) < 0.005 else (
        f"taken {longer:.0%} longer" if longer > 0 else f"taken {-longer:.0%} less time")
    return f"{text}; half the nodes would have {less} and {took}."


def _hours(node_hours: float) -> str:
    return f"{node_hours:.3g} node hours" if node_hours >= 1e-3 else f"{node_hours * 3600:.3g} node seconds"


def shortfalls(groups: Sequence[Group], least: float) -> tuple[str, ...]:
    """Return a line for every job whose efficiency at the most ranks measured is below ``least``.

    A job that ran at one number of ranks has none and is passed over; see `judged`.
    """
    return tuple(f"{group.label}: efficiency {group.points[-1].efficiency:.1%} at "
                 f"{count(group.points[-1].ranks, 'rank')}, below {least:.1%}"
                 for group in judged(groups) if group.points[-1].efficiency < least)


def judged(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Return the jobs that ran at two numbers of ranks or more, so that they have an efficiency."""
    return tuple(group for group in groups if len(group.points) > 1)
