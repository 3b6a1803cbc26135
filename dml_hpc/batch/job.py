"""A job in Slurm's hands: submitted, looked at, followed to its end."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple, TextIO

from dml_hpc.batch.cluster import ask
from dml_hpc.errors import EXIT_JOB, EXIT_OK, JobError, UserError

# The states in which a job stays; of the others Slurm makes something else. docs: squeue, JOB STATE CODES.
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE",
          "PREEMPTED")
LOOK_S, LOOK_LATER_S = 2.0, 10.0
"""How often the controller is asked: in the first minute, and then. Its log is read more often: that asks nobody."""
READ_S = 0.5
PASSING = ("NODE_FAIL", "PREEMPTED")
"""A job that is to start again may be in one of these for a moment."""
SILENT_S = 600.0
"""So long the controller may be silent before a job is no longer followed."""


class Seen(NamedTuple):
    """What Slurm says of a job. ``code`` is its exit code, ``signal`` the signal that ended it, 0: none."""

    state: str
    reason: str
    restarts: int
    code: int
    signal: int
    nodes: str
    log: Path | None

    @property
    def ended(self) -> bool:
        """Whether nothing more will become of it."""
        return self.state in _ENDED

    @property
    def exit_code(self) -> int:
        """The job's exit code as a shell tells it; not 0 for a job that was ended, or never began."""
        if self.state == "COMPLETED":
            return EXIT_OK
        return self.code or (128 + self.signal if self.signal else EXIT_JOB)


def submit(script: Path, decided: Collection[str]) -> str:
    """Submit a script and return the job's number. Raises `UserError` with Slurm's words where it is refused.

    ``decided`` are options of sbatch that the script sets, which the environment is not to change.
    """
    said = ask(["sbatch", "--parsable", str(script.absolute())], environment_for(decided))
    number = said.strip().splitlines()[-1].partition(";")[0] if said.strip() else ""
    if not number.isdigit():
        raise UserError(f"sbatch gave no number of a job but {said.strip()!r}")
    return number


def tried(script: str, decided: Collection[str]) -> str:
    """Have Slurm itself look at a script's text without submitting it; return why it could not start now, "": it could.

    Raises `UserError` for what Slurm would refuse.
    """
    try:
        ask(["sbatch", "--test-only"], environment_for(decided), told=script)
    except UserError as error:
        why = re.sub(r"^(sbatch: error|allocation failure): ", "", str(error))
        if "configuration is not available" in why:  # what is asked for exists, and may be back when the job starts
            return why
        raise UserError(f"Slurm refuses the script: {why}") from None
    return ""


_VARIABLES = {"time": "TIMELIMIT", "mem": "MEM_PER_NODE", "chdir": ""}


def environment_for(decided: Collection[str]) -> dict[str, str]:
    """Return the environment without what sbatch would take for options that a script sets: there it goes before."""
    hidden = {"SBATCH_" + _VARIABLES.get(name, name.upper().replace("-", "_")) for name in decided}
    return {key: value for key, value in os.environ.items() if key not in hidden}


def look(job: str) -> Seen | None:
    """Return what Slurm says of a job, None: it has forgotten it. Raises `UserError` where it does not answer."""
    try:
        said = ask(["scontrol", "show", "job", job])
    except UserError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return read(said, job)


def read(said: str, job: str) -> Seen | None:
    """Return what ``scontrol show job`` has said. What a user may name freely stands in lines of its own."""
    state = re.search(r"^\s+JobState=(\S+) Reason=(.*?) Dependency=", said, re.MULTILINE)
    course = re.search(r"^\s+Requeue=\d+ Restarts=(\d+) .*ExitCode=(\d+):(\d+)", said, re.MULTILINE)
    if state is None or course is None:
        return None
    nodes = re.search(r"^\s+NodeList=(\S+)", said, re.MULTILINE)
    log = re.search(r"^\s+StdOut=(.+)$", said, re.MULTILINE)
    restarts, code, number = map(int, course.groups())
    return Seen(state[1], "" if state[2] == "None" else state[2], restarts, code, number,
                "" if nodes is None or nodes[1] == "(null)" else nodes[1],
                None if log is None else Path(log[1].replace("%j", job)))


class Log:
    """A job's log, shown as it grows; it may not be there yet."""

    def __init__(self, show: Callable[[str], None]):
        self._show = show
        self._path: Path | None = None
        self._file: TextIO | None = None
        self._partial = ""

    def read_from(self, path: Path | None) -> None:
        """Say where it is."""
        if path != self._path:
            self.close()
            self._path = path

    def show(self) -> bool:
        """Show the lines that were added; return whether there was anything new."""
        if self._path is None:
            return False
        try:
            if self._file is None:
                self._file = self._path.open(errors="replace")
            elif self._path.stat().st_size < self._file.tell():  # begun anew
                self._file.seek(0)
            text = self._file.read()
        except OSError:
            return False
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            self._show(line)
        return bool(text)

    def close(self) -> None:
        """Show what is left, a line that has no end."""
        if self._partial:
            self._show(self._partial)
        self._partial = ""
        if self._file is not None:
            self._file.close()
            self._file = None


def follow(job: str, say: Callable[[str], None], pause_s: float = LOOK_S) -> Seen:
    """Say what becomes of a job, and show its log, until it has ended; return what Slurm says of it then.

    Raises `JobError` when Slurm has forgotten the job or is silent for long.
    """
    log, pause = Log(say), threading.Event()
    told, seen, silent_s, looks = "", None, 0.0, 0
    try:
        while True:
            wait_s = pause_s if looks * pause_s < 60 else max(pause_s, LOOK_LATER_S)
            looks += 1
            try:
                now = look(job)
            except UserError as error:
                if not silent_s:
                    say(f"silence  {error}")
                silent_s += wait_s
                if silent_s > SILENT_S:
                    raise JobError(f"{error}; job {job} may go on: look with `squeue -j {job}`") from None
            else:
                silent_s = 0.0
                if now is None:
                    raise JobError(f"Slurm no longer knows job {job}: `sacct -j {job}` may tell how it ended")
                if seen is not None and now.restarts > seen.restarts:
                    say(f"requeued job {job} is to start again, start {now.restarts + 1}")
                ended = now.ended and (now.state not in PASSING or (seen is not None and seen.state == now.state))
                seen = now
                log.read_from(now.log)
                while log.show() and ended:
                    pause.wait(READ_S)
                line = _told(now) if ended or not now.ended else ""
                if line and line != told:
                    say(f"state    {line}")
                    told = line
                if ended:
                    return now
            for _ in range(max(1, round(wait_s / READ_S))):
                pause.wait(min(READ_S, wait_s))
                log.show()
    finally:
        log.close()


def _told(seen: Seen) -> str:
    """Return a state in words, "": it is one of those that pass."""
    state = seen.state.lower().replace("_", " ")
    if seen.state == "RUNNING":
        return f"running on {seen.nodes}"
    if seen.state == "PENDING":
        return f"pending ({seen.reason})" if seen.reason else "pending"
    if seen.ended:
        why = f" ({seen.reason})" if seen.reason and seen.state != "COMPLETED" else ""
        return f"{state}{why}, exit code {seen.exit_code}"
    return "" if seen.state in ("COMPLETING", "CONFIGURING", "REQUEUED") else state
