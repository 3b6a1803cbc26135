"""Shares of machines: every row once where they are dealt, uniform where they are drawn, and read as they are."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from data_support import write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from dml_hpc.data.csr import Csr, sparse
from dml_hpc.data.dataset import open_dataset
from dml_hpc.data.shares import CHUNK_ROWS, DealtShare, DrawnShare, SharesReader, load_all

F4 = np.dtype("f4")
MIXED = 2048


def epoch_of(share, epoch):
    """The rows of each step of an epoch."""
    return [share.take(epoch, step).copy() for step in range(share.steps)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 70_000), st.integers(1, 9), st.booleans(), st.integers(0, 5))
def test_rows_are_dealt_once_for_all_and_shuffled_every_epoch(rows, machines, shuffle, seed):
    shares = [DealtShare(rows, machine, machines, seed, shuffle) for machine in range(machines)]
    assert len({share.steps for share in shares}) == 1
    assert max(share.count for share in shares) - min(share.count for share in shares) <= 1
    first, second = ([np.concatenate(epoch_of(share, epoch)) for share in shares] for epoch in (0, 1))
    assert sorted(np.concatenate(first).tolist()) == list(range(rows))
    for share, one, other in zip(shares, first, second, strict=True):
        assert len(one) == share.count
        np.testing.assert_array_equal(np.sort(one), np.sort(other))
        # One strip of every run of as many as there are machines, and one row of every run behind them.
        runs, own = rows // (8 * machines) if shuffle else 0, np.sort(one)
        np.testing.assert_array_equal(own[:8 * runs] // (8 * machines), np.repeat(np.arange(runs), 8))
        np.testing.assert_array_equal(np.diff(own[:8 * runs].reshape(-1, 8)), 1)
        rest = own[8 * runs:] - 8 * runs * machines
        np.testing.assert_array_equal(rest // machines, np.arange(share.count - 8 * runs))
        assert all(len(rows) <= CHUNK_ROWS for rows in epoch_of(share, 2))
    if rows > 1000:
        assert np.array_equal(first[0], second[0]) == (not shuffle)
        assert not shuffle or (np.diff(first[0]) > 0).mean() < 0.6
    if not shuffle:
        np.testing.assert_array_equal(first[0], np.arange(0, rows, machines))


def test_a_deal_is_fair_to_every_machine_and_differs_by_seed():
    strips, machines = 300_000, 6
    shares = [np.concatenate(epoch_of(DealtShare(8 * strips, 2, machines, seed), 0)) for seed in (0, 1)]
    deals = [np.sort(rows)[::8] // 8 % machines for rows in shares]
    for places in deals:
        counts = np.bincount(places, minlength=machines)
        expected = strips / machines**2
        assert ((counts - expected) ** 2 / expected).sum() < 20.5, "chi squared, 5 degrees of freedom, p = 0.001"
        assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 4 / np.sqrt(len(places))
    assert 0.1 < (deals[0] == deals[1]).mean() < 0.25


def test_storage_is_read_by_blocks_and_rows_are_mixed_over_many():
    machines = 3
    share = DealtShare(3 * 50 * CHUNK_ROWS, 1, machines, 4)
    chunk = share.take(0, 7)
    assert len(chunk) == CHUNK_ROWS
    for start in range(0, CHUNK_ROWS, MIXED):
        strips = chunk[start:start + MIXED] // 8
        places = strips // machines * 8 + chunk[start:start + MIXED] % 8
        blocks, counts = np.unique(places // 64, return_counts=True)
        assert len(blocks) == 32 and (counts == 64).all()
        assert blocks.max() - blocks.min() > share.count / 64 / 2, "from all over the share"
        # Each block's rows lie anywhere among the others.
        where = np.array([np.flatnonzero(places // 64 == block).mean() for block in blocks])
        assert abs(where.mean() - MIXED / 2) < 1 and where.std() < 3 * MIXED / np.sqrt(12 * 64)


def test_draws_are_uniform_and_every_machine_and_epoch_has_its_own():
    rows, draws = 50, 40_000
    shares = [DrawnShare(rows, draws, machine, 7) for machine in range(2)]
    drawn = [np.concatenate(epoch_of(share, epoch)) for share in shares for epoch in (0, 1)]
    assert shares[0].steps == 3 and all(len(one) == shares[0].count == draws for one in drawn)
    for one in drawn:
        counts = np.bincount(one, minlength=rows)
        assert ((counts - draws / rows) ** 2 / (draws / rows)).sum() < 85.4, "49 degrees of freedom, p = 0.001"
    for one, other in pairwise(drawn):
        assert abs((one == other).mean() - 1 / rows) < 5 * np.sqrt(1 / rows / draws)
    np.testing.assert_array_equal(shares[0].take(0, 1), drawn[0][CHUNK_ROWS:2 * CHUNK_ROWS])
    assert DrawnShare(0, 10, 0).take(0, 0).size == 0


def prepare(y, weight):
    return y.astype(F4), None if weight is None else weight.astype(F4)


@pytest.mark.parametrize("kind", ["dense", "csr"])
@pytest.mark.parametrize("compression", [None, "lzf"])
def test_readers_give_the_rows_of_their_shares_from_any_shards(tmp_path, kind, compression):
    rows = 40_000
    X = np.repeat(np.arange(1, rows + 1, dtype=F4)[:, None], 2, axis=1)
    data = open_dataset(write_dataset(tmp_path / "data", X if kind == "dense" else sparse(X), np.arange(rows) % 2,
                                      [9000, 0, 30_000, 1000], compression=compression, weight=np.arange(rows) % 7))
    loaded = load_all(data, prepare, F4)
    readers = [SharesReader(loaded, DealtShare(rows, machine, 2, 3), machine, 2) for machine in range(2)]
    readers.append(SharesReader(loaded, DrawnShare(rows, 20_000, 5), 0, 1))

    def numbers(parts):
        found = [np.empty(0, np.int64)]
        for part in parts:
            taken = part.X.take(part.rows).dense() if isinstance(part.X, Csr) else part.X[part.rows]
            found.append(taken[:, 0].astype(np.int64) - 1)
            np.testing.assert_array_equal(part.y[part.rows], found[-1] % 2)
            np.testing.assert_array_equal(part.weight[part.rows], found[-1] % 7)
        return np.concatenate(found)

    for reader in readers:
        assert reader.steps == reader.share.steps
        assert reader.how == ("mapped" if compression is None else "memory")
        for step in range(reader.steps):
            parts, count = reader.take(1, step)
            got = numbers(parts)
            expected = reader.rows_of(1, step)
            assert count == len(got) == len(expected)
            for start in range(0, count, MIXED):  # pieces of this size are grouped by shard, else in their order
                piece, wanted = got[start:start + MIXED], expected[start:start + MIXED]
                np.testing.assert_array_equal(np.sort(piece), np.sort(wanted))
                middle = (wanted >= 9000) & (wanted < 39_000)
                np.testing.assert_array_equal(piece[(piece >= 9000) & (piece < 39_000)], wanted[middle])
    both = np.concatenate([numbers(reader.everything()) for reader in readers[:2]])
    np.testing.assert_array_equal(both, np.arange(rows))
    np.testing.assert_array_equal(numbers(readers[2].everything()), np.arange(rows))
    firsts = [next(iter(reader.everything())) for reader in readers]
    assert firsts[0].X is firsts[2].X, "opened once"


def test_a_machine_without_rows_takes_every_step_and_none(tmp_path):
    data = open_dataset(write_dataset(tmp_path / "data", np.ones((2, 3)), np.zeros(2), [2]))
    loaded = load_all(data, prepare, F4)
    readers = [SharesReader(loaded, DealtShare(2, machine, 5), machine, 5) for machine in range(5)]
    assert sum(reader.take(0, 0)[1] for reader in readers) == 2
    assert {reader.steps for reader in readers} == {1}
    assert sum(len(part.rows) for reader in readers for part in reader.everything()) == 2
