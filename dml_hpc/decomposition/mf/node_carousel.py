"""Item stripes on their way round ranks that share nodes: inside a node they stay where they are, and change hands.

Ranks of one node that follow one another on the ring are a chain. The stripes of a chain lie in memory that its ranks
share, each in a slot; a rank that has done with one tells the next in which, by a queue of one writer and one reader.
Where a chain ends, stripes travel to the next node as messages, and the last rank of the chain hands the slots that
become free to the first. One node with all ranks is a chain without ends: each stripe has its slot for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.comm.shared_memory import SharedMemory, whole_pages
from dml_hpc.comm.topology import nodes_of
from dml_hpc.decomposition.mf.carousel import AHEAD, Carousel
from dml_hpc.decomposition.mf.rows import Format
from dml_hpc.decomposition.mf.strata import Strata
from dml_hpc.errors import AgreedError
from dml_hpc.kernels.handover import put, take
from dml_hpc.kernels.node import LINE
from dml_hpc.mpi import agreed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Chain(NamedTuple):
    """``ranks`` that share ``slots``, each the bytes of a stripe, in the order in which stripes come to them.

    Slots are the ranks' stripes at home first, in this order; the others are free. ``queues`` (ranks, elements) int64
    lead from each to the next, and from the last to the first.
    """

    ranks: list[int]
    slots: list[np.ndarray]
    queues: np.ndarray


def open_carousel(comm: Intracomm, team: Intracomm, strata: Strata, item_bounds: np.ndarray,
                  form: Format) -> tuple[Carousel | None, str | None]:
    """Collective over ``comm``: return the carousel of the ranks of ``team``, which are its first, None for others.

    With it comes why ranks of one node send each other messages, None: they share memory, or there are no such ranks.
    Raises `AgreedError` where memory does not do.
    """
    nodes, why = nodes_of(comm)[:strata.active], None
    own = comm.rank < len(nodes)
    if len(nodes) > 1 and any(nodes[rank] == nodes[rank - 1] for rank in range(len(nodes))):
        try:
            chain = _open_chain(comm, chain_of(nodes, comm.rank) if own else [], strata,
                                form.bytes(int(np.diff(item_bounds).max(initial=0))))
            return NodeCarousel(team, strata, item_bounds, form, chain) if own else None, None
        except AgreedError as error:
            why = str(error)
    with agreed(comm):
        found = Carousel(team, strata, item_bounds, form) if own else None
    return found, why


def chain_of(nodes: Sequence[int], rank: int) -> list[int]:
    """Return the ranks of the chain of ``rank`` in the order in which stripes come to them, from each to the one below.

    ``nodes`` are those of all ranks. The chain without ends begins with the last rank.
    """
    p, first = len(nodes), rank
    if len(set(nodes)) == 1:
        return list(range(p))[::-1]
    while nodes[(first + 1) % p] == nodes[rank]:
        first = (first + 1) % p
    ranks = [first]
    while nodes[(ranks[-1] - 1) % p] == nodes[rank]:
        ranks.append((ranks[-1] - 1) % p)
    return ranks


def _open_chain(comm: Intracomm, ranks: list[int], strata: Strata, size: int) -> Chain:
    """Collective over ``comm``: return the chain of this rank, ``ranks``, with slots of ``size`` bytes; of none if [].

    Raises `AgreedError` where ranks of a chain cannot share memory.
    """
    homes = [len(strata.home(rank)) for rank in ranks]
    if len(ranks) == strata.active:
        count = strata.items
    else:
        count = min(sum(len(strata.places(rank)) for rank in ranks), strata.items) + AHEAD * len(ranks)
    stride = whole_pages(size)
    of_queue = LINE + -(-count // LINE) * LINE
    slots_bytes, queues_bytes = count * stride, 8 * len(ranks) * of_queue
    n_bytes = whole_pages(slots_bytes + queues_bytes)
    own = []
    if ranks:  # each takes its stripes at home, and the first the rest
        place = ranks.index(comm.rank)
        own.append((sum(homes[:place]) * stride, homes[place] * stride))
        if place == 0:
            own.append((sum(homes) * stride, n_bytes - sum(homes) * stride))
    node: Intracomm = comm.Split(ranks[0] if ranks else comm.rank, comm.rank)  # type: ignore[assignment]
    try:
        memory = SharedMemory(comm, node, n_bytes, own)
        try:
            with agreed(comm):
                view = memory.map((0, n_bytes))
        finally:
            memory.close()
    except AgreedError:
        node.Free()
        raise
    node.Free()
    queues = view[slots_bytes:slots_bytes + queues_bytes].view(np.int64).reshape(len(ranks), of_queue)
    return Chain(ranks, [view[slot * stride:slot * stride + size] for slot in range(count)], queues)


class NodeCarousel(Carousel):
    """A `Carousel` over the ranks of ``comm``, of which those of ``chain`` share memory with this one."""

    def __init__(self, comm: Intracomm, strata: Strata, item_bounds: np.ndarray, form: Format, chain: Chain):
        super().__init__(comm, strata, item_bounds, form, chain.slots)
        ranks = chain.ranks
        homes, place = [len(strata.home(rank)) for rank in ranks], ranks.index(comm.rank)
        self._here = {item: sum(homes[:place]) + number for number, item in enumerate(self.home)}
        self._free = list(range(sum(homes), len(chain.slots))) if place == 0 else []
        self._next, self._last = _Queue(chain.queues[place]), _Queue(chain.queues[place - 1])
        is_whole = len(ranks) == comm.size
        self.messages = not is_whole
        self._hands_on, self._is_handed = is_whole or place < len(ranks) - 1, is_whole or place > 0

    def _send(self, item: int, slot: int) -> None:
        if self._hands_on:
            self._next.put(slot)
        else:
            super()._send(item, slot)

    def _vacate(self, slot: int) -> None:
        self._next.put(slot)

    def _post(self) -> None:
        if self._is_handed:
            while self._coming and (slot := self._last.take()) is not None:
                self._here[self._coming.popleft()] = slot
        else:
            while (slot := self._last.take()) is not None:
                self._free.append(slot)
            super()._post()

    def _rest(self, spin_until: float) -> None:
        self._comm.Iprobe()  # it raises when a rank has died, whom shared memory would wait for for ever
        super()._rest(spin_until)


class _Queue:
    """Slots on their way from one rank to the next; it is at one end."""

    def __init__(self, memory: np.ndarray):
        self._memory, self._count = memory, 0

    def put(self, slot: int) -> None:
        put(self._memory, self._count, slot)
        self._count += 1

    def take(self) -> int | None:
        """Return the next, None: it has not come."""
        slot = take(self._memory, self._count)
        if slot < 0:
            return None
        self._count += 1
        return slot


def compile_queues() -> None:
    """Have the kernels compiled, or read from their cache, by handing a number over."""
    queue = _Queue(np.zeros(2 * LINE, np.int64))
    queue.put(0)
    queue.take()
