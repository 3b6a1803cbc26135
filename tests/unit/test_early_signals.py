"""A job that is told to stop in its first second, before its ranks can hear it, has heard it all the same."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import pytest

from dml_hpc.signals import ASKING, FORWARDED

DYING = Path(__file__).with_name("dying.py")
IN_START = "dml_hpc.mpi:world@1"
LONG = ("--algorithm", "sync", "--batch-size", 100, "--epochs", 100_000)
pytestmark = pytest.mark.job


def train(data: Path, folder: Path, *options: object) -> list[object]:
    return ["train", data, "-o", folder / "m.h5", *LONG, *options]


def status(process: int) -> dict[str, str]:
    """Return what the system says of a process, {}: it is gone."""
    try:
        return dict(re.findall(r"^(\w+):\t(.*)$", Path(f"/proc/{process}/status").read_text(), re.M))
    except OSError:
        return {}


def parent_of(process: int) -> int:
    return int(status(process).get("PPid", -1))


def ranks(launcher: int) -> list[int]:
    """Return the processes of the ranks under a launcher: supervisors, and their children."""
    children: dict[int, list[int]] = {}
    for process in map(int, filter(str.isdigit, os.listdir("/proc"))):
        children.setdefault(parent_of(process), []).append(process)
    found, new = [], [launcher]
    while new:
        new = [child for process in new for child in children.get(process, [])]
        found += new
    return sorted(process for process in found if command(process) == sys.executable)


def command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[0].decode()
    except OSError:
        return ""


def signals(process: int, *masks: str) -> set[int]:
    """Return the signals in the masks of a process: blocked, pending, ignored or caught."""
    told = status(process)
    bits = 0
    for mask in masks:
        bits |= int(told.get(mask, "0"), 16)
    return {number for number in range(1, 65) if bits >> (number - 1) & 1}


def when(job, holds: Callable[[list[int]], bool]) -> list[int]:
    """Return the job's ranks as soon as something holds of them."""
    while True:
        assert job.poll() is None, job.communicate()
        there = ranks(job.pid)
        if holds(there):
            return there


def prepared(there: list[int], count: int) -> bool:
    return len(there) >= count and all(signals(process, "SigBlk", "SigCgt") >= {*ASKING} for process in there)


def kept_and_gone(job, folder: Path, number: int) -> None:
    """Check that the job has heard the signal, and left with a checkpoint."""
    _, err = job.communicate(timeout=60)
    assert job.returncode == 75, err
    said = [line for line in err.splitlines() if line.startswith("dml-hpc:")]
    assert len(said) == 1 and f"{signal.Signals(number).name} after step" in said[0], err
    assert [name for name in os.listdir(folder) if name.startswith("checkpoint-")]


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_a_warning_to_the_launcher_while_ranks_start(processes, start_mpirun, two_classes, tmp_path):
    """While Python imports, when one has its supervisor, and when both have."""
    folder = tmp_path / "kept"
    job = start_mpirun(2, "-m", "dml_hpc", *train(two_classes, tmp_path, "--checkpoint", folder))
    when(job, lambda there: prepared(there, processes))
    job.send_signal(signal.SIGUSR1)
    kept_and_gone(job, folder, signal.SIGUSR1)


@pytest.mark.parametrize("number", ASKING)
def test_one_that_all_processes_get_counts_once(number, start_mpirun, two_classes, tmp_path):
    """As a batch system sends it to a step: each rank has it from its supervisor too."""
    folder = tmp_path / "kept"
    job = start_mpirun(2, "-m", "dml_hpc", *train(two_classes, tmp_path, "--checkpoint", folder))
    for process in when(job, lambda there: prepared(there, 4)):
        os.kill(process, number)
    kept_and_gone(job, folder, number)


MOMENTS = {
    "before the fork": "dml_hpc.mpi:supervised@1",
    "after the fork": "dml_hpc.supervise:_die_with_supervisor@1",
    "in MPI's start": IN_START,
    "when MPI has started": "dml_hpc.mpi:joined@1",
    "before the folder is looked at": "dml_hpc.commands.keeping:Keeping.check@1",
    "before they are read": "dml_hpc.commands.fitting:open_data@1",
}


@pytest.mark.parametrize(("number", "moment"), [  # both are held alike
    pytest.param(number, moment, marks=[] if "MPI" in moment else pytest.mark.maths)
    for number, moment in zip(cycle(ASKING), MOMENTS, strict=False)])
def test_one_rank_alone_is_told(number, moment, start_mpirun, two_classes, tmp_path):
    folder = tmp_path / "kept"
    plan = f"{number.name}@1@{MOMENTS[moment]}"
    job = start_mpirun(2, DYING, plan, *train(two_classes, tmp_path, "--checkpoint", folder))
    kept_and_gone(job, folder, number)


@pytest.fixture
def stopped_in_start(start_mpirun, two_classes, tmp_path) -> Iterator[tuple]:
    """Yield a job of which one rank waits in MPI's start for the other, and that one's process, which is stopped."""
    job = start_mpirun(2, DYING, f"SIGSTOP@1@{IN_START}", *train(two_classes, tmp_path, "--checkpoint",
                                                                  tmp_path / "kept"))
    there = when(job, lambda there: len(there) == 4 and any(status(process).get("State", "")[:1] == "T"
                                                            for process in there))
    stopped = next(process for process in there if status(process)["State"][0] == "T")
    yield job, stopped
    for process in there:
        if command(process) == sys.executable:
            os.kill(process, signal.SIGKILL)


def test_a_warning_while_a_rank_waits_for_others_to_start(stopped_in_start, tmp_path):
    job, stopped = stopped_in_start
    job.send_signal(signal.SIGUSR1)
    when(job, lambda there: signal.SIGUSR1 in signals(stopped, "ShdPnd"))
    os.kill(stopped, signal.SIGCONT)
    kept_and_gone(job, tmp_path / "kept", signal.SIGUSR1)


def test_a_second_term_while_mpi_starts_ends_the_job(stopped_in_start):
    job, stopped = stopped_in_start
    there = ranks(job.pid)
    other = next(parent for parent in map(parent_of, there) if parent in there and parent != parent_of(stopped))
    until_s = time.monotonic() + 20
    while job.poll() is None and parent_of(other) >= 0 and time.monotonic() < until_s:
        os.kill(other, signal.SIGTERM)
        time.sleep(0.1)
    try:
        job.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        # Open MPI's launcher now and then waits for a lock for ever (PMIX_ERR_UNREACH), when all ranks have gone.
        assert not [process for process in there if command(process) == sys.executable]
        job.kill()
        job.communicate()
    assert job.returncode not in (0, 2, 75)


def test_nothing_is_held_once_a_run_is_under_way(start_mpirun, two_classes, tmp_path):
    """What it starts then inherits that."""
    folder = tmp_path / "kept"
    job = start_mpirun(2, "-m", "dml_hpc", *train(two_classes, tmp_path, "--checkpoint", folder, "--checkpoint-every",
                                                  "1steps"))
    there = when(job, lambda there: folder.exists() and any(folder.glob("checkpoint-*")))
    assert len(there) == 4
    assert all(not signals(process, "SigBlk") & {*FORWARDED} for process in there)
    job.send_signal(signal.SIGUSR1)
    kept_and_gone(job, folder, signal.SIGUSR1)


@pytest.mark.parametrize(("number", "keeps"), [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGINT, True)])
def test_what_is_to_end_at_once_does(number, keeps, mpirun, two_classes, tmp_path):
    options = ("--checkpoint", tmp_path / "kept") if keeps else ()
    done = mpirun(2, DYING, f"{number.name}@0@{IN_START}", *train(two_classes, tmp_path, *options))
    assert done.returncode == 128 + number, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("dml-hpc:")]
    assert said == [f"dml-hpc: rank 0 of 2: stopped by {number.name}"]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("processes", [2, 4])
def test_control_c_while_ranks_start_leaves_no_traceback(processes, start_mpirun, two_classes, tmp_path):
    job = start_mpirun(2, "-m", "dml_hpc", *train(two_classes, tmp_path, "--checkpoint", tmp_path / "kept"))
    when(job, lambda there: prepared(there, processes))
    os.killpg(job.pid, signal.SIGINT)
    _, err = job.communicate(timeout=20)
    assert job.returncode in (130, 1), err  # Open MPI's launcher leaves with a status of its own
    assert "Traceback" not in err and not (tmp_path / "m.h5").exists()
