"""A device that looks for races: the tests of the kernels are run once more on it, under ThreadSanitizer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from host_device import COMPILER, HostCuda

HUNTING = "DML_HPC_TEST_RACES"
"""Names a file while races are looked for; what was launched is written to it in the end."""
LAUNCHES = 2


class RaceHunter(HostCuda):
    """Takes the first launch of each kernel, and the next one on larger arrays, with threads that are watched.

    All other launches go the quick way, so that a whole test file takes a minute or so.
    """

    seen: ClassVar[dict[tuple[str, str], list[int]]] = {}

    def __init__(self) -> None:
        super().__init__(threads=False)
        self._watched = HostCuda(threads=True, sanitizer="thread")

    def launch(self, file: str, kernel: str, grid: Any, block: Any, *arguments: Any, shared_bytes: int = 0) -> None:
        sizes = self.seen.setdefault((file, kernel), [])
        size = sum(getattr(argument, "nbytes", 0) for argument in arguments)
        watched = len(sizes) < LAUNCHES and size > max(sizes, default=0)
        if watched:
            sizes.append(size)
        launch = self._watched.launch if watched else super().launch
        launch(file, kernel, grid, block, *arguments, shared_bytes=shared_bytes)


def run_watched(command: list[str], folder: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run Python with ThreadSanitizer loaded; return the process, and what the sanitizer found."""
    library = subprocess.run([COMPILER or "g++", "-print-file-name=libtsan.so"], capture_output=True, text=True)
    # It cannot start where addresses are too random for it.
    steady = ["setarch", "-R"] if shutil.which("setarch") else []
    options = f"log_path={folder / 'race'} exitcode=66 ignore_noninstrumented_modules=1 report_signal_unsafe=0"
    done = subprocess.run([*steady, sys.executable, *command], capture_output=True, text=True, env={
        **os.environ, "LD_PRELOAD": library.stdout.strip(), "TSAN_OPTIONS": options, "OMP_NUM_THREADS": "1",
        "DML_HPC_TEST_DEADLINE_S": "1000", **environment})
    return done, "\n".join(path.read_text() for path in sorted(folder.glob("race.*")))


def sanitizer_works(folder: Path) -> bool:
    """Return whether a Python with the sanitizer starts here."""
    if COMPILER is None:
        return False
    return run_watched(["-c", "import numpy"], folder)[0].returncode == 0


def write_launched() -> None:
    """Write down which instances have been launched, and how many of these launches were watched."""
    launched: dict[str, dict[str, int]] = {}
    for (file, kernel), sizes in RaceHunter.seen.items():
        launched.setdefault(file, {})[kernel] = len(sizes)
    Path(os.environ[HUNTING]).write_text(json.dumps(launched))
