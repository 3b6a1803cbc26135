"""Reads that fail for a moment, as those of network file systems do: tried again with growing pauses, then given up."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dml_hpc.errors import JobError, UserError
from dml_hpc.files import system_error
from dml_hpc.launch import launch
from dml_hpc.watch import progressed

Made = TypeVar("Made")
Pause = Callable[[float], bool]
"""Waits so many seconds and returns whether what was to be read is no longer wanted; then it returns at once."""

PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Between one try and the next."""
ADVICE = "train and svd leave such shards out with --skip-bad-shards"
_LASTING = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
            errno.ENODEV, errno.ENXIO)
"""What the system says again however often it is asked."""


class UnreadableError(UserError):
    """The system could not read a file, and may if it is asked again."""


class MissingError(UnreadableError):
    """A file is not where it is to be."""


class LostShardError(JobError):
    """A shard that turned unreadable, and stayed so however often it was tried."""


def unreadable(error: BaseException, message: str) -> UserError:
    """Return what to raise for an error of the system or of HDF5; `UnreadableError` when another try may do."""
    number = system_error(error)
    if number == errno.ENOENT:
        return MissingError(message)
    return UserError(message) if number is None or number in _LASTING else UnreadableError(message)


def retried(read: Callable[[], Made], reopen: Callable[[], None], mend: str, known: bool,
            pause: Pause | None = None) -> Made:
    """Return what ``read()`` returns; when it raises `UnreadableError`, call ``reopen()`` and try again after a pause.

    After the last of `PAUSES_S`, and for a file that turns out to be damaged by then, it raises `LostShardError`, whose
    last words are ``mend``. A file that is missing and was never ``known`` is not waited for. ``pause`` None is for the
    main thread, which signals end.
    """
    tries = 0
    while True:
        try:
            return read()
        except UserError as error:
            problem = str(error)
            passing = isinstance(error, UnreadableError)
            if not tries and (not passing or (isinstance(error, MissingError) and not known)):
                raise
            if not passing or tries == len(PAUSES_S):
                raise LostShardError(f"{problem}; it was tried {tries + 1} times: {mend}") from None
        if not tries:
            tell(f"{problem}; trying again for {sum(PAUSES_S):.0f} s")
        reopen()
        progressed()
        if (pause or threading.Event().wait)(PAUSES_S[tries]):
            raise LostShardError(problem)
        tries += 1


def tell(line: str) -> None:
    """Print a line on stderr, from whichever rank has something to tell."""
    place = launch()
    who = f"rank {place.rank} of {place.size}: " if place.size > 1 else ""
    print(f"dml-hpc: {who}{line}", file=sys.stderr, flush=True)


def check_present(paths: tuple[Path, ...]) -> None:
    """Raise `MissingError` when one of the files is not there; HDF5 would take its numbers for zeros."""
    for path in paths:
        if not os.path.isfile(path):
            raise MissingError(f"{path} is missing, or no file")
