"""One small matrix that stands for all rows: chunks' summaries, merged along a tree that no number of ranks changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from dml_hpc.decomposition.matrix import Matrix



def combine(matrix: Matrix, leaf: Callable[[np.ndarray], np.ndarray],
            merge: Callable[[np.ndarray, np.ndarray], np.ndarray], leaf_rows: int = 1) -> np.ndarray:
    """Collective: return, on every rank, the summary of all rows of A.

    ``leaf(rows)`` turns (count, n) float64 rows of A, which it may neither change nor keep, into a new 2-D float64
    array; ``merge(upper, lower)`` makes one summary of those of two neighbouring ranges of rows, and may overwrite
    them. A leaf takes as many whole chunks as have ``leaf_rows`` rows, the last one what is left. Leaves 2i and 2i + 1
    are merged, the results likewise, and so on; what has no sibling at the end is passed up as it is. The tree depends
    on the matrix's shape and ``leaf_rows`` alone, and so does, as long as the BLAS has the same number of threads,
    every bit of what comes out. One pass over the data. Each rank keeps one summary a level of the tree, and the rows
    of one leaf; then ranks meet pairwise, rank r sending what it has to r − 2^s in round s, a reduction's binomial tree
    (Thakur, Rabenseifner and Gropp, Int. J. High Perform. Comput. Appl. 19, 2005). Rows of a leaf whose chunks lie on
    several ranks travel as they are.

    Raises `AgreedError` on every rank for what ``leaf``, ``merge`` or reading raises on one.
    """
    comm, clock = matrix.comm, matrix.clock
    tree = _Tree(matrix, leaf, merge, leaf_rows)
    with clock.agreed(comm):
        for first, last, rows in tree.own_rows():
            with clock.phase("compute"):
                tree.push(_Node(first, last, False, rows))
        tree.let_go()
    distance = 1
    while distance < comm.size:
        with clock.phase("communicate"):
            received = _handed_down(matrix, tree.nodes, distance)
        with clock.agreed(comm), clock.phase("compute"):
            for node in received:
                tree.push(node)
        distance *= 2
    with clock.agreed(comm):
        root = tree.root() if comm.rank == 0 else None
    with clock.phase("communicate"):
        shape = comm.bcast(None if root is None else root.shape)
        total = np.empty(shape) if root is None else np.ascontiguousarray(root)
        comm.Bcast(total)
    return total


class _Node(NamedTuple):
    """What is known of chunks ``first`` … ``last − 1``: a summary, or, of part of a leaf, the rows themselves."""

    first: int
    last: int
    summarised: bool
    values: np.ndarray


class _Tree:
    """A stack of the largest complete nodes in a contiguous range of chunks, in their order."""

    def __init__(self, matrix: Matrix, leaf: Callable[[np.ndarray], np.ndarray],
                 merge: Callable[[np.ndarray, np.ndarray], np.ndarray], leaf_rows: int):
        self.nodes: list[_Node] = []
        self._matrix, self._leaf, self._merge = matrix, leaf, merge
        self._width = -(-leaf_rows // matrix.chunk_rows)  # of a leaf, in chunks
        self._scratch = np.empty((0, 0))

    def own_rows(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield this rank's rows, a leaf or what the rank has of one at a time: first and last chunk, rows (count, n).

        Rows of a whole leaf are valid until the next; others may be kept.
        """
        start, stop = self._matrix.chunks
        for number, block in self._matrix.dense_chunks(np.dtype(np.float64)):
            leaf_first, leaf_last = self._leaf_around(number)
            first, last = max(start, leaf_first), min(stop, leaf_last)
            if leaf_last - leaf_first == 1:
                yield first, last, block
                continue
            if number == first:
                count = self._first_row(last) - self._first_row(first)
                rows = self._room(count, whole=(first, last) == (leaf_first, leaf_last))
            place = self._first_row(number) - self._first_row(first)
            rows[place:place + len(block)] = block
            if number == last - 1:
                yield first, last, rows

    def push(self, node: _Node) -> None:
        """Add what follows the last node, and merge what is complete."""
        if not node.summarised:
            node = self._joined(node)
        while self.nodes and self._siblings(self.nodes[-1], node):
            upper = self.nodes.pop()
            node = _Node(upper.first, node.last, True, self._merge(upper.values, node.values))
        self.nodes.append(node)

    def let_go(self) -> None:
        """Free the room for rows that have all been summarised."""
        self._scratch = np.empty((0, 0))

    def root(self) -> np.ndarray:
        """Return the summary of all chunks, which the tree has come to; of no rows if there are none."""
        if not self.nodes:
            return self._leaf(np.empty((0, self._matrix.shape[1])))
        (node,) = self.nodes
        return node.values

    def _joined(self, node: _Node) -> _Node:
        """Return rows with those of the same leaf on the stack above them, summarised if they are all of it."""
        around = self._leaf_around(node.first)
        if self.nodes and not self.nodes[-1].summarised and self._leaf_around(self.nodes[-1].first) == around:
            upper = self.nodes.pop()
            node = _Node(upper.first, node.last, False, np.concatenate([upper.values, node.values]))
        if (node.first, node.last) == around:
            return _Node(*around, True, self._leaf(node.values))
        return node

    def _siblings(self, upper: _Node, lower: _Node) -> bool:
        """Say whether two neighbours are the halves of one node; the lower half may end where the chunks do."""
        width = upper.last - upper.first
        return (upper.summarised and lower.summarised and upper.first % (2 * width) == 0
                and lower.last == min(upper.first + 2 * width, self._matrix.all_chunks))

    def _leaf_around(self, chunk: int) -> tuple[int, int]:
        first = chunk - chunk % self._width
        return first, min(first + self._width, self._matrix.all_chunks)

    def _first_row(self, chunk: int) -> int:
        return min(chunk * self._matrix.chunk_rows, self._matrix.shape[0])

    def _room(self, count: int, whole: bool) -> np.ndarray:
        """Return uninitialised (count, n); for ``whole`` leaves the same room every time."""
        n = self._matrix.shape[1]
        if not whole:
            return np.empty((count, n))
        if len(self._scratch) < count:
            self._scratch = np.empty((count, n))
        return self._scratch[:count]


def _handed_down(matrix: Matrix, nodes: list[_Node], distance: int) -> list[_Node]:
    """Exchange nodes with the rank at ``distance``; return those received, in order. Those sent leave ``nodes``."""
    comm = matrix.comm
    if comm.rank % (2 * distance) == distance:
        header = [(node.first, node.last, node.summarised, node.values.shape) for node in nodes]
        comm.send(header, comm.rank - distance)
        for node in nodes:
            comm.Send(np.ascontiguousarray(node.values), comm.rank - distance)
        nodes.clear()
    elif comm.rank % (2 * distance) == 0 and comm.rank + distance < comm.size:
        received = []
        for first, last, summarised, shape in comm.recv(source=comm.rank + distance):
            values = np.empty(shape)
            comm.Recv(values, comm.rank + distance)
            received.append(_Node(first, last, summarised, values))
        return received
    return []
