"""The house: a file imports only from lower floors or its own room; what communicates is told its communicator."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = [
    {"errors", "layout", "files", "console", "launch", "launchers", "segments", "signals", "stopping", "supervise",
     "watch", "watched", "survival", "mpi", "memory", "config", "device", "cuda", "usage"},
    {"kernels"},
    {"data"},
    {"comm", "objectives", "optim", "store"},
    {"trainers", "decomposition"},
    {"reports", "checks", "batch"},
    {"commands"},
    {"cli", "verbs", "verb", "parameters", "inner", "__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted([*(ROOT / "dml_hpc").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "kernels" if parts[0] == "kernels" else Path(parts[1]).stem


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dml_hpc"):
            rooms = node.module.split(".")[1:2] or [alias.name for alias in node.names]
            names |= {room for room in rooms if not room.startswith("__version")}
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("dml_hpc.")}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_lower_floors_or_its_own_room(path):
    if path == ROOT / "dml_hpc" / "__init__.py":
        return
    own = room_of(path)
    for room in imported(path):
        assert room == own or FLOOR[room] < FLOOR[own] or (FLOOR[own] in (0, len(FLOORS) - 1)
                                                           and FLOOR[room] == FLOOR[own]), f"{own} imports {room}"


def test_the_world_is_named_in_one_file():
    named = [path for path in FILES if "COMM_WORLD" in path.read_text()]
    assert [path.name for path in named if "MPI.COMM_WORLD" in path.read_text()] == ["mpi.py"]


def test_importing_the_package_starts_nothing():
    import subprocess
    import sys

    heavy = "('mpi4py.MPI', 'numpy', 'numba', 'h5py', 'cupy', 'pyarrow', 'matplotlib')"
    code = f"import sys, dml_hpc.cli; sys.exit([m for m in {heavy} if m in sys.modules] or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
