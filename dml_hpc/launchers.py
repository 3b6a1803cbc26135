"""Whether an MPI library can join the ranks that a launcher started, and the line that mends it where it cannot."""

from __future__ import annotations

import os
import re
import subprocess

from dml_hpc.errors import UserError
from dml_hpc.launch import Launch

LIST_S = 10.0
"""How long Slurm may take to name what it speaks."""


def check_library(place: Launch, library: str) -> None:
    """Raise `UserError` when ``library`` (what it calls itself) cannot find the ranks of ``place``.

    That is asked before MPI starts, which would end in pages of complaints or as many jobs of one rank as there are.
    Only what is certain is refused: libraries are built with several ways to find ranks, and not all of them say which.
    """
    pmix = "PMIX_RANK" in os.environ or "OMPI_COMM_WORLD_RANK" in os.environ
    pmi = "PMI_RANK" in os.environ
    name = library_name(library)
    if place.size > 1 and pmix != pmi:
        # From 5 on Open MPI knows nothing but PMIx; MPICH tells what it was built with.
        only_pmix = re.match(r"Open MPI ([5-9]|\d\d)", name) is not None
        never_pmix = name.startswith("MPICH") and "MPICH configure" in library and "pmix" not in library.lower()
        if (only_pmix and pmi) or (never_pmix and pmix):
            raise refused(place, library)


def refused(place: Launch, library: str) -> UserError:
    """Return the error of ranks that the launcher started and ``library`` does not see."""
    name = library_name(library)
    mend = "use the mpirun of the same MPI (`dml-hpc doctor` names it)"
    if place.launcher.startswith("srun") and place.rank == 0:  # which speaks
        way = _way_of_srun(name, place.launcher)
        mend = (f"start them with `{way} …`" if way else "Slurm here does not speak to this library: start them with "
                "`mpirun …`, the one of the same MPI, which finds the job's nodes by itself")
    return UserError(f"{place.launcher} started {place.size} ranks, but this Python's MPI library ({name}) sees only "
                     f"one; {mend}")


def library_name(library: str) -> str:
    """Return "MPICH 5.0.2" or "Open MPI 5.0.11" for what a library calls itself, else its first line."""
    known = re.search(r"(Open MPI|MPICH|Intel\(R\) MPI)\D*?([\d.]+)", library)
    return f"{known[1]} {known[2]}" if known else library.split("\n")[0].strip()


_WAYS = (("Open MPI", ("pmix",)), ("MPICH", ("pmi2", "cray_shasta")))
"""By whom a library's ranks can be started under srun, the best first."""


def _way_of_srun(name: str, tried: str) -> str | None:
    """Return the ``srun`` whose ranks the library ``name`` sees, None: there is none here, or it was ``tried``."""
    ways = next((ways for family, ways in _WAYS if name.startswith(family)), ())
    spoken = _spoken() if ways else set()
    found = next((f"srun --mpi={way}" for way in ways if way in spoken), None)
    return None if found == tried else found


def _spoken() -> set[str]:
    """Return the ways in which Slurm here tells ranks of each other."""
    try:
        done = subprocess.run(["srun", "--mpi=list"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=LIST_S)
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return set(re.findall(r"[\w-]+", done.stdout + done.stderr))  # some versions answer on stderr


_SHORT = (("Open MPI", "openmpi"), ("MPICH", "mpich"), ("srun", "srun"))


def launcher_name(place: Launch) -> str | None:
    """Return what started the ranks in a word for a record: openmpi, mpich or srun; None: nothing did."""
    return next((word for begins, word in _SHORT if place.launcher.startswith(begins)), None)
