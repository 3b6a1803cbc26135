"""Each launched rank runs as the child of a small supervisor, so that no death goes unnamed.

A rank that is killed cannot say so itself, and not every launcher names it (MPICH's prints a process id). Its
supervisor, which has imported nothing heavy and holds no MPI state, waits for it, names the rank and the signal,
and leaves with a non-zero status, on which the launcher ends the job.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from dml_hpc.errors import EXIT_JOB, Stopped
from dml_hpc.launch import Launch

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FINISHED = b"."


def supervised(work: Callable[[], int], place: Launch) -> int:
    """Run ``work()`` in a child process and return its exit code, having named any death without a word.

    Call it before MPI, threads or NumPy start, as it forks. ``work`` must return its exit code after it has
    told the user of any failure itself; an ``os._exit``, a signal or a crash counts as a death without a word.
    The child ends, naming this rank, when its supervisor is killed. Signals that ask a job to stop or to save
    (TERM, INT, HUP, USR1, USR2, CONT) are passed on to the child.
    """
    alive_read, alive_write = os.pipe()  # the child sees its end close when the supervisor dies
    word_read, word_write = os.pipe()  # the child writes its last word here
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(alive_write)
        os.close(word_read)
        threading.Thread(target=_end_with_supervisor, args=(alive_read, place), daemon=True).start()
        global _word_write
        _word_write = word_write
        code = work()
        last_word()
        return code

    os.close(alive_read)
    os.close(word_write)
    told: list[int] = []

    def forward(number: int, frame: object) -> None:
        told.append(number)
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(child, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    _, status = os.waitpid(child, 0)
    finished = os.read(word_read, 1) == _FINISHED
    if os.WIFSIGNALED(status):
        killer = os.WTERMSIG(status)
        if killer not in told:
            hint = _HINTS.get(killer, "")
            _name(place, child, f"was killed by signal {killer} ({signal.Signals(killer).name}){hint}")
        elif place.rank == 0 and not finished:  # every rank is told: one of them says so
            os.write(2, f"dml-hpc: the job was told to stop by {signal.Signals(killer).name}\n".encode())
        code = 128 + killer
    else:
        code = os.WEXITSTATUS(status)
        if not finished and not told and code != _SUPERVISOR_DIED:
            _name(place, child, f"ended with status {code} in the middle of its work")
            code = code or EXIT_JOB
    # Not sys.exit: the supervisor shares the child's open files and exit handlers, which are the child's to run.
    os._exit(code)


_SUPERVISOR_DIED = 70
_word_write: int | None = None


def last_word() -> None:
    """Tell the supervisor that this rank has said all there is to say: how it ends now needs no comment."""
    sys.stdout.flush()
    sys.stderr.flush()
    wait_until_read(2)
    if _word_write is not None:
        os.write(_word_write, _FINISHED)


_HINTS: dict[int, str] = {
    signal.SIGKILL: ": by hand (kill -9), by the out-of-memory killer (dmesg tells) or by the job's memory limit",
    signal.SIGSEGV: ": a crash in compiled code",
    signal.SIGBUS: ": a mapped file was cut short, or /dev/shm is full",
}


def stop_on_signals() -> None:
    """From now on the first INT, TERM or HUP raises `Stopped`, so that what is half-written is removed on the way out.

    Later ones are ignored: a rank often gets one from the launcher and again from its supervisor, and a second
    exception would interrupt the clean-up of the first.
    """
    for number in _STOPPING:
        signal.signal(number, _stop_once)


def _stop_once(number: int, frame: object) -> NoReturn:
    for other in _STOPPING:
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)


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


def _name(place: Launch, process: int, what: str) -> None:
    line = (f"dml-hpc: rank {place.rank} of {place.size} (process {process} on {os.uname().nodename}) {what}; "
            "the job ends\n")
    os.write(2, line.encode())
    wait_until_read(2)


def _end_with_supervisor(alive_read: int, place: Launch) -> None:
    os.read(alive_read, 1)  # returns only when the supervisor is gone
    _name(place, os.getpid(), "lost its supervisor, which was killed")
    os._exit(_SUPERVISOR_DIED)
