"""Jobs that are preempted, lose a node or run out of time: nothing is lost, and they end in the same bits."""

from __future__ import annotations

import subprocess

import pytest
from slurm_support import ENDLESS, FACTORISED, LONG, Job

TWO_NODES, ALONE = ("--nodes=2", "--ntasks-per-node=1"), ("--nodes=1", "--ntasks-per-node=1")
SHELL, STEPS = ("--batch", "--signal=USR1"), ("--signal=USR1",)
"""Whom scancel tells: the batch script, or what it has started."""


def tell(job: Job, *how: str) -> None:
    subprocess.run(["scancel", *how, job.number], check=True, timeout=60)


@pytest.mark.parametrize(("launcher", "nodes", "how"), [
    ("", TWO_NODES, SHELL), ("", TWO_NODES, STEPS), ("mpirun", TWO_NODES, SHELL), ("mpirun", TWO_NODES, STEPS),
    ("mpirun", ALONE, STEPS),
], ids=["srun-shell", "srun-steps", "mpirun-shell", "mpirun-steps", "mpirun-alone-steps"])
def test_preempted(submit, data, undisturbed, launcher, nodes, how):
    """Told to stop, the ranks save; the job goes back to the queue, and on from there."""
    chosen = {"DML_HPC_SLURM_MPI": launcher} if launcher else {}
    job = submit("train_cpu.sbatch", data, "-o", "model.h5", *LONG, options=nodes, **chosen)
    job.wait_until(job.is_under_way, "a step")

    tell(job, *how)
    job.release()
    about = job.wait_for_state("COMPLETED")

    assert about["Restarts"] == "1"
    assert "requeued" in job.log and "resumed  from" in job.log
    assert job.record()["weights_digest"] == undisturbed
    assert job.left_behind() == []


@pytest.mark.maths
def test_factors_of_ratings_go_on_from_copies_on_the_nodes(submit, ratings, factorised, scratch):
    """Started again, the job has copied the ratings anew, and goes on from its checkpoint."""
    job = submit("mf.sbatch", ratings, "-o", "factors.h5", *FACTORISED, f"--test={ratings}", options=TWO_NODES,
                 STAGE="yes", SLURM_TMPDIR=scratch[0])
    job.wait_until(job.is_under_way, "an epoch")

    tell(job, *SHELL)
    job.release()
    about = job.wait_for_state("COMPLETED")

    assert about["Restarts"] == "1"
    assert job.log.count("staged   2 data set(s)") == 2 and "resumed  from" in job.log
    assert job.record()["weights_digest"] == factorised
    assert job.left_behind() == []


@pytest.mark.parametrize("launcher", ["", "mpirun"], ids=["srun", "mpirun"])
def test_a_node_goes_down(submit, data, undisturbed, launcher):
    """Slurm starts the job again, which goes on from its newest checkpoint."""
    chosen = {"DML_HPC_SLURM_MPI": launcher} if launcher else {}
    job = submit("train_cpu.sbatch", data, "-o", "model.h5", *LONG, "--checkpoint-every", "0.3s",
                 options=(*TWO_NODES, "--exclusive"), **chosen)  # no other's node
    job.wait_until(job.checkpoints, "a checkpoint")
    nodes = subprocess.run(["scontrol", "show", "hostnames", job.about()["NodeList"]], capture_output=True, text=True)
    last = nodes.stdout.split()[-1]

    subprocess.run(["scontrol", "update", f"NodeName={last}", "State=DOWN", "Reason=test"], check=True)
    try:
        job.wait_until(lambda: job.about().get("Restarts") == "1", "that Slurm takes it back")
    finally:
        # A node that is alive may have come back by itself: then there is nothing to resume.
        subprocess.run(["scontrol", "update", f"NodeName={last}", "State=RESUME"], capture_output=True)
    job.release()
    job.wait_for_state("COMPLETED")

    assert "resumed  from" in job.log
    assert job.record()["weights_digest"] == undisturbed
    assert job.left_behind() == []


@pytest.mark.maths
def test_out_of_time(submit, data):
    """Without a requeue the job ends with 75, its checkpoints stay, and its log says how to go on."""
    # Slurm looks every half a minute who is to be warned, and warns up to a minute early.
    job = submit("train_cpu.sbatch", data, "-o", "model.h5", *ENDLESS,
                 options=("--partition=short", "--time=1", "--signal=B:USR1@50", "--no-requeue"))

    assert job.wait_for_state("FAILED")["ExitCode"] == "75:0"

    assert job.checkpoints()
    assert f"checkpoints/dml-hpc-train-{job.number} --resume" in job.log
    assert "--no-requeue" in job.log


@pytest.mark.maths
def test_told_before_the_first_step(submit, data, undisturbed):
    """A job that is told as soon as it runs, whatever it is at, is not lost."""
    job = submit("train_cpu.sbatch", data, "-o", "model.h5", *LONG)
    job.wait_until(lambda: "start 1" in job.log, "its first line")

    tell(job, *SHELL)
    job.release()
    about = job.wait_for_state("COMPLETED")

    assert about["Restarts"] == "1"
    assert job.record()["weights_digest"] == undisturbed


@pytest.mark.maths
def test_cancelled(submit, data):
    """A job that is cancelled does not come back."""
    job = submit("train_cpu.sbatch", data, "-o", "model.h5", *ENDLESS, options=TWO_NODES)
    job.wait_until(job.is_under_way, "a step")

    tell(job)

    assert job.wait_for_state("CANCELLED")["Restarts"] == "0"
    assert "requeued" not in job.log
