"""Outputs that appear whole or not at all: written beside their place under a temporary name, then renamed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dml_hpc.errors import UserError

PREFIX = ".dml-hpc-"
"""How temporary names begin; they are short, so that they fit wherever the output's name does."""

HDF5_ERRORS = (OSError, KeyError, RuntimeError, AttributeError, ValueError, TypeError, MemoryError, OverflowError)
"""What h5py raises for a file that is damaged or holds something else than expected."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type when it has none.

    HDF5 goes on about a read that failed, inside of parentheses, for some lines: of that, what the system said.
    """
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    if line.count("(") <= line.count(")"):
        return line
    told = re.search(r"error message = '([^']*)'", str(error))
    return f"{line.partition(': time = ')[0]}{f': {told[1]}' if told else ''})"


def file_sha256(path: Path, most_bytes: int | None = None) -> str:
    """Return the SHA-256 of a file's bytes, or of its first ``most_bytes``, in hexadecimal."""
    digest = hashlib.sha256()
    left = path.stat().st_size if most_bytes is None else most_bytes
    with path.open("rb", buffering=0) as file:
        while left > 0 and (chunk := file.read(min(left, 1 << 20))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def check_output(path: str | os.PathLike[str], overwrite: bool, folder: bool = False, option: str = "-o",
                 inputs: Iterable[str | os.PathLike[str]] = ()) -> Path:
    """Return ``path`` when a run may write a file (or, with ``folder``, a folder) there, before it spends any time.

    Raises `UserError` when it exists and ``overwrite`` is false or it is not of that kind, when it is a folder that
    cannot be replaced, or when the folder it is to be in is missing or not writable. ``inputs``, which the run reads,
    and what lies in them are never replaced. ``option`` is the one that named the path.
    """
    path = Path(path)
    for read in map(Path, inputs):
        if path.resolve() == read.resolve() or (read.is_dir() and path.resolve().is_relative_to(read.resolve())):
            raise UserError(f"{path} is what this run reads, or a part of it; choose another {option}")
    kind = "folder" if folder else "file"
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except OSError as error:
        raise _cannot_write(path, error) from None
    if mode is not None:
        there = "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "device, pipe or socket"
        if there != kind:
            raise UserError(f"{path} is a {there}, a {kind} is to be written there; choose another {option}")
        if folder and (path.name == ".." or path.is_mount() or Path.cwd().is_relative_to(path.resolve())):
            raise UserError(f"{path} is a mount point or the current folder, or holds it, and cannot be replaced; "
                            f"choose another {option}, such as a new folder in it")
        if not overwrite:
            raise UserError(f"{path} exists; give --overwrite to replace it, or another {option}")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise UserError(f"the folder {parent} does not exist; make it first (mkdir -p) or choose another {option}")
    if not os.access(parent, os.W_OK):
        raise UserError(f"the folder {parent} is not writable; choose another {option}")
    return path


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes ``path``'s place at once, else it is removed.

    An `OSError` inside, such as a full disk, becomes a `UserError`.
    """
    with one_line(path):
        handle, name = tempfile.mkstemp(prefix=PREFIX, suffix=".partial", dir=path.absolute().parent)
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            # mkstemp makes the file private; the result gets what the user's umask gives any new file.
            umask = os.umask(0)
            os.umask(umask)
            partial.chmod(0o666 & ~umask)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside ``path``; on success it takes ``path``'s place, on failure it is removed.

    What stood at ``path`` stays until the new folder is complete. An `OSError` inside, such as a full disk, becomes
    a `UserError`.
    """
    parent = path.absolute().parent
    with one_line(path):
        partial = Path(tempfile.mkdtemp(prefix=PREFIX, suffix=".partial", dir=parent))
        try:
            yield partial
            umask = os.umask(0)
            os.umask(umask)
            partial.chmod(0o777 & ~umask)
            if path.exists():
                _swap(partial, path, Path(tempfile.mkdtemp(prefix=PREFIX, suffix=".old", dir=parent)))
            else:
                os.replace(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, path: Path, old: Path) -> None:
    """Put ``partial`` in the place of ``path``, which goes to the folder ``old`` and is deleted, or stays."""
    try:
        os.replace(path, old / "replaced")
        os.replace(partial, path)
    except OSError:
        if (old / "replaced").exists():
            os.replace(old / "replaced", path)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def one_line(what: Path | str) -> Iterator[None]:
    """Turn what the system says in the block (a full disk, no permission) into a `UserError`: cannot write ``what``."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not isinstance(error, OSError) and not system_error(error):
            raise
        raise _cannot_write(what, error) from None


def _cannot_write(path: Path | str, error: Exception) -> UserError:
    number = system_error(error)
    return UserError(f"cannot write {path}: {os.strerror(number) if number else first_line(error)}")


def system_error(error: BaseException) -> int | None:
    """Return the system's error number, None where it was not the system; HDF5 often tells it in the message alone."""
    told = re.search(r"errno = (\d+)", str(error))
    return getattr(error, "errno", None) or (int(told[1]) if told else None)
