"""Vectors of 16-bit floats: float16 (IEEE 754 binary16) and bfloat16, the upper half of a float32.

Roundings are to nearest, of two to the even one; what is too large becomes infinite; NaN stays NaN. NumPy lacks
bfloat16, and Numba lacks float16 on the CPU: bfloat16 is held as its bits (uint16), and so are the loops given float16.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dml_hpc.kernels.bits import float16_bits, float_bits, float_of, float_of_float16

_SIXTEEN, _ONE = np.uint32(16), np.uint32(1)
_JUST_BELOW_HALF, _MAGNITUDE, _INFINITY, _QUIET = map(np.uint32, (0x7FFF, 0x7FFFFFFF, 0x7F800000, 0x400000))


@njit(cache=True, nogil=True)
def bfloat16_bits(value):
    """In a jitted function: return the bits (uint16) of the bfloat16 nearest to a float32."""
    bits = float_bits(value)
    rounded = bits + _JUST_BELOW_HALF + ((bits >> _SIXTEEN) & _ONE)
    # Rounding could carry a NaN over into zero or infinity.
    return np.uint16((bits | _QUIET if (bits & _MAGNITUDE) > _INFINITY else rounded) >> _SIXTEEN)


@njit(cache=True, nogil=True)
def float_of_bfloat16(bits):
    """In a jitted function: return as float32 the bfloat16 that has these bits (uint16)."""
    return float_of(np.uint32(bits) << _SIXTEEN)


@njit(cache=True, nogil=True)
def round_bfloat16(values, out):
    """Write ``values`` (n,) float32, rounded, to ``out`` (n,), bfloat16 held as uint16."""
    for i in range(len(out)):
        out[i] = bfloat16_bits(values[i])


@njit(cache=True, nogil=True)
def widen_bfloat16(halves, out):
    """Write ``halves`` (n,), bfloat16 held as uint16, to ``out`` (n,) float32."""
    for i in range(len(out)):
        out[i] = float_of_bfloat16(halves[i])


@njit(cache=True, nogil=True)
def add_bfloat16(a, b, out):
    """out = a + b, summed in float32 and rounded once; (n,) each, bfloat16 held as uint16.

    ``out`` may be ``a`` or ``b``; it may not overlap them otherwise.
    """
    # Only when it sees that a loop reads and writes one array does the compiler know that it may take many at a time.
    if out.ctypes.data == a.ctypes.data:
        for i in range(len(out)):
            out[i] = bfloat16_bits(float_of_bfloat16(out[i]) + float_of_bfloat16(b[i]))
    elif out.ctypes.data == b.ctypes.data:
        for i in range(len(out)):
            out[i] = bfloat16_bits(float_of_bfloat16(out[i]) + float_of_bfloat16(a[i]))
    else:
        for i in range(len(out)):
            out[i] = bfloat16_bits(float_of_bfloat16(a[i]) + float_of_bfloat16(b[i]))


def round_float16(values: np.ndarray, out: np.ndarray) -> None:
    """Write ``values`` (n,) float32, rounded, to ``out`` (n,) float16."""
    _round_float16(values, out.view(np.uint16))


def widen_float16(halves: np.ndarray, out: np.ndarray, factor: float = 1.0) -> None:
    """Write ``halves`` (n,) float16, times ``factor``, to ``out`` (n,) float32."""
    _widen_float16(halves.view(np.uint16), out, np.float32(factor))


def add_float16(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """out = a + b, summed in float32 and rounded once; (n,) float16 each.

    ``out`` may be ``a`` or ``b``; it may not overlap them otherwise.
    """
    _add_float16(a.view(np.uint16), b.view(np.uint16), out.view(np.uint16))


@njit(cache=True, nogil=True)
def _round_float16(values, out):
    for i in range(len(out)):
        out[i] = float16_bits(values[i])


@njit(cache=True, nogil=True)
def _widen_float16(halves, out, factor):
    for i in range(len(out)):
        out[i] = factor * float_of_float16(halves[i])


@njit(cache=True, nogil=True)
def _add_float16(a, b, out):
    if out.ctypes.data == a.ctypes.data:  # see add_bfloat16
        for i in range(len(out)):
            out[i] = float16_bits(float_of_float16(out[i]) + float_of_float16(b[i]))
    elif out.ctypes.data == b.ctypes.data:
        for i in range(len(out)):
            out[i] = float16_bits(float_of_float16(out[i]) + float_of_float16(a[i]))
    else:
        for i in range(len(out)):
            out[i] = float16_bits(float_of_float16(a[i]) + float_of_float16(b[i]))
