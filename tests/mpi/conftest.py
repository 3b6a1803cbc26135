"""Communicators for the tests that run under mpirun, on any number of ranks including one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from dml_hpc.mpi import world

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


@pytest.fixture
def comm() -> Iterator[Intracomm]:
    """A duplicate of the world, freed after the test."""
    duplicate = world().Dup()
    yield duplicate
    duplicate.Free()


@pytest.fixture(params=["world", "self", "reversed"])
def comms(request: pytest.FixtureRequest) -> Iterator[Intracomm]:
    """In turn: the world, each rank on its own, and the world in reverse; freed after the test."""
    everyone = world()
    if request.param == "world":
        made = everyone.Dup()
    elif request.param == "self":
        made = everyone.Split(everyone.rank)
    else:
        made = everyone.Split(0, -everyone.rank)
    yield made
    made.Free()
