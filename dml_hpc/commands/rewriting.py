"""What `data split` and `data merge` share: rows of data sets are written anew, by all ranks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.console import Console
from dml_hpc.files import check_output
from dml_hpc.mpi import Alone, agreed, on_root, shared_folder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.data.sources.source import RowSource


def check(comm: Intracomm | Alone, output: Path, overwrite: bool, inputs: Sequence[Path]) -> None:
    """Collective: raise `AgreedError` unless a data set of the rows of ``inputs`` may be written to ``output``."""
    from dml_hpc.data.replaceable import check_replaceable

    def look() -> None:
        check_output(output, overwrite, folder=True)
        check_replaceable(output, inputs)

    on_root(comm, look)


def rewrite(comm: Intracomm | Alone, console: Console, output: Path, parts: dict[str, RowSource], *, shards: int,
            dtype: str, compression: str | None, shuffle: bool, seed: int) -> dict[str, Any]:
    """Collective: write the rows of ``parts`` into ``output/NAME``, with ``shuffle`` in random order.

    Returns ``parts`` (rows by name), ``rows``, ``features``, ``kind``, ``shards``, ``dtype``, ``compression``,
    ``output``, and ``work_s``.
    """
    from dml_hpc.data.build import build

    started = time.perf_counter()
    rows = sum(source.rows for source in parts.values())
    # The bar counts the rows of rank 0.
    bar = console.bar(rows * -(-shards // comm.size) // shards, "writing rows")
    with shared_folder(comm, output) as folder:
        written = dict(parts)
        if shuffle:
            from dml_hpc.data.sources.shuffle import shuffled

            for name, source in parts.items():
                written[name] = shuffled(comm, source, seed, folder / "scratch" / (name or "whole"))
        manifests = build(comm, folder, written, shards=shards, dtype=dtype, compression=compression, bar=bar)
        with agreed(comm):
            if shuffle and comm.rank == 0:
                import shutil

                shutil.rmtree(folder / "scratch")
    bar.close()
    files = "1 shard" if shards == 1 else f"{shards} shards"
    for name, manifest in manifests.items():
        console.say(f"{output / name}: {manifest.rows:,} rows × {manifest.features:,} in {files} of {manifest.dtype}"
                    + (f", {compression}" if compression else ""))
    source = next(iter(parts.values()))
    return {"parts": {name: manifest.rows for name, manifest in manifests.items()}, "rows": rows,
            "features": source.features, "kind": source.kind, "shards": shards, "dtype": dtype,
            "compression": compression, "output": str(output), "work_s": round(time.perf_counter() - started, 6)}


def chosen(compression: str | None, own: str | None) -> str | None:
    """Return what ``--compression`` asks for; without it a data set keeps its ``own``."""
    return own if compression is None else None if compression == "none" else compression
