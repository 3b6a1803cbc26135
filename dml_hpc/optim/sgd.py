"""Stochastic gradient descent with momentum."""

from __future__ import annotations

import numpy as np


class Sgd:
    """Heavy-ball momentum: u ← μu + g, w ← w − ηu (Polyak 1964; the form of Sutskever et al., ICML 2013, with η
    outside). μ = 0 is plain SGD. The state ``velocity`` has the weights' shape and dtype.
    """

    def __init__(self, weights: np.ndarray, momentum: float = 0.0):
        self.momentum = momentum
        self.velocity = np.zeros_like(weights)
        self._change = np.empty_like(weights)

    def update(self, weights: np.ndarray, gradient: np.ndarray, step_size: float) -> None:
        """Change ``weights`` in place by one step; ``gradient`` is left as it is."""
        self.velocity *= self.momentum
        self.velocity += gradient
        np.multiply(self.velocity, step_size, out=self._change)
        weights -= self._change
