"""A rank's ratings on a device, a stratum at a time: kept there as far as they fit, else brought in every pass."""

from __future__ import annotations

import numpy as np

from dml_hpc.decomposition.mf.blocks import Blocks
from dml_hpc.device import Array, Device, Event
from dml_hpc.errors import UserError
from dml_hpc.kernels.cuda.sums import address
from dml_hpc.watch import progressed

FIELDS = ("users", "items", "ratings", "weights")


class _Turn:
    """Pinned memory, and, for strata that do not stay, the device's."""

    def __init__(self, device: Device, size: int):
        self.pinned = device.pinned(size, np.uint8)
        self.there: Array | None = None
        self.copied: Event | None = None
        self.used: Event = device.mark()


class DeviceBlocks:
    """The ``blocks`` of each stratum of ``strata``, lists of (u, i), on ``device``, in at most ``most_bytes`` there.

    Raises `UserError` where not even two strata fit, or blocks cannot be read.
    """

    def __init__(self, device: Device, blocks: Blocks, strata: list[list[tuple[int, int]]], weighted: bool,
                 counts: np.ndarray, most_bytes: int):
        self._device, self._blocks, self._strata = device, blocks, strata
        self._fields = FIELDS[:4 if weighted else 3]
        self._counts = [np.array([counts[block] for block in stratum], np.int64) for stratum in strata]
        sizes = [4 * len(self._fields) * int(own.sum()) for own in self._counts]
        self.n_bytes, longest = sum(sizes), max(sizes, default=0)
        left = most_bytes - (0 if self.n_bytes <= most_bytes else 2 * longest)
        if left < 0:
            raise UserError(f"--device cuda: {2 * longest >> 20:,} MiB of a GPU's memory are needed for ratings, and "
                            f"{max(most_bytes, 0) >> 20:,} are free beside the factors; use more ranks and GPUs, or "
                            "import the ratings with a finer --grid")
        self._turns = [_Turn(device, longest) for _ in range(2)]
        self._kept: list[Array | None] = []
        for number, size in enumerate(sizes):
            stays = size <= left
            left -= size if stays else 0
            self._kept.append(device.empty(size, np.uint8) if stays else None)
            if stays:
                self._bring(number, self._turns[number % 2], self._kept[number])
        self.resident = all(one is not None for one in self._kept)
        if not self.resident:
            for turn in self._turns:
                turn.there = device.empty(longest, np.uint8)
        device.synchronize()
        self._turn = 0

    def stratum(self, number: int) -> np.ndarray:
        """Return (blocks, 4) int64: where users, items, ratings, weights of a stratum's blocks lie, 0: there are none.

        Work queued from now on finds them there, until `used` and two more strata.
        """
        memory = self._kept[number]
        if memory is None:
            self._turn = 1 - self._turn
            turn = self._turns[self._turn]
            memory = turn.there
            self._bring(number, turn, memory)
        counts = self._counts[number]
        starts = np.cumsum(counts) - counts
        found = np.zeros((len(counts), len(FIELDS)), np.int64)
        if counts.any():
            for place in range(len(self._fields)):
                found[:, place] = address(memory) + 4 * (place * counts.sum() + starts)
        return found

    def used(self) -> None:
        """Say that the work on what `stratum` returned last is queued."""
        self._turns[self._turn].used = self._device.mark()

    def _bring(self, number: int, turn: _Turn, memory: Array) -> None:
        """Have a stratum's ratings copied; what is queued from now on finds them."""
        if turn.copied is not None:
            turn.copied.wait()
        count = int(self._counts[number].sum())
        start = 0
        for u, i in self._strata[number]:
            block = self._blocks.get(u, i)
            for place, part in enumerate(part for part in block if part is not None):
                first = 4 * (place * count + start)
                turn.pinned[first:first + part.nbytes].view(part.dtype)[:] = part
            start += len(block.ratings)
            progressed()
        size = 4 * len(self._fields) * count
        if size:
            turn.copied = self._device.upload(memory[:size], turn.pinned[:size], turn.used)
            self._device.follow(turn.copied)
