"""Ratings as a grid of blocks: what is known of all of them, and the arrays of one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

MOST_BLOCKS = 1 << 20
"""The grid is in the manifest, and on every rank."""
USER_STRIPES, ITEM_STRIPES = 16, 32
"""The grid that is cut when none is asked for; fewer of few users or items."""


class Block(NamedTuple):
    """The ratings of one stripe of users for one stripe of items, in the order of `dml_hpc.data.ratings.order`.

    ``users`` and ``items`` (n,) int32 are numbers relative to the stripes' first, ``ratings`` (n,) float32,
    ``weights`` (n,) float32, None where ratings have none. No pair comes twice. They may be mapped: not to be written.
    """

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray
    weights: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Grid:
    """How ratings are cut into U × I blocks, and how many are in each; the same on every rank.

    Users are numbered 0 … users − 1, user stripe u holds those from ``user_bounds[u]`` to ``user_bounds[u + 1]`` − 1;
    items likewise. ``user_bounds`` (U + 1,), ``item_bounds`` (I + 1,) and ``counts`` (U, I) are int64. ``mean``,
    ``lowest`` and ``highest`` are those of all ratings, 0 where there are none.
    """

    user_bounds: np.ndarray
    item_bounds: np.ndarray
    counts: np.ndarray
    mean: float = 0.0
    lowest: float = 0.0
    highest: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """How many stripes of users and of items there are."""
        return len(self.user_bounds) - 1, len(self.item_bounds) - 1

    @property
    def users(self) -> int:
        """How many users there are."""
        return int(self.user_bounds[-1])

    @property
    def items(self) -> int:
        """How many items there are."""
        return int(self.item_bounds[-1])

    @cached_property
    def ratings(self) -> int:
        """How many ratings there are."""
        return int(self.counts.sum())

    def described(self) -> dict[str, Any]:
        """Return what the manifest says of it."""
        return {"user_bounds": self.user_bounds.tolist(), "item_bounds": self.item_bounds.tolist(),
                "counts": self.counts.tolist(), "mean": self.mean, "lowest": self.lowest, "highest": self.highest}


def grid_of(entry: dict[str, Any]) -> Grid:
    """Return the grid that a manifest describes; raises `ValueError` or `TypeError` for what no import writes."""
    parts = [np.array(entry[name]) for name in ("user_bounds", "item_bounds", "counts")]
    for part in parts:
        if part.dtype != np.int64 or not part.size or part.min() < 0:
            raise ValueError("the grid does not consist of whole numbers")
    grid = Grid(parts[0], parts[1], parts[2], float(entry["mean"]), float(entry["lowest"]), float(entry["highest"]))
    if not all(bounds.ndim == 1 and len(bounds) > 1 and bounds[0] == 0 and (np.diff(bounds) >= 0).all()
               and np.diff(bounds).max() <= np.iinfo(np.int32).max for bounds in (grid.user_bounds, grid.item_bounds)):
        raise ValueError("the bounds of the grid do not rise from 0")
    if grid.counts.shape != grid.shape or not np.isfinite([grid.mean, grid.lowest, grid.highest]).all():
        raise ValueError("the grid does not fit its bounds")
    return grid


def grid_shape(users: int, items: int, wanted: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return how many stripes of ``users`` users and ``items`` items to cut; none is without any."""
    stripes = wanted or (USER_STRIPES, ITEM_STRIPES)
    return max(1, min(stripes[0], users)), max(1, min(stripes[1], items))
