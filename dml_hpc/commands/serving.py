"""What the verbs that serve factors of ratings share: opening them, who is asked for, tables of the best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.console import Console, Progress
from dml_hpc.data.ratings.by_row import by_row, matched
from dml_hpc.data.ratings.ids import Ids
from dml_hpc.data.ratings.opened import StoredRatings
from dml_hpc.decomposition.mf.top import Best
from dml_hpc.errors import UserError
from dml_hpc.files import check_output
from dml_hpc.mpi import agreed, on_root
from dml_hpc.store.ranked_table import LINE, Table, kind_of, write_table
from dml_hpc.store.rating_factors import RatingFactors, read_rating_factors
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

MOST_SHOWN = 20
"""For so many at most a table is printed; that of more goes into a file."""
_MOST_NAMED = 5


def open_factors(comm: Intracomm, path: Path) -> RatingFactors:
    """Collective: return the factors in a file, as they were written; raises `AgreedError` where they are not."""
    with agreed(comm):
        found = read_rating_factors(path)
        if comm.rank == 0 and not found.is_whole:
            raise UserError(f"{path} is damaged: its numbers are not those it was saved with; run mf again")
    return found


def check_table(comm: Intracomm, path: Path | None, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Collective: raise `AgreedError` unless a table can be written to ``path``."""
    with agreed(comm):
        if comm.rank == 0 and path is not None:
            kind_of(path)
            check_output(path, overwrite, inputs=inputs)


def numbers_of(comm: Intracomm, known: Ids, words: Iterable[str], what: str, factors: Path) -> np.ndarray:
    """Collective: return the numbers (n,) int64 of ids in their order, each once.

    A word ``@FILE`` stands for the ids in FILE, one a line. Raises `AgreedError` for ids that are not ``known``, naming
    some, for a file that cannot be read, and when there are none; ``what`` they are: "user", "item".
    """
    def read() -> np.ndarray:
        ids = [name for word in words for name in _spelt(word)]
        numbers = known.numbers(ids)
        unknown = list(dict.fromkeys(name for name, number in zip(ids, numbers.tolist(), strict=True) if number < 0))
        if unknown:
            more = f" and {len(unknown) - _MOST_NAMED:,} more" if len(unknown) > _MOST_NAMED else ""
            raise UserError(f"{factors} knows no {what} {', '.join(map(repr, unknown[:_MOST_NAMED]))}{more}; ids are "
                            f"spelt as they were imported, such as {str(known.values[0])!r}" if len(known) else
                            f"{factors} knows no {what}s")
        if not len(ids):
            raise UserError(f"no {what} is named; give at least one id")
        return np.array(list(dict.fromkeys(numbers.tolist())), np.int64)

    return on_root(comm, read)


def _spelt(word: str) -> list[str]:
    if not word.startswith("@"):
        return [word]
    path = Path(word[1:])
    try:
        return [line for line in path.read_text("utf-8-sig").splitlines() if line]
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8; write one id a line") from None


def seen_by(factors: RatingFactors, seen: StoredRatings, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the items that each of ``users`` (n,), numbers, has rated, ascending.

    Those of the j-th are items[starts[j]:starts[j + 1]], where (starts, items) is returned, int64 and int32. Raises
    `UserError`, on this rank alone, for ratings that cannot be read.
    """
    place = np.full(len(factors.users) + 1, -1)  # the last is where −1 leads: unknown
    place[users] = np.arange(len(users))
    found = by_row(seen, place[matched(factors.users, seen.users)], matched(factors.items, seen.items), len(users),
                   values=False)
    return found.starts, found.columns


def rendered(blocks: Iterator[Best], table: Table | None, bar: Progress) -> tuple[list[np.ndarray], int, int]:
    """Return the blocks as ``table`` writes them (None: as lines), how many lines, how many rows with fewer than n.

    ``bar`` counts this rank's rows.
    """
    parts, count, fewer = [], 0, 0
    for best in blocks:
        lines = best.lines()
        parts.append(lines if table is None else table.rendered(lines))
        count += len(lines)
        fewer += int(np.count_nonzero(best.counts < best.columns.shape[1]))
        progressed()
        bar.advance(len(best.rows))
    bar.close()
    return parts, count, fewer


def deliver(comm: Intracomm, console: Console, output: Path | None, table: Table | None, parts: list[np.ndarray],
            names: Sequence[str], rows: Ids, columns: Ids,
            attributes: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Collective: write what was `rendered` to ``output``, or without one print it.

    Returns on every rank, where it was printed, ``names`` as keys of an object for each line, else None.
    """
    if table is not None:
        assert output is not None
        write_table(comm, output, table, parts, attributes)
        return None
    lines = np.concatenate([np.empty(0, LINE), *(part for own in comm.allgather(parts) for part in own)])
    values = zip(rows.values[lines["row"]].tolist(), columns.values[lines["column"]].tolist(), lines["rank"].tolist(),
                 lines["score"].tolist(), strict=True)
    told = [dict(zip(names, line, strict=True)) for line in values]
    console.table(names, [[line[names[0]], line[names[1]], line[names[2]], f"{line[names[3]]:.4f}"] for line in told])
    return told
