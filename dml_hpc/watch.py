"""A deadline for collectives: who has not arrived is named, with the place in the code where it is.

A thread on every rank notes how long its rank has been waiting in a collective. When that passes the deadline, it
asks the other ranks' threads, over a communicator of their own, where they are: a rank that answers is slow or stuck,
and says where; one that does not answer is stopped, dead or cut off.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from dml_hpc.errors import AgreedError

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

DEFAULT_DEADLINE_S = 600.0
POLL_S = 0.2
ANSWER_S = 3.0
"""How long a rank may take to say where it is: its thread looks for questions every `POLL_S`."""
_ASK, _ANSWER = 1, 2


class State(NamedTuple):
    """Where a rank is: collectives entered so far, whether it waits, its line of code, seconds since it got on.

    ``place`` names the step too, where there are steps.
    """

    entered: int
    waiting: bool
    place: str
    idle_s: float


_watch: Watch | None = None


@contextmanager
def watching(comm: Intracomm, deadline_s: float, on_stall: Callable[[str], None],
             on_loss: Callable[[], None] | None = None) -> Iterator[None]:
    """Collective: watch over the block's collectives (see `waiting`); with one rank or a deadline of 0, do not.

    With ``on_loss`` there is no such exception; it is called, from the watching thread, when a rank has died and the
    library says so.
    """
    global _watch
    if comm.size == 1 or (deadline_s <= 0 and on_loss is None):
        yield
        return
    _watch = Watch(comm, deadline_s if deadline_s > 0 else math.inf, on_stall, on_loss or (lambda: None))
    try:
        yield
    except AgreedError:
        _watch.close()  # all ranks leave together
        raise
    except BaseException:
        _watch.end()
        raise
    else:
        _watch.close()
    finally:
        _watch = None


class waiting:  # noqa: N801 -- used as ``with waiting("a barrier"):``, many times a second
    """Mark the block as waiting for other ranks in ``what``: a collective, or (not ``counted``) a message.

    Only the outermost of nested blocks counts.
    """

    __slots__ = ("_counted", "_watch", "_what")

    def __init__(self, what: str, counted: bool = True):
        self._what, self._counted = what, counted
        self._watch: Watch | None = None

    def __enter__(self) -> None:
        watch = _watch
        if watch is not None and not watch.is_waiting:
            watch.enter(self._what, self._counted)
            self._watch = watch

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._watch is not None and error is None:  # after an error the rank is on its way out, and says so
            self._watch.leave()


def progressed() -> None:
    """Tell the watch that this rank, though others may wait for it, is getting on: their deadline starts anew."""
    if _watch is not None:
        _watch.active = time.monotonic()


@contextmanager
def at_work() -> Iterator[None]:
    """Tell the watch that the block may take long: those who wait for this rank have patience while it answers."""
    watch = _watch
    if watch is not None:
        watch.at_work = True
    try:
        yield
    finally:
        if watch is not None:
            watch.at_work, watch.active = False, time.monotonic()


def at_step(step: int) -> None:
    """Tell the watch that this rank begins step ``step`` (from 1) of what it does: it is getting on."""
    if _watch is not None:
        _watch.step = step
        _watch.active = time.monotonic()


class Watch:
    """Watches over this rank's collectives from its construction (collective) to `close` (collective).

    The calls between `enter` and `leave` must be the same ones on every rank. ``on_stall(message)`` is called from the
    watching thread, on the lowest rank that waits longer than ``deadline_s`` seconds.
    """

    def __init__(self, comm: Intracomm, deadline_s: float, on_stall: Callable[[str], None],
                 on_loss: Callable[[], None] = lambda: None):
        self._on_loss = on_loss
        self._comm = comm.Dup()  # made before it is watched: its messages are the watch's own
        self._deadline_s = deadline_s
        self._on_stall = on_stall
        self.active = time.monotonic()
        self.step: int | None = None
        self.at_work = False
        self._patience_from = 0.0
        self._entered = 0
        self._since: float | None = None
        self._what = ""
        self._condemned = False
        self._main = threading.get_ident()
        self._ended = threading.Event()
        self._sent: list = []
        self._thread = threading.Thread(target=self._look, name="dml-hpc watch", daemon=True)
        self._thread.start()

    @property
    def is_waiting(self) -> bool:
        """Whether this rank is between `enter` and `leave`; asked from the watching thread it is always true,
        as what that thread does is not watched.
        """
        return self._since is not None or threading.get_ident() != self._main

    def enter(self, what: str, counted: bool = True) -> None:
        """This rank begins to wait for others in ``what``, a collective if it is ``counted``."""
        self._entered += counted
        self._what = what
        self._since = self.active = time.monotonic()

    def leave(self) -> None:
        """The waiting is over."""
        if self._condemned:
            threading.Event().wait()  # the job is being ended: nothing may be finished meanwhile
        self._since = None
        self.active = time.monotonic()

    def close(self) -> None:
        """Collective: stop watching."""
        try:
            self._comm.Barrier()  # no rank stops answering while another may still ask
        finally:
            self.end()
        self._comm.Free()

    def end(self) -> None:
        """Stop watching, whatever others do."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        from mpi4py import MPI

        try:
            while not self._ended.wait(POLL_S):
                self._answer()
                since = self._since
                if since is not None and time.monotonic() - max(since, self._patience_from) > self._deadline_s:
                    self._accuse(self._entered)
        except MPI.Exception:
            self._on_loss()

    def _answer(self) -> None:
        """Tell every rank that has asked where this one is."""
        from mpi4py import MPI

        status = MPI.Status()
        while self._comm.Iprobe(MPI.ANY_SOURCE, _ASK, status):
            self._comm.recv(source=status.source, tag=_ASK)
            idle_s = 0.0 if self.at_work else time.monotonic() - self.active
            state = State(self._entered, self._since is not None, self._place(), idle_s)
            self._sent.append(self._comm.isend(state, status.source, _ANSWER))

    def _accuse(self, collective: int) -> None:
        """Find out who is missing in this rank's collective and say so, unless a lower rank will."""
        states = self._ask(collective)
        if self._since is None or self._entered != collective:
            return  # it has come to an end after all
        # A rank that waits elsewhere, for a message say, is held up itself and not to blame.
        here = [rank for rank, state in states.items() if state.waiting or state.entered > collective]
        busiest_s = min((state.idle_s for rank, state in states.items() if rank not in here), default=self._deadline_s)
        if busiest_s < self._deadline_s and len(states) == self._comm.size - 1:
            self._patience_from = time.monotonic() - busiest_s  # slow, but getting on: it has its deadline from there
            return
        if here and min(here) < self._comm.rank:
            return  # that rank speaks; if it cannot, the next look finds it silent
        missing = []
        for rank in range(self._comm.size):
            if rank == self._comm.rank or rank in here:
                continue
            if rank in states:
                missing.append(f"rank {rank} has not arrived, it is at {states[rank].place}")
            else:
                missing.append(f"rank {rank} does not answer: stopped, dead, or busy in compiled code")
        found = "; ".join(missing) or "all ranks are in it, so the transfer itself is this slow or stuck"
        step = "" if self.step is None else f", step {self.step}"
        self._condemned = True
        self._on_stall(f"{self._what} (collective {collective}{step}) did not end within {self._deadline_s:g} s: "
                       f"{found}; the job ends (--deadline sets the limit)")

    def _ask(self, collective: int) -> dict[int, State]:
        """Return where the other ranks say that they are, by rank."""
        from mpi4py import MPI

        others = [rank for rank in range(self._comm.size) if rank != self._comm.rank]
        self._sent += [self._comm.isend(collective, rank, _ASK) for rank in others]
        states: dict[int, State] = {}
        status = MPI.Status()
        until = time.monotonic() + ANSWER_S
        while len(states) < len(others) and time.monotonic() < until and not self._ended.wait(POLL_S / 10):
            self._answer()
            while self._comm.Iprobe(MPI.ANY_SOURCE, _ANSWER, status):
                states[status.source] = self._comm.recv(source=status.source, tag=_ANSWER)
        return states

    def _place(self) -> str:
        """Return the innermost line of our own that this rank's main thread is at."""
        frame = sys._current_frames().get(self._main)
        innermost = frame
        while frame is not None and "dml_hpc" not in frame.f_globals.get("__name__", ""):
            frame = frame.f_back
        frame = frame or innermost
        if frame is None:
            return "its end"
        step = "" if self.step is None else f", step {self.step}"
        return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name}){step}"
