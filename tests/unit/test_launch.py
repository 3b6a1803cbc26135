"""What the launcher's environment says, and what is made of it before MPI starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dml_hpc.launch import Launch, launch, share_cores

KEYS = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "PMIX_RANK", "SLURM_NTASKS",
        "SLURM_PROCID", "SLURM_STEP_ID", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE",
        "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@pytest.fixture
def environment(monkeypatch):
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)
    return lambda **values: [monkeypatch.setenv(key, value) for key, value in values.items()]


@pytest.mark.parametrize(("values", "expected"), [
    ({}, Launch(0, 1, "")),
    ({"PMI_RANK": "2", "PMI_SIZE": "4"}, Launch(2, 4, "MPICH's mpirun")),
    ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3"}, Launch(1, 3, "Open MPI's mpirun")),
    ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"}, Launch(5, 8, "srun")),
    # A batch script is not a launch: Slurm describes the job there, but has started one process.
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Launch(0, 1, "")),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "4294967291"}, Launch(0, 1, "")),
])
def test_rank_and_size_are_read_from_every_launcher(environment, values, expected):
    environment(**values)
    assert launch() == expected


def test_blas_gets_a_share_of_the_cores_unless_told_otherwise(environment, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    environment(MPI_LOCALNRANKS="4")
    share_cores()
    assert os.environ["OPENBLAS_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"] == "2"
    environment(OMP_NUM_THREADS="3", MPI_LOCALNRANKS="8")
    share_cores()
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_a_rank_that_is_bound_to_cores_uses_those(environment, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3})
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    environment(MPI_LOCALNRANKS="4")
    share_cores()
    assert os.environ["OMP_NUM_THREADS"] == "2"


@pytest.mark.job
def test_a_launcher_of_another_mpi_is_refused_in_one_line(two_classes, tmp_path):
    # Slurm's variables of two ranks, but no start-up protocol: each process would believe to be rank 0 of 1.
    line = [sys.executable, "-m", "dml_hpc", "train", str(two_classes), "-o", str(tmp_path / "m.h5")]
    ranks = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "1"}
    done = subprocess.run(line, env={**os.environ, **ranks}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "srun started 2 ranks" in done.stderr
    assert len([line for line in done.stderr.splitlines() if "dml-hpc" in line]) == 1
    assert os.listdir(tmp_path) == []
