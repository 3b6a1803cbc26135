"""What several ranks keep together: written by some, read by any number, with faults that only one of them meets."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from contextlib import contextmanager

import numpy as np
import pytest
from data_support import write_dataset

from dml_hpc.commands import train
from dml_hpc.console import Console
from dml_hpc.errors import AgreedError
from dml_hpc.layout import split
from dml_hpc.mpi import on_root
from dml_hpc.objectives.linear_score import LinearScore
from dml_hpc.stopping import Asked
from dml_hpc.store import checkpoint, checkpoint_writer, lock
from dml_hpc.store.checkpoint_writer import FAILED, WRITING, WRITTEN, Writer
from dml_hpc.store.every import Every
from dml_hpc.store.in_memory import InMemory
from dml_hpc.store.pulse import Pulse
from dml_hpc.store.saving import Memory, Saving
from dml_hpc.store.state import State

pytestmark = pytest.mark.mpi

ABOUT = {"command": "train", "data": {}, "options": {}}
TOTALS = {"long": 1003, "short": 3, "one": 1, "none": 0, "last": 5}


def vector(name, total, step):
    return (np.arange(total) + len(name) * 100 + step).astype(np.int16 if name == "short" else np.float64)


def state_of(comm, step):
    """Return this rank's part of a state: vectors longer and shorter than there are ranks, and one of the last rank.
    """
    state = State({"step": step}, {"rank": comm.rank})
    for name, total in TOTALS.items():
        whole = vector(name, total, step)
        if name == "last":
            start, stop = (0, total) if comm.rank == comm.size - 1 else (0, 0)
        else:
            start, stop = split(total, comm.size, comm.rank)
        state.put(name, whole[start:stop], start, total)
    return state


def check_kept(kept, writers, step, comm):
    """Check each rank's share of what was kept, whose ranks cut it otherwise than those that wrote it."""
    assert kept.values == {"step": step} and kept.own == [{"rank": rank} for rank in range(writers)]
    assert set(kept.names()) == set(TOTALS)
    for name, total in TOTALS.items():
        whole = vector(name, total, step)
        assert kept.kind(name) == (whole.dtype, total)
        start, stop = split(total, comm.size, comm.rank)
        for first, last in ((0, total), (start, stop), (stop, stop)):
            assert np.array_equal(kept.vector(name, first, last), whole[first:last])


@contextmanager
def parts(comm):
    """Yield all ranks, all but the last (which is alone), and each alone."""
    some = comm.Split(int(comm.size > 1 and comm.rank == comm.size - 1), comm.rank)
    alone = comm.Split(comm.rank)
    yield [comm, some, alone]
    some.Free()
    alone.Free()


def settle(writer, comm):
    """Wait until no rank is writing, as a run does that goes on meanwhile; return what `Writer.settle` does."""
    while any(status == WRITING for status in comm.allgather(writer.status)):
        pass
    return writer.settle()


def test_pieces_are_read_by_any_number_of_ranks(comm, folder, monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "_CHUNK_BYTES", 100)
    with parts(comm) as readers:
        for number, who in enumerate(readers):
            place = folder / str(number) / str(who.bcast(comm.rank))  # its own for each that writes
            on_root(who, lambda place=place: place.mkdir(parents=True))
            writer = Writer(who, place, 2, ABOUT)
            for step in (3, 4, 5):
                writer.begin(step, state_of(who, step))
                assert settle(writer, who) is None
            assert writer.finish() is None
            writer.close()
            names = [path.name for path in on_root(who, lambda place=place: checkpoint.found(place))]
            assert names == ["checkpoint-000003", "checkpoint-000002"]
            if who is comm:
                for reader in readers:
                    check_kept(checkpoint.newest(reader, place, None), comm.size, 5, reader)
            else:
                check_kept(checkpoint.newest(who, place, None), who.size, 5, who)
            comm.Barrier()


def test_a_disk_that_is_full_for_one_rank_costs_no_more_than_that_checkpoint(comm, folder, monkeypatch):
    writer = Writer(comm, folder, 3, ABOUT)
    writer.begin(1, state_of(comm, 1))
    assert writer.finish() is None
    for unlucky in {0, comm.size - 1}:
        honest = checkpoint_writer._write

        def write(partial, entry, content, unlucky=unlucky, honest=honest):
            if comm.rank == unlucky:
                raise OSError(errno.ENOSPC, "full")
            return honest(partial, entry, content)

        monkeypatch.setattr(checkpoint_writer, "_write", write)
        writer.begin(2, state_of(comm, 2))
        failure = settle(writer, comm)
        assert failure == f"rank {unlucky}: No space left on device"
        assert comm.bcast(os.listdir(folder)) == ["checkpoint-000001"]
        monkeypatch.setattr(checkpoint_writer, "_write", honest)
        comm.Barrier()
    writer.begin(3, state_of(comm, 3))
    while writer.status == WRITING:
        pass
    assert writer.status == WRITTEN != FAILED
    assert writer.finish() is None
    writer.close()
    check_kept(checkpoint.newest(comm, folder, None), comm.size, 3, comm)


def test_the_head_alone_cannot_be_written(comm, folder, monkeypatch):
    """Only rank 0 knows of it: the others go on, and it says so."""
    said = []
    saving = Saving(comm, said.append, Writer(comm, folder, 3, ABOUT), Every(steps=1))
    saving.start(0)
    monkeypatch.setattr(checkpoint, "flush_folder", lambda path: (_ for _ in ()).throw(OSError(errno.EDQUOT, "quota")))
    saving.after(1, lambda: state_of(comm, 1))
    step = 2
    while comm.allreduce(len(said)) == 0:
        step += 1
        saving.after(step, lambda step=step: state_of(comm, step))
    assert (len(said) > 0) == (comm.rank == 0) and all("Disk quota exceeded" in line for line in said)
    monkeypatch.undo()
    assert saving.finish(step, lambda: state_of(comm, step)) is None
    saving.close()
    check_kept(checkpoint.newest(comm, folder, None), comm.size, step, comm)


def test_damage_that_only_one_rank_reads_is_known_to_all(comm, folder):
    writer = Writer(comm, folder, 3, ABOUT)
    for step in (1, 2):
        writer.begin(step, state_of(comm, step))
        assert writer.finish() is None
    writer.close()
    second, first = comm.bcast(checkpoint.found(folder))
    damaged = second / f"rank-{comm.size - 1:05d}.bin"
    comm.Barrier()
    if comm.rank == 0:
        content = bytearray(damaged.read_bytes())
        content[-70] ^= 1
        damaged.write_bytes(content)
    comm.Barrier()
    warnings = []
    kept = checkpoint.newest(comm, folder, warnings.append)
    assert kept.path == first and len(warnings) == 1 and damaged.name in warnings[0]
    check_kept(kept, comm.size, 1, comm)
    comm.Barrier()
    if comm.rank == 0:
        (first / "rank-00000.bin").unlink()
    comm.Barrier()
    with pytest.raises(AgreedError, match="is whole") as error:
        checkpoint.newest(comm, folder, warnings.append)
    assert error.value.exit_code == 2


def test_memory_is_used_again_and_holds_no_more_than_two(comm):
    memory = Memory()
    for step in range(1, 5):
        state = state_of(comm, step)
        memory.keep(comm, state)
        state.values["step"] = 99  # the run goes on
    assert len(memory.snapshots) == 2
    rooms = {id(kept.vectors["long"]) for kept in memory.snapshots.values()}
    memory.keep(comm, state_of(comm, 5))
    assert id(memory.snapshots[max(memory.snapshots)].vectors["long"]) in rooms
    with parts(comm) as readers:
        for reader in readers:
            check_kept(memory.newest(reader), comm.size, 5, reader)
    assert len(memory.snapshots) == 1
    other = State()
    other.put("long", np.full(7 if comm.rank == 0 else 0, 2.5), 0, 7)  # of another length now
    kept = InMemory(comm, other, room=memory.snapshots[max(memory.snapshots)].vectors)
    assert kept.vector("long").tolist() == [2.5] * 7 and list(kept.names()) == ["long"]


def test_ranks_that_died_in_a_snapshot_leave_the_one_before(comm):
    """Some survivors have come to its end, others not; also in the middle of one step, where the number is the same."""
    for behind in ({0}, {comm.size - 1}, set(range(comm.size))):
        memory = Memory()
        memory.keep(comm, state_of(comm, 6))
        memory.keep(comm, state_of(comm, 6))
        late = state_of(comm, 6)
        late.values["step"] = 7
        memory.keep(comm, late)
        if comm.rank in behind:
            del memory.snapshots[max(memory.snapshots)]
        check_kept(memory.newest(comm), comm.size, 6, comm)
        assert len(memory.snapshots) == 1
        memory.keep(comm, state_of(comm, 8))
        check_kept(memory.newest(comm), comm.size, 8, comm)
    memory = Memory()
    memory.keep(comm, state_of(comm, 1))
    if comm.rank == comm.size - 1:
        memory.snapshots = {}  # it was the first
    assert memory.newest(comm) is None and not memory.snapshots


def test_ranks_agree_when_they_meet_next_however_fast_each_is(comm, monkeypatch):
    pulse = Pulse(comm)
    now = [0.0]
    monkeypatch.setattr("dml_hpc.store.pulse.time.perf_counter", lambda: now[0])
    pulse.start(10)
    met = []
    for step in range(11, 2000):
        now[0] += 0.001 * (1 + comm.rank)
        assert len(set(comm.allgather(pulse.due(step)))) == 1
        if pulse.due(step):
            table = pulse.meet(step, [comm.rank, step])
            assert table.tolist() == [[rank, step] for rank in range(comm.size)]
            met.append(step)
            assert len(set(comm.allgather(pulse.gap))) == 1
    assert met[0] == 11
    assert met[-1] - met[-2] == int(0.25 / (0.001 * comm.size) + 1e-6)


def told_once(rank, comm):
    """Return what says on one rank only that a signal has come."""
    return lambda: int(signal.SIGTERM) if comm.rank == rank else 0


def test_what_one_rank_is_told_ends_all_and_is_kept(comm, folder):
    for rank in {0, comm.size - 1}:
        saving = Saving(comm, lambda line: None, Writer(comm, folder, 1, ABOUT), Every(steps=3),
                        asked=told_once(rank, comm))
        saving.start(7)
        with pytest.raises(AgreedError, match="SIGTERM after step 8") as error:
            saving.after(8, lambda: state_of(comm, 8))
        saving.close()
        assert error.value.exit_code == 75
        check_kept(checkpoint.newest(comm, folder, None), comm.size, 8, comm)
        assert comm.bcast((folder / checkpoint.PROGRESS).read_text().strip() if comm.rank == 0 else None) == "8"
        without = Saving(comm, lambda line: None, asked=told_once(rank, comm))
        without.start(0)
        with pytest.raises(AgreedError) as error:
            without.after(1, lambda: state_of(comm, 1))
        assert error.value.exit_code == 128 + signal.SIGTERM


@pytest.mark.maths
@pytest.mark.parametrize("algorithm", ["sync", "lbfgs"])
def test_a_run_that_was_warned_goes_on_to_the_same_bits_on_fewer_ranks(comm, folder, monkeypatch, algorithm):
    def make():
        rng = np.random.default_rng(3)
        X = rng.standard_normal((300, 6))
        write_dataset(folder / "data", X, (X[:, 0] + rng.standard_normal(300) > 0).astype(float), [100, 200])

    on_root(comm, make)
    options = {"objective": "logistic", "algorithm": algorithm, "reproducible": True, "allreduce": "ring",
               **({"batch_size": 30, "epochs": 4, "schedule": "constant"} if algorithm == "sync" else
                  {"tolerance": 1e-9})}

    def fit(who, name, **more):
        return train.run(who, Console(rank=1), [folder / "data"], folder / name, **options, **more)

    undisturbed = fit(comm, "undisturbed.h5")
    keep = {"checkpoint": folder / "kept", "checkpoint_every": Every(steps=7)}
    calls = 0
    honest = LinearScore.fixed_point_gradient

    def warned(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 8 and comm.rank == comm.size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return honest(self, *arguments)

    monkeypatch.setattr(LinearScore, "fixed_point_gradient", warned)
    with pytest.raises(AgreedError, match="SIGUSR1 after step") as error:
        fit(comm, "none.h5", **keep)
    assert error.value.exit_code == 75
    assert isinstance(Asked.on_signals(), Asked)
    monkeypatch.undo()
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # as in a process that begins
    assert not on_root(comm, lambda: (folder / "none.h5").exists())
    with pytest.raises(AgreedError, match="give --resume"):
        fit(comm, "none.h5", **keep)
    with parts(comm) as readers:
        if comm.rank < comm.size - 1 or comm.size == 1:
            resumed = fit(readers[1], "resumed.h5", resume=True, **keep)
            assert resumed["weights_digest"] == undisturbed["weights_digest"]
            assert resumed["losses"] == undisturbed["losses"] and resumed["steps"] == undisturbed["steps"]
            assert 0 < resumed["resumed_from"] < 40
    comm.Barrier()
    again = fit(comm, "again.h5", resume=True, **keep)  # of a run that has ended: the same at once
    assert again["weights_digest"] == undisturbed["weights_digest"]
    assert again["resumed_from"] == on_root(comm, lambda: int((folder / "kept" / "progress").read_text()))
    if algorithm == "sync":
        options["epochs"] = 6
        longer = fit(comm, "longer.h5", resume=True, **keep)
        assert longer["weights_digest"] == fit(comm, "straight.h5")["weights_digest"]


def three_shards(path, changed=0.0):
    """Write a data set whose last shard differs by ``changed``."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((300, 6))
    y = (X[:, 0] + rng.standard_normal(300) > 0).astype(float)
    X[200:] += changed
    write_dataset(path, X, y, [100, 100, 100])


def test_a_folder_that_another_run_writes_to_is_refused_by_all_ranks(comm, folder):
    on_root(comm, lambda: (three_shards(folder / "data"), (folder / "kept").mkdir()))
    being_written = folder / "kept" / checkpoint.partial_name(1, "0af3")
    other = None
    if comm.rank == comm.size - 1:
        being_written.mkdir()
        other = (folder / "kept" / lock.NAME).open("w")
        fcntl.flock(other, fcntl.LOCK_EX)
    comm.Barrier()

    def fit():
        return train.run(comm, Console(rank=1), [folder / "data"], folder / "m.h5", epochs=1,
                         checkpoint=folder / "kept")

    with pytest.raises(AgreedError, match=r"another run keeps its checkpoints in .*kept") as error:
        fit()
    assert error.value.exit_code == 2
    assert on_root(comm, being_written.exists)
    if other is not None:
        other.close()
    comm.Barrier()
    assert fit()["checkpoints"] == 1
    assert not on_root(comm, being_written.exists)


@pytest.mark.maths
def test_what_shards_were_left_out_does_not_make_it_fit_other_data(comm, folder):
    on_root(comm, lambda: (three_shards(folder / "data"), three_shards(folder / "other", changed=1.0)))

    def part(name):
        return folder / name / "part-00001.h5"

    on_root(comm, lambda: [part(name).rename(folder / name / "away") for name in ("data", "other")] and None)

    def fit(name, epochs):
        return train.run(comm, Console(rank=1), [folder / name], folder / "m.h5", overwrite=True, epochs=epochs,
                         checkpoint=folder / "kept", resume=True, skip_bad_shards=True)

    assert fit("data", 1)["skipped_rows"] == 100
    with pytest.raises(AgreedError, match="is of another data set") as error:
        fit("other", 2)
    assert error.value.exit_code == 2
    assert fit("data", 2)["resumed_from"] > 0
    on_root(comm, lambda: [(folder / name / "away").rename(part(name)) for name in ("data", "other")] and None)
    assert fit("data", 3)["skipped_rows"] == 0  # of which one shard was mended meanwhile
    with pytest.raises(AgreedError, match="is of another data set"):
        fit("other", 4)
