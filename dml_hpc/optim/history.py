"""What L-BFGS remembers of the steps it took, held as slices of vectors and a few inner products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dml_hpc.kernels.dots import combine

Dots = Callable[[list[np.ndarray], np.ndarray], np.ndarray]
"""``dots(rows, vector)``: the inner products of every row with ``vector`` over all ranks, in one reduction."""


class History:
    """The last ``memory`` pairs s = x' − x, y = ∇' − ∇ of vectors of which ``count`` elements lie here.

    `direct` needs no inner product but those that `add` and `look` asked for, so that the two-loop recursion runs on
    small matrices, the same on all ranks (vector-free L-BFGS: Chen, Wang and Zhou, NIPS 2014). Of their
    (2·memory + 1)² products it keeps those the recursion reads: sᵢ·yⱼ where pair j is no older than pair i, y·y, and
    those with the gradient.
    """

    def __init__(self, memory: int, count: int, dtype: np.dtype, dots: Dots):
        self._vectors = np.zeros((2 * memory, count), dtype)  # s of every slot, then y of every slot
        self._coefficients = np.zeros(2 * memory, dtype)
        self._memory, self._dots = memory, dots
        self._slots: list[int] = []  # of the pairs, oldest first
        self._sy, self._yy = np.zeros((memory, memory)), np.zeros((memory, memory))
        self._sg, self._yg = np.zeros(memory), np.zeros(memory)

    def __len__(self) -> int:
        return len(self._slots)

    def clear(self) -> None:
        """Forget all pairs."""
        self._slots.clear()

    def room(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where the next s and y are to be written, (count,) each; the oldest pair makes way if it must."""
        if len(self._slots) == self._memory:
            self._slots.pop(0)
        slot = self._free()
        return self._vectors[slot], self._vectors[self._memory + slot]

    def add(self) -> None:
        """Keep the pair written to `room`, unless the curvature along it is not positive beyond rounding."""
        slot, slots = self._free(), self._slots
        s, y = self._vectors[slot], self._vectors[self._memory + slot]
        products = self._dots([*self._rows(), s, y], y)
        s_s = float(self._dots([s], s)[0])
        s_y, y_y = products[-2:]
        if not s_y > np.finfo(s.dtype).eps * np.sqrt(s_s * y_y):
            return
        self._sy[slots, slot] = products[:len(slots)]
        self._yy[slots, slot] = self._yy[slot, slots] = products[len(slots):-2]
        self._sy[slot, slot], self._yy[slot, slot] = s_y, y_y
        slots.append(slot)

    def look(self, gradient: np.ndarray) -> float:
        """Take the products with a gradient, for `direct`; return its 2-norm."""
        slots = self._slots
        products = self._dots([*self._rows(), gradient], gradient)
        self._sg[slots], self._yg[slots] = products[:len(slots)], products[len(slots):-1]
        return float(np.sqrt(products[-1]))

    def direct(self, gradient: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        """Write −H·``gradient`` to ``out``, H the L-BFGS estimate of the inverse Hessian; overwrites ``scratch``.

        ``gradient`` is the one `look` saw last. Two-loop recursion (Nocedal and Wright, algorithm 7.4) on coefficients:
        the direction is scale·gradient + Σ by_s·s + Σ by_y·y.
        """
        slots = self._slots
        by_s, by_y, scale = np.zeros(self._memory), np.zeros(self._memory), 1.0
        for slot in reversed(slots):
            along = self._sg[slot] + by_y[slots] @ self._sy[slot, slots]
            by_y[slot] = -along / self._sy[slot, slot]
        if slots:
            scale = self._sy[slots[-1], slots[-1]] / self._yy[slots[-1], slots[-1]]
            first = -by_y
            by_y *= scale
            for slot in slots:
                along = (scale * self._yg[slot] + by_y[slots] @ self._yy[slot, slots]
                         + by_s[slots] @ self._sy[slots, slot])
                by_s[slot] = first[slot] - along / self._sy[slot, slot]
        self._coefficients[:self._memory] = -by_s
        self._coefficients[self._memory:] = -by_y
        combine(self._coefficients, self._vectors, out)  # not BLAS, whose bits depend on its number of threads
        np.multiply(gradient, -scale, out=scratch)
        out += scratch

    def values(self) -> dict[str, Any]:
        """Return all that is no vector, as JSON has it; the same on all ranks."""
        return {"slots": list(self._slots), **{name: table.tolist() for name, table in self._products().items()}}

    def vectors(self) -> dict[str, np.ndarray]:
        """Return the pairs that are kept, by name, (count,) each: views, to be read or to be written to."""
        return {f"{name}{slot}": self._vectors[base + slot]
                for name, base in (("s", 0), ("y", self._memory)) for slot in self._slots}

    def restore(self, values: dict[str, Any]) -> None:
        """Become what had these `values`, once its `vectors` are written to these."""
        self._slots = list(values["slots"])
        for name, table in self._products().items():
            table[:] = values[name]

    def _products(self) -> dict[str, np.ndarray]:
        return {"sy": self._sy, "yy": self._yy, "sg": self._sg, "yg": self._yg}

    def _free(self) -> int:
        return next(slot for slot in range(self._memory) if slot not in self._slots)

    def _rows(self) -> list[np.ndarray]:
        return [self._vectors[base + slot] for base in (0, self._memory) for slot in self._slots]
