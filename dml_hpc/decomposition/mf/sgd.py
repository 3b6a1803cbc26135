"""Factors of ratings by stratified SGD: each rank keeps its users' factors, those of the items travel past."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.data.ratings.blocks import Block
from dml_hpc.data.ratings.opened import Ratings
from dml_hpc.decomposition.mf.blocks import Blocks, moments, summed
from dml_hpc.decomposition.mf.carousel import Carousel
from dml_hpc.decomposition.mf.held_out import Errors, HeldOut
from dml_hpc.decomposition.mf.learner import Part, Progress
from dml_hpc.decomposition.mf.node_carousel import compile_queues, open_carousel
from dml_hpc.decomposition.mf.rows import Format, Rows
from dml_hpc.decomposition.mf.strata import Strata
from dml_hpc.kernels.rating_sgd import lanes_of, predict, sgd
from dml_hpc.mpi import agreed
from dml_hpc.store.state import Kept, State

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

USERS, ITEMS = 1, 2
"""Streams of random numbers."""
DEVIATION = 0.1
"""Of random factors at the start, over the fourth root of k: their products then have this squared, whatever k."""
PIECE_RATINGS = 1 << 17
"""After so many, a few milliseconds, messages are looked after."""
POLL_S = 2e-4


@dataclass(frozen=True)
class Settings:
    """What is learnt: ``k`` factors stored as ``factors`` (float32, float16), ``biases``, penalty ``l2`` a rating.

    ``adaptive``: AdaGrad's steps. ``threads`` blocks are worked on at a time.
    """

    k: int
    l2: float
    biases: bool = True
    factors: str = "float32"
    adaptive: bool = False
    seed: int = 0
    threads: int = 1


class Sgd:
    """The factors of ``ratings``, on all ranks of ``comm``, and the passes that improve them; a `Learner`.

    Rank r has ``users``, the rows of its user stripes, and `items`. A rating is predicted as ``mean`` + ``scale``·(b_u
    + c_i + p_u·q_i): penalties are scaled so that they mean the same for ratings of any unit. ``held`` are ratings to
    measure on. ``apart`` says why ranks of a node do not share memory, None: they do, or there are no such ranks.
    Collective; close it by ``with``. Raises `AgreedError` where ratings cannot be read.
    """

    def __init__(self, comm: Intracomm, ratings: Ratings, settings: Settings, clock: Clock,
                 held: Ratings | None = None, most_bytes: int | None = None):
        grid = self._grid = ratings.grid
        self.comm, self.settings, self.clock = comm, settings, clock
        self.n_ratings = grid.ratings
        """Of all ranks."""
        self.is_held = held is not None
        self.strata = Strata(grid.counts, comm.size)
        self.own = self.strata.own(comm.rank)
        self.ranks_at_work = self.strata.active
        self.own_ratings = int(grid.counts[self.own.start:self.own.stop].sum())
        self.form = Format(settings.k, np.dtype(settings.factors), settings.biases, settings.adaptive)
        self._blocks = Blocks(ratings, most_bytes)
        self.apart: str | None = None
        with clock.phase("read"):
            with agreed(comm):
                for u in self.own:
                    for i in range(grid.shape[1]):
                        self._blocks.get(u, i)
            self.mean, self.scale, self.weight, self.most_weight = moments(comm, ratings, self._blocks, self.own)
            self.held = None if held is None else HeldOut(comm, held, grid, ratings.users, ratings.items, self.strata)
        bounds = grid.user_bounds
        self.first_user = int(bounds[self.own.start]) if self.own else grid.users
        self.users = Rows(self.form, int(bounds[self.own.stop]) - self.first_user if self.own else 0)
        self._of_stripe = {u: self.users.part(int(bounds[u]) - self.first_user, int(bounds[u + 1]) - self.first_user)
                           for u in self.own}
        self._team: Intracomm = comm.Split(0 if self.own else 1, comm.rank)  # type: ignore[assignment]
        self.carousel = self._open_carousel()
        threads = min(settings.threads, len(self.own))
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._shape = lanes_of(self.form.width)

    def __enter__(self) -> Sgd:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=error[0] is None, cancel_futures=True)
        if error[0] is None:
            self._team.Free()

    def _open_carousel(self) -> Carousel | None:
        """Collective: return it, None where this rank has no stripes."""
        found, self.apart = open_carousel(self.comm, self._team, self.strata, self._grid.item_bounds, self.form)
        return found

    @staticmethod
    def compile(settings: Settings, weighted: bool) -> None:
        """Have the kernels compiled, or read from their cache, by running them on no ratings."""
        form = Format(settings.k, np.dtype(settings.factors), settings.biases, settings.adaptive)
        numbers, values = np.empty(0, np.int32), np.empty(0, np.float32)
        rows, shape = Rows(form, 1), lanes_of(form.width)
        rows.draw(0, settings.seed, USERS, 1.0)
        rows.measure()
        p, b, squares = rows.part(0, 1)
        compile_queues()
        sgd(numbers, numbers, values, values if weighted else None, p, p, b, b, squares, squares, *shape,
            *map(np.float32, (0, 1, 0, 0, 0)), 0)
        predict(numbers, numbers, p, p, b, b, *shape, np.float32(0), np.float32(1), values)

    def begin(self) -> None:
        """Set all factors to random ones, the same for any number of ranks, and biases to 0."""
        deviation = DEVIATION / self.settings.k**0.25
        self.users.draw(self.first_user, self.settings.seed, USERS, deviation)
        for i, rows in self.items():
            rows.draw(int(self._grid.item_bounds[i]), self.settings.seed, ITEMS, deviation)

    def items(self) -> list[tuple[int, Rows]]:
        """Return the item stripes that this rank has between passes, in their order; one after the other."""
        return [] if self.carousel is None else [(i, self.carousel.stripe(i)) for i in self.carousel.home]

    @property
    def bytes_sent(self) -> int:
        """Bytes of factors that this rank has sent in messages; what ranks of a node hand over is none."""
        return 0 if self.carousel is None else self.carousel.bytes_sent

    def improve(self, epoch: int, step_size: float | None) -> Progress:
        """Collective: as `learn`, see `Learner`."""
        assert step_size is not None
        return Progress(self.learn(epoch, step_size))

    def parts(self) -> list[Part]:
        """Return this rank's users and items."""
        return [Part(side, first, rows.factors[:, :self.settings.k], rows.biases)
                for side, first, rows in (("user", self.first_user, self.users), *(
                    ("item", int(self._grid.item_bounds[i]), rows) for i, rows in self.items()))]

    def learn(self, epoch: int, step_size: float) -> float:
        """Collective: take a step for each rating; return the root of the mean squared error met on the way.

        The deviations are those of ratings, not scaled.
        """
        settings, shape = self.settings, self._grid.shape
        constants = (*self._shape, *map(np.float32, (self.mean, self.scale, step_size, settings.l2, settings.l2)))
        starts = np.random.default_rng([settings.seed, epoch]).random(shape).tolist()  # a block's first, by chance
        sums = [0.0] * shape[0]
        between = (self.carousel.progress if self.carousel is not None and self.carousel.messages
                   and self._pool is None else _nothing)

        def work(u: int, i: int, rows: Rows, block: Block) -> float:
            p, b, p_squares = self._of_stripe[u]
            q, c, q_squares = rows.flat, rows.biases, rows.squares
            count = len(block.ratings)
            first = int(starts[u][i] * count)
            if count <= PIECE_RATINGS:
                return sgd(*block, p, q, b, c, p_squares, q_squares, *constants, first)
            total = 0.0
            for start, stop in ((first, count), (0, first)):
                for low in range(start, stop, PIECE_RATINGS):
                    part = slice(low, min(low + PIECE_RATINGS, stop))
                    cut = [None if one is None else one[part] for one in block]
                    total += sgd(*cut, p, q, b, c, p_squares,
                                 q_squares, *constants, 0)
                    between()
            return total

        def met(u: int, loss: float) -> None:
            sums[u] += loss

        for rows in (self.users, *(rows for _, rows in self.items())):
            rows.measure()
        self._turn(work, met, self._pool)
        loss = float(summed(self.comm, np.array(sums)))
        self.clock.lap("communicate")
        return math.sqrt(loss / self.weight) * self.scale if self.weight else 0.0

    def errors(self) -> Errors:
        """Collective: return how far predictions are off for the ratings held out."""
        held = self.held
        assert held is not None

        def work(u: int, i: int, rows: Rows, _: Block) -> float:
            if (found := held.part(u, i)) is not None:
                part, out = found
                p, b = self._of_stripe[u][:2]
                predict(part.users, part.items, p, rows.flat, b, rows.biases, *self._shape, np.float32(self.mean),
                        np.float32(self.scale), out)
                held.measure(u, part, out)
            return 0.0

        self._turn(work, _nothing)
        return held.errors()

    def _turn(self, work: Callable[[int, int, Rows, Block], float], met: Callable[[int, float], None],
              pool: ThreadPoolExecutor | None = None) -> None:
        """Let the item stripes go round once, and do ``work`` on every block of this rank; ``met`` takes the results.

        With a ``pool`` its threads work on the blocks of a stratum at the same time.
        """
        if self.carousel is None:
            return
        carousel, strata, clock = self.carousel, self.strata, self.clock
        clock.start()
        carousel.start()
        if pool is not None:
            self._turn_of_threads(work, met, pool, carousel)
        else:
            for u, stratum in (strata.in_turn if carousel.messages else strata.in_sweeps)(self.comm.rank):
                i = strata.item(strata.place(u), stratum)
                if i is None:
                    continue
                rows = carousel.stripe(i)
                clock.lap("wait")
                block = self._blocks.get(u, i)
                clock.lap("read")
                met(u, work(u, i, rows, block))
                clock.lap("compute")
                if u == self.own.start:
                    carousel.leave(i)
                if u == self.own.start or carousel.messages:
                    carousel.progress()
                    clock.lap("communicate")
        carousel.finish()
        clock.lap("wait")

    def _turn_of_threads(self, work: Callable[[int, int, Rows, Block], float], met: Callable[[int, float], None],
                         pool: ThreadPoolExecutor, carousel: Carousel) -> None:
        strata, clock = self.strata, self.clock
        for stratum in range(strata.length):
            running: list[tuple[int, int, Future]] = []
            for u in self.own:
                i = strata.item(strata.place(u), stratum)
                if i is None:
                    continue
                rows = carousel.stripe(i)
                clock.lap("wait")
                block = self._blocks.get(u, i)
                clock.lap("read")
                running.append((u, i, pool.submit(work, u, i, rows, block)))
            for u, i, future in running:
                while carousel.messages and not wait([future], POLL_S).done:
                    carousel.progress()
                met(u, future.result())
                if u == self.own.start:
                    carousel.leave(i)
                    carousel.progress()
            if running:
                clock.lap("compute")

    def state(self) -> State:
        """Return what `restore` needs; between passes."""
        state = State({"mean": self.mean, "scale": self.scale})
        grid = self._grid
        for name, first, total, rows in [("users", self.first_user, grid.users, self.users), *(
                ("items", int(grid.item_bounds[i]), grid.items, rows) for i, rows in self.items())]:
            for kind, array in _arrays(rows):
                width = self.form.elements(kind)
                state.put(f"{name}/{kind}", array.reshape(-1), first * width, total * self.form.elements(kind))
        return state

    def restore(self, kept: Kept) -> None:
        """Go on with the factors of another run; each rank reads its own."""
        for name, first, rows in [("users", self.first_user, self.users),
                                  *(("items", int(self._grid.item_bounds[i]), rows) for i, rows in self.items())]:
            rows.raw[:] = 0
            for kind, array in _arrays(rows):
                kept.read(f"{name}/{kind}", array.reshape(-1), first * self.form.elements(kind))


def _arrays(rows: Rows) -> list[tuple[str, np.ndarray]]:
    return [(name, array) for name, array in (("factors", rows.factors), ("biases", rows.biases),
                                              ("squares", rows.squares)) if array is not None]


def _nothing(*_: object) -> None:
    pass
