"""What one GPU does of `mf --device cuda`, for `benchmarks/gpu.py`: passes of rating SGD, and half-steps of ALS.

Ratings are drawn in memory: users alike, items by a power law. Timed is what a run's epoch does, with all that Python
has to do for it, on ratings that lie on the GPU; no ratings are held out.

- rating sgd: a step reads and writes two rows, with a bias and AdaGrad's sums, and reads a rating: ``moved_bytes`` of
  an epoch, wherever they lie. ``of_copy_bandwidth`` is above 1 where rows are found in the second-level cache.
- als: ``flop`` are those of the triangles of the normal matrices and of their factorisations. ``of_matmul`` compares
  them with a product of square matrices in float32 in the same run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.data.ratings.opened import MemoryRatings
from dml_hpc.decomposition.mf import als, sgd
from dml_hpc.decomposition.mf.device_als import DeviceAls
from dml_hpc.decomposition.mf.device_sgd import DeviceSgd
from dml_hpc.device import Device
from dml_hpc.mpi import world
from dml_hpc.reports.timing import interleave


@dataclass(frozen=True)
class Sizes:
    """How many users, items and ratings there are, and a matrix's side."""

    users: int
    items: int
    ratings: int
    side: int


FULL = Sizes(500_000, 50_000, 20_000_000, 8192)
TINY = Sizes(60, 40, 900, 16)


def ratings_of(sizes: Sizes) -> MemoryRatings:
    """Draw ratings: 3 and noise, and a little of rank one."""
    rng = np.random.default_rng(0)
    users = rng.integers(0, sizes.users, sizes.ratings)
    items = np.minimum((sizes.items * rng.random(sizes.ratings) ** 3).astype(np.int64), sizes.items - 1)
    P, Q = rng.standard_normal(sizes.users, np.float32), rng.standard_normal(sizes.items, np.float32)
    given = 3 + P[users] * Q[items] + rng.standard_normal(sizes.ratings, np.float32)
    return MemoryRatings(users, items, given, n_users=sizes.users, n_items=sizes.items)


def rating_sgd(device: Device, ratings: MemoryRatings, sizes: Sizes, k: int, factors: str, adaptive: bool,
               repeats: int) -> dict[str, Any]:
    """Measure epochs, beside copies of what they move."""
    other = device.zeros(max(1, (256 << 20) // 4 if sizes is FULL else 256), np.float32)
    source = device.zeros(len(other), np.float32)
    settings = sgd.Settings(k, 0.05, True, factors, adaptive)
    with DeviceSgd(world(), ratings, settings, Clock(), None, None, device, 1) as learner:
        learner.begin()
        errors: list[float] = []

        def epoch() -> float:
            clock = Stopwatch(device)
            errors.append(learner.learn(len(errors), 0.1 if adaptive else 0.02))
            return clock.seconds()

        def copy() -> float:
            clock = Stopwatch(device)
            other[:] = source
            return clock.seconds()

        epoch()
        copy()
        seconds = interleave({"epoch": epoch, "copy": copy}, repeats)
        row_bytes = learner.form.width * learner.form.dtype.itemsize + 4 + 4 * adaptive
    medians = {who: float(np.median(times)) for who, times in seconds.items()}
    moved = sizes.ratings * (4 * row_bytes + 12)
    return {"case": "rating sgd", "k": k, "factors": factors, "adagrad": adaptive, "ratings": sizes.ratings,
            "users": sizes.users, "items": sizes.items, "updates_per_s": sizes.ratings / medians["epoch"],
            "moved_bytes": moved, "bytes_per_s": moved / medians["epoch"],
            "of_copy_bandwidth": moved / medians["epoch"] / (2 * other.nbytes / medians["copy"]),
            "of_memory_bandwidth": moved / medians["epoch"] / device.memory_bytes_per_s
            if device.memory_bytes_per_s else None, "rmse_first": errors[0], "rmse_last": errors[-1],
            "seconds": {who: sorted(times.tolist()) for who, times in seconds.items()}}


def solves(device: Device, ratings: MemoryRatings, sizes: Sizes, k: int, repeats: int) -> dict[str, Any]:
    """Measure epochs of explicit ALS, beside a product of two matrices."""
    A = device.zeros((sizes.side, sizes.side), np.float32)
    with DeviceAls(world(), ratings, als.Settings(k, 0.05), Clock(), None, None, device, 1) as learner:
        learner.begin()
        losses: list[float] = []

        def epoch() -> float:
            clock = Stopwatch(device)
            losses.append(learner.improve(len(losses)).loss or 0.0)
            return clock.seconds()

        def product() -> float:
            clock = Stopwatch(device)
            device.xp.matmul(A, A)
            return clock.seconds()

        epoch()
        product()
        seconds = interleave({"epoch": epoch, "matmul": product}, repeats)
    medians = {who: float(np.median(times)) for who, times in seconds.items()}
    rows = sizes.users + sizes.items
    flop = 2 * sizes.ratings * k * (k + 1) + rows * k**3 / 3
    return {"case": "als", "k": k, "ratings": sizes.ratings, "rows": rows, "solves_per_s": rows / medians["epoch"],
            "ratings_per_s": sizes.ratings / medians["epoch"], "flop": flop, "flop_per_s": flop / medians["epoch"],
            "of_matmul": flop / medians["epoch"] / (2 * sizes.side**3 / medians["matmul"]), "loss_first": losses[0],
            "loss_last": losses[-1], "seconds": {who: sorted(times.tolist()) for who, times in seconds.items()}}


class Stopwatch:
    """Takes the time of work on a device from now on."""

    def __init__(self, device: Device):
        device.synchronize()
        self._device, self._began = device, time.perf_counter()

    def seconds(self) -> float:
        """Return how long all has taken that is queued."""
        self._device.synchronize()
        return time.perf_counter() - self._began


def cases(device: Device, tiny: bool, repeats: int) -> list[dict[str, Any]]:
    """Measure all."""
    sizes = TINY if tiny else FULL
    ratings = ratings_of(sizes)
    found = [rating_sgd(device, ratings, sizes, k, factors, adaptive, repeats) for k, factors, adaptive in (
        (64, "float32", True), (64, "float16", True), (64, "float32", False), (128, "float32", True))]
    return found + [solves(device, ratings, sizes, k, repeats) for k in ((20, 64) if tiny else (32, 64, 128))]
