"""When ranks die the others go on to the same bits; when all are told to stop they do, and go on when started again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
from ratings_support import import_ratings, low_rank

DYING = Path(__file__).with_name("dying.py")
ULFM = {"launcher_options": ("--with-ft", "ulfm")}
STEP = "dml_hpc.trainers.loop:at_step"
SYNC = ("--algorithm", "sync", "--batch-size", 100, "--epochs", 2)
LBFGS = ("--algorithm", "lbfgs", "--tolerance", 1e-6)
pytestmark = pytest.mark.job


@cache
def open_mpi() -> bool:
    launcher = Path(sys.executable).with_name("mpirun")
    told = subprocess.run([launcher if launcher.exists() else "mpirun", "--version"], capture_output=True, text=True)
    return "Open MPI" in told.stdout


@pytest.fixture(scope="module")
def undisturbed(two_classes, tmp_path_factory):
    """Return the digest of a run of one process, which is that of any number of ranks."""
    @cache
    def digest(*options: object) -> str:
        model = tmp_path_factory.mktemp("undisturbed") / "m.h5"
        line = [sys.executable, "-m", "dml_hpc", *command(two_classes, model, *options)]
        done = subprocess.run(list(map(str, line)), capture_output=True, text=True, timeout=60, check=False)
        return result(done)["weights_digest"]

    return digest


def command(data: Path, model: Path, *options: object) -> list[object]:
    return ["train", data, "-o", model, "--reproducible", "--json", *options]


def result(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def ours(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("dml-hpc:")]


needs_ulfm = pytest.mark.skipif("not open_mpi()", reason="ranks survive one another under Open MPI alone")

DEATHS = {
    "one in a step": (SYNC, f"1@{STEP}@30", [4, 3]),
    "two at once": ((*SYNC, "--allreduce", "hierarchical"), f"1@{STEP}@30,3@{STEP}@30", None),
    "rank 0 in a snapshot, then another": (SYNC, f"0@dml_hpc.store.in_memory:_broadcast@31,3@{STEP}@40", [4, 3, 2]),
    "one in a step, one where it is met": (SYNC, f"2@{STEP}@20,1@dml_hpc.store.saving:Memory.newest@2", None),
    "before anything is remembered": (SYNC, f"3@{STEP}@1", [4, 3]),
    "in start-up": (SYNC, "2@dml_hpc.commands.fitting:about_run@1", [3]),
    "in an L-BFGS iteration": (LBFGS, f"2@{STEP}@4", [4, 3]),
    "when rank 0 has written the model": (SYNC, "1@dml_hpc.commands.train:_tell@1", None),
    "at the very end": (SYNC, "0@dml_hpc.watch:Watch.close@1", None),
}


@needs_ulfm
@pytest.mark.parametrize("moment", DEATHS)
def test_survivors_go_on_to_the_same_bits(moment, mpirun, two_classes, undisturbed, tmp_path):
    options, plan, ranks = DEATHS[moment]
    expected = undisturbed(*options)
    done = mpirun(4, DYING, plan, *command(two_classes, tmp_path / "m.h5", *options), "--elastic", **ULFM,
                  timeout_s=120)
    told = result(done)
    assert told["weights_digest"] == expected
    assert ranks is None or told["ranks_at_starts"] == ranks
    assert len(re.findall(r"was killed by signal 9", done.stderr)) == plan.count(",") + 1
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["m.h5"]


@pytest.fixture(scope="module")
def factorised(tmp_path_factory):
    """Return ratings, how they are factorised, and what one process tells of it."""
    folder = tmp_path_factory.mktemp("ratings")
    ratings = import_ratings(folder, "ratings", low_rank(), (4, 6))
    options = ("-k", 3, "--epochs", 8, "--test", ratings, "--json")
    line = list(map(str, [sys.executable, "-m", "dml_hpc", "mf", ratings, "-o", folder / "f.h5", *options]))
    return ratings, options, result(subprocess.run(line, capture_output=True, text=True, timeout=60, check=False))


@needs_ulfm
@pytest.mark.parametrize("plan", [
    "0@dml_hpc.decomposition.mf.carousel:Carousel.leave@40,2@dml_hpc.store.saving:Memory.newest@2",
    "1@dml_hpc.commands.mf_learning:write_rating_factors@1",
], ids=["rank 0 among blocks, another where it is met", "one while factors are written"])
def test_factors_of_ratings_are_the_same_whoever_dies(plan, mpirun, factorised, tmp_path):
    ratings, options, expected = factorised
    done = mpirun(3, DYING, plan, "mf", ratings, "-o", tmp_path / "f.h5", *options, "--elastic", **ULFM, timeout_s=120)
    told = result(done)
    for key in ("weights_digest", "rmses_train", "rmses_test"):
        assert told[key] == expected[key]
    assert told["ranks_at_starts"][0] == 3
    assert len(re.findall(r"was killed by signal 9", done.stderr)) == plan.count(",") + 1
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["f.h5"]


@needs_ulfm
@pytest.mark.parametrize("plan", ["1@dml_hpc.watch:Watch.close@1", "2@dml_hpc.watch:Watch.close@1,"
                                  "1@dml_hpc.survival:_all_say@1"])
def test_the_record_is_given_once(plan, mpirun, two_classes, tmp_path):
    """Those die that rank 0 has no more need of."""
    record = tmp_path / "record.jsonl"
    options = ("--algorithm", "average", "--epochs", 1, "--record", record, "--json", "--elastic", "--min-ranks", 3)
    done = mpirun(3, DYING, plan, "train", two_classes, "-o", tmp_path / "m.h5", *options, **ULFM)
    told = result(done)
    assert len(done.stdout.splitlines()) == len(record.read_text().splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == ["m.h5", "record.jsonl"], "the live file is gone"
    assert told["ranks_at_starts"] == [3]
    assert len(re.findall(r"was killed by signal 9", done.stderr)) == plan.count(",") + 1


@needs_ulfm
@pytest.mark.parametrize("dies", [0, 1])
def test_survivors_have_their_own_checkpoints_where_nothing_is_remembered(mpirun, two_classes, undisturbed, tmp_path,
                                                                          dies):
    """The first snapshot is never complete, and the folder holds what this very run has written, and is free again."""
    kept = tmp_path / "kept"
    plan = f"{dies}@{STEP}@30,3@dml_hpc.store.saving:Memory.newest@2"
    options = (*SYNC, "--checkpoint", kept, "--checkpoint-every", "3steps", "--elastic")
    done = mpirun(4, DYING, plan, *command(two_classes, tmp_path / "m.h5", *options), **ULFM, timeout_s=120)
    told = result(done)
    assert told["weights_digest"] == undisturbed(*SYNC)
    assert told["checkpoints_failed"] == 0 and "another run" not in done.stdout + done.stderr
    assert not [name for name in os.listdir(kept) if not re.fullmatch(r"checkpoint-\d{6}|progress|\.lock", name)]


@needs_ulfm
def test_too_few_survivors_give_up_in_one_line(mpirun, two_classes, tmp_path):
    done = mpirun(3, DYING, f"1@{STEP}@20,2@{STEP}@20", *command(two_classes, tmp_path / "m.h5", *SYNC), "--elastic",
                  "--min-ranks", 2, **ULFM, timeout_s=120)
    assert done.returncode not in (0, 2)
    assert done.stderr.count("only one rank is left, --min-ranks is 2") == 1
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_job_that_cannot_survive_says_so_in_one_line(mpirun, two_classes, tmp_path):
    done = mpirun(2, "-m", "dml_hpc", *command(two_classes, tmp_path / "m.h5", *SYNC), "--elastic")
    assert done.returncode == 2
    says = "start it with mpirun --with-ft ulfm" if open_mpi() else "--elastic needs an MPI library"
    assert len(ours(done.stderr)) == 1 and says in done.stderr, done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_job_that_is_told_to_stop_keeps_all_and_goes_on_with_other_ranks(number, start_mpirun, mpirun, two_classes,
                                                                         undisturbed, tmp_path):
    """One rank hears it, as from a batch system that warns a node."""
    kept = tmp_path / "kept"
    line = [*command(two_classes, tmp_path / "m.h5", *SYNC), "--checkpoint", kept]
    done = mpirun(3, DYING, f"{number.name}@2@{STEP}@25", *line)
    assert done.returncode == 75, done.stderr
    said = [line for line in ours(done.stderr) if "--resume goes on from here" in line]
    assert len(said) == 1 and f"{number.name} after step" in said[0]
    assert os.listdir(tmp_path) == ["kept"]
    if number == signal.SIGUSR1:  # what follows does not depend on the signal
        return
    refused = mpirun(2, DYING, "", *line)
    assert refused.returncode == 2 and len(ours(refused.stderr)) == 1 and "give --resume" in refused.stderr
    other = mpirun(2, DYING, "", *line, "--resume", "--l2", 0.5)
    assert other.returncode == 2 and len(ours(other.stderr)) == 1 and "--l2" in other.stderr
    told = result(mpirun(2, DYING, "", *line, "--resume"))
    assert told["weights_digest"] == undisturbed(*SYNC)
    assert 24 <= told["resumed_from"] <= 26


def test_control_c_in_a_terminal_is_one_line_and_keeps_the_checkpoints(start_mpirun, two_classes, tmp_path):
    kept = tmp_path / "kept"
    line = [*command(two_classes, tmp_path / "m.h5", "--algorithm", "sync", "--batch-size", 100), "--epochs", 100_000,
            "--checkpoint", kept, "--checkpoint-every", "1steps"]
    job = start_mpirun(3, DYING, "", *line)
    while not list(kept.glob("checkpoint-*")):
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGINT)
    _, err = job.communicate(timeout=30)
    assert job.returncode != 0
    said = [line for line in ours(err) if "SIGINT" in line]
    if open_mpi():  # its launcher no longer listens once it is interrupted
        assert len(said) <= 1, err
    else:
        assert len(said) == 1 and " of 3: stopped by SIGINT" in said[0], err
        assert "--resume goes on from there" in said[0]
    assert "Traceback" not in err
    assert list(kept.glob("checkpoint-*")) and not (tmp_path / "m.h5").exists()
