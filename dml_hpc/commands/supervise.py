"""``dml-hpc supervise``: a team of ranks, started again as a whole when it dies, from its newest checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dml_hpc.console import Console
from dml_hpc.errors import EXIT_AGAIN, EXIT_OK, EXIT_USER, UserError
from dml_hpc.stopping import AGAIN_S
from dml_hpc.store import checkpoint

FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 60.0
"""Before the first restart, and before any; each pause is twice the one before."""
WITHOUT_PROGRESS = 2
"""So many deaths in a row that come no further than those before will not be mended by another start."""
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
MOST_END_S = 5.0
"""How long processes may take to end when they are killed."""


def run(console: Console, command: Sequence[str], max_restarts: int, pause: float = FIRST_PAUSE_S) -> dict[str, Any]:
    """Run ``command`` until it succeeds, was told to stop (75) or cannot be mended (2), or has died too often.

    Returns ``exit_code`` (that of the command), ``restarts`` and ``deaths``: a list of ``{exit_code, step, seconds}``,
    where ``step`` is the last that the run was known to have taken. ``pause`` is that before the first restart, in
    seconds. Raises `UserError` for a command that keeps no checkpoints.
    """
    folder = _folder(command)
    deaths: list[dict[str, Any]] = []
    furthest, stuck = None, 0
    with _Team(command) as team:
        while True:
            started = time.monotonic()
            code = team.run(resume=bool(deaths) or bool(checkpoint.found(folder)), again=bool(deaths))
            if code in (EXIT_OK, EXIT_USER, EXIT_AGAIN) or team.told:
                break
            step = progress(folder)
            deaths.append({"exit_code": code, "step": step, "seconds": round(time.monotonic() - started, 3)})
            where = f"after step {step:,}" if step >= 0 else "before its first step"
            console.say(f"died     {where} ({_told(code)}), {deaths[-1]['seconds']:.1f} s after its start")
            stuck = 0 if furthest is None or step > furthest else stuck + 1
            furthest = step if furthest is None else max(furthest, step)
            if stuck == WITHOUT_PROGRESS:
                console.say(f"gave up  {WITHOUT_PROGRESS + 1} teams in a row have not come further: see above what "
                            "they died of")
                break
            if len(deaths) > max_restarts:
                console.say(f"gave up  after {max_restarts} restart{'s' * (max_restarts != 1)} (--max-restarts)")
                break
            there = checkpoint.found(folder)
            pause_s = min(pause * 2 ** (len(deaths) - 1), MOST_PAUSE_S)
            console.say(f"restart  {len(deaths)} of {max_restarts}, in {pause_s:g} s, from "
                        f"{there[0] if there else 'the beginning'}")
            if team.stopped.wait(pause_s):
                code = EXIT_AGAIN
                break
    if team.told:
        warned = team.told in (signal.SIGTERM, signal.SIGUSR1)  # a batch system's: what was not saved is done again
        code = code if code == EXIT_OK else EXIT_AGAIN if warned else 128 + team.told
        there = checkpoint.found(folder)
        console.say(f"stopped  by {signal.Signals(team.told).name}; "
                    f"{f'{there[0]} stays' if there else 'there is no checkpoint yet'}")
    return {"exit_code": code, "restarts": team.starts - 1, "deaths": deaths, "checkpoint": str(folder)}


def progress(folder: Path) -> int:
    """Return the step that the run in a checkpoint folder was last known to have taken, −1: nothing is known."""
    try:
        return int((folder / checkpoint.PROGRESS).read_text())
    except (OSError, ValueError):
        return -1


def _folder(command: Sequence[str]) -> Path:
    """Return the checkpoint folder that the command names."""
    words = list(command)
    if not words:
        raise UserError("what is to be run? dml-hpc supervise -- mpirun -n 4 dml-hpc train … --checkpoint DIR")
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--checkpoint" and (equals or place + 1 < len(words)):
            return Path(value if equals else words[place + 1])
    if os.environ.get("DML_HPC_CHECKPOINT"):
        return Path(os.environ["DML_HPC_CHECKPOINT"])
    raise UserError("the command names no --checkpoint DIR, without which a restart would begin from nothing; add it "
                    "(what a --config file says is not looked at here)")


class _Team:
    """The command, which is one process or more; signals that come here meanwhile are passed on to it."""

    def __init__(self, command: Sequence[str]):
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[signal.Signals, Any] = {}
        self.starts = 0
        self.told = 0
        """The signal that told this process to stop, 0: none has."""
        self._told_s = 0.0
        self.stopped = threading.Event()

    def __enter__(self) -> _Team:
        self._before = {number: signal.signal(number, self._forward) for number in _FORWARDED}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, resume: bool, again: bool) -> int:
        """Run the command once; return its exit code, 128 + n for signal n.

        With ``resume`` it goes on from its newest checkpoint; ``again``: what it finds in its output's place a team
        before it has written.
        """
        settings = {"DML_HPC_RESUME": resume, "DML_HPC_OVERWRITE": again}
        environment = {**os.environ, **{name: "1" for name, wanted in settings.items() if wanted}}
        self.starts += 1
        try:
            # A session of its own: what a terminal sends to all comes by way of this process, once.
            self._process = subprocess.Popen(self._command, env=environment, start_new_session=True)
        except OSError as error:
            raise UserError(f"{self._command[0]} cannot be started: {os.strerror(error.errno or 0)}") from None
        if self.told:  # while it was being started
            self._process.send_signal(self.told)
        try:
            code = self._process.wait()
        finally:
            end_session(self._process.pid)
        return code if code >= 0 else 128 - code

    def _forward(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if number == self.told and now - self._told_s < AGAIN_S:
            return  # the same one, by another way
        # On TERM Open MPI's launcher ends ranks before they have saved anything; USR1 it passes on.
        gentle = number == signal.SIGTERM and not self.told
        self.told, self._told_s = number, now
        self.stopped.set()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR1 if gentle else number)


def end_session(session: int) -> None:
    """End what a dead launcher has left of its session: ranks of the old team must not write beside those of the new.

    Returns when all are gone, or cannot be ended.
    """
    until = time.monotonic() + MOST_END_S
    while (left := _of_session(session)) and time.monotonic() < until:
        for process in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        threading.Event().wait(0.01)


def _of_session(session: int) -> list[int]:
    """Return the processes of a session that still run."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError):
            fields = Path("/proc", name, "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(name))
    return found


def _told(code: int) -> str:
    if code > 128 and code - 128 in signal.valid_signals():
        return f"killed by {signal.Signals(code - 128).name}"
    return f"exit code {code}"
