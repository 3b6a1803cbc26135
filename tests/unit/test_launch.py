"""What the launcher's environment says, and what is made of it before MPI starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dml_hpc.errors import UserError
from dml_hpc.launch import Launch, launch, share_cores
from dml_hpc.launchers import check_library, refused

KEYS = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "PMIX_RANK", "SLURM_NTASKS",
        "SLURM_PROCID", "SLURM_STEP_ID", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE",
        "SLURM_STEP_TASKS_PER_NODE",         "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


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
    ({"PMI_RANK": "2", "PMI_SIZE": "4", "SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "4"},
     Launch(2, 4, "srun --mpi=pmi2")),
    ({"PMIX_RANK": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "4"},
     Launch(2, 4, "srun --mpi=pmix")),
    # Both mpiruns start their helpers, one a node, in a step of srun's, whose variables ranks find as well.
    ({"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1",
      "SLURM_NTASKS": "2"}, Launch(2, 4, "MPICH's mpirun")),
    ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "PMIX_RANK": "2", "SLURM_STEP_ID": "0",
      "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Launch(2, 4, "Open MPI's mpirun")),
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


def test_under_srun_the_fullest_node_says_how_many_share_its_cores(environment, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    environment(SLURM_STEP_TASKS_PER_NODE="2(x3),1")
    share_cores()
    assert os.environ["OMP_NUM_THREADS"] == "4"


def test_a_rank_that_is_bound_to_cores_uses_those(environment, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3})
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    environment(MPI_LOCALNRANKS="4")
    share_cores()
    assert os.environ["OMP_NUM_THREADS"] == "2"


MPICH = "MPICH Version:      5.0.2\nMPICH configure:    --with-device=ch4:ucx,ofi --with-pm=hydra:gforker\n"
MPICH_WITH_PMIX = "MPICH Version:      4.2.1\nMPICH configure:    --with-pmix=/usr/lib/x86_64-linux-gnu/pmix2\n"
MPICH_OF_A_SITE = "MPI VERSION    : CRAY MPICH version 8.1.28.1 (ANL base 3.4a2)\n"
OPEN_MPI_5 = "Open MPI v5.0.11, package: Open MPI user@localhost Distribution, ident: 5.0.11"
OPEN_MPI_4 = "Open MPI v4.1.6, package: Debian OpenMPI, ident: 4.1.6"
PMI2 = {"PMI_RANK": "0", "PMI_SIZE": "2"}
PMIX = {"PMIX_RANK": "0"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}


@pytest.fixture
def srun(tmp_path, monkeypatch):
    """Return ``srun(answer)``: from then on ``srun --mpi=list`` answers that, on stderr as some versions do."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def speaks(answer: str) -> None:
        program = tmp_path / "srun"
        program.write_text(f"#!/bin/sh\n[ \"$*\" = --mpi=list ] && echo '{answer}' >&2\n")
        program.chmod(0o755)

    return speaks


@pytest.mark.parametrize(("library", "found"), [
    (MPICH, PMI2), (OPEN_MPI_5, PMIX), (OPEN_MPI_4, PMIX),
    # What may have been built for it starts, and is asked afterwards how many ranks it sees.
    (MPICH_WITH_PMIX, PMIX), (MPICH_OF_A_SITE, PMIX), (OPEN_MPI_4, PMI2), (MPICH, {}), (OPEN_MPI_5, {}),
])
def test_a_library_that_may_find_its_ranks_is_let_start(environment, library, found):
    environment(**STEP, **found)
    assert check_library(launch(), library) is None


@pytest.mark.parametrize(("library", "found", "listed", "said"), [
    (MPICH, PMIX, "pmix\nnone\npmi2", ("srun --mpi=pmix started 2 ranks", "MPICH 5.0.2", "`srun --mpi=pmi2 …`")),
    (OPEN_MPI_5, PMI2, "pmix\npmi2", ("srun --mpi=pmi2 started 2", "Open MPI 5.0.11", "`srun --mpi=pmix …`")),
    (MPICH, {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, "pmi2", (
        "Open MPI's mpirun started 2", "MPICH 5.0.2", "the mpirun of the same MPI")),
    (OPEN_MPI_5, {**PMI2, "MPI_LOCALNRANKS": "2"}, "pmix", ("MPICH's mpirun started 2", "the mpirun of the same MPI")),
    (OPEN_MPI_5, PMI2, "cray_shasta\npmi2", ("srun --mpi=pmi2 started 2", "Open MPI 5.0.11", "`mpirun …`")),
])
def test_a_library_that_cannot_find_its_ranks_does_not_start(environment, srun, library, found, listed, said):
    environment(**STEP, **found)
    srun(listed)
    with pytest.raises(UserError) as caught:
        check_library(launch(), library)
    assert all(words in str(caught.value) for words in said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("library", "found", "listed", "mend"), [
    (MPICH, {}, "none\npmi2", "`srun --mpi=pmi2 …`"),
    (OPEN_MPI_4, {}, "none\npmix\npmix_v4", "`srun --mpi=pmix …`"),
    (MPICH, {}, "none\npmix", "`mpirun …`"),
    (MPICH_OF_A_SITE, {}, "none\ncray_shasta", "`srun --mpi=cray_shasta …`"),
    ("Intel(R) MPI Library 2021.11 for Linux* OS", {}, "none\npmi2", "`mpirun …`"),
    (OPEN_MPI_4, PMIX, "none\npmix", "`mpirun …`"),  # tried, and it does not work: another PMIx than Slurm's
])
def test_ranks_that_each_see_one_are_told_how_to_start(environment, srun, library, found, listed, mend):
    environment(**STEP, **found)
    srun(listed)
    assert mend in str(refused(launch(), library))


def test_where_srun_does_not_answer_its_mpirun_is_named(environment, srun):
    environment(**STEP)
    assert "`mpirun …`" in str(refused(launch(), MPICH))


@pytest.mark.job
def test_a_launcher_of_another_mpi_is_refused_in_one_line(two_classes, tmp_path):
    # Slurm's variables of two ranks, but no start-up protocol: each process would believe to be rank 0 of 1.
    line = [sys.executable, "-m", "dml_hpc", "train", str(two_classes), "-o", str(tmp_path / "m.h5")]
    ranks = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "1"}
    done = subprocess.run(line, env={**os.environ, **ranks}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "srun started 2 ranks" in done.stderr
    assert "start them with" in done.stderr
    assert len([line for line in done.stderr.splitlines() if "dml-hpc" in line]) == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.maths
@pytest.mark.job
def test_another_rank_than_the_first_is_silent_and_ends_with_the_same_code(two_classes, tmp_path):
    line = [sys.executable, "-m", "dml_hpc", "train", str(two_classes), "-o", str(tmp_path / "m.h5")]
    rank = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "1"}
    done = subprocess.run(line, env={**os.environ, **rank}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
