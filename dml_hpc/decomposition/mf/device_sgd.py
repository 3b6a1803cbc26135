"""Rating SGD on GPUs: factors and ratings stay there, and the blocks of a stratum are worked on all at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.comm.on_device.aware import why_staged
from dml_hpc.data.ratings.opened import Ratings
from dml_hpc.decomposition.mf.carousel import Carousel
from dml_hpc.decomposition.mf.device_blocks import DeviceBlocks
from dml_hpc.decomposition.mf.device_carousel import DeviceCarousel
from dml_hpc.decomposition.mf.held_out import Errors
from dml_hpc.decomposition.mf.learner import Part
from dml_hpc.decomposition.mf.rows import Rows
from dml_hpc.decomposition.mf.sgd import Settings, Sgd
from dml_hpc.device import Array, Device, Event
from dml_hpc.errors import UserError
from dml_hpc.kernels.cuda import rating_sgd
from dml_hpc.kernels.cuda.sums import address
from dml_hpc.mpi import agreed
from dml_hpc.store.state import Kept, State

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

SHARE = 0.8
"""Of a GPU's free memory, for factors and ratings: the rest is for what is held out, and for others."""
COUNT, FIRST, RATINGS, SIDES = 0, 1, slice(2, 6), slice(6, 12)
"""Columns of the kernels' table of blocks; sides: factors, biases, squares, each of users and then of items."""
_USERS, _ITEMS = slice(6, 12, 2), slice(7, 12, 2)


class DeviceSgd(Sgd):
    """`Sgd` with rows and ratings on ``device``, which ``sharers`` ranks use.

    Ratings of a block are taken without locks: how factors come out differs from run to run. ``staged`` says why item
    stripes go through the host's memory, None: they do not. Raises `AgreedError`, too, where the device's memory does
    not do.
    """

    def __init__(self, comm: Intracomm, ratings: Ratings, settings: Settings, clock: Clock, held: Ratings | None,
                 most_bytes: int | None, device: Device, sharers: int):
        self._device = device
        self._room = int(SHARE * device.free_bytes()) // sharers
        comm.Barrier()  # all have looked before anyone takes some
        self.staged = why_staged(comm, device) if comm.size > 1 else None
        self._there: DeviceCarousel | None = None
        super().__init__(comm, ratings, settings, clock, held, most_bytes)
        grid, strata = self._grid, self.strata
        own_places = [(u, strata.place(u)) for u in self.own]
        self._turns = [[(u, i) for u, place in own_places if (i := strata.item(place, stratum)) is not None]
                       for stratum in range(strata.length)]
        self._home = {i: Rows(self.form, int(grid.item_bounds[i + 1] - grid.item_bounds[i]))
                      for i in strata.home(comm.rank)}
        with clock.phase("read"), agreed(comm):
            self._users_there = Rows(self.form, self.users.count, device.empty(len(self.users.raw), np.uint8))
            self._ratings = DeviceBlocks(device, self._blocks, self._turns, ratings.weighted, grid.counts, self._room)
            self._put_held()
        self.resident = self._ratings.resident
        self._tables = [self._table(turn) for turn in self._turns]
        self._losses = device.zeros(rating_sgd.most_blocks(device), np.float64)
        self._stale = False
        self._build()

    @staticmethod
    def compile(settings: Settings, weighted: bool) -> None:
        """Do nothing: kernels are built when this is opened."""

    def _build(self) -> None:
        """Have the kernels built by running them on no ratings."""
        device, form, none = self._device, self.form, self._device.zeros((1, 12), np.int64)
        rating_sgd.sgd(device, none, 1, (1, 1), form.dtype, form.width, 0.0, 1.0, 0.0, 0.0, 0.0, self._losses)
        if self.held is not None:
            rating_sgd.predict(device, none, 1, form.dtype, form.width, 0.0, 1.0, self._predicted)
        device.synchronize()

    def _open_carousel(self) -> Carousel | None:
        with agreed(self.comm):
            self._there = self._open_there() if self.own else None
        return self._there

    def _open_there(self) -> DeviceCarousel:
        bounds, team = self._grid.item_bounds, self._team
        needed = self.form.bytes(self.users.count) + self.form.bytes(int(np.diff(bounds).max(initial=0))) * (
            DeviceCarousel.slots(self.strata, team.rank, team.size))
        self._room -= needed
        if self._room < 0:
            raise UserError(f"--device cuda: the factors of a rank take {needed >> 20:,} MiB of a GPU's memory, more "
                            "than its share of what is free; use more ranks and GPUs, or --factors float16")
        return DeviceCarousel(team, self.strata, bounds, self.form, self._device, self.staged is None)

    def _put_held(self) -> None:
        """Copy to the device what is held out: of each block one after the other, in the order of the strata."""
        device, held = self._device, self.held
        self._held_at: dict[tuple[int, int], tuple[int, int]] = {}
        if held is None:
            return
        found, start = [], 0
        for block in (block for turn in self._turns for block in turn):
            if (part := held.part(*block)) is not None:
                self._held_at[block] = start, len(part[0].users)
                start += len(part[0].users)
                found.append(part[0])
        kinds = {"users": np.int32, "items": np.int32, "ratings": np.float32, "weights": np.float32}
        self._held = [device.put(np.concatenate([np.empty(0, kind), *(getattr(part, name) for part in found)],
                                                dtype=kind)) for name, kind in kinds.items()]
        self._predicted = device.empty(start, np.float32)

    def _table(self, blocks: list[tuple[int, int]]) -> np.ndarray:
        """Return what the kernels are told of blocks, as far as it never changes."""
        table = np.zeros((len(blocks), 12), np.int64)
        bounds = self._grid.user_bounds
        for row, (u, i) in zip(table, blocks, strict=True):
            row[COUNT] = self._grid.counts[u, i]
            parts = self._users_there.part(int(bounds[u]) - self.first_user, int(bounds[u + 1]) - self.first_user)
            row[_USERS] = [0 if part is None or not part.size else address(part) for part in parts]
        return table

    def begin(self) -> None:
        """See `Sgd`."""
        super().begin()
        self._push()

    def items(self) -> list[tuple[int, Rows]]:
        """Return the host's rows of the item stripes that this rank has between passes."""
        return list(self._home.items())

    def parts(self) -> list[Part]:
        """See `Learner`."""
        self._fetch()
        return super().parts()

    def state(self) -> State:
        """Return what `restore` needs; between passes."""
        self._fetch()
        return super().state()

    def restore(self, kept: Kept) -> None:
        """See `Sgd`."""
        super().restore(kept)
        self._push()

    def _pairs(self) -> list[tuple[np.ndarray, Array]]:
        """Return the host's and the device's bytes of all rows that are here between passes."""
        if self._there is None:
            return []
        return [(self.users.raw, self._users_there.raw),
                *((rows.raw, self._there.stripe(i).raw) for i, rows in self._home.items())]

    def _push(self) -> None:
        for host, there in self._pairs():
            self._device.put(host, there)
        self._stale = False

    def _fetch(self) -> None:
        if self._stale:
            for host, there in self._pairs():
                self._device.get(there, host)
            self._stale = False

    def learn(self, epoch: int, step_size: float) -> float:
        """See `Sgd`; the error is summed in no fixed order of steps."""
        settings, grid, device = self.settings, self._grid, self._device
        starts = np.random.default_rng([settings.seed, epoch]).random(grid.shape)
        users, items = np.diff(grid.user_bounds), np.diff(grid.item_bounds)
        device.zero(self._losses)

        def work(stratum: int, blocks: list[tuple[int, int]]) -> None:
            table = self._tables[stratum].copy()
            table[:, RATINGS] = self._ratings.stratum(stratum)
            self._clock_read()
            self._place_items(table, blocks)
            table[:, FIRST] = [int(starts[block] * grid.counts[block]) for block in blocks]
            longest = int(table[:, COUNT].max())
            if longest:
                rows = (int(sum(users[u] for u, _ in blocks)), int(sum(items[i] for _, i in blocks)))
                rating_sgd.sgd(device, device.put(table), longest, rows, self.form.dtype, self.form.width, self.mean,
                               self.scale, step_size, settings.l2, settings.l2, self._losses)
            self._ratings.used()

        self._stale = True
        self._pass(work)
        loss = self.comm.allreduce(float(device.get(self._losses).sum()))
        self.clock.lap("communicate")
        return math.sqrt(loss / self.weight) * self.scale if self.weight else 0.0

    def errors(self) -> Errors:
        """See `Sgd`."""
        held, device, xp = self.held, self._device, self._device.xp
        assert held is not None
        if self.own:
            users, items, ratings, weights = self._held

            def work(stratum: int, blocks: list[tuple[int, int]]) -> None:
                chosen = [number for number, block in enumerate(blocks) if block in self._held_at]
                if not chosen:
                    return
                table = self._tables[stratum][chosen]
                self._place_items(table, [blocks[number] for number in chosen])
                for row, number in zip(table, chosen, strict=True):
                    row[FIRST], row[COUNT] = self._held_at[blocks[number]]
                    row[2:6] = address(users) + 4 * row[FIRST], address(items) + 4 * row[FIRST], 0, 0
                rating_sgd.predict(device, device.put(table), int(table[:, COUNT].max()), self.form.dtype,
                                   self.form.width, self.mean, self.scale, self._predicted)

            self._pass(work)
            off = ratings.astype(np.float64) - self._predicted
            weights = weights.astype(np.float64)
            held.count(self.own.start, [float(device.get(one)) for one in (
                xp.sum(weights), xp.sum(weights * off * off), xp.sum(weights * xp.abs(off)))])
            self.clock.lap("compute")
        return held.errors()

    def _place_items(self, table: np.ndarray, blocks: list[tuple[int, int]]) -> None:
        assert self._there is not None
        table[:, _ITEMS] = [self._there.addresses(i) for _, i in blocks]

    def _clock_read(self) -> None:
        if not self.resident:
            self.clock.lap("read")

    def _pass(self, work: Callable[[int, list[tuple[int, int]]], None]) -> None:
        """Let the item stripes go round once; have ``work`` queue what there is to do with the blocks of a stratum.

        The host is a stratum ahead of the device at most, so that messages leave in time.
        """
        carousel, clock, device = self._there, self.clock, self._device
        if carousel is None:
            return
        clock.start()
        carousel.start()
        before: Event = device.mark()
        for stratum, blocks in enumerate(self._turns):
            if not blocks:
                continue
            items = [i for _, i in blocks]
            carousel.attend(before, items)
            clock.lap("compute")
            for i in items:
                carousel.stripe(i)
            clock.lap("wait")
            work(stratum, blocks)
            if blocks[0][0] == self.own.start:
                carousel.leave(items[0])
            carousel.progress()
            before = device.mark()
            clock.lap("communicate")
        carousel.attend(before)
        clock.lap("compute")
        carousel.finish()
        clock.lap("wait")
