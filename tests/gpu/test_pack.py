"""Vectors packed into 16-bit floats on a device, and what travels exactly with them, against the host's loops."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.kernels import compression as twin
from dml_hpc.kernels.cuda import compression

SIZES = (0, 1, 3, 4, 257, 701)
SPECIAL = (0.0, -0.0, 1e-30, -1e-40, 65504.0, 65520.0, 1e30, np.inf, -np.inf, np.nan)


def vectors(size: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(size)
    gradient = (random.standard_normal(size) * 10.0 ** random.integers(-6, 6, size)).astype(np.float32)
    gradient[3:3 + len(SPECIAL)] = SPECIAL[:max(size - 3, 0)]
    return gradient, random.standard_normal(size).astype(np.float32)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("size", SIZES)
def test_bfloat16_has_the_hosts_bits(device, size, first):
    gradient, residual = vectors(size + first)
    ours, rest = device.put(gradient), device.put(residual)
    wire, wanted = device.empty(size, "uint16"), np.empty(size, np.uint16)
    compression.encode_bfloat16(device, ours[first:], rest[first:], wire)
    twin.encode_bfloat16(gradient[first:], residual[first:], wanted)
    np.testing.assert_array_equal(device.get(wire), wanted)
    np.testing.assert_array_equal(device.get(rest), residual)


@pytest.mark.parametrize("scale", [2.0 ** -20, 1.0, 2.0 ** 9])
@pytest.mark.parametrize("size", SIZES)
def test_float16_has_the_hosts_bits(device, size, scale):
    gradient, residual = vectors(size)
    ours, rest, peak = device.put(gradient), device.put(residual), device.zeros(1, "uint32")
    wire, wanted = device.empty(size, "float16"), np.empty(size, np.float16)
    factor = device.put(np.array([scale], np.float32))
    compression.encode_float16(device, ours, rest, wire, factor, 2.0 ** 13, peak)
    largest = twin.encode_float16(gradient, residual, wanted.view(np.uint16), np.float32(scale),
                                  np.float32(2.0 ** 13 / scale))
    np.testing.assert_array_equal(device.get(wire), wanted)
    np.testing.assert_array_equal(device.get(rest), residual)
    np.testing.assert_array_equal(device.get(peak).view(np.float32), largest)
    out = device.empty(size, "float32")
    compression.widen_float16(device, wire, out, factor)
    np.testing.assert_array_equal(device.get(out), wanted.astype(np.float32) / np.float32(scale))


@pytest.mark.parametrize("dtype", ["float16", "uint16"])
@pytest.mark.parametrize("count", [0, 1, 5, 70])
def test_some_numbers_arrive_exactly(quick_device, count, dtype):
    device, ranks = quick_device, 3
    exact = np.random.default_rng(count).standard_normal((ranks, count)).astype(np.float32)
    for peaks, exponent in (((3.0, np.inf, 5.0), 10 - 2 - 3), ((1e-38, 0.0, 0.0), 100), ((0.0, np.nan, 0.0), 6),
                            ((2.0, 0.5, 1.0), 10 - 2 - 2)):
        scaled = dtype == "float16"
        messages = []
        for rank in range(ranks):
            places = device.empty(4 * ranks * (count + scaled), dtype)
            peak = device.put(np.array([peaks[rank]], np.float32).view(np.uint32)) if scaled else None
            compression.write_exact(device, device.put(exact[rank]), peak, rank, ranks, places)
            messages.append(device.get(places))
        summed = device.put(messages[0] + messages[1] + messages[2])  # to all but one, zero
        got = device.zeros(count, "float32")
        scale = device.put(np.array([64], np.float32)) if scaled else None
        compression.read_exact(device, summed, ranks, got, scale, 10, 100)
        np.testing.assert_array_equal(device.get(got), exact.sum(axis=0, dtype=np.float64).astype(np.float32))
        if scaled:
            assert device.get(scale) == 2.0 ** exponent
