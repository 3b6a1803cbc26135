"""Networks on a device: the vendor's matrix products, and kernels that do all that is between them in one pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.data.reading import Rows
from dml_hpc.device import Array, Device
from dml_hpc.kernels.cuda import network, network_rows, softmax_steps
from dml_hpc.objectives.layers import Layers
from dml_hpc.objectives.network import Network
from dml_hpc.objectives.on_device import DeviceObjective, DeviceSequential

MOST_ROWS, LEAST_ROWS = 1 << 17, 512
CHUNK_BYTES = 128 << 20
"""Of a chunk's rows and values, unless it would have fewer than `LEAST_ROWS`: enough for a GPU to take longer over each
kernel than it takes to launch the next."""


class DeviceNetwork(DeviceObjective):
    """Takes rows through the network a chunk at a time, in buffers that stay.

    The same parts give the same sums, but for those of sparse rows' first layer, which are added up in the order in
    which they arrive. `Network.needed` and `Network.finished` are not called. It is not ``capturable``, as
    CuPy refuses to capture the vendor's matrix products.
    """

    def __init__(self, objective: Network, device: Device):
        super().__init__(objective, device)
        self._activation = objective.activation
        self._passes_kept: _Passes | None = None

    def loss_and_gradient(self, layers: Layers, part: Rows, parameters: Array, gradient: Array, loss: Array) -> None:
        """See `DeviceObjective.loss_and_gradient`."""
        passes = self._passes(layers, parameters.dtype)
        biases = layers.block(gradient, len(layers.widths) - 2)[-1]
        for chunk in passes.chunks(part):
            scores = passes.forward(chunk.X, chunk.rows, parameters)
            self._slopes(layers, scores, chunk, parameters, biases, loss)
            passes.backward(scores, parameters, gradient)

    def summed_loss(self, layers: Layers, part: Rows, parameters: Array, loss: Array) -> None:
        """See `DeviceObjective.summed_loss`."""
        passes = self._passes(layers, parameters.dtype)
        for chunk in passes.chunks(part):
            self._slopes(layers, passes.forward(chunk.X, chunk.rows, parameters), chunk, parameters, None, loss)

    def _slopes(self, layers: Layers, scores: Array, chunk: Rows, parameters: Array, bias_gradient: Array | None,
                loss: Array) -> None:
        """Turn ``scores`` (count, outputs), less their biases, into the loss's slopes; add it, and their sum."""
        slopes = network.squared_slopes if layers.outputs == 1 else network.softmax_slopes
        biases = layers.block(parameters, len(layers.widths) - 2)[-1]
        slopes(self.device, scores, biases, chunk.y, chunk.weight, chunk.rows, bias_gradient, loss)

    def fixed_point_gradient(self, layers: Layers, part: Rows, parameters: Array, shift: Array, scale: Array,
                             per_unit: float, per_loss_unit: float, out: Array) -> None:
        """See `DeviceObjective.fixed_point_gradient`."""
        (X, y, rows, weight), form = part, (layers.widths, layers.starts, parameters, self._activation == "tanh")
        if isinstance(X, Csr):
            network_rows.sparse_fixed_point_gradient(self.device, X.data, X.indices, X.indptr, y, weight, rows, *form,
                                                     scale, per_unit, per_loss_unit, out)
        else:
            network_rows.fixed_point_gradient(self.device, X, y, weight, rows, *form, shift, scale, per_unit,
                                              per_loss_unit, out)

    def scores(self, layers: Layers, X: Array | Csr, parameters: Array, out: Array) -> None:
        """See `DeviceObjective.scores`."""
        passes, biases = self._passes(layers, parameters.dtype), layers.block(parameters, len(layers.widths) - 2)[-1]
        step = passes.most_rows(X)
        for start in range(0, len(X), step):
            part = X[start:start + step]
            scores = passes.forward(part, None, parameters)
            network.activate(self.device, None, scores, biases)
            out[start:start + len(part)] = scores

    def sequential_sgd(self, layers: Layers, part: Rows, shift: Array, scale: Array, state: DeviceSequential,
                       step_size: float, loss: Array) -> None:
        """See `DeviceObjective.sequential_sgd`; for networks of one layer, as `Softmax` is."""
        if not self.objective.sequential:
            super().sequential_sgd(layers, part, shift, scale, state, step_size, loss)
        X, y, rows, weight = part
        if isinstance(X, Csr):
            state.hold(layers.outputs)
            softmax_steps.sparse_steps(self.device, X.data, X.indices, X.indptr, y, weight, rows, scale,
                                       layers.block(state.parameters, 0), state.seen, state.worth, step_size, state.l1,
                                       state.l2, loss)
        else:
            softmax_steps.steps(self.device, X, y, weight, rows, shift, scale, layers.block(state.settle(), 0),
                                step_size, state.l1, state.l2, loss)

    def _passes(self, layers: Layers, dtype: np.dtype) -> _Passes:
        """Return what goes through the layers, with its buffers."""
        passes = self._passes_kept
        if passes is None or passes.layers != layers or passes.dtype != dtype:
            self._passes_kept = passes = _Passes(self.device, layers, dtype, self._activation)
        return passes


class _Passes:
    """Forward and backward through ``layers``, with parameters of ``dtype``, a chunk at a time."""

    def __init__(self, device: Device, layers: Layers, dtype: np.dtype, activation: str):
        self.device, self.layers, self.dtype, self._activation = device, layers, np.dtype(dtype), activation
        self._gathered = device.empty((0, layers.features), dtype)
        self._outputs: list[Array] = []
        self._slopes: list[Array] = []
        self._products = device.empty(max(stop - start for start, stop in layers.penalised), dtype)
        self._inputs: Array | Csr = self._gathered
        self._rows: Array | None = None

    def most_rows(self, X: Array | Csr) -> int:
        """Return how many rows of X a chunk may have."""
        elements = 2 * sum(self.layers.widths[1:]) + (0 if isinstance(X, Csr) else self.layers.features)
        return min(MOST_ROWS, max(LEAST_ROWS, CHUNK_BYTES // (elements * self.dtype.itemsize)))

    def _fit(self, count: int) -> None:
        """Have buffers for ``count`` rows."""
        if not self._outputs or len(self._outputs[0]) < count:
            self._outputs, self._slopes = [], []  # before there are new ones
            self._outputs = [self.device.empty((count, width), self.dtype) for width in self.layers.widths[1:]]
            self._slopes = [self.device.empty((count, width), self.dtype) for width in self.layers.widths[1:-1]]

    def chunks(self, part: Rows) -> Iterator[Rows]:
        """Yield the rows of a part, at most `most_rows` at a time; ``rows`` stay None where they are."""
        X, y, rows, weight = part
        count, step = len(X) if rows is None else len(rows), self.most_rows(X)
        for start in range(0, count, step):
            own = slice(start, min(start + step, count))
            if rows is None:
                yield Rows(X[own], y[own], rows, None if weight is None else weight[own])
            else:
                yield Rows(X, y, rows[own], weight)

    def forward(self, X: Array | Csr, rows: Array | None, parameters: Array) -> Array:
        """Return x·W of the last layer, its biases not yet added, (count, outputs); valid until the next call."""
        count, last = len(X) if rows is None else len(rows), len(self.layers.widths) - 2
        self._fit(count)
        self._inputs, self._rows = (X, rows) if isinstance(X, Csr) else (self._dense(X, rows, count), None)
        inputs = self._inputs
        for layer, buffer in enumerate(self._outputs):
            block, out = self.layers.block(parameters, layer), buffer[:count]
            if isinstance(inputs, Csr):
                network.sparse_products(self.device, inputs.data, inputs.indices, inputs.indptr, rows, block, out)
            else:
                self.device.xp.matmul(inputs, block[:-1], out=out)
            if layer < last:
                network.activate(self.device, self._activation, out, block[-1])
                inputs = out
        return out

    def backward(self, slopes: Array, parameters: Array, gradient: Array) -> None:
        """Add to ``gradient`` what the chunk that went forward last adds, its ``slopes`` (count, outputs) given.

        The last layer's biases have been added already.
        """
        xp, count = self.device.xp, len(slopes)
        for layer in reversed(range(len(self._outputs))):
            inputs = self._outputs[layer - 1][:count] if layer else self._inputs
            block = self.layers.block(gradient, layer)
            if isinstance(inputs, Csr):
                network.scatter_slopes(self.device, inputs.data, inputs.indices, inputs.indptr, self._rows, slopes,
                                       block)
                return
            weights = block[:-1]
            products = self._products[:weights.size].reshape(weights.shape)
            xp.matmul(inputs.T, slopes, out=products)
            xp.add(weights, products, out=weights)
            if layer:
                before = self._slopes[layer - 1][:count]
                xp.matmul(slopes, self.layers.block(parameters, layer)[:-1].T, out=before)
                network.through(self.device, self._activation, before, inputs,
                                self.layers.block(gradient, layer - 1)[-1])
                slopes = before

    def _dense(self, X: Array, rows: Array | None, count: int) -> Array:
        """Return rows as a matrix of the parameters' dtype: X's own memory where that is possible."""
        if rows is None and X.dtype == self.dtype:
            return X
        if len(self._gathered) < count:
            self._gathered = self.device.empty((count, self.layers.features), self.dtype)
        network.gather(self.device, X, rows, self._gathered[:count])
        return self._gathered[:count]
