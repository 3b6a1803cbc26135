"""Item stripes on their way round the ranks: each is sent on as soon as its rank has done with it.

Messages are started between blocks, and MPI is given the chance to carry them on as often: computing hides them.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.decomposition.mf.rows import Format, Rows, aligned
from dml_hpc.decomposition.mf.strata import Strata
from dml_hpc.watch import waiting

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Request

MESSAGE_BYTES = 1 << 22
"""A longer stripe travels in several messages: what has arrived of it is out of the way of what follows."""
AHEAD = 2
"""Stripes that a rank takes in before it has room by having let go of others."""
MOST_VIEWS = 4096
"""Kept of stripes in slots: thousands of ranks have more pairs of these."""
SPIN_S = 1e-3
_NAP_S = 2e-5


class _Travelling(NamedTuple):
    item: int
    slot: int
    requests: list[Request]


class Carousel:
    """The item stripes of this rank of ``comm``, of which each has user stripes in ``strata``.

    ``item_bounds`` (I + 1,) are those of the grid. An epoch is: `start`; then in every stratum and for each of the
    rank's user stripes in turn `stripe`, and `leave` after the first; `finish`. Before and after it,
    ``strata.home(rank)`` are here. Not collective but where it says so; no rank may begin an epoch that others do not.
    ``memory`` are slots for a stripe each (None: it has some of its own), of which `NodeCarousel` knows the use.
    """

    def __init__(self, comm: Intracomm, strata: Strata, item_bounds: np.ndarray, form: Format,
                 memory: list[np.ndarray] | None = None):
        self._comm, self._strata, self._form = comm, strata, form
        self._rows = np.diff(item_bounds).tolist()
        self.home = strata.home(comm.rank)
        slots = len(strata.places(comm.rank))
        slots = strata.items if comm.size == 1 else min(slots, strata.items) + AHEAD
        size = form.bytes(max(self._rows, default=0))
        self._memory = [self._room(size) for _ in range(slots)] if memory is None else memory
        self._views: dict[tuple[int, int], Rows] = {}
        self._here = {item: slot for slot, item in enumerate(self.home)}
        self._free = list(range(len(self._here), slots))
        self._coming: deque[int] = deque()
        self._arriving: deque[_Travelling] = deque()
        self._departing: deque[_Travelling] = deque()
        self.messages = comm.size > 1
        """Whether stripes travel as messages, which are to be looked after between blocks."""
        self.bytes_sent = 0

    def _room(self, size: int) -> np.ndarray:
        """Return memory (size,) uint8 for a stripe to be sent from and received in."""
        return aligned(size)

    def start(self) -> None:
        """Begin an epoch."""
        if self._comm.size > 1:
            self._coming.extend(item for _, item in self._strata.arriving(self._comm.rank))
            self._post()

    def stripe(self, item: int) -> Rows:
        """Return an item stripe that is here, or as soon as it has come."""
        while item not in self._here:
            self._land()
        slot = self._here[item]
        if (item, slot) not in self._views:
            if len(self._views) == MOST_VIEWS:
                self._views.clear()
            self._views[item, slot] = Rows(self._form, self._rows[item], self._memory[slot])
        return self._views[item, slot]

    def leave(self, item: int) -> None:
        """Send an item stripe on its way: it stood at the first of this rank's places, and has been worked on."""
        if self._comm.size == 1:
            return
        self._send(item, self._here.pop(item))

    def _send(self, item: int, slot: int) -> None:
        left = (self._comm.rank - 1) % self._comm.size
        requests = [self._comm.Isend(part, left) for part in self._messages(item, slot)]
        self._departing.append(_Travelling(item, slot, requests))
        self.bytes_sent += self._form.bytes(self._rows[item])

    def progress(self) -> None:
        """Let messages get on."""
        while self._departing and _done(self._departing[0].requests):
            self._vacate(self._departing.popleft().slot)
        self._post()
        while self._arriving and _done(self._arriving[0].requests):
            arrived = self._arriving.popleft()
            self._landed(arrived.slot)
            self._here[arrived.item] = arrived.slot

    def _vacate(self, slot: int) -> None:
        """A stripe has been sent from this slot."""
        self._free.append(slot)

    def _landed(self, slot: int) -> None:
        """Do what is left to do when a stripe has come."""

    def _under_way(self) -> tuple[int, ...]:
        """Return how many stripes are where on their way."""
        return len(self._arriving), len(self._departing), len(self._coming)

    def finish(self) -> None:
        """End an epoch: return when all that left has been taken, and all that is at home here has come."""
        while any(self._under_way()):
            self._wait()

    def _land(self) -> None:
        """Wait for the next stripe to arrive."""
        count = len(self._here)
        while len(self._here) == count:
            self._wait()

    def _wait(self) -> None:
        """Wait until a stripe has come or gone."""
        before = self._under_way()
        spin_until = time.perf_counter() + SPIN_S
        with waiting("a stripe of items", counted=False):
            while True:
                self.progress()
                if before != self._under_way():
                    return
                self._rest(spin_until)

    def _rest(self, spin_until: float) -> None:
        rest(spin_until)

    def _post(self) -> None:
        right = (self._comm.rank + 1) % self._comm.size
        while self._free and self._coming:
            item = self._coming.popleft()
            slot = self._free.pop()
            requests = [self._comm.Irecv(part, right) for part in self._messages(item, slot)]
            self._arriving.append(_Travelling(item, slot, requests))

    def _messages(self, item: int, slot: int) -> list[np.ndarray]:
        size = self._form.bytes(self._rows[item])
        raw = self._memory[slot]
        # A stripe of no rows travels too, as an empty message: it must not be there before it has left.
        return [raw[first:min(first + MESSAGE_BYTES, size)] for first in range(0, max(size, 1), MESSAGE_BYTES)]


def rest(spin_until: float) -> None:
    """Let others have this core: at once until the time ``spin_until``, then for longer."""
    if time.perf_counter() < spin_until:
        os.sched_yield()
    else:
        time.sleep(_NAP_S)


def _done(requests: list[Request]) -> bool:
    while requests and requests[0].Test():
        requests.pop(0)
    return not requests
