"""Communicators for the tests that run under mpirun, on any number of ranks including one."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dml_hpc.commands import opening
from dml_hpc.launch import launch
from dml_hpc.mpi import world

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_TAKEN = 1 << 30
SIZE = launch().size


@pytest.fixture
def comm() -> Iterator[Intracomm]:
    """A duplicate of the world, freed after the test."""
    duplicate = world().Dup()
    yield duplicate
    duplicate.Free()


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Give back the signals that a run with checkpoints takes: the next test is told of none that came before it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(params=["world"] if SIZE == 1 else ["world", "reversed"] if SIZE == 2 else ["world", "parts"])
def comms(request: pytest.FixtureRequest) -> Iterator[Intracomm]:
    """In turn: the world, and the world in reverse, of three ranks and more in two parts; freed after the test.

    Of three ranks one is a part, which is alone though the world is larger; of four, both parts are pairs.
    """
    everyone = world()
    if request.param == "world":
        made = everyone.Dup()
    else:
        made = everyone.Split(everyone.rank % 2 if request.param == "parts" else 0, -everyone.rank)
    yield made
    made.Free()


@pytest.fixture
def folder(comm) -> Iterator[Path]:
    """A folder that all ranks see; pytest's own would be one a rank, tidied away by another."""
    path = Path(comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None))
    yield path
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(path)


@pytest.fixture
def room(monkeypatch) -> Callable[[int], int]:
    """Return a function: the ``memory_limit`` (bytes) under which this rank's rows may take a number of MiB.

    What the process takes is pinned, as it shrinks by chance when what earlier tests left behind is given back.
    """
    monkeypatch.setattr(opening, "resident_bytes", lambda: _TAKEN)
    return lambda mib: _TAKEN + (mib << 20)
