"""``dml-hpc predict``: a model's prediction for every row of a data set, in row order."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from dml_hpc.commands.opening import named
from dml_hpc.commands.scoring import Fitted, block_rows, no_scores, open_fitted, score_blocks, warm_up
from dml_hpc.console import Console
from dml_hpc.files import check_output, replaced_file
from dml_hpc.kernels import start_compiler
from dml_hpc.layout import split
from dml_hpc.mpi import agreed, first_on_node

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def run(comm: Intracomm, console: Console, model: Path, data: Sequence[Path], x_key: str | None, y_key: str | None,
        output: Path, overwrite: bool) -> dict[str, Any]:
    """Collective: write ``score`` and what the objective predicts from it to the HDF5 file ``output``.

    Each is (rows,) or, where there are several a row, (rows, classes), in the order of the attribute ``classes``.
    Ranks score their rows and send them block by block to rank 0, which writes: memory does not grow with the
    data, and no parallel HDF5 is needed. Returns the keys of the ``--json`` object on every rank.
    """
    fitted = open_fitted(comm, model, data, x_key, y_key, labels=y_key is not None)
    with agreed(comm):
        own = split(fitted.dataset.rows, comm.size, comm.rank)
        for first, _ in fitted.dataset.ranges(*own):
            fitted.dataset.shard(fitted.dataset.place(first)[0])  # what cannot be opened shows before any work
        if comm.rank == 0:
            check_output(output, overwrite, inputs=[model, *data])
    start_compiler()
    with first_on_node(comm):
        warm_up(fitted)
    started = time.perf_counter()
    rows = fitted.dataset.rows
    if comm.rank == 0:
        _write(comm, fitted, output)
    else:
        for block in score_blocks(fitted, comm.rank, comm.size):
            comm.Send(block.scores, 0)
    work_s = max(comm.allgather(time.perf_counter() - started))
    names = list(_columns(fitted, no_scores(fitted)))
    console.say(f"predict  {rows:,} rows → {output} ({', '.join(names)})")
    return {"rows": rows, "output": str(output), "datasets": names, "model": str(model), "data": named(data),
            "objective": fitted.objective.name, "weights_digest": fitted.model.digest, "work_s": work_s}


def _write(comm: Intracomm, fitted: Fitted, output: Path) -> None:
    model, rows = fitted.model, fitted.dataset.rows
    with replaced_file(output) as partial, h5py.File(partial, "w") as file:
        file.attrs["weights_digest"] = model.digest
        file.attrs["objective"] = model.objective
        file.attrs["label"] = model.label
        file.attrs["classes"] = json.dumps(model.classes)
        file.attrs["class_names"] = json.dumps(model.class_names)
        for name, empty in _columns(fitted, no_scores(fitted)).items():
            file.create_dataset(name, (rows, *empty.shape[1:]), empty.dtype)
        for rank in range(comm.size):
            first = split(rows, comm.size, rank)[0]
            for scores in _blocks(comm, fitted, rank):
                for name, values in _columns(fitted, scores).items():
                    file[name][first:first + len(scores)] = values
                first += len(scores)


def _columns(fitted: Fitted, scores: np.ndarray) -> dict[str, np.ndarray]:
    """Return what is written of rows with these ``scores`` (count, outputs), by name."""
    shown = scores[:, 0] if scores.shape[1] == 1 else scores
    return {"score": shown, **fitted.objective.predictions(scores, fitted.model.classes)}


def _blocks(comm: Intracomm, fitted: Fitted, rank: int) -> Iterator[np.ndarray]:
    """Yield the scores of a rank's rows on rank 0, its own computed, the others' received."""
    if rank == 0:
        for block in score_blocks(fitted, 0, comm.size):
            yield block.scores
        return
    start, stop = split(fitted.dataset.rows, comm.size, rank)
    for first, last in fitted.dataset.ranges(start, stop, block_rows(fitted)):
        scores = np.empty((last - first, fitted.layers.outputs), fitted.model.weights.dtype)
        comm.Recv(scores, rank)
        yield scores
