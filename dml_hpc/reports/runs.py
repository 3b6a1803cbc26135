"""What one run's record says, cleaned: whatever stands in it, what is found here is of the right type and finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from dml_hpc.comm.cost import Cost, cost
from dml_hpc.reports.jobs import is_weak
from dml_hpc.reports.quantities import Record, number, positive, whole
from dml_hpc.reports.rated import epoch_exchange

PHASES = ("read", "compute", "communicate", "wait")
OF_A_RANK = (*PHASES, "rows", "examples", "work_s", "bytes_sent", "peak_bytes", "cpu_s", "major_faults", "disk_bytes",
             "switches")
"""Numbers that a record has of each rank."""
OF_A_POINT = ("seconds", "examples", "loss", "bytes_sent", "idle", *PHASES)
"""Numbers that a trace has of each moment."""
MOST_RANKS = 1 << 16
"""Of more no model is worked out."""
_BYTES_PER_ELEMENT = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_LIKE = {"nccl": "ring"}
"""Reducers that pay what another one does."""


class Phases(NamedTuple):
    """Seconds of a run, means over its ranks; ``other`` is what the time holds beside them."""

    busy: float
    communicate: float
    wait: float
    other: float


class Pair(NamedTuple):
    """Two neighbouring ranks and the wire between them."""

    ranks: tuple[int, int]
    same_node: bool
    alpha_s: float
    beta_s_per_byte: float


@dataclass(frozen=True)
class Run:
    """One run: ``seconds`` by the clock of its job; what the record lacks is None or empty.

    ``hosts`` and ``per_rank`` hold one of each rank or nothing; ``exchange`` is what the all-reduce of a step pays, or
    of ``mf`` what an epoch does, and ``exchanges`` how many there were.
    """

    ranks: int
    seconds: float
    record: Record
    nodes: int | None
    hosts: tuple[str, ...]
    split: dict[str, float]
    per_rank: tuple[dict[str, float], ...]
    pairs: tuple[Pair, ...]
    exchange: Cost | None
    exchanges: float | None

    @property
    def phases(self) -> Phases | None:
        """Return where the time went, None when the record does not say."""
        if self.per_rank and all(phase in rank for rank in self.per_rank for phase in PHASES):
            read, compute, communicate, wait = (sum(rank[phase] for rank in self.per_rank) / self.ranks
                                                for phase in PHASES)
            busy = read + compute
        elif len(self.split) == len(PHASES):
            # Maxima over ranks: who computes longest waits least.
            busy, communicate = self.split["read"] + self.split["compute"], self.split["communicate"]
            wait = min(self.split["wait"], max(self.seconds - busy - communicate, 0.0))
        else:
            return None
        whole_s = busy + communicate + wait
        shrink = min(1.0, self.seconds / whole_s) if whole_s > 0 else 1.0
        return Phases(busy * shrink, communicate * shrink, wait * shrink, self.seconds - whole_s * shrink)

    @property
    def overlapped(self) -> bool:
        """Say whether what is sent travels while ranks compute: it then costs what is left of it when they are done."""
        return (self.exchange is not None and self.record.get("command") == "mf"
                and self.record.get("algorithm") == "sgd")

    @property
    def size(self) -> float | None:
        """Return how much work the run did, in rows or examples."""
        return positive(self.record, "examples") or positive(self.record, "rows")

    def host(self, rank: int) -> str | None:
        """Return where ``rank`` ran."""
        return self.hosts[rank] if rank < len(self.hosts) else None


def run_of(record: Record, seconds: float) -> Run:
    """Return what ``record`` says, whose ``ranks`` are known to be a whole number above 0."""
    ranks = record["ranks"]
    hosts = record.get("hosts")
    hosts = tuple(map(str, hosts)) if isinstance(hosts, list) and len(hosts) == ranks else ()
    nodes = whole(record.get("nodes")) or len(set(hosts)) or None
    nodes = None if nodes is None else min(nodes, ranks)
    split = record.get("time_split")
    split = split if isinstance(split, dict) else {}
    exchange, exchanges = exchange_of(record, ranks, nodes or 1)
    return Run(ranks, seconds, record, nodes, hosts,
               {phase: value for phase in PHASES if (value := number(split.get(phase))) is not None},
               _per_rank(record.get("per_rank"), ranks), _pairs(record.get("wire"), ranks), exchange, exchanges)


def exchange_of(record: Record, ranks: int, nodes: int) -> tuple[Cost | None, float | None]:
    """Return what the all-reduce of a step pays on ``ranks`` ranks of ``nodes`` nodes, and how many the run made.

    Both None where the record does not tell what is sent: other algorithms than ``sync`` and ``local``, sparse
    exchanges, compressions that are no plain types. Of ``mf`` an epoch is a step.
    """
    if record.get("command") == "mf":
        return epoch_exchange(record, ranks, nodes) if ranks <= MOST_RANKS else (None, None)
    parameters, steps = whole(record.get("parameters")), whole(record.get("steps"))
    itemsize = _BYTES_PER_ELEMENT.get(str(record.get("dtype")))
    if record.get("reproducible") is True:
        itemsize = 6  # 8 on the way to the sum, 4 on the way back
    compression = record.get("compression_used") or record.get("compression") or "none"
    if compression != "none":
        itemsize = _BYTES_PER_ELEMENT.get(str(compression))
    every = {"sync": 1, "local": whole(record.get("tau"))}.get(str(record.get("algorithm")))
    name = str(record.get("allreduce_used") or record.get("allreduce"))
    if (parameters is None or steps is None or itemsize is None or every is None or ranks > MOST_RANKS
            or record.get("exchange_used") not in (None, "dense")):
        return None, None
    fan_in = whole(record.get("fan_in")) or 2
    return cost(_LIKE.get(name, name), ranks, nodes, parameters * itemsize, fan_in), max(steps / every, 1.0)


def by_rank(runs: Sequence[Run]) -> tuple[dict[str, float], ...]:
    """Return the median over ``runs``, all on as many ranks, of every number of each rank; empty where one has none."""
    if not all(run.per_rank for run in runs):
        return ()
    return tuple({key: median(run.per_rank[rank][key] for run in runs) for key in OF_A_RANK
                  if all(key in run.per_rank[rank] for run in runs)} for rank in range(runs[0].ranks))


def trace_of(run: Run) -> tuple[tuple[dict[str, float], ...], ...]:
    """Return the points of each rank's trace, in order of time; empty when there are none."""
    told = run.record.get("trace")
    if not isinstance(told, list):
        return ()
    ranks = []
    for points in told[:run.ranks]:
        clean = [{key: value for key in OF_A_POINT if (value := number(point.get(key))) is not None}
                 for point in (points if isinstance(points, list) else []) if isinstance(point, dict)]
        ranks.append(tuple(sorted((point for point in clean if "seconds" in point), key=lambda one: one["seconds"])))
    return tuple(ranks) if any(ranks) else ()


def work_of(by_ranks: dict[int, list[Run]]) -> dict[int, float]:
    """Return how much work there was at each number of ranks, as a multiple of that at the fewest.

    1 for strong scaling. For weak scaling what the records say, or as many times as there are ranks.
    """
    base = min(by_ranks)
    if not is_weak(by_ranks[base][0].record):
        return dict.fromkeys(by_ranks, 1.0)
    sizes = {ranks: [run.size for run in runs] for ranks, runs in by_ranks.items()}
    if any(size is None for told in sizes.values() for size in told):
        return {ranks: ranks / base for ranks in by_ranks}
    known = {ranks: median(size for size in told if size is not None) for ranks, told in sizes.items()}
    return {ranks: size / known[base] for ranks, size in known.items()}


def _per_rank(told: object, ranks: int) -> tuple[dict[str, float], ...]:
    if not isinstance(told, list) or len(told) != ranks or not all(isinstance(rank, dict) for rank in told):
        return ()
    return tuple({key: value for key in OF_A_RANK if (value := number(rank.get(key))) is not None} for rank in told)


def _pairs(wire: object, ranks: int) -> tuple[Pair, ...]:
    told = wire.get("pairs") if isinstance(wire, dict) else None
    found = []
    for pair in told if isinstance(told, list) else []:
        if not isinstance(pair, dict):
            continue
        ends, alpha, beta = pair.get("ranks"), number(pair.get("alpha_s")), number(pair.get("beta_s_per_byte"))
        if (isinstance(ends, list) and len(ends) == 2 and all(type(end) is int and 0 <= end < ranks for end in ends)
                and alpha is not None and beta is not None):
            found.append(Pair((ends[0], ends[1]), pair.get("same_node") is True, alpha, beta))
    return tuple(found)
