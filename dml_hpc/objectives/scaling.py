"""Standardised features without rewriting the data: the scaling is folded into the weights.

With z_j = (x_j − m_j)·c_j the score is Σ w_j·z_j + b = Σ (w_j·c_j)·x_j + (b − Σ w_j·c_j·m_j): a linear map of the
weights, whose transpose takes the gradient back (chain rule). Of several outputs each has weights of its own; of
several layers the first one alone sees the features.
"""

from __future__ import annotations

import numpy as np

from dml_hpc.objectives.layers import Layers

_FEATURES_A_PIECE = 1024
"""Of several outputs: so that what is allocated once stays small, and in the cache."""


class Scaling:
    """``shift`` m (features,) and ``scale`` c (features + 1,); c of the intercept is 1, or 0 when there is none.

    ``trivial`` says that nothing is changed at all, ``shifts`` whether any shift is not 0.
    """

    def __init__(self, layers: Layers, shift: np.ndarray, scale: np.ndarray):
        self.shift = shift
        self.scale = scale
        self._layers, self._outputs = layers, layers.widths[1]
        self.shifts = bool(np.any(shift != 0))
        self.trivial = not self.shifts and bool(np.all(scale == 1))
        rows = len(shift) if self._outputs == 1 else min(len(shift), _FEATURES_A_PIECE)
        self._change = np.empty((rows if self.shifts else 0, self._outputs), shift.dtype)

    def fold(self, parameters: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Return the parameters for raw rows that score as ``parameters`` do for standardised ones.

        Both (size,). They are written to ``out``; where nothing changes they are ``parameters`` themselves.
        """
        if self.trivial:
            return parameters
        first = self._layers.starts[1]
        out[first:] = parameters[first:]
        block = self._layers.block(out, 0)
        np.multiply(self._layers.block(parameters, 0), self.scale[:, None], out=block)
        if not self.shifts:
            return out
        # Not BLAS, whose order of addition depends on its number of threads.
        if self._outputs == 1:
            np.multiply(self.shift, block[:-1, 0], out=self._change[:, 0])
            block[-1, 0] -= self._change[:, 0].sum()
            return out
        total = np.zeros(self._outputs)
        for start, stop in self._pieces():
            change = self._change[:stop - start]
            np.multiply(self.shift[start:stop, None], block[start:stop], out=change)
            total += change.sum(axis=0, dtype=np.float64)
        block[-1] -= total.astype(out.dtype)
        return out

    def pull_back(self, gradient: np.ndarray) -> None:
        """Turn the ``gradient`` by raw parameters (size,) into that by standardised ones, in place.

        As it is linear, so may the sum of several gradients be turned, or each of them.
        """
        if self.trivial:
            return
        block = self._layers.block(gradient, 0)
        for start, stop in self._pieces() if self.shifts else ():
            change = self._change[:stop - start]
            np.multiply(self.shift[start:stop, None], block[-1], out=change)
            block[start:stop] -= change
        block *= self.scale[:, None]

    def _pieces(self) -> list[tuple[int, int]]:
        count, rows = len(self.shift), len(self._change)
        return [(start, min(start + rows, count)) for start in range(0, count, rows)]


def standardising(layers: Layers, mean: np.ndarray, deviation: np.ndarray, numeric: np.ndarray, intercept: bool,
                  dtype: np.dtype) -> Scaling:
    """Return the scaling that gives numeric features mean 0 and deviation 1 and leaves the others as they are.

    All (features,). A feature that never varies is switched off (scale 0), as it tells nothing. Without an
    intercept there is nothing to take up the shift, so features are divided by their deviation only.
    """
    scaled = numeric & (deviation > 0)
    scale = np.ones(len(mean) + 1)
    scale[:-1][scaled] = 1 / deviation[scaled]
    scale[:-1][numeric & ~scaled] = 0
    scale[-1] = float(intercept)
    shift = np.where(numeric, mean, 0.0) if intercept else np.zeros(len(mean))
    return Scaling(layers, shift.astype(dtype), scale.astype(dtype))


def of_sparse(layers: Layers, minimum: np.ndarray, maximum: np.ndarray, numeric: np.ndarray, intercept: bool,
              dtype: np.dtype) -> Scaling:
    """Return the scaling that brings numeric features of sparse rows into −1 … 1 and leaves the others as they are.

    All (features,). Nothing is shifted, as zeros are to stay zeros, and a feature is divided by its largest magnitude
    rather than by its deviation, which is tiny where hardly any row has it.
    """
    largest = np.maximum(-minimum, maximum)
    scale = np.ones(len(largest) + 1)
    scaled = numeric & (largest > 0)
    scale[:-1][scaled] = 1 / largest[scaled]
    scale[-1] = float(intercept)
    return Scaling(layers, np.zeros(len(largest), dtype), scale.astype(dtype))


def identity(layers: Layers, intercept: bool, dtype: np.dtype) -> Scaling:
    """Return the scaling that changes nothing, but for the intercept that there may be none of."""
    none = np.zeros(layers.features)
    return standardising(layers, none, none, np.zeros(layers.features, bool), intercept, dtype)
