"""Signals wait while there is nobody to take them: while Python imports, a rank forks, or MPI starts."""

from __future__ import annotations

import signal
from collections.abc import Iterable

ASKING = (signal.SIGTERM, signal.SIGUSR1)
"""What a batch system asks a job with to save what it has, and to end."""
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FORWARDED = (*ASKING, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCONT)
"""What a rank's supervisor passes on to it."""


def hold_signals(numbers: Iterable[signal.Signals] = FORWARDED) -> None:
    """Let signals wait until `release_signals`; threads that start meanwhile never take any."""
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def release_signals() -> None:
    """Take the signals that wait, which may raise `Stopped`, and from now on each as it comes."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
