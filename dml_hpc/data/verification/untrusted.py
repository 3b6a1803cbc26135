"""Files that may be damaged, read by a process of their own: what crashes or hangs HDF5 harms that process alone."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from dml_hpc.data.verification.examine import examine
from dml_hpc.data.verification.findings import Expected, Fault, Findings
from dml_hpc.launch import environment_of_no_rank
from dml_hpc.watch import progressed

_READ = """
import sys
sys.path = [place for place in sys.path if place]  # not the folder it is started in, which may hold anything
from dml_hpc.data.verification.untrusted import read_asked
read_asked()
"""
READER = (sys.executable, "-c", _READ)
LEAST_S = 60.0
BYTES_A_SECOND = 10 << 20
"""Slower than any disk that is of use: who takes longer for a file hangs."""


def examine_apart(files: Sequence[tuple[Path, Expected]], least_s: float = LEAST_S) -> Iterator[Findings]:
    """Yield what `examine` finds in each file, without ``moments``; that a file crashes its reader is a fault of it."""
    done = 0
    while done < len(files):
        with _Child(files[done:]) as child:
            while done < len(files):
                path = files[done][0]
                found = child.next(least_s + (path.stat().st_size if path.is_file() else 0) / BYTES_A_SECOND)
                done += 1
                yield found
                if not child.alive:
                    break


class _Child:
    """A process that examines ``files`` one after the other."""

    def __init__(self, files: Sequence[tuple[Path, Expected]]):
        self._process = subprocess.Popen(READER, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.DEVNULL, text=True, env=environment_of_no_rank())
        self._lines: queue.Queue[str] = queue.Queue()
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stream:  # else `next` says how it ended
            stream.write(json.dumps([(str(path), expected) for path, expected in files]))
        threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True).start()
        self.alive = True

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put("")

    def next(self, limit_s: float) -> Findings:
        """Return what it found in the next file."""
        until = time.monotonic() + limit_s
        while True:
            progressed()
            try:
                line = self._lines.get(timeout=min(1, limit_s))
                break
            except queue.Empty:
                if time.monotonic() > until:
                    return self._failed(f"cannot be read: HDF5 hangs ({limit_s:.3g} s)")
        if line:
            table = json.loads(line)
            return Findings([Fault(*fault) for fault in table.pop("faults")], **table)
        code = self._process.wait()
        how = f"crashes HDF5 ({signal.Signals(-code).name})" if code < 0 else f"ends its reader (status {code})"
        return self._failed(f"cannot be read: it {how}")

    def _failed(self, problem: str) -> Findings:
        self.alive = False
        found = Findings()
        found.add("file", problem)
        return found

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def read_asked() -> None:
    """Examine the files that stdin names, and say on stdout what is found in each."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Some of HDF5's filters print what they think of a file.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for path, expected in json.load(sys.stdin):
        found = examine(Path(path), Expected(*expected))
        print(json.dumps({"faults": found.faults, "kind": found.kind, "rows": found.rows, "features": found.features}),
              file=answers, flush=True)

