"""From ratings to a file of factors: the run of ``mf`` that takes the time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.comm.clock import Clock
from dml_hpc.commands.keeping import Keeping, about_run
from dml_hpc.commands.mf_inputs import Inputs
from dml_hpc.commands.mf_options import Wanted
from dml_hpc.console import Console
from dml_hpc.data.ratings.opened import StoredRatings
from dml_hpc.decomposition.mf.als import Als
from dml_hpc.decomposition.mf.course import Limits, Outcome, learn
from dml_hpc.decomposition.mf.learner import Learner, Part
from dml_hpc.decomposition.mf.sgd import Sgd
from dml_hpc.device import Device
from dml_hpc.errors import UserError
from dml_hpc.kernels import start_compiler
from dml_hpc.mpi import agreed, first_on_node
from dml_hpc.store.rating_factors import Piece, write_rating_factors
from dml_hpc.store.state import Kept
from dml_hpc.usage import since, usage

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


@dataclass(frozen=True)
class Learnt:
    """What came of a run: ``outcome``, of whose epochs ``begun`` were done by an earlier run (``resumed``).

    ``digest`` is that of the factors written. This rank's own: ``opening_s`` seconds until learning began, of reading
    ratings and dealing them to the ranks; ``work_s`` seconds of learning, of which the clock tells; what was
    ``used`` meanwhile (see `dml_hpc.usage`), ``own_ratings``, ``bytes_sent``, and of GPUs ``resident``: whether its
    ratings lay on it (None: there is none), ``staged``: why factors went through host memory (None: they did not).
    ``noise`` is the deviation of the noise, where it was learnt.
    """

    outcome: Outcome
    begun: int
    resumed: bool
    digest: str
    opening_s: float
    work_s: float
    used: dict[str, float | None]
    own_ratings: int
    bytes_sent: int
    ranks_at_work: int
    resident: bool | None
    staged: str | None
    checkpoints: int
    checkpoints_failed: int
    noise: float | None


def learn_factors(comm: Intracomm, console: Console, inputs: Inputs, want: Wanted, limits: Limits, keeping: Keeping,
                  gpu: tuple[Device | None, int], clock: Clock, output: Path) -> Learnt:
    """Collective: learn what ``want`` says from ``inputs`` and write it to ``output``; ``gpu`` is from `open_gpu`.

    Begins where ``keeping`` says. Raises `AgreedError` where that is not this run, or is past its end, and where
    learning leads nowhere; then nothing is written.
    """
    ratings = inputs.ratings
    about = about_run(comm, "mf", ratings.dataset, want.described() | (
        {"epochs": want.epochs} if want.schedule == "cosine" else {}))
    kept = keeping.kept(comm, console, about)
    begun = 0 if kept is None else kept.part("loop").values["step"]
    with agreed(comm):
        _check_limits(kept, begun, want.epochs)
    kind, besides = _kind(want.algorithm, *gpu)
    start_compiler()
    with first_on_node(comm):
        kind.compile(want.settings, ratings.weighted)
    opened = time.perf_counter()
    with keeping.saving(comm, console, about, kept) as saving, kind(
            comm, ratings, want.settings, clock, inputs.held, inputs.most_bytes, **besides) as found:
        learner: Learner = found
        with agreed(comm):
            _check_scale(learner.scale, want.factors)
        _introduce(console, ratings, learner, comm.allgather(learner.own_ratings), want.algorithm)
        staged = getattr(learner, "staged", None) if comm.size > 1 else None
        if staged is not None:
            console.say(f"factors  go from GPU to GPU through pinned host memory: {staged}")
        if (apart := getattr(learner, "apart", None)) is not None:
            console.say(f"factors  go between ranks of a node as messages, more slowly: {apart}")
        bar = console.bar(want.epochs or 0, "factorising", begun)
        comm.Barrier()  # so that time begins at once everywhere
        began, taken = time.perf_counter(), usage()
        clock.forget()
        outcome = learn(learner, want.steps, limits, saving, lambda so_far: bar.advance(1, _error(so_far)))
        work_s, used = time.perf_counter() - began, since(taken)
        bar.close(_error(outcome))
        penalties, noise = (getattr(learner, name, None) for name in ("penalties", "noise"))
        digest = write_rating_factors(
            comm, output, _pieces(learner.parts(), math.sqrt(learner.scale)), ratings.users, ratings.items,
            learner.mean, {**want.described(), "epochs": outcome.epochs, "lowest": ratings.grid.lowest,
                           "highest": ratings.grid.highest, "ratings": ratings.grid.ratings, "scale": learner.scale,
                           **({} if penalties is None else {"penalties": penalties})})
        own_ratings, bytes_sent, at_work = learner.own_ratings, learner.bytes_sent, learner.ranks_at_work
        resident = getattr(learner, "resident", None)
    return Learnt(outcome, begun, kept is not None, digest, began - opened, work_s, used, own_ratings, bytes_sent,
                  at_work, resident, staged, saving.count, saving.failures, noise)


def _kind(algorithm: str, gpu: Device | None, sharers: int) -> tuple[Any, dict[str, Any]]:
    """Return the class of what learns, and what it is told besides."""
    if gpu is None:
        return Als if algorithm == "als" else Sgd, {}
    # They take a while to import.
    from dml_hpc.decomposition.mf.device_als import DeviceAls
    from dml_hpc.decomposition.mf.device_sgd import DeviceSgd

    return DeviceAls if algorithm == "als" else DeviceSgd, {"device": gpu, "sharers": sharers}


def _check_limits(kept: Kept | None, done: int, epochs: int | None) -> None:
    """Raise `UserError` when the run in ``kept`` is past ``epochs``: it would be returned as what was asked for."""
    if epochs is not None and done > epochs:
        raise UserError(f"{getattr(kept, 'path', 'what is remembered')} has done {done:,} epochs, and --epochs asks "
                        f"for {epochs:,}; give more, or give another --checkpoint folder")


def _check_scale(scale: float, factors: str) -> None:
    """Raise `UserError` where factors of ratings with the deviation ``scale`` have no room in the type ``factors``."""
    if factors == "float16" and not 1e-6 <= scale <= 1e6:
        raise UserError(f"the ratings' deviation is {scale:.3g}, and factors of such are no numbers of float16: leave "
                        "out --factors float16, or import ratings in another unit")


def _pieces(parts: list[Part], scale: float) -> list[Piece]:
    """Return this rank's rows as the file has them: for ratings as they are, not divided by their deviation."""
    return [Piece(f"{part.side}_{name}", part.first, array, factor) for part in parts
            for name, array, factor in (("factors", part.factors, scale), ("biases", part.biases, scale * scale))
            if array is not None]


def _error(outcome: Outcome) -> str:
    errors = outcome.rmse_test or outcome.rmse_train
    if not errors and outcome.losses:
        return f"objective {outcome.losses[-1]:.6g}"
    return f"RMSE {errors[-1]:.4f}" if errors else ""


def _introduce(console: Console, ratings: StoredRatings, learner: Learner, of_ranks: list[int], algorithm: str) -> None:
    grid, ranks, at_work = ratings.grid, len(of_ranks), learner.ranks_at_work
    about = f"mean {learner.mean:.4g}, deviation {learner.scale:.4g}, " if learner.mean else ""
    console.say(f"ratings  {grid.ratings:,} of {grid.users:,} users and {grid.items:,} items, {about}in "
                f"{grid.shape[0]} × {grid.shape[1]} blocks")
    if algorithm == "als":
        return
    if at_work < ranks:
        console.say(f"warning  there are {grid.shape[0]} stripes of users for {ranks} ranks: {ranks - at_work} have "
                    f"nothing to do; import the ratings with --grid {ranks}x{2 * ranks} to use all")
    if at_work > 1 and max(of_ranks) > 1.5 * grid.ratings / at_work:
        console.say(f"warning  rank {of_ranks.index(max(of_ranks))} has {max(of_ranks) / grid.ratings:.0%} of the "
                    "ratings, as a stripe of users holds so many: the others will wait for it")
