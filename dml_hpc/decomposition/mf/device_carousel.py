"""Item stripes on their way round ranks that keep them on devices: beside what these compute, as on the CPU."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.decomposition.mf.carousel import SPIN_S, Carousel, rest
from dml_hpc.decomposition.mf.rows import Format, Rows
from dml_hpc.decomposition.mf.strata import Strata
from dml_hpc.device import Array, Device, Event
from dml_hpc.kernels.cuda.sums import address

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class _Leaving(NamedTuple):
    item: int
    slot: int
    ready: Event


class DeviceCarousel(Carousel):
    """A `Carousel` of rows on ``device``, to which `stripe` returns views.

    With ``direct`` MPI sends from and to the device's memory; else stripes are copied through pinned memory, down
    behind the work queued when they `leave`, and up beside what is at work when they have come.
    """

    def __init__(self, comm: Intracomm, strata: Strata, item_bounds: np.ndarray, form: Format, device: Device,
                 direct: bool):
        self._device, self._direct = device, direct
        self._alone = comm.size == 1
        super().__init__(comm, strata, item_bounds, form)
        size = form.bytes(max(self._rows, default=0))
        self._there: list[Array] = self._memory if direct and not self._alone else [
            device.empty(size, np.uint8) for _ in self._memory]
        self._addresses = [address(memory) if memory.size else 0 for memory in self._there]
        self._last_used = [device.mark()] * len(self._there)
        self._on_way_up: dict[int, Event] = {}
        self._leaving: deque[_Leaving] = deque()

    @staticmethod
    def slots(strata: Strata, rank: int, ranks: int) -> int:
        """Return for how many stripes a rank needs room."""
        from dml_hpc.decomposition.mf.carousel import AHEAD

        return strata.items if ranks == 1 else min(len(strata.places(rank)), strata.items) + AHEAD

    def _room(self, size: int) -> np.ndarray:
        if self._alone:
            return np.empty(0, np.uint8)
        return self._device.empty(size, np.uint8) if self._direct else self._device.pinned(size, np.uint8)

    def is_here(self, item: int) -> bool:
        """Say whether a stripe is here."""
        return item in self._here

    def stripe(self, item: int) -> Rows:
        """Return an item stripe that is here, or as soon as it has come; work queued from now on finds it there."""
        while item not in self._here:
            self._land()
        slot = self._here[item]
        if (event := self._on_way_up.pop(slot, None)) is not None:
            self._device.follow(event)
        if (item, slot) not in self._views:
            self._views[item, slot] = Rows(self._form, self._rows[item], self._there[slot])
        return self._views[item, slot]

    def addresses(self, item: int) -> list[int]:
        """Return where the factors, biases and squares of a stripe that is here lie, 0: it has none."""
        return self._form.places(self._rows[item], self._addresses[self._here[item]])

    def _send(self, item: int, slot: int) -> None:
        size = self._form.bytes(self._rows[item])
        if self._direct:
            ready = self._device.mark()
        else:
            ready = self._device.download(self._memory[slot][:size], self._there[slot][:size])
        self._last_used[slot] = ready
        self._leaving.append(_Leaving(item, slot, ready))

    def progress(self) -> None:
        """Let copies and messages get on."""
        while self._leaving and self._leaving[0].ready.done:
            left = self._leaving.popleft()
            super()._send(left.item, left.slot)
        super().progress()

    def _landed(self, slot: int) -> None:
        if not self._direct:
            # Behind what last used the slot, which is long done, not behind the work that is queued now.
            self._on_way_up[slot] = self._device.upload(self._there[slot], self._memory[slot], self._last_used[slot])

    def _under_way(self) -> tuple[int, ...]:
        return *super()._under_way(), len(self._leaving)

    def attend(self, event: Event, items: list[int] | None = None) -> None:
        """Let copies and messages get on until the device has done ``event``, or, if given, all ``items`` are here."""
        spin_until = time.perf_counter() + SPIN_S
        while not event.done:
            if items is not None and all(map(self.is_here, items)):
                return
            self.progress()
            rest(spin_until)
