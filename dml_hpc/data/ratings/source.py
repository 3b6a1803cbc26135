"""What ratings are made from: rows that come in pieces, twice, and what is known of their users and items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np


class Rows(NamedTuple):
    """Some ratings: the places of ``users`` and ``items`` (n,) among all ids, in any type of whole numbers.

    ``ratings`` and ``weights`` are (n,) float32, ``times`` (n,) int64; weights and times are None where there are none.
    """

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray
    weights: np.ndarray | None = None
    times: np.ndarray | None = None


class Known(NamedTuple):
    """Users, or items: their ``ids`` (n,), int64 or an object array of str, and how many ratings each has, int64."""

    ids: np.ndarray
    counts: np.ndarray


class RatingSource(Protocol):
    """Ratings in ``pieces`` pieces, in order; a piece is read by one rank, any, and is the same on each."""

    pieces: int
    users: Known
    items: Known
    weighted: bool
    timed: bool

    def read(self, piece: int) -> Iterator[Rows]:
        """Yield the ratings of a piece in order, so many at a time that memory stays bounded."""
        ...
