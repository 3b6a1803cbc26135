"""Sums of several vectors and gathered slices on a device, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.comm.addends import decode, encode
from dml_hpc.comm.elements import DTYPES, adder
from dml_hpc.kernels.cuda import sums

SIZES = (0, 1, 7, 8, 33, 1000)


def whole_numbers(count: int, size: int, dtype: str) -> list[np.ndarray]:
    random = np.random.default_rng([count, size])
    return [encode(random.integers(-8, 9, size).astype(np.float64), dtype) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_exact(quick_device, dtype, count):
    device = quick_device
    for size in SIZES:
        numbers = whole_numbers(count, size + 3, dtype)
        arrays = [device.put(one) for one in numbers]
        wanted = sum(decode(one, dtype) for one in numbers)
        for first in (0, 1):  # aligned, and not
            summed = sums.LazySum(device, arrays)[first:first + size]
            assert len(summed) == size
            out = device.zeros(size + 2, summed.dtype)
            sums.add_up(device, summed, out[first:first + size])
            got = decode(device.get(out), dtype)
            np.testing.assert_array_equal(got[first:first + size], wanted[first:first + size])
            assert not got[:first].any() and not got[first + size:].any()


@pytest.mark.parametrize(("dtype", "out"), [("float32", "float16"), ("float32", "bfloat16"), ("float16", "float32"),
                                            ("bfloat16", "float32"), ("int64", "float32"), ("int64", "float64"),
                                            ("float64", "float32")])
def test_sums_are_converted(quick_device, dtype, out):
    device = quick_device
    numbers = whole_numbers(3, 129, dtype)
    for count in (1, 3):
        arrays = [device.put(one) for one in numbers[:count]]
        total = device.empty(129, encode(np.zeros(0), out).dtype)
        sums.add_up(device, sums.LazySum(device, arrays) if count > 1 else arrays[0], total)
        wanted = sum(decode(one, dtype) for one in numbers[:count])
        np.testing.assert_array_equal(decode(device.get(total), out), wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_quotient_has_the_hosts_bits(quick_device, dtype):
    device, random = quick_device, np.random.default_rng(6)
    rows = [(random.standard_normal(1001) * 10.0 ** random.integers(-9, 9, 1001)).astype(dtype) for _ in range(3)]
    for divisor in (3, 1000, 2 ** 24 + 1, 10 ** 12 + 7):
        wanted, out = np.empty(1001, dtype), device.empty(1001, dtype)
        np.divide(rows[0] + rows[1] + rows[2], np.float64(divisor), out=wanted, dtype=np.float64, casting="same_kind")
        sums.average(device, sums.LazySum(device, [device.put(row) for row in rows]), divisor, out)
        assert device.get(out).tobytes() == wanted.tobytes()
        sums.average(device, device.put(rows[0] + rows[1] + rows[2]), divisor, out)
        assert device.get(out).tobytes() == wanted.tobytes()


def test_the_order_of_a_sum_is_that_of_its_addends(quick_device):
    device = quick_device
    rows = [(10.0 ** (4 * i) * np.random.default_rng(i).standard_normal(101)).astype(np.float32) for i in range(5)]
    out = device.empty(101, "float32")
    sums.add_up(device, sums.LazySum(device, [device.put(row) for row in rows]), out)
    wanted = rows[0]
    for row in rows[1:]:
        wanted = wanted + row
    np.testing.assert_array_equal(device.get(out), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_are_added_as_on_the_host(device, dtype):
    random = np.random.default_rng(3)
    one, other = (encode(random.standard_normal(157) * 100, dtype) for _ in range(2))
    wanted = np.empty_like(one)
    adder(dtype)(one, other, wanted)
    for first in (0, 1):
        a, b = device.put(one), device.put(other)
        sums.add(device, a[first:], b[first:], a[first:])
        np.testing.assert_array_equal(device.get(a)[first:], wanted[first:])


@pytest.mark.parametrize("dtype", ["uint16", "float32", "int64"])
def test_slices_are_gathered(quick_device, dtype):
    device = quick_device
    for cuts in ([0, 64, 64, 129, 1001], [0, 1, 2, 3, 3], [0, 0, 0, 0, 0]):
        vectors = [np.random.default_rng(i).integers(0, 1000, cuts[-1]).astype(dtype) for i in range(4)]
        lazy = sums.LazySum(device, [device.put(vector) for vector in vectors])
        for own in (-1, 2):
            out = device.zeros(cuts[-1], dtype)
            sums.gather(device, lazy, device.put(np.array(cuts)), own, out)
            wanted = np.concatenate([vector[cuts[v]:cuts[v + 1]] * (v != own) for v, vector in enumerate(vectors)])
            np.testing.assert_array_equal(device.get(out), wanted)
