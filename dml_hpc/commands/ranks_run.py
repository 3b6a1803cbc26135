"""One run of ranks, to its end or until this process is told to stop; nothing of it outlasts the call."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dml_hpc.commands.supervise import end_session
from dml_hpc.errors import UserError

END_S = 12.0
"""So long a launcher that is told to end may take: emulated hosts give ranks ten seconds."""


class Done(NamedTuple):
    """The exit code, 128 + n after signal n, and what was said on stderr."""

    code: int
    said: str


def program() -> list[str]:
    """Return what starts this program from any folder: ``python -m`` would take another copy that lies in that one."""
    script = Path(sys.executable).with_name("dml-hpc")
    return [str(script)] if script.exists() else [sys.executable, "-m", "dml_hpc"]


def run_ranks(line: Sequence[str], environment: Mapping[str, str]) -> Done:
    """Run a launcher's ``line`` and wait. Where the waiting ends otherwise, by a signal, its ranks are ended, too."""
    with tempfile.TemporaryFile() as told:
        try:
            # A session of its own: what a terminal sends to all comes by way of this process, once.
            process = subprocess.Popen(line, env=dict(environment), stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=told, start_new_session=True)
        except OSError as error:
            raise UserError(f"{line[0]} cannot be started: {os.strerror(error.errno or 0)}") from None
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(END_S)
                except subprocess.TimeoutExpired:
                    process.kill()
            end_session(process.pid)
            process.wait()
        told.seek(0)
        return Done(code if code >= 0 else 128 - code, told.read().decode(errors="replace"))
