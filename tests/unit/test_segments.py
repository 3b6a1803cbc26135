"""Shared memory that MPICH names after a job: no segment outlives its ranks, nor meets those of the next start."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

from dml_hpc.segments import YOUNG_S, drop_left

STARTED = """
from pathlib import Path
from dml_hpc.mpi import world
comm = world()
from mpi4py import MPI
comm.Barrier()
named = [line for line in Path("/proc/self/maps").read_text().splitlines() if "mpich_shm" in line]
print(named, flush=True)
assert MPI.Get_library_version()[:5] != "MPICH" or named
assert all(line.endswith(" (deleted)") for line in named)
comm.Dup().Barrier()
"""


@pytest.mark.job
def test_ranks_leave_no_name_to_those_that_come_after_them(tmp_path):
    """What a killed job leaves in /dev/shm would fail the next one of its number, as Slurm starts it again."""
    (tmp_path / "started.py").write_text(STARTED)

    done = subprocess.run(["mpirun", "-n", "2", sys.executable, "started.py"], cwd=tmp_path, capture_output=True,
                          text=True, timeout=120)

    assert done.returncode == 0, done.stdout + done.stderr


def _made(folder: Path, name: str, age_s: float) -> Path:
    path = folder / name
    path.write_bytes(bytes(mmap.PAGESIZE))
    os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    return path


def _hold(path: Path, ready, done) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0):
        ready.set()
        done.wait()


def test_what_nobody_has_mapped_is_removed(tmp_path):
    left, young, used, other = (_made(tmp_path, name, age_s) for name, age_s in (
        ("mpich_shm_1_0", 2 * YOUNG_S), ("mpich_shm_2_0", 0), ("mpich_shm_3_0", 2 * YOUNG_S), ("ours", 2 * YOUNG_S)))
    context = get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(used, ready, done))
    process.start()
    try:
        assert ready.wait(60)
        drop_left(tmp_path)
    finally:
        done.set()
        process.join()

    assert not left.exists()
    assert young.exists() and used.exists() and other.exists()


def test_a_node_without_any_is_left_alone(tmp_path):
    drop_left(tmp_path)
    drop_left(tmp_path / "absent")
