"""Source tables cut into pieces that are read independently; where the cuts are does not depend on the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.data.sources.tables import Source, load_pyarrow, readable
from dml_hpc.mpi import Alone, agreed
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

PIECE_BYTES = 64 << 20
LINE_BYTES = 64 << 10


class Piece(NamedTuple):
    """Rows of one source: bytes ``start`` … ``stop`` − 1 of a CSV file (all of a packed one), row groups of Parquet.

    In the order of these fields pieces are in the order of the rows.
    """

    source: int
    start: int
    stop: int


class _Found(NamedTuple):
    """A stretch of text from one line's beginning to another's: its first byte, and whether its end is quoted.

    That depends on whether its beginning is: ``from_row`` if it is not, ``from_quoted`` if it is; then the first row
    begins at ``first_row`` (-1: not in this stretch).
    """

    start: int
    from_row: bool
    from_quoted: bool
    first_row: int


def cut(comm: Intracomm | Alone, sources: Sequence[Source], piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """Collective: return the pieces of all sources, of about ``piece_bytes`` each, in the order of their rows.

    Text is cut where a row begins and never within a quoted field: every rank reads its share of the text once, and
    finds out how a stretch ends both if it begins with a row and if it begins in quotes; which of the two is true is
    known when all have said so. Raises `AgreedError` for a file that cannot be read.
    """
    stretches = [(number, place) for number, source in enumerate(sources)
                 if source.form == "csv" and source.bytes > piece_bytes
                 for place in range(0, source.bytes, piece_bytes)]
    own: dict[tuple[int, int], _Found] = {}
    groups: dict[int, list[Piece]] = {}
    with agreed(comm):
        for number, place in stretches[comm.rank::comm.size]:
            with readable(sources[number].path):
                own[number, place] = _examine(sources[number].path, place, place + piece_bytes)
            progressed()
        for number in range(comm.rank, len(sources), comm.size):
            if sources[number].form == "parquet":
                with readable(sources[number].path):
                    groups[number] = _row_groups(number, sources[number].path, piece_bytes)
    found: dict[tuple[int, int], _Found] = {}
    for some, more in comm.allgather((own, groups)):
        found.update(some)
        groups.update(more)
    pieces: list[Piece] = []
    for number, source in enumerate(sources):
        if source.form == "parquet":
            pieces += groups[number]
        elif (number, 0) in found:
            starts = _rows([found[number, place] for place in range(0, source.bytes, piece_bytes)], source.bytes)
            stops = [*starts[1:], source.bytes]
            pieces += [Piece(number, start, stop) for start, stop in zip(starts, stops, strict=True)]
        else:
            pieces.append(Piece(number, 0, source.bytes))
    return pieces


def _examine(path: Path, start: int, stop: int) -> _Found:
    """Examine the text from the first line that begins after ``start`` to the first that begins after ``stop``."""
    from dml_hpc.kernels.csv_rows import ends_quoted, first_row

    with path.open("rb", buffering=0) as file:
        file.seek(start)
        text = file.read(stop - start + LINE_BYTES)
        first = text.find(b"\n") + 1 if start else 0
        last = text.find(b"\n", stop - start) + 1
        while not last and (more := file.read(max(LINE_BYTES, len(text)))):
            last = len(text) + more.find(b"\n") + 1 if b"\n" in more else 0
            text += more
    if start and not first:
        first = text.find(b"\n") + 1 or len(text)
    last = last or len(text)
    # Without a quote everything is known at once, and most tables of numbers have none.
    if text.find(b'"', first, last) < 0:
        return _Found(start + first, False, True, -1)
    between = np.frombuffer(text, np.uint8)[first:last]
    row = first_row(between)
    return _Found(start + first, ends_quoted(between, False), ends_quoted(between, True),
                  start + first + row if row >= 0 else -1)


def _rows(stretches: list[_Found], size: int) -> list[int]:
    """Return where rows begin in a file of ``size`` bytes, at most one place a stretch, the first being 0."""
    starts: list[int] = []
    quoted = False
    for stretch in stretches:
        place = stretch.first_row if quoted else stretch.start
        if 0 <= place < size and (not starts or place > starts[-1]):
            starts.append(place)
        quoted = stretch.from_quoted if quoted else stretch.from_row
    return starts


def _row_groups(number: int, path: Path, piece_bytes: int) -> list[Piece]:
    with load_pyarrow().parquet.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups)]
    pieces, start, held = [], 0, 0
    for group, size in enumerate(sizes):
        held += size
        if held >= piece_bytes or group + 1 == len(sizes):
            pieces.append(Piece(number, start, group + 1))
            start, held = group + 1, 0
    return pieces
