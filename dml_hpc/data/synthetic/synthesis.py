"""Synthetic data sets of known answer, which lies beside them in ``truth.h5``."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dml_hpc.console import Console
from dml_hpc.data.build import build
from dml_hpc.data.manifest import Manifest
from dml_hpc.data.ratings.importing import Settings, check_settings
from dml_hpc.data.ratings.importing import build as build_ratings
from dml_hpc.data.ratings.made import counted
from dml_hpc.data.sources.holdout import Held
from dml_hpc.data.sources.source import RowSource
from dml_hpc.data.synthetic.factors import LowRank, Ratings
from dml_hpc.data.synthetic.linear import Linear, SparseBinary
from dml_hpc.errors import UserError
from dml_hpc.layout import split
from dml_hpc.mpi import Alone, agreed, on_root, shared_folder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

TRUTH = "truth.h5"

REQUIRED = None
SETTINGS: dict[str, dict[str, Any]] = {
    "regression": {"features": REQUIRED, "noise": 0.1},
    "binary": {"features": REQUIRED},
    "multiclass": {"features": REQUIRED, "classes": 10},
    "sparse-binary": {"features": REQUIRED, "row_entries": 32.0, "density": 0.0},
    "lowrank": {"features": REQUIRED, "k": 10, "noise": 0.0},
    "ratings": {"users": REQUIRED, "items": REQUIRED, "k": 10, "noise": 0.1},
}
"""What each kind takes, and what it is when not given."""


class Synthetic(RowSource, Protocol):
    """A source of made rows that knows the answer."""

    def truth(self) -> dict[str, Any]:
        """Return what the rows were made from: arrays and numbers by name."""
        ...


def synthetic(kind: str, rows: int, seed: int = 0, dtype: str = "float32", **given: Any) -> Synthetic:
    """Return the rows of a kind: its `SETTINGS` where ``given`` has them and not None.

    Raises `UserError` for settings that are missing, do not go with the kind, or make no data set.
    """
    takes = SETTINGS[kind]
    given = {name: value for name, value in given.items() if value is not None}
    strange = [_option(name) for name in given if name not in takes]
    if strange:
        raise UserError(f"{kind} takes no {strange[0]}; it takes {', '.join(map(_option, takes))}")
    missing = [_option(name) for name in takes if name not in given and takes[name] is REQUIRED]
    if missing:
        raise UserError(f"{kind} needs {' and '.join(missing)}")
    for name, least in (("features", 1), ("users", 1), ("items", 1), ("k", 1), ("classes", 2), ("noise", 0)):
        if not given.get(name, least) >= least:
            raise UserError(f"{_option(name)} is at least {least}, not {given[name]}")
    if rows < 1 or rows * given.get("features", 1) >= 1 << 62:
        raise UserError(f"--rows is at least 1, and rows × features below 2^62; got {rows:,} rows")
    if not 0 <= seed < 1 << 64:
        raise UserError(f"--seed is from 0 to 2^64 − 1, not {seed}")
    settings = {**takes, **given}
    if kind == "sparse-binary":
        return SparseBinary(rows, settings["features"], seed, dtype, _row_entries(given, settings))
    if kind == "lowrank":
        return LowRank(rows, settings["features"], seed, dtype, settings["k"], settings["noise"])
    if kind == "ratings":
        return Ratings(rows, settings["users"], settings["items"], seed, settings["k"], settings["noise"])
    return Linear(kind, rows, settings["features"], seed, dtype, settings.get("classes", 1), settings.get("noise"))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _row_entries(given: dict[str, Any], settings: dict[str, Any]) -> float:
    if "density" not in given:
        return settings["row_entries"]
    if "row_entries" in given:
        raise UserError("--density and --row-entries say the same; give one of them")
    if not 0 < given["density"] <= 0.5:
        raise UserError(f"--density is above 0 and at most 0.5, as rows are sparse, not {given['density']:g}")
    return given["density"] * settings["features"]


def synthesise(comm: Intracomm | Alone, output: Path, kind: str, rows: int, *, seed: int = 0, shards: int = 8,
               dtype: str = "float32", compression: str | None = None, holdout: float = 0.0,
               console: Console | None = None, grid: tuple[int, int] | None = None, **given: Any) -> dict[str, Any]:
    """Collective: make a data set of a kind in the folder ``output``, with `TRUTH` in it; see `synthetic`.

    With ``holdout`` above 0 that share of the rows goes to ``output/test``, the others to ``output/train``. ``grid`` is
    for ratings: how many stripes of users and of items they are cut into (`grid_shape`). The bytes do not depend on the
    number of ranks. Returns ``kind``, ``rows``, ``features``, ``nonzeros``, ``shards``, ``dtype``, ``output``,
    ``train_rows``, ``test_rows`` (None without ``holdout``) and ``work_s``. Raises `AgreedError` for what makes no data
    set.
    """
    started = time.perf_counter()
    with agreed(comm):
        if not 0 <= holdout < 1 or shards < 1:
            raise UserError(f"--holdout is a share from 0 to below 1, --shards at least 1; got {holdout}, {shards}")
        if holdout and kind == "lowrank":
            raise UserError("the singular values of lowrank are those of all its rows; leave out --holdout")
        if kind == "ratings":
            check_settings(Settings(grid, shards=shards))
            if dtype != "float32":
                raise UserError(f"ratings are stored as float32, not {dtype}; leave out --dtype")
        elif grid is not None:
            raise UserError(f"{kind} takes no --grid, which cuts ratings; leave it out")
        source = synthetic(kind, rows, seed, dtype, **given)
    console = console or Console(progress=False)
    if isinstance(source, Ratings):
        manifests = _rated(comm, output, source, Settings(grid, "last", holdout, seed, shards, compression), console)
    else:
        manifests = _rows(comm, output, source, kind, seed, shards, dtype, compression, holdout, console)
    counts = {name: manifest.rows for name, manifest in manifests.items()}
    first = next(iter(manifests.values()))
    return {"kind": kind, "rows": rows, "features": source.features,
            "nonzeros": sum(manifest.nonzeros for manifest in manifests.values()), "shards": len(first.shards),
            "dtype": dtype, "output": str(output), "train_rows": counts.get("train"), "test_rows": counts.get("test"),
            "work_s": round(time.perf_counter() - started, 6)}


def _rated(comm: Intracomm | Alone, output: Path, made: Ratings, settings: Settings,
           console: Console) -> dict[str, Manifest]:
    """Collective: write ratings, cut into a grid."""
    with shared_folder(comm, output) as folder:
        scratch = folder / "scratch"
        on_root(comm, scratch.mkdir)
        bar = console.bar(made.rows // comm.size, "counting")
        source = counted(comm, made, bar)
        bar.close()
        about = {name: value for name, value in made.about.source.items() if name != "seed"}
        manifests = build_ratings(comm, folder, scratch, source, "rating", about, settings, console).manifests
        comm.Barrier()
        on_root(comm, lambda: shutil.rmtree(scratch))
        on_root(comm, lambda: write_truth(folder / TRUTH, made, "ratings", made.rows))
    return manifests


def _rows(comm: Intracomm | Alone, output: Path, source: Synthetic, kind: str, seed: int, shards: int, dtype: str,
          compression: str | None, holdout: float, console: Console) -> dict[str, Manifest]:
    """Collective: write rows of features."""
    with agreed(comm):
        parts: dict[str, RowSource] = {"": source}
        if holdout:
            parts = {"train": Held(source, holdout, seed, False), "test": Held(source, holdout, seed, True)}
            empty = [name for name, part in parts.items() if not part.rows]
            if empty:
                raise UserError(f"--holdout {holdout:g} of {source.rows:,} rows leaves none to {empty[0]}; choose "
                                "another")
    # The bar counts the rows of rank 0.
    own = split(shards, comm.size, 0)[1]
    bar = console.bar(source.rows * own // shards, "making rows")
    with shared_folder(comm, output) as folder:
        manifests = build(comm, folder, parts, shards=shards, dtype=dtype, compression=compression, bar=bar)
        on_root(comm, lambda: write_truth(folder / TRUTH, source, kind, source.rows))
    bar.close()
    return manifests


def write_truth(path: Path, source: Synthetic, kind: str, rows: int) -> None:
    """Write what the rows were made from: arrays as datasets, numbers and words as attributes of an HDF5 file."""
    import h5py

    settings = {name: value for name, value in source.about.source.items() if name != "synthetic"}
    entries = {"kind": kind, "rows": rows, "features": source.features, **settings, **source.truth()}
    if source.about.users is not None:
        entries["users"] = source.about.users
    with h5py.File(path, "w") as file:
        for name, value in entries.items():
            if isinstance(value, np.ndarray):
                file.create_dataset(name, data=value)
            else:
                file.attrs[name] = value
