"""``dml-hpc data info``: what a data set holds, from its manifest and its labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.commands.ratings_data import say_grid
from dml_hpc.console import Console
from dml_hpc.errors import EXIT_JOB, EXIT_OK

if TYPE_CHECKING:
    from dml_hpc.data.dataset import Dataset
    from dml_hpc.data.manifest import Manifest
    from dml_hpc.data.summary import Summary

MOST_LINES = 40
WIDTH = 80
TOO_MANY = "too many features for statistics; training takes hashed features as they are"


def run(console: Console, data: Sequence[Path], x_key: str | None = None, y_key: str | None = None,
        weight_key: str | None = None) -> dict[str, Any]:
    """Describe a data set folder, some of its shards, or HDF5 files without a manifest.

    Returns ``kind``, ``rows``, ``features``, ``nonzeros``, ``shards``, ``shard_rows``, ``dtype``, ``compression``,
    ``hash_bits``, ``users``, ``grid`` (of ratings: see `say_grid`), ``bytes`` (on disk), ``weight`` (the sum of all
    rows' weights, None: they have none), ``statistics`` (whether the features have any), ``label`` and ``columns`` as
    the manifest has them, the label with the ``counts`` of its values (None: too many to list) and its ``histogram``
    ([low, high, rows]), ``row_sizes`` (sparse rows by their entries: [low, high, rows]), and ``problems`` (list of
    {file, where, problem}) with the files that cannot be read; then ``exit_code`` is 1. X is not read; `data verify`
    does.
    """
    from dml_hpc.data.dataset import open_dataset
    from dml_hpc.data.shard import keys_of
    from dml_hpc.data.summary import summarise

    dataset = open_dataset(data, keys_of(x_key, y_key, weight_key), ratings=True)
    manifest, summary = dataset.manifest, summarise(dataset)
    size = sum(path.stat().st_size for path in dataset.paths if path.is_file())
    _print(console, dataset, summary, size)
    histogram = [list(part) for part in summary.labels]
    counts = None if manifest.label.values is None else [rows for _, _, rows in histogram]
    return {"kind": manifest.kind, "rows": manifest.rows, "features": manifest.features,
            "nonzeros": manifest.nonzeros, "shards": len(manifest.shards),
            "shard_rows": [shard.rows for shard in manifest.shards], "dtype": manifest.dtype,
            "compression": manifest.compression, "hash_bits": manifest.hash_bits, "users": manifest.users,
            "grid": None if manifest.grid is None else say_grid(console, manifest),
            "bytes": size, "weight": summary.weight, "statistics": manifest.statistics is not None,
            "label": {**asdict(manifest.label), "counts": counts, "histogram": histogram},
            "row_sizes": summary.sizes, "columns": [asdict(column) for column in manifest.columns],
            "problems": [{"file": file, "where": "file", "problem": problem} for file, problem in summary.problems],
            "exit_code": EXIT_JOB if summary.problems else EXIT_OK}


def _print(console: Console, dataset: Dataset, summary: Summary, size: int) -> None:
    manifest, label = dataset.manifest, dataset.manifest.label
    across = f"{manifest.users or 0:,} users × {manifest.features:,} items" if manifest.kind == "ratings" else \
        f"{manifest.features:,} features"
    counted = "ratings, " if manifest.kind == "ratings" else "rows × "
    console.say(f"{dataset.path}: {manifest.rows:,} {counted}{across}, {manifest.kind} {manifest.dtype}")
    rows = [shard.rows for shard in manifest.shards]
    each = " to ".join(dict.fromkeys(f"{count:,}" for count in (min(rows, default=0), max(rows, default=0))))
    console.say(f"{_plural(len(rows), 'shard')} of {each} rows, "
                f"{_bytes(size)} on disk, compression {manifest.compression or 'none'}")
    cells = manifest.features * ((manifest.users or 0) if manifest.kind == "ratings" else manifest.rows)
    if dataset.is_imported or manifest.kind == "csr":
        hashed = f", features hashed to {manifest.hash_bits} bits" if manifest.hash_bits is not None else ""
        console.say(f"{manifest.nonzeros:,} entries, {100 * manifest.nonzeros / max(cells, 1):.3g}% of all{hashed}")
    console.say()
    console.say(f"label '{label.name}', {label.missing:,} rows without it dropped")
    named = []
    for low, high, count in summary.labels:
        word = label.names[int(low)] if label.names and low.is_integer() and 0 <= low < len(label.names) else ""
        value = f"{low:.6g}" if label.values is not None or low == high else f"{low:.4g} … {high:.4g}"
        named.append((f"{value} ({word})" if word else value, count))
    _bars(console, named)
    if summary.weight is not None:
        console.say(f"rows have weights, which add up to {summary.weight:.10g}")
    if summary.unusual:
        console.say(f"  {summary.unusual:,} labels are not finite, or not among those listed")
    if summary.sizes is not None:
        console.say()
        console.say(f"entries of a row (mean {manifest.nonzeros / max(manifest.rows, 1):.4g})")
        _bars(console, [(f"{low:,}" if low == high else f"{low:,} … {high:,}", count)
                        for low, high, count in summary.sizes])
    if not dataset.countable and manifest.kind != "ratings":
        console.say()
        console.say(TOO_MANY)
    _columns(console, manifest)
    for file, problem in summary.problems:
        console.say(f"problem: {file}: {problem}")


def _bars(console: Console, rows: list[tuple[str, int]]) -> None:
    """Print a bar for each (what, count), as long as the width of a terminal allows."""
    shown = rows[:MOST_LINES]
    names = [_short(name, 30) for name, _ in shown]
    left, right = (max(map(len, texts), default=0) for texts in (names, [f"{count:,}" for _, count in shown]))
    longest, most = WIDTH - left - right - 6, max((count for _, count in shown), default=0)
    for name, (_, count) in zip(names, shown, strict=True):
        console.say(f"  {name:>{left}}  {count:>{right},}  {'#' * math.ceil(count * longest / max(most, 1))}".rstrip())
    if len(rows) > len(shown):
        console.say(f"  … and {len(rows) - len(shown)} more")


def _columns(console: Console, manifest: Manifest) -> None:
    """Print the first columns of the source, or where none are known the first features, with their figures."""
    figures = manifest.statistics
    lines: list[tuple[str, ...]] = []
    first, columns = 0, manifest.columns
    for column in columns[:MOST_LINES]:
        width = 1 if column.categories is None else len(column.categories)
        own = column.categories is None and manifest.hash_bits is None and figures is not None
        lines.append((column.name, column.kind, "" if manifest.hash_bits else f"{width:,}", f"{column.missing:,}",
                      *(_figures(manifest, first) if own else [""] * 4)))
        first += width
    if not columns and figures is not None:
        lines = [(manifest.feature_names[j] if manifest.feature_names else str(j),
                  "numeric" if figures.numeric[j] else "categorical", "1", f"{figures.missing[j]:,}",
                  *_figures(manifest, j)) for j in range(min(manifest.features, MOST_LINES))]
    if not lines:
        return
    console.say()
    header = ("column" if columns else "feature", "kind", "features", "missing", "mean", "deviation", "min", "max")
    others = sum(max(len(line[place]) for line in [header, *lines]) + 2 for place in range(1, len(header)))
    console.table(header, [(_short(line[0], max(WIDTH - others, 8)), *line[1:]) for line in lines])
    more = (len(columns) or manifest.features) - len(lines)
    if more:
        console.say(f"… and {more:,} more")


def _figures(manifest: Manifest, feature: int) -> list[str]:
    found = manifest.statistics
    assert found is not None
    return [f"{figure[feature]:.4g}" for figure in (found.mean, found.deviation, found.minimum, found.maximum)]


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most - 1]}…"


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _bytes(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"
