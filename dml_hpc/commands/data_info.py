"""``dml-hpc data info``: what a data set holds, and which of its files are missing, misshapen or changed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.console import Console
from dml_hpc.errors import EXIT_JOB, EXIT_OK

if TYPE_CHECKING:
    from dml_hpc.data.dataset import Examination
    from dml_hpc.data.manifest import Manifest

MOST_LINES = 40


def run(console: Console, data: Path) -> dict[str, Any]:
    """Describe the data set in the folder ``data``.

    Returns ``rows``, ``features``, ``nonzeros``, ``shards``, ``dtype``, ``problems`` (list of {file, where,
    problem}), ``label`` and ``columns`` as the manifest has them, the label with the ``counts`` of its values
    (None: too many to count). ``exit_code`` is 1 when there are problems.
    """
    from dml_hpc.data.dataset import examine, open_dataset

    dataset = open_dataset(data)
    manifest = dataset.manifest
    found = examine(dataset)
    _print(console, data, manifest, found)
    counts = None if found.counts is None else [found.counts[value] for value in manifest.label.values or ()]
    return {"rows": manifest.rows, "features": manifest.features, "nonzeros": manifest.nonzeros,
            "shards": len(manifest.shards), "dtype": manifest.dtype, "problems": found.problems,
            "label": {**asdict(manifest.label), "counts": counts},
            "columns": [asdict(column) for column in manifest.columns],
            "exit_code": EXIT_JOB if found.problems else EXIT_OK}


def _print(console: Console, data: Path, manifest: Manifest, found: Examination) -> None:
    label, cells = manifest.label, manifest.rows * manifest.features
    console.say(f"{data}: {manifest.rows:,} rows × {manifest.features:,} features, {manifest.kind} "
                f"{manifest.dtype}, {len(manifest.shards)} shards, "
                f"{manifest.nonzeros / max(cells, 1):.1%} of the entries not zero")
    console.say(f"label '{label.name}', {label.missing:,} rows without it dropped"
                + ("" if found.counts else "; too many values to list"))
    for value, count in list((found.counts or {}).items())[:MOST_LINES]:
        named = label.names and value.is_integer() and 0 <= value < len(label.names)
        word = f" ({label.names[int(value)]})" if label.names and named else ""
        console.say(f"  {value:g}{word}: {count:,} rows")
    console.say()
    lines, first = [], 0
    for column in manifest.columns:
        figures = []
        if column.categories is None:
            lists = (manifest.mean, manifest.deviation, manifest.minimum, manifest.maximum)
            figures = [f"{per_feature[first]:.6g}" for per_feature in lists]
        features = 1 if column.categories is None else len(column.categories)
        lines.append((column.name, column.kind, features, f"{column.missing:,}", *(figures or [""] * 4)))
        first += features
    header = ("column", "kind", "features", "missing", "mean", "deviation", "min", "max")
    console.table(header, lines[:MOST_LINES])
    if len(lines) > MOST_LINES:
        console.say(f"… and {len(lines) - MOST_LINES} more")
    for problem in found.problems:
        console.say(f"problem: {problem['problem']}")
