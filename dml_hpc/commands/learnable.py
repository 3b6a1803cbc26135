"""From a data set's labels and weights to what an objective learns from: targets, and what each row counts."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.data.dataset import Dataset
from dml_hpc.errors import UserError
from dml_hpc.mpi import agreed
from dml_hpc.objectives.objective import Objective

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Learnable:
    """Called with labels and weights (count,) (None: all 1), returns targets and weights; see `open_reader`.

    Where ``class_weight`` (classes,) is given, each row counts that of its class times its own weight. All are divided
    by ``mean``, so that rows count 1 on average.
    """

    def __init__(self, objective: Objective, classes: list[float] | None, dtype: np.dtype, sample_weight: bool,
                 class_weight: np.ndarray | None = None, mean: float = 1.0, by_shard: Sequence[float] = ()):
        self._objective, self._classes, self._dtype = objective, classes, dtype
        self._sample_weight, self._class_weight, self._mean = sample_weight, class_weight, mean
        self._by_shard = by_shard

    def __call__(self, labels: np.ndarray, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        targets = self._objective.targets(labels, self._classes, self._dtype)
        counts = self.counts(labels, weight)
        return targets, None if counts is None else (counts / self._mean).astype(self._dtype)

    def counts(self, labels: np.ndarray, weight: np.ndarray | None) -> np.ndarray | None:
        """Return what rows with these labels and weights count, (count,) float64, not yet divided; None: 1 each."""
        counts = weight.astype(np.float64) if weight is not None and self._sample_weight else None
        if self._class_weight is None:
            return counts
        of_class = self._class_weight[np.searchsorted(self._classes or [], labels)]
        return of_class if counts is None else counts * of_class

    def mean_without(self, dataset: Dataset, numbers: Collection[int]) -> float:
        """Return what rows count on average, as called, in the shards other than ``numbers``; the same on any ranks.

        ``dataset`` is what `of` was asked for.
        """
        if not numbers or not self._by_shard:
            return 1.0
        rest = [number for number in range(len(self._by_shard)) if number not in numbers]
        rows = sum(dataset.manifest.shards[number].rows for number in rest)
        return math.fsum(self._by_shard[number] for number in rest) / max(rows, 1) / self._mean

    def of(self, comm: Intracomm, dataset: Dataset) -> Learnable:
        """Collective: return the same for a data set, with the mean of its rows' weights.

        The mean is the same, to the bit, on any number of ranks. Raises `AgreedError` when all rows together count
        nothing, or for a label that cannot be learnt from.
        """
        sums = {}
        none = np.empty(0)
        with agreed(comm):
            if self.counts(none, none if dataset.weighted else None) is None:
                return self
            for number in range(comm.rank, len(dataset.paths), comm.size):
                labels, weight = dataset.labels(number)
                self._objective.targets(labels, self._classes, self._dtype)
                counts = self.counts(labels, weight)
                assert counts is not None
                sums[number] = math.fsum(value for start in range(0, len(counts), 1 << 16)
                                         for value in counts[start:start + (1 << 16)].tolist())
        by_shard = _by_shard(comm, sums)
        total = math.fsum(by_shard)
        with agreed(comm):
            if not (total > 0 and math.isfinite(total)):
                raise UserError(f"{dataset.path}: all rows together weigh {total:g}; give weights above 0, and finite "
                                "in sum")
        return Learnable(self._objective, self._classes, self._dtype, self._sample_weight, self._class_weight,
                         total / dataset.rows, by_shard)


def open_learnable(comm: Intracomm, dataset: Dataset, objective: Objective, classes: list[float] | None,
                   dtype: np.dtype, class_weight: str | dict[float, float] | None, sample_weight: bool) -> Learnable:
    """Collective: return what makes targets and weights of this data set's labels.

    For another data set with the same classes, ask it for `Learnable.of`.

    ``class_weight`` is "balanced" (a class counts inversely to how many rows it has, as scikit-learn's does), or
    weights by class value, 1 where none is named. Raises `AgreedError` for classes that are none.
    """
    plain = Learnable(objective, classes, dtype, sample_weight)
    if class_weight is None:
        return plain.of(comm, dataset)
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
        sums = {}
        with agreed(comm):
            for number in range(comm.rank, len(dataset.paths), comm.size):
                labels, weight = dataset.labels(number)
                plain(labels, None)  # names a label that is no class
                sums[number] = np.bincount(np.searchsorted(classes, labels), weight if sample_weight else None,
                                           minlength=len(classes)).astype(np.float64)
        everywhere = _by_shard(comm, sums)
        counts = np.array([math.fsum(part[place] for part in everywhere) for place in range(len(classes))])
        table = counts.sum() / (len(classes) * np.maximum(counts, 1e-300))
        table[counts == 0] = 0
    return Learnable(objective, classes, dtype, sample_weight, table).of(comm, dataset)


def _by_shard(comm: Intracomm, sums: dict[int, Any]) -> list[Any]:
    """Collective: return what ranks have summed, in the order of shards, so that no bit depends on the ranks."""
    everywhere = {number: part for own in comm.allgather(sums) for number, part in own.items()}
    return [everywhere[number] for number in sorted(everywhere)]
