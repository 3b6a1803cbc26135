"""When a run is saved, what it is told to stop by, and that a disk that fails does not end it."""

from __future__ import annotations

import errno
import os
import signal
import threading
from itertools import pairwise

import numpy as np
import pytest

from dml_hpc.errors import AgreedError, Stopped
from dml_hpc.mpi import Alone
from dml_hpc.stopping import AGAIN_S, Asked
from dml_hpc.store import checkpoint, checkpoint_writer
from dml_hpc.store.checkpoint_writer import IDLE, Writer
from dml_hpc.store.every import Every
from dml_hpc.store.saving import Memory, Saving
from dml_hpc.store.state import State


class One(Alone):
    """One rank that exchanges arrays with itself."""

    def Allgather(self, own, everyone):  # noqa: N802 -- as communicators call it
        everyone[:] = own

    def Bcast(self, array, root):  # noqa: N802
        assert root == 0


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    perf_counter = monotonic


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("dml_hpc.store.saving.time", made)
    monkeypatch.setattr("dml_hpc.store.pulse.time", made)
    return made


class Run:
    """A run of steps of ``step_s`` seconds, with checkpoints in ``folder``; ``saved`` are the steps it gave a state
    at."""

    def __init__(self, folder, clock, step_s, every, **settings):
        self.said, self.saved, self.step = [], [], 0
        self._clock, self._step_s = clock, step_s
        writer = None if folder is None else Writer(One(), folder, 3, {})
        self.saving = Saving(One(), self.said.append, writer, every, **settings)
        self.saving.start(0)

    def state(self):
        self.saved.append(self.step)
        state = State({"step": self.step}, {})
        state.put("weights", np.full(100, float(self.step)), 0, 100)
        return state

    def go(self, steps):
        for _ in range(steps):
            self.step += 1
            self._clock.now += self._step_s
            self.saving.after(self.step, self.state)
        return self.saved


def settle(run):
    """Let what is being written be complete, however slow the disk."""
    if run.saving._writer.status != IDLE:
        assert run.saving._writer.finish() is None


def newest(folder):
    found = checkpoint.newest(One(), folder, None)
    assert found is None or (found.vector("weights") == found.values["step"]).all()
    return None if found is None else found.values["step"]


def test_every_so_many_steps(tmp_path, clock):
    run = Run(tmp_path, clock, 10.0, Every(steps=7))
    for _ in range(29):
        run.go(1)
        settle(run)
    assert run.saved == [7, 14, 21, 28]
    run.saving.complete(29, run.state)
    run.saving.close()
    assert newest(tmp_path) == 29 and run.saving.count == 5
    assert (tmp_path / "progress").read_text().strip() == "29"


def test_every_so_many_seconds(tmp_path, clock):
    run = Run(tmp_path, clock, 0.01, Every(seconds=60.0))
    for _ in range(40):
        run.go(1000)
        settle(run)
    run.saving.close()
    times = [0, *(step / 100 for step in run.saved)]
    assert len(times) > 6
    assert all(60 <= later - earlier < 61 for earlier, later in pairwise(times))


def test_steps_that_each_take_long(tmp_path, clock):
    run = Run(tmp_path, clock, 0, Every(steps=10))
    for step in (3, 9, 12, 13, 25, 26):
        run.step = step
        run.saving.meet(step, run.state)
        settle(run)
    run.saving.close()
    assert run.saved == [12, 25]


def test_pauses_in_the_middle_of_a_step(tmp_path, clock):
    run = Run(tmp_path, clock, 0, Every(seconds=1.0), memory=Memory())
    for _ in range(6):
        clock.now += 0.5
        assert run.saving.pause(0, 100, run.state) >= 1
        settle(run)
    run.saving.close()
    assert checkpoint.found(tmp_path)[0].name == "checkpoint-000003"
    assert len(run.saving._memory.snapshots) == 2


def test_a_disk_that_is_full_is_warned_of_and_the_run_goes_on(tmp_path, clock, monkeypatch):
    run = Run(tmp_path, clock, 1.0, Every(steps=5))
    run.go(5)
    assert run.saving._writer.finish() is None
    honest = os.fsync

    def full(handle):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(os, "pwrite", lambda *arguments: full(0))
    while not run.said:
        run.go(1)
    assert "could not be written (rank 0: No space left on device)" in run.said[0]
    assert newest(tmp_path) == 5 and run.saving.failures == 1
    monkeypatch.setattr(os, "fsync", honest)
    said = len(run.said)
    run.go(5)
    run.saving.complete(run.step, run.state)
    run.saving.close()
    assert newest(tmp_path) == run.step and len(run.said) <= said + 1


def test_a_folder_that_goes_away_is_warned_of(tmp_path, clock):
    folder = tmp_path / "kept"
    folder.mkdir()
    run = Run(folder, clock, 1.0, Every(steps=5))
    (folder / "progress").unlink()
    folder.rmdir()
    run.go(5)
    run.saving.complete(run.step, run.state)
    run.saving.close()
    assert len(run.said) == 2 and all("No such file or directory" in line for line in run.said)


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGUSR1])
def test_being_told_to_stop_is_kept_and_is_75(tmp_path, clock, told):
    asked = [0]
    run = Run(tmp_path, clock, 0.01, Every(steps=4), asked=lambda: asked[0])
    run.go(8)
    asked[0] = int(told)
    with pytest.raises(AgreedError, match=rf"{told.name} after step (\d+): all is in .*with --resume goes on") as error:
        run.go(100)
    run.saving.close()
    assert error.value.exit_code == 75
    assert newest(tmp_path) == run.step < 40  # within a quarter of a second
    assert run.saved[-1] == run.step


def test_being_told_to_stop_when_the_disk_is_full_says_where_the_run_goes_on_from(tmp_path, clock, monkeypatch):
    run = Run(tmp_path, clock, 1.0, Every(steps=3), asked=lambda: signal.SIGTERM if run.step > 4 else 0)
    run.go(3)
    run.saving._writer.finish()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(checkpoint_writer, "_write", full)
    with pytest.raises(AgreedError, match=r"last checkpoint could not be written .*--resume goes on from .*-000001"):
        run.go(3)
    run.saving.close()
    assert newest(tmp_path) == 3


def test_without_checkpoints_being_told_to_stop_ends_the_run(clock):
    run = Run(None, clock, 1.0, None, asked=lambda: signal.SIGTERM)
    with pytest.raises(AgreedError, match="told to stop by SIGTERM") as error:
        run.go(1)
    assert error.value.exit_code == 128 + signal.SIGTERM and not run.saving.active


def test_snapshots_take_little_of_the_time(clock):
    memory = Memory()
    run = Run(None, clock, 0.01, None, memory=memory)
    run.go(1000)
    assert 8 <= len(run.saved) <= 10 and len(memory.snapshots) == 2  # one a second
    state, run.saved = run.state, []

    def slow():
        clock.now += 0.5
        return state()

    run.state = slow
    run.go(20_000)
    assert 0.5 * len(run.saved) <= 0.03 * clock.now


def test_nothing_is_left_open(tmp_path, clock):
    def open_files():
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    for number in range(3):
        run = Run(tmp_path, clock, 1.0, Every(steps=1))
        run.go(2 + number)
        run.saving.close()
    assert open_files() == before


def test_who_leaves_at_once_does_not_wait_for_a_disk_that_hangs(tmp_path, clock, monkeypatch):
    hangs, mended = threading.Event(), threading.Event()

    def hang(handle):
        hangs.set()
        mended.wait()

    monkeypatch.setattr(os, "fsync", hang)
    run = Run(tmp_path, clock, 1.0, Every(steps=1))
    run.go(1)
    hangs.wait()
    run.saving.close(at_once=True)
    thread = run.saving._writer._thread._thread
    assert thread.daemon and thread.is_alive()  # Python waits for no such thread either
    mended.set()
    thread.join()
    assert checkpoint.found(tmp_path) == []


def test_work_behind_the_run_is_done_in_order_and_its_errors_are_kept():
    background, done = checkpoint_writer.Background(), []

    def fail():
        raise OSError("full")

    futures = [background.submit(done.append, number) for number in range(9)]
    failed = background.submit(fail)
    background.close(wait=True)
    assert done == list(range(9)) and all(future.result() is None for future in futures)
    with pytest.raises(OSError, match="full"):
        failed.result(0)


@pytest.fixture
def signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT,
                                                              signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_signal_is_noted_and_a_second_term_is_obeyed_at_once(signals, monkeypatch):
    asked = Asked.on_signals()
    assert asked() == 0
    now = [100.0]
    monkeypatch.setattr("dml_hpc.stopping.time.monotonic", lambda: now[0])
    signal.raise_signal(signal.SIGTERM)
    now[0] += AGAIN_S / 2
    signal.raise_signal(signal.SIGTERM)  # the same one, which came by another way
    assert asked() == signal.SIGTERM
    assert Asked.on_signals() is asked  # when survivors begin again, what was asked before still holds
    now[0] += AGAIN_S
    with pytest.raises(Stopped) as error:
        signal.raise_signal(signal.SIGTERM)
    assert error.value.exit_code == 143


def test_a_warning_is_no_reason_to_stop_at_once(signals, monkeypatch):
    asked = Asked.on_signals()
    now = [100.0]
    monkeypatch.setattr("dml_hpc.stopping.time.monotonic", lambda: now[0])
    for _ in range(3):
        signal.raise_signal(signal.SIGUSR1)
        now[0] += 2 * AGAIN_S
    assert asked() == signal.SIGUSR1
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGTERM)
