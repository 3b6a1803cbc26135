"""``manifest.json``: what a data set folder holds, so that nobody has to read the shards to know."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dml_hpc.errors import UserError
from dml_hpc.files import first_line

FORMAT = 1
FILE = "manifest.json"


@dataclass
class Column:
    """A column of the source table and the features it became: one (numeric) or one a category (one-hot).

    ``missing`` counts rows without a value; they hold the column's mean (numeric) or all zeros (categorical).
    """

    name: str
    kind: str
    """"numeric" or "categorical"."""
    categories: list[str] | None = None
    missing: int = 0


@dataclass
class Label:
    """The column to be predicted; rows without it were dropped (``missing``).

    ``values`` are the distinct values, sorted, when there are at most `MOST_VALUES`, else None. ``names`` are the
    source's words for them when it held words (``y`` then holds 0, 1, … in their order), else None. A held-out
    part has the values and names of its training part, whether or not its own rows hold them all.
    """

    name: str
    values: list[float] | None
    names: list[str] | None = None
    missing: int = 0


MOST_VALUES = 100
MOST_ROWS = 2**53
"""Larger counts are not exact as float64; no data set has them."""


@dataclass
class ShardEntry:
    """One shard file; ``sha256`` is that of the whole file."""

    file: str
    rows: int
    nonzeros: int
    sha256: str


@dataclass
class Manifest:
    """A data set of ``rows`` × ``features``; the per-feature lists are in the order of X's columns."""

    kind: str
    dtype: str
    rows: int
    features: int
    nonzeros: int
    feature_names: list[str]
    numeric: list[bool]
    mean: list[float]
    deviation: list[float]
    minimum: list[float]
    maximum: list[float]
    missing: list[int]
    columns: list[Column]
    label: Label
    shards: list[ShardEntry]
    source: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write the manifest into ``folder``."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a data set; raises `UserError` when ``folder`` is none or the manifest is not whole."""
    path = folder / FILE
    try:
        if not folder.exists():
            raise UserError(f"{folder} does not exist; `dml-hpc data import` makes a data set")
        if not path.is_file():
            parts = sorted(str(child) for child in folder.iterdir()
                           if (child / FILE).is_file()) if folder.is_dir() else []
            hint = f"; did you mean {' or '.join(parts)}?" if parts else "; `dml-hpc data import` makes one"
            raise UserError(f"{folder} is no data set: it holds no {FILE}{hint}")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}; import the data again") from None
    try:
        if not isinstance(table, dict):
            raise ValueError("it is no table")
        if table["format"] != FORMAT:
            raise UserError(f"{path} has format {table['format']!r}, this version reads {FORMAT}")
        table["columns"] = [Column(**column) for column in table["columns"]]
        table["label"] = Label(**table["label"])
        table["shards"] = [ShardEntry(**shard) for shard in table["shards"]]
        manifest = Manifest(**table)
        _check(manifest)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{path} is not a whole manifest ({message}); import the data again") from None
    return manifest


def _check(manifest: Manifest) -> None:
    """Raise `ValueError` for what no import writes: other code may rely on lengths and types."""
    if manifest.kind != "dense" or manifest.dtype not in ("float16", "float32", "float64"):
        raise ValueError(f"kind {manifest.kind!r} of {manifest.dtype!r} is not known")
    whole = [manifest.rows, manifest.features, manifest.nonzeros, manifest.label.missing]
    whole += [number for shard in manifest.shards for number in (shard.rows, shard.nonzeros)]
    if not all(_is_count(number) for number in whole):
        raise ValueError("a count is not a whole number")
    if not manifest.features:
        raise ValueError("there are no features")
    kinds: dict[str, Callable[[Any], bool]] = {
        "feature_names": _is_text, "numeric": _is_bool, "mean": _is_number, "deviation": _is_size,
        "minimum": _is_number, "maximum": _is_number, "missing": _is_count}
    for name, fits in kinds.items():
        entries = getattr(manifest, name)
        if not isinstance(entries, list) or len(entries) != manifest.features:
            raise ValueError(f"{name} does not have {manifest.features} entries")
        if not all(map(fits, entries)):
            raise ValueError(f"{name} has an entry of another type")
    _check_columns(manifest)
    label = manifest.label
    if not (_is_text(label.name) and (label.values is None or _list_of(label.values, _is_number))
            and (label.names is None or _list_of(label.names, _is_text))):
        raise ValueError("the label is not described as it should be")
    for shard in manifest.shards:
        plain = _is_text(shard.file) and shard.file.isprintable() and shard.file not in ("", "..")
        if not plain or Path(shard.file).name != shard.file or not _is_text(shard.sha256):
            raise ValueError(f"{shard.file!r} is no name of a shard")
    if sum(shard.rows for shard in manifest.shards) != manifest.rows:
        raise ValueError("the shards' rows do not add up to rows")
    source = manifest.source
    fill = source.get("fill", {}) if isinstance(source, dict) else None
    if not isinstance(fill, dict) or not _list_of(list(fill.values()), _is_number):
        raise ValueError("the source is not described as it should be")


def _check_columns(manifest: Manifest) -> None:
    first = 0
    for column in manifest.columns:
        words = column.categories
        fits = words is None if column.kind == "numeric" else _list_of(words, _is_text)
        if not (_is_text(column.name) and column.kind in ("numeric", "categorical") and fits
                and _is_count(column.missing)):
            raise ValueError(f"column {column.name!r} is not described as it should be")
        names = [column.name] if words is None else [f"{column.name}={word}" for word in words]
        if manifest.feature_names[first:first + len(names)] != names:
            raise ValueError(f"the features of column {column.name!r} are not those named")
        first += len(names)
    if manifest.columns and first != manifest.features:
        raise ValueError(f"the columns have {first} features, not {manifest.features}")


def _is_count(entry: object) -> bool:
    return type(entry) is int and 0 <= entry <= MOST_ROWS


def _is_number(entry: Any) -> bool:
    return type(entry) in (int, float) and math.isfinite(entry)


def _is_size(entry: Any) -> bool:
    return _is_number(entry) and entry >= 0


def _is_text(entry: object) -> bool:
    return isinstance(entry, str)


def _is_bool(entry: object) -> bool:
    return isinstance(entry, bool)


def _list_of(entries: object, fits: Callable[[Any], bool]) -> bool:
    return isinstance(entries, list) and all(map(fits, entries))
