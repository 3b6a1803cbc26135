"""The tables of a report: what was measured, what was fitted to it, and what is predicted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dml_hpc.reports.comparing import Change
from dml_hpc.reports.document import Column, Table, table
from dml_hpc.reports.explanation import Explanation
from dml_hpc.reports.laws import Laws
from dml_hpc.reports.prediction import Prediction
from dml_hpc.reports.quantities import duration, size
from dml_hpc.reports.runs import PHASES
from dml_hpc.reports.scaling import Bench, BenchPrediction, Cell, Group, Point


def percent(value: float) -> str:
    """Return a share as a person reads it: ``87%``, ``4.2%``, ``0.03%``."""
    if 0 < value < 1e-4:
        return "<0.01%"
    return f"{value:.0%}" if value >= 0.0995 or not value else f"{100 * value:.2g}%"


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _fraction(value: float) -> str:
    return f"{value:.3f}"


def _span(bounds: tuple[float, float]) -> str:
    return f"{duration(bounds[0])} … {duration(bounds[1])}"


def _hours(value: float) -> str:
    return f"{value:.3g}"


RANKS, RUNS = Column("ranks", "ranks"), Column("runs", "repeats")


def group_table(group: Group) -> Table:
    """Return a row for every number of ranks measured; columns that no record fills are left out."""
    phases = [phase for phase in PHASES if any(phase in point.split for point in group.points)]
    columns = (RANKS, Column("nodes", "nodes"), RUNS, Column("time", "seconds", duration),
               Column("95 % interval", "", _span), Column("min … max", "", _span),
               Column("", "seconds_low"), Column("", "seconds_high"), Column("", "seconds_min"),
               Column("", "seconds_max"), Column("speed-up", "speedup", _ratio),
               Column("ideal", "ideal", "{:g}".format),
               Column("efficiency", "efficiency", percent), Column("serial fraction", "serial_fraction", _fraction),
               *(Column(phase, f"{phase}_s", duration) for phase in phases),
               *([Column("other", "other_s", duration)] if phases else []))

    def row(point: Point) -> list[Any]:
        sure = point.low is not None and point.high is not None
        spread = (point.seconds_min, point.seconds_max) if point.repeats > 1 else None
        split = [point.split.get(phase) for phase in phases]
        other = [max(point.other_s, 0.0) if point.split else None] if phases else []
        return [point.ranks, point.nodes, point.repeats, point.seconds, (point.low, point.high) if sure else None,
                spread, point.low, point.high, point.seconds_min, point.seconds_max, point.speedup,
                point.ranks / group.base, point.efficiency, point.serial_fraction, *split, *other]

    return table("measured", columns, map(row, group.points))


def prediction_table(told: Prediction) -> Table:
    """Return a row for every number of ranks predicted."""
    columns = (RANKS, Column("predicted time", "predicted_seconds", duration), Column("from … to", "", _span),
               Column("", "predicted_seconds_low"), Column("", "predicted_seconds_high"),
               Column("predicted efficiency", "predicted_efficiency", percent),
               Column("from … to", "", lambda bounds: f"{percent(bounds[0])} … {percent(bounds[1])}"),
               Column("", "predicted_efficiency_low"), Column("", "predicted_efficiency_high"))
    rows = zip(told.ranks, told.seconds, told.low_s, told.high_s, told.efficiency, told.efficiency_low,
               told.efficiency_high, strict=True)
    return table("predicted", columns, [(ranks, s, (low, high), low, high, e, (e_low, e_high), e_low, e_high)
                                        for ranks, s, low, high, e, e_low, e_high in rows])


def phases_table(group: Group, steps: Mapping[int, float] | None = None) -> Table:
    """Return a row for every rank of every number of ranks: its seconds by what they went to.

    Of a step, where ``steps`` tell how many each number of ranks took, else of the run.
    """
    of = "a step" if steps else "the run"

    def row(point: Point, rank: int | None, phases: Any) -> list[Any]:
        each = steps[point.ranks] if steps else 1
        host = point.hosts[rank] if rank is not None and rank < len(point.hosts) else None
        return [point.ranks, rank, host, None if steps is None else each,
                *(phases[phase] / each if phase in phases else None for phase in PHASES)]

    rows = []
    for point in group.points:
        if point.per_rank:
            rows += [row(point, rank, phases) for rank, phases in enumerate(point.per_rank)]
        elif point.split:
            rows.append(row(point, None, point.split))
    columns = (RANKS, Column("rank", "rank"), Column("host", "host"), Column("", "steps"),
               *(Column(phase, f"{phase}_s", duration) for phase in PHASES))
    return table(f"time of {of} by rank", columns, rows)


def laws_table(laws: Laws) -> Table:
    """Return a row for every constant that was fitted: what it is, its value and its interval."""
    columns = (Column("constant", "constant"), Column("value", ""), Column("95 % interval", ""),
               Column("", "value"), Column("", "low"), Column("", "high"), Column("what it says", "meaning"))
    rows: list[tuple[Any, ...]] = []

    def add(name: str, value: float | None, text: Any, meaning: str, low: float | None = None,
            high: float | None = None) -> None:
        if value is not None and math.isfinite(value):
            known = low is not None and high is not None
            span = f"{text(low)} … {text(high)}" if known else None
            rows.append((name, text(value), span, value, low, high, meaning))

    add("serial fraction, Amdahl", laws.amdahl_serial, _fraction,
        "of the base's time, what more ranks cannot shorten: T(p) = T(1)·(s + (1 − s)/p)",
        laws.amdahl_low, laws.amdahl_high)
    add("serial fraction, Gustafson", laws.gustafson_serial, _fraction,
        "of the time at p ranks, what does not grow with the work: S(p) = p − s·(p − 1)")
    for ranks, e in laws.karp_flatt:
        add(f"serial fraction at {ranks} ranks, Karp–Flatt", e, _fraction,
            "(1/S − 1/p)/(1 − 1/p): level over p is a serial part, growing is overhead")
    add("α, time of a message", laws.alpha_s, duration, "latency: what a message costs however small it is")
    add("1/β, bytes per second", None if not laws.beta_s_per_byte else 1 / laws.beta_s_per_byte, speed,
        "bandwidth: bytes a second once a message is under way")
    return table("laws", columns, rows)


def speed(bytes_per_s: float) -> str:
    """Return bytes per second in three digits: ``118 MB/s``, ``1.25 GB/s``."""
    power = min(max(int(math.log10(max(bytes_per_s, 1.0))) // 3, 0), 4)
    return f"{bytes_per_s / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}/s"


def cost_table(group: Group) -> Table | None:
    """Return what each run cost in node hours, and against the cheapest; None where no record tells of nodes."""
    points = [point for point in group.points if point.node_hours]
    if not points:
        return None
    least = min(point.node_hours for point in points if point.node_hours)
    columns = (RANKS, Column("nodes", "nodes"), Column("time", "seconds", duration),
               Column("node hours", "node_hours", _hours),
               Column("against the cheapest", "cost_ratio", "{:.2f} ×".format),
               Column("a million examples", "node_hours_per_million_examples", _hours),
               Column("an epoch", "node_hours_per_epoch", _hours))
    return table("cost", columns, [
        (point.ranks, point.nodes, point.seconds, point.node_hours, (point.node_hours or 0.0) / least,
         point.node_hours_per_million, point.node_hours_per_epoch) for point in points])


def findings_table(told: Explanation) -> Table | None:
    """Return a row for every finding; None where there is none worth a table."""
    found = [one for one in told.findings if one.kind != "none"]
    columns = (Column("limit", "kind", lambda kind: kind.replace("_", " ")),
               Column("share of the loss", "share", percent), Column("evidence", "text"), Column("change", "change"))
    rows = [(one.kind, one.share, one.text, one.change) for one in found]
    return table("findings", columns, rows) if rows else None


def bench_table(bench: Bench) -> Table:
    """Return sizes against cases, in each cell the median time and, where recorded, the bus bandwidth."""
    cases = list(dict.fromkeys(cell.case for cell in bench.cells))
    at = {(cell.bytes, cell.case): cell for cell in bench.cells}
    sizes = dict.fromkeys(cell.bytes for cell in bench.cells)

    def text(cell: Cell) -> str:
        bandwidth = "" if cell.bandwidth is None else f" ({speed(cell.bandwidth)})"
        return duration(cell.seconds) + bandwidth + (f", {cell.errors} WRONG" if cell.errors else "")

    columns = (Column("size", "bytes", lambda n_bytes: size(n_bytes or None)),
               *(Column(case, "", text) for case in cases))
    rows = [(n_bytes or 0, *(at.get((n_bytes, case)) for case in cases)) for n_bytes in sizes]
    return Table("benchmark", columns, rows, cells_table(bench))


def cells_table(bench: Bench) -> Table:
    """Return a row for every result of a benchmark, as CSV has it."""
    columns = (Column("case", "case"), Column("size", "bytes", size), RANKS, Column("time", "seconds", duration),
               Column("bus bandwidth", "bus_bandwidth_bytes_per_s", speed), Column("errors", "errors"))
    return table("benchmark", columns, [(cell.case, cell.bytes, bench.ranks, cell.seconds, cell.bandwidth, cell.errors)
                                        for cell in bench.cells])


def changes_table(changes: Sequence[Change]) -> Table:
    """Return a row for every job and number of ranks that two reports have in common."""
    columns = (Column("job", "job"), RANKS, Column("before", "before_s", duration),
               Column("after", "after_s", duration),
               Column("after / before", "ratio", _ratio),
               Column("95 % interval", "", lambda bounds: f"{bounds[0]:.2f} … {bounds[1]:.2f}"), Column("", "low"),
               Column("", "high"), Column("verdict", "verdict"))
    return table("changes", columns, [
        (one.job, one.ranks, one.before_s, one.after_s, one.ratio,
         (one.low, one.high) if one.low is not None and one.high is not None else None, one.low, one.high, one.verdict)
        for one in changes])


def bench_predictions_table(predictions: Sequence[BenchPrediction]) -> Table:
    """Return a row for every case, size and number of nodes that is predicted."""
    columns = (Column("case", "case"), Column("size", "bytes", size), Column("nodes", "nodes"),
               Column("predicted time", "predicted_seconds", duration), Column("from … to", "", _span),
               Column("", "predicted_seconds_low"), Column("", "predicted_seconds_high"),
               Column("measured on nodes", "measured_nodes"), Column("of it the wire", "wire_share", percent))
    return table("predicted", columns, [
        (one.case, one.bytes, nodes, seconds, (low, high), low, high, ", ".join(map(str, one.measured_nodes)),
         one.wire_share)
        for one in predictions
        for nodes, seconds, low, high in zip(one.nodes, one.seconds, one.low_s, one.high_s, strict=True)])


def overview_table(groups: Iterable[Group]) -> Table:
    """Return a row for every job: how far it was measured and what it lost."""
    columns = (Column("job", "job"), Column("most ranks", "ranks"), Column("time", "seconds", duration),
               Column("speed-up", "speedup", _ratio), Column("efficiency", "efficiency", percent),
               Column("node hours", "node_hours", _hours), Column("what limits it", "limit"))

    def limit(group: Group) -> str | None:
        found = group.explanation.findings if group.explanation else ()
        return found[0].kind.replace("_", " ").replace("none", "nothing found") if found else None

    return table("overview", columns, [
        (group.label, group.points[-1].ranks, group.points[-1].seconds, group.points[-1].speedup,
         group.points[-1].efficiency, group.points[-1].node_hours, limit(group)) for group in groups])
