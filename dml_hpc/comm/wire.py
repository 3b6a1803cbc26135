"""The wire itself: latency and bandwidth between neighbouring ranks, by ping-pong.

A message goes to the neighbour and comes back; half that time is one way. The smallest message gives α, what a large
one takes beyond that gives β (Hockney's model, see `cost`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.watch import waiting

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

SMALL_BYTES, LARGE_BYTES = 8, 8 << 20
LEAST_TURNS, MOST_TURNS = 5, 201
ENOUGH_S = 0.05
"""A pair plays no longer than this with messages of one size, or `LEAST_TURNS` turns."""
QUICK_BYTES = (64 << 10, 1 << 20, 8 << 20)
QUICK_SMALL, QUICK_LARGE = (5, 0.02, 100), (3, 0.06, 12)
"""So many turns at least, so many seconds, so many turns at most, when there is little time."""
CLEAR_S = 1e-3
"""What takes so long is told well enough from what noise adds."""


class Wire(NamedTuple):
    """The worst of some pairs of ranks: the longest α (seconds), the largest β (seconds a byte), each with its pair."""

    alpha_s: float
    beta_s_per_byte: float
    alpha_ranks: tuple[int, int]
    beta_ranks: tuple[int, int]


class Link(NamedTuple):
    """The wire between two neighbouring ranks: α in seconds, β in seconds a byte."""

    ranks: tuple[int, int]
    same_node: bool
    alpha_s: float
    beta_s_per_byte: float


def measure(comm: Intracomm, nodes: Sequence[int]) -> list[Link]:
    """Collective: let every rank play with its right neighbour; return the links on every rank, in order of ranks.

    ``nodes`` (ranks,) tells the node of each rank. A node takes part in one game at a time, so that no two share a
    link or a memory. There is none on one rank.
    """
    def play(comm: Intracomm, other: int, leads: bool) -> tuple[float, float]:
        small_s, large_s = (float(np.median(_turns(comm, other, leads, n, LEAST_TURNS, ENOUGH_S, MOST_TURNS) or 0.0))
                            for n in (SMALL_BYTES, LARGE_BYTES))
        return small_s, max(large_s - small_s, 0.0) / (LARGE_BYTES - SMALL_BYTES)

    return _links(comm, nodes, play)


def probe(comm: Intracomm, nodes: Sequence[int]) -> list[Link]:
    """Collective: as `measure`, in a tenth of its time: about a second for all pairs on links of 25 Mbit/s.

    Messages grow until one takes long enough to be told from noise. The fastest turn counts, as ranks that are done
    wait for the others on cores that the players may need.
    """
    return _links(comm, nodes, _quick_game)


def worst(links: Sequence[Link], same_node: bool) -> Wire | None:
    """Return the worst of the links inside nodes, or between them; None: there is none."""
    alike = [link for link in links if link.same_node is same_node]
    if not alike:
        return None
    slow, narrow = max(alike, key=lambda link: link.alpha_s), max(alike, key=lambda link: link.beta_s_per_byte)
    return Wire(slow.alpha_s, narrow.beta_s_per_byte, slow.ranks, narrow.ranks)


def _links(comm: Intracomm, nodes: Sequence[int],
           play: Callable[[Intracomm, int, bool], tuple[float, float]]) -> list[Link]:
    comm = comm.Dup()
    pairs = [(rank, (rank + 1) % comm.size) for rank in range(comm.size if comm.size > 2 else comm.size - 1)]
    own: list[Link] = []
    for games in phases(pairs, nodes):
        comm.Barrier()
        for pair in games:
            if comm.rank in pair:
                leads = comm.rank == pair[0]
                alpha_s, beta_s_per_byte = play(comm, pair[leads], leads)
                if leads:
                    own.append(Link(pair, nodes[pair[0]] == nodes[pair[1]], alpha_s, beta_s_per_byte))
    found = [link for links in comm.allgather(own) for link in links]
    comm.Free()
    return sorted(found)


def _quick_game(comm: Intracomm, other: int, leads: bool) -> tuple[float, float]:
    """Return α and β of the link to ``other``, by messages that grow while one takes less than `CLEAR_S`."""
    small_s = min(_turns(comm, other, leads, SMALL_BYTES, *QUICK_SMALL), default=0.0)
    beta = 0.0
    for n_bytes in QUICK_BYTES:
        large_s = min(_turns(comm, other, leads, n_bytes, *QUICK_LARGE), default=0.0)
        # Where a small message took about as long as a large one, other work on the cores held it up.
        small_s = min(small_s, large_s / 2)
        beta = (large_s - small_s) / (n_bytes - SMALL_BYTES)
        goes_on = np.array([large_s < CLEAR_S], np.uint8)
        with waiting("a message", counted=False):
            if leads:  # only its clock counts
                comm.Send(goes_on, other)
            else:
                comm.Recv(goes_on, other)
        if not goes_on[0]:
            break
    return small_s, beta


def phases(pairs: Sequence[tuple[int, int]], nodes: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Divide ``pairs`` of ranks into phases in none of which two pairs touch the same node."""
    left, divided = list(pairs), []
    while left:
        busy: set[int] = set()
        phase, rest = [], []
        for pair in left:
            ends = {nodes[pair[0]], nodes[pair[1]]}
            if busy & ends:
                rest.append(pair)
            else:
                phase.append(pair)
                busy |= ends
        divided.append(phase)
        left = rest
    return divided


def _turns(comm: Intracomm, other: int, leads: bool, n_bytes: int, least: int, enough_s: float,
           most: int) -> list[float]:
    """Send ``n_bytes`` to and fro, ``least`` turns or more until ``enough_s`` or ``most`` are over.

    Returns the leader's halves of turns, in seconds; who follows has none.
    """
    message = np.zeros(n_bytes, np.uint8)
    send, receive = comm.Send_init(message, other), comm.Recv_init(message, other)
    turns: list[float] = []
    until = time.perf_counter() + enough_s
    message[0] = 1  # while it is 1, another turn follows: only the leader's clock counts
    with waiting("a message", counted=False):
        while message[0]:
            if leads:
                started = time.perf_counter()
                message[0] = len(turns) + 1 < least or (started < until and len(turns) + 1 < most)
                send.Start()
                send.Wait()
                receive.Start()
                receive.Wait()
                turns.append((time.perf_counter() - started) / 2)
            else:
                receive.Start()
                receive.Wait()
                send.Start()
                send.Wait()
    send.Free()
    receive.Free()
    return turns
