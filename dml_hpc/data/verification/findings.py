"""What is found in one file of a data set, and how its arrays are opened, read and compared without giving up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dml_hpc.data.statistics import Moments
from dml_hpc.data.stored import StoredArray, open_array
from dml_hpc.errors import UserError
from dml_hpc.watch import progressed

BLOCK_BYTES = 4 << 20


class Fault(NamedTuple):
    """Something wrong: ``where`` is "file", an array's name, or the first place in it, as ``X[3, 2]``."""

    where: str
    problem: str


class Expected(NamedTuple):
    """What a file should hold; None: whatever it says itself. ``moments``: the figures of its features are wanted.

    ``weight_key`` None: rows need no weights. ``timed``: ratings have times.
    """

    kind: str | None = None
    rows: int | None = None
    features: int | None = None
    nonzeros: int | None = None
    dtype: str | None = None
    values: list[float] | None = None
    moments: bool = False
    x_key: str = "X"
    y_key: str = "y"
    compressed: bool | None = None
    weight_key: str | None = None
    blocks: list[list[int]] | None = None
    """Of ratings: of each block in the file how many there are, of how many users and items."""
    timed: bool = False


@dataclass
class Findings:
    """A file's ``faults`` and what it holds, as far as it could be read; ``moments`` are those of all its rows."""

    faults: list[Fault] = field(default_factory=list)
    kind: str | None = None
    rows: int | None = None
    features: int | None = None
    moments: Moments | None = None

    def add(self, where: str, problem: str) -> None:
        """Note a fault."""
        self.faults.append(Fault(where, " ".join(problem.split())))


def without_path(path: Path, error: UserError) -> str:
    """Return an error's line without the path, which stands before it already."""
    return str(error).removeprefix(str(path)).lstrip(": ")


def open_part(path: Path, file: Any, name: str, dimensions: int, found: Findings) -> StoredArray | None:
    """Return an array of a file, or None having noted why it cannot be opened."""
    try:
        return open_array(path, file, name, dimensions)
    except UserError as error:
        found.add(name, without_path(path, error))
        return None


def blocks(path: Path, length: int, item_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of blocks of about `BLOCK_BYTES` that cover ``length`` items."""
    step = max(1, BLOCK_BYTES // max(item_bytes, 1))
    for start in range(0, length, step):
        progressed()
        yield start, min(start + step, length)


def read_part(part: StoredArray, start: int, stop: int, name: str, found: Findings) -> np.ndarray | None:
    """Return a range of an array, or None having noted why it cannot be read."""
    try:
        return part.read(start, stop)
    except UserError as error:
        found.add(name, without_path(part.path, error))
        return None


def compare(found: Findings, where: str, what: str, here: Any, wanted: Any) -> None:
    """Note when something is not what the manifest says; ``wanted`` None: it says nothing."""
    if wanted is not None and here != wanted:
        shown, promised = (f"{item:,}" if isinstance(item, int) else str(item) for item in (here, wanted))
        found.add(where, f"has {shown} {what}, the manifest says {promised}")


def compare_dtype(found: Findings, name: str, part: StoredArray, wanted: str | None) -> None:
    """Note when an array is not of the type that the manifest says."""
    compare(found, name, "as its type", str(part.dtype), wanted)


def not_finite(found: Findings, first: str, count: int) -> None:
    """Note that ``count`` values, of which ``first`` tells place=value, are NaN or infinite; nothing when it is 0."""
    if count:
        where, _, value = first.partition("=")
        found.add(where, f"is {value}; {count:,} values of {where.split('[')[0]} are not finite")


def compare_rows(found: Findings, name: str, part: StoredArray) -> None:
    """Note when an array has not as many rows as the matrix."""
    if found.rows is not None and part.shape[0] != found.rows:
        found.add(name, f"has {part.shape[0]:,} rows, the file has {found.rows:,}")
