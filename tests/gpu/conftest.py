"""Devices on the CPU, for all that has to be shown of the device's code without one; DML_HPC_TEST_DEVICE=cuda: a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from host_device import COMPILER, HostCuda
from races import HUNTING, RaceHunter, write_launched

from dml_hpc.device import Device

HERE = Path(__file__).parent
ON_GPU = os.environ.get("DML_HPC_TEST_DEVICE") == "cuda"
SIZES = "processors", "block_threads", "shared_bytes", "cache_bytes"
"""What a test may change of its device."""

_LAUNCHED: set[tuple[str, str]] = set()
_LEFT_OUT: list[str] = []


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """A device whose blocks are made of real threads: for a kernel against its twin, on a few hundred rows."""
    yield from _device(request, threads=True)


@pytest.fixture
def quick_device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """The same with fibers: for tests that launch many kernels."""
    yield from _device(request, threads=False)


@pytest.fixture(scope="session")
def gpu() -> Device:
    """The GPU itself; its kernels are built once."""
    from dml_hpc.cuda import Cuda

    return Cuda(0)


def _device(request: pytest.FixtureRequest, threads: bool) -> Iterator[Device]:
    if ON_GPU:
        gpu = request.getfixturevalue("gpu")
        kept = {name: getattr(gpu, name) for name in SIZES}
        yield gpu
        for name, value in kept.items():
            setattr(gpu, name, value)
        return
    if COMPILER is None:
        pytest.skip("there is no g++ to compile the CUDA kernels for the CPU")
    found = RaceHunter() if HUNTING in os.environ else HostCuda(threads=threads)
    yield found
    _LAUNCHED.update(found.launched)


@pytest.fixture
def launched(request: pytest.FixtureRequest) -> set[tuple[str, str]]:
    """What the tests before this one have launched, all of this folder; skips where some of them did not run."""
    here = {item.path.name for item in request.session.items if item.path.parent == HERE}
    if ON_GPU or COMPILER is None:
        pytest.skip("nothing was launched on the CPU")
    wanted = {path.name for path in HERE.glob("test_*.py")} - {"test_compile.py", "test_races.py"}
    some = _LEFT_OUT or any("::" in argument for argument in request.config.args) or request.session.testsfailed
    if some or not here.issuperset(wanted):
        pytest.skip("not all of this folder's tests have run")
    return _LAUNCHED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep from a GPU what cannot be shown on one."""
    for item in items:
        of_the_shim = item.path.name in ("test_shim.py", "test_races.py") or (
            item.path.name == "test_cuda.py" and "quick_device" in getattr(item, "fixturenames", ()))
        if ON_GPU and item.path.parent == HERE and of_the_shim:
            item.add_marker(pytest.mark.skip(reason="it is about the device that is the CPU"))


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Remember that some tests do not run."""
    _LEFT_OUT.extend(item.nodeid for item in items if {"device", "quick_device"} & set(getattr(
        item, "fixturenames", ())) and item.path.parent == HERE)


def pytest_sessionfinish() -> None:
    """Say what was launched, when races are looked for."""
    if HUNTING in os.environ:
        write_launched()
