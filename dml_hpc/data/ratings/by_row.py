"""The ratings of some users, each one's together; or of some items."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dml_hpc.data.ratings.ids import Ids
from dml_hpc.data.ratings.opened import Ratings
from dml_hpc.watch import progressed


class ByRow(NamedTuple):
    """Ratings by row: those of row n are elements ``starts[n]`` … ``starts[n + 1]`` − 1, their columns ascending.

    ``starts`` (rows + 1,) int64, ``columns`` (n,) int32, ``ratings`` (n,) float32, None: not asked for, ``weights``
    (n,) float32, None: 1 each. ``unknown`` counts those that had no column, and are left out.
    """

    starts: np.ndarray
    columns: np.ndarray
    ratings: np.ndarray | None
    weights: np.ndarray | None
    unknown: int


def by_row(ratings: Ratings, rows: np.ndarray, columns: np.ndarray, count: int, of_items: bool = False,
           values: bool = True) -> ByRow:
    """Return the ratings of ``count`` rows, or with ``values`` false only who has rated what.

    Only stripes that hold some of them are read.

    ``rows`` (users,) says which row each user of ``ratings`` is here, from 0 on, −1: none; ``columns`` (items,) int
    likewise for items. With ``of_items`` rows are items and columns users. No row and no column is named twice. Raises
    `UserError` on this rank alone for blocks that cannot be read.
    """
    grid = ratings.grid
    row_bounds, column_bounds = (grid.item_bounds, grid.user_bounds) if of_items else (grid.user_bounds,
                                                                                       grid.item_bounds)
    parts: list[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]] = []
    unknown = 0
    sizes = np.zeros(count, np.int64)
    for own in range(len(row_bounds) - 1):
        mine = rows[row_bounds[own]:row_bounds[own + 1]]
        if not (mine >= 0).any():
            continue
        keys, given, weights = [], [], []
        for other in range(len(column_bounds) - 1):
            block = ratings.block(*((other, own) if of_items else (own, other)))
            ours, theirs = (block.items, block.users) if of_items else (block.users, block.items)
            row = mine[ours]
            column = columns[theirs + column_bounds[other]]
            known = (row >= 0) & (column >= 0)
            unknown += int(np.count_nonzero((row >= 0) & (column < 0)))
            keys.append((row[known].astype(np.int64) << 32) | column[known])
            if values:
                given.append(block.ratings[known])
            if values and block.weights is not None:
                weights.append(block.weights[known])
        progressed()
        key = np.concatenate(keys)
        order = np.argsort(key) if values else None
        key = key[order] if values else np.sort(key)
        np.add.at(sizes, key >> 32, 1)
        parts.append((key, np.concatenate(given)[order] if given else None,
                      np.concatenate(weights)[order] if weights else None))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    weighted = values and ratings.weighted
    found = ByRow(starts, np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32) if values else None,
                  np.empty(starts[-1], np.float32) if weighted else None, unknown)
    while parts:
        key, rated, heavy = parts.pop()
        row = key >> 32
        first = np.flatnonzero(np.diff(row, prepend=-1))  # where another row begins
        place = starts[row] + np.arange(len(row)) - np.repeat(first, np.diff(first, append=len(row)))
        found.columns[place] = key & 0xFFFFFFFF
        for whole, some in ((found.ratings, rated), (found.weights, heavy)):
            if whole is not None and some is not None:
                whole[place] = some
    return found


def matched(known: Ids, others: Ids) -> np.ndarray:
    """Return the number (n,) int64 that each of ``others`` has among the ``known``, −1: none."""
    if known.is_text == others.is_text and np.array_equal(known.values, others.values):  # mostly: what was learnt from
        return np.arange(len(others))
    return known.numbers(others.values)
