"""Data that grows with the ranks: of a data set's shards, as many for each of them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dml_hpc.data.dataset import Dataset, open_dataset
from dml_hpc.data.shard import keys_of
from dml_hpc.errors import UserError

UNEQUAL = 0.05
"""How far the work of a rank may be from that of one at the most ranks."""


class Growing(NamedTuple):
    """The files for each number of ranks, and a line that tells a person of them."""

    of_ranks: Mapping[int, Sequence[str]]
    told: str


def growing_data(parsed: Mapping[str, Any], ranks: Sequence[int]) -> Growing:
    """Return the first shards of a verb's data, as many times some as there are ``ranks``.

    The most ranks get all of them, but for those that are over. Raises `UserError` where there are fewer shards than
    ranks, or where their work, rows or, of sparse rows, entries, does not grow with their number.
    """
    data: Sequence[Path] = parsed["data"]
    keys = keys_of(parsed.get("x_key"), parsed.get("y_key"), parsed.get("weight_key"))
    dataset = open_dataset(data, keys, labels=parsed["verb"] in ("train", "evaluate"),
                           skip_bad_shards=parsed.get("skip_bad_shards", False))
    most, shards = max(ranks), len(dataset.paths)
    each = shards // most
    named = " ".join(map(str, data))
    mend = f"cut it into others: dml-hpc data merge {shlex.join(map(str, data))} -o NEW --shards {most}"
    if not each:
        raise UserError(f"--weak: {named} has {shards} shard{'s' * (shards != 1)} for {most} ranks; {mend}")
    work = {number: sum(_work(dataset)[:number * each]) for number in ranks}
    for number, own in work.items():
        wanted = work[most] * number / most
        if abs(own - wanted) > UNEQUAL * wanted or not own:
            raise UserError(f"--weak: the shards of {named} are too unequal, those for {number} of {most} ranks hold "
                            f"{own / max(work[most], 1):.0%} of the {_noun(dataset)}; {mend}")
    rows = sum(shard.rows for shard in dataset.manifest.shards[:most * each])
    over = shards - most * each
    left = f"; {over} of {shards} shards are left over" if over else ""
    return Growing({number: [str(path) for path in dataset.paths[:number * each]] for number in ranks},
                   f"each rank has {each} shard{'s' * (each > 1)}, about {rows // most:,} rows{left}")


def _work(dataset: Dataset) -> list[int]:
    return [shard.nonzeros if dataset.kind == "csr" else shard.rows for shard in dataset.manifest.shards]


def _noun(dataset: Dataset) -> str:
    return "entries" if dataset.kind == "csr" else "rows"
