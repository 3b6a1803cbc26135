"""Data sets some of whose shards are missing or damaged: the rows of the others, where that is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.data.retrying import tell
from dml_hpc.data.shard import Keys, open_shard
from dml_hpc.errors import AgreedError, JobError, UserError
from dml_hpc.mpi import Alone, agreed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.data.dataset import Dataset
    from dml_hpc.data.reading import Reader


class LeftOut(NamedTuple):
    """A shard that was left out: its file, how many rows that were (None: nobody knows), and what is wrong with it."""

    file: str
    rows: int | None
    problem: str


def without_bad_shards(comm: Intracomm | Alone, dataset: Dataset) -> Dataset:
    """Collective: return the data set without the shards that are missing, damaged or cannot be opened.

    Ranks share the looking. Shards that turn unreadable later are then left out too, where a reader can
    (`Dataset.skips_bad_shards`). Rank 0 names each on stderr. The statistics stay those of all shards. Raises
    `AgreedError` when none is left.
    """
    found: dict[int, str] = {}
    with agreed(comm):
        for number in range(comm.rank, len(dataset.paths), comm.size):
            try:
                dataset.shard(number)
            except (UserError, JobError) as error:
                found[number] = str(error)
    problems = {number: problem for part in comm.allgather(found) for number, problem in part.items()}
    left_out = list(dataset.left_out)
    for number in sorted(problems):
        rows = dataset.manifest.shards[number].rows
        left_out.append(LeftOut(str(dataset.paths[number]), rows, problems[number]))
    with agreed(comm):
        _check_some_left(len(dataset.paths) - len(problems), left_out)
    if comm.rank == 0:
        for one in left_out:
            tell(f"{one.problem}; it is left out" + ("" if one.rows is None else f", and its {one.rows:,} rows"))
    if problems:
        dataset = dataset.only([number for number in range(len(dataset.paths)) if number not in problems])
    dataset.left_out, dataset.skips_bad_shards = left_out, True
    return dataset


def cannot_be_opened(paths: Sequence[Path], keys: Keys) -> list[LeftOut]:
    """Return which of the files that were never imported cannot be opened; raises `UserError` when none can."""
    left_out = []
    for path in paths:
        try:
            open_shard(path, keys).close()
        except UserError as error:
            left_out.append(LeftOut(str(path), None, str(error)))
    _check_some_left(len(paths) - len(left_out), left_out)
    return left_out


def lose(dataset: Dataset, number: int, error: Exception) -> None:
    """Give up a shard that turned unreadable, on this rank, and say so; `leave_out_lost` then tells the others.

    Raises ``error`` unless the data set `Dataset.skips_bad_shards`.
    """
    if not dataset.skips_bad_shards:
        raise error
    if number not in dataset.lost:
        dataset.lost[number] = str(error)
        tell(f"{error}; it is left out from now on, and its {dataset.manifest.shards[number].rows:,} rows "
             "(--skip-bad-shards)")


def leave_out_lost(comm: Intracomm, dataset: Dataset) -> bool:
    """Collective: have all ranks leave out the shards that any has lost, from now on; return whether there were any.

    Then what ranks have summed since the last call may be of some of their rows, and is to be summed anew. They are
    added to `Dataset.left_out`. Raises `AgreedError` when no rows are left.
    """
    own = {number: problem for number, problem in list(dataset.lost.items()) if number not in dataset.forgone}
    count, everywhere = np.array([len(own)], np.int64), np.empty(1, np.int64)
    comm.Allreduce(count, everywhere)
    if not everywhere[0]:
        return False
    found: dict[int, str] = {}
    for part in comm.allgather(own):
        found = part | found
    for number in sorted(found):
        rows = dataset.manifest.shards[number].rows
        dataset.left_out.append(LeftOut(str(dataset.paths[number]), rows, found[number]))
    dataset.lost.update(found)
    dataset.forgone.update(found)
    if not dataset.used_rows:
        raise AgreedError(f"all shards with rows are missing or damaged, the last so: {next(iter(found.values()))}", 0,
                          UserError.exit_code)
    return True


def settle_losses(comm: Intracomm, reader: Reader) -> None:
    """Collective: have all ranks leave out what any has lost when they opened their readers.

    It also finds out whether any of these may lose shards later: `Reader.may_lose`.
    """
    if reader.dataset.skips_bad_shards:
        reader.may_lose = any(comm.allgather(reader.how == "streamed"))
        leave_out_lost(comm, reader.dataset)


def _check_some_left(count: int, left_out: Sequence[LeftOut]) -> None:
    if left_out and not count:
        raise UserError(f"all shards are missing or damaged, the first so: {left_out[0].problem}")
