"""The two kinds of failure, their exit codes, and how a mistyped word is answered."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable

EXIT_OK = 0
EXIT_JOB = 1
"""The job failed: a rank died, a sum did not arrive, a model diverged."""
EXIT_USER = 2
"""The user can mend it: a missing file, a wrong option, data that does not fit."""

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_AGAIN = 75
"""The job was told to stop, and has kept all it has done: start it again with --resume (EX_TEMPFAIL of sysexits.h)."""


class UserError(Exception):
    """Something the user can mend. The message is one line and says what to do next; no traceback is shown."""

    exit_code = EXIT_USER


class JobError(Exception):
    """The job cannot go on, through no fault of the command line. One line, no traceback, exit code 1."""

    exit_code = EXIT_JOB


class AgreedError(Exception):
    """A failure that every rank knows of and raises together, so that all can leave without an abort.

    ``rank`` is the lowest rank that failed (it speaks), ``exit_code`` its exit code.
    """

    def __init__(self, message: str, rank: int, exit_code: int):
        super().__init__(message)
        self.rank = rank
        self.exit_code = exit_code


class Stopped(BaseException):
    """A signal told this process to stop; exit code 128 + its number.

    ``all_stop``: it is known to mean the whole job, also where ranks survive one another.
    """

    all_stop = False

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest known word, or "" when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""
