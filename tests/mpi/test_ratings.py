"""Ratings are imported and split to the same bytes on any number of ranks, and what one finds bad ends all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from dml_hpc.console import Console
from dml_hpc.data.ratings.columns import Roles
from dml_hpc.data.ratings.importing import Settings, import_ratings
from dml_hpc.data.ratings.opened import open_ratings
from dml_hpc.data.ratings.splitting import split_ratings
from dml_hpc.errors import AgreedError
from dml_hpc.mpi import Alone

pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.mpi, pytest.mark.maths]
ROLES = Roles("who", "what", "stars", None, "at")


@pytest.fixture
def folder(comms):
    """A folder that all ranks see."""
    path = Path(comms.bcast(tempfile.mkdtemp() if comms.rank == 0 else None))
    yield path
    comms.Barrier()
    if comms.rank == 0:
        shutil.rmtree(path)


def write(comms, path: Path, word: str = "3") -> Path:
    """Rank 0 writes 900 ratings, some of a pair again, and ``word`` as the rating of row 801."""
    if comms.rank == 0:
        draw = np.random.default_rng(0)
        rows = [f"u{draw.integers(40)},{draw.integers(30)},{draw.integers(1, 6)},{draw.integers(50)}"
                for _ in range(900)]
        rows[800] = f"u1,2,{word},3"
        path.write_text("\n".join(["who,what,stars,at", *rows]))
    comms.Barrier()
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("settings", [
    Settings((5, 3), holdout=0.3, seed=2, shards=3), Settings(duplicates="mean", compression="gzip")])
def test_the_same_bytes_as_on_one_rank(comms, folder, settings):
    path = write(comms, folder / "t.csv")
    result = import_ratings(comms, [path], folder / "out", ROLES, settings=settings, piece_bytes=1000)
    if comms.rank == 0:
        import_ratings(Alone(), [path], folder / "alone", ROLES, settings=settings, piece_bytes=1000)
        assert contents(folder / "out") == contents(folder / "alone")
    assert result["rows_read"] == 900 and result["duplicates"] > 0
    assert len(set(comms.allgather(result["rows"]))) == 1


@pytest.mark.parametrize("by", ["share", "time", "last"])
def test_a_split_is_the_same_as_on_one_rank(comms, folder, by):
    path = write(comms, folder / "t.csv")
    import_ratings(comms, [path], folder / "r", ROLES, settings=Settings((4, 4)), piece_bytes=1000)
    options = {"by": by, "holdout": 0.3, "seed": 1, "shards": 3, "compression": None,
               "console": Console(progress=False)}
    result = split_ratings(comms, open_ratings(comms, folder / "r"), folder / "out", **options)
    if comms.rank == 0:
        split_ratings(Alone(), open_ratings(Alone(), folder / "r"), folder / "alone", **options)
        assert contents(folder / "out") == contents(folder / "alone")
    assert result["train_rows"] + result["test_rows"] == result["rows"] and result["test_rows"] > 0


def test_a_rating_that_is_none_is_found_by_its_row_and_leaves_nothing(comms, folder):
    path = write(comms, folder / "t.csv", "nan")
    with pytest.raises(AgreedError, match=r"row 801 of .*missing or NaN"):
        import_ratings(comms, [path], folder / "out", ROLES, piece_bytes=1000)
    comms.Barrier()
    assert [child.name for child in folder.iterdir()] == ["t.csv"]
    comms.Barrier()
