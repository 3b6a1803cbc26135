"""Each launched rank runs as the child of a small supervisor, so that no death goes unnamed.

A rank that is killed cannot say so itself, and not every launcher names it (MPICH's prints a process id). Its
supervisor, which has imported nothing heavy and holds no MPI state, waits for it, names the rank and the signal,
and leaves with a non-zero status, on which the launcher ends the job.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import math
import os
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable

from dml_hpc.errors import EXIT_JOB
from dml_hpc.launch import Launch
from dml_hpc.signals import FORWARDED, STOPPING, hold_signals, release_signals
from dml_hpc.stopping import AGAIN_S

_FINISHED, _JOINED = b".", b"+"


def supervised(work: Callable[[], int], place: Launch, others_go_on: bool = False, start_s: float = 0.0) -> int:
    """Run ``work()`` in a child process and return its exit code, having named any death without a word.

    Call it before MPI, threads or NumPy start, as it forks. ``work`` must return its exit code after it has
    told the user of any failure itself; an ``os._exit``, a signal or a crash counts as a death without a word.
    The child ends, naming this rank, when its supervisor is killed. Signals that ask a job to stop or to save
    (TERM, INT, HUP, USR1, USR2, CONT) are passed on to the child, in which they are held until ``work`` releases them;
    a second one that says stop ends a rank for which MPI has not started yet. ``others_go_on`` says what a death means
    for the job once `joined` was called. That is to be within ``start_s`` seconds (0: no limit), else the rank ends:
    MPI's start waits for all ranks, and for one that has died or is stopped it may wait for ever.
    """
    alive_read, alive_write = os.pipe()  # the child sees its end close when the supervisor dies
    word_read, word_write = os.pipe()  # the child writes its last word here
    sys.stdout.flush()
    sys.stderr.flush()
    hold_signals()  # until the supervisor can pass them on, and `work` releases them in the child
    child = os.fork()
    if child == 0:
        os.close(alive_write)
        os.close(word_read)
        threading.Thread(target=_end_with_supervisor, args=(alive_read, place), daemon=True).start()
        _die_with_supervisor(signal.SIGKILL)
        global _word_write
        _word_write = word_write
        code = work()
        last_word(code)
        return code

    os.close(alive_read)
    os.close(word_write)
    supervisor = _Supervisor(place, child, word_read, others_go_on)
    # Not sys.exit: the supervisor shares the child's open files and exit handlers, which are the child's to run.
    os._exit(supervisor.wait(start_s))


FIRST_WORD_S = 0.5
"""Whoever waits in vain leaves the first word to the supervisor of a rank that is stopped."""


class _Supervisor:
    """What the parent of a rank's process knows of it: the signals that were passed on, and the words it has said."""

    def __init__(self, place: Launch, child: int, word_read: int, others_go_on: bool):
        self._place, self._child, self._word_read, self._others_go_on = place, child, word_read, others_go_on
        self._told: list[int] = []
        self._stopping_s = math.inf
        self._late = False
        self._words = bytearray()

    def wait(self, start_s: float) -> int:
        """Wait for the child to end; return the exit code of this process, after whom the launcher ends the job."""
        for number in FORWARDED:
            signal.signal(number, self._forward)
        signal.signal(signal.SIGALRM, self._too_long)
        release_signals()
        signal.setitimer(signal.ITIMER_REAL, start_s)
        _, status = os.waitpid(self._child, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._words.extend(os.read(self._word_read, 16))
        if status and (last := self._words.partition(_FINISHED)[2].strip(b"+.")):
            # `srun` tells the others to stop when the first rank ends, however good the order in which all do.
            return int(last)
        finished, go_on = _FINISHED in self._words, self._others_go_on and _JOINED in self._words
        code = self._named(status, finished, go_on)
        if os.WIFSIGNALED(status) and go_on:
            # Only of a process that was killed does the launcher tell the others; it knows none but this one.
            os.kill(os.getpid(), signal.SIGKILL)
        if code and not finished and not self._told and not go_on:
            self._end_job(code)
        return code

    def _named(self, status: int, finished: bool, go_on: bool) -> int:
        """Say how the child has ended, if it has not said so itself; return the exit code."""
        if os.WIFSIGNALED(status):
            killer = os.WTERMSIG(status)
            if killer not in self._told and not finished:
                hint = _HINTS.get(killer, "")
                _name(self._place, self._child, f"was killed by signal {killer} ({signal.Signals(killer).name}){hint}",
                      go_on)
            elif self._place.rank == 0 and not finished:  # every rank is told: one of them says so
                os.write(2, f"dml-hpc: the job was told to stop by {signal.Signals(killer).name}\n".encode())
            return 128 + killer
        code = os.WEXITSTATUS(status)
        if finished or self._told or code == _SUPERVISOR_DIED:
            return code
        _name(self._place, self._child, f"ended with status {code} in the middle of its work", go_on)
        return code or EXIT_JOB

    def _forward(self, number: int, frame: object) -> None:
        self._told.append(number)
        now = time.monotonic()
        if number in STOPPING:
            self._stopping_s = min(self._stopping_s, now)
            if now - self._stopping_s > AGAIN_S and not self._has_joined():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._child, signal.SIGKILL)  # while MPI starts it cannot see that it was told twice
                self._end_job(128 + number)
                os._exit(128 + number)
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(self._child, number)

    def _has_joined(self) -> bool:
        if select.select([self._word_read], [], [], 0)[0]:
            self._words.extend(os.read(self._word_read, 16))
        return _JOINED in self._words

    def _too_long(self, number: int, frame: object) -> None:
        if self._has_joined():
            return
        if _stopped(self._child):
            what = "is stopped (SIGSTOP), and MPI's start takes all ranks"
        elif not self._late:
            self._late = True
            signal.setitimer(signal.ITIMER_REAL, FIRST_WORD_S)
            return
        else:
            what = ("has waited too long for MPI to start, which takes all ranks: one is missing or stopped "
                    "(--deadline sets the limit)")
        _name(self._place, self._child, what)
        os.kill(self._child, signal.SIGKILL)
        self._end_job(EXIT_JOB)
        os._exit(EXIT_JOB)

    def _end_job(self, code: int) -> None:
        """Have the launcher end the job where it would not do so by itself."""
        _have_job_ended(code)
        if self._others_go_on:
            os.kill(os.getppid(), signal.SIGTERM)  # the others wait in MPI's start, and this launcher lets them


def _stopped(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def joined() -> None:
    """Tell the supervisor that MPI has started: all ranks are there."""
    _die_with_supervisor(0)
    if _word_write is not None:
        os.write(_word_write, _JOINED)


_SUPERVISOR_DIED = 70
_word_write: int | None = None


def last_word(code: int = 0) -> None:
    """Tell the supervisor that this rank has said all there is to say: how it ends now needs no comment.

    A ``code`` other than 0 is how it ends, whatever signal comes while it tidies up.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    wait_until_read(2)
    if _word_write is not None:
        os.write(_word_write, _FINISHED + (b"%d" % code if code else b""))


_HINTS: dict[int, str] = {
    signal.SIGKILL: ": by hand (kill -9), by the out-of-memory killer (dmesg tells) or by the job's memory limit",
    signal.SIGSEGV: ": a crash in compiled code",
    signal.SIGBUS: ": a mapped file was cut short, or /dev/shm is full",
}


def wait_until_read(pipe: int, limit_s: float = 2.0) -> None:
    """Return when the launcher has taken what was written to it, as it may drop what it finds unread at an abort."""
    until_s = time.monotonic() + limit_s
    unread = bytearray(4)
    with contextlib.suppress(OSError):  # no pipe: nothing to lose
        while time.monotonic() < until_s:
            fcntl.ioctl(pipe, termios.FIONREAD, unread)
            if not any(unread):
                return
            time.sleep(0.001)


def _name(place: Launch, process: int, what: str, others_go_on: bool = False) -> None:
    then = "the others go on" if others_go_on else "the job ends"
    line = f"dml-hpc: rank {place.rank} of {place.size} (process {process} on {os.uname().nodename}) {what}; {then}\n"
    os.write(2, line.encode())
    wait_until_read(2)


def _have_job_ended(code: int) -> None:
    """Tell MPICH's launcher that the job is over: it believes that a rank which ends before MPI has started is done.

    The others would wait for it for ever. The line is the one that MPI_Abort sends (PMI-1, as MPICH's Hydra speaks it).
    """
    wire = os.environ.get("PMI_FD", "")
    if wire.isdigit():
        with contextlib.suppress(OSError):
            os.write(int(wire), f"cmd=abort exitcode={code}\n".encode())


_PR_SET_PDEATHSIG = 1


def _die_with_supervisor(number: int) -> None:
    """Have the system send this process a signal when its supervisor dies (0: none).

    That is for MPI's start, in which no thread of this process runs.
    """
    with contextlib.suppress(AttributeError):  # no Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _end_with_supervisor(alive_read: int, place: Launch) -> None:
    os.read(alive_read, 1)  # returns only when the supervisor is gone
    _name(place, os.getpid(), "lost its supervisor, which was killed")
    _have_job_ended(_SUPERVISOR_DIED)
    os._exit(_SUPERVISOR_DIED)
