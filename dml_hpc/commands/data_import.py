"""``dml-hpc data import``: CSV or Parquet files become a data set of HDF5 shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dml_hpc.console import Console
from dml_hpc.files import check_output


def run(console: Console, sources: Sequence[Path], output: Path, label: str, categorical: Sequence[str],
        numeric: Sequence[str], drop: Sequence[str], holdout: float, seed: int, shards: int, dtype: str,
        like: Path | None, overwrite: bool) -> dict[str, Any]:
    """Import ``sources`` into the folder ``output``; see `import_table` for the arguments and the result."""
    from dml_hpc.data.importing import import_table

    check_output(output, overwrite, folder=True)
    result = import_table(sources, output, label=label, categorical=categorical, numeric=numeric, drop=drop,
                          holdout=holdout, seed=seed, shards=shards, dtype=dtype, like=like, console=console)
    unseen = result["unseen_categories"]
    console.say(f"read {result['rows_read']:,} rows, dropped {result['rows_without_label']:,} without "
                f"'{label}', wrote {result['rows']:,}")
    console.say(f"{result['features']:,} features; {result['missing_values']:,} missing values filled"
                + (f"; {unseen:,} values of unknown category" if unseen else ""))
    parts = {"train": result["train_rows"], "test": result["test_rows"]} if holdout else {"": result["rows"]}
    files = "1 shard" if shards == 1 else f"{shards} shards"
    for part, rows in parts.items():
        console.say(f"{output / part}: {rows:,} rows in {files} of {dtype}")
    console.say(f"took {result['work_s']:.1f} s")
    return result
