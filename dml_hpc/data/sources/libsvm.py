"""LIBSVM (svmlight) files: text parsed once into a binary spool, read from there in any ranges."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.data.csr import Csr, concatenated
from dml_hpc.data.sources.libsvm_text import COMPRESSED, Parser, Piece, line_of, texts
from dml_hpc.data.sources.source import About
from dml_hpc.errors import UserError
from dml_hpc.layout import split
from dml_hpc.mpi import agreed, on_root
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.console import Progress
    from dml_hpc.mpi import Alone

PIECE_BYTES = 32 << 20
MOST_PIECES = 4096
MOST_THREADS = 8


class _Block(NamedTuple):
    """Rows in a spool file: ``indptr``, ``y``, ``data`` and ``indices`` one after the other from byte ``offset`` on."""

    piece: int
    offset: int
    rows: int
    entries: int


class _Parsed(NamedTuple):
    """What parsing a piece, or several, showed: the blocks written, and the lowest and highest column number."""

    blocks: list[_Block]
    lowest: int
    highest: int


class LibsvmRows:
    """The rows of LIBSVM files in their order, a `RowSource` of kind "csr" over the spool that `open_libsvm` wrote."""

    kind = "csr"

    def __init__(self, scratch: Path, blocks: Sequence[_Block], base: int, features: int, dtype: str, about: About):
        self.rows = sum(block.rows for block in blocks)
        self.features = features
        self.about = about
        self._scratch = scratch
        self._blocks = blocks
        self._starts = np.concatenate([[0], np.cumsum([block.rows for block in blocks], dtype=np.int64)])
        self._base = base
        self._dtype = np.dtype(dtype)
        self._mapped: tuple[int, np.ndarray] | None = None

    def read(self, start: int, stop: int) -> tuple[Csr, np.ndarray]:
        """Return rows ``start`` … ``stop`` − 1: entries by ascending column, int32, and y float64."""
        empty = Csr(np.empty(0, self._dtype), np.empty(0, np.int32), np.zeros(1, np.int64), self.features)
        parts, labels = [empty], [np.empty(0)]
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for number in range(first, len(self._blocks)):
            begin = int(self._starts[number])
            if begin >= stop:
                break
            X, y = self._block(self._blocks[number])
            rows = slice(max(start - begin, 0), stop - begin)
            some = X[rows].packed()
            parts.append(Csr(some.data, some.indices - np.int32(self._base), some.indptr, self.features))
            labels.append(y[rows])
        if len(parts) == 2:
            return parts[1], labels[1]
        return concatenated(parts), np.concatenate(labels)

    def _block(self, block: _Block) -> tuple[Csr, np.ndarray]:
        mapped = self._mapped
        if mapped is None or mapped[0] != block.piece:
            mapped = self._mapped = (block.piece, np.memmap(_spool(self._scratch, block.piece), np.uint8, "c"))
        data_at = block.offset + 8 * (2 * block.rows + 1)
        indices_at = data_at + block.entries * self._dtype.itemsize
        bytes_ = mapped[1].view(np.ndarray)
        head = bytes_[block.offset:data_at].view(np.int64)
        data = bytes_[data_at:indices_at].view(self._dtype)
        indices = bytes_[indices_at:indices_at + 4 * block.entries].view(np.int32)
        return (Csr(data, indices, head[:block.rows + 1], self.features), head[block.rows + 1:].view(np.float64))


def open_libsvm(comm: Intracomm | Alone, paths: Sequence[Path], scratch: Path, *, features: int | None = None,
                hash_bits: int | None = None, dtype: str = "float32", zero_based: bool | None = None,
                bar: Progress | None = None, piece_bytes: int = PIECE_BYTES) -> LibsvmRows:
    """Collective: parse LIBSVM files once, whatever the number of ranks with the same result; return their rows.

    A line is ``label [qid:n] index:value … [# comment]``; ``qid`` is ignored, empty lines are skipped, entries may
    come in any order. Names that end in .gz, .bz2 or .xz are decompressed, each by one thread. Numbers are rounded
    correctly to float64, and then to float32 unless ``dtype`` is "float64". Columns count from 0 when ``zero_based``,
    from 1 when it is False; when it is None, from 0 when a 0 occurs anywhere, else from 1. There are ``features``
    features, or more when a higher column occurs. With ``hash_bits`` columns are hashed to 2^``hash_bits`` with signs,
    by their number as it is in the text, and those of a row that meet are added up.

    The spool goes to the folder ``scratch``, a file a piece; ``bar`` advances by the bytes this rank has read.
    Memory does not grow with the files. Raises `AgreedError` with file and line for what cannot be parsed, for a
    column given twice in a row, for values that are not finite or too large for float32, and for columns above 2^31.
    """
    pieces = on_root(comm, lambda: _cut(paths, scratch, piece_bytes))
    first, last = split(len(pieces), comm.size, comm.rank)
    spooled = np.dtype("float64" if dtype == "float64" else "float32")
    mask = (1 << hash_bits) - 1 if hash_bits else 0

    def parse(number: int) -> _Parsed:
        return _parse_piece(pieces[number], number, scratch, spooled, mask)

    found: list[_Parsed] = []
    with agreed(comm):
        threads = max(1, min(MOST_THREADS, len(os.sched_getaffinity(0)) // comm.size, last - first))
        pool = ThreadPoolExecutor(threads)
        try:
            for number, parsed in enumerate(pool.map(parse, range(first, last)), first):
                found.append(parsed)
                if bar is not None:
                    bar.advance(pieces[number].stop - pieces[number].start)
        finally:
            pool.shutdown(cancel_futures=True)
    whole = _joined(comm.allgather(found))
    if zero_based is None:
        zero_based = whole.lowest == 0 or whole.highest < 0
    with agreed(comm):
        if whole.lowest == 0 and not zero_based and not mask:
            raise UserError("column 0 occurs, though columns are to count from 1; count them from 0")
    base = 0 if zero_based or mask else 1
    width = mask + 1 if mask else max(features or 0, whole.highest + 1 - base, 1)
    about = About(hash_bits=hash_bits, source={"format": "libsvm", "zero_based": bool(zero_based)})
    return LibsvmRows(scratch, whole.blocks, base, width, str(spooled), about)


def _cut(paths: Sequence[Path], scratch: Path, piece_bytes: int) -> list[Piece]:
    """Cut files into ranges of bytes, of a size that depends on nothing but the files."""
    scratch.mkdir(parents=True, exist_ok=True)
    sizes = [path.stat().st_size for path in paths]
    step = max(piece_bytes, -(-sum(sizes) // MOST_PIECES))
    return [Piece(path, start, size if path.suffix in COMPRESSED else min(size, start + step))
            for path, size in zip(paths, sizes, strict=True)
            for start in range(0, size, max(size, 1) if path.suffix in COMPRESSED else step)]


def _joined(parts: Iterable[list[_Parsed]]) -> _Parsed:
    found = list(chain.from_iterable(parts))
    return _Parsed([block for part in found for block in part.blocks],
                   min((part.lowest for part in found), default=sys.maxsize),
                   max((part.highest for part in found), default=-1))


def _spool(scratch: Path, piece: int) -> Path:
    return scratch / f"piece-{piece:05d}.rows"


def _parse_piece(piece: Piece, number: int, scratch: Path, dtype: np.dtype, mask: int) -> _Parsed:
    """Parse one piece into its spool file."""
    blocks: list[_Block] = []
    lowest, highest = sys.maxsize, -1
    try:
        with closing(texts(piece)) as found, _spool(scratch, number).open("wb") as spool:
            parser = Parser(dtype, mask)
            for offset, text in found:
                rows, low, high = parser.parse(text, partial(line_of, piece.path, offset))
                lowest, highest = min(lowest, low), max(highest, high)
                progressed()
                blocks.append(_Block(number, spool.tell(), rows, parser.entries(rows)))
                parser.write(rows, spool)
    except EOFError:
        raise UserError(f"{piece.path} is cut short; fetch it again") from None
    except (OSError, ValueError) as error:
        if piece.path.suffix in COMPRESSED and not getattr(error, "errno", None):
            raise UserError(f"{piece.path} cannot be decompressed: {error}") from None
        raise
    return _Parsed(blocks, lowest, highest)


