"""The wire itself: latency and bandwidth between neighbouring ranks, by ping-pong.

A message goes to the neighbour and comes back; half that time is one way. The smallest message gives α, what a large
one takes beyond that gives β (Hockney's model, see `cost`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.watch import waiting

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

SMALL_BYTES, LARGE_BYTES = 8, 8 << 20
LEAST_TURNS, MOST_TURNS = 5, 201
ENOUGH_S = 0.05
"""A pair plays no longer than this with messages of one size, or `LEAST_TURNS` turns."""


class Wire(NamedTuple):
    """The worst of some pairs of ranks: the longest α (seconds), the largest β (seconds a byte), each with its pair."""

    alpha_s: float
    beta_s_per_byte: float
    alpha_ranks: tuple[int, int]
    beta_ranks: tuple[int, int]


def measure(comm: Intracomm, nodes: Sequence[int]) -> tuple[Wire | None, Wire | None]:
    """Collective: let every rank play with its right neighbour; return the wire inside a node and between nodes.

    ``nodes`` (ranks,) tells the node of each rank. A node takes part in one game at a time, so that no two share a
    link or a memory. None where no two neighbours are placed so.
    """
    comm = comm.Dup()
    pairs = [(rank, (rank + 1) % comm.size) for rank in range(comm.size if comm.size > 2 else comm.size - 1)]
    own: list[tuple[tuple[int, int], float, float]] = []
    for games in phases(pairs, nodes):
        comm.Barrier()
        for pair in games:
            if comm.rank in pair:
                leads = comm.rank == pair[0]
                small_s, large_s = (_one_way(comm, pair[leads], leads, n) for n in (SMALL_BYTES, LARGE_BYTES))
                if leads:
                    own.append((pair, small_s, max(large_s - small_s, 0.0) / (LARGE_BYTES - SMALL_BYTES)))
    found = [game for games in comm.allgather(own) for game in games]
    comm.Free()
    inside, between = ([game for game in found if (nodes[game[0][0]] == nodes[game[0][1]]) == same]
                       for same in (True, False))
    return _worst(inside), _worst(between)


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


def _one_way(comm: Intracomm, other: int, leads: bool, n_bytes: int) -> float:
    """Send ``n_bytes`` to and fro; return the leader's median of half a turn, in seconds (0 for who follows)."""
    message = np.zeros(n_bytes, np.uint8)
    send, receive = comm.Send_init(message, other), comm.Recv_init(message, other)
    turns: list[float] = []
    until = time.perf_counter() + ENOUGH_S
    message[0] = 1  # while it is 1, another turn follows: only the leader's clock counts
    with waiting("a message", counted=False):
        while message[0]:
            if leads:
                started = time.perf_counter()
                message[0] = len(turns) + 1 < LEAST_TURNS or (started < until and len(turns) + 1 < MOST_TURNS)
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
    return float(np.median(turns)) if leads else 0.0


def _worst(games: Sequence[tuple[tuple[int, int], float, float]]) -> Wire | None:
    if not games:
        return None
    slow, narrow = max(games, key=lambda game: game[1]), max(games, key=lambda game: game[2])
    return Wire(slow[1], narrow[2], slow[0], narrow[0])
