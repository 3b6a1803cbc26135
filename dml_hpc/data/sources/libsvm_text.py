"""The text of LIBSVM files: cut into pieces, decompressed, parsed; what is wrong with it, in words."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, cast

import numpy as np

from dml_hpc.errors import UserError

COMPRESSED = (".gz", ".bz2", ".xz", ".lzma")
CHUNK_BYTES = 2 << 20
"""How much text is parsed at a time; every block of the spool holds so much."""
LONGEST_LINE = 1 << 30
_SPECIAL = re.compile(rb"[+-]?(nan|inf|infinity)\b.*", re.IGNORECASE | re.DOTALL)
_NUMBER = rb"[+-]?[\d.]+([eE][+-]?\d+)?"
_LINE = re.compile(_NUMBER + rb"([ \t]+qid:\d+)?([ \t]+\d+:" + _NUMBER + rb")+[ \t]*(#.*)?\r?\n?")


class Piece(NamedTuple):
    """The lines of a file that begin in bytes ``start`` … ``stop`` − 1 (of a compressed file: all of them)."""

    path: Path
    start: int
    stop: int


def opened(path: Path) -> BinaryIO:
    """Open a file for reading its text; what is compressed (by the name's end) is decompressed on the way."""
    if path.suffix == ".gz":
        import gzip

        return cast(BinaryIO, gzip.open(path))
    if path.suffix == ".bz2":
        import bz2

        return cast(BinaryIO, bz2.open(path))
    if path.suffix in (".xz", ".lzma"):
        import lzma

        return cast(BinaryIO, lzma.open(path))
    return path.open("rb")


def looks_like_libsvm(path: Path) -> bool:
    """Return whether a file's first line that is neither empty nor a comment has the form of this format."""
    try:
        with opened(path) as file:
            for _ in range(100):
                line = file.readline(1 << 20)
                if line.strip() and not line.startswith(b"#"):
                    # A long first line is cut somewhere: its last word may be half an entry.
                    return _LINE.fullmatch(line if len(line) < 1 << 20 else line.rsplit(None, 1)[0]) is not None
    except (OSError, EOFError, ValueError, ImportError):
        pass
    return False


def texts(piece: Piece) -> Generator[tuple[int, bytes], None, None]:
    """Yield the piece's lines, about `CHUNK_BYTES` at a time, each text with the place of its first byte."""
    stop = sys.maxsize if piece.path.suffix in COMPRESSED else piece.stop
    at = piece.start
    with opened(piece.path) as file:
        if at:  # the line that holds the byte before belongs to the piece before
            file.seek(at - 1)
            at += len(file.readline(LONGEST_LINE)) - 1
        while at < stop:
            text = file.read(min(CHUNK_BYTES, stop - at))
            if not text:
                return
            if not text.endswith(b"\n"):
                text += file.readline(LONGEST_LINE)
            if len(text) > LONGEST_LINE:
                raise UserError(f"{piece.path} is no LIBSVM file: it has a line of over {LONGEST_LINE >> 20:,} MiB")
            yield at, text if text.endswith(b"\n") else text + b"\n"
            at += len(text)


class Parser:
    """Room for the rows of one text at a time; used by one thread."""

    def __init__(self, dtype: np.dtype, mask: int):
        self._dtype = dtype
        self._mask = mask
        self._grow(CHUNK_BYTES)

    def _grow(self, length: int) -> None:
        # The shortest row is "1\n", the shortest entry " 1:1". Pages that are never touched cost nothing.
        self._length = length
        self._indptr = np.empty(length // 2 + 2, np.int64)
        self._labels = np.empty(length // 2 + 1)
        self._data = np.empty(length // 4 + 1, self._dtype)
        self._indices = np.empty(length // 4 + 1, np.int32)
        self._hard = np.empty((length // 4 + 1, 2), np.int64)

    def parse(self, text: bytes, line: Callable[[int], str]) -> tuple[int, int, int]:
        """Parse whole lines and return how many rows there are, and the lowest and highest column number.

        Raises `UserError` for the first fault; ``line(place)`` says in words which line byte ``place`` is in.
        """
        from dml_hpc.kernels import libsvm

        if len(text) > self._length:
            self._grow(len(text))
        letters = np.frombuffer(text, np.uint8)
        known = np.empty(0)
        while True:
            code, place, rows, lowest, highest, hards = libsvm.parse(
                letters, self._mask, float(np.finfo(self._dtype).max), known, self._indptr, self._indices, self._data,
                self._labels, self._hard)
            if hards <= len(known):
                break
            known = np.array([float(text[start:stop]) for start, stop in self._hard[:hards].tolist()])
        if code != libsvm.FINE:
            token = text[place:place + 60].split(b"\n")[0].split()[0][:40]
            shown = token.decode(errors="backslashreplace")
            raise UserError(f"{line(place)}: " + self._fault(code, token, shown))
        return rows, lowest, highest

    def _fault(self, code: int, token: bytes, shown: str) -> str:
        from dml_hpc.kernels import libsvm

        if _SPECIAL.fullmatch(token.split(b":")[-1]) and code in (libsvm.BAD_LABEL, libsvm.BAD_ENTRY):
            return f"'{shown}' is not finite; leave the entry out, or the line when it is the label"
        if code == libsvm.BAD_LABEL:
            if re.fullmatch(rb"[-+\d.eE]+(,[-+\d.eE]+)+", token):
                return f"'{shown}' are several labels; only one a line can be learnt, choose one"
            return f"'{shown}' is no label; a line is LABEL INDEX:VALUE INDEX:VALUE …"
        if code == libsvm.BAD_ENTRY:
            return f"'{shown}' is no INDEX:VALUE of a column number and a number"
        if code == libsvm.LARGE_INDEX:
            return (f"the column of '{shown}' is above {libsvm.LARGEST_INDEX}; give --hash-bits" if not self._mask
                    else f"the column of '{shown}' is above 2^59")
        if code == libsvm.LARGE_VALUE:
            if np.isfinite(float(token.split(b":")[-1])):
                return f"the value of '{shown}' is too large for {self._dtype}; give --dtype float64"
            return f"'{shown}' is too large; leave the entry out, or the line when it is the label"
        return "a column is given twice; give each at most once"

    def entries(self, rows: int) -> int:
        """Return how many entries the first ``rows`` rows hold."""
        return int(self._indptr[rows])

    def write(self, rows: int, spool: IO[bytes]) -> None:
        """Append the first ``rows`` rows to a file, up to a multiple of eight bytes."""
        entries = self.entries(rows)
        for part in (self._indptr[:rows + 1], self._labels[:rows], self._data[:entries], self._indices[:entries]):
            spool.write(part.data)
        spool.write(bytes(-spool.tell() % 8))


def line_of(path: Path, offset: int, place: int) -> str:
    """Return "PATH, line N" for the line that byte ``offset`` + ``place`` of the file's text is in."""
    lines, at = 1, 0
    place += offset
    with opened(path) as file:
        while at < place:
            text = file.read(min(CHUNK_BYTES, place - at))
            lines += text.count(b"\n")
            at += len(text)
    return f"{path}, line {lines:,}"
