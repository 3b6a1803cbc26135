"""Stochastic gradient descent with momentum."""

from __future__ import annotations

import numpy as np

from dml_hpc.kernels.updates import momentum_step


class Sgd:
    """Heavy-ball momentum: u ← μu + g, w ← w − ηu (Polyak 1964; the form of Sutskever et al., ICML 2013, with η
    outside); g includes the gradient of ½·l2·‖w‖² over the first ``penalised`` weights. μ = 0 is plain SGD.

    Looks after elements ``owned`` of the weights, and holds their velocities only. With ``repeats`` it also remembers
    what a step changes, so that the step can be taken again with another gradient.
    """

    def __init__(self, owned: tuple[int, int], dtype: np.dtype, penalised: int, momentum: float = 0.0, l2: float = 0.0,
                 repeats: bool = False):
        self._first = owned[0]
        self._velocity = np.zeros(owned[1] - owned[0], dtype)
        self._before = (np.zeros_like(self._velocity), np.zeros_like(self._velocity)) if repeats else None
        self._penalised = penalised
        self._momentum, self._l2 = dtype.type(momentum), dtype.type(l2)

    def update(self, weights: np.ndarray, summed: np.ndarray, start: int, unit: float, step_size: float,
               again: bool = False) -> None:
        """Change ``weights`` (count,), which are elements ``start`` … of all, in place by one step.

        ``summed`` (count,) times ``unit`` is their gradient: of the weights' dtype, or int64. ``again`` takes the last
        step back first.
        """
        kind = weights.dtype.type
        own = slice(start - self._first, start - self._first + len(weights))
        velocity = self._velocity[own]
        if self._before is not None:
            for now, before in zip((weights, velocity), self._before, strict=True):
                source, target = (before[own], now) if again else (now, before[own])
                target[:] = source
        momentum_step(weights, summed, velocity, max(0, self._penalised - start),
                      kind(unit) if summed.dtype == weights.dtype else unit, kind(step_size), self._momentum, self._l2)
