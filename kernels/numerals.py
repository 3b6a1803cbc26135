"""Decimal numbers in text as float64, correctly rounded: bit for bit what Python's ``float`` gives."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numba import njit

NUMBER, HARD, NONE = 0, 1, 2
"""What `number` found: a number; one whose value only a slower method knows; no number."""
_LARGEST_POWER = 250


def _powers() -> np.ndarray:
    """Return (2 · `_LARGEST_POWER` + 1, 2) float64: 10^e, e from −`_LARGEST_POWER`, as a double and what it lacks."""
    powers = np.empty((2 * _LARGEST_POWER + 1, 2))
    for e in range(-_LARGEST_POWER, _LARGEST_POWER + 1):
        exact = Fraction(10) ** e
        powers[e + _LARGEST_POWER] = float(exact), float(exact - Fraction(float(exact)))
    return powers


_POWERS = _powers()
_SPLIT = 134217729.0  # 2^27 + 1
_TEN = np.uint64(10)
_EXACT = np.uint64(1 << 53)


@njit(cache=True, nogil=True, error_model="numpy")
def _scaled(mantissa, exponent, cut):
    """Return mantissa · 10^exponent, rounded once, and whether that is certain.

    Small cases are exact operations (Clinger, *How to read floating point numbers accurately*, 1990). Else the
    product is formed in twice the precision (Dekker, *A floating-point technique for extending the available
    precision*, 1971) with a relative error below 2^−100, or 2^−59 when digits were cut off behind the mantissa: when
    both ends of that interval round to the same number, it is the right one.
    """
    if exponent == 0 and not cut:
        return float(mantissa), True
    if exponent < -_LARGEST_POWER or exponent > _LARGEST_POWER:
        return 0.0, False
    power = _POWERS[exponent + _LARGEST_POWER, 0]
    if mantissa <= _EXACT and not cut and -22 <= exponent <= 22:
        return (float(mantissa) * power if exponent > 0
                else float(mantissa) / _POWERS[_LARGEST_POWER - exponent, 0]), True
    high = float(mantissa)
    low = float(np.int64(mantissa - np.uint64(high)))
    product = high * power
    t = _SPLIT * high
    high_1 = t - (t - high)
    high_2 = high - high_1
    t = _SPLIT * power
    power_1 = t - (t - power)
    power_2 = power - power_1
    error = ((high_1 * power_1 - product) + high_1 * power_2 + high_2 * power_1) + high_2 * power_2
    error += high * _POWERS[exponent + _LARGEST_POWER, 1] + low * power
    value = product + error
    rest = error - (value - product)
    doubt = value * (2.0 ** -58 if cut else 2.0 ** -98)
    return value, value + (rest - doubt) == value + (rest + doubt)


@njit(cache=True, nogil=True, error_model="numpy")
def number(text, at):
    """Return the value of the number at ``text[at]``, where it ends, and `NUMBER`, `HARD` or `NONE`.

    ``text`` (length,) uint8 must end in something that is no part of a number, such as a line end. A number is
    ``[+-]digits[.digits][e[+-]digits]``, with a digit before or behind the point. The value is that of Python's
    ``float`` for the same text; for `HARD` ones (very large or small, or with more than 19 digits and unlucky) it
    is 0 and to be found in another way.
    """
    negative = text[at] == 45
    if negative or text[at] == 43:
        at += 1
    mantissa = np.uint64(0)
    kept = 0
    exponent = 0
    found = False
    cut = False
    behind = 0
    while True:
        digit = int(text[at]) - 48
        if 0 <= digit <= 9:
            found = True
            if kept < 19:
                mantissa = mantissa * _TEN + np.uint64(digit)
                kept += mantissa != 0
                exponent -= behind
            else:
                cut |= digit != 0
                exponent += 1 - behind
        elif digit == -2 and not behind:
            behind = 1
        else:
            break
        at += 1
    if not found:
        return 0.0, at, NONE
    if text[at] == 101 or text[at] == 69:
        at += 1
        down = text[at] == 45
        if down or text[at] == 43:
            at += 1
        power = 0
        found = False
        while 48 <= text[at] <= 57:
            found = True
            power = min(10 * power + int(text[at]) - 48, 1 << 40)
            at += 1
        if not found:
            return 0.0, at, NONE
        exponent += -power if down else power
    value, certain = (0.0, True) if mantissa == 0 else _scaled(mantissa, exponent, cut)
    if not certain:
        return 0.0, at, HARD
    return -value if negative else value, at, NUMBER
