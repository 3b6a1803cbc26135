"""What the launcher (mpirun, srun) says of this process, read from its environment without starting MPI."""

from __future__ import annotations

import os
import re
from typing import NamedTuple


class Launch(NamedTuple):
    """This process's place in the job as the launcher sees it; ``launcher`` is "" when there is none."""

    rank: int
    size: int
    launcher: str


_PLACES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "Open MPI's mpirun"),
    ("PMI_RANK", "PMI_SIZE", "MPICH's mpirun"),
    ("PMIX_RANK", "SLURM_NTASKS", "srun --mpi=pmix"),
    ("SLURM_PROCID", "SLURM_NTASKS", "srun"),
)


def launch() -> Launch:
    """Return rank, size and launcher as the environment names them; ``Launch(0, 1, "")`` for a plain process."""
    # Slurm sets SLURM_PROCID in the batch script too, where nothing was launched yet: only a step with
    # a number of its own is a launch.
    in_step = os.environ.get("SLURM_STEP_ID", "").isdigit() and int(os.environ["SLURM_STEP_ID"]) < 0xFFFFFFF0
    for rank_key, size_key, launcher in _PLACES:
        rank, size = os.environ.get(rank_key, ""), os.environ.get(size_key, "")
        if rank.isdigit() and size.isdigit() and (not rank_key.startswith("SLURM") or in_step):
            # MPICH's mpirun starts its helpers by srun, and so in a step; but only it counts a node's ranks.
            if rank_key == "PMI_RANK" and in_step and "MPI_LOCALNRANKS" not in os.environ:
                launcher = "srun --mpi=pmi2"
            return Launch(int(rank), int(size), launcher)
    return Launch(0, 1, "")


_OF_A_RANK = re.compile(r"PMI_|PMIX_|MPI_LOCAL|OMPI_(COMM|UNIVERSE|FILE)_|PRTE_LAUNCHED|HYDI?_|GFORKER_|SLURM_PROCID$")


def environment_of_no_rank() -> dict[str, str]:
    """Return the environment for a process that must not believe to be the rank that starts it."""
    return {key: value for key, value in os.environ.items() if not _OF_A_RANK.match(key)}


_LOCAL_SIZES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE", "SLURM_STEP_TASKS_PER_NODE")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def one_thread() -> None:
    """Give BLAS one thread, whatever the user has said: with several, bits depend on how many."""
    os.environ.update(dict.fromkeys(_THREADS, "1"))


def share_cores() -> None:
    """Give BLAS this rank's share of the node's cores, unless the user has said how many threads it may start.

    Left alone, every rank's BLAS starts a thread on every core, and they get in each other's way. Call it before
    NumPy is imported: libraries read these variables once.
    """
    counts = [re.findall(r"(\d+)(?:\(x\d+\))?(?:,|$)", os.environ.get(key, "")) for key in _LOCAL_SIZES]
    ranks = next((max(map(int, count)) for count in counts if count), 1)  # Slurm's are of all nodes: "2(x3),1"
    own = len(os.sched_getaffinity(0))
    # A launcher that binds ranks to cores has divided them already.
    threads = own if own < (os.cpu_count() or own) else max(1, own // max(ranks, 1))
    if not any(key in os.environ for key in _THREADS):
        for key in _THREADS:
            os.environ[key] = str(threads)
