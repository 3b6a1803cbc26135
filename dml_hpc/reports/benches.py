"""What benchmarks measured, at one number of ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from dml_hpc.reports.jobs import title
from dml_hpc.reports.quantities import Record, count, duration, number, positive, size, whole


@dataclass(frozen=True)
class Cell:
    """One case of a benchmark at one size: seconds (median), bus bandwidth in bytes/s, wrong elements.

    ``times`` are the medians of the records that it was measured in.
    """

    case: str
    bytes: int | None
    seconds: float
    bandwidth: float | None
    errors: int
    times: tuple[float, ...] = ()


@dataclass(frozen=True)
class Bench:
    """A benchmark at one number of ranks; ``cells`` in order of size, then as recorded.

    ``wire`` is the bandwidth between nodes in bytes/s where it was measured, inside the node where there is one only.
    """

    label: str
    ranks: int
    cells: tuple[Cell, ...]
    verdict: str
    nodes: int | None = None
    wire: float | None = None


def bench(runs: Sequence[Record], left_out: Counter[str]) -> Bench | None:
    """Return the benchmark that all ``runs`` are, at the same number of ranks; None when no result can be used."""
    results: dict[tuple[int | None, str], list[Record]] = {}
    for run in runs:
        for result in run["results"]:
            if isinstance(result, dict) and "case" in result and positive(result, "seconds_median"):
                n_bytes = number(result.get("bytes"))
                key = (None if n_bytes is None else int(n_bytes), str(result["case"]))
                results.setdefault(key, []).append(result)
            else:
                left_out["a benchmark result has no 'case' or no 'seconds_median'"] += 1
    if not results:
        return None
    cells = []
    for (n_bytes, case), repeats in sorted(results.items(), key=lambda item: item[0][0] or 0):
        bandwidths = [value for one in repeats if (value := positive(one, "bus_bandwidth_bytes_per_s"))]
        times = tuple(float(one["seconds_median"]) for one in repeats)
        cells.append(Cell(case, n_bytes, median(times), median(bandwidths) if bandwidths else None,
                          sum(int(number(one.get("errors")) or 0) for one in repeats), times))
    ranks, nodes = runs[0]["ranks"], whole(runs[0].get("nodes"))
    on = "" if nodes is None or nodes == 1 else f" on {nodes} nodes"
    label = ", ".join([*title(runs[0]), count(ranks, "rank") + on])
    wires = [value for run in runs if (value := wire_bandwidth(run)) is not None]
    return Bench(label, ranks, tuple(cells), _fastest(cells), nodes, median(wires) if wires else None)


def wire_bandwidth(record: Record) -> float | None:
    """Return the bandwidth of the wire in bytes/s: between nodes, or inside the node where there is one only."""
    wire = record.get("wire")
    for place in ("between_nodes", "within_node"):
        found = wire.get(place) if isinstance(wire, dict) else None
        if isinstance(found, dict):
            return positive(found, "bandwidth_bytes_per_s")
    return None


def _fastest(cells: Sequence[Cell]) -> str:
    right = [cell for cell in cells if not cell.errors]
    if not right:
        return "No case gave a right result."
    ends = dict.fromkeys((right[0].bytes, right[-1].bytes))
    best = (min((cell for cell in right if cell.bytes == end), key=lambda cell: cell.seconds) for end in ends)
    named = ", ".join(f"{cell.case} at {size(cell.bytes)} ({duration(cell.seconds)})" for cell in best)
    wrong = count(len(cells) - len(right), "result")
    return f"Fastest: {named}" + (f"; {wrong} wrong, not counted." if len(right) < len(cells) else ".")
