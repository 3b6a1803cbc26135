"""The gradient of a step as a reducer's buffer takes it: in floats, or in fixed point for reproducible sums."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np

from dml_hpc.data.reading import Rows
from dml_hpc.store.state import Values
from dml_hpc.trainers.problem import Problem


class Gradient(ABC):
    """What a rank adds to a step's sum: the gradient by standardised parameters (size,), then ``extra`` elements.

    The first of these is the loss, the last how many ranks say that their time is over. ``dtype`` is that of the
    reducer's buffer; the gradient's sum times ``unit`` is the real one, the loss's times ``loss_unit``. With
    ``repeats``, `judge` may want a sum done again.
    """

    dtype: str
    extra: int
    unit: float
    loss_unit: float
    own_loss = 0.0
    """This rank's share of the loss that was filled last, in float64, for sums in floats."""
    repeats = False

    @abstractmethod
    def fill(self, parts: Iterable[Rows], folded: np.ndarray, buffer: np.ndarray, late: bool) -> None:
        """Write this rank's share to ``buffer``; ``folded`` are the parameters for rows as they are stored."""

    def judge(self, last: np.ndarray, rows: int) -> float | None:
        """Return the summed loss of a step's ``rows`` rows, or None: the sum is no good and must be done again.

        ``last`` (extra,) are the last elements of the sum, the loss already in real units. Every rank is given the
        same, and so answers the same.
        """
        return float(last[0])

    def state(self) -> Values:
        """Return what the next sum depends on beside the parameters, the same on every rank."""
        return {}

    def restore(self, values: Values) -> None:  # noqa: B027 -- most have nothing
        """Go on from where `state` was taken."""


class FloatGradient(Gradient):
    """Sums in the dtype of the parameters; their last bits depend on the order of addition."""

    extra = 2
    unit = loss_unit = 1.0

    def __init__(self, problem: Problem):
        self._problem = problem
        self.dtype = str(problem.dtype)

    def fill(self, parts: Iterable[Rows], folded: np.ndarray, buffer: np.ndarray, late: bool) -> None:
        """See `Gradient.fill`."""
        gradient = buffer[:-self.extra]
        gradient[:] = 0
        self.own_loss = buffer[-2] = self._problem.loss_and_gradient(parts, folded, gradient)
        buffer[-1] = late
        self._problem.scaling.pull_back(gradient)


class FixedPointGradient(Gradient):
    """Sums of integers, whose bits depend on nothing but the rows and the parameters.

    Every row's term is rounded to a multiple of ``unit``, a power of two; the loss, which may be of quite another size,
    has a unit of its own. Two more elements, the masses, bound the others (see
    `dml_hpc.kernels.glm.fixed_point_gradient`): where one is too large the sum may have overflowed, where it is too
    small the unit is coarse; then the sum is done again with another unit, derived from what all ranks share.
    """

    dtype = "int64"
    extra = 4
    repeats = True

    def __init__(self, problem: Problem):
        self._problem = problem
        self.unit = self.loss_unit = 2.0**-20

    def fill(self, parts: Iterable[Rows], folded: np.ndarray, buffer: np.ndarray, late: bool) -> None:
        """See `Gradient.fill`."""
        buffer[:] = 0
        self._problem.fixed_point_gradient(parts, folded, 1 / self.unit, 1 / self.loss_unit, buffer[:-1])
        buffer[-1] = late

    def judge(self, last: np.ndarray, rows: int) -> float | None:
        """See `Gradient.judge`; the loss is NaN when no unit is large enough."""
        loss, mass, loss_mass, _ = last.tolist()
        good, self.unit = _judged(mass, self.unit, rows)
        loss_good, self.loss_unit = _judged(loss_mass, self.loss_unit, rows)
        if max(self.unit, self.loss_unit) > _MOST_UNIT:
            return math.nan
        return loss if good and loss_good else None

    def state(self) -> Values:
        """See `Gradient.state`: the units, which were adapted to the sums so far."""
        return {"unit": self.unit, "loss_unit": self.loss_unit}

    def restore(self, values: Values) -> None:
        """See `Gradient.restore`."""
        self.unit, self.loss_unit = float(values["unit"]), float(values["loss_unit"])


MOST_ROWS = 1 << 28
"""In a batch: each adds up to one to the mass, which must leave room for what it measures."""
_MOST_MASS, _LEAST_MASS = 1 << 30, 1 << 8
"""Of a good sum: no element reaches 2⁶², and units are under 2⁻³⁹ of the sum's magnitude."""
_LARGE_MASS, _SMALL_MASS = 1 << 24, 1 << 16
"""Beyond these the next step's unit is adapted, so that hardly a sum is ever done twice."""
_MOST_UNIT, _LEAST_UNIT = 2.0**100, 2.0**-60


def _judged(mass: float, unit: float, rows: int) -> tuple[bool, float]:
    """Return whether a sum of ``rows`` terms with this mass is good, and the unit to go on with."""
    within = mass - rows  # each term's was rounded up
    if not 0 <= mass < _MOST_MASS:
        return False, unit * 2.0**16
    if within < _LEAST_MASS and unit > _LEAST_UNIT:
        return False, unit * 2.0**-10
    if within > _LARGE_MASS:
        return True, unit * 2.0**4
    if within < _SMALL_MASS and unit > _LEAST_UNIT:
        return True, unit * 2.0**-4
    return True, unit
