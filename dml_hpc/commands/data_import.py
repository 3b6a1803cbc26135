"""``dml-hpc data import``: files of tables or matrices become a data set of HDF5 shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.commands.data_info import TOO_MANY
from dml_hpc.commands.ratings_data import of_ratings, run_import
from dml_hpc.console import Console
from dml_hpc.files import check_output
from dml_hpc.mpi import Alone, agreed, on_root

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def run(comm: Intracomm | Alone, console: Console, *, sources: Sequence[str], output: Path, label: str | None,
        weight: str | None, categorical: Sequence[str], numeric: Sequence[str], text: Sequence[str],
        drop: Sequence[str], hash_bits: int | None, x_key: str | None, y_key: str | None, weight_key: str | None,
        features: int | None, holdout: float, seed: int, shuffle: bool, shards: int, dtype: str, layout: str,
        compression: str, like: Path | None, overwrite: bool, **rated: Any) -> dict[str, Any]:
    """Import ``sources`` into the folder ``output``; see `import_data` for the arguments and the result.

    ``rated`` are the options for ratings; see `run_import`.
    """
    from dml_hpc.data.importing import Columns, Form, MatrixKeys, import_data

    packed = None if compression == "none" else compression
    with agreed(comm):
        ratings = of_ratings(rated, {
            "label": (label, None), "categorical": (categorical, ()), "numeric": (numeric, ()), "text": (text, ()),
            "drop": (drop, ()), "hash_bits": (hash_bits, None), "x_key": (x_key, None), "y_key": (y_key, None),
            "weight_key": (weight_key, None), "features": (features, None), "shuffle": (shuffle, False),
            "dtype": (dtype, "float32"), "layout": (layout, "auto"), "like": (like, None)})
    on_root(comm, lambda: check_output(output, overwrite, folder=True))
    if ratings:
        return run_import(comm, console, sources=sources, output=output, weight=weight, holdout=holdout, seed=seed,
                          shards=shards, compression=packed, **rated)
    result = import_data(
        comm, sources, output, label=label, weight=weight, columns=Columns(categorical, numeric, text, drop, hash_bits),
        keys=MatrixKeys(x_key, y_key, weight_key, features), like=like, holdout=holdout, seed=seed, shuffle=shuffle,
        form=Form(shards, dtype, layout, packed), console=console)
    unseen = result["unseen_categories"]
    console.say(f"read {result['rows_read']:,} rows, "
                + (f"dropped {result['rows_without_label']:,} without '{label}', " if label is not None else "")
                + f"wrote {result['rows']:,}")
    console.say(f"{result['features']:,} features; {result['missing_values']:,} missing values filled"
                + (f"; {unseen:,} values of unknown category" if unseen else ""))
    if not result["statistics"]:
        console.say(TOO_MANY)
    parts = {"train": result["train_rows"], "test": result["test_rows"]} if holdout else {"": result["rows"]}
    files = "1 shard" if shards == 1 else f"{shards} shards"
    for part, rows in parts.items():
        console.say(f"{output / part}: {rows:,} rows in {files} of {dtype}"
                    + (", sparse" if result["kind"] == "csr" else "") + (", weighted" if result["weighted"] else ""))
    console.say(f"took {result['work_s']:.1f} s")
    return result
