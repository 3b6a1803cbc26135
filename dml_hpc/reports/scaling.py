"""What more ranks brought: run records in; speed-ups, efficiencies and the reason for what is missing out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Record = dict[str, Any]

JOB_KEYS = ("command", "objective", "algorithm", "allreduce", "compression", "compression_ratio", "compression_rank",
            "reproducible", "device", "data", "rows", "features", "k", "method", "batch_size", "epochs", "repeats",
            "schedule", "momentum", "dtype", "fan_in", "scale", "intercept", "shuffle")
"""Runs that agree in all of these did the same work and may be compared at different numbers of ranks."""
TITLE_KEYS = ("command", "objective", "algorithm", "allreduce", "compression", "reproducible", "device", "data", "k",
              "method", "batch_size", "epochs", "dtype")
"""What names a job; of the others only those in which it differs from its peers."""

PHASES = ("read", "compute", "communicate", "wait")
NOT_SCALED = ("doctor", "data", "report", "slurm")
"""Verbs that one process runs: they have no speed-up."""

_DOING = {"read": "reading", "compute": "computing", "communicate": "communicating",
          "wait": "waiting for the slowest rank", "other": "work outside the time split"}


@dataclass(frozen=True)
class Point:
    """One job at one number of ranks; times in seconds, medians over ``repeats`` runs.

    ``split`` holds those of `PHASES` that every repeat recorded. ``speedup`` and ``efficiency`` are relative
    to the group's base; ``serial_fraction`` is Karp and Flatt's, None at the base itself.
    """

    ranks: int
    repeats: int
    seconds: float
    seconds_min: float
    seconds_max: float
    split: dict[str, float]
    speedup: float
    efficiency: float
    serial_fraction: float | None

    @property
    def other_s(self) -> float:
        """Seconds in none of the phases; negative when their maxima over ranks exceed the time together."""
        return self.seconds - sum(self.split.values())

    def share(self, *phases: str) -> float:
        """Return the part of the time, 0 … 1, that ``phases`` took."""
        whole_s = max(self.seconds, sum(self.split.values()))
        return sum(self.split.get(phase, 0.0) for phase in phases) / whole_s


@dataclass(frozen=True)
class Group:
    """One job at every number of ranks it ran at (strong scaling: the same work, more ranks).

    ``label`` names it in full, ``short`` by what tells it from the other groups. ``clock`` is the record's
    key that was timed, ``base`` the smallest number of ranks measured, ``verdict`` one sentence for a person.
    """

    label: str
    short: str
    clock: str
    base: int
    points: tuple[Point, ...]
    verdict: str


@dataclass(frozen=True)
class Cell:
    """One case of a benchmark at one size: seconds (median), bus bandwidth in bytes/s, wrong elements."""

    case: str
    bytes: int | None
    seconds: float
    bandwidth: float | None
    errors: int


@dataclass(frozen=True)
class Bench:
    """A benchmark at one number of ranks; ``cells`` in order of size, then as recorded."""

    label: str
    ranks: int
    cells: tuple[Cell, ...]
    verdict: str


@dataclass(frozen=True)
class Analysis:
    """Everything a report says. ``left_out`` has a line for each kind of record that could not be used."""

    groups: tuple[Group, ...]
    benches: tuple[Bench, ...]
    left_out: tuple[str, ...]


def analyse(records: Iterable[Record]) -> Analysis:
    """Group records by job, take medians over repeats and derive speed-ups; see `Analysis`.

    ``records`` are as `dml_hpc.reports.records.read_records` returns them. A record that lacks what is needed
    is counted in ``left_out``, never guessed at and never silently dropped.
    """
    jobs: dict[tuple[str, ...], list[Record]] = {}
    benches: dict[tuple[str, ...], list[Record]] = {}
    left_out: Counter[str] = Counter()
    for record in records:
        command, ranks = str(record.get("command")), record.get("ranks")
        if isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1:
            left_out["a record's 'ranks' is not a positive whole number"] += 1
        elif isinstance(record.get("results"), list):
            benches.setdefault((*_job(record), str(ranks)), []).append(record)
        elif command.split()[:1] and command.split()[0] in NOT_SCALED:
            left_out[f"'{command}' runs on one process, so there is nothing to scale"] += 1
        elif _positive(record, "work_s") is None and _positive(record, "seconds") is None:
            left_out["a record has a time in neither 'work_s' nor 'seconds'"] += 1
        else:
            jobs.setdefault(_job(record), []).append(record)
    names = _short_names([runs[0] for runs in jobs.values()])
    groups = [_group(runs, name, left_out) for runs, name in zip(jobs.values(), names, strict=True)]
    tables = [_bench(runs, left_out) for runs in benches.values()]
    return Analysis(tuple(groups), tuple(table for table in tables if table is not None),
                    tuple(f"{n} left out: {why}" for why, n in left_out.items()))


def karp_flatt(speedup: float, ranks: float) -> float:
    """Return the experimentally determined serial fraction e = (1/S − 1/p) / (1 − 1/p) for ``ranks`` p > 1.

    A constant e over p means a serial part (Amdahl), a growing one means overhead that grows with the ranks.
    For a base of b ranks pass p/b: e is then the part of the base's time that did not shrink.
    Source: A. H. Karp and H. P. Flatt, "Measuring parallel processor performance", CACM 33(5), 1990.
    """
    return (1 / speedup - 1 / ranks) / (1 - 1 / ranks)


def _group(runs: Sequence[Record], short: str, left_out: Counter[str]) -> Group:
    # One clock for the whole group: with start-up in some of the times only, the ratios would mean nothing.
    clock = "work_s" if all(_positive(run, "work_s") for run in runs) else "seconds"
    by_ranks: dict[int, list[Record]] = {}
    for run in runs:
        if _positive(run, clock) is None:
            left_out["a record has no 'seconds', by which the other runs of its job are timed"] += 1
        else:
            by_ranks.setdefault(run["ranks"], []).append(run)
    base = min(by_ranks)
    base_s = median(run[clock] for run in by_ranks[base])
    points = []
    for ranks, repeats in sorted(by_ranks.items()):
        times = [float(run[clock]) for run in repeats]
        speedup, ideal = base_s / median(times), ranks / base
        points.append(Point(
            ranks, len(times), median(times), min(times), max(times), _split(repeats),
            speedup, speedup / ideal, karp_flatt(speedup, ideal) if ranks > base else None))
    label = ", ".join(dict.fromkeys([*_title(runs[0]), *short.split(", ")]))
    return Group(label, short, clock, base, tuple(points), _verdict(points))


def _split(repeats: Sequence[Record]) -> dict[str, float]:
    splits = [run["time_split"] if isinstance(run.get("time_split"), dict) else {} for run in repeats]
    return {phase: median(split[phase] for split in splits) for phase in PHASES
            if all(_number(split.get(phase)) is not None for split in splits)}


def _verdict(points: Sequence[Point]) -> str:
    first, last = points[0], points[-1]
    if first is last:
        return (f"Measured at {count(first.ranks, 'rank')} only ({count(first.repeats, 'run')}): nothing to "
                "compare; run the same job at another number of ranks.")
    base = count(first.ranks, "rank") + ("" if first.ranks == 1 else ", the fewest measured")
    ideal_s = first.seconds * first.ranks / last.ranks
    text = (f"{last.ranks} ranks ran {last.speedup:.2f} times as fast as {base} "
            f"(ideal {last.ranks / first.ranks:g}, efficiency {last.efficiency:.0%})")
    if last.efficiency > 1.05:
        text += ": more than ideal, so check that each share fits a cache that the whole did not"
    elif last.efficiency >= 0.95:
        text += ": little is lost"
    else:
        text += (f": it took {duration(last.seconds - ideal_s)} more than the ideal {duration(ideal_s)}, "
                 + _limit(points))
    best = max(points, key=lambda point: point.speedup)
    if best is not last:
        text += f"; it was fastest at {count(best.ranks, 'rank')}"
    if first.seconds_min <= last.seconds_max and last.seconds_min <= first.seconds_max:
        text += "; the spreads overlap, so the difference may be noise"
    return text + "."


def _limit(points: Sequence[Point]) -> str:
    """Say which phases hold the time above the ideal, in which each phase would shrink as 1/ranks."""
    first, last = points[0], points[-1]
    phases = [phase for phase in PHASES if phase in first.split and phase in last.split]
    if not phases:
        return "and without a time split the records do not say where"
    shrink = first.ranks / last.ranks
    excess = {phase: last.split[phase] - first.split[phase] * shrink for phase in phases}
    excess["other"] = last.seconds - first.seconds * shrink - sum(excess.values())
    order = sorted(excess, key=lambda phase: -excess[phase])
    # A tenth of the largest is worth naming; what is less limits nothing.
    text = " + ".join(f"{_DOING[phase]} {duration(excess[phase])}" for phase in order
                      if excess[phase] >= 0.1 * excess[order[0]])
    if {"communicate", "wait"} <= set(phases):
        before, after = (point.share("communicate", "wait") for point in (first, last))
        text += f"; communicating and waiting went from {before:.0%} to {after:.0%} of the time"
    return text


def _bench(runs: Sequence[Record], left_out: Counter[str]) -> Bench | None:
    results: dict[tuple[int | None, str], list[Record]] = {}
    for run in runs:
        for result in run["results"]:
            if isinstance(result, dict) and "case" in result and _positive(result, "seconds_median"):
                n_bytes = _number(result.get("bytes"))
                key = (None if n_bytes is None else int(n_bytes), str(result["case"]))
                results.setdefault(key, []).append(result)
            else:
                left_out["a benchmark result has no 'case' or no 'seconds_median'"] += 1
    if not results:
        return None
    cells = []
    for (n_bytes, case), repeats in sorted(results.items(), key=lambda item: item[0][0] or 0):
        bandwidths = [value for one in repeats if (value := _positive(one, "bus_bandwidth_bytes_per_s"))]
        cells.append(Cell(case, n_bytes, median(one["seconds_median"] for one in repeats),
                          median(bandwidths) if bandwidths else None,
                          sum(int(_number(one.get("errors")) or 0) for one in repeats)))
    ranks = runs[0]["ranks"]
    label = ", ".join([*_title(runs[0]), count(ranks, "rank")])
    return Bench(label, ranks, tuple(cells), _fastest(cells))


def _fastest(cells: Sequence[Cell]) -> str:
    right = [cell for cell in cells if not cell.errors]
    if not right:
        return "No case gave a right result."
    ends = dict.fromkeys((right[0].bytes, right[-1].bytes))
    best = (min((cell for cell in right if cell.bytes == end), key=lambda cell: cell.seconds) for end in ends)
    named = ", ".join(f"{cell.case} at {size(cell.bytes)} ({duration(cell.seconds)})" for cell in best)
    wrong = count(len(cells) - len(right), "result")
    return f"Fastest: {named}" + (f"; {wrong} wrong, not counted." if len(right) < len(cells) else ".")


def _settings(record: Record) -> Record:
    return {key: record[key] for key in JOB_KEYS if record.get(key) is not None}


def _title(record: Record) -> list[str]:
    return [_setting(key, value) for key, value in _settings(record).items() if key in TITLE_KEYS]


def _job(record: Record) -> tuple[str, ...]:
    return tuple(json.dumps([key, value], sort_keys=True) for key, value in _settings(record).items())


def _setting(key: str, value: Any) -> str:
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if isinstance(value, str) and key != "batch_size":
        return value
    return f"{key.replace('_', ' ')} {value}"


def _short_names(records: Sequence[Record]) -> list[str]:
    """Name each job by the settings in which it differs from others of its verb, for labels in a figure."""
    several = any(record["command"] != records[0]["command"] for record in records)
    names = []
    for record in records:
        peers = [peer for peer in records if peer["command"] == record["command"]]
        parts = [_setting(key, value) for key, value in _settings(record).items()
                 if (several if key == "command" else any(peer.get(key) != value for peer in peers))]
        names.append(", ".join(parts) or str(record["command"]))
    return names


def _number(value: Any) -> float | None:
    """Return ``value`` when it is a finite number, 0 or more; what a record holds is not to be trusted."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if 0 <= value <= 1e300 else None


def _positive(record: Record, key: str) -> float | None:
    return _number(record.get(key)) or None


def count(n: int, noun: str) -> str:
    """Return "1 rank", "2 ranks"."""
    return f"{n} {noun}{'s' * (n != 1)}"


def duration(seconds: float) -> str:
    """Return seconds with three digits and a unit: ``12.3 µs``, ``1.70 ms``, ``214 s``."""
    factor, unit = next(((factor, unit) for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs"))
                         if seconds * factor >= 0.9995), (1e6, "µs"))
    value = seconds * factor
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}" if seconds else "0 s"


def size(n_bytes: int | None) -> str:
    """Return a number of bytes in binary units: ``512 B``, ``64 KiB``, ``1.5 MiB``."""
    if n_bytes is None:
        return "–"
    power = min((max(n_bytes, 1).bit_length() - 1) // 10, 4)
    return f"{n_bytes / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
