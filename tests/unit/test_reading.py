"""Readers: each row once an epoch on any number of ranks, and the same steps streamed as from memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from data_support import write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from dml_hpc.data.batches import Batches
from dml_hpc.data.csr import sparse
from dml_hpc.data.dataset import open_dataset
from dml_hpc.data.reading import Resident, open_reader
from dml_hpc.data.streaming import Streamed
from dml_hpc.errors import JobError, UserError

F4 = np.dtype("f4")


def prepare(y, weight):
    return y.astype(F4), None if weight is None else weight.astype(F4)


def numbered(folder, shard_rows, compression=None, dtype="float32", weighted=False):
    """A data set whose row i holds i, with label i % 2 and, if it is weighted, weight i % 7."""
    rows = sum(shard_rows)
    X = np.repeat(np.arange(rows)[:, None], 3, axis=1)
    return open_dataset(write_dataset(folder, X, np.arange(rows) % 2, shard_rows, dtype, compression,
                                      np.arange(rows) % 7 if weighted else None))


def taken(reader, epoch, step):
    """The rows of a step in the order given, their labels checked."""
    parts, _ = reader.take(epoch, step)
    found = [np.empty(0, np.int64)]
    for part in parts:
        values = part.X[part.rows]
        assert (values == values[:, :1]).all()
        np.testing.assert_array_equal(part.y[part.rows], values[:, 0] % 2)
        assert (part.weight is not None) == reader.dataset.weighted
        if part.weight is not None:
            np.testing.assert_array_equal(part.weight[part.rows], values[:, 0] % 7)
        found.append(values[:, 0].astype(np.int64))
    return np.concatenate(found)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 150), min_size=1, max_size=5), st.integers(1, 6), st.integers(1, 200),
       st.sampled_from([None, "gzip"]), st.booleans(), st.integers(0, 3), st.booleans())
def test_streamed_steps_are_those_from_memory_and_every_row_comes_once(shard_rows, size, batch, compression, shuffle,
                                                                       seed, weighted):
    rows = sum(shard_rows)
    if not rows:
        return
    with tempfile.TemporaryDirectory() as place:
        data = numbered(Path(place) / "data", shard_rows, compression, weighted=weighted)
        seen = [[], []]
        for rank in range(size):
            batches = Batches(data, batch, rank, size, seed, shuffle, None if compression is None else 7)
            resident = Resident(data, batches, prepare, F4)
            with Streamed(data, batches, prepare, F4, 1 << 40) as streamed:
                for epoch in range(2):
                    for step in range(batches.steps):
                        expected = taken(resident, epoch, step)
                        got = taken(streamed, epoch, step)
                        again = taken(streamed, epoch, step)  # as a step that is done again
                        np.testing.assert_array_equal(np.sort(got), np.sort(expected))
                        np.testing.assert_array_equal(np.sort(again), np.sort(expected))
                        if streamed._parts == 1:
                            np.testing.assert_array_equal(got, expected)
                        seen[epoch] += got.tolist()
                        for reader in (resident, streamed):
                            assert reader.steps == batches.steps
                            np.testing.assert_array_equal(np.sort(reader.rows_of(epoch, step)), np.sort(got))
                everything = np.concatenate([np.empty(0), *(part.X[part.rows, 0].copy()
                                                            for part in streamed.everything())])
                np.testing.assert_array_equal(everything, np.arange(*batches.range))
        assert sorted(seen[0]) == sorted(seen[1]) == list(range(rows))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=5), st.integers(1, 7), st.integers(1, 100),
       st.sampled_from([None, "lzf"]), st.integers(0, 9))
def test_sparse_rows_come_once_an_epoch_too_whatever_their_sizes(shard_rows, size, batch, compression, seed):
    rows = sum(shard_rows)
    if not rows:
        return
    rng = np.random.default_rng(seed)
    X = np.where(rng.random((rows, 9)) < rng.random((rows, 1)) ** 3, rng.normal(size=(rows, 9)), 0.0)
    X[:, 0] = np.arange(rows) + 1
    X = X.astype(F4)

    def collected(reader, epoch, step):
        found = [np.empty((0, 9), F4)]
        for part in reader.take(epoch, step)[0]:
            found.append(part.X.take(part.rows).dense())
            np.testing.assert_array_equal(part.y[part.rows], found[-1][:, 0] % 2)
        return np.concatenate(found)

    with tempfile.TemporaryDirectory() as place:
        data = open_dataset(write_dataset(Path(place) / "data", sparse(X), (np.arange(rows) + 1) % 2, shard_rows,
                                          compression=compression))
        cuts = data.partition(size)
        assert cuts[0] == 0 and cuts[-1] == rows and cuts == sorted(cuts)
        seen: list[list[float]] = [[], []]
        for rank in range(size):
            batches = Batches(data, batch, rank, size, seed)
            resident = Resident(data, batches, prepare, F4)
            with Streamed(data, batches, prepare, F4, 1 << 40) as streamed:
                for epoch in range(2):
                    for step in range(batches.steps):
                        expected, got = collected(resident, epoch, step), collected(streamed, epoch, step)
                        order, other = np.argsort(expected[:, 0]), np.argsort(got[:, 0])
                        np.testing.assert_array_equal(got[other], expected[order])
                        np.testing.assert_array_equal(expected[order], X[expected[order][:, 0].astype(int) - 1])
                        seen[epoch] += got[:, 0].tolist()
        assert sorted(seen[0]) == sorted(seen[1]) == list(range(1, rows + 1))


def test_sparse_rows_are_shared_by_their_entries(tmp_path):
    X = np.zeros((1000, 50))
    X[:100] = 1  # a tenth of the rows has all the entries but one a row
    X[:, 0] = 1
    data = open_dataset(write_dataset(tmp_path / "data", sparse(X), np.zeros(1000), [400, 0, 600]))
    entries = np.concatenate([[0], np.cumsum((X != 0).sum(axis=1))])
    shares = np.diff(entries[data.partition(4)])
    assert shares.max() - shares.min() <= 100


def test_what_fits_stays_and_what_does_not_is_streamed(tmp_path):
    plain, packed = numbered(tmp_path / "plain", [30_000, 30_000]), numbered(tmp_path / "packed", [6000], "lzf")
    batches = Batches(plain, 100, 0, 1)
    assert open_reader(plain, batches, prepare, F4, None).how == "mapped"
    assert open_reader(packed, Batches(packed, 100, 0, 1, chunk_rows=20), prepare, F4, 1 << 20).how == "memory"
    assert open_reader(plain, batches, prepare, F4, 100_000).how == "streamed"
    with pytest.raises(UserError, match="--memory-limit leaves 0 MiB for rows"):
        open_reader(plain, batches, prepare, F4, 1000)


def test_dense_float16_stays_as_it_is_and_is_mapped_and_sparse_is_widened(tmp_path):
    data = numbered(tmp_path / "half", [500, 400], dtype="float16")
    batches = Batches(data, 64, 0, 1)
    F2 = np.dtype("f2")
    assert data.computable(F4) == data.computable(np.dtype("f8")) == F2
    with Streamed(data, batches, prepare, F4, 1 << 30) as streamed:
        resident = Resident(data, batches, prepare, F4)
        assert resident.how == "mapped"
        for step in range(batches.steps):
            np.testing.assert_array_equal(taken(streamed, 0, step), taken(resident, 0, step))
        parts = [part for reader in (streamed, resident) for part in reader.everything()]
        assert {part.X.dtype for part in parts} == {F2}
        assert streamed._slots.X.dtype == F2
    X = sparse(np.eye(60, dtype="f4"))
    data = open_dataset(write_dataset(tmp_path / "csr", X, np.zeros(60), [60], "float16"))
    assert data.computable(F4) == F4
    for reader in (Resident(data, Batches(data, 10, 0, 1), prepare, F4),
                   Streamed(data, Batches(data, 10, 0, 1), prepare, F4, 1 << 30)):
        with reader:
            parts = [*reader.take(0, 0)[0], *reader.everything()]
            assert {part.X.dtype for part in parts} == {F4} and reader.how != "mapped"


def test_weights_may_come_of_labels_alone(tmp_path):
    def by_class(y, weight):
        assert weight is None
        return y.astype(F4), np.where(y == 1, F4.type(3), F4.type(0.5))

    data = numbered(tmp_path / "data", [300, 200])
    batches = Batches(data, 50, 0, 1)
    for reader in (Resident(data, batches, by_class, F4), Streamed(data, batches, by_class, F4, 1 << 30)):
        with reader:
            for part in [*reader.take(0, 0)[0], *reader.everything()]:
                np.testing.assert_array_equal(part.weight[part.rows], np.where(part.X[part.rows, 0] % 2, 3, 0.5))


def test_a_row_is_told_with_its_place(tmp_path):
    data = numbered(tmp_path / "data", [30, 0, 50], weighted=True)
    row = data.row(37)
    assert (row.path.name, row.row, row.y, row.weight) == ("part-00002.h5", 7, 1.0, 37 % 7)
    assert row.X.dtype == np.float64 and row.X.tolist() == [37.0] * 3
    X = sparse(np.eye(9, dtype="f4"))
    row = open_dataset(write_dataset(tmp_path / "csr", X, np.arange(9), [4, 5])).row(5)
    assert (row.row, row.y, row.weight) == (1, 5.0, None)
    assert row.X.dense().tolist() == [np.eye(9)[5].tolist()]


def test_a_label_that_cannot_be_learnt_from_is_named_while_streaming(tmp_path):
    def refuse(y, weight):
        if not len(y):
            return y, weight
        raise UserError("a label of 2 is no class")

    data = numbered(tmp_path / "data", [500])
    with Streamed(data, Batches(data, 10, 0, 1), refuse, F4, 1 << 30) as streamed, \
            pytest.raises(UserError, match=r"part-00000.h5: a label of 2"):
        taken(streamed, 0, 0)


def test_a_shard_cut_short_while_it_is_streamed_is_one_clear_line(tmp_path):
    data = numbered(tmp_path / "data", [4000])
    with Streamed(data, Batches(data, 10, 0, 1), prepare, F4, 1 << 30) as streamed:
        data.shard(0)
        with (tmp_path / "data" / "part-00000.h5").open("r+b") as file:
            file.truncate(6000)
        with pytest.raises(JobError, match="6,000 bytes, it was written with"):
            for step in range(400):
                taken(streamed, 0, step)


def test_an_order_differs_by_epoch_and_seed_and_mixes_the_blocks(tmp_path):
    data = numbered(tmp_path / "data", [20_000])
    reader = Resident(data, batches := Batches(data, 100, 0, 1), prepare, F4)
    first = [taken(reader, 0, step) for step in range(batches.steps)]
    second = [taken(reader, 1, step) for step in range(batches.steps)]
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    # Of each hundredth of the rows a step has about one, in no particular place of it.
    places = np.array([np.sort(rows) % 200 for rows in first if len(rows) == 100])
    assert 70 < places.mean() < 130 and places.std() > 45
