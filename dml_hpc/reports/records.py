"""Run records: one JSON object a line, one line a run, appended; what reports are made of."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from dml_hpc.errors import UserError
from dml_hpc.store.live import utc

FORMAT = 1


def append_record(path: Path, result: dict[str, Any], arguments: list[str], started: float) -> None:
    """Append ``result`` (the ``--json`` object) to ``path`` with what is needed to repeat and to judge the run.

    Adds ``format``, ``started`` (UTC, ISO 8601), ``arguments`` (the command line after the program's name) and
    ``environment`` (see `environment`). ``started`` is in seconds since the epoch. One write, so that runs
    that end together do not mix their lines. Raises `UserError` when the file cannot be written.
    """
    record = {
        "format": FORMAT,
        "started": utc(started),
        "arguments": arguments,
        "environment": environment(),
        **result,
    }
    append_line(path, record)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a record as it is to ``path``, in one write. Raises `UserError` when the file cannot be written."""
    try:
        with path.open("ab", buffering=0) as file:
            file.write((json.dumps(record, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"cannot write the record {path}: {error.strerror}") from None


def read_records(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the records of all files in order; raises `UserError` naming file and line of what is no record."""
    records = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the record {path}: {getattr(error, 'strerror', None) or error}") from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                valid = isinstance(record, dict) and "command" in record and "ranks" in record
            except json.JSONDecodeError:
                valid = False
            if not valid:
                raise UserError(f"{path}:{number} is no run record (a JSON object written by --record)")
            records.append(record)
    return records


def environment() -> dict[str, Any]:
    """Return what a run's speed depends on: host, CPU, cores, threads a rank, versions, MPI library, Slurm's job."""
    versions: dict[str, str | None] = {}
    for name in ("numpy", "h5py", "numba", "mpi4py"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "versions": versions,
        "mpi": _mpi_library(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _mpi_library() -> str | None:
    """Name the MPI library if this run has started it; never start it for the record's sake."""
    mpi = sys.modules.get("mpi4py.MPI")
    return None if mpi is None else mpi.Get_library_version().split("\n")[0].strip()
