"""Every instance of every CUDA kernel compiles for the GPUs of today, and hot ones keep their numbers in registers."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import nvidia_compilers
import pytest
from variants import HOT, VARIANTS

from dml_hpc.cuda import SOURCES

ARCHITECTURES = (80, 90, 100)
FILES = sorted(path.name for path in SOURCES.glob("*.cu"))


@pytest.fixture(scope="module")
def builds(request):
    """Start the builds that this run's tests ask for, two at a time, and return their futures."""
    if nvidia_compilers.compiler() is None:
        pytest.skip("there is neither nvcc nor NVRTC (pip install nvidia-cuda-nvrtc)")
    asked = [item.callspec.params for item in request.session.items if "builds" in getattr(item, "fixturenames", ())]
    with ThreadPoolExecutor(2) as pool:
        yield {(file, architecture): pool.submit(nvidia_compilers.compile_instances, file, VARIANTS.get(file, []),
                                                 architecture)
               for file, architecture in ((each["file"], each["architecture"]) for each in asked)}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("file", FILES)
def test_what_is_launched_is_listed(file):
    kernels = set(re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(",
                             (SOURCES / file).read_text()))
    listed = VARIANTS.get(file, [])
    assert {name.split("<")[0] for name in listed} == kernels
    assert len(set(listed)) == len(listed)
    assert set(HOT.get(file, [])) <= set(listed)


@pytest.mark.parametrize("file", FILES + sorted(path.name for path in SOURCES.glob("*.cuh")))
def test_no_header_of_the_toolkit_is_needed(file):
    for header in re.findall(r"#\s*include\s*(\S+)", (SOURCES / file).read_text()):
        assert (SOURCES / header.strip('"')).suffix == ".cuh", header


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_it_compiles_without_spills(builds, file, architecture):
    built = builds[file, architecture].result()
    assert built.succeeded, built.log[:6000]
    assert "warning" not in built.log, built.log[:6000]
    assert set(VARIANTS.get(file, [])) <= set(built.spilled)
    spilling = {name: built.spilled[name] for name in HOT.get(file, []) if built.spilled[name]}
    assert not spilling


def test_a_spill_would_be_seen(tmp_path):
    if nvidia_compilers.compiler() is None:
        pytest.skip("there is neither nvcc nor NVRTC")
    numbers = 200
    lines = ['#include "common.cuh"', "namespace dml {",
             "__global__ void __launch_bounds__(1024) spilling(float* x) {"]
    lines += [f"    float x{i} = x[{i} * 7 + threadIdx.x];" for i in range(numbers)]
    lines += ["    __syncthreads();", "    for (int round = 0; round < 9; ++round) {"]
    lines += [f"        x{i} = x{i} * x{(i * 7 + 1) % numbers} + x{(i * 3 + 2) % numbers};" for i in range(numbers)]
    lines += ["    }"] + [f"    x[{i} * 7 + threadIdx.x] = x{i};" for i in range(numbers)] + ["}", "}"]
    file = tmp_path / "spilling.cu"
    file.write_text("\n".join(lines))
    built = nvidia_compilers.compile_instances(str(file), ["spilling"], 90)
    assert built.succeeded, built.log
    assert built.spilled["spilling"] > 0
