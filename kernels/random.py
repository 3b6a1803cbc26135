"""Random numbers by their place in a stream: number i of a key is a pure function of (key, i), so that any rank can
draw any of them. Only additions, multiplications, divisions and square roots make them, which IEEE 754 rounds the same
on every machine.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from dml_hpc.kernels.sampling import _GOLDEN, _mix

_HALF_UNIT = 2.0**-53
_LOG_2 = 0.6931471805599453
_ROOT_HALF = 0.7071067811865476


@njit(cache=True, nogil=True)
def bits(key, index):
    """Return draw ``index`` (from 0) of a stream: output ``index`` of SplitMix64 seeded with ``key``, a uint64.

    Steele, Lea and Flood, *Fast splittable pseudorandom number generators*, 2014.
    """
    return _mix(np.uint64(key) + (np.uint64(index) + np.uint64(1)) * _GOLDEN)


@njit(cache=True, nogil=True)
def uniform(key, index):
    """Return draw ``index`` as an odd multiple of 2^-53, uniform over 0 … 1, never one of them."""
    return np.float64(np.int64(bits(key, index) >> np.uint64(12))) * (2 * _HALF_UNIT) + _HALF_UNIT


@njit(cache=True, nogil=True)
def log(x):
    """Return the natural logarithm of a normal positive float64, within 2 units in the last place.

    The series of 2 artanh((m − 1) / (m + 1)), for m within a factor √2 of 1: the C library's logarithm may differ
    between machines in the last bit.
    """
    m, exponent = math.frexp(x)
    if m < _ROOT_HALF:
        m, exponent = 2 * m, exponent - 1
    s = (m - 1) / (m + 1)
    z = s * s
    tail = 1 / 21
    tail = tail * z + 1 / 19
    tail = tail * z + 1 / 17
    tail = tail * z + 1 / 15
    tail = tail * z + 1 / 13
    tail = tail * z + 1 / 11
    tail = tail * z + 1 / 9
    tail = tail * z + 1 / 7
    tail = tail * z + 1 / 5
    tail = tail * z + 1 / 3
    return exponent * _LOG_2 + (2 * s + 2 * s * z * tail)


_MIDDLE = ((2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
            13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.3871328727963666080),
           (5226.4952788528545610, 28729.085735721942674, 39307.895800092710610, 21213.794301586595867,
            5394.1960214247511077, 687.18700749205790830, 42.313330701600911252, 1.0))
_TAIL = ((7.74545014278341407640e-4, 2.27238449892691845833e-2, 0.241780725177450611770, 1.27045825245236838258,
          3.64784832476320460504, 5.76949722146069140550, 4.63033784615654529590, 1.42343711074968357734),
         (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 0.148103976427480074590,
          0.689767334985100004550, 1.67638483018380384940, 2.05319162663775882187, 1.0))
_FAR_TAIL = ((2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3,
              2.65321895265761230930e-2, 0.296560571828504891230, 1.78482653991729133580, 5.46378491116411436990,
              6.65790464350110377720),
             (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5,
              7.86869131145613259100e-4, 1.48753612908506148525e-2, 0.136929880922735805310, 0.599832206555887937690,
              1.0))


_MOST_MIDDLE = 0.425
_BLOCK = 256


@njit(cache=True, nogil=True, error_model="numpy")
def _ratio(polynomials, x):
    top, bottom = polynomials[0][0], polynomials[1][0]
    for i in range(1, 8):
        top = top * x + polynomials[0][i]
        bottom = bottom * x + polynomials[1][i]
    return top / bottom


@njit(cache=True, nogil=True)
def _middle(q):
    return q * _ratio(_MIDDLE, 0.180625 - q * q)


@njit(cache=True, nogil=True)
def _tail(q):
    r = math.sqrt(-log(0.5 - abs(q)))
    size = _ratio(_TAIL, r - 1.6) if r <= 5 else _ratio(_FAR_TAIL, r - 5)
    return -size if q < 0 else size


@njit(cache=True, nogil=True)
def normal(key, index):
    """Return draw ``index`` from the standard normal distribution: the inverse of its distribution function.

    Wichura, *Algorithm AS 241: The percentage points of the normal distribution*, Applied Statistics 37, 1988; its
    relative error is about 1e-16. Draws reach 8.2 deviations.
    """
    q = uniform(key, index) - 0.5
    return _middle(q) if abs(q) <= _MOST_MIDDLE else _tail(q)


@njit(cache=True, nogil=True)
def fill_normals(key, first, scale, out):
    """Write draws ``first`` … from a normal distribution of deviation ``scale`` to ``out`` (count,), floats."""
    q = np.empty(_BLOCK)
    for start in range(0, len(out), _BLOCK):
        part = out[start:start + _BLOCK]
        # All as if they were near the middle, which takes no branch and hence several at once; then the others.
        for i in range(len(part)):
            q[i] = uniform(key, first + start + i) - 0.5
            part[i] = scale * _middle(q[i])
        for i in range(len(part)):
            if abs(q[i]) > _MOST_MIDDLE:
                part[i] = scale * _tail(q[i])


def stream(seed: int, purpose: int) -> np.uint64:
    """Return the key of the stream that ``seed`` (any whole number from 0) has for a ``purpose``, a small number."""
    return np.uint64(bits(np.uint64(bits(np.uint64(seed & 0xFFFFFFFFFFFFFFFF), 0)), purpose))
