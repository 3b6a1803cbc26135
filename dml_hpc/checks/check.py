"""What a check answers, and how it runs what may crash or hang: in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from typing import NamedTuple

from dml_hpc.launch import environment_of_no_rank

OK, ABSENT, BROKEN = "ok", "absent", "broken"
TIMEOUT_S = 60.0


class Check(NamedTuple):
    """What was found: ``status`` is "ok", "absent" or "broken"; ``fix`` is the line that mends it, or None.

    Unless a ``required`` part is ok, training does not work on this machine.
    """

    name: str
    status: str
    detail: str
    fix: str | None = None
    required: bool = False


class Outcome(NamedTuple):
    """How a process ended: its exit code (None: killed when its time was up) and its output, stripped."""

    code: int | None
    out: str
    err: str

    @property
    def reason(self) -> str:
        """Return why it failed, in one line."""
        if self.code is None:
            return "gave no answer in time"
        if self.code < 0:
            return f"died of {signal.Signals(-self.code).name}"
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip(" -*\t")]
        # Python's last line names the error; a launcher's first one does.
        errors = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception|Interrupt)\b", line)]
        return (errors[-1] if errors else lines[0] if lines else f"ended with status {self.code}")[:200]


def call(command: list[str], timeout_s: float = TIMEOUT_S) -> Outcome:
    """Run a command as no part of any MPI job; it and its children are killed when the time is up."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, errors="replace",
                                   env=environment_of_no_rank(), start_new_session=True)
    except OSError as error:
        return Outcome(127, "", f"{command[0]}: {error.strerror}")
    try:
        out, err = process.communicate(timeout=timeout_s)
        return Outcome(process.returncode, out.strip(), err.strip())
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return Outcome(None, "", "")


def python(code: str) -> Outcome:
    """Run ``code`` in a Python of its own, where a crash does no harm."""
    return call([sys.executable, "-c", code])
