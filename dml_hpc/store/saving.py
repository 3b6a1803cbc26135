"""What keeps a run from being lost: checkpoints in time, snapshots for survivors, an orderly end when told to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dml_hpc.errors import EXIT_AGAIN, AgreedError, UserError
from dml_hpc.store import checkpoint
from dml_hpc.store.checkpoint_writer import IDLE, WRITING, Writer
from dml_hpc.store.every import Every
from dml_hpc.store.in_memory import InMemory
from dml_hpc.store.live import Live
from dml_hpc.store.pulse import Pulse
from dml_hpc.store.state import Kept, State

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

LEAST_SNAPSHOT_S = 1.0
"""Between two snapshots in memory, at least; more where one takes long."""
SNAPSHOT_SHARE = 0.02
"""Of the time, at most, goes into snapshots."""


class Memory:
    """What a process remembers of a run when other ranks die: the last snapshots, and how the run has fared.

    It outlives the communicator. Ranks that took a snapshot together may not all have come to its end, so the one
    before is kept too. They are numbered, as there may be several in the middle of one step.
    """

    def __init__(self) -> None:
        self.snapshots: dict[int, InMemory] = {}
        self.ranks: list[int] = []
        """How many there were at each start of the run in this process: the first, and after each loss."""

    def keep(self, comm: Intracomm, state: State) -> None:
        """Collective: gather a snapshot on every rank."""
        number = max(self.snapshots, default=0) + 1
        room = self.snapshots.pop(min(self.snapshots)).vectors if len(self.snapshots) > 1 else None
        self.snapshots[number] = InMemory(comm, state, room)

    def newest(self, comm: Intracomm) -> InMemory | None:
        """Collective: return the newest snapshot that every rank has, None: there is none."""
        everywhere = [set(numbers) for numbers in comm.allgather(sorted(self.snapshots))]
        common = set.intersection(*everywhere)
        self.snapshots = {max(common): self.snapshots[max(common)]} if common else {}
        return self.snapshots[max(common)] if common else None


class Gauge(Protocol):
    """Something else that ranks tell each other when they meet."""

    def own(self) -> list[float]:
        """Return this rank's figures, as many as every other rank's."""

    def met(self, step: int, table: np.ndarray) -> None:
        """Take all ranks' figures (ranks, count) after ``step`` steps."""


class Saving:
    """Keeps the state of a run, and looks whether it is to stop. All ranks call its methods together.

    ``writer`` writes checkpoints ``every`` so often, None: there are none; ``memory`` takes snapshots, None: nobody
    would go on from them. ``asked()`` returns the signal that told this rank to stop, 0: none has. ``tell(line)``
    speaks to the user. ``kept`` is what the run begins from, None: its beginning. ``live`` is its live file, None:
    there is none.
    """

    def __init__(self, comm: Intracomm, tell: Callable[[str], None], writer: Writer | None = None,
                 every: Every | None = None, memory: Memory | None = None, asked: Callable[[], int] = lambda: 0,
                 kept: Kept | None = None, live: Live | None = None):
        self._live = live
        self._comm, self._tell, self._writer, self._memory, self._asked = comm, tell, writer, memory, asked
        self._every = every or Every()
        self.kept = kept
        self.pulse, self._inside, self._chunks = Pulse(comm), Pulse(comm), 0
        self.count = 0
        """Checkpoints that were begun."""
        self.failures = 0
        self._saved_s = self._snapped_s = time.monotonic()
        self._snapshot_s = 0.0
        self._progress = -1
        self._began = self._met = 0
        self.gauges: list[Gauge] = []
        """What else ranks tell each other when they meet; the same on every rank."""

    def start(self, step: int) -> None:
        """Begin to keep a run that has taken ``step`` steps."""
        self._began = self._met = step
        self.pulse.start(step)
        self._inside.start(self._chunks)
        self._saved_s = self._snapped_s = time.monotonic()
        if self._writer is not None and self._comm.rank == 0:
            with contextlib.suppress(OSError):
                self._progress = os.open(self._writer.folder / checkpoint.PROGRESS, os.O_WRONLY | os.O_CREAT, 0o666)
            self._note(step)

    @property
    def active(self) -> bool:
        """Whether ranks must meet: something is kept, or somebody wants to know how they get on."""
        return self._writer is not None or self._memory is not None or bool(self.gauges)

    def watch(self, step: int, steps: int | None, look: Callable[[], dict[str, Any]],
              spent: Callable[[], list[float]]) -> None:
        """Collective: keep the live file, where one is wanted, of a run from ``step`` on: see `Live.begin`."""
        if self._live is not None:
            again = self._memory is not None and len(self._memory.ranks) > 1
            self._live.begin(self._comm, step, steps, look, spent, again)
            self.gauges.append(self._live)

    def after(self, step: int, state: Callable[[], State]) -> None:
        """Collective, when ``step`` steps are taken: save what ``state()`` (collective) returns where it is time.

        Raises `AgreedError` with exit code 75 when a rank was told to stop, once the state is on disk.
        """
        every = self._every.steps
        forced = self._writer is not None and every is not None and step % every == 0
        if self.pulse.due(step) or forced:
            self._meet(self.pulse, step, step, state, forced)

    def meet(self, step: int, state: Callable[[], State]) -> None:
        """Collective: as `after`, but ranks meet in any case: for steps of which each may take long."""
        every = self._every.steps
        forced = self._writer is not None and every is not None and step // every > self._met // every
        self._met = step
        self._meet(self.pulse, step, step, state, forced)

    def pause(self, step: int, chunks: int, state: Callable[[], State]) -> int:
        """Collective, in the middle of a step, after at most ``chunks`` chunks on each rank: as `after`.

        Returns after how many chunks ranks are to meet again.
        """
        self._chunks += chunks
        self._meet(self._inside, self._chunks, step, state, forced=False)
        return self._inside.gap

    def _meet(self, pulse: Pulse, place: int, step: int, state: Callable[[], State], forced: bool) -> None:
        now, writer = time.monotonic(), self._writer
        due = writer is not None and self._every.seconds is not None and now - self._saved_s >= self._every.seconds
        snap = self._memory is not None and now - self._snapped_s >= max(
            LEAST_SNAPSHOT_S, self._snapshot_s / SNAPSHOT_SHARE)
        status = IDLE if writer is None else writer.status
        figures = [gauge.own() for gauge in self.gauges]
        table = pulse.meet(place, [self._asked(), status, due, snap, *chain(*figures)])
        first = 4
        for gauge, own in zip(self.gauges, figures, strict=True):
            gauge.met(step, table[:, first:first + len(own)])
            first += len(own)
        told, statuses = int(table[:, 0].max()), table[:, 1]
        due, snap = bool(table[0, 2]), bool(table[0, 3])  # rank 0's clock counts
        self._note(step)
        if writer is not None:
            self._look(writer, statuses)
            if (due or forced) and writer.status == IDLE and not told:
                self._begin(writer, step, state)
        if snap and self._memory is not None and not told:
            began = time.monotonic()
            self._memory.keep(self._comm, state())
            self._snapped_s = time.monotonic()
            self._snapshot_s = self._comm.bcast(self._snapped_s - began)
        if told:
            raise self._stopped(signal.Signals(told), step, state)

    def _look(self, writer: Writer, statuses: np.ndarray) -> None:
        """Complete what all ranks have written; warn of what could not be."""
        if self._comm.rank == 0:
            self._warn(writer.failure())
        if writer.status != IDLE and not (statuses == WRITING).any():
            self._warn(writer.settle())

    def _begin(self, writer: Writer, step: int, state: Callable[[], State]) -> None:
        writer.begin(step, state())
        self.count += 1
        self._saved_s = time.monotonic()

    def _warn(self, failure: str | None) -> None:
        if failure is not None:
            self.failures += 1
            self._tell(f"warning  a checkpoint could not be written ({failure}); the run goes on, and those before it "
                       "are as they were")

    def _stopped(self, told: signal.Signals, step: int, state: Callable[[], State]) -> AgreedError:
        """Collective: write a last checkpoint; return the error that ends the run."""
        if self._writer is None:
            return AgreedError(f"the job was told to stop by {told.name}", 0, 128 + told)
        failure = self.finish(step, state)
        if failure is not None:
            return AgreedError(f"{told.name} after step {step}: the last checkpoint could not be written ({failure}); "
                               f"{self._left(self._writer.folder)}", 0, EXIT_AGAIN)
        return AgreedError(f"{told.name} after step {step}: all is in {self._writer.folder}; the same command with "
                           "--resume goes on from here", 0, EXIT_AGAIN)

    @staticmethod
    def _left(folder: Path) -> str:
        with contextlib.suppress(UserError):
            there = checkpoint.found(folder)
            return (f"--resume goes on from {there[0]}" if there else
                    f"{folder} holds none, and what was done is lost")
        return "--resume goes on from the one before, if there is one"

    def finish(self, step: int, state: Callable[[], State]) -> str | None:
        """Collective: have what is under way written, and then the state as it is now; return why it could not be."""
        if self._writer is None:
            return None
        self._warn(self._writer.finish())
        self._begin(self._writer, step, state)
        failure = self._writer.finish()
        self._note(step)
        return failure

    def complete(self, step: int, state: Callable[[], State]) -> None:
        """Collective: the run has come to its end: keep that, so that it can be made longer.

        A run that was at its end when it was resumed is kept already.
        """
        if self._live is not None:
            self._live.complete(step)
        if self._writer is not None and isinstance(self.kept, checkpoint.OnDisk) and step == self._began:
            self._tell(f"resumed  at the end of the run: nothing is left to do after step {step:,}")
            return
        self._warn(self.finish(step, state))

    @property
    def lost_s(self) -> float:
        """Seconds that this rank has waited for copies of its state."""
        return 0.0 if self._writer is None else self._writer.lost_s

    def _note(self, step: int) -> None:
        if self._progress >= 0:
            with contextlib.suppress(OSError):  # a full disk is no reason to end
                os.pwrite(self._progress, f"{step:<20}\n".encode(), 0)

    def close(self, at_once: bool = False) -> None:
        """Let go of threads and files; ``at_once``: leave to the end of the process what a file system may hold up."""
        if self._progress >= 0 and not at_once:
            os.close(self._progress)
        if self._writer is not None:
            self._writer.close(wait=not at_once)
