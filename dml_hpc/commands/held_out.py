"""The loss of a model on data: on what it was trained on, and on what is held out while it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.commands.learnable import Learnable
from dml_hpc.commands.opening import most_row_bytes, open_data
from dml_hpc.commands.scoring import check_features
from dml_hpc.commands.train_options import Options
from dml_hpc.data.batches import Batches
from dml_hpc.data.dataset import Dataset
from dml_hpc.data.leaving_out import leave_out_lost, settle_losses
from dml_hpc.data.reading import Reader, open_reader
from dml_hpc.errors import UserError
from dml_hpc.mpi import agreed, ranks_on_node
from dml_hpc.trainers.problem import Problem

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def open_validation(comm: Intracomm, dataset: Dataset, options: Options) -> Dataset | None:
    """Collective: open what is held out, None: nothing is. Raises `AgreedError` where it does not fit ``dataset``."""
    if options.validation is None:
        return None
    held = open_data(comm, [options.validation], options.x_key, options.y_key, options.weight_key,
                     skip_bad_shards=options.skip_bad_shards)
    with agreed(comm):
        check_features(dataset.manifest.feature_names, dataset.features, held, "the model",
                       str(options.validation))
        if held.rows == 0:
            raise UserError(f"{options.validation} has no rows to validate on")
    return held


class Validation:
    """The loss on data that are not learnt from; each rank has a part of them."""

    def __init__(self, comm: Intracomm, held: Dataset, problem: Problem, learnable: Learnable, options: Options):
        self._comm, self._problem = comm, problem
        self._learnable = learnable = learnable.of(comm, held)
        node_ranks = ranks_on_node(comm)
        with agreed(comm):
            batches = Batches(held, None, comm.rank, comm.size)
            most_bytes = most_row_bytes(held, batches, node_ranks, options.memory_limit)
            self.reader = open_reader(held, batches, learnable, problem.dtype, most_bytes)
        settle_losses(comm, self.reader)

    def loss(self, parameters: np.ndarray) -> float:
        """Collective: return the mean loss under ``parameters`` by standardised features."""
        raw = self._problem.scaling.fold(parameters, np.empty_like(parameters))
        return mean_loss(self._comm, self._problem, self._learnable, self.reader, raw)


def mean_loss(comm: Intracomm, problem: Problem, learnable: Learnable, reader: Reader, raw: np.ndarray) -> float:
    """Collective: return the mean loss of all rows that count, without the penalty: one more pass over the data."""
    rows = reader.dataset
    while True:
        own = problem.summed_loss(reader.everything(), raw)
        if not (reader.may_lose and leave_out_lost(comm, rows)):
            return comm.allreduce(own) / max(rows.used_rows * learnable.mean_without(rows, rows.forgone), 1e-300)
