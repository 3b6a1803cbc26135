"""A rank's part in writing checkpoints: a copy of its pieces, which a thread writes while the run goes on."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from copy import deepcopy
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.errors import JobError
from dml_hpc.mpi import on_root
from dml_hpc.store import checkpoint
from dml_hpc.store.checkpoint import Entry
from dml_hpc.store.state import State, Values

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

IDLE, WRITING, WRITTEN, FAILED = range(4)
"""What becomes of a rank's file; the folder is complete when every rank's is `WRITTEN`."""
_CHUNK_BYTES = 4 << 20


class Writer:
    """Collective. Writes checkpoints to ``folder``, of which the newest ``keep`` stay; ``about`` says what they are of.

    `begin` (collective in that every rank calls it at the same step), then `status` now and then, and when it is known
    that no rank's is `WRITING`, `settle` (collective). Only then may the next one begin.
    """

    def __init__(self, comm: Intracomm, folder: Path, keep: int, about: Values):
        self._comm, self.folder, self._keep, self._about = comm, folder, keep, about
        self._room = np.empty(0, np.uint8)
        self._written: Future[Entry] | None = None
        self._committed: Future[None] | None = None
        self._number, self._mark = on_root(comm, lambda: (checkpoint.next_number(folder) - 1, secrets.token_hex(4)))
        self._step, self._values = 0, Values()
        self.lost_s = 0.0
        """Seconds that the run has waited for copies."""
        self._thread = Background()

    @property
    def status(self) -> int:
        """Whether this rank has written its file."""
        if self._written is None:
            return IDLE
        if not self._written.done():
            return WRITING
        return WRITTEN if self._written.exception() is None else FAILED

    def begin(self, step: int, state: State) -> None:
        """Copy this rank's pieces, and begin to write them."""
        began = time.perf_counter()
        self._number, self._step = self._number + 1, step
        self._values = deepcopy(state.values)  # the run goes on meanwhile
        places, end = [], 0
        for piece in state.pieces:
            places.append((piece.name, piece.array.dtype.str, piece.start, len(piece.array), piece.total, end))
            end += -(-piece.array.nbytes // 64) * 64
        if end > len(self._room):
            self._room = np.zeros(end, np.uint8)
        for piece, place in zip(state.pieces, places, strict=True):
            self._room[place[-1]:place[-1] + piece.array.nbytes] = piece.array.view(np.uint8)
        entry = Entry(checkpoint.file_name(self._comm.rank), end, "", places, deepcopy(state.own))
        self._written = self._thread.submit(_write, self._partial(self._number), entry, self._room[:end])
        self.lost_s += time.perf_counter() - began

    def settle(self) -> str | None:
        """Collective, when no rank is `WRITING`: complete the checkpoint, or return why it cannot be, on every rank.

        Rank 0 completes it beside the run: see `failure`.
        """
        assert self._written is not None
        error = self._written.exception()
        entries = self._comm.gather(None if error is not None else self._written.result()) or []
        failures = self._comm.allgather(None if error is None else _told(error))
        failure = next((f"rank {rank}: {what}" for rank, what in enumerate(failures) if what is not None), None)
        self._written = None
        if self._comm.rank == 0:
            if failure is not None:
                shutil.rmtree(self._partial(self._number), ignore_errors=True)
            else:
                self._committed = self._thread.submit(self._commit, self._number, self._step, self._values,
                                                       entries)
        return failure

    def _partial(self, number: int) -> Path:
        return self.folder / checkpoint.partial_name(number, self._mark)

    def _commit(self, number: int, step: int, values: Values, entries: list[Entry]) -> None:
        try:
            checkpoint.commit(self._partial(number), number, step, self._about, values, entries, self._keep)
        except BaseException:
            shutil.rmtree(self._partial(number), ignore_errors=True)
            raise

    def failure(self, wait: bool = False) -> str | None:
        """On rank 0: return why the last one that `settle` had all files of was not completed; each is told once."""
        if self._committed is None or not (wait or self._committed.done()):
            return None
        error, self._committed = self._committed.exception(), None
        return None if error is None else _told(error)

    def finish(self) -> str | None:
        """Collective: wait until what has begun is complete; return why it could not be, on every rank."""
        failure, before = None, self.failure(wait=True)
        if self._comm.allreduce(self.status != IDLE):
            if self._written is not None:
                self._written.exception()
            failure = self.settle()
        return self._comm.bcast(failure or self.failure(wait=True) or before)

    def close(self, wait: bool = True) -> None:
        """Let go of the thread, when it has ended what it is at: nobody writes there afterwards.

        Without ``wait`` it is left to end with the process: a file system that hangs may never let it.
        """
        self._thread.close(wait)


class Background:
    """A thread that does one thing after the other, and that a process which ends does not wait for.

    Python's own pools do: a checkpoint that hangs in the file system would keep the process for ever.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="dml-hpc checkpoint", daemon=True)
        self._thread.start()

    def submit(self, do: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have ``do(*arguments)`` done after all that was submitted before; return what will tell what came of it."""
        future: Future[Any] = Future()

        def work() -> None:
            try:
                future.set_result(do(*arguments))
            except BaseException as error:
                future.set_exception(error)

        self._work.put(work)
        return future

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def close(self, wait: bool) -> None:
        """Take no more; with ``wait`` return when all that was submitted is done."""
        self._work.put(None)
        if wait:
            self._thread.join()


def _write(partial: Path, entry: Entry, content: np.ndarray) -> Entry:
    """Write a rank's file, and return its entry with the digest."""
    partial.mkdir(exist_ok=True)
    digest, path = hashlib.sha256(), partial / entry.file
    with open(path, "wb", buffering=0) as file:
        for first in range(0, len(content), _CHUNK_BYTES):
            chunk = memoryview(content[first:first + _CHUNK_BYTES])  # type: ignore[arg-type]
            digest.update(chunk)
            while len(chunk):
                chunk = chunk[file.write(chunk):]
        os.fsync(file.fileno())
    return entry._replace(sha256=digest.hexdigest())


def _told(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) if isinstance(error, JobError) else f"{type(error).__name__}: {error}"
