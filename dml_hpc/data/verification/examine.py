"""What is wrong with one file of a data set: every fault and its place, found in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dml_hpc.data.links import find, open_file
from dml_hpc.data.shard import WEIGHT, Keys, holds_group, open_ratings, open_shard
from dml_hpc.data.statistics import Moments
from dml_hpc.data.stored import StoredArray
from dml_hpc.data.verification.examine_csr import examine_csr
from dml_hpc.data.verification.examine_ratings import examine_ratings
from dml_hpc.data.verification.findings import (
    Expected,
    Findings,
    blocks,
    compare,
    compare_dtype,
    compare_rows,
    not_finite,
    open_part,
    read_part,
    without_path,
)
from dml_hpc.data.writer import label_dtype
from dml_hpc.errors import UserError
from dml_hpc.files import HDF5_ERRORS, first_line


def examine(path: Path, expected: Expected) -> Findings:
    """Read all of an HDF5 file and return what is wrong with it; raises nothing for whatever it holds."""
    found = Findings()
    try:
        file = open_file(path)
    except UserError as error:
        found.add("file", without_path(path, error))
        return found
    try:
        found.kind = expected.kind or _kind(path, file, expected)
        {"dense": _dense, "csr": examine_csr, "ratings": examine_ratings}[found.kind](path, file, expected, found)
        _label_and_weight(path, file, expected, found)
    except HDF5_ERRORS as error:
        found.add("file", f"cannot be read as HDF5: {first_line(error)}")
    except UserError as error:
        found.add("file", without_path(path, error))
    finally:
        file.close()
    if not found.faults:
        try:  # as whoever reads the rows will
            shard = open_ratings(path) if found.kind == "ratings" else \
                open_shard(path, Keys(expected.x_key, expected.y_key, expected.weight_key), expected.features)
            shard.close()
        except UserError as error:
            found.add("file", without_path(path, error))
    return found


def _kind(path: Path, file: Any, expected: Expected) -> str:
    if holds_group(path, file, expected.x_key):
        return "csr"
    return "ratings" if find(path, file, expected.x_key) is None and find(path, file, "rating") else "dense"


def _dense(path: Path, file: Any, expected: Expected, found: Findings) -> None:
    name = expected.x_key
    x = open_part(path, file, name, 2, found)
    if x is not None:
        found.rows, found.features = x.shape
        compare(found, name, "rows", found.rows, expected.rows)
        compare(found, name, "columns", found.features, expected.features)
        if not found.features:
            found.add(name, "has no columns")
        compare_dtype(found, name, x, expected.dtype)
        if expected.compressed is not None and found.rows and expected.compressed != (x.chunk_rows is not None):
            found.add(name, f"is {'not ' * expected.compressed}compressed, unlike the manifest says")
        wanted = expected.moments and found.features == expected.features and x.dtype.kind == "f"
        moments = Moments(x.shape[1]) if wanted else None
        bad, first = 0, ""
        for start, stop in blocks(path, x.shape[0], x.row_bytes):
            block = read_part(x, start, stop, name, found)
            if block is None:
                moments = None
                break
            # A sum is finite when all are; only then is it worth finding which is not.
            with np.errstate(over="ignore", invalid="ignore"):
                finite = bool(np.isfinite(block.sum(dtype=np.float64)))
            places = np.empty((0, 2)) if finite else np.argwhere(~np.isfinite(block))
            if len(places):
                row, column = places[0].tolist()
                first = first or f"{name}[{start + row}, {column}]={block[row, column]}"
                bad, moments = bad + len(places), None
            if moments is not None:
                moments.add(block)
        not_finite(found, first, bad)
        if moments is not None and found.rows == expected.rows:
            compare(found, name, "entries that are not zero", moments.nonzeros, expected.nonzeros)
        found.moments = moments


def _label_and_weight(path: Path, file: Any, expected: Expected, found: Findings) -> None:
    name = "rating" if found.kind == "ratings" else expected.y_key
    y = open_part(path, file, name, 1, found)
    if y is not None:
        compare_rows(found, name, y)
        compare_dtype(found, name, y, expected.dtype and label_dtype(expected.dtype))
        _column(y, name, found, expected.values)
    name = expected.weight_key or WEIGHT
    if expected.weight_key is not None or find(path, file, name):
        weight = open_part(path, file, name, 1, found)
        if weight is not None:
            compare_rows(found, name, weight)
            if expected.weight_key is not None:
                compare_dtype(found, name, weight, expected.dtype and label_dtype(expected.dtype))
            _column(weight, name, found, None, least=0)


def _column(part: StoredArray, name: str, found: Findings, values: list[float] | None,
            least: float | None = None) -> None:
    """Look at one number a row: finite, one of ``values``, not less than ``least``."""
    bad, odd, first_bad, first_odd = 0, 0, "", ""
    known = None if values is None else np.array(values, np.float64)
    for start, stop in blocks(part.path, part.shape[0], part.row_bytes):
        block = read_part(part, start, stop, name, found)
        if block is None:
            break
        finite = np.isfinite(block)
        if not finite.all():
            place = int(np.argmin(finite))
            first_bad = first_bad or f"{name}[{start + place}]={block[place]}"
            bad += len(block) - int(finite.sum())
        outside = np.zeros(len(block), bool)
        if known is not None:
            outside = ~np.isin(block.astype(np.float64), known)
        if least is not None:
            outside |= block < least
        outside &= finite
        if outside.any():
            place = int(np.argmax(outside))
            first_odd = first_odd or f"{name}[{start + place}]={block[place]:g}"
            odd += int(outside.sum())
    not_finite(found, first_bad, bad)
    if odd:
        where, _, value = first_odd.partition("=")
        allowed = "none of the label values that the manifest lists" if known is not None else "negative"
        found.add(where, f"is {value}, {allowed}; so are {odd:,} values")
