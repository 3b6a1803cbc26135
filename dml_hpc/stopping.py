"""What signals mean to a process: one that says stop raises `Stopped`, or is noted for who looks."""

from __future__ import annotations

import signal
import sys
import time
from functools import partial

from dml_hpc.errors import Stopped
from dml_hpc.signals import STOPPING

_stopping = False


def stop_on_signals() -> None:
    """From now on the first INT, TERM or HUP raises `Stopped`, so that what is half-written is removed on the way out.

    Later ones are ignored: a rank often gets one from the launcher and again from its supervisor, and a second
    exception would interrupt the clean-up of the first. Python ignores exceptions in destructors and in what libraries
    call back, h5py for one: where that happens to `Stopped`, it is raised again a moment later.
    """
    global _stopping
    _stopping = False
    if sys.unraisablehook is not _ignored:
        global _others_ignored
        _others_ignored, sys.unraisablehook = sys.unraisablehook, _ignored
    for number in STOPPING:
        signal.signal(number, _stop_once)


AGAIN_S = 1.0
"""A signal that comes sooner after the first is the first one once more: launchers and supervisors both pass it on."""


class Asked:
    """Notes that TERM or USR1 (what a batch system warns with) has come, for who looks: ``number``, 0: none has.

    The rank can then end in good order. A second TERM raises `Stopped`, as do INT and HUP at once.
    """

    def __init__(self) -> None:
        self.number, self._since = 0, 0.0

    @classmethod
    def on_signals(cls) -> Asked:
        """Return the one that is told of signals from now on: there is one in a process."""
        told = getattr(signal.getsignal(signal.SIGUSR1), "__self__", None)
        if not isinstance(told, Asked):
            global _stopping
            told, _stopping = cls(), False
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, told._note)
        return told

    def __call__(self) -> int:
        return self.number

    def _note(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._since = number, now
        elif number == signal.SIGTERM and now - self._since > AGAIN_S:
            _stop_once(number, frame)


def _stop_once(number: int, frame: object) -> None:
    global _stopping
    if _stopping:
        return  # another came before all of them were ignored
    _stopping = True
    for other in STOPPING:
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)


MOMENT_S = 1e-3
"""A destructor or a callback takes less, mostly; if not, there is another moment."""
_others_ignored = sys.unraisablehook


def _ignored(told: sys.UnraisableHookArgs) -> None:
    """Have `Stopped` raised again, if that is the exception that Python ignores."""
    if not isinstance(stopped := told.exc_value, Stopped):
        _others_ignored(told)
        return
    signal.signal(signal.SIGALRM, partial(_stop_again, stopped.exit_code - 128))
    signal.setitimer(signal.ITIMER_REAL, MOMENT_S)


def _stop_again(number: int, alarm: int, frame: object) -> None:
    raise Stopped(number)
