"""A Slurm job as a test sees it: what Slurm says of it, what it has printed, and waiting for either."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "slurm"
BESIDE = Path(sys.executable).parent
JOB_SETTINGS = {
    "PATH": f"{BESIDE}:{os.environ['PATH']}", "DML_HPC_SLURM": str(TEMPLATES), "DML_HPC_VENV": sys.prefix,
    # Nodes share one machine's cores: bound, all of them would sit on the first.
    "BIND": "no",
    # More ranks than cores; in a container everyone is root, and Open MPI wants that said twice.
    "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
"""The environment of jobs with this Python's MPI, beside what is there already."""
DEADLINE_S = 120.0
"""How long a job may take to come to where a test waits for it: many run at a time, on few cores."""
_LOOK_S = 0.2
RESTART_S = 2
"""A node refuses a job that comes back in the second in which it was ended there; Slurm itself waits two minutes."""

FULL = ("--algorithm", "sync", "--batch-size", "full", "--allreduce", "ring")
LONG = (*FULL, "--reproducible", "--epochs", "300")
"""Some seconds of training that ends in the same bits on any number of ranks, however often it is interrupted."""
FACTORISED = ("-k", "32", "--epochs", "400")
"""The same of ratings."""
ENDLESS = (*FULL, "--epochs", str(10**7))


def wait_until(found: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S,
               so_far: Callable[[], str] = str) -> Any:
    """Return what ``found()`` returns once that is true; fail when it is not in time."""
    until = time.monotonic() + deadline_s
    while not (result := found()):
        assert time.monotonic() < until, f"{what} was not seen in {deadline_s:g} s\n{so_far()}"
        threading.Event().wait(_LOOK_S)
    return result


class Job:
    """A job that was submitted from ``folder``."""

    def __init__(self, number: str, folder: Path):
        self.number, self.folder = number, folder

    def about(self) -> dict[str, str]:
        """Return what Slurm says of it, by ``JobState``, ``Restarts``, ``ExitCode``, ``NodeList`` …"""
        done = subprocess.run(["scontrol", "show", "job", "--oneliner", self.number], capture_output=True, text=True,
                              timeout=60)
        return dict(re.findall(r"(?:^| )([A-Za-z/:]+)=(\S*)", done.stdout))

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return "".join(path.read_text(errors="replace") for path in self.folder.glob(f"*-{self.number}.out"))

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints there are in the folder that the batch scripts choose by themselves."""
        return sorted(self.folder.glob(f"checkpoints/*-{self.number}/checkpoint-*"))

    def is_under_way(self) -> bool:
        """Whether ranks are known to have taken a step."""
        for path in self.folder.glob(f"checkpoints/*-{self.number}/progress"):
            with contextlib.suppress(ValueError, OSError):
                return int(path.read_text()) > 0
        return False

    def wait_until(self, found: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
        """Wait for something to be seen while this job goes on."""
        return wait_until(found, f"job {self.number}: {what}", deadline_s, lambda: f"{self.about()}\n{self.log}")

    def wait_for_state(self, *states: str) -> dict[str, str]:
        """Return what Slurm says of it when it is in one of the states; fail if it has ended in another."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", *states}
        about = self.wait_until(lambda: (now := self.about()).get("JobState") in ended and now, " or ".join(states))
        assert about["JobState"] in states, f"{about}\n{self.log}"
        return about

    def has_ended(self) -> bool:
        """Whether nothing of it runs, nor will."""
        return self.about().get("JobState") not in ("RUNNING", "PENDING", "COMPLETING", "CONFIGURING")

    def release(self) -> None:
        """Have it start again, when it is back in the queue."""
        self.wait_for_state("PENDING")
        # What a step of this name still tidies up would be the new one's.
        self.wait_until(lambda: not self._daemons(), "that its old steps are gone")
        subprocess.run(["scontrol", "update", f"JobId={self.number}", f"StartTime=now+{RESTART_S}"], check=True,
                       timeout=60)

    def _daemons(self) -> list[str]:
        """Return the processes, here, that look after its steps."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                found += [path.parent.name] * path.read_bytes().startswith(f"slurmstepd: [{self.number}.".encode())
        return found

    def record(self) -> dict[str, Any]:
        """Return the one run record that it has left."""
        path, = self.folder.glob("runs-*.jsonl")
        line, = path.read_text().splitlines()
        return json.loads(line)

    def left_behind(self) -> list[str]:
        """Return what is still there of what a batch script makes for the time of its job."""
        return [str(path) for name in ("checkpoints", "logs") for path in self.folder.glob(name)]
