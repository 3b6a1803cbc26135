"""Where a reducer's vectors lie, and how they are added there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dml_hpc.comm.elements import adder

Add = Callable[[Any, Any, Any], object]
"""``add(a, b, out)``: out = a + b, which may lie where ``a`` or ``b`` does."""


class Place:
    """The host's memory: what every place can do, on NumPy's arrays.

    ``segment_bytes``: how much travels in one message when a vector is sent in parts; None: as much as is best in the
    host's memory.
    """

    segment_bytes: int | None = None

    def zeros(self, size: int, kind: np.dtype) -> Any:
        """Return an array (size,) of zeros."""
        return np.zeros(size, kind)

    def adder(self, dtype: str) -> Add:
        """Return what adds vectors of ``dtype``; when it returns, the sum is there."""
        return adder(dtype)

    def settle(self) -> None:
        """Return when all work on these vectors that was only queued is done: on the host there is none."""


HOST = Place()
