"""Data that grows with the ranks: of a data set's shards, or of ratings' stripes of users, as many for each of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dml_hpc.data.dataset import Dataset, open_dataset
from dml_hpc.data.ratings.opened import open_ratings
from dml_hpc.data.ratings.splitting import write_first
from dml_hpc.data.shard import keys_of
from dml_hpc.errors import UserError
from dml_hpc.mpi import Alone

UNEQUAL = 0.05
"""How far the work of a rank may be from that of one at the most ranks."""


class Growing(NamedTuple):
    """What runs are given for each number of ranks, and a line that tells a person of it.

    ``files`` returns it; a folder is where it writes what has to be written first.
    """

    files: Callable[[Path], Mapping[int, Sequence[str]]]
    told: str


def growing_data(parsed: Mapping[str, Any], ranks: Sequence[int]) -> Growing:
    """Return the first shards of a verb's data, as many times some as there are ``ranks``.

    The most ranks get all of them, but for those that are over. Raises `UserError` where there are fewer shards than
    ranks, or where their work, rows or, of sparse rows, entries, does not grow with their number.
    """
    data: Sequence[Path] = parsed["inputs"]
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
    if (unequal := _unequal(work)) is not None:
        raise UserError(f"--weak: the shards of {named} are too unequal, those for {unequal} of {most} ranks hold "
                        f"{work[unequal] / max(work[most], 1):.0%} of the {_noun(dataset)}; {mend}")
    rows = sum(shard.rows for shard in dataset.manifest.shards[:most * each])
    over = shards - most * each
    left = f"; {over} of {shards} shards are left over" if over else ""
    files = {number: [str(path) for path in dataset.paths[:number * each]] for number in ranks}
    return Growing(lambda folder: files,
                   f"each rank has {each} shard{'s' * (each > 1)}, about {rows // most:,} rows{left}")


def growing_ratings(parsed: Mapping[str, Any], ranks: Sequence[int]) -> Growing:
    """Return ratings of as many times some users as there are ``ranks``: as many stripes of users for each.

    All items are in each, as a catalogue does not grow with its users. The most ranks get all stripes, but for those
    that are over. Raises `UserError` where there are fewer stripes than ranks, or they hold too unequal numbers of
    ratings.
    """
    ratings = open_ratings(Alone(), parsed["ratings"])
    counts = ratings.grid.counts.sum(axis=1)
    most, stripes = max(ranks), len(counts)
    each = stripes // most
    mend = f"import them again with --grid {most}x{2 * most}"
    if not each:
        raise UserError(f"--weak: {ratings.path} has {stripes} stripe{'s' * (stripes != 1)} of users for {most} ranks; "
                        f"{mend}")
    work = {number: int(counts[:number * each].sum()) for number in ranks}
    if (unequal := _unequal(work)) is not None:
        raise UserError(f"--weak: the stripes of users of {ratings.path} are too unequal, those for {unequal} of "
                        f"{most} ranks hold {work[unequal] / max(work[most], 1):.0%} of the ratings: some users have "
                        "as many as whole stripes; take others")

    def files(folder: Path) -> dict[int, list[str]]:
        found = {}
        for number in ranks:
            found[number] = [str(ratings.path)]
            if number * each < stripes:
                path = folder / f"ratings-{number}"
                path.mkdir()
                write_first(ratings, path, number * each)
                found[number] = [str(path)]
        return found

    over = stripes - most * each
    left = f"; {over} of {stripes} are left over" if over else ""
    users = int(ratings.grid.user_bounds[most * each])
    return Growing(files, f"each rank has {each} stripe{'s' * (each > 1)} of users, about {users // most:,} users and "
                   f"{work[most] // most:,} ratings, of the same {ratings.grid.items:,} items{left}")


def _unequal(work: Mapping[int, int]) -> int | None:
    """Return a number of ranks whose work is not that of the most in proportion, None: there is none."""
    most = max(work)
    for number, own in work.items():
        wanted = work[most] * number / most
        if abs(own - wanted) > UNEQUAL * wanted or not own:
            return number
    return None


def _work(dataset: Dataset) -> list[int]:
    return [shard.nonzeros if dataset.kind == "csr" else shard.rows for shard in dataset.manifest.shards]


def _noun(dataset: Dataset) -> str:
    return "entries" if dataset.kind == "csr" else "rows"
