"""The live file: how far a run has come, beside the record that it will write, for whoever wants to watch it.

Rank 0 writes it where ranks meet anyhow (see `dml_hpc.store.saving`), twice a second at most, and from a thread, so
that a slow file system holds nothing up. It is there while the run goes on; what a run leaves behind that has died
says where it was, and of which process.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as TooLong
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np
    from mpi4py.MPI import Intracomm

    from dml_hpc.store.checkpoint_writer import Background

LIVE = ".live"
"""What is added to the name of a record's file."""
FORMAT = "dml-hpc live 1"
RUNNING, FINISHED, FAILED = "running", "finished", "failed"
EVERY_S = 0.5
"""Between two writes, at least."""
FRESH_S = 5.0
"""A file that another process has written so lately is another run's, which keeps it."""
LAST_WORD_S = 1.0
"""So long the end of a run waits for its last word to be written."""
MOST_LOSSES = 64
"""Of more, every other one is dropped."""
PHASES = ("read", "compute", "communicate", "wait")


class Live:
    """The live file beside ``record`` of a ``command`` with ``arguments``, that ``started`` (seconds since the epoch).

    One on every rank; ranks tell rank 0 how they get on when they meet (`dml_hpc.store.saving.Gauge`). Nothing is
    written, and no thread started, before `begin`.
    """

    def __init__(self, record: Path, command: str, arguments: list[str], started: float):
        self.path = record.with_name(record.name + LIVE)
        self._about = {"format": FORMAT, "command": command, "arguments": arguments, "started": utc(started)}
        self._writes = False
        self._thread: Background | None = None
        self._pending: Future[Any] | None = None
        self._last: dict[str, Any] = {}
        self._losses: list[float] = []
        self._marks, self._spacing = 0, 1
        self._written_s = -math.inf

    def begin(self, comm: Intracomm, step: int, steps: int | None, look: Callable[[], dict[str, Any]],
              spent: Callable[[], list[float]], again: bool = False) -> None:
        """Collective: the run goes on from ``step`` of ``steps`` (None: nobody knows).

        ``again``: survivors of this run begin it anew, and what stands there is their own.

        ``look()`` returns ``epoch``, ``loss`` and ``examples`` (since `begin`, of all ranks; None: there are none),
        ``spent()`` this rank's seconds of each of `PHASES` and of collectives not divided into the last two yet.
        """
        hosts = comm.gather(platform.node())
        self._steps, self._look, self._spent = steps, look, spent
        self._from_step, self._began_s = step, time.monotonic()
        if comm.rank > 0 or hosts is None:
            return
        self._writes = again or not _of_another(self.path)
        if not self._writes:
            return
        if self._thread is None:
            from dml_hpc.store.checkpoint_writer import Background

            self._thread = Background()
        self._last = {**self._about, "ranks": comm.size, "hosts": hosts, "host": platform.node(), "pid": os.getpid(),
                      "process": process_start(os.getpid()), "steps": steps}
        self._tell(step, [dict.fromkeys(PHASES, 0.0) for _ in hosts], RUNNING)

    def own(self) -> list[float]:
        """Return where this rank's time went so far."""
        return self._spent()

    def met(self, step: int, table: np.ndarray) -> None:
        """On rank 0, write where the run is after ``step`` steps, if it is time; ``table`` has all ranks' `own`."""
        if not self._writes or time.monotonic() - self._written_s < EVERY_S:
            return
        if self._pending is not None and not self._pending.done():
            return
        undivided = table[:, 4]
        together = float(undivided.min())  # who arrives last waits for nobody
        split = [dict(zip(PHASES, (read, compute, sent + together, waited + more - together), strict=True))
                 for read, compute, sent, waited, more in table.tolist()]
        self._tell(step, split, RUNNING)

    def complete(self, step: int) -> None:
        """Write that all steps are taken; what is left to do is to write the result and the record."""
        if self._writes:
            self._tell(step, self._last["per_rank"], FINISHED)

    def fail(self, error: BaseException) -> None:
        """Write what ended the run."""
        if self._writes:
            self._last.update(state=FAILED, error=" ".join(str(error).split()) or type(error).__name__)
            self._write()
            self._wait()

    def remove(self) -> None:
        """Remove the file: the record says all there is to say."""
        if self._writes and self._thread is not None:
            self._pending = self._thread.submit(self.path.unlink, True)
            self._wait()
            self._writes = False

    def _tell(self, step: int, split: list[dict[str, float]], state: str) -> None:
        told = self._look()
        elapsed_s = time.monotonic() - self._began_s
        steps, examples, loss = step - self._from_step, told.get("examples"), told.get("loss")
        if loss is not None and not math.isfinite(loss):
            loss = None
        if loss is not None:
            self._marks += 1
            if self._marks % self._spacing == 0:
                self._losses.append(loss)
            if len(self._losses) > MOST_LOSSES:
                self._losses, self._spacing = self._losses[1::2], 2 * self._spacing
        left = None if self._steps is None else max(self._steps - step, 0)
        self._last.update(
            state=state, error=None, updated=time.time(), step=step, epoch=told.get("epoch"), loss=loss,
            losses=self._losses, elapsed_s=round(elapsed_s, 3),
            examples_per_s=examples / elapsed_s if examples and elapsed_s > 0 else None,
            eta_s=None if left is None or steps <= 0 else left * elapsed_s / steps,
            per_rank=[{phase: round(max(seconds, 0.0), 6) for phase, seconds in one.items()} for one in split])
        self._write()

    def _write(self) -> None:
        assert self._thread is not None
        self._written_s = time.monotonic()
        self._pending = self._thread.submit(_replace, self.path, json.dumps(self._last))

    def _wait(self) -> None:
        if self._pending is not None:
            with contextlib.suppress(OSError, TooLong):
                self._pending.result(LAST_WORD_S)


def utc(seconds: float) -> str:
    """Return ``seconds`` since the epoch as records tell when a run started."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def read_live(path: Path) -> dict[str, Any] | None:
    """Return what a live file says, None: there is none, or it is something else."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) and told.get("format") == FORMAT else None


def is_gone(live: dict[str, Any]) -> bool:
    """Say whether the process that wrote ``live`` is known to have ended: it ran on this host, and is not there."""
    pid = live.get("pid")
    if live.get("host") != platform.node() or not isinstance(pid, int):
        return False
    start = process_start(pid)
    return start is None or (live.get("process") is not None and start != live["process"])


def process_start(pid: int) -> int | None:
    """Return when a process began, in the kernel's ticks since the machine did, None: there is no such process.

    With this a process is told from a later one of the same number.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _of_another(path: Path) -> bool:
    """Say whether ``path`` is not for this run to replace: no live file, or that of a run which goes on."""
    try:
        fresh = time.time() - path.stat().st_mtime < FRESH_S
    except OSError:
        return False
    there = read_live(path)
    return there is None or (fresh and there.get("state") == RUNNING and not is_gone(there))


def _replace(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
