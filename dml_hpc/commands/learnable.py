"""From a data set's labels and weights to what an objective learns from: targets, and what each row counts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.data.dataset import Dataset
from dml_hpc.errors import UserError
from dml_hpc.mpi import agreed
from dml_hpc.objectives.objective import Objective

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Learnable:
    """Called with labels and weights (count,) (None: all 1), returns targets and weights; see `open_reader`.

    Where ``class_weight`` (classes,) is given, each row counts that of its class times its own weight.
    """

    def __init__(self, objective: Objective, classes: list[float] | None, dtype: np.dtype, sample_weight: bool,
                 class_weight: np.ndarray | None = None):
        self._objective, self._classes, self._dtype = objective, classes, dtype
        self._sample_weight, self._class_weight = sample_weight, class_weight

    def __call__(self, labels: np.ndarray, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        targets = self._objective.targets(labels, self._classes, self._dtype)
        weight = weight.astype(self._dtype) if weight is not None and self._sample_weight else None
        if self._class_weight is not None:
            of_class = self._class_weight[np.searchsorted(self._classes or [], labels)].astype(self._dtype)
            weight = of_class if weight is None else weight * of_class
        return targets, weight


def open_learnable(comm: Intracomm, dataset: Dataset, objective: Objective, classes: list[float] | None,
                   dtype: np.dtype, class_weight: str | dict[float, float] | None, sample_weight: bool) -> Learnable:
    """Collective: return what makes targets and weights of this data set's labels.

    ``class_weight`` is "balanced" (a class counts inversely to how many rows it has, as scikit-learn's does), or
    weights by class value, 1 where none is named. Raises `AgreedError` for classes that are none.
    """
    plain = Learnable(objective, classes, dtype, sample_weight)
    if class_weight is None:
        return plain
    with agreed(comm):
        if classes is None:
            raise UserError(f"--class-weight needs classes, and {objective.name} learns numbers; leave it out")
        if isinstance(class_weight, dict):
            for value in class_weight:
                if value not in classes:
                    raise UserError(f"--class-weight names {value:g}, which is none of the classes "
                                    f"({', '.join(f'{one:g}' for one in classes)})")
            table = np.array([class_weight.get(value, 1.0) for value in classes])
    if class_weight == "balanced":
        counts = np.zeros(len(classes))
        with agreed(comm):
            for number in range(comm.rank, len(dataset.paths), comm.size):
                labels, weight = dataset.shard(number).y(), dataset.shard(number).weight()
                plain(labels, None)  # names a label that is no class
                counts += np.bincount(np.searchsorted(classes, labels), weight if sample_weight else None,
                                      minlength=len(classes))
        counts = np.sum(comm.allgather(counts), axis=0)
        table = counts.sum() / (len(classes) * np.maximum(counts, 1e-300))
        table[counts == 0] = 0
    return Learnable(objective, classes, dtype, sample_weight, table)


def mean_weight(comm: Intracomm, dataset: Dataset, learnable: Learnable) -> float:
    """Collective: return what a row counts on average, to the bit the same on any number of ranks.

    Raises `AgreedError` when all rows together count nothing.
    """
    sums = {}
    with agreed(comm):
        none = np.empty(0)
        if learnable(none, none if dataset.weighted else None)[1] is None:
            return 1.0
        for number in range(comm.rank, len(dataset.paths), comm.size):
            shard = dataset.shard(number)
            weight = learnable(shard.y(), shard.weight())[1]
            assert weight is not None
            sums[number] = math.fsum(weight.tolist())
    everywhere = {number: part for sums in comm.allgather(sums) for number, part in sums.items()}
    total = math.fsum(everywhere[number] for number in sorted(everywhere))
    with agreed(comm):
        if not total > 0:
            raise UserError(f"{dataset.path}: all rows together weigh {total:g}; give weights above 0")
    return total / dataset.rows
