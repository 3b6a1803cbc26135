"""Scaling on a device is scaling on the host."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.objectives.layers import Layers
from dml_hpc.objectives.on_device.scaling import DeviceScaling
from dml_hpc.objectives.scaling import identity, standardising


@pytest.mark.parametrize("widths", [(1, 1), (7, 1), (300, 1), (65, 3), (40, 30, 4), (0, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("intercept", [True, False])
def test_parameters_are_folded_and_gradients_pulled_back_as_on_the_host(device, widths, dtype, intercept):
    rng = np.random.default_rng(widths[0])
    layers, dtype = Layers(widths), np.dtype(dtype)
    mean, deviation = rng.standard_normal(widths[0]), rng.random(widths[0]) + 0.1
    numeric = rng.random(widths[0]) < 0.8
    vector = rng.standard_normal(layers.size).astype(dtype)
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    for scaling in (standardising(layers, mean, deviation, numeric, intercept, dtype),
                    identity(layers, intercept, dtype)):
        there = DeviceScaling(scaling, widths[1], device)
        assert there.trivial == scaling.trivial
        folded = there.fold(device.put(vector), device.empty(layers.size, dtype))
        expected = scaling.fold(vector, np.empty_like(vector))
        np.testing.assert_allclose(device.get(folded), expected, rtol=tolerance, atol=tolerance)
        gradient, expected = device.put(vector), vector.copy()
        there.pull_back(gradient)
        scaling.pull_back(expected)
        np.testing.assert_allclose(device.get(gradient), expected, rtol=tolerance, atol=tolerance)
