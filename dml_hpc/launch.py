"""What the launcher (mpirun, srun) says of this process, read from its environment without starting MPI."""

from __future__ import annotations

import os
from typing import NamedTuple


class Launch(NamedTuple):
    """This process's place in the job as the launcher sees it; ``launcher`` is "" when there is none."""

    rank: int
    size: int
    launcher: str


_PLACES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "Open MPI's mpirun"),
    ("PMI_RANK", "PMI_SIZE", "MPICH's mpirun"),
    ("PMIX_RANK", "SLURM_NTASKS", "srun"),
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
            return Launch(int(rank), int(size), launcher)
    return Launch(0, 1, "")
