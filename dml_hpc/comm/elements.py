"""The element types that reducers sum, and how two vectors of them are added."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

DTYPES = ("float32", "float64", "int64", "float16", "bfloat16")


def storage(dtype: str) -> np.dtype:
    """Return the NumPy dtype that holds elements of ``dtype``: itself, but uint16 for bfloat16, which NumPy lacks.

    Raises `ValueError` for a dtype not in `DTYPES`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"no reducer sums {dtype!r}; there are {', '.join(DTYPES)}")
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)


def adder(dtype: str) -> Callable[[np.ndarray, np.ndarray, np.ndarray], object]:
    """Return ``add(a, b, out)``: out = a + b, for 1-D arrays of `storage` (``dtype``); ``out`` may be ``a`` or ``b``.

    Sums of 16-bit floats are rounded once, to nearest even.
    """
    if dtype in ("float16", "bfloat16"):
        from dml_hpc.kernels import half

        return half.add_float16 if dtype == "float16" else half.add_bfloat16
    return np.add
