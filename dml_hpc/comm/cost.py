"""What each all-reduce costs in Hockney's model, and the α and β that explain measured times best.

A message of m bytes takes α + m·β seconds: α is its latency, 1/β the bandwidth of the link (R. W. Hockney, *The
communication challenge for MPP: Intel Paragon and Meiko CS-2*, Parallel Computing 20, 1994). An all-reduce of n bytes
over p ranks then takes

    t = messages · α + bytes · β

with the number of messages that follow one another on the longest path, and the bytes that they take through the
busiest link. A rank sends and receives one message each at a time; adding up costs nothing beside the bytes.

- ``ring``: p − 1 steps sum blocks of n/p bytes, p − 1 more spread them: 2(p − 1) messages, 2(p − 1)/p · n bytes, the
  least possible (Patarasuk and Yuan, *Bandwidth optimal all-reduce algorithms for clusters of workstations*,
  J. Parallel Distrib. Comput. 69, 2009). A block goes in c segments (see `circle`): c times the messages.
- ``tree``: a rank takes its children's messages one after another. Let f be the most of them on a way from a leaf to
  the root and b the most that one rank has (its fan-in). A vector in c segments needs f messages for the first one and
  b for each that follows, and the same again on the way down: 2(f + (c − 1)b) messages of n/c bytes.
  Up to 16 KiB it is recursive doubling instead: log₂p messages, each of the whole vector (Thakur, Rabenseifner and
  Gropp, *Optimization of collective communication operations in MPICH*, Int. J. High Perform. Comput. Appl. 19, 2005);
  when p is no power of two, 2 more.
- ``hierarchical`` on m > 1 nodes: a ring over the nodes in every lane at once, 2(m − 1)c messages; together the lanes
  carry 2(m − 1)/m · n bytes through a node's link. On one node nothing is sent: the "messages" are the ranks' 2
  meetings, and a rank reads its slice of n/p bytes from p − 1 neighbours.
- ``mpi``: the library does not say what it does. It is held against the best published algorithm, Rabenseifner's
  (recursive halving, then doubling; in Thakur et al.): 2⌈log₂p⌉ messages, 2(p − 1)/p · n bytes, and on several nodes
  2(m − 1)/m · n as if it summed inside each node first.

Ranks fill one node after the other, the same number on each. Where several share a node's link, what ``tree`` sends
through it is added up; a ring crosses it once, whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dml_hpc.comm import circle, tree
from dml_hpc.layout import bound


class Cost(NamedTuple):
    """Messages one after another on the longest path, and the bytes through the busiest link."""

    messages: float
    n_bytes: float


class Fit(NamedTuple):
    """Latency of a message in seconds, seconds a byte, and the root mean square of the relative deviations."""

    alpha_s: float
    beta_s_per_byte: float
    relative_error: float

    def seconds(self, cost: Cost) -> float:
        """Return how long ``cost`` takes."""
        return cost.messages * self.alpha_s + cost.n_bytes * self.beta_s_per_byte


def cost(name: str, ranks: int, nodes: int, n_bytes: int, fan_in: int = 2) -> Cost | None:
    """Return what the reducer ``name`` pays for vectors of ``n_bytes``; None when there is no model of it.

    There is none of one rank, which sends nothing.
    """
    if ranks == 1:
        return None
    links = nodes if nodes > 1 else ranks  # on one node every rank is the other end of its own link
    if name == "mpi":
        return Cost(2 * (ranks - 1).bit_length(), 2 * (links - 1) / links * n_bytes)
    if name == "ring":
        return _ring(ranks, n_bytes)
    if name == "tree":
        if n_bytes <= tree.DOUBLING_BYTES:
            return _doubling(ranks, links, n_bytes)
        return _tree(ranks, links, n_bytes, fan_in)
    if name == "hierarchical":
        if nodes == 1:
            return Cost(2, (ranks - 1) / ranks * n_bytes)
        lanes = ranks // nodes
        return Cost(_ring(nodes, -(-n_bytes // lanes)).messages, 2 * (nodes - 1) / nodes * n_bytes)
    return None


def least_seconds(n_bytes: int, nodes: int, bandwidth_bytes_per_s: float) -> float:
    """Return the time that no all-reduce between ``nodes`` can beat: 2(nodes − 1)/nodes · n_bytes / bandwidth.

    Every node must send that much, and receive as much at the same time (Patarasuk and Yuan 2009).
    """
    return 2 * (nodes - 1) / nodes * n_bytes / bandwidth_bytes_per_s


def fit(costs: Sequence[Cost], seconds: Sequence[float]) -> Fit | None:
    """Return the α and β, neither below 0, with the least squares of (model − measured)/measured.

    Relative, because times span five powers of ten: else the largest vectors alone would count. None when the
    measurements cannot tell α from β, as those of a single size.
    """
    relative = np.array(costs, np.float64).reshape(-1, 2) / np.array(seconds, np.float64)[:, None]
    scale = np.linalg.norm(relative, axis=0)
    if not scale.all() or np.linalg.matrix_rank(relative / scale, tol=1e-6) < 2:
        return None
    both = np.linalg.lstsq(relative / scale, np.ones(len(relative)), rcond=None)[0] / scale
    if (both < 0).any():
        # The best point with both at least 0 then lies on an edge.
        edges = np.diag(relative.sum(axis=0) / scale**2)
        both = min(edges, key=lambda edge: float(np.square(relative @ edge - 1).sum()))
    deviation = float(np.sqrt(np.square(relative @ both - 1).mean()))
    return Fit(float(both[0]), float(both[1]), deviation)


def _ring(ranks: int, n_bytes: int) -> Cost:
    block_bytes = -(-n_bytes // ranks)
    segments = max(1, min(circle.MOST_SEGMENTS, -(-block_bytes // circle.SEGMENT_BYTES)))
    return Cost(2 * (ranks - 1) * segments, 2 * (ranks - 1) / ranks * n_bytes)


def _doubling(ranks: int, links: int, n_bytes: int) -> Cost:
    steps = ranks.bit_length() - 1
    core = 1 << steps
    rounds = [[(rank, rank ^ (1 << i)) for rank in range(core)] for i in range(steps)]
    if core < ranks:
        rounds += [[(rank, rank - core) for rank in range(core, ranks)],
                   [(rank - core, rank) for rank in range(core, ranks)]]
    return Cost(len(rounds), n_bytes * sum(_busiest(messages, ranks, links) for messages in rounds))


def _tree(ranks: int, links: int, n_bytes: int, fan_in: int) -> Cost:
    segments = min(tree.MOST_SEGMENTS, -(-n_bytes // tree.SEGMENT_BYTES))
    children = [max(0, min(ranks - 1, (rank + 1) * fan_in) - rank * fan_in) for rank in range(ranks)]
    fill = [0] * ranks  # messages that the ranks above take before this one's is at the root
    for rank in range(1, ranks):
        parent = (rank - 1) // fan_in
        fill[rank] = fill[parent] + children[parent]
    # Down the same links carry the same in the other direction.
    shared = _busiest([((rank - 1) // fan_in, rank) for rank in range(1, ranks)], ranks, links)
    first = max(fill) - max(children)
    return Cost(2 * (first + segments * max(children)), 2 * (first + segments * shared) * n_bytes / segments)


def _busiest(messages: Iterable[tuple[int, int]], ranks: int, links: int) -> int:
    """Return how many of the ``messages`` (from rank, to rank) leave by the link that most of them leave by."""
    starts = [bound(ranks, links, link) for link in range(links)]
    place = np.searchsorted(starts, np.arange(ranks), "right") - 1
    pairs = place[np.array(list(messages)).reshape(-1, 2)]
    leaving = pairs[pairs[:, 0] != pairs[:, 1], 0]
    return int(np.bincount(leaving).max()) if len(leaving) else 0
