"""Ranks share the looking, splitting and merging: the same findings and the same bytes on any number of them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from data_support import ArraySource

from dml_hpc.commands import data_merge, data_split
from dml_hpc.console import Console
from dml_hpc.data.build import build
from dml_hpc.data.csr import sparse
from dml_hpc.data.verification.verify import verify
from dml_hpc.errors import AgreedError
from dml_hpc.mpi import Alone

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

pytestmark = [pytest.mark.mpi, pytest.mark.maths]

RNG = np.random.default_rng(2)
X = RNG.standard_normal((90, 5)) * (RNG.random((90, 5)) < 0.5)
Y = np.arange(90) % 3


@pytest.fixture
def folder(comms: Intracomm) -> Iterator[Path]:
    """A folder that all ranks see, with the data sets ``dense`` and ``csr`` of five shards."""
    path = Path(comms.bcast(tempfile.mkdtemp() if comms.rank == 0 else None))
    if comms.rank == 0:
        for name, rows in (("dense", X), ("csr", sparse(X))):
            (path / name).mkdir()
            build(Alone(), path / name, {"": ArraySource(rows, Y)}, shards=5, dtype="float64")
    comms.Barrier()
    yield path
    comms.Barrier()
    if comms.rank == 0:
        shutil.rmtree(path)


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_all_ranks_know_every_problem(comms: Intracomm, folder: Path, kind: str) -> None:
    assert verify(comms, [folder / kind]) == (5, 90, [])
    comms.Barrier()
    if comms.rank == 0:
        for number in (1, 4):
            with h5py.File(folder / kind / f"part-{number:05d}.h5", "r+") as file:
                file["y"][number] = np.nan
    comms.Barrier()
    found = [(Path(problem.file).name, problem.where) for problem in verify(comms, [folder / kind]).problems]
    assert found == [(f"part-{number:05d}.h5", where) for number in (1, 4) for where in ("checksum", f"y[{number}]")]
    comms.Barrier()


def test_what_is_no_data_set_ends_all(comms: Intracomm, folder: Path) -> None:
    with pytest.raises(AgreedError, match="does not exist"):
        verify(comms, [folder / "nowhere"])


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_split_and_merge_write_the_same_bytes_as_one_rank(comms: Intracomm, folder: Path, kind: str) -> None:
    split = {"data": [folder / kind], "holdout": 0.3, "seed": 5, "shards": 3, "stratify": True, "shuffle": True,
             "compression": None, "overwrite": False}
    merge = {"shards": 2, "dtype": "float32", "compression": None, "shuffle": True, "seed": 1, "overwrite": False}
    made = {}
    for name, comm in (("together", comms), ("alone", Alone())):
        if name == "together" or comms.rank == 0:
            console = Console(rank=1)
            data_split.run(comm, console, output=folder / f"{name}-s", **split)
            data_merge.run(comm, console, [folder / f"{name}-s" / part for part in ("train", "test")],
                           folder / f"{name}-m", **merge)
            made[name] = {str(path.relative_to(folder)).removeprefix(name): path.read_bytes()
                          for path in sorted(folder.glob(f"{name}-*/**/*.h5"))}
        comms.Barrier()
    if comms.rank == 0:
        assert made["together"] == made["alone"] and len(made["alone"]) == 8
