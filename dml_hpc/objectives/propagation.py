"""Forward and backward through fully connected layers, a chunk of rows at a time, by BLAS and in buffers that stay."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.kernels import network, plain
from dml_hpc.objectives.layers import Layers

MOST_ROWS, _LEAST_ROWS = 2048, 64
"""In a chunk: enough for BLAS to be at its best, and for a sum over chunks to cost little."""
_CHUNK_BYTES = 32 << 20
"""Of one buffer, unless it would hold too few rows."""
_PIECE = 1 << 18
"""Elements of a layer's gradient that are computed at once: they are still in the cache when they are added."""

class Hooks(NamedTuple):
    """Who wants to know how far a pass is; see `dml_hpc.objectives.network.Network`."""

    needed: Callable[[int], None] | None = None
    finished: Callable[[int, int], None] | None = None


class Propagation:
    """The passes of a network of ``layers`` with parameters of ``dtype``; ``activation`` is "relu" or "tanh".

    A chunk of at most `most_rows` rows goes forward, then backward.
    """

    def __init__(self, layers: Layers, dtype: np.dtype, activation: str):
        self.layers, self.dtype, self._activation = layers, np.dtype(dtype), activation
        rows = self._fitting(max(layers.widths[1:]))
        self._dense_rows = min(rows, self._fitting(layers.features))
        self._gathered = np.empty((0, layers.features), dtype)
        self._outputs = [np.empty((rows, width), dtype) for width in layers.widths[1:]]
        self._slopes = [np.empty((rows, width), dtype) for width in layers.widths[1:-1]]
        largest = max(rows * columns for rows, columns in pairwise(layers.widths))
        self._piece = np.empty(max(min(largest, _PIECE), max(layers.widths[1:])), dtype)
        self._chunk: tuple[np.ndarray | Csr, np.ndarray] = self._gathered, np.empty(0, np.int64)
        self._inputs = self._gathered

    def _fitting(self, width: int) -> int:
        return min(MOST_ROWS, max(_LEAST_ROWS, _CHUNK_BYTES // max(1, width * self.dtype.itemsize)))

    def most_rows(self, X: np.ndarray | Csr) -> int:
        """Return how many rows of X a chunk may have."""
        return len(self._outputs[0]) if isinstance(X, Csr) else self._dense_rows

    def forward(self, X: np.ndarray | Csr, rows: np.ndarray, parameters: np.ndarray, hooks: Hooks) -> np.ndarray:
        """Return x·W of the last layer, its biases not yet added, (count, outputs); valid until the next call."""
        count, self._chunk, layers = len(rows), (X, rows), self.layers
        if not isinstance(X, Csr):
            self._inputs = self._dense(X, rows)
        inputs = self._inputs
        for layer, buffer in enumerate(self._outputs):
            if hooks.needed is not None:
                hooks.needed(layer)
            block, out = layers.block(parameters, layer), buffer[:count]
            if layer == 0 and isinstance(X, Csr):
                network.sparse_products(X.data, X.indices, X.indptr, rows, block, out)
            else:
                np.matmul(inputs, block[:-1], out=out)
            if layer + 1 < len(self._outputs):
                self._activate(out, block[-1])
                inputs = out
        return out

    def backward(self, slopes: np.ndarray, parameters: np.ndarray, gradient: np.ndarray, hooks: Hooks) -> None:
        """Add to ``gradient`` what the chunk that went forward last adds, its ``slopes`` (count, outputs) given.

        The last layer's biases have been added already.
        """
        X, rows = self._chunk
        for layer in reversed(range(len(self._outputs))):
            if layer == 0 and isinstance(X, Csr):
                network.scatter_slopes(X.data, X.indices, X.indptr, rows, slopes, self.layers.block(gradient, 0))
                if hooks.finished is not None:
                    hooks.finished(0, self.layers.starts[1])
                return
            inputs = self._outputs[layer - 1][:len(rows)] if layer else self._inputs
            self._add_products(inputs, slopes, layer, gradient, hooks)
            if layer:
                before = self._slopes[layer - 1][:len(rows)]
                np.matmul(slopes, self.layers.block(parameters, layer)[:-1].T, out=before)
                through = network.through_relu if self._activation == "relu" else network.through_tanh
                through(before, inputs, self.layers.block(gradient, layer - 1)[-1])
                slopes = before

    def _add_products(self, inputs: np.ndarray, slopes: np.ndarray, layer: int, gradient: np.ndarray,
                      hooks: Hooks) -> None:
        """Add inputsᵀ·slopes to the weights of a layer, piece by piece."""
        block, start = self.layers.block(gradient, layer), self.layers.starts[layer]
        width, columns = self.layers.widths[layer:layer + 2]
        step = max(1, len(self._piece) // columns)
        for first in range(0, width, step):
            last = min(first + step, width)
            piece = self._piece[:(last - first) * columns].reshape(last - first, columns)
            np.matmul(inputs[:, first:last].T, slopes, out=piece)
            block[first:last] += piece
            if hooks.finished is not None:  # the biases go with the last piece
                hooks.finished(start + first * columns, start + (last + (last == width)) * columns)

    def _dense(self, X: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the rows as a matrix of the parameters' dtype: X's own memory where that is possible."""
        if X.dtype == self.dtype and network.are_consecutive(rows):
            return X[rows[0]:rows[-1] + 1]
        if not len(self._gathered):
            self._gathered = np.empty((self._dense_rows, self.layers.features), self.dtype)
        out = self._gathered[:len(rows)]
        network.gather(plain(X), rows, out)
        return out

    def _activate(self, out: np.ndarray, bias: np.ndarray) -> None:
        if self._activation == "relu":
            network.relu(out, bias)
        else:
            out += bias
            np.tanh(out, out=out)
