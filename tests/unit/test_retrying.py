"""Reads that fail for a moment are tried again; what stays unreadable is named, or left out where that is wanted."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
import weakref
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_support import write_dataset

from dml_hpc.data import dataset as dataset_module
from dml_hpc.data import retrying
from dml_hpc.data.batches import Batches
from dml_hpc.data.csr import Csr, sparse
from dml_hpc.data.dataset import Dataset, open_dataset
from dml_hpc.data.leaving_out import without_bad_shards
from dml_hpc.data.reading import Reader, Resident
from dml_hpc.data.retrying import LostShardError
from dml_hpc.data.shard import Keys
from dml_hpc.data.shares import DealtShare, SharesReader, load_all
from dml_hpc.data.streaming import Streamed
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.mpi import Alone

F4 = np.dtype("f4")
ROWS = 4000


def prepare(y, weight):
    return y.astype(F4), None if weight is None else weight.astype(F4)


def numbered(folder: Path, shards: list[int], form: str = "plain", weighted: bool = False) -> Dataset:
    """A data set whose row i holds i + 1, with label i % 2, and weight i % 7 if it is weighted."""
    rows = sum(shards)
    X = np.repeat(np.arange(1, rows + 1)[:, None], 3, axis=1)
    return open_dataset(write_dataset(folder, sparse(X.astype(F4)) if form == "sparse" else X, np.arange(rows) % 2,
                                      shards, "float32", "gzip" if form == "gzip" else None,
                                      np.arange(rows) % 7 if weighted else None))


class Disk:
    """Fails what is read of a file with EIO while ``left`` is above 0, counting down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, left: float):
        self.left, self.tries, self._name = left, 0, name
        preadv, read_direct = os.preadv, h5py.Dataset.read_direct

        def fail(path: str) -> None:
            if Path(path).name == self._name:
                self.tries += 1
                if self.left > 0:
                    self.left -= 1
                    raise OSError(errno.EIO, os.strerror(errno.EIO))

        def failing_preadv(handle, *arguments):
            fail(os.readlink(f"/proc/self/fd/{handle}"))
            return preadv(handle, *arguments)

        def failing_read(dataset, *arguments, **options):
            try:
                fail(dataset.file.filename)
            except OSError:  # as HDF5 tells it
                raise OSError("Can't synchronously read data (file read failed: time = now, errno = 5, error message "
                              "= 'Input/output error')") from None
            return read_direct(dataset, *arguments, **options)

        monkeypatch.setattr(os, "preadv", failing_preadv)
        monkeypatch.setattr(h5py.Dataset, "read_direct", failing_read)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "PAUSES_S", (0.01,) * 5)


def numbers(X: np.ndarray | Csr, rows: np.ndarray | None = None) -> np.ndarray:
    """Return which rows of the data set these are, from what they hold."""
    rows = np.arange(len(X)) if rows is None else rows
    if isinstance(X, Csr):
        entries = X.indptr[rows][:, None] + np.arange(3)
        assert (X.indices[entries] == np.arange(3)).all()
        X = X.data[entries]
    else:
        X = X[rows]
    assert (X[:, :1] == X).all()
    return X[:, 0].astype(int) - 1


def taken(reader: Reader, epoch: int) -> np.ndarray:
    """Return the rows that a reader gives in an epoch, in order; their labels and weights are checked."""
    found = [np.empty(0, int)]
    for step in range(reader.steps):
        for part in reader.take(epoch, step)[0]:
            own = numbers(part.X, part.rows)
            np.testing.assert_array_equal(part.y[part.rows], own % 2)
            if part.weight is not None:
                np.testing.assert_array_equal(part.weight[part.rows], own % 7)
            found.append(own)
    return np.sort(np.concatenate(found))


def streamed(data: Dataset, batch: int | None = 100) -> Streamed:
    return Streamed(data, Batches(data, batch, 0, 1), prepare, F4, 1 << 30)


@pytest.mark.parametrize("form", ["plain", "gzip", "sparse"])
@pytest.mark.parametrize("how", ["pieces", "streamed", "from end to end", "resident"])
def test_a_read_that_fails_for_a_moment_is_made_good(tmp_path, monkeypatch, capsys, quick, form, how):
    data = numbered(tmp_path / "data", [1000, 3000], form)
    disk = Disk(monkeypatch, "part-00001.h5", 3)
    if how == "pieces":
        found = np.concatenate([numbers(piece.X).copy() for piece in data.pieces(0, ROWS, 300, mapped=False)])
    elif how == "resident":
        if form != "gzip":  # the others are mapped, and nothing is read but labels
            disk.left = 1
        found = taken(Resident(data, Batches(data, 100, 0, 1), prepare, F4), 0)
    else:
        with streamed(data, 100 if how == "streamed" else None) as reader:
            found = taken(reader, 0)
    np.testing.assert_array_equal(found, np.arange(ROWS))
    assert disk.left == 0
    told = capsys.readouterr().err.splitlines()
    assert 1 <= len(told) <= 3 and all("part-00001.h5" in line and "nput/output error" in line for line in told)


def test_it_is_told_once_a_failure_and_only_so_many_times(tmp_path, monkeypatch, capsys, quick):
    data = numbered(tmp_path / "data", [1000, 3000])
    disk = Disk(monkeypatch, "part-00001.h5", np.inf)
    with streamed(data) as reader, pytest.raises(LostShardError) as raised:
        taken(reader, 0)
    assert disk.tries == 6
    message = str(raised.value)
    assert "part-00001.h5" in message and "Input/output error" in message and "--skip-bad-shards" in message
    assert "6 times" in message and "\n" not in message
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_is_damaged_is_not_tried_again(tmp_path, capsys):
    data = numbered(tmp_path / "data", [ROWS], "gzip")
    path = tmp_path / "data" / "part-00000.h5"
    head = data.manifest.shards[0].head_bytes
    path.write_bytes(path.read_bytes()[:head] + bytes(path.stat().st_size - head))
    with pytest.raises(UserError, match=r"part-00000\.h5: /X cannot be read"):
        list(data.pieces(0, ROWS))
    assert not capsys.readouterr().err


def test_a_shard_that_was_there_and_vanishes_for_a_moment_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dataset_module, "MOST_OPEN", 1)
    data = numbered(tmp_path / "data", [1000, 3000])
    path, aside = tmp_path / "data" / "part-00000.h5", tmp_path / "aside"
    data.shard(0), data.shard(1)
    path.rename(aside)
    back = threading.Timer(0.2, lambda: aside.rename(path))
    back.start()
    assert data.shard(0).rows == 1000
    back.join()
    assert "part-00000.h5 is missing" in capsys.readouterr().err


def test_a_shard_that_never_was_there_is_not_waited_for(tmp_path, capsys):
    data = numbered(tmp_path / "data", [1000, 3000])
    (tmp_path / "data" / "part-00001.h5").unlink()
    started = time.monotonic()
    with pytest.raises(UserError, match=r"part-00001\.h5 is missing"):
        list(data.pieces(0, ROWS))
    assert time.monotonic() - started < retrying.PAUSES_S[0] + 5 and not capsys.readouterr().err


@pytest.mark.parametrize("form", ["plain", "gzip", "sparse"])
@pytest.mark.parametrize("how", ["forgotten", "one too many"])
def test_a_shard_stays_open_for_the_thread_that_reads_it(tmp_path, monkeypatch, form, how):
    monkeypatch.setattr(dataset_module, "MOST_OPEN", 1)
    data = numbered(tmp_path / "data", [1000, 3000], form)
    half, gone, found, files = threading.Event(), threading.Event(), [], []

    def take(shard):
        files.append(weakref.ref(shard))
        first = [shard.block(0, 500), shard.y(0, 500)]
        half.set()
        assert gone.wait(60)
        return first, [shard.block(500, 1000), shard.y(500, 1000)]

    def read() -> None:
        found.extend(data.read(0, take))

    thread = threading.Thread(target=read)
    thread.start()
    assert half.wait(60)
    if how == "forgotten":
        data._forget(0)
    else:
        data.shard(1)
    assert files[0]() is not None
    gone.set()
    thread.join(60)
    assert files[0]() is None  # the last one has closed it
    for start, (X, y) in zip((0, 500), found, strict=True):
        np.testing.assert_array_equal(numbers(X), np.arange(start, start + 500))
        np.testing.assert_array_equal(y, np.arange(start, start + 500) % 2)


def test_a_shard_that_is_forgotten_is_closed_when_it_is_in_no_use(tmp_path):
    data = numbered(tmp_path / "data", [1000, 3000], "gzip")
    shard = data.shard(0)
    file = shard._file.id
    data._forget(0)
    assert shard.block(0, 2).shape == (2, 3) and file.valid
    del file, shard
    opened = [os.path.realpath(link.path) for link in os.scandir("/proc/self/fd")]
    assert str(tmp_path / "data" / "part-00000.h5") not in opened


def lose(reader: Reader) -> None:
    with pytest.raises(LostShardError):
        taken(reader, 0)


@pytest.mark.parametrize("how", ["streamed", "pieces"])
def test_who_waits_for_the_disk_can_be_ended(tmp_path, monkeypatch, how):
    monkeypatch.setattr(retrying, "PAUSES_S", (600.0,))
    data = numbered(tmp_path / "data", [2000, 2000])
    disk = Disk(monkeypatch, "part-00001.h5", np.inf)
    tried = threading.Event()
    monkeypatch.setattr(retrying, "tell", lambda line: tried.set())
    if how == "streamed":
        with streamed(data) as reader:
            thread = threading.Thread(target=lose, args=(reader,))
            thread.start()
            assert tried.wait(60)
        thread.join(60)
        assert not thread.is_alive()
    else:
        pieces = data.pieces(0, ROWS, 1000, mapped=False)
        next(pieces)
        assert tried.wait(60)
        pieces.close()
    assert disk.tries == 1


@pytest.mark.parametrize("form", ["plain", "gzip", "sparse"])
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_of_a_shard_that_turns_unreadable_are_left_out(tmp_path, monkeypatch, capsys, quick, form, weighted):
    data = without_bad_shards(Alone(), numbered(tmp_path / "data", [1000, 2500, 500], form, weighted))
    others = np.concatenate([np.arange(1000), np.arange(3500, ROWS)])
    with streamed(data) as reader:
        np.testing.assert_array_equal(taken(reader, 0), np.arange(ROWS))
        disk = Disk(monkeypatch, "part-00001.h5", np.inf)
        first = taken(reader, 1)
        assert np.isin(others, first).all() and len(first) < ROWS  # some were in memory already
        np.testing.assert_array_equal(taken(reader, 2), others)
        assert reader.left_out_rows == 2500
        tries = disk.tries
        np.testing.assert_array_equal(taken(reader, 3), others)
        found = np.concatenate([numbers(part.X, part.rows) for part in reader.everything()])
        np.testing.assert_array_equal(found, others)
        assert disk.tries == tries  # it is given up
    told = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(told) == 1 and "part-00001.h5" in told[0] and "2,500 rows" in told[0]


@pytest.mark.parametrize("batch", [100, None])
@pytest.mark.parametrize("form", ["plain", "gzip", "sparse"])
def test_rows_that_cannot_be_loaded_are_left_out(tmp_path, monkeypatch, capsys, quick, form, batch):
    data = without_bad_shards(Alone(), numbered(tmp_path / "data", [1000, 2500, 500], form))
    Disk(monkeypatch, "part-00001.h5", np.inf)
    others = np.concatenate([np.arange(1000), np.arange(3500, ROWS)])
    if form == "gzip" or batch is not None:
        reader: Reader = Resident(data, Batches(data, batch, 0, 1), prepare, F4)
    else:
        reader = streamed(data, None)
    with reader:
        for epoch in range(2):
            np.testing.assert_array_equal(taken(reader, epoch), others)
        found = np.concatenate([numbers(part.X, part.rows) for part in reader.everything()])
        np.testing.assert_array_equal(found, others)
    assert reader.left_out_rows == 2500
    assert sum("left out" in line for line in capsys.readouterr().err.splitlines()) == 1


def test_machines_that_draw_from_all_rows_draw_none_of_those_left_out(tmp_path, monkeypatch, quick):
    data = without_bad_shards(Alone(), numbered(tmp_path / "data", [1000, 2500, 500]))
    Disk(monkeypatch, "part-00001.h5", np.inf)
    others = np.concatenate([np.arange(1000), np.arange(3500, ROWS)])
    loaded = load_all(data, prepare, F4)
    readers = [SharesReader(loaded, DealtShare(ROWS, machine, 2), machine, 2) for machine in range(2)]
    np.testing.assert_array_equal(np.sort(np.concatenate([taken(reader, 0) for reader in readers])), others)
    found = [numbers(part.X, part.rows) for reader in readers for part in reader.everything()]
    np.testing.assert_array_equal(np.concatenate(found), others)
    assert sum(reader.left_out_rows for reader in readers) == 2500


def test_a_label_that_cannot_be_learnt_from_is_no_reason_to_leave_rows_out(tmp_path):
    def picky(y, weight):
        if (y == 1).any():
            raise UserError("1 is no label")
        return y.astype(F4), None

    data = without_bad_shards(Alone(), numbered(tmp_path / "data", [ROWS]))
    with pytest.raises(UserError, match=r"part-00000\.h5: 1 is no label"):
        Resident(data, Batches(data, 100, 0, 1), picky, F4)
    with Streamed(data, Batches(data, 100, 0, 1), picky, F4, 1 << 30) as reader:
        with pytest.raises(UserError, match=r"part-00000\.h5: 1 is no label"):
            taken(reader, 0)
        assert not reader.left_out_rows


def spoil(path: Path, how: str) -> None:
    if how == "vanished":
        path.unlink()
    elif how == "cut short":
        os.truncate(path, path.stat().st_size - 100)
    elif how == "a pipe":
        path.unlink()
        os.mkfifo(path)
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    else:
        with path.open("r+b") as file:
            file.seek(100)
            file.write(b"damage")


@pytest.mark.parametrize("how", ["vanished", "cut short", "a pipe", "a folder", "damaged head"])
@pytest.mark.parametrize("form", ["plain", "gzip", "sparse"])
def test_shards_that_are_bad_from_the_start_are_left_out(tmp_path, capsys, how, form):
    data = numbered(tmp_path / "data", [1000, 2500, 500], form)
    spoil(tmp_path / "data" / "part-00001.h5", how)
    with pytest.raises(UserError, match=r"part-00001\.h5"):
        open_dataset(tmp_path / "data").shard(1)
    data = without_bad_shards(Alone(), open_dataset(tmp_path / "data"))
    assert data.rows == data.manifest.rows == 1500 and len(data.paths) == 2
    assert [(Path(one.file).name, one.rows) for one in data.left_out] == [("part-00001.h5", 2500)]
    assert "part-00001.h5" in data.left_out[0].problem
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "part-00001.h5" in told[0] and "2,500 rows" in told[0]
    found = np.concatenate([numbers(piece.X).copy() for piece in data.pieces(0, 1500)])
    np.testing.assert_array_equal(found, np.concatenate([np.arange(1000), np.arange(3500, ROWS)]))


def test_files_without_a_manifest_may_be_left_out_too(tmp_path):
    numbered(tmp_path / "data", [1000, 2500, 500])
    paths = [tmp_path / f"{number}.h5" for number in range(4)]
    for number in range(3):
        shutil.copy(tmp_path / "data" / f"part-0000{number}.h5", paths[number])
    os.truncate(paths[1], 5000)
    with pytest.raises(UserError, match=r"1\.h5"):
        open_dataset(paths, Keys())
    data = without_bad_shards(Alone(), open_dataset(paths, Keys(), skip_bad_shards=True))
    assert data.rows == 1500 and data.paths == [paths[0], paths[2]]
    assert [(one.file, one.rows) for one in data.left_out] == [(str(paths[1]), None), (str(paths[3]), None)]


def test_something_has_to_be_left(tmp_path):
    numbered(tmp_path / "data", [1000, 3000])
    for path in (tmp_path / "data").glob("part*"):
        path.unlink()
    with pytest.raises(AgreedError, match=r"all shards are missing or damaged, .*part-00000\.h5 is missing"):
        without_bad_shards(Alone(), open_dataset(tmp_path / "data"))
    with pytest.raises(UserError, match="all shards are missing or damaged"):
        open_dataset([tmp_path / "a.h5", tmp_path / "b.h5"], Keys(), skip_bad_shards=True)


def test_nothing_is_left_out_of_what_is_whole(tmp_path, capsys):
    data = without_bad_shards(Alone(), numbered(tmp_path / "data", [1000, 3000]))
    assert data.rows == ROWS and not data.left_out and not capsys.readouterr().err
