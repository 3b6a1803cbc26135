"""``dml-hpc top``: watch a run by the live file beside its record."""

from __future__ import annotations

import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dml_hpc.console import Console
from dml_hpc.errors import EXIT_JOB, EXIT_OK, UserError
from dml_hpc.reports.jobs import job
from dml_hpc.reports.live_view import ended, screen
from dml_hpc.reports.records import read_records
from dml_hpc.reports.scaling import analyse
from dml_hpc.store.live import FAILED, LIVE, is_gone, read_live

EVERY_S = 0.5
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""To a screen of its own without a cursor, and back: what stood in the terminal before stays."""


def run(console: Console, watched: Path, once: bool) -> dict[str, Any]:
    """Show the run whose ``--record`` file, or live file, is ``watched``, until it ends or the user leaves.

    With ``once``, ``--json``, or where stdout is no terminal: only what it looks like now. Returns ``live`` (what the
    live file says, None: no run is going on), ``quiet_s`` and ``gone`` (see `dml_hpc.reports.live_view.screen`) and
    ``record`` (of the run that has ended, None: none has). Exit code 1 where the run that was watched has failed.
    Raises `UserError` where there is neither a run nor a record.
    """
    record = watched.with_name(watched.name.removesuffix(LIVE))
    live_file = record.with_name(record.name + LIVE)
    live = read_live(live_file)
    if live is not None and is_gone(live) and _recorded(live, record):  # it ended before it could take the file away
        live = None
    if live is None and not record.exists():
        raise UserError(f"there is no run to watch: neither {record} nor {live_file.name} beside it exists; start the "
                        f"job with --record {record}")
    if console.stream is sys.stdout and sys.stdout.isatty() and live is not None and not once:
        live, left = _watch(console, live_file, live)
        if left:
            return {**_state(live), "record": None}
        if live is not None:  # it has failed, or died
            for line in screen(live, _quiet_s(live), is_gone(live), _size()[0]):
                console.say(line)
            return {**_state(live), "record": None, "exit_code": EXIT_JOB}
        return _finish(console, record)
    if live is None:
        return _finish(console, record)
    if console.stream is sys.stdout:
        for line in screen(live, _quiet_s(live), is_gone(live), _size()[0]):
            console.say(line)
    return {**_state(live), "record": None}


def _watch(console: Console, live_file: Path, live: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """Show ``live`` until the run ends; return what it said last (None: it has written its record), and whether the
    user left before."""
    colour = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    with _terminal() as keyboard:
        while True:
            gone = is_gone(live)
            width, height = _size()
            lines = screen(live, _quiet_s(live), gone, width, height - 1, colour)
            sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in [*lines, "q leaves"][:height - 1])
                             + "\x1b[J")
            sys.stdout.flush()
            if gone or live.get("state") == FAILED:
                return (live if _latest(live_file) is not None else None), False
            if keyboard is None:
                time.sleep(EVERY_S)
            elif select.select([keyboard], [], [], EVERY_S)[0]:
                typed = os.read(keyboard, 64)
                if b"q" in typed.lower():
                    return live, True
                if not typed:  # nobody is there any more
                    keyboard = None
            latest = _latest(live_file)
            if latest is None:
                return None, False
            live = latest


def _latest(live_file: Path) -> dict[str, Any] | None:
    """Return what the live file says now, None: it is gone. On NFS one that was just replaced may seem so once."""
    latest = read_live(live_file)
    if latest is None:
        time.sleep(EVERY_S / 5)
        latest = read_live(live_file)
    return latest


@contextmanager
def _terminal() -> Iterator[int | None]:
    """Take the terminal for the block; yield where keys come from, None: from nowhere."""
    keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    before = None if keyboard is None else termios.tcgetattr(keyboard)
    try:
        if keyboard is not None:
            tty.setcbreak(keyboard)
        sys.stdout.write(_ENTER)
        yield keyboard
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        if keyboard is not None and before is not None:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _finish(console: Console, record: Path) -> dict[str, Any]:
    """Say what came of the run that wrote its record last."""
    records = read_records([record]) if record.exists() else []
    if not records:
        console.say(f"the run is over, and {record} holds no record of it")
        return {"live": None, "quiet_s": None, "gone": False, "record": None, "exit_code": EXIT_JOB}
    last = records[-1]
    console.say(ended(last))
    own = next((group for group in analyse(records).groups if group.job == job(last)), None)
    if own is not None and own.explanation is not None:
        console.say(own.explanation.paragraph)
    return {"live": None, "quiet_s": None, "gone": False, "record": last, "exit_code": EXIT_OK}


def _recorded(live: dict[str, Any], record: Path) -> bool:
    """Say whether the run of ``live`` has written its record."""
    records = read_records([record]) if record.exists() else []
    return bool(records) and records[-1].get("started") == live.get("started")


def _state(live: dict[str, Any] | None) -> dict[str, Any]:
    if live is None:
        return {"live": None, "quiet_s": None, "gone": False}
    return {"live": live, "quiet_s": _quiet_s(live), "gone": is_gone(live)}


def _quiet_s(live: dict[str, Any]) -> float:
    updated = live.get("updated")
    return max(time.time() - updated, 0.0) if isinstance(updated, (int, float)) else 0.0


def _size() -> tuple[int, int]:
    width, height = shutil.get_terminal_size((100, 40))
    return width, height
