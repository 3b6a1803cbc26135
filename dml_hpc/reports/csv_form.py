"""A report as one CSV file: every time that was measured, and what is predicted, a row each."""

from __future__ import annotations

import csv
import io
from typing import Any

from dml_hpc.reports.document import plain
from dml_hpc.reports.runs import PHASES
from dml_hpc.reports.scaling import Analysis

COLUMNS = ("kind", "job", "case", "bytes", "ranks", "nodes", "repeats", "seconds", "seconds_low", "seconds_high",
           "seconds_min", "seconds_max", "speedup", "efficiency", "serial_fraction",
           *(f"{phase}_s" for phase in PHASES), "node_hours", "bus_bandwidth_bytes_per_s", "errors",
           "predicted_seconds", "predicted_seconds_low", "predicted_seconds_high",
           "predicted_efficiency", "predicted_efficiency_low", "predicted_efficiency_high")


def csv_text(analysis: Analysis) -> str:
    """Return the numbers of all jobs and benchmarks, unrounded, as CSV with a header line.

    ``kind`` is measured, predicted or benchmark; what is predicted stands in columns of its own.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()

    def write(row: dict[str, Any]) -> None:
        writer.writerow({key: plain(value) for key, value in row.items()})

    for group in analysis.groups:
        for point in group.points:
            write({
                "kind": "measured", "job": group.label, "ranks": point.ranks, "nodes": point.nodes,
                "repeats": point.repeats, "seconds": point.seconds, "seconds_low": point.low,
                "seconds_high": point.high, "seconds_min": point.seconds_min, "seconds_max": point.seconds_max,
                "speedup": point.speedup, "efficiency": point.efficiency, "serial_fraction": point.serial_fraction,
                "node_hours": point.node_hours, **{f"{phase}_s": value for phase, value in point.split.items()}})
        told = group.prediction
        for i, ranks in enumerate(told.ranks if told is not None else ()):
            assert told is not None
            write({
                "kind": "predicted", "job": group.label, "ranks": ranks, "predicted_seconds": told.seconds[i],
                "predicted_seconds_low": told.low_s[i], "predicted_seconds_high": told.high_s[i],
                "predicted_efficiency": told.efficiency[i], "predicted_efficiency_low": told.efficiency_low[i],
                "predicted_efficiency_high": told.efficiency_high[i]})
    for bench in analysis.benches:
        for cell in bench.cells:
            write({"kind": "benchmark", "job": bench.label, "case": cell.case, "bytes": cell.bytes,
                   "ranks": bench.ranks, "seconds": cell.seconds, "bus_bandwidth_bytes_per_s": cell.bandwidth,
                   "errors": cell.errors})
    return buffer.getvalue()
