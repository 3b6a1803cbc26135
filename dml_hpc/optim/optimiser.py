"""Optimisers: how a gradient becomes a step.

All of them minimise loss + ½·l2·‖w‖² + l1·‖w‖₁: g is the gradient of the loss, each element clipped, plus l2·w, and the
L1 penalty is applied by the proximal step that follows, which makes weights exactly 0. With μ the momentum and η
the step size:

- ``sgd``: heavy ball, u ← μu + g, w ← w − ηu (Polyak 1964; η outside as in Sutskever et al., ICML 2013)
- ``nesterov``: u ← μu + g, w ← w − η(g + μu): Nesterov's momentum in the form of Sutskever et al., written for
  the point looked ahead to, where the gradient is taken (Bengio, Boulanger-Lewandowski and Pascanu, ICASSP 2013)
- ``adagrad``: G ← G + g², w ← w − ηg/(√G + ε) (Duchi, Hazan and Singer, JMLR 2011)
- ``rmsprop``: v ← β₂v + (1 − β₂)g², w ← w − ηg/(√v + ε) (Tieleman and Hinton, lecture 6.5, 2012; they took β₂ = 0.9)
- ``adam``: m ← μm + (1 − μ)g, v as above, w ← w − ηm̂/(√v̂ + ε), m̂ = m/(1 − μᵗ), v̂ = v/(1 − β₂ᵗ) (Kingma and Ba,
  ICLR 2015)
- ``adamw``: adam, but l2 stays out of g: w ← w − η(m̂/(√v̂ + ε) + l2·w) (Loshchilov and Hutter, ICLR 2019)

The proximal step moves a weight towards 0 by its own step size times l1: η, and η/(√· + ε) for the adaptive ones
(composite mirror descent in the diagonal metric, Duchi et al.; a weight that has had no gradient yet, only ε in its
metric, goes straight to 0). Where there is momentum, u also gathers the
subgradient of l1·|w| that the proximal step applied, as if it had been part of g (for ``sgd`` that is the inertial
proximal method iPiano, Ochs et al. 2014): else u would hold a force that the penalty balances, and at rest l1 would
count 1 − μ times what it should.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from dml_hpc.device import Array, Device
from dml_hpc.errors import UserError
from dml_hpc.kernels import sparse_updates, updates
from dml_hpc.optim import OPTIMISERS
from dml_hpc.optim.settings import OptimiserSettings

_RULES = {"sgd": updates.MOMENTUM, "nesterov": updates.NESTEROV, "adagrad": updates.ADAGRAD,
          "rmsprop": updates.RMSPROP, "adam": updates.ADAM, "adamw": updates.ADAM}
_STATES = {updates.PLAIN: 0, updates.ADAM: 2}  # and one for every other rule
_AVERAGING_DEGREE = 3
CHANGING = 5
"""How many numbers `Optimiser.changing` returns."""
_SMALLEST_PRODUCT = 1e-6  # the toll grows as the product shrinks; both start anew before digits are lost


class Optimiser:
    """Looks after elements ``owned`` (start, stop) of a vector of weights, and holds state for these alone.

    ``penalised`` are the ranges of the whole vector that the penalties mean, in ascending order and disjoint.
    With ``repeats`` it also remembers what a step changes, so that the step can be taken again with another gradient.
    With ``average_iterates`` it keeps, in the same pass, a polynomial-decay average of the weights (Shamir and Zhang,
    ICML 2013, η = 3), of which later steps count more and which is good at any time.

    ``state`` are arrays (stop − start,) of ``dtype``, ``average`` is one or None. With a ``device`` these lie there,
    and so must what `update` is given; the steps' bits are the same. Raises `ValueError` for an unknown name.
    """

    def __init__(self, settings: OptimiserSettings, owned: tuple[int, int], dtype: np.dtype,
                 penalised: Sequence[tuple[int, int]], repeats: bool = False, average_iterates: bool = False,
                 device: Device | None = None):
        if settings.name not in OPTIMISERS:
            raise ValueError(f"unknown optimiser {settings.name!r}")
        kind, count = np.dtype(dtype).type, owned[1] - owned[0]
        self.settings, self._kind = settings, kind
        self._rule = _RULES[settings.name]
        if self._rule in (updates.MOMENTUM, updates.NESTEROV) and settings.momentum == 0:
            self._rule = updates.PLAIN
        self._first = owned[0]
        self._edges: Array = _edges(owned, penalised if settings.l1 or settings.l2 else ())
        self._on_device = device is not None
        zeros: Any = np.zeros
        self._take_step = updates.take_step
        if device is not None:
            from dml_hpc.kernels.cuda import updates as cuda_updates

            zeros, self._edges = device.zeros, device.put(self._edges)
            self._take_step = partial(cuda_updates.take_step, device)
        self.state: list[Array] = [zeros(count, dtype) for _ in range(_STATES.get(self._rule, 1))]
        self.average: Array | None = zeros(count, dtype) if average_iterates else None
        kept = 1 + len(self.state) + average_iterates
        self._before: list[Array] = [zeros(count, dtype) for _ in range(kept)] if repeats else []
        self._clip = kind(math.inf if settings.clip_value is None else settings.clip_value)
        self._momentum, self._epsilon, self._l1 = kind(settings.momentum), kind(settings.epsilon), kind(settings.l1)
        self._fresh1, self._fresh2 = kind(1 - settings.momentum), kind(1 - settings.beta2)
        decoupled = settings.name == "adamw"
        self._l2, self._decay = kind(0 if decoupled else settings.l2), kind(settings.l2 if decoupled else 0)
        self._paid = np.empty((0, 2))
        self._product, self._toll = 1.0, 0.0

    def changing(self, unit: float, step_size: float, t: int) -> tuple[float, float, float, float, float]:
        """Return what changes from step to step as `update` uses it: unit, step size, corrections, averaging's pace.

        Rounded to the weights' type, but for ``unit``: that of sums in int64 is used as it is.
        """
        correct1 = correct2 = 1.0
        if self._rule == updates.ADAM:
            correct1 = 1 / (1 - self.settings.momentum ** t)
            correct2 = 1 / math.sqrt(1 - self.settings.beta2 ** t)
        kind, pace = self._kind, (_AVERAGING_DEGREE + 1) / (t + _AVERAGING_DEGREE)
        return unit, float(kind(step_size)), float(kind(correct1)), float(kind(correct2)), float(kind(pace))

    def update(self, weights: Array, summed: Array, start: int, unit: float, step_size: float, t: int,
               again: bool = False, changing: Array | None = None) -> None:
        """Change ``weights`` (count,), which are elements ``start`` … of all, in place by one step.

        ``summed`` (count,) times ``unit`` is the gradient of the loss by them: of the weights' dtype, or int64; on a
        device it may be `dml_hpc.kernels.cuda.sums.LazySum`. ``t`` is the number of the step, from 1. Step by step it
        is called for parts that make up what is owned, in any order. ``again`` takes the last step back first. On a
        device, ``changing`` (5,) float64 may lie there: what `changing` says is read from it when the step is taken,
        and ``unit``, ``step_size`` and ``t`` are not used. After `update_at`, `settle` before this.
        """
        kind = weights.dtype.type
        own = slice(start - self._first, start - self._first + len(weights))
        state = [array[own] for array in self.state]
        averages = [] if self.average is None else [self.average[own]]
        for now, before in zip((weights, *state, *averages), self._before, strict=False):  # none without repeats
            source, target = (before[own], now) if again else (now, before[own])
            target[:] = source
        average = averages[0] if averages else weights[:0]
        first, second = (*state, weights[:0], weights[:0])[:2]
        unit, *scalars = self.changing(unit, step_size, t)
        size, correct1, correct2, pace = map(kind, scalars)
        there = {} if changing is None else {"changing": changing}
        self._take_step(self._rule, weights, summed, first, second, average, start, self._edges,
                        kind(unit) if summed.dtype == weights.dtype else unit, self._clip, size, self._momentum,
                        self._fresh1, self._fresh2, correct1, correct2, self._epsilon, self._l1, self._l2, self._decay,
                        pace, **there)

    def reset(self) -> None:
        """Forget all steps taken: the state of one that was just opened. After `update_at`, `settle` before this."""
        for array in [*self.state, *self._before, *([] if self.average is None else [self.average])]:
            array[:] = 0

    def vectors(self) -> dict[str, Array]:
        """Return, by name, what later steps depend on beside the weights: (stop − start,) each, to be read or written.

        What lets a step be taken again is not among them: it means the last step only. After `update_at`, `settle`
        before this.
        """
        found = {f"state{place}": array for place, array in enumerate(self.state)}
        return found if self.average is None else {**found, "average": self.average}

    @property
    def sparse_able(self) -> bool:
        """Whether `update_at` can be used: plain SGD or AdaGrad without l2; no average, no repeats, no device.

        (AdaGrad's l2 enters G step by step, which has no closed form.)
        """
        return (self._rule == updates.PLAIN or (self._rule == updates.ADAGRAD and not self.settings.l2)) \
            and self.average is None and not self._before and not self._on_device

    def update_at(self, weights: np.ndarray, indices: np.ndarray, values: np.ndarray, unit: float,
                  step_size: float) -> None:
        """Take the step that `update` takes for a gradient that is unit·``values`` at ``indices`` and 0 elsewhere.

        ``weights`` are all that are owned; ``indices`` unique int64 numbers of elements of the whole vector, all of
        them owned, in any order; ``values`` (len(indices),) of the weights' dtype or int64. Weights that are not
        touched pay their penalties later: `settle` those that are read in between. Raises `UserError` where
        step_size·l2 is 1 or more.
        """
        kind, l2 = weights.dtype.type, self.settings.l2
        product, toll = self._product, self._toll
        if self._edges.size > 2:
            if step_size * l2 >= 1:
                raise UserError(f"the step size {step_size:g} times the l2 penalty {l2:g} must be below 1: "
                                "take a smaller step size")
            product *= 1 - step_size * l2
            toll += step_size * self.settings.l1 / product
        sparse_updates.step_at(*self._lazy(weights), indices, self._product, self._toll, values,
                               kind(unit) if values.dtype == weights.dtype else unit, self._clip, kind(step_size),
                               self._l1, self._l2, product, toll)
        self._product, self._toll = product, toll
        if product < _SMALLEST_PRODUCT:
            self.settle(weights)

    def settle(self, weights: np.ndarray, indices: np.ndarray | None = None) -> None:
        """Make ``weights`` (all that are owned), or those at ``indices``, what they are worth after `update_at`."""
        if not len(self._paid):
            return
        if indices is not None:
            sparse_updates.pay_at(*self._lazy(weights), indices, self._product, self._toll)
            return
        sparse_updates.pay_all(*self._lazy(weights), self._product, self._toll)
        self._paid[:] = 1, 0
        self._product, self._toll = 1.0, 0.0

    def _lazy(self, weights: np.ndarray) -> tuple:
        """Return what every kernel of `sparse_updates` is told first."""
        if not len(self._paid) and self._edges.size > 2:
            self._paid = np.zeros((len(weights), 2))
            self._paid[:, 0] = 1
        squares = self.state[0] if self.state else weights[:0]
        return weights, squares, self.settings.epsilon, self._paid, self._first, self._edges


def _edges(owned: tuple[int, int], penalised: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return where what is owned begins, where penalised runs begin and end in turn, and where it ends, int64."""
    edges = [owned[0]]
    for start, stop in penalised:
        start, stop = max(start, owned[0]), min(stop, owned[1])
        if start < stop:
            edges += [start, stop]
    return np.array([*edges, owned[1]], np.int64)
