"""What every algorithm that learns factors is to a run: something that begins, improves, and can be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.decomposition.mf.held_out import Errors
from dml_hpc.store.state import Kept, State

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Progress(NamedTuple):
    """What an epoch has met: the training RMSE, and the objective that falls; None where there is no such number."""

    rmse: float | None
    loss: float | None = None


class Part(NamedTuple):
    """Rows ``first`` … of the "user" or "item" ``side``: ``factors`` (count, k), ``biases`` (count,) or None."""

    side: str
    first: int
    factors: np.ndarray
    biases: np.ndarray | None


class Learner(Protocol):
    """The factors of ratings on all ranks of ``comm``. Everything but ``parts`` and ``bytes_sent`` is collective.

    A rating is predicted as ``mean`` + ``scale``·(b_u + c_i + p_u·q_i). ``own_ratings`` are those of this rank's users,
    ``most_weight`` is the largest weight of a rating, ``ranks_at_work`` says how many ranks have something to do,
    ``is_held``: whether there are ratings to measure on.
    """

    comm: Intracomm
    clock: Clock
    mean: float
    scale: float
    most_weight: float
    n_ratings: int
    own_ratings: int
    ranks_at_work: int
    is_held: bool

    @property
    def bytes_sent(self) -> int:
        """Bytes of factors that this rank has sent."""
        ...

    def begin(self) -> None:
        """Set the factors to what they are before the first epoch."""
        ...

    def improve(self, epoch: int, step_size: float | None) -> Progress:
        """Do an epoch, with a step size where the algorithm has any."""
        ...

    def errors(self) -> Errors:
        """Return how far predictions are off for the ratings held out."""
        ...

    def parts(self) -> list[Part]:
        """Return this rank's rows, in order; those of lower ranks come before them."""
        ...

    def state(self) -> State:
        """Return what `restore` needs, between epochs."""
        ...

    def restore(self, kept: Kept) -> None:
        """Go on with what ``state`` has given, on any number of ranks."""
        ...
