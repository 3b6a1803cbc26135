"""Shards that are missing, or turn unreadable in mid-run: every rank sees the same rows left out."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from data_support import write_dataset

from dml_hpc.commands import train, training_run
from dml_hpc.commands.opening import open_data
from dml_hpc.console import Console
from dml_hpc.data import retrying, shares
from dml_hpc.data.batches import Batches
from dml_hpc.data.csr import sparse
from dml_hpc.data.dataset import open_dataset
from dml_hpc.data.leaving_out import leave_out_lost, lose
from dml_hpc.data.reading import Reader, Resident, open_reader
from dml_hpc.data.streaming import Streamed
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.store.model import read_model
from dml_hpc.trainers import loop
from dml_hpc.trainers.lbfgs import Lbfgs

pytestmark = [pytest.mark.mpi, pytest.mark.maths]

F4 = np.dtype("f4")
SHARDS = [900, 1500, 0, 600]
ROWS = sum(SHARDS)
OTHERS = np.concatenate([np.arange(900), np.arange(2400, ROWS)])


def prepare(y, weight):
    return y.astype(F4), None


def written(comm, folder: Path, form: str) -> Path:
    """Return a data set whose row i has the label i; of its shards the second is to be left out."""
    if comm.rank == 0:
        X = np.random.default_rng(3).standard_normal((ROWS, 4)).astype(F4)
        write_dataset(folder / form, sparse(X) if form == "sparse" else X, np.arange(ROWS), SHARDS, "float32",
                      "gzip" if form == "gzip" else None)
    comm.Barrier()
    return folder / form


def learnt(comm, reader: Reader, epoch: int) -> np.ndarray:
    """Collective: return the labels of the rows that all ranks together take in an epoch, sorted."""
    own = [part.y[part.rows] for step in range(reader.steps) for part in reader.take(epoch, step)[0]]
    return np.sort(np.concatenate([np.empty(0, F4), *[y for part in comm.allgather(own) for y in part]]))


@pytest.mark.parametrize("form", ["plain", "gzip", "sparse"])
def test_a_shard_that_is_gone_is_left_out_on_every_rank(comm, folder, capfd, form):
    data = written(comm, folder, form)
    names = [data / f"part-0000{number}.h5" for number in range(4)]
    if comm.rank == 0:
        names[1].unlink()
    comm.Barrier()
    found = open_data(comm, [data], None, None, skip_bad_shards=True)
    told = [line for line in capfd.readouterr().err.splitlines() if "part-00001.h5" in line]
    assert len(told) == (1 if comm.rank == 0 else 0)
    assert found.rows == 1500 and [(one.file, one.rows) for one in found.left_out] == [(str(names[1]), 1500)]
    assert len(set(comm.allgather(str(found.left_out)))) == 1
    # It is the data set of the others, named one by one: the same rows in the same steps.
    same = open_dataset([names[0], *names[2:]], None, comm)
    assert same.manifest.shards == found.manifest.shards
    readers = [Resident(one, Batches(one, 100, comm.rank, comm.size), prepare, F4) for one in (found, same)]
    for step in range(readers[0].steps):
        for ours, theirs in zip(*(reader.take(0, step)[0] for reader in readers), strict=True):
            np.testing.assert_array_equal(ours.y[ours.rows], theirs.y[theirs.rows])
    np.testing.assert_array_equal(learnt(comm, readers[0], 1), OTHERS)


def test_when_nothing_is_left_all_ranks_say_so(comm, folder):
    data = written(comm, folder, "plain")
    if comm.rank == 0:
        for path in data.glob("part*"):
            path.unlink()
    comm.Barrier()
    with pytest.raises(AgreedError, match=r"all shards are missing or damaged, .*part-00000\.h5 is missing"):
        open_data(comm, [data], None, None, skip_bad_shards=True)
    with pytest.raises(AgreedError, match=r"all shards are missing or damaged"):
        open_data(comm, [folder / "a.h5", folder / "b.h5"], "X", "y", skip_bad_shards=True)


@pytest.mark.parametrize("how", ["streamed", "loaded"])
def test_rows_that_turn_unreadable_are_left_out_whoever_has_them(comm, folder, monkeypatch, how):
    monkeypatch.setattr(retrying, "PAUSES_S", (0.01, 0.01))
    data = open_data(comm, [written(comm, folder, "plain")], None, None, skip_bad_shards=True)
    assert not data.left_out
    batches = Batches(data, 100, comm.rank, comm.size)
    broken, preadv = how == "loaded", os.preadv

    def failing(handle, *arguments):
        if broken and os.readlink(f"/proc/self/fd/{handle}").endswith("part-00001.h5"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(handle, *arguments)

    monkeypatch.setattr(os, "preadv", failing)
    if how == "streamed":
        with Streamed(data, batches, prepare, F4, 1 << 30) as reader:
            np.testing.assert_array_equal(learnt(comm, reader, 0), np.arange(ROWS))
            broken = True
            some = learnt(comm, reader, 1)
            assert np.isin(OTHERS, some).all()  # and some that were in memory
            np.testing.assert_array_equal(learnt(comm, reader, 2), OTHERS)
    else:
        reader = Resident(data, batches, prepare, F4)
        np.testing.assert_array_equal(learnt(comm, reader, 0), OTHERS)
    assert comm.allreduce(reader.left_out_rows) == 1500


REST = (0, 2, 3)
"""The shards that are left when the second is lost."""


class Faults:
    """From ``step`` on, what is read of part-00001.h5 fails; and who reads, instead of having rows at hand."""

    def __init__(self, comm, monkeypatch: pytest.MonkeyPatch):
        self.step, self.streams, preadv = 0, range(comm.size), os.preadv
        self._comm, self._broken = comm, False

        def failing(handle, *arguments):
            if self._broken and os.readlink(f"/proc/self/fd/{handle}").endswith("part-00001.h5"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return preadv(handle, *arguments)

        def begins(step: int) -> None:
            self._broken = self._broken or step == self.step

        def opened(dataset, batches, prepare, dtype, most_bytes):
            self._broken = self.step == 0
            kind = Streamed if world_rank in self.streams else open_reader
            return kind(dataset, batches, prepare, dtype, 1 << 30)

        world_rank = comm.rank
        monkeypatch.setattr(retrying, "PAUSES_S", (0.01, 0.01))
        monkeypatch.setattr(os, "preadv", failing)
        monkeypatch.setattr(loop, "at_step", begins)
        monkeypatch.setattr(training_run, "open_reader", opened)

    def fit(self, comm, data: list[Path], step: int = -1, **options):
        """Train with the fault at a step (0: when rows are opened, −1: none); return the record and the weights."""
        self.step, self._broken = step, False
        output = data[0].parent / "models" / f"{self._comm.rank if comm.size == 1 else 'all'}.h5"
        output.parent.mkdir(exist_ok=True)
        options = {"allreduce": "ring", "dtype": "float64", "objective": "linear", "l2": 1e-2, **options}
        told = train.run(comm, Console(rank=1), data, output, skip_bad_shards=True, overwrite=True, **options)
        comm.Barrier()
        return told, read_model(output).weights


@pytest.fixture
def faults(comm, monkeypatch):
    return Faults(comm, monkeypatch)


def numbers(comm, folder: Path, weighted: bool = False, thin: bool = False) -> Path:
    """Return a data set whose second shard has quite other labels and weights than the others."""
    if comm.rank == 0:
        rng = np.random.default_rng(5)
        X = rng.standard_normal((ROWS, 6)) * (rng.random((ROWS, 6)) < 0.5 if thin else 1)
        second = np.isin(np.arange(ROWS), OTHERS, invert=True)
        y = np.where(second, X @ np.full(6, -2.0), X @ np.arange(6.0)) + rng.standard_normal(ROWS)
        weight = np.where(second, 5.0, 1.0) * rng.integers(1, 4, ROWS) if weighted else None
        write_dataset(folder / "numbers", sparse(X) if thin else X, y, SHARDS, "float64", None, weight)
    comm.Barrier()
    return folder / "numbers"


def parts(data: Path) -> list[Path]:
    return [data / f"part-0000{number}.h5" for number in REST]


def check_record(told: dict) -> None:
    assert told["rows"] == told["skipped_rows"] == 1500
    assert [Path(one["file"]).name for one in told["skipped_shards"]] == ["part-00001.h5"]


@pytest.mark.parametrize("streams", ["all", "one"])
@pytest.mark.parametrize("options", [{}, {"weighted": True}, {"l1": 1e-2}], ids=["plain", "weighted", "l1"])
def test_lbfgs_ends_in_the_optimum_of_the_rows_that_are_left(comm, folder, faults, streams, options):
    options = dict(options)
    data = numbers(comm, folder, options.pop("weighted", False))
    settings = {"algorithm": "lbfgs", "tolerance": 1e-13, **options}
    whole, _ = faults.fit(comm, [data], **settings)
    expected, weights = faults.fit(comm, parts(data), **settings)
    assert abs(whole["loss"] / expected["loss"] - 1) > 0.1
    if streams == "one":  # the others have their rows at hand, and learn from it that they are to do without some
        faults.streams = [comm.size // 2]
    for step in (1, 3):
        told, found = faults.fit(comm, [data], step, **settings)
        check_record(told)
        assert told["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert np.linalg.norm(found - weights) < 1e-5 * np.linalg.norm(weights)
        assert told["losses"][-1] == pytest.approx(expected["losses"][-1], rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_full_batches_are_means_of_the_rows_that_are_left(comm, folder, faults, weighted):
    data = numbers(comm, folder, weighted)
    settings = {"algorithm": "sync", "batch_size": "full", "epochs": 60, "momentum": 0.0, "step_size": 0.3,
                "schedule": "constant", "exchange": "dense"}
    expected, weights = faults.fit(comm, parts(data), **settings)
    told, found = faults.fit(comm, [data], 6, **settings)
    check_record(told)
    assert told["examples"] == 5 * ROWS + 55 * 1500
    assert sum(one["examples"] for one in told["per_rank"]) == told["examples"]
    assert told["losses"][-1] == pytest.approx(expected["losses"][-1], rel=1e-5)
    assert told["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert np.linalg.norm(found - weights) < 1e-5 * np.linalg.norm(weights)
    alone = comm.Split(comm.rank)
    exact = [faults.fit(who, [data], 6, **settings, reproducible=True)[0] for who in (alone, comm)]
    alone.Free()
    assert exact[0]["weights_digest"] == exact[1]["weights_digest"]
    assert exact[0]["losses"] == exact[1]["losses"]


EVERY = {
    "sync": {"algorithm": "sync", "exchange": "dense"},
    "clipped": {"algorithm": "sync", "clip_norm": 1e9},
    "touched": {"algorithm": "sync", "exchange": "sparse", "momentum": 0.0, "batch_size": "full", "epochs": 120,
                "step_size": 1.0, "schedule": "constant"},
    "local": {"algorithm": "local", "tau": 4},
    "lbfgs": {"algorithm": "lbfgs", "tolerance": 0.0},
}


@pytest.mark.parametrize("name", EVERY)
def test_every_algorithm_goes_on_with_the_rows_that_are_left(comm, folder, faults, name):
    data = numbers(comm, folder, thin=name == "touched")
    settings = {"epochs": 12, **EVERY[name]}
    whole, rest = {}, {}
    if "batch_size" not in settings and name != "lbfgs":  # as many steps an epoch
        whole, rest = {"batch_size": 300, "step_size": 0.1}, {"batch_size": 150, "step_size": 0.1}
    expected, _ = faults.fit(comm, parts(data), **settings, **rest)
    for step in (0, 3):
        told, _ = faults.fit(comm, [data], step, **settings, **whole)
        check_record(told)
        assert told["loss"] == pytest.approx(expected["loss"], rel=0.02)
        assert told["losses"][-1] == pytest.approx(expected["losses"][-1], rel=0.1)
        if step == 0:
            assert told["epochs"] == settings["epochs"] or name == "lbfgs"
            assert told["examples"] % 1500 == 0


def test_machines_that_learn_alone_do_without_rows_that_cannot_be_read(comm, folder, faults):
    data = numbers(comm, folder)
    told, _ = faults.fit(comm, [data], 0, algorithm="average", epochs=4)
    # All rows are loaded in the beginning, as `open_reader` is not asked.
    assert told["rows"] == ROWS
    algorithms = pytest.MonkeyPatch()
    load_all = shares.load_all

    def loaded(*arguments):
        faults._broken = True
        return load_all(*arguments)

    with algorithms.context() as patch:
        patch.setattr("dml_hpc.commands.algorithms.load_all", loaded)
        told, _ = faults.fit(comm, [data], -1, algorithm="average", epochs=4)
    check_record(told)
    assert told["examples"] == 4 * 1500 and told["epochs"] == 4


def test_lbfgs_takes_back_the_point_alone_where_other_shards_count_now(comm, folder, faults, monkeypatch):
    """Its gradient and history are of another function; without them it still gets to the optimum."""
    data = numbers(comm, folder)
    settings = {"algorithm": "lbfgs", "tolerance": 1e-13}
    expected, weights = faults.fit(comm, parts(data), **settings)
    states = []

    class Kept:
        def __init__(self, state):
            self.values = state.values
            pieces = [(piece.name, piece.start, piece.array.copy()) for piece in state.pieces]
            self._pieces = [piece for part in comm.allgather(pieces) for piece in part]

        def read(self, name, out, start=0):
            for other, first, array in self._pieces:
                low, high = max(first, start), min(first + len(array), start + len(out))
                if other == name and low < high:
                    out[low - start:high - start] = array[low - first:high - first]

    advance = Lbfgs.advance

    def watched(algorithm, step):
        met = advance(algorithm, step)
        if step == 2:
            states.append(Kept(algorithm.state()))
        return met

    def from_there(algorithm, step):
        if step == 0:
            algorithm.restore(states[0])
            starts.append(algorithm.parameters().copy())
        return advance(algorithm, step)

    starts = []
    monkeypatch.setattr(Lbfgs, "advance", watched)
    faults.fit(comm, [data], **settings)
    monkeypatch.setattr(Lbfgs, "advance", from_there)
    again, _ = faults.fit(comm, [data], **settings)
    monkeypatch.undo()
    comm.Barrier()
    if comm.rank == 0:
        (data / "part-00001.h5").unlink()
    comm.Barrier()
    monkeypatch.setattr(Lbfgs, "advance", from_there)
    told, found = faults.fit(comm, [data], **settings)
    np.testing.assert_array_equal(*starts)
    assert told["loss"] == pytest.approx(expected["loss"], rel=1e-9)
    assert np.linalg.norm(found - weights) < 1e-5 * np.linalg.norm(weights)
    assert again["steps"] < 100


def test_each_step_says_how_many_rows_it_has(comm, folder, monkeypatch):
    monkeypatch.setattr(retrying, "PAUSES_S", (0.01,))
    data = open_data(comm, [written(comm, folder, "plain")], None, None, skip_bad_shards=True)
    batches = Batches(data, 100, comm.rank, comm.size)
    (data.paths[1]).rename(folder / "aside") if comm.rank == 0 else None
    comm.Barrier()
    if comm.rank == comm.size - 1:  # the others learn it from this one
        lose(data, 1, UserError("it is gone"))
    assert leave_out_lost(comm, data) and not leave_out_lost(comm, data)
    assert data.used_rows == 1500 and [one.rows for one in data.left_out] == [1500]
    with Streamed(data, batches, prepare, F4, 1 << 30) as streamed:
        for reader in (streamed, Resident(data, Batches(data, 100, comm.rank, comm.size), prepare, F4)):
            assert comm.allreduce(reader.used) == 1500
            for epoch in range(2):
                for step in range(reader.steps):
                    taken, rows = reader.take(epoch, step)
                    assert comm.allreduce(sum(len(part.rows) for part in taken)) == rows
            np.testing.assert_array_equal(learnt(comm, reader, 0), OTHERS)


def test_nothing_is_learnt_from_nothing(comm, folder, monkeypatch):
    data = open_data(comm, [written(comm, folder, "plain")], None, None, skip_bad_shards=True)
    for number in range(4):
        lose(data, number, UserError(f"{number} is gone"))
    with pytest.raises(AgreedError, match="all shards with rows are missing"):
        leave_out_lost(comm, data)
