"""Write one table in every form the import reads, and encode it the slow way."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.data.dataset import open_dataset
from dml_hpc.data.importing import Columns, Form, MatrixKeys, import_data
from dml_hpc.mpi import Alone

Table = dict[str, list[Any]]


def write_csv(path: Path, table: Table, start: int = 0, stop: int | None = None) -> Path:
    """Write rows ``start`` … of the table; None is an empty field."""
    columns = [values[start:stop] for values in table.values()]
    rows = [",".join("" if value is None else str(value) for value in row) for row in zip(*columns, strict=True)]
    path.write_text("\n".join([",".join(table), *rows]) + "\n", encoding="utf-8")
    return path


def write_all_forms(folder: Path, table: Table) -> dict[str, list[Path]]:
    """Write the table as CSV, packed CSV, Parquet, and cut into three files of unequal length and kind."""
    import pyarrow as pa
    import pyarrow.parquet

    rows = len(next(iter(table.values())))
    plain = write_csv(folder / "plain.csv", table)
    (folder / "packed.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with zipfile.ZipFile(folder / "packed.csv.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(plain, "inside.csv")
    arrow = pa.table(table)
    pa.parquet.write_table(arrow, folder / "whole.parquet", row_group_size=max(1, rows // 5))
    first, second = rows // 7, rows // 2 + 1
    pa.parquet.write_table(arrow.slice(first, second - first), folder / "b.parquet")
    return {
        "csv": [plain], "gz": [folder / "packed.csv.gz"], "zip": [folder / "packed.csv.zip"],
        "parquet": [folder / "whole.parquet"],
        "several": [write_csv(folder / "a.csv", table, 0, first), folder / "b.parquet",
                    write_csv(folder / "c.csv", table, second)],
    }


def one_hot(values: list[Any], categories: list[str]) -> np.ndarray:
    """(rows, categories) float64; a missing or unknown value is a row of zeros."""
    return np.array([[float(str(value) == word) for word in categories] for value in values])


def filled(values: list[Any], training: np.ndarray) -> np.ndarray:
    """(rows,) float64: missing values are the mean of those at the places ``training`` that are not."""
    column = np.array([np.nan if value is None else float(value) for value in values])
    return np.where(np.isnan(column), np.nanmean(column[training]), column)


def import_table(sources: Sequence[Path | str], output: Path, comm: Any = None, **options: Any) -> dict[str, Any]:
    """Import with the options of columns, files and storage all by their names; one process unless ``comm`` says."""
    groups = [kind(**{name: options.pop(name) for name in kind._fields if name in options})
              for kind in (Columns, MatrixKeys, Form)]
    return import_data(comm or Alone(), sources, output, columns=groups[0], keys=groups[1], form=groups[2], **options)


def read_all(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return all rows of a data set, dense, and their labels."""
    dataset = open_dataset(folder)
    rows, labels = [np.empty((0, dataset.features))], [np.empty(0)]
    for piece in dataset.pieces(0, dataset.rows):
        rows.append(piece.X.dense() if isinstance(piece.X, Csr) else piece.X.copy())
        labels.append(piece.y.copy())
    return np.concatenate(rows), np.concatenate(labels)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the shards of a data set, byte for byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.h5"))}
