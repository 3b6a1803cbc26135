"""``dml-hpc data split``: some rows of a data set into OUTPUT/test, the others into OUTPUT/train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.commands.ratings_data import run_split
from dml_hpc.commands.rewriting import check, chosen, rewrite
from dml_hpc.console import Console
from dml_hpc.errors import UserError
from dml_hpc.mpi import Alone, agreed, on_root

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.data.sources.holdout import Limits
    from dml_hpc.data.sources.source import RowSource


def run(comm: Intracomm | Alone, console: Console, data: Sequence[Path], output: Path, holdout: float | None, seed: int,
        shards: int | None, stratify: bool, shuffle: bool, compression: str | None, overwrite: bool,
        by: str | None = None, x_key: str | None = None, y_key: str | None = None,
        weight_key: str | None = None) -> dict[str, Any]:
    """Hold out the share ``holdout`` of the rows, the same for one ``seed`` on any number of ranks.

    With ``stratify`` it is that share of the rows of every label value. Returns what `rewrite` does, and
    ``train_rows`` and ``test_rows``; of ratings, which ``by`` is for, see `run_split`.
    """
    from dml_hpc.data.dataset import open_dataset
    from dml_hpc.data.shard import keys_of
    from dml_hpc.data.sources.holdout import Held
    from dml_hpc.data.sources.rearrange import DatasetRows, Strata, stratified

    check(comm, output, overwrite, data)
    dataset = open_dataset(data, keys_of(x_key, y_key, weight_key), comm, ratings=True)
    if dataset.kind == "ratings":
        return run_split(comm, console, data[0], output, by=by, holdout=holdout, seed=seed, shards=shards,
                         compression=compression, rows_only={"stratify": stratify, "shuffle": shuffle})
    with agreed(comm):
        if by is not None:
            raise UserError(f"--by {by} is for ratings, {data[0]} holds rows of features; leave it out")
        if holdout is None:
            raise UserError("--holdout is needed: the share of the rows to hold out")
    assert holdout is not None
    source = DatasetRows(dataset)
    share: float | Limits = holdout
    if stratify:
        share = Strata(source, on_root(comm, lambda: stratified(source, holdout, seed)))
    parts: dict[str, RowSource] = {}
    with agreed(comm):
        parts = {"train": Held(source, share, seed, False), "test": Held(source, share, seed, True)}
        empty = [name for name, part in parts.items() if not part.rows]
        if empty:
            raise UserError(f"--holdout {holdout:g} of {source.rows:,} rows leaves none to {empty[0]}; choose another")
    manifest = dataset.manifest
    result = rewrite(comm, console, output, parts, shards=shards or len(manifest.shards), dtype=manifest.dtype,
                     compression=chosen(compression, manifest.compression), shuffle=shuffle, seed=seed)
    counts = result.pop("parts")
    return {**result, "train_rows": counts["train"], "test_rows": counts["test"]}
