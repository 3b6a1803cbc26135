"""The factors of users and items for other programs: a folder of NPY files, or of Parquet files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dml_hpc.data.ratings.ids import Ids
from dml_hpc.errors import UserError
from dml_hpc.files import replaced_folder
from dml_hpc.store.ranked_table import pyarrow
from dml_hpc.store.rating_factors import ARRAYS, IDS, RatingFactors

ABOUT = "about.json"
_CHUNK_BYTES = 1 << 25
_SPARE_BYTES = 1 << 22


def write_npy(folder: Path, factors: RatingFactors) -> list[str]:
    """Write ``user_factors.npy``, ``item_factors.npy``, biases where there are any, ids, and ``about.json``.

    Ids are ``users.npy`` and ``items.npy``, int64, or ``users.json`` and ``items.json``, lists of strings; row n of the
    factors belongs to the n-th. Arrays are written in parts: not all of them are in memory at any time. Returns the
    files' names. Raises `UserError`; ``folder`` appears whole or not at all.
    """
    with replaced_folder(folder) as partial:
        _check_room(folder, partial, factors)
        for name in ARRAYS:
            array = getattr(factors, name)
            if array is not None:
                _write_array(partial / f"{name}.npy", array)
        for name, ids in zip(IDS, (factors.users, factors.items), strict=True):
            if ids.is_text:
                _write_list(partial / f"{name}.json", ids)
            else:
                _write_array(partial / f"{name}.npy", ids.values)
        _write_about(partial, factors)
        return sorted(path.name for path in partial.iterdir())


def write_parquet(folder: Path, factors: RatingFactors) -> list[str]:
    """Write ``users.parquet`` and ``items.parquet``, a row for each, and ``about.json``.

    Columns are ``id``, int64 or string, ``factors``, a list of k float32 (of that fixed size), and ``bias``, float32,
    where there are any. Rows are written in groups: not all of them are in memory at any time. Returns the files'
    names. Raises `UserError`; ``folder`` appears whole or not at all.
    """
    with replaced_folder(folder) as partial:
        _check_room(folder, partial, factors)
        for name, ids, rows, biases in (("users", factors.users, factors.user_factors, factors.user_biases),
                                        ("items", factors.items, factors.item_factors, factors.item_biases)):
            _write_side(partial / f"{name}.parquet", ids, rows, biases)
        _write_about(partial, factors)
        return sorted(path.name for path in partial.iterdir())


def _check_room(folder: Path, partial: Path, factors: RatingFactors) -> None:
    needed = _SPARE_BYTES + sum(array.size * 4 for name in ARRAYS if (array := getattr(factors, name)) is not None)
    if (free := shutil.disk_usage(partial).free) < needed:
        raise UserError(f"cannot write {folder}: it takes {needed >> 20:,} MiB, and {free >> 20:,} MiB are free; "
                        "choose another -o")


def _parts(array: np.ndarray) -> Iterator[slice]:
    rows = max(1, _CHUNK_BYTES // max(array[:1].nbytes, 1))
    return (slice(first, min(first + rows, len(array))) for first in range(0, len(array), rows))


def _write_array(path: Path, array: np.ndarray) -> None:
    stored = array.dtype.newbyteorder("<")
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": stored.str, "fortran_order": False, "shape": array.shape})
        for part in _parts(array):
            file.write(np.ascontiguousarray(array[part], stored).view(np.uint8).data)


def _write_list(path: Path, ids: Ids) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, name in enumerate(ids.values):
            file.write(("[" if number == 0 else ",\n") + json.dumps(name, ensure_ascii=False))
        file.write("]\n" if len(ids) else "[]\n")


def _write_side(path: Path, ids: Ids, rows: np.ndarray, biases: np.ndarray | None) -> None:
    pa = pyarrow()
    k = rows.shape[1]
    fields = [("id", pa.string() if ids.is_text else pa.int64()), ("factors", pa.list_(pa.float32(), k)),
              *([] if biases is None else [("bias", pa.float32())])]
    with pa.parquet.ParquetWriter(path, pa.schema(fields)) as file:
        for part in _parts(rows):
            values = pa.array(np.ascontiguousarray(rows[part], np.float32).reshape(-1))
            columns: list[Any] = [pa.array(ids.values[part], fields[0][1]),
                                  pa.FixedSizeListArray.from_arrays(values, k)]
            if biases is not None:
                columns.append(pa.array(np.ascontiguousarray(biases[part], np.float32)))
            file.write_table(pa.Table.from_arrays(columns, schema=pa.schema(fields)))


def _write_about(folder: Path, factors: RatingFactors) -> None:
    about = {"mean": factors.mean, "k": factors.k, "settings": factors.settings, "digest": factors.digest}
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
