"""Tables become rows of features: which columns, how each is encoded, and what is to be said of them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.console import Progress
from dml_hpc.data.manifest import Column, Manifest
from dml_hpc.data.sources.cuts import PIECE_BYTES
from dml_hpc.data.sources.encode import Encoder, TableRows
from dml_hpc.data.sources.parse import Wanted
from dml_hpc.data.sources.source import About, RowSource
from dml_hpc.data.sources.spool import spool
from dml_hpc.data.sources.survey import Survey, ordered, survey
from dml_hpc.data.sources.tables import BOOLEAN, EMPTY, NUMERIC, TEXT, Table
from dml_hpc.errors import UserError
from dml_hpc.mpi import Alone, agreed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

MOST_DENSE_BITS = 16


class Columns(NamedTuple):
    """Which columns become features and how, as the user says: see `dml_hpc.data.importing.import_data`."""

    categorical: Sequence[str] = ()
    numeric: Sequence[str] = ()
    text: Sequence[str] = ()
    drop: Sequence[str] = ()
    hash_bits: int | None = None


class Plan(NamedTuple):
    """What is read, and what is settled before any row is: by the options, or by another data set ``like``.

    ``fill`` None: the means of the training rows. ``label_names`` None: those that the rows have, if it is a word.
    ``weight`` is the column of what each row counts, None: 1.
    """

    table: Table
    columns: list[Column]
    label: str
    label_is_word: bool
    hash_bits: int | None = None
    label_names: list[str] | None = None
    fill: dict[str, float] | None = None
    like: Path | None = None
    weight: str | None = None

    @property
    def wanted(self) -> Wanted:
        """The columns to read."""
        names: dict[str, list[str]] = {"numeric": [], "categorical": [], "text": []}
        for column in self.columns:
            names[column.kind].append(column.name)
        names["categorical" if self.label_is_word else "numeric"].append(self.label)
        names["numeric"] += [] if self.weight is None else [self.weight]
        return Wanted(names["numeric"], names["categorical"], names["text"], self.label, self.table.kinds, self.weight)


class Prepared(NamedTuple):
    """Rows to be imported, what is to be said of those to train on and those held out, and what was found."""

    rows: RowSource
    about: list[About]
    rows_read: int
    missing_values: int
    unseen_categories: int


def planned(table: Table, label: str, weight: str | None, chosen: Columns) -> Plan:
    """Return the plan for a table and the columns chosen; raises `UserError` for what does not fit."""
    for name in (label, *chosen.categorical, *chosen.numeric, *chosen.text, *chosen.drop):
        table.check_column(name)
    named = Counter([*chosen.categorical, *chosen.numeric, *chosen.text, *chosen.drop])
    if label in named:
        raise UserError(f"'{label}' is the label; take it out of --categorical, --numeric, --text and --drop")
    _check_weight(table, label, weight, named)
    twice = [name for name, count in named.items() if count > 1]
    if twice:
        raise UserError(f"column '{twice[0]}' is named twice in --categorical, --numeric, --text and --drop")
    if chosen.text and chosen.hash_bits is None:
        raise UserError("--text needs --hash-bits: words become features by their hash; --hash-bits 18 is usual")
    some = {*chosen.categorical, *chosen.numeric, *chosen.text} or \
        table.kinds.keys() - {label, weight, *chosen.drop}
    columns = []
    for name, kind in table.kinds.items():
        if name in chosen.text:
            columns.append(Column(name, "text"))
        elif name in some:
            words = name in chosen.categorical or (name not in chosen.numeric and kind == TEXT)
            columns.append(Column(name, "categorical" if words else "numeric"))
    if not columns:
        raise UserError(f"{table.name} has no column but the label and those dropped: there are no features")
    _check_kinds(table, columns, label)
    names = ["false", "true"] if table.kinds[label] == BOOLEAN else None
    return Plan(table, columns, label, table.kinds[label] == TEXT, chosen.hash_bits, names, weight=weight)


def planned_like(table: Table, label: str, weight: str | None, like: Path, manifest: Manifest) -> Plan:
    """Return the plan that gives a table the features of the data set ``like``; raises `UserError` if it cannot."""
    if not manifest.columns:
        raise UserError(f"{like} was not imported from a table, its features are no columns; leave out --like")
    for name in (label, *(column.name for column in manifest.columns)):
        table.check_column(name)
    if any(column.name == label for column in manifest.columns):
        raise UserError(f"'{label}' is a feature column of {like}; choose another --label")
    _check_kinds(table, manifest.columns, label)
    _check_weight(table, label, weight, [column.name for column in manifest.columns])
    names = manifest.label.names
    fill = dict(manifest.source.get("fill", {}))
    if manifest.feature_names is not None and manifest.statistics is not None:
        means = dict(zip(manifest.feature_names, manifest.statistics.mean.tolist(), strict=True))
        fill = {**{column.name: means[column.name] for column in manifest.columns if column.kind == "numeric"}, **fill}
    as_number = names is None or (names == ["false", "true"] and table.kinds[label] == BOOLEAN)
    return Plan(table, manifest.columns, label, not as_number, manifest.hash_bits, names, fill, like, weight)


def _check_weight(table: Table, label: str, weight: str | None, features: Collection[str]) -> None:
    if weight is None:
        return
    table.check_column(weight)
    if weight == label or weight in features:
        raise UserError(f"'{weight}' is the weight; it cannot be the label or a feature, or be dropped, too")
    for source in table.sources:
        if source.kinds[weight] not in (NUMERIC, BOOLEAN):
            raise UserError(f"the weight column '{weight}' of {source.path} holds {source.kinds[weight]}; name a "
                            "column of numbers")


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


def prepare(comm: Intracomm | Alone, plan: Plan, scratch: Path, *, holdout: float, seed: int, dtype: str, kind: str,
            piece_bytes: int = PIECE_BYTES, bar: Progress | None = None) -> Prepared:
    """Collective: parse the table into ``scratch``, a folder all ranks see, and return its rows as ``kind``.

    Missing numbers are filled with the means of the rows that are not held out (`held_out`).
    Raises `AgreedError` for what does not fit.
    """
    wanted = plan.wanted
    files = spool(comm, plan.table.sources, wanted, dtype, scratch, piece_bytes, bar)
    read = sum(entry.read for entry in files)
    with agreed(comm):
        if not read:
            raise UserError(f"{plan.table.name} holds no rows")
        if not any(entry.rows for entry in files):
            raise UserError(f"none of the {read:,} rows has a value in the label column '{plan.label}'")
    categorical = [column for column in plan.columns if column.kind == "categorical" and plan.hash_bits is None]
    known = {column.name: column.categories or [] for column in categorical} if plan.fill is not None else {}
    listed = [plan.label, *(column.name for column in categorical if column.name not in known)]
    found = survey(comm, files, wanted, listed, known, holdout, seed)
    with agreed(comm):
        if not found.rows[0]:
            raise UserError(f"--holdout {holdout} leaves no row to train on; hold out less")
        encoder = _encoder(plan, found)
        names = _label_names(plan, found)
        about = [_about(plan, encoder, found, names, read, part) for part in (0, 1)]
        rows = TableRows(files, encoder, kind, plan.label, names if plan.label_is_word else None, about[0], dtype,
                         plan.weight)
    features = [column.name for column in plan.columns]
    return Prepared(rows, about, read, int(sum(found.missing[name].sum() for name in features)),
                    int(sum(pair.sum() for pair in found.unseen.values())))


def _encoder(plan: Plan, found: Survey) -> Encoder:
    if plan.fill is not None:
        return Encoder(plan.columns, plan.fill, plan.hash_bits)
    fill = {column.name: found.mean[column.name] for column in plan.columns if column.kind == "numeric"}
    words = {column.name: ordered(found.words[column.name]) for column in plan.columns if column.name in found.words}
    empty = [name for name in fill if not found.count[name]] + [name for name in words if not words[name]]
    if empty:
        held = ", ".join(f"'{name}'" for name in empty)
        raise UserError(f"column {held} has no value in a training row; leave out: --drop {','.join(empty)}")
    for name, mean in fill.items():
        if not np.isfinite(mean):
            raise UserError(f"column '{name}' holds values too large for their mean to be a number; leave it out")
    columns = [dataclasses.replace(column, categories=words.get(column.name)) for column in plan.columns]
    return Encoder(columns, fill, plan.hash_bits)


def _label_names(plan: Plan, found: Survey) -> list[str] | None:
    words = found.words.get(plan.label, set())
    if plan.label_names is None:
        return ordered(words) if plan.label_is_word else None
    strange = ordered(words.difference(plan.label_names))
    if strange:
        known = ", ".join(plan.label_names[:12])
        raise UserError(f"the label '{strange[0]}' is not among those of {plan.like}: {known}")
    return plan.label_names


def _about(plan: Plan, encoder: Encoder, found: Survey, names: list[str] | None, read: int, part: int) -> About:
    """Return what is to be said of the rows to train on (``part`` 0) or those held out (1)."""
    gaps = {column.name: int(found.missing[column.name][part]) for column in plan.columns}
    missing = None
    if encoder.hash_bits is None:
        missing = np.repeat(list(gaps.values()), [1 if column.categories is None else len(column.categories)
                                                  for column in encoder.columns])
    return About(
        feature_names=encoder.names, numeric=encoder.numeric, missing=missing, hash_bits=encoder.hash_bits,
        columns=[dataclasses.replace(column, missing=gaps[column.name]) for column in encoder.columns],
        label=plan.label, label_names=names, label_missing=read - int(found.rows.sum()),
        weighted=plan.weight is not None,
        source={**({} if plan.weight is None else {"weight": plan.weight}), "rows_read": read, "fill": encoder.fill,
                "fill_from": f"the data set {plan.like}" if plan.like else "the means of the training rows",
                "unseen": {name: int(pair[part]) for name, pair in found.unseen.items()}})
