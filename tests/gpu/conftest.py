"""Devices on the CPU, for all that has to be shown of the device's code without one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from host_device import COMPILER, HostCuda
from races import HUNTING, RaceHunter, write_launched


@pytest.fixture
def device() -> Iterator[HostCuda]:
    """A device whose blocks are made of real threads: for a kernel against its twin, on a few hundred rows."""
    yield _device(threads=True)


@pytest.fixture
def quick_device() -> Iterator[HostCuda]:
    """The same with fibers: for tests that launch many kernels."""
    yield _device(threads=False)


def _device(threads: bool) -> HostCuda:
    if COMPILER is None:
        pytest.skip("there is no g++ to compile the CUDA kernels for the CPU")
    return RaceHunter() if HUNTING in os.environ else HostCuda(threads=threads)


def pytest_sessionfinish() -> None:
    """Say what was launched, when races are looked for."""
    if HUNTING in os.environ:
        write_launched()
