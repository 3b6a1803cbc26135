"""Weights are summed to the same bits, and written to the same bytes, on any number of ranks."""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from dml_hpc.commands.learnable import open_learnable
from dml_hpc.data.dataset import open_dataset
from dml_hpc.data.importing import Form, MatrixKeys, import_data
from dml_hpc.errors import AgreedError
from dml_hpc.objectives import open_objective

pytestmark = pytest.mark.mpi


@pytest.fixture
def folder(comms):
    """A folder that all ranks see."""
    path = Path(comms.bcast(tempfile.mkdtemp() if comms.rank == 0 else None))
    yield path
    comms.Barrier()
    if comms.rank == 0:
        shutil.rmtree(path)


def write(comms, path: Path, weight: np.ndarray) -> Path:
    """Rank 0 writes rows with these weights."""
    if comms.rank == 0:
        rows = np.arange(len(weight))
        np.savez(path, X=rows[:, None], y=rows % 2, w=weight)
    comms.Barrier()
    return path


def test_the_total_is_exact_on_any_number_of_ranks(comms, folder):
    weight = np.random.default_rng(1).random(500) * np.logspace(-8, 8, 500)
    import_data(comms, [write(comms, folder / "a.npz", weight)], folder / "out", keys=MatrixKeys(weight_key="w"),
                form=Form(5, "float64"))
    dataset = open_dataset(folder / "out", comm=comms)
    shards = [math.fsum(weight[start:start + 100]) for start in range(0, 500, 100)]
    learnable = open_learnable(comms, dataset, open_objective("linear"), None, np.dtype("float64"), None, True)
    found = float(learnable(np.zeros(1), np.ones(1))[1][0])  # one over the mean
    assert set(comms.allgather(found)) == {1 / (math.fsum(shards) / 500)}


def test_a_weight_that_is_none_ends_all_ranks(comms, folder):
    weight = np.ones(300)
    weight[250] = -1
    with pytest.raises(AgreedError, match="the weight of row 250 is -1"):
        import_data(comms, [write(comms, folder / "a.npz", weight)], folder / "out", form=Form(3),
                    keys=MatrixKeys(weight_key="w"))
