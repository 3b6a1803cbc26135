"""Import: a source table becomes a data set, in two passes over the source: look first, then write."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dml_hpc.console import Console, Progress
from dml_hpc.data.encode import Encoder, LabelSurvey, Survey, ordered
from dml_hpc.data.manifest import FILE as MANIFEST
from dml_hpc.data.manifest import MOST_VALUES, Column, Label, Manifest, ShardEntry, read_manifest
from dml_hpc.data.shard import ShardSeries
from dml_hpc.data.tables import BOOLEAN, EMPTY, NUMERIC, TEXT, Chunk, Table, Words, open_table
from dml_hpc.errors import UserError
from dml_hpc.files import replaced_folder

BLOCK_BYTES = 4 << 20
"""Rows are encoded in blocks of this size, which stay in the processor's cache until they are written."""


class _Plan(NamedTuple):
    """What is read, and what is settled before any row is: by the options, or by another data set."""

    table: Table
    columns: list[Column]
    label: str
    label_is_word: bool
    label_names: list[str] | None = None
    fill: dict[str, float] | None = None
    """None: the means of the training rows."""
    holdout: float = 0.0
    seed: int = 0

    def passes(self, bar: Progress) -> Iterator[tuple[Chunk, int, list[np.ndarray]]]:
        """Yield (chunk, its rows, [places of the training rows, of the held-out rows]); none without a label.

        Row i of those with a label is held out when the i-th double of the seeded stream is below
        ``holdout``, whatever the chunks, in either pass.
        """
        numeric = {column.name: column.kind == "numeric" for column in self.columns}
        numeric[self.label] = not self.label_is_word
        stream = np.random.Generator(np.random.PCG64(self.seed))
        for chunk, step in self.table.chunks(numeric):
            label = chunk[self.label]
            present = label.codes >= 0 if isinstance(label, Words) else ~np.isnan(label)
            labelled = np.flatnonzero(present)
            held = stream.random(len(labelled)) < self.holdout
            yield chunk, len(present), [labelled[~held], labelled[held]] if self.holdout else [labelled]
            bar.advance(step)


class _Found(NamedTuple):
    """What the first pass saw: a survey a part (training, held out), and the label of all."""

    parts: list[Survey]
    label: LabelSurvey
    rows_read: int

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)


def import_table(sources: Sequence[Path], output: Path, *, label: str, categorical: Sequence[str] = (),
                 numeric: Sequence[str] = (), drop: Sequence[str] = (), holdout: float = 0.0, seed: int = 0,
                 shards: int = 1, dtype: str = "float32", like: Path | None = None,
                 console: Console | None = None) -> dict[str, Any]:
    """Import the rows of ``sources`` (see `open_table`) into ``output``, a new data set of ``shards`` files.

    Features are the columns ``categorical`` (one-hot) and ``numeric``; when neither is given, every column
    but ``label`` and ``drop``, text as categorical, numbers and booleans as numeric. They keep the table's
    order. With ``like``, another data set, columns, categories, label words and fill values come from its
    manifest, so that a model trained on it fits. Rows without a label are dropped. A label of words or
    booleans becomes 0, 1, … in sorted order. With ``holdout`` above 0 that share of the rows goes to
    ``output/test``, the others to ``output/train``, each a data set; a missing number becomes the mean of the
    training rows.

    ``output`` appears when it is complete; a data set that stood there is replaced. Memory does not grow with
    the rows. Returns ``rows``, ``rows_read``, ``rows_without_label``, ``features``, ``shards``, ``output``,
    ``train_rows``, ``test_rows`` (None without ``holdout``), ``missing_values``, ``unseen_categories`` and
    ``work_s``. Raises `UserError` for every input that does not fit.
    """
    started = time.perf_counter()
    if not 0 <= holdout < 1 or seed < 0 or shards < 1 or dtype not in ("float16", "float32", "float64"):
        raise UserError(f"--holdout is a share from 0 to below 1, --seed at least 0, --shards at least 1, "
                        f"--dtype float16, float32 or float64; got {holdout}, {seed}, {shards}, {dtype}")
    _check_replaceable(output)
    table = open_table(sources)
    if like is None:
        plan = _plan(table, label, categorical, numeric, drop)
    elif categorical or numeric or drop:
        raise UserError(f"--like takes the columns from {like}: leave out --categorical, --numeric, --drop")
    else:
        plan = _plan_like(table, label, like)
    plan = plan._replace(holdout=holdout, seed=seed)
    bar = (console or Console(progress=False)).bar(2 * table.bytes, "importing")
    found = _survey(plan, bar)
    encoder = _encoder(plan, found)
    names = _label_names(plan, found, like)
    _check_range(encoder, found, dtype)
    with replaced_folder(output) as folder:
        folders = [folder / "train", folder / "test"] if holdout else [folder]
        shape = (len(encoder.names), dtype, shards)
        entries = _write(plan, encoder, names, [part.rows for part in found.parts], folders, shape, bar)
        source = {"files": [str(path) for path in sources], "rows_read": found.rows_read,
                  "holdout": holdout, "seed": seed, "fill": encoder.fill,
                  "fill_from": f"the data set {like}" if like else "the means of the training rows"}
        for part, place, written in zip(found.parts, folders, entries, strict=True):
            about = {**source, "part": place.name if holdout else "all", "unseen": part.unseen}
            word = _label(plan, found, names, dtype)
            _manifest(encoder, part, word, dtype, written, about).write(place)
    bar.close()
    return {
        "rows": found.rows, "rows_read": found.rows_read, "rows_without_label": found.rows_read - found.rows,
        "features": len(encoder.names), "shards": shards, "output": str(output),
        "train_rows": found.parts[0].rows if holdout else None,
        "test_rows": found.parts[1].rows if holdout else None,
        "missing_values": sum(sum(part.missing.values()) for part in found.parts),
        "unseen_categories": sum(sum(part.unseen.values()) for part in found.parts),
        "work_s": round(time.perf_counter() - started, 6)}


def _check_replaceable(folder: Path) -> None:
    """Raise `UserError` when replacing ``folder`` would delete what no import wrote, such as the source."""
    for child in folder.iterdir() if folder.is_dir() else ():
        if child.is_dir() and child.name in ("train", "test"):
            _check_replaceable(child)
        elif child.name != MANIFEST and not (child.name.startswith("part-") and child.suffix == ".h5"):
            raise UserError(f"{child} is no part of a data set and would be deleted; choose another -o")


def _plan(table: Table, label: str, categorical: Sequence[str], numeric: Sequence[str],
          drop: Sequence[str]) -> _Plan:
    for name in (label, *categorical, *numeric, *drop):
        table.check_column(name)
    named = Counter([*categorical, *numeric, *drop])
    if label in named:
        raise UserError(f"'{label}' is the label; take it out of --categorical, --numeric and --drop")
    twice = [name for name, count in named.items() if count > 1]
    if twice:
        raise UserError(f"column '{twice[0]}' is named twice in --categorical, --numeric and --drop")
    chosen = {*categorical, *numeric} or table.kinds.keys() - {label, *drop}
    columns = []
    for name, kind in table.kinds.items():
        if name in chosen:
            words = name in categorical or (name not in numeric and kind == TEXT)
            columns.append(Column(name, "categorical" if words else "numeric"))
    if not columns:
        raise UserError(f"{table.name} has no column but the label and those dropped: there are no features")
    _check_kinds(table, columns, label)
    names = ["false", "true"] if table.kinds[label] == BOOLEAN else None
    return _Plan(table, columns, label, table.kinds[label] == TEXT, names)


def _plan_like(table: Table, label: str, like: Path) -> _Plan:
    manifest = read_manifest(like)
    for name in (label, *(column.name for column in manifest.columns)):
        table.check_column(name)
    if any(column.name == label for column in manifest.columns):
        raise UserError(f"'{label}' is a feature column of {like}; choose another --label")
    _check_kinds(table, manifest.columns, label)
    names = manifest.label.names
    means = dict(zip(manifest.feature_names, manifest.mean, strict=True))
    fill = {column.name: means[column.name] for column in manifest.columns if column.categories is None}
    fill.update(manifest.source.get("fill", {}))
    as_number = names is None or (names == ["false", "true"] and table.kinds[label] == BOOLEAN)
    return _Plan(table, manifest.columns, label, not as_number, names, fill)


def _check_kinds(table: Table, columns: Sequence[Column], label: str) -> None:
    refused: dict[str, str] = {}
    for source in table.sources:
        for column in (*columns, Column(label, "label")):
            kind = source.kinds[column.name]
            as_time = column.kind == "categorical" and kind.startswith(("date", "time"))
            if kind not in (NUMERIC, BOOLEAN, TEXT, EMPTY) and not as_time:
                refused.setdefault(column.name, "text that is not UTF-8" if kind == "binary" else kind)
    if label in refused:
        raise UserError(f"the label column '{label}' holds {refused[label]}; choose another --label")
    if refused:
        held = ", ".join(f"'{name}' ({kind})" for name, kind in refused.items())
        raise UserError(f"no features can be made of column {held}; leave out: --drop {','.join(refused)}")


def _survey(plan: _Plan, bar: Progress) -> _Found:
    numeric = [column.name for column in plan.columns if column.kind == "numeric"]
    categorical = [column.name for column in plan.columns if column.kind == "categorical"]
    known = None if plan.fill is None else {column.name: column.categories or [] for column in plan.columns}
    parts = [Survey(numeric, categorical, known) for _ in range(2 if plan.holdout else 1)]
    label, rows_read = LabelSurvey(), 0
    for chunk, count, places in plan.passes(bar):
        rows_read += count
        for part, rows in zip(parts, places, strict=True):
            part.add(chunk, rows)
            label.add(chunk[plan.label], rows)
    if not rows_read:
        raise UserError(f"{plan.table.name} holds no rows")
    if not any(part.rows for part in parts):
        raise UserError(f"none of the {rows_read:,} rows has a value in the label column '{plan.label}'")
    if not parts[0].rows:
        raise UserError(f"--holdout {plan.holdout} leaves no row to train on; hold out less")
    return _Found(parts, label, rows_read)


def _encoder(plan: _Plan, found: _Found) -> Encoder:
    if plan.fill is not None:
        return Encoder(plan.columns, plan.fill)
    training = found.parts[0]
    fill = dict(zip(training.numeric, training.moments.mean.tolist(), strict=True))
    words = {column.name: ordered(set().union(*(part.words[column.name] for part in found.parts)))
             for column in plan.columns if column.kind == "categorical"}
    empty = [name for name, count in zip(training.numeric, training.moments.count, strict=True) if count == 0]
    empty += [name for name, categories in words.items() if not categories]
    if empty:
        held = ", ".join(f"'{name}'" for name in empty)
        raise UserError(f"column {held} has no value in a training row; leave out: --drop {','.join(empty)}")
    columns = [dataclasses.replace(column, categories=words.get(column.name)) for column in plan.columns]
    return Encoder(columns, fill)


def _label_names(plan: _Plan, found: _Found, like: Path | None) -> list[str] | None:
    if plan.label_names is None:
        return ordered(found.label.words) if plan.label_is_word else None
    strange = ordered(found.label.words.difference(plan.label_names))
    if strange:
        known = ", ".join(plan.label_names[:12])
        raise UserError(f"the label '{strange[0]}' is not among those of {like}: {known}")
    return plan.label_names


def _label(plan: _Plan, found: _Found, names: list[str] | None, dtype: str) -> Label:
    if plan.label_is_word and names is not None:
        values = [float(i) for i, name in enumerate(names) if name in found.label.words]
    else:
        values = np.unique(found.label.values.astype(_label_dtype(dtype))).tolist()
    missing = found.rows_read - found.rows
    return Label(plan.label, values if len(values) <= MOST_VALUES else None, names, missing)


def _label_dtype(dtype: str) -> str:
    return "float32" if dtype == "float16" else dtype


def _check_range(encoder: Encoder, found: _Found, dtype: str) -> None:
    for part in found.parts:
        figures = encoder.statistics(part)
        for name, low, high, spread in zip(encoder.names, figures["minimum"], figures["maximum"],
                                           figures["deviation"], strict=True):
            if max(-low, high) > float(np.finfo(dtype).max) or not np.isfinite(spread):
                raise UserError(f"column '{name}' holds {max(-low, high):g}, too large for {dtype}; "
                                f"choose a wider --dtype or leave it out")
    if found.label.largest > float(np.finfo(_label_dtype(dtype)).max):
        raise UserError(f"the label holds {found.label.largest:g}, too large for {dtype}; "
                        f"choose a wider --dtype")


def _write(plan: _Plan, encoder: Encoder, names: list[str] | None, part_rows: Sequence[int],
           folders: Sequence[Path], shape: tuple[int, str, int], bar: Progress) -> list[list[ShardEntry]]:
    """Pass two: the shards of each part; ``shape`` is (features, dtype, shards)."""
    features, dtype, _ = shape
    changed = UserError(f"{plan.table.name} changed while it was imported; import it again")
    codes = {name: float(i) for i, name in enumerate(names or ())}
    block = np.empty((max(1, BLOCK_BYTES // (features * np.dtype(dtype).itemsize)), features), dtype)
    with ExitStack() as opened:
        series = [opened.enter_context(ShardSeries(folder, rows, *shape))
                  for folder, rows in zip(folders, part_rows, strict=True)]
        for chunk, _, places in plan.passes(bar):
            prepared = encoder.prepare(chunk)
            label = chunk[plan.label]
            if isinstance(label, Words):
                label = np.array([*(codes.get(word, np.nan) for word in label.words), np.nan])[label.codes]
            for writer, rows in zip(series, places, strict=True):
                if len(rows) > writer.free:
                    raise changed
                for start in range(0, len(rows), len(block)):
                    some = rows[start:start + len(block)]
                    encoder.encode(prepared, some, block[:len(some)])
                    writer.append(block[:len(some)], label[some])
        if any(writer.free for writer in series):
            raise changed
        return [writer.finish() for writer in series]


def _manifest(encoder: Encoder, part: Survey, label: Label, dtype: str, shards: list[ShardEntry],
              source: Mapping[str, Any]) -> Manifest:
    figures: dict[str, Any] = encoder.statistics(part)
    columns = [dataclasses.replace(column, missing=part.missing[column.name]) for column in encoder.columns]
    return Manifest(
        kind="dense", dtype=dtype, rows=part.rows, features=len(encoder.names),
        nonzeros=sum(entry.nonzeros for entry in shards), feature_names=encoder.names,
        numeric=encoder.numeric, **figures, columns=columns, label=label, shards=shards, source=dict(source))
