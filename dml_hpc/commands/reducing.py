"""The options that say how vectors are summed, as one function that opens a reducer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dml_hpc.comm import ALLREDUCES, open_reducer
from dml_hpc.comm.auto import check_tuning
from dml_hpc.comm.compression import Compression
from dml_hpc.device import Device
from dml_hpc.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.comm.reducer import Reducer
    from dml_hpc.console import Console


def check(allreduce: str, tuning: Path | None, output: Path, rank: int) -> None:
    """Raise `UserError` for options that do not go together, and for a tuning file that is none or cannot be."""
    if allreduce not in ALLREDUCES:
        raise UserError(f"unknown --allreduce {allreduce!r}{did_you_mean(allreduce, ALLREDUCES)}; "
                        f"there are {', '.join(ALLREDUCES)}")
    if tuning is not None and allreduce != "auto":
        raise UserError(f"--tuning keeps what --allreduce auto measures, and here it is {allreduce}: give --allreduce "
                        "auto as well, or leave out --tuning")
    if tuning is not None:
        if tuning.absolute() == output.absolute():
            raise UserError(f"--tuning and -o name the same file, {output}; choose another")
        if rank == 0:  # which reads and writes it
            check_tuning(tuning)


def compressed(method: str, ratio: float | None, rank: int | None, exact: int) -> Compression | None:
    """Return the compression that the options ask for, which leaves the last ``exact`` elements as they are.

    Raises `UserError` for options that do not go together.
    """
    if ratio is not None and method != "topk":
        raise UserError(f"--compression-ratio is for --compression topk, not {method}; leave it out")
    if rank is not None and method != "powersgd":
        raise UserError(f"--compression-rank is for --compression powersgd, not {method}; leave it out")
    if method == "none":
        return None
    defaults = Compression(method)
    return Compression(method, defaults.ratio if ratio is None else ratio,
                       defaults.rank if rank is None else rank, exact)


def opener(console: Console, allreduce: str, fan_in: int = 2, tuning: Path | None = None,
           compression: Compression | None = None) -> Callable[..., Reducer]:
    """Return ``open(comm, size, dtype, …)``, collective: a reducer as the options say; a choice is told to the user."""
    def open_(comm: Intracomm, size: int, dtype: str, weights: str | None = None,
              device: Device | None = None) -> Reducer:
        reducer = open_reducer(allreduce, comm, size, dtype, device, fan_in, weights, tuning, compression)
        if reducer.choice is not None:
            console.say(f"{'auto' if allreduce == 'auto' else 'sums'}     {reducer.choice}")
        return reducer

    return open_
