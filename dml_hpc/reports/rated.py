"""What an epoch of ``mf`` sends, out of its record."""

from __future__ import annotations

from dml_hpc.comm.cost import Cost, cost
from dml_hpc.decomposition.mf.cost import exchange, round_trip, rows_sent
from dml_hpc.reports.quantities import Record, number, positive, whole


def epoch_exchange(record: Record, ranks: int, nodes: int) -> tuple[Cost | None, float | None]:
    """Return what is paid for the exchanges of an epoch on ``ranks`` ranks of ``nodes`` nodes, and the run's epochs.

    The first is None of one rank, of ranks that sent nothing, as those of one node do with ``sgd``, and where the
    record tells too little: what is sent is told by one of several ranks.
    """
    epochs = (whole(record.get("epochs")) or 0) - (number(record.get("resumed_from")) or 0)
    if epochs < 1:
        return None, None
    sent, at_work = positive(record, "bytes_sent"), whole(record.get("ranks_at_work"))
    if ranks == 1 or sent is None or at_work is None or at_work < 2:
        return None, epochs
    if record.get("algorithm") == "sgd":
        grid, told = record.get("grid"), record.get("per_rank")
        stripes = whole(grid[1]) if isinstance(grid, list) and len(grid) == 2 else None
        # Of the ranks of a node that share memory only one sends.
        most = max((number(rank.get("bytes_sent")) or 0 for rank in told if isinstance(rank, dict)),
                   default=0) if isinstance(told, list) else 0
        turns = 1 if record.get("test") is None else 2  # once more, to measure
        return None if stripes is None or not most else round_trip(turns * stripes, most / epochs), epochs
    return _of_als(record, ranks, nodes, sent / (epochs + 0.5)), epochs  # items are sent once more, at the start


def _of_als(record: Record, ranks: int, nodes: int, sent: float) -> Cost | None:
    users, items, k = (whole(record.get(name)) for name in ("users", "items", "k"))
    measured = whole(record.get("ranks"))
    if users is None or items is None or k is None or measured is None or measured < 2:
        return None
    biased = record.get("biases") is True
    n_bytes = rows_sent(ranks, measured, sent, (users + items) * 4 * (k + biased))
    found = exchange(ranks, nodes, n_bytes, 2 * (1 + biased))
    if record.get("implicit") is True and (gram := cost("mpi", ranks, nodes, 8 * k * k)) is not None:
        found = Cost(found.messages + 2 * gram.messages, found.n_bytes + 2 * gram.n_bytes)
    return found
