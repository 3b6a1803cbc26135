"""An import is the same, byte for byte, on any number of ranks, and what one of them finds bad ends all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from dml_hpc.data.importing import Columns, Form, import_data
from dml_hpc.errors import AgreedError
from dml_hpc.mpi import Alone

pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.mpi, pytest.mark.maths]


@pytest.fixture
def folder(comms):
    """A folder that all ranks see."""
    path = Path(comms.bcast(tempfile.mkdtemp() if comms.rank == 0 else None))
    yield path
    comms.Barrier()
    if comms.rank == 0:
        shutil.rmtree(path)


def write(comms, path: Path, word: str = "7") -> Path:
    """Rank 0 writes 900 rows with gaps, words with line ends, and ``word`` among the numbers of row 801."""
    if comms.rank == 0:
        draw = np.random.default_rng(0)
        words = ["a", "NA", '"b\n"']
        rows = [",".join(["" if draw.random() < 0.1 else str(draw.normal()), words[draw.integers(3)],
                          "" if draw.random() < 0.1 else str(draw.integers(2))]) for _ in range(900)]
        rows[799] = f"{word},a,1"
        path.write_text("\n".join(["n,c,y", *rows]))
    comms.Barrier()
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a data set; manifests without the name of the folder, which they do not hold."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


CASES = {
    "dense": {"holdout": 0.3, "seed": 2, "form": Form(3)},
    "shuffled": {"shuffle": True, "seed": 2, "form": Form(5, compression="gzip")},
    "hashed": {"columns": Columns(hash_bits=6), "holdout": 0.3, "form": Form(2, "float64")},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("piece_bytes", [1000, 1 << 20])
def test_the_same_bytes_as_on_one_rank(comms, folder, case, piece_bytes):
    path = write(comms, folder / "t.csv")
    options = {"label": "y", "piece_bytes": piece_bytes, **CASES[case]}
    result = import_data(comms, [path], folder / "out", **options)
    import_data(Alone(), [path], folder / f"alone-{comms.rank}", **options)
    assert contents(folder / "out") == contents(folder / f"alone-{comms.rank}")
    assert result["rows_read"] == 900 and len(set(comms.allgather(result["rows"]))) == 1


def test_text_among_numbers_is_found_by_its_row_and_leaves_nothing(comms, folder):
    path = write(comms, folder / "t.csv", "many")
    with pytest.raises(AgreedError, match=r"'many', row 801 of"):
        import_data(comms, [path], folder / "out", label="y", columns=Columns(numeric=["n"]), piece_bytes=1000)
    comms.Barrier()
    assert [child.name for child in folder.iterdir()] == ["t.csv"]
    comms.Barrier()
