"""What ``svd-apply`` and ``svd --left`` share: rows projected onto singular vectors, as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.data.build import build
from dml_hpc.data.dataset import Dataset
from dml_hpc.data.manifest import Manifest
from dml_hpc.data.replaceable import check_replaceable
from dml_hpc.decomposition.svd.projection import Projected, projected_dtype
from dml_hpc.files import check_output
from dml_hpc.kernels import start_compiler
from dml_hpc.layout import split
from dml_hpc.mpi import agreed, first_on_node, on_root, shared_folder
from dml_hpc.store.factors import Factors

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.console import Console

SHARD_BYTES = 32 << 20
"""A rank takes at least so much of what is read or written, if the data set's own shards are not smaller."""
MOST_SHARDS = 1024


def check_folder(comm: Intracomm, path: Path, overwrite: bool, inputs: Sequence[Path], option: str = "-o") -> None:
    """Collective: raise `AgreedError` unless a data set may be written to ``path``, which ``option`` named.

    ``inputs`` are what the run reads. For before a run spends any time.
    """
    def look() -> None:
        check_output(path, overwrite, folder=True, option=option, inputs=inputs)
        check_replaceable(path, inputs)

    on_root(comm, look)


def project(comm: Intracomm, console: Console, dataset: Dataset, factors: Factors, path: Path, scores: bool,
            dtype: str | None = None) -> Manifest:
    """Collective: write the rows' projections (see `Projected`) as a data set folder, and return its manifest.

    Every rank brings the same ``factors``, projects contiguous ranges of rows and writes each as a shard. Rows, labels
    and weights keep their order; the files do not depend on the number of ranks. What stood at ``path`` is replaced
    when all is written; on failure nothing is. ``dtype``: see `projected_dtype`. Raises `AgreedError` for rows that
    cannot be read or projected.
    """
    dtype = dtype or projected_dtype(dataset)
    shards = _shards(dataset, factors.k * np.dtype(dtype).itemsize)
    # The bar counts the rows of rank 0.
    bar = console.bar(split(dataset.rows, shards, split(shards, comm.size, 0)[1])[0], "projecting rows")
    with agreed(comm):
        source = Projected(dataset, factors, scores, dtype, bar)
    if dataset.kind == "csr":
        start_compiler()
        with first_on_node(comm):
            source.warm_up()
    with shared_folder(comm, path) as folder:
        manifest = build(comm, folder, {"": source}, shards=shards, dtype=dtype)[""]
    bar.close()
    files = "1 shard" if shards == 1 else f"{shards} shards"
    console.say(f"{path}: {manifest.rows:,} rows × {manifest.features:,} in {files} of {dtype}")
    return manifest


def _shards(dataset: Dataset, row_bytes: int) -> int:
    """Return how many shards there will be: as many as the data set has, more where they would be few and large."""
    for_many_ranks = dataset.rows * max(row_bytes, dataset.row_bytes()) // SHARD_BYTES
    return max(1, min(dataset.rows, max(len(dataset.manifest.shards), min(for_many_ranks, MOST_SHARDS))))


def write_left(comm: Intracomm, console: Console, dataset: Dataset, factors: Factors, path: Path, overwrite: bool,
               dtype: str | None = None) -> Manifest:
    """Collective: write U = A·V/σ, the left singular vectors of ``dataset``, as `project` does.

    ``factors`` are those of ``dataset``, the same on every rank. Raises `AgreedError` when ``path`` may not be replaced
    (`check_folder` says so before the SVD).
    """
    check_folder(comm, path, overwrite, [dataset.path] if dataset.is_imported else dataset.paths, "--left")
    return project(comm, console, dataset, factors, path, scores=False, dtype=dtype)
