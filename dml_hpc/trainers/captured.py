"""Work of a step on a device that comes again in later steps: captured, so that the host queues it as one.

Where batches are small, a step's kernels take less time than the host needs to launch them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import partial

import numpy as np

from dml_hpc.data.on_device import DeviceRows
from dml_hpc.data.reading import Reader, Rows
from dml_hpc.device import Array, Device
from dml_hpc.kernels.cuda.sums import address
from dml_hpc.trainers.on_device import DeviceFloatGradient

MOST_GRAPHS = 64
"""Each holds memory on the device for what its kernels leave to one another."""

Work = Callable[[], None]


class Captured:
    """Queues work on ``device``: launch by launch when it first comes up, which builds its kernels, later as a graph.

    Work that comes up when there are `MOST_GRAPHS` others is always queued launch by launch.
    """

    def __init__(self, device: Device):
        self._device = device
        self._replays: dict[Hashable, Work | None] = {}

    def again(self, key: Hashable) -> bool:
        """Queue the work of this ``key`` if it has been captured; return whether it has."""
        replay = self._replays.get(key)
        if replay is not None:
            replay()
        return replay is not None

    def queue(self, key: Hashable, make: Callable[[], Work]) -> None:
        """Queue what ``make`` returns. Of one ``key`` it is always the same: see `Device.capture`."""
        if self.again(key):
            return
        work = make()
        if key in self._replays:
            self._replays[key] = self._device.capture(work)
            self.again(key)
            return
        if len(self._replays) < MOST_GRAPHS:
            self._replays[key] = None
        work()


class CapturedGradient:
    """Queues a rank's share of a step's gradient for rows that are on the device, by ``fold()``'s parameters.

    These always lie in the same place. Where each epoch has the same batches, each of them is captured, as contiguous
    rows if it has such. Else what is captured serves all batches that have as many rows of the same arrays: their
    numbers are copied to one place before.
    """

    def __init__(self, gradient: DeviceFloatGradient, moved: DeviceRows, reader: Reader, fold: Callable[[], Array]):
        self._device = device = moved.device
        self._gradient, self._moved, self._fold, self._recurs = gradient, moved, fold, reader.recurs
        self._captured = Captured(device)
        self._rows: dict[int, int] = {}
        size = 0 if reader.recurs else reader.most_rows
        self._numbers, self._told = device.empty(size, np.int64), device.pinned(size, np.int64)

    def again(self, number: int, buffer: Array, late: bool) -> int | None:
        """Do what `fill` does, if it is known what the batch is; return how many rows it has on all ranks.

        Nobody then has to list its rows.
        """
        if not self._recurs or not self._captured.again((number, address(buffer))):
            return None
        self._say(late, buffer)
        return self._rows[number]

    def fill(self, number: int, parts: Iterable[Rows], rows: int, buffer: Array, late: bool) -> None:
        """Do what `Gradient.fill` does for ``parts``, batch ``number`` of an epoch, of ``rows`` rows on all ranks."""
        parts = [part for part in parts if len(part.rows)]
        key: Hashable
        if self._recurs:
            self._rows[number] = rows
            key, make = number, partial(self._of_the_same, parts, buffer)
        else:
            numbers = np.concatenate([np.empty(0, np.int64), *(part.rows for part in parts)])
            self._told[:len(numbers)] = numbers
            key = tuple((id(part.X), len(part.rows)) for part in parts)  # those arrays stay
            make = partial(self._of_so_many, parts, buffer)
        self._captured.queue((key, address(buffer)), make)
        self._say(late, buffer)

    def _say(self, late: bool, buffer: Array) -> None:
        if late:
            buffer[-1:] = 1

    def _of_the_same(self, parts: list[Rows], buffer: Array) -> Work:
        there = list(self._moved.of(parts))
        return lambda: self._gradient.fill_of(there, self._fold(), buffer)

    def _of_so_many(self, parts: list[Rows], buffer: Array) -> Work:
        there, start = [], 0
        for part in parts:
            stop, kept = start + len(part.rows), self._moved.kept(part.X)
            assert kept is not None
            there.append(Rows(kept.X, kept.y, self._numbers[start:stop], kept.weight))
            start = stop

        def work() -> None:
            self._device.load(self._numbers[:start], self._told[:start])
            self._gradient.fill_of(there, self._fold(), buffer)

        return work


def captured_gradient(gradient: DeviceFloatGradient, reader: Reader,
                      fold: Callable[[], Array]) -> CapturedGradient | None:
    """Return what queues ``gradient`` for the batches of ``reader``.

    It is None where rows are not at hand on the device, and where the objective needs what cannot be captured.
    """
    moved, at_hand = gradient.moved, reader.at_hand()
    if not gradient.capturable or at_hand is None or any(moved.kept(arrays.X) is None for arrays in at_hand):
        return None
    return CapturedGradient(gradient, moved, reader, fold)
