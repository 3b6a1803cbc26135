"""Outputs that appear whole or not at all: written beside their place under a temporary name, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dml_hpc.errors import UserError


def check_output(path: str | os.PathLike[str], overwrite: bool, folder: bool = False) -> Path:
    """Return ``path`` when a run may write a file (or, with ``folder``, a folder) there, before it spends any time.

    Raises `UserError` when it exists and ``overwrite`` is false or it is not of that kind, or when the folder it is
    to be in is missing or not writable.
    """
    path = Path(path)
    if path.exists() and path.is_dir() != folder:
        raise UserError(f"{path} is a {'file' if folder else 'folder'}, a {'folder' if folder else 'file'} is to be "
                        "written there; choose another -o")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; give --overwrite to replace it, or another -o")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise UserError(f"the folder {parent} does not exist; make it first (mkdir -p) or choose another -o")
    if not os.access(parent, os.W_OK):
        raise UserError(f"the folder {parent} is not writable; choose another -o")
    return path


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes ``path``'s place at once, else it is removed."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.absolute().parent)
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

    What stood at ``path`` stays until the new folder is complete.
    """
    parent = path.absolute().parent
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=parent))
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=parent))
            os.replace(path, old / "replaced")
            os.replace(partial, path)
            shutil.rmtree(old)
        else:
            os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
