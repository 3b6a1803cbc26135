"""Checkpoints on disk: a folder for each, with one file of pieces a rank, and ``state.json``, which is written last.

A checkpoint is there as a whole or not at all: it is made under a temporary name, every file is flushed to the disk
before the folder gets its own name, and every byte is covered by a SHA-256. Nothing in it can run code: numbers as they
lie in memory, and JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dml_hpc.errors import JobError, UserError
from dml_hpc.files import file_sha256, first_line
from dml_hpc.mpi import agreed, on_root
from dml_hpc.store.state import Kept, Values

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

FORMAT = 1
HEAD = "state.json"
PROGRESS = "progress"
"""Holds the step that a run was last known to have taken, for whoever restarts it."""
_NAME = re.compile(r"checkpoint-([0-9]{6,18})")
_PARTIAL = re.compile(r"\.checkpoint-([0-9]{6,18})\.[0-9a-f]+\.partial")


class Entry(NamedTuple):
    """What a rank has written: ``pieces`` are (name, dtype, start, count, total, first byte), ``own`` its values."""

    file: str
    bytes: int
    sha256: str
    pieces: list[tuple[str, str, int, int, int, int]]
    own: Values


def folder_name(number: int) -> str:
    """Return what a checkpoint is called: they are numbered, as there may be several in the middle of one step."""
    return f"checkpoint-{number:06d}"


def file_name(rank: int) -> str:
    """Return what the file of a rank's pieces is called."""
    return f"rank-{rank:05d}.bin"


def partial_name(number: int, mark: str) -> str:
    """Return what it is called while it is made; the ``mark`` (hexadecimal digits) tells apart who makes it."""
    return f".{folder_name(number)}.{mark}.partial"


def next_number(folder: Path) -> int:
    """Return a number that no checkpoint in ``folder`` has, nor one that is being made, and that comes after all."""
    names = os.listdir(folder)
    return 1 + max((int(match[1]) for name in names
                    if (match := _NAME.fullmatch(name) or _PARTIAL.fullmatch(name))), default=0)


def found(folder: Path) -> list[Path]:
    """Return the checkpoints in ``folder``, the newest first; they may be damaged. `UserError` if it cannot be read."""
    try:
        names = os.listdir(folder) if folder.exists() else []
    except OSError as error:
        raise UserError(f"the checkpoint folder {folder} cannot be read: {os.strerror(error.errno or 0)}") from None
    numbers = {int(match[1]): folder / name for name in names if (match := _NAME.fullmatch(name))}
    return [numbers[number] for number in sorted(numbers, reverse=True)]


def prepare(folder: Path) -> None:
    """Make ``folder`` where it is missing. Raises `UserError`, and leaves nothing, where nothing can be written."""
    made = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
        _try_to_write(folder / f".writable-{os.getpid()}")
    except FileNotFoundError:
        raise UserError(f"--checkpoint: the folder {folder.absolute().parent} does not exist; make it first "
                        "(mkdir -p)") from None
    except OSError as error:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise UserError(f"--checkpoint: nothing can be written to {folder} ({os.strerror(error.errno or 0)}); choose "
                        "another folder") from None


def _try_to_write(trial: Path) -> None:
    try:
        trial.write_bytes(b"1")
    finally:
        trial.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove what a run that died in ``folder`` has left half-written; no other may be writing there."""
    for name in os.listdir(folder):
        if _PARTIAL.fullmatch(name):
            shutil.rmtree(folder / name, ignore_errors=True)


def commit(unnamed: Path, number: int, step: int, about: Values, values: Values, entries: list[Entry],
           keep: int) -> None:
    """Write the head of a checkpoint whose files are in ``unnamed``, give it its name, and remove all but the newest
    ``keep``.

    Raises `OSError`; what was there before is then as it was.
    """
    folder = unnamed.parent
    body = {"format": FORMAT, "step": step, "about": about, "values": values,
            "files": [entry._asdict() for entry in entries]}
    with open(unnamed / HEAD, "x", encoding="utf-8") as file:
        json.dump({"sha256": _digest(body), "body": body}, file)
        file.flush()
        os.fsync(file.fileno())
    flush_folder(unnamed)
    os.rename(unnamed, folder / folder_name(number))
    flush_folder(folder)
    for old in found(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)


def flush_folder(folder: Path) -> None:
    """Have the system write a folder's names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class OnDisk(Kept):
    """A checkpoint that was read; ``about`` is what it is one of, ``step`` and ``path`` which.

    Raises `ValueError`, `KeyError` or `TypeError` for a ``body`` that does not describe one.
    """

    def __init__(self, path: Path, body: dict[str, Any]):
        self.path, self.step, self.about = path, _count(body["step"]), body["about"]
        self.values, self.own = body["values"], [entry["own"] for entry in body["files"]]
        if not all(isinstance(table, dict) for table in (self.values, self.about, *self.own)):
            raise ValueError("its values are no tables")
        self.files = [(path / entry["file"], _count(entry["bytes"]), str(entry["sha256"])) for entry in body["files"]]
        if any(file.parent != path for file, *_ in self.files):
            raise ValueError("a file lies elsewhere")
        self._pieces: dict[str, list[tuple[int, int, Path, int]]] = {}
        self._kinds: dict[str, tuple[np.dtype, int]] = {}
        for rank, ((file, size, _), entry) in enumerate(zip(self.files, body["files"], strict=True)):
            if entry["file"] != file_name(rank):
                raise ValueError(f"the file of rank {rank} has another name")
            for name, dtype, start, count, total, first in entry["pieces"]:
                kind = np.dtype(str(dtype)), _count(total)
                if not isinstance(name, str) or kind[0].kind not in "fiu" or self._kinds.setdefault(name, kind) != kind:
                    raise ValueError(f"{name} is no vector of numbers")
                if _count(first) + _count(count) * kind[0].itemsize > size:
                    raise ValueError(f"a piece of {name} lies beyond its file")
                self._pieces.setdefault(name, []).append((_count(start), count, file, first))
        for name, pieces in self._pieces.items():
            _check_cover(name, self._kinds[name][1], pieces)

    def names(self) -> Iterable[str]:
        """See `Kept.names`."""
        return self._kinds

    def kind(self, name: str) -> tuple[np.dtype, int]:
        """See `Kept.kind`."""
        if name not in self._kinds:
            raise JobError(f"{self.path} has no {name}")
        return self._kinds[name]

    def read(self, name: str, out: np.ndarray, start: int = 0) -> None:
        """See `Kept.read`."""
        dtype, total = self.kind(name)
        if out.dtype != dtype or start + len(out) > total:
            raise JobError(f"{self.path} has {total} elements of {dtype} in {name}, not {start + len(out)} "
                           f"of {out.dtype}")
        target, missing = out if out.flags.c_contiguous else np.empty_like(out), len(out)
        for first, count, file, offset in self._pieces[name]:
            low, high = max(first, start), min(first + count, start + len(out))
            if low < high:
                try:
                    _read(file, offset + (low - first) * out.itemsize, target[low - start:high - start])
                except OSError as error:
                    raise JobError(f"{file} can no longer be read: {os.strerror(error.errno or 0)}") from None
                missing -= high - low
        if missing:
            raise JobError(f"{self.path} lacks {missing} elements of {name}")
        if target is not out:
            out[:] = target


def newest(comm: Intracomm, folder: Path, warn: Any) -> OnDisk | None:
    """Collective: return the newest checkpoint in ``folder`` that is whole, None: there is none at all.

    Ranks share the work of reading all of its bytes. ``warn(line)`` is told of damaged ones, which are skipped. Raises
    `AgreedError` where all are damaged.
    """
    paths = on_root(comm, lambda: found(folder))
    for path in paths:
        opened: OnDisk | str = on_root(comm, partial(_opened, path))
        damage = opened if isinstance(opened, str) else next(
            filter(None, comm.allgather(_damaged(opened.files[comm.rank::comm.size]))), None)
        if not isinstance(opened, str) and damage is None:
            return opened
        warn(f"the checkpoint {path} is damaged ({damage}): it is skipped")
    with agreed(comm):
        if paths:
            raise UserError(f"no checkpoint in {folder} is whole; give another --checkpoint folder to begin anew")
    return None


def _count(number: object) -> int:
    """Return a number from `HEAD` that counts something. Raises `ValueError` where it cannot."""
    if type(number) is not int or number < 0:
        raise ValueError(f"{number!r} counts nothing")
    return number


def _check_cover(name: str, total: int, pieces: list[tuple[int, int, Path, int]]) -> None:
    """Raise `ValueError` unless ``pieces`` hold each of a vector's ``total`` elements once."""
    end = 0
    for start, count, *_ in sorted(piece for piece in pieces if piece[1]):
        if start != end:
            raise ValueError(f"the pieces of {name} leave elements out, or hold some twice")
        end += count
    if end != total:
        raise ValueError(f"the pieces of {name} hold {end:,} elements of {total:,}")


def _opened(path: Path) -> OnDisk | str:
    """Return a checkpoint whose head is whole, or what is wrong with it."""
    try:
        if not stat.S_ISREG((path / HEAD).stat().st_mode):
            return f"{HEAD} is no file"
        table = json.loads((path / HEAD).read_text(encoding="utf-8"))
        body = table["body"]
        if table["sha256"] != _digest(body):
            return f"{HEAD} has changed since it was written"
        if body["format"] != FORMAT:
            return f"it has format {body['format']!r}, this version reads {FORMAT}"
        return OnDisk(path, body)
    except OSError as error:
        return f"{HEAD} cannot be read: {os.strerror(error.errno or 0)}"
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError, SyntaxError) as error:
        return f"{HEAD} is not whole: {first_line(error)}"


def _damaged(files: list[tuple[Path, int, str]]) -> str | None:
    """Return what is wrong with the first of ``files`` that is not what was written."""
    for path, size, digest in files:
        try:
            about = path.stat()
            if not stat.S_ISREG(about.st_mode):
                return f"{path.name} is no file"
            if about.st_size != size:
                return f"{path.name} has {about.st_size:,} bytes of {size:,}"
            if file_sha256(path) != digest:
                return f"{path.name} has changed since it was written"
        except OSError as error:
            return f"{path.name}: {os.strerror(error.errno or 0)}"
    return None


def _read(path: Path, first: int, out: np.ndarray) -> None:
    view = memoryview(out.view(np.uint8))  # type: ignore[arg-type]
    with open(path, "rb", buffering=0) as file:
        file.seek(first)
        while len(view):
            count = file.readinto(view)
            if not count:
                raise JobError(f"{path} has become shorter while it was read")
            view = view[count:]


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
