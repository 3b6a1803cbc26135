"""What a person sees: rank 0 speaks, on stdout, or on stderr when stdout carries JSON."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterable
from typing import Any, TextIO


class Console:
    """Where a command's lines go. Every rank has one; only rank 0's prints.

    ``json`` keeps stdout free for the one JSON object; ``progress`` asks for bars (None: when stderr is a terminal).
    """

    def __init__(self, rank: int = 0, json: bool = False, progress: bool | None = None):
        self.speaks = rank == 0
        self.stream: TextIO = sys.stderr if json else sys.stdout
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal that knows no "→" is no reason to fail
        self.progress = sys.stderr.isatty() if progress is None else progress

    def say(self, line: str = "") -> None:
        """Print one line on rank 0."""
        if not self.speaks:
            return
        try:
            print(line, file=self.stream, flush=True)
        except BrokenPipeError:  # whoever read along (head, less) has left; the work goes on
            self.speaks = False
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())  # for what is still to be flushed at the end
            os.close(nowhere)

    def table(self, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
        """Print rows in aligned columns on rank 0; numbers are already formatted by the caller."""
        cells = [[str(cell) for cell in row] for row in [list(header), *[list(row) for row in rows]]]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        for row in cells:
            self.say("  ".join(cell.rjust(width) if i else cell.ljust(width)
                               for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip())

    def bar(self, total: int, label: str, done: int = 0) -> Progress:
        """Return a progress bar of ``total`` units, of which some are ``done``, for a loop; silent on other ranks."""
        return Progress(total, label, self.speaks and self.progress, done)


class Progress:
    """A progress bar that costs a clock read a step and redraws at most ten times a second."""

    def __init__(self, total: int, label: str, shown: bool, done: int = 0):
        self._bar: Any = None
        if shown:
            from tqdm import tqdm

            # Not tqdm's own thread or dynamic width: stderr is often a pipe through the launcher.
            self._bar = tqdm(total=total, initial=done, desc=label, ncols=88, mininterval=0, file=sys.stderr,
                             leave=True)
        self._next_s = 0.0
        self._pending = 0

    def advance(self, units: int, note: str = "") -> None:
        """Count ``units`` done; ``note`` (such as the loss) stands behind the bar."""
        if self._bar is None:
            return
        self._pending += units
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + 0.1
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(self._pending)
            self._pending = 0

    def close(self, note: str = "") -> None:
        """Draw the last state and end the line."""
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(self._pending)
            self._bar.close()
