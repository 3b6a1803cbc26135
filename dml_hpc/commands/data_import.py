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

    check_output(output, overwrite)
    result = import_table(sources, output, label=label, categorical=categorical, numeric=numeric, drop=drop,
                          holdout=holdout, seed=seed, shards=shards, dtype=dtype, like=like, console=console)
    unseen = result["unseen_categories"]
    console.say(f"read {result['rows_read']:,} rows, dropped {result['rows_without_label']:,} without '{label}', "
                f"wrote {result['rows']:,} with {result['features']:,} features "
                f"({result['missing_values']:,} missing values filled"
                + (f", {unseen:,} of unknown category)" if unseen else ")"))
    parts = {"train": result["train_rows"], "test": result["test_rows"]} if holdout else {"": result["rows"]}
    for part, rows in parts.items():
        console.say(f"{output / part}: {rows:,} rows in {shards} {'shard' if shards == 1 else 'shards'} of {dtype}")
    console.say(f"took {result['work_s']:.1f} s")
    return result
