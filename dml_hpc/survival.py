"""What happens when ranks die and the others are to go on: User Level Failure Mitigation (ULFM) of Open MPI and mpi4py.

A rank that waits for a dead one gets an error. It revokes every communicator that there is, which wakes all others out
of whatever they wait in, and all survivors together make a communicator of their own (Bland, Bouteiller, Herault,
Bosilca and Dongarra, *Post-failure recovery of MPI communication capability*, IJHPCA 27, 2013).
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from dml_hpc.errors import EXIT_USER, AgreedError
from dml_hpc.launch import launch

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


_ENABLED = "OMPI_MCA_mpi_ft_enable"
"""What ``mpirun --with-ft ulfm`` sets."""


def unable_to_survive() -> tuple[str, int] | None:
    """Return why this job could not outlive a rank (message, exit code), None: it can."""
    if launch().size == 1:
        return "--elastic is for several ranks under Open MPI: mpirun --with-ft ulfm -n 4 …", EXIT_USER
    from mpi4py import MPI

    if "Open MPI" not in MPI.Get_library_version():
        return ("--elastic needs an MPI library whose ranks survive one another, Open MPI 5 or later, and this is "
                f"{MPI.Get_library_version().split(chr(10))[0].strip()}; without it, `dml-hpc supervise` restarts the "
                "whole team", EXIT_USER)
    if os.environ.get(_ENABLED, "0") not in ("1", "true"):
        return "--elastic: Open MPI was not told to let ranks survive; start it with mpirun --with-ft ulfm …", EXIT_USER
    return None


def revoke(comm: Intracomm) -> None:
    """Wake whoever waits, in any thread of any rank, in this communicator or one that was made from it."""
    from mpi4py import MPI

    for member in list(getattr(comm, "family", [comm])):
        with contextlib.suppress(MPI.Exception):
            member.Revoke()


def _struck(comm: Intracomm) -> bool:
    """Say whether the communicator is known to have lost a rank: what was received over it may be anything."""
    from mpi4py import MPI

    try:
        return comm.Is_revoked() or comm.Get_failed().size > 0
    except MPI.Exception:
        return True


def _all_say(comm: Intracomm, yes: bool) -> bool:
    """Collective over the survivors: say whether each of them says ``yes``; they hear the same, whoever dies."""
    from mpi4py import MPI

    while True:
        try:
            return bool(comm.Agree(int(yes)))
        except MPI.Exception:  # some have died that not everybody knew of: on every rank alike
            comm.Ack_failed()


def survivors(comm: Intracomm, error: BaseException | None, done: bool) -> Intracomm | None:
    """Return the communicator of those that are left, when a rank has died before all were ``done``; None: none has.

    Collective over the survivors: each comes here at its end, or sooner, as nothing else on the old communicators
    succeeds. A rank whose ``error`` is a fault of its own does not take part: it is about to die too.
    """
    from mpi4py import MPI

    from dml_hpc.watched import watched

    agreed = isinstance(error, AgreedError)
    if not (done or agreed or isinstance(error, MPI.Exception) or (isinstance(error, Exception) and _struck(comm))):
        return None
    if not (done or agreed):
        revoke(comm)
    if _all_say(comm, done or agreed):
        return None
    alive = watched(comm.Shrink())  # type: ignore[arg-type]
    if alive.size == comm.size:
        return None
    if alive.rank == 0:
        dead = MPI.Group.Difference(comm.group, alive.group).Translate_ranks(group=comm.group)
        who = f"rank {dead[0]}" if len(dead) == 1 else "ranks " + ", ".join(map(str, dead))
        go = "goes" if alive.size == 1 else "go"
        print(f"dml-hpc: {who} of {comm.size} died; {alive.size} {go} on", file=sys.stderr, flush=True)
    return alive
