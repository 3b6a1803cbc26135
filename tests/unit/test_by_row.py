"""Ratings by user and by item: all of each one's, with their columns rising, whatever the blocks."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.data.ratings.by_row import by_row, matched
from dml_hpc.data.ratings.ids import Ids
from dml_hpc.data.ratings.opened import MemoryRatings

pytestmark = pytest.mark.maths


@pytest.mark.parametrize("of_items", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_hold_what_was_rated(of_items, weighted):
    rng = np.random.default_rng(0)
    users, items = np.divmod(rng.permutation(30 * 20)[:200], 20)
    values = rng.normal(size=200).astype(np.float32)
    weights = rng.random(200).astype(np.float32) if weighted else None
    ratings = MemoryRatings(users, items, values, weights, shape=(4, 3), n_users=31, n_items=20)
    own, other = (items, users) if of_items else (users, items)
    known, others = (ratings.items, ratings.users) if of_items else (ratings.users, ratings.items)
    wanted = [11, 0, 19, 7]
    rows = np.array([wanted.index(name) if name in wanted else -1 for name in known.values])
    columns = np.where(others.values % 3 == 0, -1, others.values)  # some are not known
    found = by_row(ratings, rows, columns, len(wanted), of_items)
    assert found.ratings is not None
    for row, name in enumerate(wanted):
        mine = sorted((column, value, weight) for who, column, value, weight in zip(
            own.tolist(), other.tolist(), values.tolist(), values.tolist() if weights is None else weights.tolist(),
            strict=True) if who == name and column % 3)
        part = slice(found.starts[row], found.starts[row + 1])
        assert found.columns[part].tolist() == [column for column, _, _ in mine]
        assert found.ratings[part].tolist() == [value for _, value, _ in mine]
        if found.weights is not None:
            assert found.weights[part].tolist() == [weight for _, _, weight in mine]
    assert (found.weights is not None) == weighted
    assert found.unknown == sum(name in wanted and column % 3 == 0 for name, column in zip(
        own.tolist(), other.tolist(), strict=True))
    pairs = by_row(ratings, rows, columns, len(wanted), of_items, values=False)
    np.testing.assert_array_equal(pairs.columns, found.columns)
    assert pairs.ratings is pairs.weights is None
    assert by_row(ratings, np.full(len(known), -1), columns, 0, of_items).starts.tolist() == [0]


def test_ids_are_matched():
    text, numbers = Ids(np.array(["7", "a", "3"], object)), Ids(np.array([3, 7, 5]))
    assert matched(text, numbers).tolist() == [2, 0, -1]
    assert matched(numbers, text).tolist() == [1, -1, 0]
    assert matched(text, Ids(text.values.copy())).tolist() == [0, 1, 2]
