"""One run at a time keeps its checkpoints in a folder, goes on with its own data set alone, and says what is wrong."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_support import write_dataset

from dml_hpc.cli import main, root
from dml_hpc.commands import fitting, keeping
from dml_hpc.commands.keeping import SWITCHED_OFF, Keeping
from dml_hpc.commands.opening import open_data
from dml_hpc.commands.same_data import difference, of_data
from dml_hpc.console import Console
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.mpi import Alone
from dml_hpc.store import checkpoint, lock
from dml_hpc.store.checkpoint_writer import Writer
from dml_hpc.store.saving import Memory, Saving
from dml_hpc.store.state import State

ROWS = [30, 40, 20, 10]


@pytest.fixture(autouse=True)
def own_signals():
    """Give back the signals that `Keeping.check` takes."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def other_run(tmp_path):
    """Lock a folder as another process would, and yield what ends that run."""
    folder = tmp_path / "kept"
    folder.mkdir()
    handle = os.open(folder / lock.NAME, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    os.write(handle, f"process 12 on {os.uname().nodename}\n".encode())
    open_ones = [handle]

    def end() -> None:
        while open_ones:
            os.close(open_ones.pop())

    yield end
    end()


def test_a_folder_in_use_is_refused_and_nothing_in_it_touched(tmp_path, other_run, monkeypatch):
    folder = tmp_path / "kept"
    being_written = folder / checkpoint.partial_name(3, "0af3")
    being_written.mkdir()
    monkeypatch.setattr(keeping, "ENDING_S", 0.1)
    for resume in (False, True):
        with pytest.raises(UserError, match=r"another run \(process 12 on .+\) .*kept; .* give another") as error:
            Keeping(folder, resume=resume).check(0, [])
        assert "\n" not in str(error.value)
    assert being_written.exists()
    Keeping(folder).check(3, [])  # rank 0 looks
    other_run()
    one = Keeping(folder)
    one.check(0, [])
    assert sorted(os.listdir(folder)) == [lock.NAME]
    assert f"process {os.getpid()} on " in (folder / lock.NAME).read_text()


def test_a_run_that_resumes_waits_for_the_one_before_to_end(tmp_path, other_run, monkeypatch):
    """The team before may still be ending when `supervise` starts the next one."""
    looks = []

    class Clock:
        def wait(self, seconds: float) -> None:
            looks.append(seconds)
            if len(looks) == 3:
                other_run()

    monkeypatch.setattr(lock.threading, "Event", Clock)
    Keeping(tmp_path / "kept", resume=True).check(0, [])
    assert len(looks) == 3


def test_a_node_that_has_died_is_given_more_time(tmp_path, other_run, monkeypatch, capsys):
    """A file server keeps its locks for a while."""
    folder, now = tmp_path / "kept", [0.0]
    (folder / lock.NAME).write_text("process 12 on a-node-that-is-gone\n")

    class Clock:
        def wait(self, seconds: float) -> None:
            now[0] += 1.0
            if now[0] == 95:
                other_run()

    monkeypatch.setattr(lock.threading, "Event", Clock)
    monkeypatch.setattr(lock.time, "monotonic", lambda: now[0])
    with pytest.raises(UserError, match=r"another run \(process 12 on a-node-that-is-gone\)"):
        Keeping(folder).check(0, [])
    assert now[0] == 0
    Keeping(folder, resume=True).check(0, [])
    assert now[0] == 95
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "is held by another run (process 12 on a-node-that-is-gone)" in said[0]


def test_survivors_of_a_rank_that_is_stopped_go_on_with_a_warning(tmp_path, other_run):
    memory = Memory()
    memory.ranks.append(4)
    own = Keeping(tmp_path / "kept", memory=memory)
    own.check(0, [])
    said: list[str] = []
    console = Console()
    console.say = lambda line="": said.append(line)  # type: ignore[method-assign]
    assert own.kept(Alone(), console, {}) is None
    assert "warning" in said[0] and "another run" in said[0] and "goes on" in said[0]
    assert "nothing" in said[1]


def test_a_process_is_not_in_its_own_way_and_lets_go_at_the_end_of_the_run(tmp_path):
    folder = tmp_path / "kept"
    first, again = Keeping(folder), Keeping(folder)
    first.check(0, [])
    again.check(0, [])
    with first.saving(Alone(), Console(rank=1), {}, None), pytest.raises(BlockingIOError):
        held_by_another(folder)
    with pytest.raises(BlockingIOError):
        held_by_another(folder)
    with again.saving(Alone(), Console(rank=1), {}, None):
        pass
    held_by_another(folder)


def held_by_another(folder: Path) -> None:
    with (folder / lock.NAME).open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_lock_ends_with_the_process_and_not_with_what_it_has_started(tmp_path):
    script = ("import os, subprocess, sys; from pathlib import Path; from dml_hpc.store import lock; "
              "held = lock.take(Path(sys.argv[1])); "
              "subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()']); "
              "print('held', flush=True); os.kill(os.getpid(), 9)")
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    assert process.wait() == -9
    lock.take(tmp_path)  # its child still runs
    process.stdin.close()
    process.stdout.close()


@pytest.mark.maths
@pytest.mark.job
def test_a_second_run_in_a_folder_is_refused_and_the_first_goes_on(start_mpirun, mpirun, tmp_path):
    data, kept = imported(tmp_path / "data"), tmp_path / "kept"
    line = ["-m", "dml_hpc", "train", data, "--checkpoint", kept, "--checkpoint-every", "1steps", "--keep", 1]
    first = start_mpirun(2, *line, "-o", tmp_path / "first.h5", "--epochs", 100_000)
    while not list(kept.glob("checkpoint-*")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    for resume in ((), ("--resume",)):
        second = mpirun(1, *line, "-o", tmp_path / "second.h5", "--epochs", 1, *resume)
        said = [told for told in second.stderr.splitlines() if told.startswith("dml-hpc:")]
        assert second.returncode == 2 and len(said) == 1, second.stderr
        assert f"another run (process {(kept / lock.NAME).read_text().split()[1]} on " in said[0]
    assert first.poll() is None
    os.kill(int((kept / lock.NAME).read_text().split()[1]), signal.SIGKILL)
    _, err = first.communicate(timeout=30)
    assert "Traceback" not in err and "could not be written" not in err
    step = checkpoint.newest(Alone(), kept, pytest.fail).step
    third = mpirun(1, *line, "-o", tmp_path / "third.h5", "--epochs", 1 + step, "--resume", "--json")
    assert third.returncode == 0, third.stderr
    assert json.loads(third.stdout)["resumed_from"] == step


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch, number):
    def none(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", none)
    Keeping(tmp_path / "kept").check(0, [])
    Keeping(tmp_path / "kept").check(0, [])


def test_what_cannot_be_locked_for_another_reason_says_so(tmp_path, monkeypatch):
    def broken(handle: int, how: int) -> None:
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(lock.fcntl, "flock", broken)
    with pytest.raises(UserError, match=r"cannot be locked .Input/output error"):
        Keeping(tmp_path / "kept").check(0, [])
    (tmp_path / "other" / lock.NAME).mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot be opened .Is a directory"):
        Keeping(tmp_path / "other").check(0, [])


class One(Alone):
    """The communicator of one rank, with what the pulse needs."""

    def Allgather(self, own: np.ndarray, table: np.ndarray) -> None:  # noqa: N802 -- as communicators call it
        """Gather the one rank's numbers."""
        table[:] = own


def test_a_last_checkpoint_that_fails_says_what_there_is(tmp_path, monkeypatch):
    def state() -> State:
        return State({"step": 1})

    def told(step: int) -> str:
        writer = Writer(Alone(), tmp_path, 3, {})
        saving = Saving(One(), lambda line: None, writer, asked=lambda: signal.SIGTERM)
        saving.start(0)
        with pytest.raises(AgreedError) as error:
            saving.meet(step, state)
        saving.close()
        assert error.value.exit_code == 75
        return str(error.value)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "commit", full)
        assert "could not be written (No space left on device)" in told(1)
        assert f"{tmp_path} holds none, and what was done is lost" in told(1)
    assert "goes on from here" in told(2)
    monkeypatch.setattr(checkpoint, "commit", full)
    assert f"--resume goes on from {checkpoint.found(tmp_path)[0]}" in told(3)


# What tells data sets apart


def imported(folder: Path, seed: int = 1, other: int | None = None) -> Path:
    """Write four shards; of those of another ``seed`` the last one differs, or with ``other`` that one alone."""
    X = np.random.default_rng(1).standard_normal((sum(ROWS), 3)).astype(np.float32)
    starts = np.cumsum([0, *ROWS])
    changed = [0, 1, 2, 3] if other is None else [other]
    if seed != 1:
        for shard in changed:
            X[starts[shard]] += seed
    return write_dataset(folder, X, np.arange(sum(ROWS)) % 2, ROWS)


def foreign(folder: Path, seed: int = 1, other: int | None = None) -> Path:
    """Write four files that were never imported, of the same rows as `imported`."""
    data = imported(folder / "made", seed, other)
    for number in range(4):
        with h5py.File(data / f"part-0000{number}.h5") as source, h5py.File(folder / f"f{number}.h5", "w") as target:
            target["X"], target["y"] = source["X"][:], source["y"][:]
    shutil.rmtree(data)
    return folder


def about(form: str, folder: Path, without: tuple[int, ...] = ()) -> dict:
    """Return what is said of the data set in ``folder`` when some of its shards cannot be read."""
    names = [f"part-0000{number}.h5" if form == "imported" else f"f{number}.h5" for number in range(4)]
    for number in without:
        (folder / names[number]).rename(folder / f"away{number}")
    paths, keys = ([folder], (None, None)) if form == "imported" else ([folder / name for name in names], ("X", "y"))
    found = of_data(open_data(Alone(), paths, *keys, skip_bad_shards=True))
    for number in without:
        (folder / f"away{number}").rename(folder / names[number])
    return json.loads(json.dumps(found))


@pytest.mark.parametrize("form", ["imported", "foreign"])
def test_other_shards_may_be_left_out_and_other_data_are_refused(tmp_path, form, capsys):
    write = imported if form == "imported" else foreign
    folders = {name: tmp_path / name for name in ("one", "moved", "other", "second", "fewer")}
    for folder in folders.values():
        folder.mkdir() if form == "foreign" else None
    for name, how in (("one", ()), ("other", (2,)), ("second", (3, 1))):
        write(folders[name], *how)
    shutil.rmtree(folders["moved"], ignore_errors=True)
    shutil.copytree(folders["one"], folders["moved"])
    one = about(form, folders["one"])
    assert difference(one, about(form, folders["moved"]), True) is None
    for without in ((1,), (0, 3), (2,)):
        then = about(form, folders["one"], without)
        assert len(then["left_out"]) == len(without) and len(then["shards"]) == 4 - len(without)
        for now in ((), (1,), (0, 2), (0, 3)):
            here = about(form, folders["moved"], now)
            assert difference(then, here, same_rows=False) is None
            told = difference(then, here, same_rows=True)
            assert (told is None) == (now == without)
            if told is not None:
                assert "other rows of this data set" in told and then["left_out"][0][0] in told
        for there, here in ((then, about(form, folders["other"])), (then, about(form, folders["other"], (1,))),
                            (one, about(form, folders["other"], without))):
            assert "another data set (" in difference(there, here, same_rows=False)
    then = about(form, folders["one"], (0, 2))
    here = about(form, folders["second"], (3,))  # whose second shard differs, which both have
    assert "another data set" in difference(then, here, same_rows=False)
    unread = about(form, folders["one"], (1,)), about(form, folders["second"], (1,))  # neither has read what differs
    assert (difference(*unread, same_rows=False) is None) == (form == "foreign")
    apart = about(form, folders["one"], (0, 1)), about(form, folders["one"], (2, 3))  # nothing in common
    assert (difference(*apart, same_rows=False) is None) == (form == "imported")


def test_one_more_or_one_fewer_shard_is_another_data_set(tmp_path):
    one, fewer = imported(tmp_path / "one"), tmp_path / "fewer"
    then = about("imported", one, (1,))
    some = of_data(open_data(Alone(), [one / f"part-0000{number}.h5" for number in (0, 2, 3)], None, None))
    assert "another data set" in difference(then, some, same_rows=False)
    write_dataset(fewer, np.ones((100, 4)), np.arange(100) % 2, ROWS)
    assert "another data set" in difference(then, about("imported", fewer, (1,)), same_rows=False)


def test_a_shard_takes_few_bytes(tmp_path):
    told = about("imported", imported(tmp_path / "one"), (1,))
    assert all(len(digest) == 16 for _, digest in [*told["shards"], *told["left_out"]])


# What options mean nothing alone


@pytest.fixture
def line(tmp_path, capsys, monkeypatch):
    """Return what runs a command line that is refused, and returns its one line."""
    monkeypatch.delenv("DML_HPC_CHECKPOINT", raising=False)

    def run(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and said[0].startswith("dml-hpc: ")
        return said[0]

    return run


@pytest.mark.parametrize("verb", ["train", "svd"])
@pytest.mark.parametrize(("option", "value", "says"), [
    ("--min-ranks", 1, "--elastic"), ("--keep", 3, "--checkpoint DIR"), ("--resume", None, "--checkpoint DIR"),
    ("--checkpoint-every", "60s", "--checkpoint DIR")])
def test_an_option_that_would_do_nothing_is_refused(tmp_path, line, monkeypatch, verb, option, value, says):
    data = imported(tmp_path / "data")
    words = [verb, data, "-o", tmp_path / "out.h5", *(("-k", 1) if verb == "svd" else ())]
    told = line(*words, *((option,) if value is None else (option, value)))
    assert option in told and says in told
    monkeypatch.setenv("DML_HPC_" + option[2:].replace("-", "_").upper(), str(value or 1))  # given all the same
    assert line(*words) == told
    assert os.listdir(tmp_path) == ["data"]


def test_flags_that_can_be_switched_off_are_named_as_they_are_typed():
    for name, verb in root.commands.items():
        if any(one.name == "checkpoint" for one in verb.params):
            switched = {one.name for one in verb.params if getattr(one, "secondary_opts", ())}
            assert switched - {"progress", *fitting._FREE} == set(SWITCHED_OFF.get(name, ()))


def test_a_checkpoint_without_intercept_is_named_so(tmp_path, line):
    data, kept = imported(tmp_path / "data"), tmp_path / "kept"
    words = ["train", data, "-o", tmp_path / "m.h5", "--epochs", 1, "--checkpoint", kept]
    assert main([str(word) for word in (*words, "--no-intercept")]) == 0
    (tmp_path / "m.h5").unlink()
    told = line(*words, "--resume")
    assert "was written with --no-intercept, and this run has --intercept; give the same" in told
    assert "--no-scale" in line(*words, "--resume", "--no-intercept", "--no-scale")
    assert main([str(word) for word in (*words, "--no-intercept", "--resume", "--keep", 2)]) == 0


def test_files_that_were_never_imported_are_the_same_however_they_are_scaled(tmp_path, line):
    (tmp_path / "data").mkdir()
    files = sorted(foreign(tmp_path / "data").iterdir())
    words = ["train", *files, "--x-key", "X", "--y-key", "y", "-o", tmp_path / "m.h5", "--epochs", 1, "--checkpoint",
             tmp_path / "kept", "--overwrite"]
    assert main([str(word) for word in words]) == 0
    assert "was written with --scale, and this run has --no-scale" in line(*words, "--resume", "--no-scale")
    assert "is of another data set" in line(*(word for word in words if word != files[1]), "--resume")


def test_a_head_that_says_nothing_of_the_run_is_refused(tmp_path):
    for there in ({}, {"command": "train", "data": {}, "options": {}}, {"command": "train", "data": 3, "options": {}}):
        folder = tmp_path / str(len(os.listdir(tmp_path)))
        folder.mkdir()
        writer = Writer(Alone(), folder, 1, there)
        writer.begin(1, State())
        assert writer.finish() is None
        writer.close()
        data = of_data(open_data(Alone(), [imported(folder / "data")], None, None))
        with pytest.raises(AgreedError, match=r"does not say what it is of; give another --checkpoint folder"):
            Keeping(folder, resume=True).kept(Alone(), Console(rank=1), {"command": "train", "data": data,
                                                                         "options": {}})
