"""Under mpirun, a failure on one rank ends all ranks within seconds, and is seen."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.job
CONFTEST = Path(__file__).parents[1] / "conftest.py"

HEADER = """
import sys, time
import pytest
from dml_hpc.launch import launch
from dml_hpc.mpi import world
"""

FAILURES = {
    "call": """
def test_it():
    if world().rank == 1:
        assert 6 * 7 == 41, "rank one objects"
    world().Barrier()
""",
    "exit": """
def test_it():
    if world().rank == 1:
        sys.exit("rank one objects")
    world().Barrier()
""",
    "setup": """
@pytest.fixture
def broken():
    if world().rank == 1:
        raise RuntimeError("rank one objects")

def test_it(broken):
    world().Barrier()
""",
    "setup before MPI starts": """
@pytest.fixture
def broken():
    if launch().rank == 1:
        raise RuntimeError("rank one objects")

def test_it(broken):
    pass
""",
    "teardown": """
@pytest.fixture
def broken():
    yield
    if world().rank == 1:
        raise RuntimeError("rank one objects")

def test_it(broken):
    pass

def test_next():
    world().Barrier()
""",
    "collecting": """
if world().rank == 1:
    raise RuntimeError("rank one objects")

def test_it():
    world().Barrier()
""",
}


def run_tests(mpirun, folder, body, n=2, **environment):
    shutil.copy(CONFTEST, folder)
    (folder / "test_it.py").write_text(HEADER + body)
    started = time.monotonic()
    done = mpirun(n, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--with-mpi", "--rootdir", folder,
                  folder, **environment)
    return done, time.monotonic() - started


@pytest.mark.parametrize("where", [
    pytest.param(where, marks=[] if where in ("call", "setup before MPI starts") else pytest.mark.maths)
    for where in FAILURES])
def test_failure_on_one_rank_ends_the_job(mpirun, tmp_path, where):
    done, seconds = run_tests(mpirun, tmp_path, FAILURES[where])
    assert done.returncode != 0
    assert seconds < 40
    assert "rank 1 of 2 failed" in done.stderr
    assert "rank one objects" in done.stderr
    assert "test_it.py" in done.stderr


def test_a_deadlock_ends_at_the_deadline_with_all_stacks(mpirun, tmp_path):
    done, seconds = run_tests(mpirun, tmp_path, """
def test_it():
    if world().rank == 1:
        world().Barrier()
    else:
        time.sleep(60)
""", DML_HPC_TEST_DEADLINE_S="2")
    assert done.returncode != 0
    assert seconds < 40
    assert "Timeout" in done.stderr
    assert done.stderr.count("in test_it") == 2, "both ranks say where they are"


def test_only_rank_0_reports(mpirun, tmp_path):
    done, _ = run_tests(mpirun, tmp_path, """
def test_it():
    print("hidden")
    world().Barrier()
""", n=3)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1 passed") == 1
    assert "hidden" not in done.stdout + done.stderr
