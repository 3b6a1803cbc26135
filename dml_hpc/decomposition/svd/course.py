"""Where a factorisation stands between passes over the data, so that it can go on from there in another process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.layout import split
from dml_hpc.store.state import Kept, State, Values

if TYPE_CHECKING:
    from dml_hpc.decomposition.matrix import Matrix
    from dml_hpc.store.saving import Saving

PART = "svd"
"""What a factorisation's part of a kept state is called."""


class Course:
    """The course of one factorisation of ``matrix``: it is told of every pass, and says where to begin.

    A place in the course has a name; what is needed to go on from there is a `State` of that name. ``at`` (small
    values, the same on every rank) is kept beside it: how far those have come who call what has that place, and
    ``constants``, what never changes.

    ``saving`` decides when a state is kept, None: never. It also holds what the factorisation goes on from, which gives
    the matrix what earlier passes have told.
    """

    def __init__(self, matrix: Matrix, saving: Saving | None = None, constants: Values | None = None):
        self.matrix, self._saving, self._constants = matrix, saving, constants or {}
        self.at: Values = {}
        self._kept: Kept | None = None
        if saving is None:
            return
        if saving.kept is not None:
            self._kept = saving.kept.part(PART)
            self.at = self._kept.values["at"]
            matrix.restore(self._kept.values["matrix"])
        saving.start(matrix.passes)

    def taken(self, place: str) -> Kept | None:
        """Return the state that was kept at ``place``, if it is what to go on from, and the first time only."""
        if self._kept is None or self._kept.values["place"] != place:
            return None
        kept, self._kept = self._kept.part(place), None
        return kept

    def after_pass(self, place: str, state: Callable[[], State]) -> None:
        """Collective: keep what ``state()`` (collective) returns if it is time.

        Raises `AgreedError` with exit code 75 when a rank was told to stop.
        """
        if self._saving is not None:
            self._saving.meet(self.matrix.passes, lambda: self._whole(place, state))

    def complete(self, place: str, state: Callable[[], State]) -> None:
        """Collective: keep what has come out at the end."""
        if self._saving is not None:
            self._saving.complete(self.matrix.passes, lambda: self._whole(place, state))

    def _whole(self, place: str, state: Callable[[], State]) -> State:
        course = State({**self._constants, "at": dict(self.at), "place": place, "matrix": self.matrix.state()})
        course.add(place, state())
        whole = State()
        whole.add("loop", State({"step": self.matrix.passes}))
        whole.add(PART, course)
        return whole


def put_rows(state: State, matrix: Matrix, name: str, V: np.ndarray, whole: bool = False) -> None:
    """Add a thin matrix (n, l) to ``state``, of which ``V`` has this rank's rows, or with ``whole`` all of them."""
    n, width = matrix.shape[1], V.shape[1]
    first, last = matrix.thin
    if whole or matrix.reproducible:  # then every rank has all
        first, last = split(n, matrix.comm.size, matrix.comm.rank)
        V = V[first:last]
    state.put(name, V.ravel(), first * width, n * width)


def kept_rows(kept: Kept, matrix: Matrix, name: str, whole: bool = False) -> np.ndarray:
    """Return this rank's rows of a thin matrix that `put_rows` has added, or with ``whole`` all of them."""
    first, last = (0, matrix.shape[1]) if whole else matrix.thin
    width = kept.kind(name)[1] // matrix.shape[1]
    return kept.vector(name, first * width, last * width).reshape(last - first, width)
