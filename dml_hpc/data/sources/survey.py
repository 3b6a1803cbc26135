"""What the rows of the spool hold, looked at once: the categories, the gaps, and what is to fill them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.data.sources.holdout import held_out
from dml_hpc.data.sources.parse import Wanted
from dml_hpc.data.sources.spool import Spooled, open_spooled
from dml_hpc.data.sources.tables import load_pyarrow
from dml_hpc.errors import UserError
from dml_hpc.mpi import Alone, agreed
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

MOST_CATEGORIES = 10_000
"""A column with more different words is a name or an identifier, of no use one-hot."""


@dataclass
class Survey:
    """What rows hold, those that are trained on and those held out.

    ``rows``, and by column ``missing`` (rows without a value) and ``unseen`` (whose category is not a known one), are
    pairs: (training, held out). ``words`` are the categories a column has, ``count`` and ``mean`` those of a column of
    numbers in the training rows.
    """

    rows: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    missing: dict[str, np.ndarray] = field(default_factory=dict)
    unseen: dict[str, np.ndarray] = field(default_factory=dict)
    words: dict[str, set[str]] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)
    mean: dict[str, float] = field(default_factory=dict)

    def add(self, other: Survey) -> None:
        """Count in what other rows hold."""
        self.rows += other.rows
        for sums, more in ((self.missing, other.missing), (self.unseen, other.unseen)):
            for name, pair in more.items():
                sums[name] = sums.get(name, 0) + pair
        for name, words in other.words.items():
            self.words.setdefault(name, set()).update(words)
        for name, count in other.count.items():
            total = self.count.get(name, 0) + count
            mean = self.mean.get(name, 0.0)
            self.mean[name] = mean + (other.mean[name] - mean) * (count / total) if count else mean
            self.count[name] = total


def survey(comm: Intracomm | Alone, files: Sequence[Spooled], wanted: Wanted, listed: Iterable[str],
           known: Mapping[str, Iterable[str]], holdout: float, seed: int) -> Survey:
    """Collective: survey the rows of all files, the same on every rank whatever their number.

    The words of the columns ``listed`` are gathered, of those ``known`` the ones that are not among these are counted.
    Row i is held out as `held_out` says. Raises `AgreedError` for a column with too many categories.
    """
    firsts = np.concatenate([[0], np.cumsum([entry.rows for entry in files])]).astype(np.int64)
    listed, sets = set(listed), {name: frozenset(words) for name, words in known.items()}

    def one(number: int) -> Survey:
        held = held_out(int(firsts[number]), int(firsts[number + 1]), holdout, seed) if holdout else None
        found = _survey_file(open_spooled(files[number]), wanted, listed, sets, held)
        progressed()
        return found

    own = [number for number in range(comm.rank, len(files), comm.size) if files[number].rows]
    with agreed(comm), ThreadPoolExecutor(load_pyarrow().cpu_count()) as threads:
        found = dict(zip(own, threads.map(one, own), strict=True))
    whole = Survey()
    merged = {number: part for parts in comm.allgather(found) for number, part in parts.items()}
    with agreed(comm):
        for number in sorted(merged):
            whole.add(merged[number])
            check_categories(whole, wanted.label)
    return whole


def _survey_file(batch: Any, wanted: Wanted, listed: set[str], known: Mapping[str, frozenset[str]],
                 held: np.ndarray | None) -> Survey:
    from dml_hpc.kernels.columns import count_and_mean

    found = Survey()
    parts = [slice(None), slice(0)] if held is None else [~held, held]
    found.rows[1] = 0 if held is None else np.count_nonzero(held)
    found.rows[0] = batch.num_rows - found.rows[1]
    for name in wanted.numbers:
        if name not in (wanted.label, wanted.weight):
            values = batch.column(name).to_numpy()
            figures = [count_and_mean(values[part]) for part in parts]
            found.count[name], found.mean[name] = figures[0]
            found.missing[name] = found.rows - [count for count, _ in figures]
    for name in wanted.words:
        column = batch.column(name)
        # Shifted by one, so that -1 (no word) is counted first.
        codes = column.indices.fill_null(-1).to_numpy() + 1
        counts = np.stack([np.bincount(codes[part], minlength=len(column.dictionary) + 1) for part in parts])
        found.missing[name], counts = counts[:, 0], counts[:, 1:]
        present = np.flatnonzero(counts.any(axis=0)).tolist()
        if name in known:
            words = column.dictionary.to_pylist()
            strange = [i for i in present if words[i] not in known[name]]
            found.unseen[name] = counts[:, strange].sum(axis=1)
        elif name in listed:
            words = column.dictionary.to_pylist()
            found.words[name] = {words[i] for i in present}
    for name in wanted.texts:
        gone = batch.column(name).is_null().to_numpy(zero_copy_only=False)
        found.missing[name] = np.array([np.count_nonzero(gone[part]) for part in parts])
    check_categories(found, wanted.label)
    return found


def check_categories(found: Survey, label: str) -> None:
    """Raise `UserError` for a column with too many different words."""
    for name, words in found.words.items():
        if len(words) > MOST_CATEGORIES and name == label:
            raise UserError(f"the label has more than {MOST_CATEGORIES:,} different words; choose another --label")
        if len(words) > MOST_CATEGORIES:
            raise UserError(f"column '{name}' has more than {MOST_CATEGORIES:,} different values, too many to be "
                            "categories; leave it out (--drop), or hash it (--hash-bits)")


def ordered(words: Iterable[str]) -> list[str]:
    """Return the words sorted: those that look like integers by their value, then the others as text."""
    def key(word: str) -> tuple[bool, int, str]:
        number = re.fullmatch(r"[+-]?[0-9]{1,18}", word)
        return (not number, int(word) if number else 0, word)

    return sorted(words, key=key)
