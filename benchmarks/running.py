"""What the benchmarks share: the public command and the peers, each a process of its own, as users start them."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from results_file import RESULTS, read_cases, write_results

TOOLS = Path(sys.executable).parent
PEERS = Path(__file__).parent / "peers"
CLUSTER = Path(__file__).parents[1] / "scripts" / "emulated_cluster.sh"
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A rank is a core."""


def arguments(description: str | None, repeats: int | None = None, draws: bool = False) -> argparse.ArgumentParser:
    """Return a parser of the options that every benchmark has; without ``repeats`` nothing is repeated.

    One that ``draws`` can do that from the results file alone.
    """
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help="rounds in which the contestants take turns")
    if draws:
        parser.add_argument("--draw", action="store_true", help="measure nothing: draw what is in the results file")
    parser.add_argument("--tiny", action="store_true", help="only see that it runs: small data, one round, no results")
    return parser


def dml_hpc(ranks: int, *words: object) -> dict[str, Any]:
    """Run ``dml-hpc WORDS`` on so many ranks and return its JSON object; `CalledProcessError` says what it said."""
    line = [TOOLS / "mpirun", "-n", ranks, TOOLS / "dml-hpc", *words, "--json", "--no-progress"]
    return _last_line([str(word) for word in line], ONE_THREAD)


def version(python: str, module: str) -> str | None:
    """Return the version of a peer's package ``module`` where that Python has it, else None."""
    code = f"import {module}, importlib.metadata as found; print(found.version({module!r}))"
    done = subprocess.run([python, "-c", code], text=True, capture_output=True)
    return done.stdout.strip() if done.returncode == 0 else None


def peer(python: str, script: str, *words: object, ranks: int | None = None) -> dict[str, Any]:
    """Run ``benchmarks/peers/SCRIPT`` by that Python and return the JSON object of its last line.

    With ``ranks``, on so many of one thread each, started by the ``mpirun`` beside that Python.
    """
    line = [python, str(PEERS / script), *map(str, words)]
    if ranks is None:
        return _last_line(line, dict(os.environ))
    return _last_line([str(Path(python).parent / "mpirun"), "-n", str(ranks), *line], ONE_THREAD)


def on_hosts(hosts: int, rate: str, *words: object) -> dict[str, Any]:
    """Run ``dml-hpc WORDS`` over so many emulated hosts, a rank each, and return its JSON object."""
    line = [CLUSTER, hosts, "--rate", rate, "--", TOOLS / "dml-hpc", *words, "--json", "--no-progress"]
    return _last_line([str(word) for word in line], {**ONE_THREAD, "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"})


def _last_line(line: list[str], environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(line, text=True, capture_output=True, env=environment)
    if done.returncode:
        sys.stderr.write(done.stderr)
        done.check_returncode()
    return json.loads(done.stdout.splitlines()[-1])


@njit(fastmath=True, nogil=True)
def added(values):
    """Return the sum of a flat array: one vectorised pass over memory, and no pass is faster."""
    total = values.dtype.type(0)
    for i in range(values.size):
        total += values[i]
    return total


def on_cores(cores: int, work: Callable[[int], object]) -> Callable[[], object]:
    """Return what does ``work(0)`` … ``work(cores − 1)`` at once, each on a thread (kernels release the GIL)."""
    pool = _threads(cores)
    return lambda: list(pool.map(work, range(cores)))


@cache
def _threads(cores: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores)


def medians(seconds: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the median of each contestant's timings."""
    return {who: float(np.median(times)) for who, times in seconds.items()}


def finish(name: str, cases: list[dict[str, Any]], notes: str, tiny: bool,
           draw: Callable[[list[dict[str, Any]], Path], None] | None = None) -> None:
    """Write the results file, ``draw`` its cases into an SVG beside it, and say where; a ``tiny`` run writes none."""
    if tiny:
        print("tiny: nothing is written")
        return
    print(write_results(name, cases, notes))
    if draw is not None:
        drawn(name, draw)


def drawn(name: str, draw: Callable[[list[dict[str, Any]], Path], None]) -> None:
    """Draw the cases of a results file that is there, and say where."""
    path = RESULTS / f"{name}.svg"
    draw(read_cases(name), path)
    print(path)
