"""A second SIGTERM, or Ctrl-C, ends a run at once, whatever its checkpoint does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_elastic import ULFM, needs_ulfm, open_mpi  # noqa: F401 -- the mark asks it

HANGING = Path(__file__).with_name("hanging.py")
SOON_S = 20.0
pytestmark = pytest.mark.job


@pytest.fixture
def told(tmp_path):
    """Return a folder for what hanging.py tells."""
    folder = tmp_path / "told"
    folder.mkdir()
    os.mkfifo(folder / "fifo")
    return folder


def command(data: Path, tmp_path: Path) -> list[object]:
    return ["train", data, "-o", tmp_path / "m.h5", "--algorithm", "sync", "--batch-size", 100, "--epochs", 1_000_000,
            "--checkpoint", tmp_path / "kept", "--checkpoint-every", "3steps"]


def processes_of(job: subprocess.Popen[str], told: Path, ranks: str) -> list[int]:
    """Return whom to send signals, once all of the ranks hang."""
    found = [told / rank for rank in ranks.split(",")]
    while not all(path.exists() for path in found):
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)
    return [int(path.read_text()) for path in found]


def ended(job: subprocess.Popen[str], processes: list[int], number: int) -> tuple[float, str]:
    """Send the signal again and again; return after how many seconds the job ended, and what it said."""
    began = time.monotonic()
    while job.poll() is None and time.monotonic() < began + SOON_S:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        time.sleep(0.1)
    assert job.poll() is not None, "it still runs"
    return time.monotonic() - began, job.communicate()[1]


@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGTERM, "0"), (signal.SIGTERM, "1"), (signal.SIGINT, "1"),
                                               (signal.SIGINT, "0,1,2")])
def test_of_a_job_whose_checkpoint_hangs(number, ranks, start_mpirun, two_classes, tmp_path, told):
    job = start_mpirun(3, HANGING, told, ranks, *command(two_classes, tmp_path))
    seconds, err = ended(job, processes_of(job, told, ranks)[:1], number)
    assert job.returncode not in (0, 75) and f"stopped by {number.name}" in err, err
    assert seconds < SOON_S / 2 and "Traceback" not in err


@needs_ulfm
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_of_a_job_that_survives_deaths(number, start_mpirun, two_classes, tmp_path, told):
    """Every rank is told, and none takes another's end for a death after which it is to go on."""
    job = start_mpirun(3, HANGING, told, "0,1,2", *command(two_classes, tmp_path), "--elastic", **ULFM)
    seconds, err = ended(job, processes_of(job, told, "0,1,2"), number)
    assert job.returncode not in (0, 75) and f"stopped by {number.name}" in err, err
    assert seconds < SOON_S / 2 and "Traceback" not in err, err


@pytest.mark.maths
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_of_one_process_whose_checkpoint_hangs(number, two_classes, tmp_path, told):
    line = [sys.executable, HANGING, told, "0", *command(two_classes, tmp_path)]
    job = subprocess.Popen(list(map(str, line)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        seconds, err = ended(job, processes_of(job, told, "0"), number)
    finally:
        job.kill()
    assert job.returncode == 128 + number and f"stopped by {number.name}; there is no checkpoint yet" in err
    assert seconds < SOON_S / 2 and "Traceback" not in err
