"""``manifest.json``: what a data set folder holds, so that nobody has to read the shards to know."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dml_hpc.errors import UserError

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
    if not folder.exists():
        raise UserError(f"{folder} does not exist; `dml-hpc data import` makes a data set")
    if not path.is_file():
        parts = sorted(str(child) for child in folder.iterdir() if (child / FILE).is_file()) if folder.is_dir() else []
        hint = f"; did you mean {' or '.join(parts)}?" if parts else "; `dml-hpc data import` makes one"
        raise UserError(f"{folder} is no data set: it holds no {FILE}{hint}")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}; import the data again") from None
    try:
        if table["format"] != FORMAT:
            raise UserError(f"{path} has format {table['format']}, this version reads {FORMAT}")
        table["columns"] = [Column(**column) for column in table["columns"]]
        table["label"] = Label(**table["label"])
        table["shards"] = [ShardEntry(**shard) for shard in table["shards"]]
        manifest = Manifest(**table)
        _check(manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a whole manifest ({error}); import the data again") from None
    return manifest


def _check(manifest: Manifest) -> None:
    """Raise `ValueError` for what no import writes: other code may rely on lengths and types."""
    if manifest.kind != "dense" or manifest.dtype not in ("float16", "float32", "float64"):
        raise ValueError(f"kind {manifest.kind!r} of {manifest.dtype!r} is not known")
    whole = [manifest.rows, manifest.features, manifest.nonzeros]
    whole += [number for shard in manifest.shards for number in (shard.rows, shard.nonzeros)]
    if not all(type(number) is int and number >= 0 for number in whole):
        raise ValueError("a count is not a whole number")
    kinds: dict[str, tuple[type, ...]] = {
        "feature_names": (str,), "numeric": (bool,), "mean": (int, float), "deviation": (int, float),
        "minimum": (int, float), "maximum": (int, float), "missing": (int,)}
    for name, types in kinds.items():
        entries = getattr(manifest, name)
        if not isinstance(entries, list) or len(entries) != manifest.features:
            raise ValueError(f"{name} does not have {manifest.features} entries")
        if not all(isinstance(entry, types) for entry in entries):
            raise ValueError(f"{name} has an entry of another type")
    label = manifest.label
    if not isinstance(label.name, str) or not _list_of(label.values, (int, float)) or not _list_of(label.names, (str,)):
        raise ValueError("the label is not described as it should be")
    for shard in manifest.shards:
        if not isinstance(shard.file, str) or Path(shard.file).name != shard.file or not isinstance(shard.sha256, str):
            raise ValueError(f"{shard.file!r} is no name of a shard")
    if sum(shard.rows for shard in manifest.shards) != manifest.rows:
        raise ValueError("the shards' rows do not add up to rows")


def _list_of(entries: object, types: tuple[type, ...]) -> bool:
    return entries is None or (isinstance(entries, list) and all(isinstance(entry, types) for entry in entries))
