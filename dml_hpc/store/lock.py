"""One run at a time writes to a folder: a lock that the system lets go of when the run's process ends, however it does.

File systems that know no locks (`flock`) give none, and nobody is kept out there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import threading
import time
import weakref
from pathlib import Path

from dml_hpc.errors import UserError

NAME = ".lock"
"""Stays when the lock is gone: removing it would let two runs lock two files of that name."""
GONE_S = 120.0
"""So long a shared file system may take to let go of the locks of a node that has died: NFS servers wait 90 s."""
_LOOK_S = 0.05
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


class InUseError(UserError):
    """Another run has the folder."""


class Lock:
    """A lock on a folder, which this process holds until nobody in it refers to this any more."""

    def __init__(self, handle: int):
        weakref.finalize(self, os.close, handle)


_held: weakref.WeakValueDictionary[tuple[int, int], Lock] = weakref.WeakValueDictionary()
"""This process's locks, by what they lock: it is not in its own way when it begins a run again."""


def take(folder: Path, wait_s: float = 0.0) -> Lock:
    """Return the lock on ``folder``, which exists; another run that holds it has ``wait_s`` seconds to end.

    Where that is more than 0, one on another node has `GONE_S`, as the node may be dead: standard error tells. Raises
    `InUseError` when it has not ended, `UserError` when the lock's file cannot be opened.
    """
    try:
        handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"--checkpoint: {folder / NAME} cannot be opened ({os.strerror(error.errno or 0)}); choose "
                        "another folder") from None
    about = os.fstat(handle)
    known = _held.get((about.st_dev, about.st_ino))
    if known is not None:
        os.close(handle)
        return known
    lock = Lock(handle)
    if _locked(handle, folder, wait_s):
        _held[about.st_dev, about.st_ino] = lock
    return lock


def _locked(handle: int, folder: Path, wait_s: float) -> bool:
    """Lock an open file; return False where the file system knows no locks."""
    began, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNKNOWN:
                return False
            if error.errno not in _HELD:
                raise UserError(f"--checkpoint: {folder} cannot be locked ({os.strerror(error.errno or 0)}); choose "
                                "another folder") from None
            waited, who = time.monotonic() - began, _holder(handle)
            elsewhere = who != "" and not who.endswith(f" on {os.uname().nodename}")
            if waited >= (GONE_S if wait_s and elsewhere else wait_s):
                name = f"another run ({who})" if who else "another run"
                raise InUseError(f"{name} keeps its checkpoints in {folder}; wait until it has ended, end it, or give "
                                 "another --checkpoint folder") from None
            if waited >= wait_s and not told:
                told = True
                print(f"dml-hpc: {folder} is held by another run ({who}); if its node is dead that ends within "
                      f"{GONE_S:g} s", file=sys.stderr, flush=True)
            threading.Event().wait(_LOOK_S)
            continue
        _say_who(handle)
        return True


def _say_who(handle: int) -> None:
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
    except OSError:
        pass  # on a full disk nobody learns who has it


def _holder(handle: int) -> str:
    """Return in words which process has written its name into a lock's file, "" when none has."""
    try:
        who = os.pread(handle, 200, 0).decode(errors="replace").strip()
    except OSError:
        return ""
    return who if who.isprintable() else ""
