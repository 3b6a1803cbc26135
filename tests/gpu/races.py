"""A device that looks for races: some tests of the kernels are run once more on it, under ThreadSanitizer."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
from host_device import COMPILER, HostCuda, build
from variants import VARIANTS

HUNTING = "DML_HPC_TEST_RACES"
"""Names a file while races are looked for; what was launched is written to it in the end."""
LAUNCHES = 2
ALSO = {"glm.cu": ["add_partials<double, float>"],
        "products.cu": [name for name in VARIANTS["products.cu"] if name.startswith("fused<float")]}
"""What else is watched: tests launch it before the rest."""


def form(instance: str) -> str:
    """Return what an instance shares with those that differ from it in the width of their numbers alone.

    Where they lie, and who waits for whom, does not depend on that: a race would be in all of them.
    """
    name, _, given = instance.partition("<")
    given = re.sub(r"\b(half|bfloat16|float|double)\b", "f", given)
    given = re.sub(r"\b((unsigned )?(short|int|long long))\b", "i", given)
    return f"{name}<{re.sub(r'[0-9]+', lambda n: '1' if n[0] == '1' else 'n', given)}".replace(" ", "")


@cache
def watched(file: str) -> tuple[str, ...]:
    """Return one instance for each `form` of a file's kernels, of float32 if there is one."""
    chosen: dict[str, str] = {}
    for instance in sorted(VARIANTS.get(file, []), key=lambda one: -len(re.findall(r"\bfloat\b", one))):
        chosen.setdefault(form(instance), instance)
    return tuple(sorted({*chosen.values(), *ALSO.get(file, ())}))


class _Few(HostCuda):
    """Has the instances that are watched, and builds all of a file at once."""

    def _kernel(self, file: str, kernel: str) -> tuple[Any, list[str]]:
        if (file, kernel) not in self._kernels:
            instances = watched(file)
            library = ctypes.CDLL(str(build(file, instances, self._flags)))
            for number, instance in enumerate(instances):
                describe = library[f"signature_{number}"]
                describe.restype = ctypes.c_char_p
                self._kernels[file, instance] = (library[f"launch_{number}"], describe().decode().split())
        return self._kernels[file, kernel]


class RaceHunter(_Few):
    """Takes the first launch of each `watched` instance, and the next on larger arrays, with threads under watch.

    Its other launches go the quick way, so that a whole test file takes some seconds; a test that launches what is not
    watched ends there.
    """

    seen: ClassVar[dict[tuple[str, str], list[int]]] = {}

    def __init__(self) -> None:
        super().__init__(threads=False)
        self._slow = _Few(threads=True, sanitizer="thread")
        self._slow.launched = self.launched

    def launch(self, file: str, kernel: str, grid: Any, block: Any, *arguments: Any, shared_bytes: int = 0) -> None:
        if kernel not in watched(file):
            pytest.skip(f"{kernel} of {file} is not watched: another of its form is")
        sizes = self.seen.setdefault((file, kernel), [])
        size = sum(getattr(argument, "nbytes", 0) for argument in arguments)
        # What is captured is launched later, and by this device.
        slow = self._captured is None and len(sizes) < LAUNCHES and size > max(sizes, default=0)
        if slow:
            sizes.append(size)
        launch = self._slow.launch if slow else super().launch
        launch(file, kernel, grid, block, *arguments, shared_bytes=shared_bytes)


def run_watched(command: list[str], folder: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run Python with ThreadSanitizer loaded; return the process, and what the sanitizer found."""
    # A copy of the environment, as this runs in threads: see `nvidia_compilers._run`.
    library = subprocess.run([COMPILER or "g++", "-print-file-name=libtsan.so"], capture_output=True, text=True,
                             env=dict(os.environ))
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
