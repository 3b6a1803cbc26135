"""A thread that carries on a collective while its rank computes."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpi4py.MPI import Request

NAP_S = 2e-5
"""How long a waiting thread sleeps before it looks again."""
LONG_NAP_S = 3e-4
"""How long one in the background sleeps when it waits for a message: each look costs system calls, on a core that has
other work; what the network's buffers hold meanwhile arrives late by this at most."""
SPIN_S = 1e-3
"""How long a rank looks without sleeping, offering its core to others in between: it may have to share it with ranks
that have work, and with the network's own threads."""

_here = threading.local()


def in_background() -> bool:
    """Say whether the calling thread is one that carries on a collective: it naps where others spin."""
    return getattr(_here, "naps", False)


def take_naps() -> None:
    """Say that the calling thread is in the background from now on."""
    _here.naps = True


def nap() -> None:
    """Sleep a moment if the calling thread is in the background."""
    if in_background():
        time.sleep(NAP_S)


def finish(request: Request, spin_s: float = SPIN_S) -> None:
    """Wait for an MPI request: look often for ``spin_s``, then in naps; in the background, in naps from the start."""
    if request.Test():
        return
    spin_until = 0.0 if in_background() else time.perf_counter() + spin_s
    while not request.Test():
        if time.perf_counter() < spin_until:
            os.sched_yield()
        else:
            time.sleep(LONG_NAP_S if in_background() else NAP_S)


class Background:
    """One thread that runs one piece of work at a time."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._busy = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def start(self, work: Callable[[], Any]) -> None:
        """Run ``work()``; raises `ValueError` when the last work was not waited for."""
        if self._busy:
            raise ValueError("started twice: wait for the first to end")
        self._busy = True
        self._work.put(work)

    def wait(self) -> None:
        """Return when the work has ended; raise what it raised, or `ValueError` when none was started."""
        if not self._busy:
            raise ValueError("nothing was started")
        error = self._done.get()
        self._busy = False
        if error is not None:
            raise error

    def close(self) -> None:
        """End the thread, after the work that is under way."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        take_naps()
        while (work := self._work.get()) is not None:
            try:
                work()
            except BaseException as error:  # it belongs to the rank's main thread, which raises it
                self._done.put(error)
            else:
                self._done.put(None)
