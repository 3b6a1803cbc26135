"""Batches: every row once an epoch, the same rows in a step for any number of ranks."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml_hpc.data.batches import Batches
from dml_hpc.data.dataset import Dataset
from dml_hpc.data.manifest import Label, Manifest, ShardEntry
from dml_hpc.layout import bound, split


def dataset(shard_rows):
    shards = [ShardEntry(f"part-{number:05d}.h5", rows, rows, "") for number, rows in enumerate(shard_rows)]
    rows = sum(shard_rows)
    manifest = Manifest("dense", "float32", rows, 3, rows, None, None, [], Label("y", None), shards)
    return Dataset(Path("data"), manifest, [Path(shard.file) for shard in shards])


def steps(data, batch_size, size, epoch=0, seed=5, shares=None):
    """The sets of rows of each step of an epoch, and the counts the ranks were told."""
    ranks = [Batches(data, batch_size, rank, size, seed, shares=shares) for rank in range(size)]
    found = []
    for step in range(ranks[0].steps):
        rows: list[int] = []
        for rank in ranks:
            parts, count = rank.take(epoch, step)
            for part in parts:
                rows += (part.rows + data.offsets[part.shard]).tolist()
        assert count == len(rows)
        found.append(sorted(rows))
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=6), st.integers(1, 9),
       st.one_of(st.none(), st.integers(1, 300)))
def test_each_row_comes_once_and_steps_do_not_depend_on_the_ranks(shard_rows, size, batch_size):
    data = dataset(shard_rows)
    if data.rows == 0:
        return
    alone, together = steps(data, batch_size, 1), steps(data, batch_size, size)
    assert sorted(row for rows in alone for row in rows) == list(range(data.rows))
    assert together == alone


def test_ranks_share_the_rows_evenly_and_contiguously():
    data = dataset([5000, 1, 3000])
    for batch_size in (None, 512):
        ranks = [Batches(data, batch_size, rank, 3) for rank in range(3)]
        assert [rank.range[1] for rank in ranks[:-1]] == [rank.range[0] for rank in ranks[1:]]
        assert max(rank.count for rank in ranks) - min(rank.count for rank in ranks) <= 8001 / 512 * 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=6), st.lists(st.floats(0.01, 1), min_size=1, max_size=9),
       st.one_of(st.none(), st.integers(1, 300)))
def test_steps_do_not_depend_on_the_shares_of_the_ranks(shard_rows, shares, batch_size):
    data = dataset(shard_rows)
    if data.rows == 0:
        return
    alone, together = steps(data, batch_size, 1), steps(data, batch_size, len(shares), shares=shares)
    assert together == alone


def test_ranks_have_their_shares_of_the_rows():
    data, shares = dataset([5000, 1, 3000]), [0.5, 0.2, 0.3]
    for batch_size in (None, 512):
        ranks = [Batches(data, batch_size, rank, 3, shares=shares) for rank in range(3)]
        assert [rank.range[1] for rank in ranks[:-1]] == [rank.range[0] for rank in ranks[1:]]
        np.testing.assert_allclose([rank.share for rank in ranks], shares, atol=1 / 512)
        np.testing.assert_allclose([rank.count / 8001 for rank in ranks], shares, atol=2 / 512)
    few = [Batches(data, 2, rank, 3, shares=shares) for rank in range(3)]  # there is too little to share
    assert [rank.range for rank in few] == [Batches(data, 2, rank, 3).range for rank in range(3)]


def test_epochs_and_seeds_give_other_orders_and_batch_sizes_are_met():
    data = dataset([4000])
    first = steps(data, 256, 2)
    assert first != steps(data, 256, 2, epoch=1)
    assert first != steps(data, 256, 2, seed=6)
    assert first == steps(data, 256, 2)
    assert all(abs(len(rows) - 4000 / 16) <= 4 for rows in first)


def test_a_batch_samples_the_whole_data_set():
    # Sorted data: a batch of consecutive rows would see one end of it only.
    rows = np.array(steps(dataset([10000]), 100, 2)[0])
    assert rows.min() < 300
    assert rows.max() > 9700


@pytest.mark.parametrize("n", [0, 1, 7, 2 ** 40 + 3])
def test_split_covers_everything_in_order(n):
    for parts in (1, 2, 3, 8):
        pieces = [split(n, parts, i) for i in range(parts)]
        assert pieces[0][0] == 0
        assert pieces[-1][1] == n
        assert all(a[1] == b[0] for a, b in pairwise(pieces))
        sizes = [stop - start for start, stop in pieces]
        assert max(sizes) - min(sizes) <= 1
        assert bound(n, parts, parts) == n
