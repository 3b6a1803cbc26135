"""What more ranks brought: run records in; speed-ups, efficiencies and the reason for what is missing out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from dml_hpc.reports.bench_prediction import BenchPrediction, predict_benches
from dml_hpc.reports.benches import Bench, Cell, bench
from dml_hpc.reports.explanation import Explanation, explain
from dml_hpc.reports.intervals import median_interval
from dml_hpc.reports.jobs import is_weak, job, short_names, title
from dml_hpc.reports.laws import Laws, karp_flatt, laws
from dml_hpc.reports.prediction import Prediction, predict
from dml_hpc.reports.quantities import Record, count, duration, positive, size, whole
from dml_hpc.reports.runs import PHASES, Run, by_rank, run_of, trace_of, work_of
from dml_hpc.reports.verdicts import MOST_STRAGGLERS, cost, stragglers, verdict

__all__ = ["MOST_STRAGGLERS", "NOT_SCALED", "PHASES", "Analysis", "Bench", "BenchPrediction", "Cell", "Explanation",
           "Group", "Laws", "Point", "Prediction", "Record", "analyse", "count", "duration", "karp_flatt", "size"]

NOT_SCALED = ("doctor", "data", "report", "slurm", "top", "supervise")
"""Verbs that one process runs: they have no speed-up."""


@dataclass(frozen=True)
class Point:
    """One job at one number of ranks; times in seconds, medians over ``repeats`` runs.

    ``split`` holds those of `PHASES` that every repeat recorded. ``speedup`` and ``efficiency`` are relative
    to the group's base; ``serial_fraction`` is Karp and Flatt's, None at the base itself and where the work grows.
    ``low`` and ``high`` are the 95 % confidence interval of the median, None below 3 repeats; ``per_rank`` holds the
    median over the repeats of every number that each rank recorded (see `dml_hpc.reports.runs.OF_A_RANK`), or nothing.
    Node hours are None where no record says how many nodes there were.
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
    low: float | None = None
    high: float | None = None
    per_rank: tuple[dict[str, float], ...] = ()
    hosts: tuple[str, ...] = ()
    nodes: int | None = None
    node_hours: float | None = None
    node_hours_per_million: float | None = None
    """Of a million examples."""
    node_hours_per_epoch: float | None = None

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
    """One job at every number of ranks it ran at.

    ``label`` names it in full, ``short`` by what tells it from the other groups, ``job`` for comparisons with
    other records. ``clock`` is the record's key that was timed, ``base`` the smallest number of ranks measured,
    ``verdict`` one sentence for a person, ``stragglers`` one for every rank that others had to wait for, ``cost`` one
    about node hours. ``times`` are the seconds of all runs of each point. ``weak``: the work grows with the ranks, and
    speed-up is how many times as much is done in a second; else the work is the same. ``trace`` is the number of ranks
    and each rank's points of the run in the middle of those at the most ranks.
    """

    label: str
    short: str
    clock: str
    base: int
    points: tuple[Point, ...]
    verdict: str
    stragglers: tuple[str, ...] = ()
    weak: bool = False
    job: tuple[str, ...] = ()
    times: tuple[tuple[float, ...], ...] = ()
    cost: str | None = None
    laws: Laws | None = None
    prediction: Prediction | None = None
    explanation: Explanation | None = None
    trace: tuple[int, tuple[tuple[dict[str, float], ...], ...]] | None = None


@dataclass(frozen=True)
class Analysis:
    """Everything a report says. ``left_out`` has a line for each kind of record that could not be used.

    ``bench_predictions`` tell what all-reduces would take on other numbers of nodes than were measured.
    """

    groups: tuple[Group, ...]
    benches: tuple[Bench, ...]
    left_out: tuple[str, ...]
    bench_predictions: tuple[BenchPrediction, ...] = ()


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
        if whole(ranks) is None:
            left_out["a record's 'ranks' is not a positive whole number"] += 1
        elif command == "bench scaling":
            left_out["'bench scaling' is told of by the records of its runs"] += 1
        elif isinstance(record.get("results"), list):
            benches.setdefault((*job(record), str(ranks), str(record.get("nodes"))), []).append(record)
        elif command.split()[:1] and command.split()[0] in NOT_SCALED:
            left_out[f"'{command}' runs on one process, so there is nothing to scale"] += 1
        elif positive(record, "work_s") is None and positive(record, "seconds") is None:
            left_out["a record has a time in neither 'work_s' nor 'seconds'"] += 1
        else:
            jobs.setdefault(job(record), []).append(record)
    names = short_names([runs[0] for runs in jobs.values()])
    groups = [_group(runs, name, left_out) for runs, name in zip(jobs.values(), names, strict=True)]
    tables = [bench(runs, left_out) for runs in benches.values()]
    return Analysis(tuple(groups), tuple(table for table in tables if table is not None),
                    tuple(f"{n} left out: {why}" for why, n in left_out.items()),
                    predict_benches([record for runs in benches.values() for record in runs]))


def _group(records: Sequence[Record], short: str, left_out: Counter[str]) -> Group:
    # One clock for the whole group: with start-up in some of the times only, the ratios would mean nothing.
    clock = "work_s" if all(positive(record, "work_s") for record in records) else "seconds"
    found: dict[int, list[Run]] = {}
    for record in records:
        seconds = positive(record, clock)
        if seconds is None:
            left_out["a record has no 'seconds', by which the other runs of its job are timed"] += 1
        else:
            found.setdefault(record["ranks"], []).append(run_of(record, float(seconds)))
    by_ranks = dict(sorted(found.items()))
    weak = is_weak(records[0])
    base, work = min(by_ranks), work_of(by_ranks)
    base_s = median(run.seconds for run in by_ranks[base])
    points = tuple(_point(runs, base_s * work[ranks] * base / ranks, base, weak) for ranks, runs in by_ranks.items())
    label = ", ".join(dict.fromkeys([*title(records[0]), *short.split(", ")]))
    told, runs = laws(by_ranks, weak), [run for at in by_ranks.values() for run in at]
    last = sorted(by_ranks[points[-1].ranks], key=lambda run: run.seconds)
    trace = trace_of(last[(len(last) - 1) // 2])
    said = verdict(points, weak, last[0].overlapped)
    return Group(label, short, clock, base, points, said, stragglers(runs), weak, job(records[0]),
                 tuple(tuple(run.seconds for run in at) for at in by_ranks.values()), cost(points), told,
                 predict(by_ranks, weak), explain(points, by_ranks, told), (points[-1].ranks, trace) if trace else None)


def _point(runs: Sequence[Run], ideal_s: float, base: int, weak: bool) -> Point:
    times = [run.seconds for run in runs]
    ranks, seconds = runs[0].ranks, median(times)
    efficiency = ideal_s / seconds
    speedup = efficiency * ranks / base
    low, high = median_interval(times) or (None, None)
    nodes = {run.nodes for run in runs}
    n_nodes = nodes.pop() if len(nodes) == 1 else None
    hours = None if n_nodes is None else n_nodes * seconds / 3600
    examples, epochs = (_median_of(runs, key) for key in ("examples", "epochs"))
    return Point(
        ranks, len(times), seconds, min(times), max(times), _split(runs), speedup, efficiency,
        karp_flatt(speedup, ranks / base) if ranks > base and not weak else None,
        low, high, by_rank(runs), runs[0].hosts, n_nodes, hours,
        hours / examples * 1e6 if hours and examples else None, hours / epochs if hours and epochs else None)


def _median_of(runs: Sequence[Run], key: str) -> float | None:
    values = [positive(run.record, key) for run in runs]
    return None if None in values else median(value for value in values if value is not None)


def _split(runs: Sequence[Run]) -> dict[str, float]:
    return {phase: median(run.split[phase] for run in runs) for phase in PHASES
            if all(phase in run.split for run in runs)}
