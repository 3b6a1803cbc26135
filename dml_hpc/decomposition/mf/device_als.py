"""Alternating least squares on GPUs: ratings and factors stay there, rows of other ranks come through the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.data.ratings.opened import Ratings
from dml_hpc.decomposition.mf.als import Als, Settings
from dml_hpc.decomposition.mf.blocks import common_units, summed_units
from dml_hpc.decomposition.mf.held_out import Errors
from dml_hpc.decomposition.mf.learner import Part
from dml_hpc.decomposition.mf.lists import Lists
from dml_hpc.decomposition.mf.table import Table
from dml_hpc.device import Array, Device
from dml_hpc.errors import UserError
from dml_hpc.kernels.cuda import normal_equations, rating_sgd
from dml_hpc.mpi import agreed
from dml_hpc.store.state import Kept, State
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

SQUARED_ROWS = 1 << 16
"""Rows whose squares are summed at a time."""
SHARE = 0.8
"""Of a GPU's free memory, for factors and ratings: the rest is for sums of long rows, and for others."""


class _DeviceTable:
    """A `Table`'s rows on a device; the host's are where they are sent from, and received."""

    def __init__(self, device: Device, table: Table, width: int):
        self.host, self._device, self.bounds = table, device, table.bounds
        self._arrays = [(table.factors, table.own, device.empty(len(table.factors), np.float32))]
        if table.biases is not None and table.own_biases is not None:
            self._arrays.append((table.biases, table.own_biases, device.empty(len(table.biases), np.float32)))
        before = (table.own.ctypes.data - table.factors.ctypes.data) // (4 * width) if len(table.own) else 0
        count = table.last - table.first
        self.factors, self.biases = self._arrays[0][2], self._arrays[1][2] if len(self._arrays) > 1 else None
        self.own = self.factors[before * width:(before + count) * width]
        self.own_biases = None if self.biases is None else self.biases[before:before + count]
        self._own = [(before * width, (before + count) * width), (before, before + count)]

    def up(self) -> None:
        """Copy all rows to the device."""
        for host, _, there in self._arrays:
            self._copy_up(host, there)

    def down(self) -> None:
        """Copy this rank's own rows to the host, and wait."""
        for (_, own, there), (first, last) in zip(self._arrays, self._own, strict=False):
            if last > first:
                self._device.download(own, there[first:last]).wait()

    def gather(self) -> None:
        """Collective: bring the rows of others."""
        self.down()
        self.host.gather()
        for (host, _, there), (first, last) in zip(self._arrays, self._own, strict=False):
            self._copy_up(host[:first], there[:first])
            self._copy_up(host[last:], there[last:])

    def _copy_up(self, host: np.ndarray, there: Array) -> None:
        if len(host):
            copied = self._device.upload(there, host)
            self._device.follow(copied)
            copied.wait()  # what comes next may be written to the same memory


class _Half(NamedTuple):
    """One side of a half-step, on the device; ``groups`` are its very long rows, ``losses`` (n, 2) what rows add."""

    lists: list[Array | None]
    own: _DeviceTable
    others: _DeviceTable
    groups: list[normal_equations.Group]
    losses: Array


class DeviceAls(Als):
    """`Als` with rows and ratings on ``device``, which ``sharers`` ranks use; the solver is "cholesky".

    The same bits for any number of ranks, on a kind of GPU. Raises `AgreedError`, too, where the device's memory does
    not do.
    """

    staged = "rows are packed on the host"
    resident = True

    def __init__(self, comm: Intracomm, ratings: Ratings, settings: Settings, clock: Clock, held: Ratings | None,
                 most_bytes: int | None, device: Device, sharers: int):
        self._device = device
        room = int(SHARE * device.free_bytes()) // sharers
        comm.Barrier()  # all have looked before anyone takes some
        super().__init__(comm, ratings, settings, clock, held, most_bytes)
        with clock.phase("read"), agreed(comm):
            needed = sum(part.nbytes for half in self._halves for part in half.lists if part is not None) + sum(
                4 * len(table.factors) for table in (self.users, self.items))
            if needed > room:
                raise UserError(f"--device cuda: ratings and factors of a rank take {needed >> 20:,} MiB of a GPU's "
                                f"memory, and {room >> 20:,} are free for them; use more ranks and GPUs")
            tables = [_DeviceTable(device, table, self._width) for table in (self.users, self.items)]
            self._there = [self._put(half.lists, tables[number], tables[1 - number])
                           for number, half in enumerate(self._halves)]
            self._halves = []  # the host's copies of the ratings
            if self._learnt is not None:
                self._row_weights = [device.put(one) for one in self._row_weights]
            if (held_rows := self._held) is not None:
                self._held_there = [device.put(one) for one in (held_rows.users, held_rows.items, held_rows.given,
                                                                held_rows.weights)]
            self._build()

    @staticmethod
    def compile(settings: Settings, weighted: bool) -> None:
        """Do nothing: kernels are built when this is opened."""

    def _build(self) -> None:
        """Have the kernels built by running them on a row without ratings."""
        device, width = self._device, self._width
        x, losses = device.empty(width, np.float32), device.empty((1, 2), np.float64)
        normal_equations.solve(device, device.zeros(2, np.int64), x, x, None, x, None, None, x, None, losses, width,
                               0.0, 1.0, device.zeros(2 * (width + 1), np.float32), 0.0, [])
        if self._held is not None:
            rating_sgd.predict(device, device.zeros((1, 12), np.int64), 1, np.dtype(np.float32), width, 0.0, 1.0, x)
        device.synchronize()

    def _memory(self, size: int) -> np.ndarray:
        return self._device.pinned(size, np.uint8)

    def _put(self, lists: Lists, own: _DeviceTable, others: _DeviceTable) -> _Half:
        groups = normal_equations.long_groups(self._device, lists.starts, self._width, self._biased)
        return _Half([None if one is None else self._device.put(one) for one in lists], own, others, groups,
                     self._device.zeros((len(lists.starts) - 1, 2), np.float64))

    def begin(self) -> None:
        """See `Als`."""
        super().begin()
        self._up()

    def restore(self, kept: Kept) -> None:
        """See `Als`."""
        super().restore(kept)
        self._up()

    def _up(self) -> None:
        for half in self._there:
            half.own.up()

    def parts(self) -> list[Part]:
        """See `Learner`."""
        self._down()
        return super().parts()

    def state(self) -> State:
        """Return what `restore` needs; between epochs."""
        self._down()
        return super().state()

    def _down(self) -> None:
        for half in self._there:
            half.own.down()

    def _half_steps(self) -> tuple[Any, Any]:
        return self._there[0], self._there[1]

    def _solve(self, half: Any, side: int) -> None:
        settings, device = self.settings, self._device
        gram = None
        if self._implicit:
            self._multiply(half.others, self._chunks[1 - side])
            assert self._gram is not None
            gram = device.put(self._gram)
        normal_equations.solve(device, *half.lists, half.others.factors, half.others.biases, gram, half.own.own,
                               half.own.own_biases, half.losses, self._width, self.mean, 1 / self.scale,
                               device.put(self._penalties(side)), settings.alpha or 0.0, half.groups)
        device.synchronize()
        progressed()
        self._learn(half, side)

    def _squares(self, half: Any, weights: Any, per_unit: float, weighted_per_unit: float) -> np.ndarray:
        xp, k, rows = self._device.xp, self.settings.k, half.own.own.reshape(-1, self._width)
        units, total = np.array([per_unit, weighted_per_unit]), np.zeros((2, k + 1), np.int64)
        for first in range(0, len(weights), SQUARED_ROWS):
            part = slice(first, first + SQUARED_ROWS)
            heavy = weights[part].astype(np.float64)
            columns = [(0, rows[part, :k])] + ([] if half.own.own_biases is None else [
                (k, half.own.own_biases[part, None])])
            for place, values in columns:
                squares = xp.where(heavy[:, None] > 0, values.astype(np.float64)**2, 0)
                for number, (unit, factors) in enumerate(zip(units.tolist(), (squares, heavy[:, None] * squares),
                                                             strict=True)):
                    sums = xp.sum(xp.rint(factors * unit).astype(np.int64), axis=0)
                    total[number, place:place + values.shape[1]] += self._device.get(sums)
        return total.reshape(-1)

    def _gather(self, table: Table) -> None:
        if self.comm.size > 1:
            next(half.own for half in self._there if half.own.host is table).gather()
        self.clock.meet()

    def _largest(self, table: Any) -> float:
        xp = self._device.xp
        return max((float(self._device.get(xp.max(xp.abs(part)))) for part in (table.own, table.own_biases)
                    if part is not None and part.size), default=0.0)

    def _products(self, table: Any, chunk: int, per_unit: float) -> np.ndarray:
        return normal_equations.add_gram(self._device, table.own, self._width, chunk, per_unit)

    def _losses(self, users: Any, items: Any) -> np.ndarray:
        return self._summed_exactly([[items.losses[:, 0]], [users.losses[:, 1], items.losses[:, 1]]])

    def _summed_exactly(self, columns: list[list[Array]]) -> np.ndarray:
        """Collective: return the sums of all ranks' numbers, each of those of several arrays: `summed_exactly`."""
        xp, get = self._device.xp, self._device.get
        most = [max((float(get(xp.max(xp.abs(part)))) for part in column if part.size), default=0.0)
                for column in columns]
        count = max(sum(part.size for part in column) for column in columns)
        units = common_units(self.comm, np.array(most), count)
        own = np.array([0 if np.isnan(unit) else sum(int(get(xp.sum(xp.rint(part / float(unit)).astype(np.int64))))
                                                     for part in column if part.size)
                        for unit, column in zip(units.tolist(), columns, strict=True)], np.int64)
        return units * summed_units(self.comm, own)

    def errors(self) -> Errors:
        """See `Als`."""
        held, device, xp = self._held, self._device, self._device.xp
        assert held is not None
        users, items, given, weights = self._held_there
        predicted = device.empty(users.size, np.float32)
        if users.size:
            own, others = self._there[0].own, self._there[1].own
            table = np.array([rating_sgd.entry(users, items, None, None, rating_sgd.Sides(
                own.own, others.factors, own.own_biases, others.biases))])
            rating_sgd.predict(device, device.put(table), users.size, np.dtype(np.float32), self._width, self.mean,
                               self.scale, predicted)
        off = given - predicted
        sums = self._summed_exactly([[weights], [weights * off * off], [weights * xp.abs(off)]])
        self.clock.lap("compute")
        return held.told(sums)
