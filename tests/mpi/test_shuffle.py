"""The external shuffle gives the same rows on any number of ranks, to every rank."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from dml_hpc.data.csr import sparse
from dml_hpc.data.sources.shuffle import shuffled
from dml_hpc.data.sources.source import About
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.mpi import Alone

pytestmark = [pytest.mark.mpi, pytest.mark.maths]


class Rows:
    """A source over arrays; ``bad`` is the row that cannot be read."""

    def __init__(self, rows, kind, bad=None):
        rng = np.random.default_rng(rows)
        self.X = rng.standard_normal((rows, 5)) * (rng.random((rows, 5)) < 0.5)
        self.y = np.arange(rows) * 1.0
        self.kind, self.rows, self.features, self.about, self.bad = kind, rows, 5, About(), bad

    def read(self, start, stop):
        if self.bad is not None and start <= self.bad < stop:
            raise UserError(f"row {self.bad} is bad")
        X = self.X[start:stop]
        return (X if self.kind == "dense" else sparse(X)), self.y[start:stop]


@pytest.fixture
def folder(comms):
    """A folder that all ranks see."""
    path = Path(comms.bcast(tempfile.mkdtemp() if comms.rank == 0 else None))
    yield path
    comms.Barrier()
    if comms.rank == 0:
        shutil.rmtree(path)


@pytest.mark.parametrize("kind", ["dense", "csr"])
@pytest.mark.parametrize("rows", [0, 1, 3, 1000])
@pytest.mark.parametrize("bucket_bytes", [5000, 1 << 20])
def test_the_same_rows_as_on_one_rank(comms, folder, kind, rows, bucket_bytes):
    source = Rows(rows, kind)
    alone = shuffled(Alone(), source, 5, folder / f"alone-{comms.rank}")
    together = shuffled(comms, source, 5, folder / "together", bucket_bytes=bucket_bytes)
    for start, stop in [(0, rows), (rows // 3, rows // 2)]:
        expected, found = alone.read(start, stop), together.read(start, stop)
        assert np.array_equal(found[1], expected[1])
        assert np.array_equal(*(X.dense() if kind == "csr" else X for X in (found[0], expected[0])))
    assert sorted(together.read(0, rows)[1]) == list(range(rows))


def test_what_one_rank_cannot_read_ends_all(comms, folder):
    with pytest.raises(AgreedError, match="row 99 is bad"):
        shuffled(comms, Rows(100, "dense", bad=99), 5, folder)
