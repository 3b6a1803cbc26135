"""Matrix sources are the same on any number of ranks, and what one rank finds bad ends all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from dml_hpc.data.sources.libsvm import open_libsvm
from dml_hpc.data.sources.matrices import open_matrix
from dml_hpc.errors import AgreedError
from dml_hpc.mpi import Alone

pytestmark = [pytest.mark.mpi, pytest.mark.maths]


@pytest.fixture
def folder(comms):
    """A folder that all ranks see."""
    path = Path(comms.bcast(tempfile.mkdtemp() if comms.rank == 0 else None))
    yield path
    comms.Barrier()
    if comms.rank == 0:
        shutil.rmtree(path)


def write(comms, folder, bad=False):
    """Rank 0 writes 400 rows as LIBSVM text and as HDF5 with missing values."""
    if comms.rank == 0:
        lines = [f"{i % 2} " + " ".join(f"{j + 1}:{i / (j + 3)!r}" for j in range(i % 9)) for i in range(400)]
        if bad:
            lines[333] = "1 5:x"
        (folder / "a.svm").write_text("\n".join(lines))
        X = np.random.default_rng(0).standard_normal((400, 5))
        X[X > 1] = np.nan
        X[333, 3] = np.inf if bad else 0
        with h5py.File(folder / "a.h5", "w") as file:
            file["X"], file["y"] = X, np.zeros(400)
    comms.Barrier()


@pytest.mark.parametrize("piece_bytes", [600, 1 << 20])
def test_the_same_rows_as_on_one_rank(comms, folder, piece_bytes):
    write(comms, folder)
    alone = [open_libsvm(Alone(), [folder / "a.svm"], folder / f"s{comms.rank}", piece_bytes=piece_bytes),
             open_matrix(Alone(), [folder / "a.h5"], folder / f"t{comms.rank}")]
    together = [open_libsvm(comms, [folder / "a.svm"], folder / "s", piece_bytes=piece_bytes),
                open_matrix(comms, [folder / "a.h5"], folder / "t")]
    for one, all_ in zip(alone, together, strict=True):
        assert (one.rows, one.features) == (all_.rows, all_.features)
        assert np.array_equal(one.about.missing, all_.about.missing)
        for start, stop in [(0, 400), (150, 160)]:
            (X, y), (X_all, y_all) = one.read(start, stop), all_.read(start, stop)
            assert np.array_equal(y, y_all)
            if one.kind == "csr":
                assert np.array_equal(X.dense(), X_all.dense())
            else:
                assert np.array_equal(X, X_all), "bit for bit: the means do not depend on the ranks"
    comms.Barrier()


def test_what_one_rank_finds_ends_all(comms, folder):
    write(comms, folder, bad=True)
    with pytest.raises(AgreedError, match=r"a\.svm, line 334: '5:x' is no INDEX:VALUE"):
        open_libsvm(comms, [folder / "a.svm"], folder / "s", piece_bytes=600)
    with pytest.raises(AgreedError, match=r"a\.h5: row 333, column 3 holds an infinite value"):
        open_matrix(comms, [folder / "a.h5"], folder / "t")
