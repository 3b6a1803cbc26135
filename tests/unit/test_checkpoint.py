"""A checkpoint is whole or not there, whatever fails or dies while it is written; a damaged one is never used."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from dml_hpc.commands.keeping import Keeping
from dml_hpc.console import Console
from dml_hpc.errors import AgreedError, JobError, UserError
from dml_hpc.mpi import Alone
from dml_hpc.store import checkpoint
from dml_hpc.store.checkpoint_writer import IDLE, WRITING, Writer
from dml_hpc.store.saving import Memory
from dml_hpc.store.state import State

ABOUT = {"command": "train", "data": {"rows": 9, "features": 2, "kind": "dense", "dtype": "float32", "digest": "d",
                                      "shards": [["a.h5", "d"]], "left_out": []},
         "options": {"seed": 1, "objective": "logistic", "validation": False, "hidden": None}}


def state_of(step: int) -> State:
    """Return a state that tells its step, in several types."""
    state = State({"step": step, "floats": [0.1, 1 / 3, 5e-324, float("inf")], "name": "é"}, {"rank": 0})
    state.put("weights", np.arange(1000, dtype=np.float32) + step, 0, 1000)
    state.put("none", np.empty(0, np.float64), 0, 0)
    state.put("sums", np.arange(-3, 4, dtype=np.int64) * step, 0, 7)
    state.put("bytes", np.full(3, step, np.uint8), 0, 3)
    return state


def write(folder: Path, *steps: int, keep: int = 3) -> None:
    """Write a checkpoint after each of these steps."""
    writer = Writer(Alone(), folder, keep, ABOUT)
    for step in steps:
        writer.begin(step, state_of(step))
        assert writer.finish() is None
    writer.close()


def newest(folder: Path, warnings: list[str] | None = None) -> checkpoint.OnDisk | None:
    found = checkpoint.newest(Alone(), folder, lambda line: (warnings if warnings is not None else []).append(line))
    if found is not None:
        check_whole(found)
    return found


def check_whole(kept: checkpoint.OnDisk) -> None:
    state = state_of(kept.step)
    assert (kept.about, kept.values, kept.own) == (ABOUT, state.values, [state.own])
    assert sorted(kept.names()) == sorted(piece.name for piece in state.pieces)
    for piece in state.pieces:
        vector = kept.vector(piece.name)
        assert vector.dtype == piece.array.dtype and np.array_equal(vector, piece.array)


def test_what_is_read_is_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr("dml_hpc.store.checkpoint_writer._CHUNK_BYTES", 100)
    write(tmp_path, 7)
    kept = newest(tmp_path)
    assert kept.step == 7
    assert np.array_equal(kept.vector("weights", 13, 700), np.arange(13, 700) + 7)
    assert kept.vector("sums", 7).size == 0
    strided = np.zeros(20, np.float32)[::2]
    kept.read("weights", strided, 5)
    assert np.array_equal(strided, np.arange(5, 15) + 7)
    for wrong in (lambda: kept.vector("gradient"), lambda: kept.vector("sums", 0, 8),
                  lambda: kept.read("weights", np.empty(3))):
        with pytest.raises(JobError):
            wrong()


def test_a_file_that_becomes_shorter_after_it_was_checked_is_an_error(tmp_path):
    write(tmp_path, 1)
    kept = newest(tmp_path)
    os.truncate(kept.files[0][0], 8)
    with pytest.raises(JobError, match="shorter"):
        kept.vector("weights")
    kept.files[0][0].unlink()
    with pytest.raises(JobError, match=r"rank-00000\.bin can no longer be read: No such file"):
        kept.vector("weights")


def test_the_newest_stay_and_their_numbers_go_on(tmp_path):
    write(tmp_path, *range(1, 6), keep=2)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["checkpoint-000005", "checkpoint-000004"]
    write(tmp_path, 6, 6, keep=1)  # two of one step: in its middle, say
    assert [path.name for path in checkpoint.found(tmp_path)] == ["checkpoint-000007"]
    assert newest(tmp_path).step == 6
    assert os.listdir(tmp_path) == ["checkpoint-000007"]


def test_what_the_run_changes_meanwhile_is_not_written(tmp_path):
    writer = Writer(Alone(), tmp_path, 3, ABOUT)
    state = state_of(4)
    writer.begin(4, state)
    state.values["floats"].append(7.0)
    state.values["step"] = state.own["rank"] = 5
    for piece in state.pieces:
        piece.array[:] = 0
    assert writer.finish() is None
    writer.close()
    assert newest(tmp_path).step == 4
    kept = newest(tmp_path)
    kept.values["part"], kept.own[0]["part"] = {"losses": []}, {}
    kept.part("part").values["losses"].append(1.0)  # what a run makes of it leaves it as it was
    assert kept.values["part"] == {"losses": []}


_OPERATIONS = {"mkdir", "rmdir", "unlink", "rename", "open", "close", "fsync", "write", "flush", "listdir", "scandir"}


def watch_operations(at: int, act) -> None:
    """Call ``act()`` in place of the file operation number ``at`` (from 1) of threads that start from now on."""
    count = 0

    def on_call(frame: object, event: str, function: object) -> None:
        nonlocal count
        if event == "c_call" and getattr(function, "__name__", "") in _OPERATIONS:
            count += 1
            if count == at:
                act()

    threading.setprofile(on_call)


def test_a_death_between_any_two_operations_leaves_a_whole_checkpoint(tmp_path):
    """A process writes a third checkpoint, of which two stay, and is gone at every operation in turn."""
    (tmp_path / "before").mkdir()
    write(tmp_path / "before", 1, 2, keep=2)
    seen, number = set(), 0
    while True:
        number += 1
        folder = tmp_path / f"after-{number}"
        shutil.copytree(tmp_path / "before", folder)
        child = os.fork()
        if child == 0:
            try:
                watch_operations(number, lambda: os._exit(9))
                write(folder, 3, keep=2)
            finally:
                os._exit(1 if sys.exc_info()[0] else 0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        warnings: list[str] = []
        seen.add(newest(folder, warnings).step)
        assert not warnings
        checkpoint.clear(folder)
        write(folder, 4)
        assert newest(folder).step == 4
        assert not [name for name in os.listdir(folder) if not name.startswith("checkpoint-")]
        if code == 0:
            break
        assert code == 9
    assert seen == {2, 3}
    assert number > 15


def test_an_operation_that_fails_leaves_those_before_and_the_next_one_is_written(tmp_path):
    number, failures = 0, 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, 1)
        failed = []

        def fail(failed: list[int] = failed) -> None:
            failed.append(1)
            raise OSError(errno.ENOSPC, "what the system says")

        watch_operations(number, fail)
        try:
            writer = Writer(Alone(), folder, 1, ABOUT)
            writer.begin(2, state_of(2))
            told = writer.finish()
        finally:
            threading.setprofile(None)
        assert newest(folder).step in ((1, 2) if told else (2,))
        if not failed:
            break
        if told is not None:
            failures += 1
            assert "No space left on device" in told
            assert not list(folder.glob(".*"))
        assert writer.status == IDLE
        writer.begin(3, state_of(3))
        assert writer.finish() is None
        writer.close()
        assert newest(folder).step == 3
    assert failures > 8


def test_what_became_of_the_one_before_is_not_forgotten(tmp_path, monkeypatch):
    honest = checkpoint.commit
    calls: list[int] = []

    def commit(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.EIO, "")
        honest(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "commit", commit)
    writer = Writer(Alone(), tmp_path, 3, ABOUT)
    writer.begin(1, state_of(1))
    while writer.status == WRITING:
        pass
    assert writer.settle() is None
    writer.begin(2, state_of(2))
    assert writer.finish() == "Input/output error"
    assert writer.finish() is None
    writer.close()
    assert newest(tmp_path).step == 2


def test_threads_and_files_are_let_go(tmp_path):
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    write(tmp_path, 1)
    before, threads = open_files(), threading.active_count()
    write(tmp_path, *range(2, 8))
    newest(tmp_path)
    assert (open_files(), threading.active_count()) == (before, threads)


def truncate(path: Path) -> None:
    os.truncate(path / "rank-00000.bin", 40)


def lengthen(path: Path) -> None:
    with (path / "rank-00000.bin").open("ab") as file:
        file.write(b"0")


def flip(path: Path, name: str = "rank-00000.bin", place: int = 1234) -> None:
    content = bytearray((path / name).read_bytes())
    content[place] ^= 16
    (path / name).write_bytes(content)


def fifo(path: Path, name: str = "rank-00000.bin") -> None:
    (path / name).unlink()
    os.mkfifo(path / name)


def replace_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("a file")


DAMAGES = {
    "truncated": (truncate, "40 bytes of"),
    "longer": (lengthen, "bytes of"),
    "a flipped bit": (flip, "has changed"),
    "no file": (lambda path: (path / "rank-00000.bin").unlink(), "No such file"),
    "a FIFO": (fifo, "is no file"),
    "an empty folder": (lambda path: [(path / name).unlink() for name in os.listdir(path)], "state.json cannot be"),
    "no folder": (replace_folder, "state.json cannot be read"),
    "a FIFO as head": (lambda path: fifo(path, "state.json"), "is no file"),
    "an empty head": (lambda path: (path / "state.json").write_text(""), "not whole"),
    "half a head": (lambda path: os.truncate(path / "state.json", 200), "not whole"),
    "no text": (lambda path: (path / "state.json").write_bytes(b"\xff\xfe\x00"), "not whole"),
    "no table": (lambda path: (path / "state.json").write_text("[1]"), "not whole"),
    "a deep head": (lambda path: (path / "state.json").write_text("[" * 200_000), "not whole"),
    "a changed head": (lambda path: (path / "state.json").write_text(
        (path / "state.json").read_text().replace('"step": 2', '"step": 3')), "state.json has changed"),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_one_is_skipped_with_a_warning_and_all_damaged_are_refused(tmp_path, how):
    damage, says = DAMAGES[how]
    write(tmp_path, 1, 2)
    second, first = checkpoint.found(tmp_path)
    damage(second)
    warnings: list[str] = []
    assert newest(tmp_path, warnings).step == 1
    assert len(warnings) == 1 and str(second) in warnings[0] and says in warnings[0]
    truncate(first)
    with pytest.raises(AgreedError, match=r"no checkpoint in .* is whole") as error:
        newest(tmp_path)
    assert error.value.exit_code == 2


def change(body: dict, path: str, value: object) -> None:
    *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    for key in way:
        body = body[key]
    body[last] = value


HOSTILE = [
    ("format", 2), ("format", None), ("step", -1), ("step", "1"), ("step", 1e400), ("step", True),
    ("files", 3), ("files/0", None), ("values", []), ("about", None), ("files/0/own", 3),
    ("files/0/file", "../../secret"), ("files/0/file", "/etc/hostname"), ("files/0/file", "rank-00001.bin"),
    ("files/0/file", None), ("files/0/bytes", -64), ("files/0/bytes", 1.5),
    ("files/0/pieces/0/0", None), ("files/0/pieces/0/1", "|O"), ("files/0/pieces/0/1", "<f4,<f4"),
    ("files/0/pieces/0/1", "(2,)<f4"), ("files/0/pieces/0/1", "|V4"), ("files/0/pieces/0/1", "<M8[s]"),
    ("files/0/pieces/0/1", "import os"), ("files/0/pieces/0/1", None), ("files/0/pieces/0/1", "<c8"),
    ("files/0/pieces/0/1", "<f8"), ("files/0/pieces/0/2", -1), ("files/0/pieces/0/2", 1),
    ("files/0/pieces/0/3", -1000), ("files/0/pieces/0/3", 999), ("files/0/pieces/0/3", 1 << 70),
    ("files/0/pieces/0/4", 1 << 60), ("files/0/pieces/0/4", 500), ("files/0/pieces/0/4", -1),
    ("files/0/pieces/0/5", -4), ("files/0/pieces/0/5", 1 << 62), ("files/0/pieces/0/5", 200),
    ("files/0/pieces/0", ["weights", "<f4", 0, 1000, 1000]), ("files/0/pieces/2/0", "weights"),
]


@pytest.mark.parametrize(("where", "value"), HOSTILE, ids=lambda value: repr(value)[:24])
def test_a_head_that_describes_no_checkpoint_is_damaged_though_its_sum_is_right(tmp_path, where, value):
    write(tmp_path, 1, 2)
    head = checkpoint.found(tmp_path)[0] / "state.json"
    body = json.loads(head.read_text())["body"]
    change(body, where, value)
    head.write_text(json.dumps({"sha256": checkpoint._digest(body), "body": body}))
    warnings: list[str] = []
    assert newest(tmp_path, warnings).step == 1
    assert len(warnings) == 1 and "Traceback" not in warnings[0]


def test_an_element_that_two_pieces_hold_or_none_is_damage(tmp_path):
    write(tmp_path, 1, 2)
    head = checkpoint.found(tmp_path)[0] / "state.json"
    whole = json.loads(head.read_text())["body"]
    for pieces in ([[0, 600], [500, 400]], [[0, 500], [501, 499]], [[0, 500]]):
        body = json.loads(json.dumps(whole))
        body["files"][0]["pieces"] = [["weights", "<f4", start, count, 1000, 0] for start, count in pieces]
        head.write_text(json.dumps({"sha256": checkpoint._digest(body), "body": body}))
        warnings: list[str] = []
        assert newest(tmp_path, warnings).step == 1
        assert "weights" in warnings[0]


def test_nothing_there_is_no_damage(tmp_path):
    assert newest(tmp_path) is None
    assert newest(tmp_path / "nowhere") is None
    for name in ("checkpoint-12", "checkpoint-000001.bak", "notes.txt", "progress"):
        (tmp_path / name).mkdir()
    assert newest(tmp_path) is None


def test_the_folder_is_made_and_what_a_dead_run_left_in_it_removed(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoint.prepare(folder)
    write(folder, 1)
    left = folder / checkpoint.partial_name(2, "0af3")
    left.mkdir()
    (left / "rank-00000.bin").write_bytes(b"123")
    assert checkpoint.next_number(folder) == 3
    checkpoint.prepare(folder)
    checkpoint.clear(folder)
    assert os.listdir(folder) == ["checkpoint-000001"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder, says in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "below", "Not a directory"),
                         (tmp_path / "no" / "where", "does not exist"), (Path("/sys"), "nothing can be written")):
        with pytest.raises(UserError, match=says):
            checkpoint.prepare(folder)


@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_is_full_at_the_start_is_left_as_it_was(tmp_path, monkeypatch, there):
    def full(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "what the system says")

    folder = tmp_path / "kept"
    if there:
        write_one = folder / checkpoint.partial_name(1, "0af3")
        write_one.mkdir(parents=True)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"No space left on device.*choose another folder"):
        checkpoint.prepare(folder)
    assert folder.exists() == there
    assert not there or os.listdir(folder) == [write_one.name]


def kept(keeping: Keeping, about: dict = ABOUT):
    said: list[str] = []
    console = Console()
    console.say = lambda line="": said.append(line)  # type: ignore[method-assign]
    return keeping.kept(Alone(), console, about), said


def test_checkpoints_are_neither_passed_over_nor_made_up(tmp_path):
    with pytest.raises(UserError, match="--checkpoint DIR"):
        Keeping(resume=True).check(0, [])
    resuming = Keeping(tmp_path, resume=True)
    resuming.check(0, [])
    found, said = kept(resuming)
    assert found is None and f"nothing: {tmp_path} holds no checkpoint, and the run begins" in said[0]
    write(tmp_path, 8)
    with pytest.raises(UserError, match="give --resume to go on from there, or another folder"):
        Keeping(tmp_path).check(0, [])
    Keeping(tmp_path).check(1, [])  # rank 0 looks
    resuming.check(0, [])
    found, said = kept(resuming)
    assert found.step == 8 and "step 8, written by 1 rank" in said[0]
    memory = Memory()
    memory.ranks.append(4)  # a rank has died before there was a snapshot: these are the run's own
    own = Keeping(tmp_path, memory=memory)
    own.check(0, [])
    assert kept(own)[0].step == 8


def test_a_checkpoint_of_another_run_is_refused_naming_what_differs(tmp_path):
    write(tmp_path, 8)
    for path, value, says in (("command", "svd", "is of dml-hpc train, not svd"),
                              ("data/rows", 10, "is of another data set"), ("data/digest", "e", "another data set"),
                              ("options/objective", "hinge", "--objective logistic, and this run has --obj"),
                              ("options/validation", True, "no --validation, and this run has --validation"),
                              ("options/tau", 3, "no --tau, and this run has --tau 3"),
                              ("options/hidden", [64, 8], "no --hidden, and this run has --hidden 64,8;"),
                              ("options/class_weight", {"1.0": 2.5, "0.0": 1}, "has --class-weight 1=2.5,0=1;"),
                              ("options/shuffle", False, "has --no-shuffle;"),
                              ("options/reproducible", True, "no --reproducible, and this run has --reproducible;"),
                              ("validation", ABOUT["data"], "was written without --validation")):
        about = json.loads(json.dumps(ABOUT))
        change(about, path, value)
        with pytest.raises(AgreedError, match=says) as error:
            kept(Keeping(tmp_path, resume=True), about)
        assert error.value.exit_code == 2


@pytest.fixture(autouse=True)
def own_signals():
    """Give back the signals that `Keeping.check` takes."""
    import signal

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
