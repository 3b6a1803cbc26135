"""What one GPU does beside what its memory can do, measured in the same run.

    python benchmarks/gpu.py

Bandwidths are measured here: ``read`` is a reduction over an array, ``copy`` a copy on the device (bytes read and
written). Contestants take turns; ratios are of medians.

- gradient: the fused dense logistic gradient, against reading X and against CuPy's two products, X·w and Xᵀ·r
- reduce and update: the sum of k buffers with a momentum step, against copying
- node: two ranks on one GPU (by mpirun), ``hierarchical`` by CUDA IPC, against what its bytes take, and against staging
- svd: a pass of randomized SVD, AᵀAV, against CuPy's two products
- rating sgd, als: epochs of `mf`, see benchmarks/gpu_factors.py
- step: a whole step of `train`, against its gradient alone (captured: not what launching it takes), at several sizes
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_factors
import numpy as np
from running import ONE_THREAD, TOOLS, arguments, dml_hpc, finish, medians

from dml_hpc.commands import train
from dml_hpc.console import Console
from dml_hpc.device import Array, Device, open_device
from dml_hpc.kernels.cuda import glm, products, sums
from dml_hpc.kernels.losses import LOGISTIC
from dml_hpc.mpi import world
from dml_hpc.optim import open_optimiser
from dml_hpc.optim.settings import OptimiserSettings
from dml_hpc.reports.timing import calls_per_timing, interleave

LEAST_S = 0.05
"""A timing lasts so long at least: the clock is the host's."""


@dataclass(frozen=True)
class Sizes:
    """How much each case works on."""

    gradient_bytes: int
    features: tuple[int, ...]
    vector_bytes: int
    svd: tuple[int, int, int]
    steps: tuple[tuple[int, int, int], ...]


FULL = Sizes(8 << 30, (256, 1024, 4096, 8192), 256 << 20, (2_000_000, 512, 20),
             ((2 << 30, 1024, 100), (64 << 20, 1024, 1000), (1 << 20, 256, 2000)))
TINY = Sizes(64 << 10, (64,), 16 << 10, (300, 24, 4), ((32 << 10, 16, 3),))


def contestant(device: Device, work: Callable[[], object], least_s: float) -> Callable[[], float]:
    """Return a contestant that returns the seconds of one call of ``work``, which queues work on the device."""
    work()
    device.synchronize()
    started = time.perf_counter()
    work()
    device.synchronize()
    calls = calls_per_timing(time.perf_counter() - started, least_s)

    def timed() -> float:
        device.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            work()
        device.synchronize()
        return (time.perf_counter() - began) / calls

    return timed


def gradient(device: Device, features: int, n_bytes: int, repeats: int, least_s: float) -> dict[str, Any]:
    """Measure one width of X (float32)."""
    xp, rows = device.xp, n_bytes // (4 * features)
    rng = np.random.default_rng(features)
    block = rng.standard_normal((min(rows, 4096), features), dtype=np.float32)
    X = device.empty((rows, features), np.float32)
    for start in range(0, rows, len(block)):
        device.put(block[:min(len(block), rows - start)], X[start:start + len(block)])
    y = device.put((rng.random(rows) < 0.3).astype(np.float32))
    w = device.put((rng.standard_normal(features + 1) / np.sqrt(features)).astype(np.float32))
    found, loss = device.zeros(features + 1, np.float32), device.zeros(1, np.float64)
    flat = X.reshape(-1)

    def two_products() -> Array:
        score = X @ w[:-1]
        score += w[-1]
        residual = 1 / (1 + xp.exp(-score)) - y
        return residual @ X

    def fused() -> None:
        found[:] = 0
        glm.loss_and_gradient(device, LOGISTIC, 1.0, X, y, None, None, w, found, loss)

    fused()
    exact = device.get(two_products()).astype(np.float64)
    error = float(np.linalg.norm(device.get(found)[:-1] - exact) / np.linalg.norm(exact))
    seconds = interleave({who: contestant(device, work, least_s) for who, work in {
        "fused": fused, "two products": two_products, "read": lambda: flat.sum()}.items()}, repeats)
    median = medians(seconds)
    return {"case": "gradient", "features": features, "rows": rows, "bytes": X.nbytes, "relative_difference": error,
            "of_read_bandwidth": median["read"] / median["fused"],
            "two_products_over_fused": median["two products"] / median["fused"], "seconds": listed(seconds)}


def reduce_and_update(device: Device, buffers: int, n_bytes: int, repeats: int, least_s: float) -> dict[str, Any]:
    """Measure the sum of ``buffers`` vectors of float32, fused with a momentum step, against a copy on the device."""
    size = n_bytes // 4
    vectors = [device.zeros(size, np.float32) for _ in range(buffers)]
    weights, summed, other = (device.zeros(size, np.float32) for _ in range(3))
    lazy = sums.LazySum(device, vectors)
    optimiser = open_optimiser(OptimiserSettings("sgd", 0.9), (0, size), np.dtype(np.float32), [(0, size)],
                               device=device)

    def fused() -> None:
        optimiser.update(weights, lazy, 0, 1.0, 0.1, 1)

    def copy() -> None:
        other[:] = summed

    seconds = interleave({"fused": contestant(device, fused, least_s), "copy": contestant(device, copy, least_s)},
                         repeats)
    median = medians(seconds)
    moved = (buffers + 4) * n_bytes  # besides, weights and velocity are read and written
    return {"case": "reduce and update", "buffers": buffers, "bytes": n_bytes, "moved_bytes": moved,
            "of_copy_bandwidth": (moved / median["fused"]) / (2 * n_bytes / median["copy"]), "seconds": listed(seconds)}


def svd(device: Device, rows: int, features: int, k: int, repeats: int, least_s: float) -> dict[str, Any]:
    """Measure one pass AᵀAV of randomized SVD as the project does it against CuPy's two products."""
    rng, width = np.random.default_rng(0), k + 8
    X = device.empty((rows, features), np.float32)
    block = rng.standard_normal((min(rows, 4096), features), dtype=np.float32)
    for start in range(0, rows, len(block)):
        device.put(block[:min(len(block), rows - start)], X[start:start + len(block)])
    V = device.put(np.linalg.qr(rng.standard_normal((features, width)))[0].astype(np.float32))
    Z = device.zeros(features * width, np.float64)

    def plain() -> Array:
        return X.T @ (X @ V)

    def fused() -> None:
        Z[:] = 0
        products.fused(device, X, None, None, V, None, Z)

    fused()
    exact = device.get(plain()).astype(np.float64)
    error = float(np.linalg.norm(device.get(Z).reshape(exact.shape) - exact) / np.linalg.norm(exact))
    seconds = interleave({"fused": contestant(device, fused, least_s), "plain": contestant(device, plain, least_s)},
                         repeats)
    median = medians(seconds)
    return {"case": "svd pass", "rows": rows, "features": features, "columns": width, "relative_difference": error,
            "plain_over_fused": median["plain"] / median["fused"], "seconds": listed(seconds)}


def step(device: Device, n_bytes: int, features: int, steps: int, repeats: int, least_s: float) -> dict[str, Any]:
    """Measure a step of `train --algorithm sync --batch-size full` against its gradient alone."""
    rows = n_bytes // (4 * features)
    rng = np.random.default_rng(1)
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        dml_hpc(1, "data", "synth", "binary", "-o", data, "--rows", rows, "--features", features)
        for repeat in range(repeats):
            found = train.run(world(), Console(rank=1), [data], Path(folder, f"model-{repeat}.h5"),
                              objective="logistic", algorithm="sync", batch_size="full", steps=steps,
                              schedule="constant", device="cuda", scale=False, allreduce="hierarchical")
            seconds.append(found["work_s"] / steps)
    X = device.put(rng.standard_normal((rows, features), dtype=np.float32))
    y = device.put((rng.random(rows) < 0.5).astype(np.float32))
    w = device.zeros(features + 1, np.float32)
    gradient, loss = device.zeros(features + 1, np.float32), device.zeros(1, np.float64)

    def work() -> None:
        glm.loss_and_gradient(device, LOGISTIC, 1.0, X, y, None, None, w, gradient, loss)

    work()
    kernel = contestant(device, device.capture(work), least_s)
    alone = [kernel() for _ in range(repeats)]
    return {"case": "step", "rows": rows, "features": features, "bytes": n_bytes,
            "of_step": float(np.median(alone) / np.median(seconds)),
            "seconds": {"step": sorted(seconds), "gradient": sorted(alone)}}


def node(n_bytes: int, repeats: int) -> dict[str, Any]:
    """Measure two ranks on one GPU, in a job of their own."""
    line = [str(TOOLS / "mpirun"), "-n", "2", sys.executable, str(Path(__file__).with_name("gpu_node.py")),
            str(n_bytes), str(repeats)]
    done = subprocess.run(line, text=True, capture_output=True, env={**ONE_THREAD, **os.environ})
    if done.returncode:
        sys.stderr.write(done.stderr)
        done.check_returncode()
    return json.loads(done.stdout.splitlines()[-1])


def listed(seconds: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Return timings as JSON holds them."""
    return {who: sorted(times.tolist()) for who, times in seconds.items()}


def cases(device: Device, sizes: Sizes, repeats: int, least_s: float = LEAST_S) -> list[dict[str, Any]]:
    """Measure all that one process can."""
    found = [gradient(device, features, sizes.gradient_bytes, repeats, least_s) for features in sizes.features]
    found += [reduce_and_update(device, buffers, sizes.vector_bytes, repeats, least_s) for buffers in (2, 8)]
    found.append(svd(device, *sizes.svd, repeats, least_s))
    found += [step(device, *one, repeats, least_s) for one in sizes.steps]
    found += gpu_factors.cases(device, sizes is TINY, repeats)
    return found


def main() -> None:
    """Measure everything and write the results file."""
    options = arguments(__doc__, repeats=9).parse_args()
    device = open_device("cuda", 0)
    assert device is not None
    sizes, repeats = (TINY, 1) if options.tiny else (FULL, options.repeats)
    found = cases(device, sizes, repeats)
    found.append(node(sizes.vector_bytes, repeats))
    for case in found:
        print(json.dumps({name: value for name, value in case.items() if name != "seconds"}))
    finish("gpu", [{"device": device.description}, *found],
           "fractions are of bandwidths measured in the same run; see benchmarks/gpu.py", options.tiny)


if __name__ == "__main__":
    main()
