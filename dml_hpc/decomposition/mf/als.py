"""Factors of ratings by alternating least squares: each row is solved for, given those of the other side."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.data.ratings.opened import Ratings
from dml_hpc.decomposition.mf.als_settings import CG_STEPS, Settings, compile_kernels
from dml_hpc.decomposition.mf.blocks import Blocks, common_units, moments, summed_exactly, summed_units
from dml_hpc.decomposition.mf.held_out import Errors, HeldRows
from dml_hpc.decomposition.mf.learner import Part, Progress
from dml_hpc.decomposition.mf.lists import Lists, Side
from dml_hpc.decomposition.mf.penalties import Learnt, fixed_penalties, weights_of
from dml_hpc.decomposition.mf.rows import aligned
from dml_hpc.decomposition.mf.strata import Strata
from dml_hpc.decomposition.mf.table import Table
from dml_hpc.kernels.gram import add_gram
from dml_hpc.kernels.normal_equations import padded, room, solve, solve_cg
from dml_hpc.kernels.rating_lists import mark, renumber
from dml_hpc.kernels.rating_sgd import lanes_of, predict
from dml_hpc.kernels.row_squares import add_squares, weigh_rows
from dml_hpc.mpi import agreed
from dml_hpc.store.state import Kept, State
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

ITEMS = 2
"""A stream of random numbers."""
PIECE_COST = 1 << 16
"""Rows that cost as much as so many ratings are solved for at a time, by one thread, some milliseconds."""


class _Half(NamedTuple):
    """One side of a half-step: its rows' ratings, where they are and where those are that they are made of.

    ``pieces`` are the rows that are solved for at a time, ``losses`` (n, 2) what `solve` says of each row.
    """

    lists: Lists
    own: Table
    others: Table
    pieces: list[tuple[int, int]]
    losses: np.ndarray


class Als:
    """The factors of ``ratings``, on all ranks of ``comm``, and the half-steps that improve them; a `Learner`.

    Each rank has some users and some items, about equally costly, with their ratings, and is sent those rows of others
    that these ratings are of. ``held`` are ratings to measure on, ``most_bytes`` may be taken while ratings are read.
    Close it by ``with``. Raises `AgreedError` where ratings cannot be read, or are negative and implicit.
    """

    def __init__(self, comm: Intracomm, ratings: Ratings, settings: Settings, clock: Clock,
                 held: Ratings | None = None, most_bytes: int | None = None):
        self.comm, self.settings, self.clock = comm, settings, clock
        self.n_ratings = ratings.grid.ratings
        self.is_held = held is not None
        self._width = padded(settings.k)
        self._implicit = settings.alpha is not None
        self._biased = settings.biases and not self._implicit
        with clock.phase("read"):
            blocks = Blocks(ratings, most_bytes)
            stripes = Strata(ratings.grid.counts, comm.size).own(comm.rank)
            with agreed(comm):
                sides = [Side(ratings.grid, blocks, ratings.weighted, by_item, settings.k) for by_item in (False, True)]
                for u in stripes:
                    for i in range(ratings.grid.shape[1]):
                        blocks.get(u, i)
            self.mean, self.scale, self.weight, self.most_weight = moments(comm, ratings, blocks, stripes)
            if self._implicit:
                self.mean, self.scale = 0.0, 1.0
            bounds = [side.share(comm) for side in sides]
            with agreed(comm):
                lists = [side.lists(*map(int, bound[comm.rank:comm.rank + 2]))
                         for side, bound in zip(sides, bounds, strict=True)]
            del blocks
            self._held = None if held is None else HeldRows(comm, held, ratings.users, ratings.items, bounds[0])
        tables = []
        for number, (bound, other) in enumerate(zip(bounds, lists[::-1], strict=True)):
            needed = np.zeros(int(bound[-1]), np.uint8)
            mark(other.others, needed)
            if number and self._held is not None:
                mark(self._held.known_items, needed)
            table = Table(comm, bound, np.flatnonzero(needed), settings.k, self._width, self._biased, self._memory)
            places = table.places()
            renumber(other.others, places)
            if number and self._held is not None:
                self._held.renumber(places)
            tables.append(table)
        self.users, self.items = tables
        self._chunks = [side.chunk for side in sides]
        self._halves = [_Half(own, table, tables[1 - number], _pieces(own.starts, settings.k),
                              np.zeros((table.last - table.first, 2)))
                        for number, (own, table) in enumerate(zip(lists, tables, strict=True))]
        self.own_ratings = len(lists[0].others)
        self.ranks_at_work = sum(comm.allgather(bool(self.users.last > self.users.first
                                                     or self.items.last > self.items.first)))
        self._pool = ThreadPoolExecutor(settings.threads) if settings.threads > 1 else None
        self._rooms = [room(self._width) for _ in range(settings.threads)]
        self._sums = [np.zeros(self._width**2, np.int64) for _ in range(settings.threads if self._implicit else 0)]
        self._gram = np.zeros(self._width**2, np.float32) if self._implicit else None
        self._fixed = None if settings.l2 is None else fixed_penalties(self._width, settings.l2, self._implicit)
        self._learnt = None
        if self._fixed is None:
            self._row_weights: list[Any] = [_row_weights(own) for own in lists]
            users, items = (weights_of(comm, own) for own in self._row_weights)
            self._learnt = Learnt(settings.k, self._biased, (users, items), self.weight,
                                  self.weight / max(self.n_ratings, 1))

    def _memory(self, size: int) -> np.ndarray:
        """Return memory (size,) uint8 for rows, which are sent from and received in it."""
        return aligned(size)

    def __enter__(self) -> Als:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=error[0] is None, cancel_futures=True)

    @property
    def bytes_sent(self) -> int:
        """Bytes of factors that this rank has sent."""
        return self.users.bytes_sent + self.items.bytes_sent

    @property
    def penalties(self) -> dict[str, list[list[float]]] | None:
        """Those that were learnt: see `Learnt.told`; None: they were given."""
        return None if self._learnt is None else self._learnt.told()

    @property
    def noise(self) -> float | None:
        """The deviation of what is noise in ratings, as far as this was learnt."""
        return None if self._learnt is None else math.sqrt(self._learnt.noise) * self.scale

    @staticmethod
    def compile(settings: Settings, weighted: bool) -> None:
        """Have the kernels compiled, or read from their cache, by running them on no ratings."""
        compile_kernels(settings, weighted)

    def begin(self) -> None:
        """Set the items' factors to random ones, the same for any number of ranks; users have none yet."""
        self.items.draw(self.settings.seed, ITEMS, 1 / math.sqrt(self.settings.k))
        self.items.gather()

    def improve(self, epoch: int, step_size: float | None = None) -> Progress:
        """Collective: solve for all users, then for all items.

        The RMSE and the objective returned are those of the factors that come of it; there is no objective where
        penalties are learnt: they change.
        """
        clock = self.clock
        clock.start()
        users, items = self._half_steps()
        self._solve(users, 0)
        self._gather(self.users)
        self._solve(items, 1)
        fit, penalties = self._losses(users, items).tolist()
        if self._learnt is not None:
            self._learnt.fitted(fit)
        self._gather(self.items)
        clock.settle(self.comm)
        if self._implicit:
            return Progress(None, fit + penalties)
        rmse = math.sqrt(fit / self.weight) * self.scale if self.weight else 0.0
        return Progress(rmse, (fit + penalties) / 2 if self._learnt is None else None)

    def _half_steps(self) -> tuple[Any, Any]:
        """Return the users' and the items' half."""
        return self._halves[0], self._halves[1]

    def _losses(self, users: Any, items: Any) -> np.ndarray:
        """Collective: return the sum of squares after both half-steps, and the penalties."""
        users.losses[:, 0] = 0  # of old items; what the new ones make of it is told with these
        return summed_exactly(self.comm, users.losses, items.losses)

    def errors(self) -> Errors:
        """Collective: return how far predictions are off for the ratings held out."""
        held = self._held
        assert held is not None
        predict(held.users, held.items, self.users.own, self.items.factors, self.users.own_biases, self.items.biases,
                *lanes_of(self._width), np.float32(self.mean), np.float32(self.scale), held.predicted)
        self.clock.lap("compute")
        found = held.errors()
        self.clock.lap("communicate" if self.comm.size > 1 else "compute")
        return found

    def _solve(self, half: _Half, side: int) -> None:
        """Collective: solve for the rows of users (0), or items, and learn of them what they tell of penalties."""
        settings = self.settings
        if self._implicit:
            self._multiply(half.others, self._chunks[1 - side])
        lists = half.lists
        fixed = (*lists, half.others.factors, half.others.biases, self._gram, half.own.own, half.own.own_biases,
                 half.losses, self._width, self.mean, 1 / self.scale, self._penalties(side), settings.alpha or 0.0)

        def work(piece: tuple[int, int], thread: int) -> None:
            if settings.solver == "cg":
                solve_cg(*fixed, CG_STEPS, *piece, self._rooms[thread])
            else:
                solve(*fixed, *piece, self._rooms[thread])

        self._divide(half.pieces, work)
        self._learn(half, side)

    def _penalties(self, side: int) -> np.ndarray:
        """Return those of users (0), or items, as the kernels take them."""
        if self._fixed is not None:
            return self._fixed
        assert self._learnt is not None
        return self._learnt.penalties(side, self._width)

    def _learn(self, half: Any, side: int) -> None:
        """Collective: learn what penalties are, if so, from rows just solved for."""
        if self._learnt is not None:
            weights = self._row_weights[side]
            largest = self._largest(half.own)
            self.clock.lap("compute")
            most = largest * largest * np.array([1.0, self._learnt.heaviest(side)])
            units = common_units(self.comm, most, len(weights))
            self.clock.lap("communicate")
            own = self._squares(half, weights, *np.where(np.isfinite(units), 1 / units, 1).tolist())
            self.clock.lap("compute")
            total = summed_units(self.comm, own).reshape(2, -1)
            self.clock.meet()
            self._learnt.solved(side, units[:, None] * total)
        self.clock.lap("compute")

    def _squares(self, half: Any, weights: Any, per_unit: float, weighted_per_unit: float) -> np.ndarray:
        """Return what this rank's rows add to the sums of `add_squares`."""
        width, table, k = self._width, half.own, self.settings.k
        biases = np.empty(0, np.float32) if table.own_biases is None else table.own_biases
        sums = np.zeros((self.settings.threads, 2 * k + 2), np.int64)

        def work(piece: tuple[int, int], thread: int) -> None:
            first, last = piece
            add_squares(table.own[first * width:last * width], biases[first:last], weights[first:last], k, width,
                        per_unit, weighted_per_unit, sums[thread])

        self._divide(half.pieces, work)
        return sums.sum(axis=0)

    def _multiply(self, table: Table, chunk: int) -> None:
        """Collective: set `_gram` to QᵀQ of all rows of a side, the same bits for any number of ranks."""
        assert self._gram is not None
        width, own = self._width, self._largest(table)
        self.clock.lap("compute")
        most = max(self.comm.allgather(own))
        self.clock.lap("communicate")
        bound = most * most * int(table.bounds[-1])
        if not math.isfinite(bound):
            self._gram[:] = np.nan
            return
        per_unit = 2.0 ** (61 - math.frexp(bound)[1]) if bound else 1.0
        sums = self._products(table, chunk, per_unit)
        self.clock.lap("compute")
        total = np.empty_like(sums)
        self.comm.Allreduce(sums, total)
        self.clock.meet()
        upper = np.triu((total / per_unit).reshape(width, width))
        self._gram[:] = (upper + np.triu(upper, 1).T).reshape(-1)

    def _largest(self, table: Table) -> float:
        """Return the largest size of an element, or bias, of this rank's rows."""
        return max(max(float(part.max(initial=0)), -float(part.min(initial=0)))
                   for part in (table.own, table.own_biases) if part is not None)

    def _products(self, table: Table, chunk: int, per_unit: float) -> np.ndarray:
        """Return what this rank's rows add to QᵀQ·per_unit: see `add_gram`."""
        width, rows = self._width, table.last - table.first
        step = chunk * max(1, PIECE_COST // (width * chunk))
        for sums in self._sums:
            sums[:] = 0

        def work(piece: tuple[int, int], thread: int) -> None:
            first, last = piece
            add_gram(table.own[first * width:last * width], width, chunk, per_unit, self._rooms[thread][0][:width**2],
                     self._sums[thread])

        self._divide([(first, min(first + step, rows)) for first in range(0, rows, step)], work)
        for sums in self._sums[1:]:
            self._sums[0] += sums
        return self._sums[0]

    def _divide(self, pieces: list[tuple[int, int]], work: Callable[[tuple[int, int], int], None]) -> None:
        """Do ``work`` for all ``pieces``, a thread one after the other."""
        left = iter(pieces)

        def some(thread: int) -> None:
            for piece in left:  # next() of a list's iterator is atomic
                work(piece, thread)
                progressed()

        if self._pool is None:
            some(0)
            return
        for running in [self._pool.submit(some, thread) for thread in range(self.settings.threads)]:
            running.result()

    def _gather(self, table: Table) -> None:
        if self.comm.size == 1:
            self.clock.lap("compute")
            return
        table.gather()
        self.clock.meet()

    def parts(self) -> list[Part]:
        """Return this rank's users and items."""
        return [Part(side, table.first, table.own.reshape(-1, self._width)[:, :self.settings.k], table.own_biases)
                for side, table in (("user", self.users), ("item", self.items))]

    def state(self) -> State:
        """Return what `restore` needs; between epochs."""
        state = State({"mean": self.mean, "scale": self.scale} | (
            {} if self._learnt is None else {"learnt": self._learnt.state()}))
        for name, table in (("users", self.users), ("items", self.items)):
            total = int(table.bounds[-1])
            state.put(f"{name}/factors", table.own, table.first * self._width, total * self._width)
            if table.own_biases is not None:
                state.put(f"{name}/biases", table.own_biases, table.first, total)
        return state

    def restore(self, kept: Kept) -> None:
        """Collective: go on with the factors of another run; each rank reads its own."""
        for name, table in (("users", self.users), ("items", self.items)):
            kept.read(f"{name}/factors", table.own, table.first * self._width)
            if table.own_biases is not None:
                kept.read(f"{name}/biases", table.own_biases, table.first)
        if self._learnt is not None:
            self._learnt.restore(kept.values["learnt"])
        self.items.gather()


def _row_weights(lists: Lists) -> np.ndarray:
    """Return what the ratings of each row weigh together (n,) float32."""
    found = np.empty(len(lists.starts) - 1, np.float32)
    weigh_rows(lists.starts, np.empty(0, np.float32) if lists.weights is None else lists.weights, found)
    return found


def _pieces(starts: np.ndarray, row_cost: int) -> list[tuple[int, int]]:
    """Return ranges of rows with about `PIECE_COST`, or of one row that costs more."""
    rows = len(starts) - 1
    costs = starts + row_cost * np.arange(rows + 1)
    bounds = [0]
    while bounds[-1] < rows:
        after = int(np.searchsorted(costs, costs[bounds[-1]] + PIECE_COST, side="right")) - 1
        bounds.append(min(max(after, bounds[-1] + 1), rows))
    return list(pairwise(bounds))
