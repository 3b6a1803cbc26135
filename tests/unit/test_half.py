"""16-bit floats: float16 against NumPy's, bfloat16 against rounding in float64."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.kernels import half

EVERY = np.arange(1 << 16, dtype=np.uint16)


def hard_values() -> np.ndarray:
    """Random bit patterns, and every 16-bit number of either format with what lies halfway to the next, and beside."""
    rng = np.random.default_rng(1)
    bits = [rng.integers(0, 1 << 32, 200_000, np.uint32)]
    with np.errstate(invalid="ignore"):
        halves = EVERY.view(np.float16).astype(np.float32).view(np.uint32)
    for exact, half_way in ((halves, 0x1000), (EVERY.astype(np.uint32) << 16, 0x8000)):
        bits += [exact + np.uint32(offset) for offset in (0, half_way - 1, half_way, half_way + 1)]
    return np.concatenate(bits).view(np.float32)


def nearest_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 to 8 binary digits, half to even, in float64."""
    with np.errstate(invalid="ignore"):
        exact = values.astype(np.float64)
        exponent = np.frexp(exact)[1]
        quantum = np.ldexp(1.0, np.maximum(exponent - 8, -133))
        rounded = np.rint(exact / quantum) * quantum
    largest = (2 - 2.0 ** -7) * 2.0 ** 127
    return np.where(np.abs(rounded) > largest, np.copysign(np.inf, exact), rounded)


def as_float(bits: np.ndarray) -> np.ndarray:
    """What bfloat16 bits mean."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.filterwarnings("ignore:.*(overflow|invalid value).*")
def test_float16_is_rounded_and_widened_as_numpy_does():
    values = hard_values()
    out = np.empty(len(values), np.float16)
    half.round_float16(values, out)
    np.testing.assert_array_equal(out, values.astype(np.float16))  # NaN equals NaN here
    np.testing.assert_array_equal(np.signbit(out), np.signbit(values))
    wide = np.empty(len(EVERY), np.float32)
    half.widen_float16(EVERY.view(np.float16), wide)
    np.testing.assert_array_equal(wide, EVERY.view(np.float16).astype(np.float32))
    half.widen_float16(EVERY.view(np.float16), wide, 0.25)
    np.testing.assert_array_equal(wide, EVERY.view(np.float16).astype(np.float32) / 4)


def test_bfloat16_is_rounded_to_the_nearest_and_widened_exactly():
    values = hard_values()
    out = np.empty(len(values), np.uint16)
    half.round_bfloat16(values, out)
    np.testing.assert_array_equal(as_float(out), nearest_bfloat16(values))
    np.testing.assert_array_equal(out >> 15, np.signbit(values))
    wide = np.empty(len(EVERY), np.float32)
    half.widen_bfloat16(EVERY, wide)
    np.testing.assert_array_equal(wide.view(np.uint32), EVERY.astype(np.uint32) << 16)


@pytest.mark.filterwarnings("ignore:.*(overflow|invalid value).*")
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 1 << 16])
@pytest.mark.parametrize("into", ["a", "b", "neither"])
def test_sums_are_rounded_once(size, into):
    rng = np.random.default_rng(size)
    a, b = rng.permutation(EVERY)[:size], rng.permutation(EVERY)[:size]

    def add(add, kind):
        one, other = a.view(kind).copy(), b.view(kind).copy()
        out = {"a": one, "b": other, "neither": np.empty_like(one)}[into]
        add(one, other, out)
        return out

    exact = a.view(np.float16).astype(np.float32) + b.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(add(half.add_float16, np.float16), exact.astype(np.float16))
    np.testing.assert_array_equal(as_float(add(half.add_bfloat16, np.uint16)),
                                  nearest_bfloat16(as_float(a) + as_float(b)))
