"""The same bytes of a synthetic data set on any number of ranks."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from dml_hpc.data.synthetic.synthesis import synthesise
from dml_hpc.errors import AgreedError
from dml_hpc.mpi import Alone

pytestmark = [pytest.mark.mpi, pytest.mark.maths]

CASES = [
    ("regression", "float32", 0.0, {"features": 5}),
    ("multiclass", "float16", 0.3, {"features": 5, "classes": 3}),
    ("sparse-binary", "float32", 0.3, {"features": 80, "row_entries": 6}),
    ("lowrank", "float64", 0.0, {"features": 9, "k": 2, "noise": 0.1}),
    ("ratings", "float32", 0.3, {"users": 30, "items": 20, "k": 2}),
]


@pytest.fixture
def folder(comms):
    """A folder that all ranks of a communicator see."""
    path = Path(comms.bcast(tempfile.mkdtemp() if comms.rank == 0 else None))
    yield path
    comms.Barrier()
    if comms.rank == 0:
        shutil.rmtree(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("kind", "dtype", "holdout", "given"), CASES, ids=[case[0] for case in CASES])
def test_the_same_bytes_as_on_one_rank(comms, folder, kind, dtype, holdout, given):
    settings = {"seed": 3, "shards": 5, "dtype": dtype, "holdout": holdout, **given}
    result = synthesise(comms, folder / "together", kind, 333, **settings)
    assert result["rows"] == 333 and len(set(comms.allgather(result["nonzeros"]))) == 1
    if comms.rank == 0:
        synthesise(Alone(), folder / "alone", kind, 333, **settings)
        found, expected = contents(folder / "together"), contents(folder / "alone")
        assert len(expected) == (13 if holdout else 7) + 2 * (kind == "ratings")
        assert found == expected


def test_mistakes_end_all_ranks_alike(comms, folder):
    with pytest.raises(AgreedError, match="at most 6 ratings"):
        synthesise(comms, folder / "s", "ratings", 7, users=2, items=3, k=1)
    with pytest.raises(AgreedError, match="too large for float16"):
        synthesise(comms, folder / "s", "lowrank", 100, features=10, dtype="float16", noise=1e5)
    assert not (folder / "s").exists()
