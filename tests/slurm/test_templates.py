"""Every batch script, submitted: what runs, what is left behind, and what the job's log says."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
from slurm_support import DEADLINE_S, ENDLESS, JOB_SETTINGS, LONG, TEMPLATES, Job, wait_until

TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")
LAUNCHERS = pytest.mark.parametrize("launcher", ["", "mpirun"], ids=["srun", "mpirun"])


@LAUNCHERS
def test_ranks_of_two_nodes_train(submit, data, undisturbed, launcher):
    """Ranks of two nodes find each other, and leave the model, a record and the log."""
    chosen = {"DML_HPC_SLURM_MPI": launcher} if launcher else {}
    job = submit("train_cpu.sbatch", data, "-o", "model.h5", *LONG, options=TWO_NODES, **chosen)

    job.wait_for_state("COMPLETED")

    assert f"2 ranks by {launcher or 'srun --mpi='}" in job.log
    assert (job.record()["ranks"], job.record()["weights_digest"]) == (2, undisturbed)
    assert (job.folder / "model.h5").exists()
    assert job.left_behind() == []
    assert "\x1b" not in job.log and "\r" not in job.log


def test_ranks_in_an_allocation():
    """What the batch scripts share starts ranks by hand, too."""
    done = subprocess.run(["salloc", "--quiet", *TWO_NODES, "bash", TEMPLATES / "job.sh", "-n", "2", "dml-hpc",
                           "--version"], env={**os.environ, **JOB_SETTINGS}, capture_output=True, text=True,
                          timeout=DEADLINE_S)

    assert done.returncode == 0, done.stderr
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == ["dml-hpc"] * 2, done.stdout


@pytest.mark.maths
def test_svd(submit, data):
    job = submit("svd.sbatch", data, "-k", 3, "-o", "svd.h5", options=TWO_NODES)

    job.wait_for_state("COMPLETED")

    assert job.record()["ranks"] == 2
    assert (job.folder / "svd.h5").exists()
    assert job.left_behind() == []


@pytest.mark.maths
def test_gpus_that_are_not_there(submit, data):
    """Where there is no GPU the ranks say so in one line, and the job fails as a mistake does."""
    if "gpu" not in subprocess.run(["sinfo", "-h", "-o", "%G"], capture_output=True, text=True).stdout:
        pytest.skip("the cluster has no GPUs, not even by name (local_slurm.sh --gpus 2)")
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    job = submit("train_gpu.sbatch", data, "-o", "model.h5", options=("--ntasks-per-node=2",))

    assert job.wait_for_state("FAILED")["ExitCode"] == "2:0"

    said = [line for line in job.log.splitlines() if "dml-hpc:" in line]
    assert len(said) == 1 and ("GPU" in said[0] or "cuda" in said[0].lower()), job.log


@LAUNCHERS
def test_scaling(submit, data, launcher):
    """One job runs the command on one node and on two, and makes the report."""
    chosen = {"DML_HPC_SLURM_MPI": launcher} if launcher else {}
    job = submit("scaling.sbatch", "train", data, "--epochs", 2, options=TWO_NODES, REPEATS="1",
                 **chosen)

    job.wait_for_state("COMPLETED")

    records, = job.folder.glob("*.jsonl")
    assert [f'"ranks": {n}' in line for n, line in zip((1, 2), records.read_text().splitlines(), strict=True)] == [
        True, True], records.read_text()
    report, = job.folder.glob("*.html")
    assert "<html" in report.read_text()


@pytest.mark.maths
def test_mistake(submit, data):
    """A wrong option is one line in the log, and the job has failed with 2."""
    job = submit("train_cpu.sbatch", data, "-o", "model.h5", "--epoch", 2)

    assert job.wait_for_state("FAILED")["ExitCode"] == "2:0"
    assert job.log.count("--epochs") == 1
    assert job.left_behind() == []


def test_a_rank_is_killed(submit, data):
    """The job fails, and its log ends with what that rank's own log says."""
    job = submit("train_cpu.sbatch", data, "-o", "model.h5", *ENDLESS, options=TWO_NODES)
    job.wait_until(job.is_under_way, "a step")

    os.kill(max(_processes_of_rank(job, 1)), signal.SIGKILL)  # the child of the rank's supervisor

    about = job.wait_for_state("FAILED")
    assert about["ExitCode"].split(":")[0] not in ("0", "2", "75")
    assert "-------- rank-1." in job.log
    assert "rank 1 of 2" in job.log and "SIGKILL" in job.log


def _processes_of_rank(job: Job, rank: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "environ").read_bytes().split(b"\0")
            if f"SLURM_JOB_ID={job.number}".encode() in words and b"dml-hpc\0train" in (path / "cmdline").read_bytes():
                numbers = {key: value for key, _, value in (word.partition(b"=") for word in words)}
                of_rank = numbers.get(b"PMIX_RANK", numbers.get(b"PMI_RANK", numbers.get(b"SLURM_PROCID")))
                if of_rank == str(rank).encode():
                    found.append(int(path.name))
    return found


def _staged(own: Path, job: Job) -> list[str]:
    return sorted(path.parent.name for path in own.glob(f"n*-tmp/dml-hpc-{job.number}"))


@pytest.mark.maths
def test_staged_shards(submit, data, scratch, undisturbed):
    """Both nodes have a copy of their own while the job lasts, the ranks read it, and nothing of it stays."""
    name, own = scratch
    job = submit("train_cpu.sbatch", data, "-o", "model.h5", *LONG, options=TWO_NODES, STAGE="yes", SLURM_TMPDIR=name)
    job.wait_until(lambda: len(_staged(own, job)) == 2, "two nodes with the data")

    job.wait_for_state("COMPLETED")

    assert f"{name}/dml-hpc-{job.number}/1/small" in job.log
    assert job.record()["weights_digest"] == undisturbed
    job.wait_until(lambda: not _staged(own, job), "nodes without the data")


@pytest.mark.maths
def test_staged_shards_of_a_job_that_is_cancelled(submit, data, scratch):
    name, own = scratch
    job = submit("train_cpu.sbatch", data, "-o", "model.h5", *ENDLESS, options=TWO_NODES, STAGE="yes",
                 SLURM_TMPDIR=name)
    job.wait_until(job.is_under_way, "a step")
    assert len(_staged(own, job)) == 2

    subprocess.run(["scancel", job.number], check=True)

    job.wait_for_state("CANCELLED")
    wait_until(lambda: not _staged(own, job), "that the copies are gone")
    assert job.about()["Restarts"] == "0"


@pytest.mark.maths
def test_scratch_that_nodes_share(submit, data):
    """The node that finds the other's copies says so, and the job ends at once."""
    job = submit("train_cpu.sbatch", data, "-o", "model.h5", *ENDLESS, options=TWO_NODES, STAGE="yes")

    assert job.wait_for_state("FAILED")["ExitCode"] == "2:0"
    assert "scratch is to be a folder of each node's own" in job.log


@pytest.mark.maths
def test_too_little_room(submit, data, scratch, tmp_path):
    """Shards that do not fit are not copied."""
    name, own = scratch
    huge = tmp_path / "huge"
    huge.mkdir()
    for path in data.iterdir():
        (huge / path.name).symlink_to(path)
    with open(huge / "part-9.h5", "wb") as file:
        file.truncate(1 << 43)
    job = submit("train_cpu.sbatch", huge, "-o", "model.h5", STAGE="yes", SLURM_TMPDIR=name)

    assert job.wait_for_state("FAILED")["ExitCode"] == "2:0"
    assert "do not fit" in job.log
    assert _staged(own, job) == []
