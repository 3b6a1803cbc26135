"""``dml-hpc mf``: factors of users and items that predict ratings, into an HDF5 file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.comm.clock import Clock
from dml_hpc.commands.devices import open_gpu
from dml_hpc.commands.keeping import Keeping
from dml_hpc.commands.mf_inputs import open_inputs
from dml_hpc.commands.mf_learning import learn_factors
from dml_hpc.commands.mf_options import Options, wanted
from dml_hpc.commands.mf_result import result_of, tell
from dml_hpc.commands.whereabouts import whereabouts
from dml_hpc.console import Console
from dml_hpc.decomposition.mf.course import Limits
from dml_hpc.errors import UserError
from dml_hpc.files import check_output
from dml_hpc.mpi import agreed
from dml_hpc.reports.timeline import write_timeline
from dml_hpc.store.every import Every
from dml_hpc.store.live import Live
from dml_hpc.store.saving import Memory

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def run(comm: Intracomm, console: Console, ratings: Path, output: Path, test: Path | None = None, device: str = "cpu",
        memory_limit: int | None = None, trace: Path | None = None, overwrite: bool = False,
        checkpoint: Path | None = None, checkpoint_every: Every | None = None, keep: int | None = None,
        resume: bool = False, memory: Memory | None = None, live: Live | None = None, probe: bool = False,
        **options: Any) -> dict[str, Any]:
    """Collective: factorise the data set ``ratings`` and write the factors to ``output``.

    With ``device`` "cuda" factors are learnt on GPUs: see `dml_hpc.decomposition.mf.device_sgd` and ``device_als``.
    ``checkpoint``, ``checkpoint_every``, ``keep``, ``resume``, ``memory`` and ``live`` are those of `Keeping`; a step
    is an epoch. The ``options`` are those of `Options`. With ``probe`` the wire between ranks is measured at the end.
    Returns the ``--json`` keys. Raises `AgreedError` on every rank for what the user can mend, before anything is
    written.
    """
    started = time.perf_counter()
    given = Options(**options)
    keeping = Keeping(checkpoint, checkpoint_every, keep, resume, memory, live)
    reads = [ratings, *([] if test is None else [test])]
    with agreed(comm):
        keeping.check(comm.rank, reads)
        want = wanted(given, test is not None, device)
        if comm.rank == 0:
            _check_outputs(output, trace, overwrite or keeping.again, reads)
    gpu = open_gpu(comm, console, device)
    inputs = open_inputs(comm, ratings, test, want.implicit, memory_limit)
    limits = Limits(want.epochs, given.time_budget, given.tolerance)
    clock = Clock(timeline=trace is not None)
    learnt = learn_factors(comm, console, inputs, want, limits, keeping, gpu, clock, output)
    if trace is not None:
        write_timeline(comm, trace, clock.spans(started))
    result = {
        **result_of(comm, want, inputs.ratings.grid, learnt, clock), "device": device,
        "reproducible": given.reproducible, "deterministic": device == "cpu" or want.algorithm != "sgd",
        "data": str(ratings), "test": None if test is None else str(test), "output": str(output),
        "ranks_at_starts": [comm.size] if memory is None else memory.ranks, **whereabouts(comm, probe),
    }
    tell(console, result)
    return result


def _check_outputs(output: Path, trace: Path | None, overwrite: bool, inputs: Sequence[Path]) -> None:
    """Raise `UserError` unless both can be written, and are none of the ``inputs``."""
    check_output(output, overwrite, inputs=inputs)
    if trace is not None:
        if trace.absolute() == output.absolute():
            raise UserError(f"--trace and -o name the same file, {output}; choose another")
        check_output(trace, overwrite, option="--trace", inputs=inputs)
