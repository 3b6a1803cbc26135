"""What an epoch of a factorisation of ratings sends, in Hockney's model: see `dml_hpc.comm.cost`.

- ``sgd``: every stripe of items goes round all ranks. Each rank sends each stripe once to its neighbour: as many
  messages as there are stripes, and the bytes of all items' rows, whatever the number of ranks. Ranks of a node are
  neighbours, which hand stripes over in shared memory, and one of them sends them on to the next node. All this travels
  while ranks compute.
- ``als``: after each half of an epoch a rank sends every other one those of its rows that the other's ratings are of.
  Of so many ratings that a row has, c, none is another rank's with the probability (1 − 1/p)^c: it is sent to
  (p − 1)·(1 − (1 − 1/p)^c) of p ranks. One c stands for all rows; it is that which explains what was sent on the ranks
  measured.
"""

from __future__ import annotations

import math

from dml_hpc.comm.cost import Cost


def round_trip(stripes: int, n_bytes: float) -> Cost:
    """Return what a rank pays while ``stripes`` stripes of ``n_bytes`` together go round."""
    return Cost(stripes, n_bytes)


def rows_sent(ranks: int, measured_ranks: int, measured_bytes: float, row_bytes: float) -> float:
    """Return the bytes that ``ranks`` ranks together send in an epoch of als, from what ``measured_ranks`` > 1 sent.

    ``row_bytes`` are those of all rows together, of users and items.
    """
    share = min(measured_bytes / ((measured_ranks - 1) * row_bytes), 1.0)
    ratings = math.inf if share == 1 else math.log1p(-share) / math.log1p(-1 / measured_ranks)
    return (ranks - 1) * row_bytes * (1 - (1 - 1 / ranks) ** ratings)


def exchange(ranks: int, nodes: int, n_bytes: float, messages: int) -> Cost:
    """Return what a rank pays to send others ``messages`` messages each, if all ranks together send ``n_bytes``."""
    own, each = n_bytes / ranks, ranks / nodes
    if nodes > 1:  # the ranks of a node share its link, for what leaves it
        own *= each * (ranks - each) / (ranks - 1)
    return Cost(messages * (ranks - 1), own)
