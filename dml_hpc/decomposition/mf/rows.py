"""Rows of factors, with what belongs to each: a bias, and the sum of squared gradients that AdaGrad divides by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dml_hpc.kernels.random import fill_normals, stream
from dml_hpc.kernels.rating_sgd import lanes_of, measure, padded

LINE_BYTES = 64
_DRAWN_ROWS = 4096


@dataclass(frozen=True)
class Format:
    """What a row has: ``k`` factors of ``dtype`` (float32 or float16), a bias, and what AdaGrad's ``squares`` take."""

    k: int
    dtype: np.dtype
    biased: bool
    squares: bool

    @property
    def width(self) -> int:
        """Elements of a row; those behind ``k`` are 0."""
        return padded(self.k)

    def elements(self, kind: str) -> int:
        """Return how many elements of ``factors``, ``biases`` or ``squares`` belong to a row."""
        return {"factors": self.width, "biases": 1, "squares": 2}[kind]

    def bytes(self, rows: int) -> int:
        """Return how much memory ``rows`` rows take, a multiple of a cache line."""
        return sum(_lines(size) for size in self._sizes(rows))

    def places(self, rows: int, start: int) -> list[int]:
        """Return where factors, biases and squares of ``rows`` rows from ``start`` on begin, 0: there are none."""
        found = []
        for size in self._sizes(rows):
            found.append(start if size else 0)
            start += _lines(size)
        return found

    def _sizes(self, rows: int) -> list[int]:
        return [rows * self.width * self.dtype.itemsize, 4 * rows * self.biased, 8 * rows * self.squares]


def _lines(size: int) -> int:
    return -(-size // LINE_BYTES) * LINE_BYTES


class Rows:
    """``count`` rows in ``memory`` (bytes,), which begins with a cache line; None: in memory of their own.

    ``factors`` (count, width), of the format's dtype; ``biases`` (count,) and ``squares`` (2·count,), see
    `dml_hpc.kernels.rating_sgd.sgd`, float32, None where the format has none. ``flat`` are the factors as the kernels
    take them. ``raw`` are all bytes, which is what travels.
    """

    def __init__(self, form: Format, count: int, memory: np.ndarray | None = None):
        self.form, self.count = form, count
        self.raw = (aligned(form.bytes(count)) if memory is None else memory)[:form.bytes(count)]
        parts: list[np.ndarray] = []
        first = 0
        for size, dtype in zip(form._sizes(count), (form.dtype, *(np.dtype(np.float32),) * 2), strict=True):
            parts.append(self.raw[first:first + size].view(dtype))
            first += _lines(size)
        self.factors = parts[0].reshape(count, form.width)
        self.flat = parts[0].view(np.uint16) if form.dtype == np.float16 else parts[0]
        self.biases = parts[1] if form.biased else None
        self.squares = parts[2] if form.squares else None

    def part(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Return the flat factors, biases and squares of rows ``first`` … ``last`` − 1: views."""
        width = self.form.width
        return (self.flat[first * width:last * width], None if self.biases is None else self.biases[first:last],
                None if self.squares is None else self.squares[2 * first:2 * last])

    def measure(self) -> None:
        """Set the rows' lengths that go with ``squares`` to what they are."""
        if self.squares is not None:
            measure(self.flat, self.squares, *lanes_of(self.form.width))

    def draw(self, first: int, seed: int, purpose: int, deviation: float) -> None:
        """Set rows that are numbers ``first`` … of all to random factors, the same whoever has them, and biases 0."""
        self.raw[:] = 0
        draw(self.factors[:, :self.form.k], first, seed, purpose, deviation)


def draw(factors: np.ndarray, first: int, seed: int, purpose: int, deviation: float) -> None:
    """Set ``factors`` (count, k), rows ``first`` … of all, to random numbers: the same whoever has them."""
    key, (count, k) = stream(seed, purpose), factors.shape
    for start in range(0, count, _DRAWN_ROWS):
        drawn = np.empty((min(_DRAWN_ROWS, count - start), k), np.float32)
        fill_normals(key, (first + start) * k, deviation, drawn.reshape(-1))
        factors[start:start + len(drawn)] = drawn


def aligned(size: int) -> np.ndarray:
    """Return memory (size,) uint8 that begins with a cache line."""
    whole = np.empty(size + LINE_BYTES, np.uint8)
    first = -whole.ctypes.data % LINE_BYTES
    return whole[first:first + size]
