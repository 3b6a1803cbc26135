"""``dml-hpc train``: data set → objective → algorithm → model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.commands import reducing
from dml_hpc.commands.fitting import fit
from dml_hpc.commands.keeping import Keeping
from dml_hpc.commands.train_options import Options
from dml_hpc.commands.whereabouts import whereabouts
from dml_hpc.console import Console
from dml_hpc.errors import UserError
from dml_hpc.files import check_output
from dml_hpc.mpi import agreed
from dml_hpc.reports.timeline import write_timeline
from dml_hpc.store.every import Every
from dml_hpc.store.live import Live
from dml_hpc.store.model import write_model
from dml_hpc.store.saving import Memory
from dml_hpc.trainers.theory import told

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def run(comm: Intracomm, console: Console, data: Sequence[Path], output: Path, overwrite: bool = False,
        checkpoint: Path | None = None, checkpoint_every: Every | None = None, keep: int | None = None,
        resume: bool = False, memory: Memory | None = None, live: Live | None = None, probe: bool = False,
        **options: Any) -> dict[str, Any]:
    """Collective: train on the data set ``data`` and write the model to ``output`` (rank 0 writes it).

    ``checkpoint``, ``checkpoint_every``, ``keep``, ``resume``, ``memory`` and ``live`` are those of `Keeping`, the
    others those of `Options`. With ``probe`` the wire between ranks is measured once the model is written. Returns the
    keys of the ``--json`` object on every rank.
    """
    given = Options(**options)
    keeping = Keeping(checkpoint, checkpoint_every, keep, resume, memory, live)
    with agreed(comm):
        reducing.check(given.allreduce, given.tuning, output, comm.rank)
        keeping.check(comm.rank, data)
        if comm.rank == 0:
            overwrite = overwrite or keeping.again  # what the ranks wrote of which some have died since
            inputs = [*data, *([] if given.validation is None else [given.validation])]
            check_output(output, overwrite, inputs=inputs)
            if given.trace is not None:
                if given.trace.absolute() == output.absolute():
                    raise UserError(f"--trace and -o name the same file, {output}; choose another")
                check_output(given.trace, overwrite, option="--trace", inputs=inputs)
    fitted = fit(comm, console, data, given, keeping=keeping)
    with agreed(comm):
        if comm.rank == 0:
            write_model(output, fitted.model)
    if given.trace is not None:  # after the model: whatever becomes of the timeline, the training is not lost
        write_timeline(comm, given.trace, fitted.spans)
    result = {**fitted.result, "model": str(output), **whereabouts(comm, probe)}
    _tell(console, result)
    return result


def _tell(console: Console, result: dict[str, Any]) -> None:
    shares = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result["time_split"].items())
    rate = "–" if result["examples_per_s"] is None else f"{result['examples_per_s']:,.0f}"
    console.say(f"trained  {result['steps']:,} steps, {result['examples']:,} examples in {result['work_s']:.2f} s "
                f"({rate} examples/s): {shares}; {result['stopped']}")
    if result["validation_losses"]:
        console.say(f"checked  validation loss {result['validation_losses'][-1]:.5f}, the least "
                    f"{min(result['validation_losses']):.5f} is kept")
    for line in told(result["theory"]) if result["theory"] is not None else ():
        console.say(f"theory   {line}")
    console.say(f"model    {result['model']}: training loss {result['loss']:.5f}, "
                f"weights {result['weights_digest'][:16]}…")
