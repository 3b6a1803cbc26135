"""Steps on a device against the same steps on the host, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.kernels.cuda.sums import LazySum
from dml_hpc.optim import OPTIMISERS, open_optimiser
from dml_hpc.optim.settings import OptimiserSettings

SIZE, PENALISED = 733, [(0, 100), (101, 400), (600, 733)]
SETTINGS = {"momentum": 0.9, "l1": 0.02, "l2": 0.05, "clip_value": 1.5}


def gradients(steps: int, dtype: str) -> np.ndarray:
    random = np.random.default_rng(steps)
    if dtype == "int64":
        return random.integers(-1 << 40, 1 << 40, (steps, SIZE))
    return random.standard_normal((steps, SIZE)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("name", [*OPTIMISERS, "sgd, no momentum"])
def test_a_step_has_the_hosts_bits(quick_device, name, integers, dtype):
    device = quick_device
    settings = OptimiserSettings(name.split(",")[0], **{**SETTINGS, **({"momentum": 0.0} if "," in name else {})})
    unit = 1e-12 if integers else 0.37
    kind = np.dtype(dtype)
    host = open_optimiser(settings, (0, SIZE), kind, PENALISED, repeats=True, average_iterates=True)
    ours = open_optimiser(settings, (0, SIZE), kind, PENALISED, repeats=True, average_iterates=True, device=device)
    weights = np.random.default_rng(5).standard_normal(SIZE).astype(kind)
    on_device = device.put(weights)
    assert not ours.sparse_able
    for t, gradient in enumerate(gradients(6, "int64" if integers else dtype), 1):
        for again in (False, True) if t % 2 else (False,):
            host.update(weights, gradient, 0, unit, 0.1 / t, t, again)
            ours.update(on_device, device.put(gradient), 0, unit, 0.1 / t, t, again)
        for wanted, got in zip([weights, host.average, *host.state], [on_device, ours.average, *ours.state],
                               strict=True):
            np.testing.assert_array_equal(device.get(got), wanted)
    ours.reset()
    assert not any(device.get(array).any() for array in (ours.average, *ours.state))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_parts_and_addends_do_not_change_a_step(quick_device, name):
    """However a vector is cut, aligned or not, and with a sum that is taken on the way."""
    device, settings = quick_device, OptimiserSettings(name, **SETTINGS)
    kind = np.dtype("float32")
    whole = open_optimiser(settings, (0, SIZE), kind, PENALISED)
    weights = np.random.default_rng(5).standard_normal(SIZE).astype(kind)
    parts = [(start, stop, open_optimiser(settings, (start, stop), kind, PENALISED, device=device))
             for start, stop in ((0, 64), (64, 65), (65, 300), (300, 300), (300, SIZE))]
    ours = device.put(weights)
    for t, (one, other, third) in enumerate(zip(*[iter(gradients(9, "float32"))] * 3, strict=True), 1):
        summed = LazySum(device, [device.put(addend) for addend in (one, other, third)])
        whole.update(weights, one + other + third, 0, 0.5, 0.1, t)
        for start, stop, optimiser in parts:
            optimiser.update(ours[start:stop], summed[start:stop], start, 0.5, 0.1, t)
    np.testing.assert_array_equal(device.get(ours), weights)


@pytest.mark.parametrize("integers", [False, True])
def test_threads_that_take_many_elements_know_which_are_penalised(quick_device, integers):
    device, size = quick_device, 70_003
    device.processors = 1
    penalised = [(first, first + 1 + first % 97) for first in range(0, size - 100, 1009)]
    settings, weights = OptimiserSettings("adam", l1=0.01, l2=0.1), np.ones(size, np.float32)
    random = np.random.default_rng(2)
    gradient = random.integers(-99, 99, size) if integers else random.standard_normal(size).astype(np.float32)
    ours = device.put(weights)
    open_optimiser(settings, (0, size), weights.dtype, penalised, device=device).update(
        ours, device.put(gradient), 0, 1.0, 0.1, 1)
    open_optimiser(settings, (0, size), weights.dtype, penalised).update(weights, gradient, 0, 1.0, 0.1, 1)
    np.testing.assert_array_equal(device.get(ours), weights)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows(quick_device, value):
    device = quick_device
    for name in OPTIMISERS:
        settings = OptimiserSettings(name, l1=0.1)
        weights, gradient = np.ones(9, np.float32), np.full(9, 0.5, np.float32)
        gradient[4] = value
        ours = device.put(weights)
        open_optimiser(settings, (0, 9), weights.dtype, [(0, 9)], device=device).update(
            ours, device.put(gradient), 0, 1.0, 0.5, 1)
        open_optimiser(settings, (0, 9), weights.dtype, [(0, 9)]).update(weights, gradient, 0, 1.0, 0.5, 1)
        np.testing.assert_array_equal(device.get(ours), weights)


def test_with_real_threads(device):
    settings, kind = OptimiserSettings("adam", **SETTINGS), np.dtype("float32")
    weights, gradient = np.ones(SIZE, kind), gradients(1, "float32")[0]
    ours = device.put(weights)
    open_optimiser(settings, (0, SIZE), kind, PENALISED, device=device).update(ours, device.put(gradient), 0, 1, 0.1, 1)
    open_optimiser(settings, (0, SIZE), kind, PENALISED).update(weights, gradient, 0, 1, 0.1, 1)
    np.testing.assert_array_equal(device.get(ours), weights)
