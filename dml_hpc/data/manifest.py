"""``manifest.json``: what a data set folder holds, so that nobody has to read the shards to know."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dml_hpc.data.ratings.blocks import grid_of
from dml_hpc.data.retrying import MissingError, unreadable
from dml_hpc.data.statistics import Statistics, described, is_count, is_number, read_statistics
from dml_hpc.errors import UserError
from dml_hpc.files import file_sha256, first_line
from dml_hpc.layout import split

FORMAT = 2
FILE = "manifest.json"
KINDS = ("dense", "csr", "ratings")
DTYPES = ("float16", "float32", "float64")


@dataclass
class Column:
    """A column of the source table and the features it became: one (numeric) or one a category (one-hot).

    In a hashed data set columns share all features, and "text" columns are hashed word by word. ``missing`` counts
    rows without a value; they hold the column's mean (numeric) or all zeros.
    """

    name: str
    kind: str
    """"numeric", "categorical" or "text"."""
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
MOST_A_BYTE = 1100
"""No stored byte stands for more numbers: deflate, the densest common filter, reaches 1032 bytes."""


@dataclass
class ShardEntry:
    """One shard file of ``bytes``; ``sha256`` is that of the whole file.

    Its first ``head_bytes`` hold all that HDF5 follows (where each array lies, of which shape and type), and behind
    them are the numbers alone: when ``head_sha256`` is right, no damage to the file leads HDF5 astray.
    """

    file: str
    rows: int
    nonzeros: int
    sha256: str
    bytes: int = 0
    head_bytes: int = 0
    head_sha256: str = ""


@dataclass
class Manifest:
    """A data set of ``rows`` × ``features`` of ``kind`` "dense", "csr" or "ratings" (rows are ratings, features items).

    ``statistics`` is None for ratings, for files that were never imported, and of too many features (`MOST_COUNTED`).
    ``feature_names`` None: features have no names but their numbers. ``hash_bits``: features are hashed to
    2^``hash_bits``. ``compression`` names the filter of chunked shards, None: X is contiguous. ``users`` is for
    ratings, and ``grid``: how they are cut (`dml_hpc.data.ratings.blocks.Grid.described`), whether they are ``timed``,
    and the SHA-256 of the ids. ``weighted``: rows have weights.
    """

    kind: str
    dtype: str
    rows: int
    features: int
    nonzeros: int
    feature_names: list[str] | None
    statistics: Statistics | None
    columns: list[Column]
    label: Label
    shards: list[ShardEntry]
    source: dict[str, Any] = field(default_factory=dict)
    hash_bits: int | None = None
    compression: str | None = None
    users: int | None = None
    weighted: bool = False
    grid: dict[str, Any] | None = None
    format: int = FORMAT

    @property
    def is_imported(self) -> bool:
        """Whether it was written when the data set was made, not found out from files without one."""
        return self.source.get("foreign") is None

    def write(self, folder: Path) -> None:
        """Write the manifest into ``folder``; the statistics of very many features go to a file of their own."""
        table = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        table.update(columns=[asdict(column) for column in self.columns], label=asdict(self.label),
                     shards=[asdict(shard) for shard in self.shards])
        table["statistics"] = None if self.statistics is None else described(folder, self.statistics)
        (folder / FILE).write_text(json.dumps(table, indent=1, allow_nan=False) + "\n", encoding="utf-8")


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
        entry = table.pop("statistics")
        manifest = Manifest(statistics=None, **table)
        _check(manifest)
        if entry is not None:
            manifest.statistics = read_statistics(folder, entry, manifest.features)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{path} is not a whole manifest ({message}); import the data again") from None
    return manifest


def check_head(path: Path, entry: ShardEntry) -> None:
    """Raise `UserError` when a shard has not the size or the head that it was written with.

    `UnreadableError` where another try may do.
    """
    try:
        if not path.is_file():
            raise MissingError(f"{path} is missing, or no file")
        size = path.stat().st_size
        if size != entry.bytes:
            raise UserError(f"{path} has {size:,} bytes, it was written with {entry.bytes:,}; copy it anew or import "
                            "the data again (`dml-hpc data verify` looks for more)")
        if file_sha256(path, entry.head_bytes) != entry.head_sha256:
            raise UserError(f"{path} has changed since it was written; copy it anew or import the data again "
                            "(`dml-hpc data verify` looks for more)")
    except OSError as error:
        raise unreadable(error, f"{path} cannot be read: {first_line(error)}") from None


def _check(manifest: Manifest) -> None:
    """Raise `ValueError` for what no import writes: other code may rely on lengths and types."""
    if manifest.kind not in KINDS or manifest.dtype not in DTYPES:
        raise ValueError(f"kind {manifest.kind!r} of {manifest.dtype!r} is not known")
    whole = [manifest.rows, manifest.features, manifest.nonzeros, manifest.label.missing]
    whole += [number for shard in manifest.shards for number in (shard.rows, shard.nonzeros, shard.bytes,
                                                                   shard.head_bytes)]
    whole += [-1 if manifest.users is None else manifest.users] if manifest.kind == "ratings" else []
    if not all(is_count(number) for number in whole):
        raise ValueError("a count is not a whole number")
    if not manifest.features:
        raise ValueError("there are no features")
    names, bits = manifest.feature_names, manifest.hash_bits
    if names is not None and (not _list_of(names, _is_text) or len(names) != manifest.features):
        raise ValueError(f"feature_names does not have {manifest.features} entries")
    if bits is not None and not (is_count(bits) and bits <= 40 and manifest.features == 1 << bits):
        raise ValueError(f"hash_bits {bits!r} does not go with {manifest.features} features")
    _check_grid(manifest)
    if not isinstance(manifest.weighted, bool):
        raise ValueError("weighted is not described as it should be")
    if not (manifest.compression is None or _is_text(manifest.compression)):
        raise ValueError("the compression is not described as it should be")
    _check_columns(manifest)
    label = manifest.label
    if not (_is_text(label.name) and (label.values is None or _list_of(label.values, is_number))
            and (label.names is None or _list_of(label.names, _is_text))):
        raise ValueError("the label is not described as it should be")
    for shard in manifest.shards:
        plain = _is_text(shard.file) and shard.file.isprintable() and shard.file not in ("", "..")
        if not plain or Path(shard.file).name != shard.file or not (
                _is_text(shard.sha256) and _is_text(shard.head_sha256)):
            raise ValueError(f"{shard.file!r} is no name of a shard")
        if not shard.head_bytes or not shard.sha256 or max(shard.rows, shard.nonzeros) > MOST_A_BYTE * shard.bytes:
            raise ValueError(f"the {shard.bytes:,} bytes of {shard.file} cannot hold its {shard.rows:,} rows")
    if len({shard.file for shard in manifest.shards}) < len(manifest.shards):
        raise ValueError("a shard is listed twice")
    for name, total in (("rows", manifest.rows), ("nonzeros", manifest.nonzeros)):
        if sum(getattr(shard, name) for shard in manifest.shards) != total:
            raise ValueError(f"the shards' {name} do not add up to {name}")
    source = manifest.source
    fill = source.get("fill", {}) if isinstance(source, dict) else None
    if not isinstance(fill, dict) or not _list_of(list(fill.values()), is_number):
        raise ValueError("the source is not described as it should be")


def _check_grid(manifest: Manifest) -> None:
    entry = manifest.grid
    if entry is None:
        if manifest.kind == "ratings":
            raise ValueError("ratings in no grid, as older versions made them")
        return
    grid = grid_of(entry)
    if not (isinstance(entry["timed"], bool) and _is_text(entry["ids_sha256"])) or manifest.kind != "ratings" or \
            (grid.ratings, grid.users, grid.items) != (manifest.rows, manifest.users, manifest.features):
        raise ValueError("the grid is not that of the ratings")
    for number, shard in enumerate(manifest.shards):
        if grid.counts[slice(*split(grid.shape[0], len(manifest.shards), number))].sum() != shard.rows:
            raise ValueError(f"the blocks of {shard.file} do not add up to its rows")


def _check_columns(manifest: Manifest) -> None:
    first = 0
    hashed = manifest.hash_bits is not None
    for column in manifest.columns:
        words = column.categories
        fits = _list_of(words, _is_text) if column.kind == "categorical" and not hashed else words is None
        if not (_is_text(column.name) and column.kind in ("numeric", "categorical", "text") and fits
                and (hashed or column.kind != "text") and is_count(column.missing)):
            raise ValueError(f"column {column.name!r} is not described as it should be")
        if hashed:
            continue
        names = [column.name] if words is None else [f"{column.name}={word}" for word in words]
        if (manifest.feature_names or [])[first:first + len(names)] != names:
            raise ValueError(f"the features of column {column.name!r} are not those named")
        first += len(names)
    if manifest.columns and not hashed and first != manifest.features:
        raise ValueError(f"the columns have {first} features, not {manifest.features}")


def _is_text(entry: object) -> bool:
    return isinstance(entry, str)


def _list_of(entries: object, fits: Callable[[Any], bool]) -> bool:
    return isinstance(entries, list) and all(map(fits, entries))
