"""A rank that raises, exits or is killed in the middle of training ends the job, and the job says who and why."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from dml_hpc.mpi import agree

SABOTEUR = Path(__file__).with_name("saboteur.py")


@pytest.mark.job
@pytest.mark.parametrize(("mode", "says"), [
    ("raise", r"rank 1 of 3: RuntimeError: sabotaged"),
    ("exit", r"rank 1 of 3: sys\.exit\(3\) was called"),
    ("kill", r"rank 1 of 3 \(process \d+ on .*\) was killed by signal 9 \(SIGKILL\)"),
    ("kill-supervisor", r"rank 1 of 3 \(process \d+ on .*\) lost its supervisor"),
    ("leave", r"rank 1 of 3 \(process \d+ on .*\) ended with status 0 in the middle of its work"),
])
def test_a_failing_rank_ends_the_job_and_is_named(mode, says, mpirun, two_classes, tmp_path):
    model = tmp_path / "model.h5"
    started = time.monotonic()
    done = mpirun(3, SABOTEUR, mode, 1, 40, "--", "train", two_classes, "-o", model, "--epochs", 5000)
    assert time.monotonic() - started < 10 + 15  # the job's own ten seconds, and a machine busy with other things
    assert done.returncode != 0
    assert re.search(says, done.stderr), done.stderr
    # The launcher may tell the others to stop, and they may say that it did.
    assert not re.search(r"rank [02] of 3(?!: stopped by SIG)", done.stderr), "only the rank that failed is blamed"
    assert os.listdir(tmp_path) == [], "nothing half-written"


@pytest.mark.job
@pytest.mark.parametrize(("reducer", "mode", "says"), [
    ("ring", "stall", r"rank 1 has not arrived, it is at .*objective\.py:\d+ \(batch_loss_and_gradient\), step \d+"),
    ("hierarchical", "stop", r"rank 1 does not answer"),
])
def test_a_collective_ends_at_its_deadline_and_the_missing_rank_is_named(mode, says, reducer, mpirun, two_classes,
                                                                         tmp_path):
    done = mpirun(3, SABOTEUR, mode, 1, 40, "--", "train", two_classes, "-o", tmp_path / "m.h5", "--epochs", 5000,
                  "--allreduce", reducer, "--deadline", 4, timeout_s=60)
    assert done.returncode != 0
    late = rf"rank 0 of 3: the {reducer} all-reduce .*step \d+\) did not end within 4 s: "
    assert re.search(late + says, done.stderr), done.stderr
    assert "rank 2 has not" not in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.maths
@pytest.mark.job
def test_a_rank_that_is_slow_but_getting_on_is_waited_for(mpirun, two_classes, tmp_path):
    done = mpirun(3, SABOTEUR, "slow", 1, 0, "--", "train", two_classes, "-o", tmp_path / "m.h5", "--algorithm",
                  "average", "--epochs", 6, "--deadline", 2, timeout_s=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.maths
@pytest.mark.job
def test_the_first_rank_of_a_node_may_compile_for_long_but_not_be_stopped(mpirun, two_classes, tmp_path):
    arguments = "train", two_classes, "-o", tmp_path / "m.h5", "--epochs", 1, "--deadline", 2
    slow = mpirun(2, SABOTEUR, "slow-compiling", 0, 0, "--", *arguments, timeout_s=60)
    assert slow.returncode == 0, slow.stderr
    stopped = mpirun(3, SABOTEUR, "stop-compiling", 0, 0, "--", *arguments, "--overwrite", timeout_s=40)
    assert stopped.returncode != 0
    assert re.search(r"rank 1 of 3: .* did not end within 2 s: rank 0 does not answer", stopped.stderr), stopped.stderr


@pytest.mark.maths
@pytest.mark.job
def test_predicting_has_a_deadline_too(mpirun, two_classes, tmp_path):
    model = tmp_path / "m.h5"
    assert mpirun(2, "-m", "dml_hpc", "train", two_classes, "-o", model).returncode == 0
    done = mpirun(3, SABOTEUR, "stop-scoring", 1, 1, "--", "predict", model, two_classes, "-o", tmp_path / "p.h5",
                  "--deadline", 2, timeout_s=40)
    assert done.returncode != 0
    assert "rank 1 does not answer" in done.stderr, done.stderr
    assert not (tmp_path / "p.h5").exists()


@pytest.mark.job
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_job_told_to_stop_ends_and_leaves_nothing(number, start_mpirun, two_classes, tmp_path):
    for _ in range(2):
        started = tmp_path / "started"
        job = start_mpirun(2, SABOTEUR, "tell", 1, 200, started, "train", two_classes, "-o", tmp_path / "m.h5",
                           "--epochs", 50000)
        while not started.exists():  # made by rank 1 in its 200th step
            assert job.poll() is None, job.communicate()
        job.send_signal(number)
        job.communicate(timeout=20)
        assert job.returncode != 0
        started.unlink()
        assert os.listdir(tmp_path) == []


@pytest.mark.maths
@pytest.mark.job
def test_one_rank_with_another_command_line_ends_all_of_them(mpirun, two_classes, tmp_path):
    done = mpirun(2, "-c", ONE_RANK_ASTRAY, two_classes, "-o", tmp_path / "m.h5")
    assert done.returncode == 2
    assert done.stderr.count("no/such.toml") == 1
    assert os.listdir(tmp_path) == []


ONE_RANK_ASTRAY = """
import sys
from dml_hpc.cli import main
from dml_hpc.launch import launch
sys.exit(main(["train", *sys.argv[1:], *(["--config", "no/such.toml"] if launch().rank == 1 else [])]))
"""


@pytest.mark.job
def test_a_failure_all_ranks_agree_on_is_one_line(mpirun, two_classes, tmp_path):
    done = mpirun(2, "-m", "dml_hpc", "train", two_classes / "nowhere", "-o", tmp_path / "m.h5")
    assert done.returncode == 2
    ours = [line for line in done.stderr.splitlines() if "dml-hpc" in line]
    assert len(ours) == 1
    assert "does not exist" in ours[0]
    assert "Traceback" not in done.stderr


@pytest.mark.job
def test_a_wrong_option_is_reported_once_however_many_ranks(mpirun, tmp_path):
    done = mpirun(3, "-m", "dml_hpc", "train", tmp_path, "-o", tmp_path / "m.h5", "--allreduce", "rnig")
    assert done.returncode == 2
    assert done.stderr.count("'rnig' is not one of") == 1


@pytest.mark.maths
@pytest.mark.job
def test_the_traceback_of_an_unexpected_failure_is_shown(mpirun, two_classes, tmp_path):
    done = mpirun(2, SABOTEUR, "raise", 0, 5, "--", "train", two_classes, "-o", tmp_path / "m.h5")
    assert "saboteur.py" in done.stderr
    assert "RuntimeError: sabotaged" in done.stderr


def test_agreeing_on_nothing_raises_nothing():
    class Alone:
        def allgather(self, item):
            return [item]

    assert agree(Alone(), None) is None
