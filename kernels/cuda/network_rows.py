"""Launches ``kernels/network_rows.cu``: a network's gradient in fixed point, whose bits no grid and no batch changes.

Arrays are the device's, otherwise what `dml_hpc.kernels.network_rows` says of them, with ``rows`` None for all in their
order. ``widths`` and ``starts`` are the host's: a sequence of whole numbers each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

from dml_hpc.device import Array, Device, cpp_name
from dml_hpc.kernels.cuda import network
from dml_hpc.kernels.cuda.network import ACTIVATIONS, across, block_of, blocks_for, stored_name

FILE = "network_rows.cu"
_TILE, _TILE_THREADS, _DEPTH = 32, 64, 16
_WARP = 32
_BUFFER_BYTES = 64 << 20
"""Of one layer's values, at most, unless there are few rows."""
_LEAST_ROWS, _MOST_ROWS = 256, 1 << 16
_MOST_BLOCKS = 65535


def fixed_point_gradient(device: Device, X: Array, y: Array, weight: Array | None, rows: Array | None,
                         widths: Sequence[int], starts: Sequence[int], parameters: Array, tanh: bool, shift: Array,
                         scale: Array, per_unit: float, per_loss_unit: float, out: Array) -> None:
    """Add the rows' gradient, loss and masses in fixed point to ``out`` (size + 3,) int64; see the twin.

    The bits of a row's term depend on the row and the parameters alone. They need not be the twin's: sums within a row
    are taken in another order.
    """
    def part(start: int, stop: int) -> _Part:
        chosen, own = (None, X[start:stop]) if rows is None else (rows[start:stop], X)
        return _Dense(own, chosen, shift, scale)

    _add(device, part, len(X) if rows is None else len(rows), y, weight, rows, widths, starts, parameters, tanh, scale,
         per_unit, per_loss_unit, out)


def sparse_fixed_point_gradient(device: Device, data: Array, indices: Array, indptr: Array, y: Array,
                                weight: Array | None, rows: Array | None, widths: Sequence[int], starts: Sequence[int],
                                parameters: Array, tanh: bool, scale: Array, per_unit: float, per_loss_unit: float,
                                out: Array) -> None:
    """As `fixed_point_gradient`, of sparse rows: they are scaled, never shifted."""
    def part(start: int, stop: int) -> _Part:
        if rows is None:
            return _Sparse(data, indices, indptr[start:stop + 1], None, scale)
        return _Sparse(data, indices, indptr, rows[start:stop], scale)

    _add(device, part, len(indptr) - 1 if rows is None else len(rows), y, weight, rows, widths, starts, parameters,
         tanh, scale, per_unit, per_loss_unit, out)


class _Part(ABC):
    """Some rows as the first layer takes them."""

    @abstractmethod
    def products(self, device: Device, block: Array, activation: str | None, out: Array) -> None:
        """Write what the first layer makes of the rows, ``block`` its parameters, to ``out`` (count, outputs)."""

    @abstractmethod
    def squares(self, device: Device, out: Array) -> None:
        """Write each row's ‖z‖² to ``out`` (count,)."""

    @abstractmethod
    def add(self, device: Device, slopes: Array, per_unit: float, kept: Array, out: Array) -> None:
        """Add the first layer's gradient, biases included, to ``out`` (features + 1, outputs)."""


class _Dense(_Part):
    def __init__(self, X: Array, rows: Array | None, shift: Array, scale: Array):
        self.X, self.rows, self.shift, self.scale = X, rows, shift, scale

    def products(self, device: Device, block: Array, activation: str | None, out: Array) -> None:
        _forward(device, self.X, self.rows, block, activation, out)

    def squares(self, device: Device, out: Array) -> None:
        device.launch(FILE, f"row_squares<{stored_name(self.X.dtype)}, {cpp_name(self.scale.dtype)}>",
                      _warps(device, len(out)), block_of(device), self.X, self.rows, len(out), self.X.shape[1],
                      self.shift, self.scale, out)

    def add(self, device: Device, slopes: Array, per_unit: float, kept: Array, out: Array) -> None:
        _add_products(device, self.X, self.rows, self.shift, self.scale, slopes, per_unit, kept, out)


class _Sparse(_Part):
    def __init__(self, data: Array, indices: Array, indptr: Array, rows: Array | None, scale: Array):
        self.csr, self.rows, self.scale = (data, indices, indptr), rows, scale
        self.kinds = ", ".join(cpp_name(array.dtype) for array in (data, scale, indices))

    def products(self, device: Device, block: Array, activation: str | None, out: Array) -> None:
        network.sparse_products(device, *self.csr, self.rows, block, out)
        network.activate(device, activation, out, block[-1])

    def squares(self, device: Device, out: Array) -> None:
        device.launch(FILE, f"sparse_row_squares<{self.kinds}>", _warps(device, len(out)), block_of(device), *self.csr,
                      self.rows, len(out), self.scale, out)

    def add(self, device: Device, slopes: Array, per_unit: float, kept: Array, out: Array) -> None:
        count, outputs = slopes.shape
        lanes = across(outputs)
        device.launch(FILE, f"sparse_fixed_products<{self.kinds}>", (_warps(device, count), -(-outputs // lanes)),
                      block_of(device), *self.csr, self.rows, count, self.scale, slopes, outputs, lanes, per_unit, kept,
                      out)
        none = slopes[:, :0]  # of inputs, that is, so that what is left are the biases
        _add_products(device, none, None, None, self.scale[-1:], slopes, per_unit, kept, out[-1:])


def _add(device: Device, part: Callable[[int, int], _Part], count: int, y: Array, weight: Array | None,
         rows: Array | None, widths: Sequence[int], starts: Sequence[int], parameters: Array, tanh: bool,
         scale: Array, per_unit: float, per_loss_unit: float, out: Array) -> None:
    """Do what `fixed_point_gradient` says, in chunks of so many rows that a layer's values stay small."""
    row_bytes = max(widths[1:]) * parameters.dtype.itemsize
    most = max(1, min(count, _MOST_ROWS, max(_LEAST_ROWS, _BUFFER_BYTES // row_bytes)))
    values = [device.empty((most, width), parameters.dtype) for width in widths[1:]]
    slopes = [device.empty((most, width), parameters.dtype) for width in widths[1:-1]]
    squares, totals, losses = (device.empty(most, "float64") for _ in range(3))
    kept = device.empty(most, "int32")
    blocks = [parameters[start:stop].reshape(-1, width) for (start, stop), width in zip(pairwise(starts), widths[1:],
                                                                                        strict=True)]
    sums = [out[start:stop].reshape(-1, width) for (start, stop), width in zip(pairwise(starts), widths[1:],
                                                                               strict=True)]
    activation = "tanh" if tanh else "relu"
    for start in range(0, count, most):
        stop = min(start + most, count)
        own = stop - start
        inputs, counted = part(start, stop), weight
        if rows is None:
            labels, numbers = y[start:stop], None
            counted = None if weight is None else weight[start:stop]
        else:
            labels, numbers = y, rows[start:stop]
        v, s = [matrix[:own] for matrix in values], [matrix[:own] for matrix in (*slopes, values[-1])]
        _through(device, inputs, blocks, activation, labels, counted, numbers, v, s, losses[:own])
        _decide(device, inputs, v, s, squares[:own], totals[:own], losses[:own], per_unit, per_loss_unit, kept, out)
        inputs.add(device, s[0], per_unit, kept, sums[0])
        for layer in range(1, len(sums)):
            _add_products(device, v[layer - 1], None, None, None, s[layer], per_unit, kept, sums[layer])


def _through(device: Device, inputs: _Part, blocks: list[Array], activation: str, y: Array, weight: Array | None,
             rows: Array | None, values: list[Array], slopes: list[Array], losses: Array) -> None:
    """Take rows through all layers and back; the scores, last of ``values``, become the last of ``slopes``."""
    last = len(blocks) - 1
    inputs.products(device, blocks[0], activation if last else None, values[0])
    for layer in range(1, last + 1):
        _forward(device, values[layer - 1], None, blocks[layer], activation if layer < last else None, values[layer])
    count, outputs = slopes[last].shape
    device.launch(FILE, f"row_losses<{cpp_name(slopes[last].dtype)}>", _warps(device, count), block_of(device),
                  slopes[last], y, weight, rows, count, outputs, losses)
    for layer in range(last, 0, -1):
        _backward(device, slopes[layer], blocks[layer], activation, values[layer - 1], slopes[layer - 1])


def _decide(device: Device, inputs: _Part, values: list[Array], slopes: list[Array], squares: Array, totals: Array,
            losses: Array, per_unit: float, per_loss_unit: float, kept: Array, out: Array) -> None:
    """Add the rows' masses and losses to the end of ``out``, and say in ``kept`` whose gradients may be added."""
    count, kind = len(squares), cpp_name(values[0].dtype)
    inputs.squares(device, squares)
    for layer, (own, slope) in enumerate(zip(values, slopes, strict=True)):
        device.launch(FILE, f"row_masses<{kind}>", _warps(device, count), block_of(device), slope, own, count,
                      own.shape[1], layer == 0, squares, totals)
    device.launch(FILE, f"row_decisions<{kind}>", blocks_for(device, -(-count // block_of(device))), block_of(device),
                  totals, losses, count, len(out) - 3, per_unit, per_loss_unit, kept, out)


def _forward(device: Device, A: Array, rows: Array | None, block: Array, activation: str | None, out: Array) -> None:
    """Write f(A·W + b) to ``out`` (count, outputs); row i of A is row ``rows[i]``."""
    _products(device, A, rows, block, block[-1], None, len(block) - 1, activation, out, False)


def _backward(device: Device, slopes: Array, block: Array, activation: str, activations: Array, out: Array) -> None:
    """Write slopes·Wᵀ times the activation's slopes to ``out`` (count, inputs)."""
    _products(device, slopes, None, block, None, activations, slopes.shape[1], activation, out, True)


def _products(device: Device, A: Array, rows: Array | None, block: Array, biases: Array | None,
              activations: Array | None, inner: int, activation: str | None, out: Array, backward: bool) -> None:
    count, columns = out.shape
    kernel = f"row_products<{stored_name(A.dtype)}, {cpp_name(out.dtype)}, {'true' if backward else 'false'}>"
    device.launch(FILE, kernel, (-(-count // _TILE), -(-columns // _TILE)), _TILE_THREADS, A, rows, count, inner, block,
                  biases, activations, columns, ACTIVATIONS[activation], out)


def _add_products(device: Device, A: Array, rows: Array | None, shift: Array | None, scale: Array | None,
                  slopes: Array, per_unit: float, kept: Array, out: Array) -> None:
    """Add Σ int(z·step) to ``out`` (inputs + 1, outputs), its last row for the biases; rows that are not kept are 0."""
    (count, outputs), width = slopes.shape, A.shape[1]
    tiles = -(-(width + 1) // _TILE), -(-outputs // _TILE)
    deep = max(1, min(-(-count // (4 * _DEPTH)), 16 * device.processors // (tiles[0] * tiles[1]), _MOST_BLOCKS))
    device.launch(FILE, f"fixed_products<{stored_name(A.dtype)}, {cpp_name(slopes.dtype)}>", (*tiles, deep),
                  _TILE_THREADS, A, rows, count, width, shift, scale, slopes, outputs, per_unit, kept, out)


def _warps(device: Device, count: int) -> int:
    """Return how many blocks have a warp for each of ``count`` rows, or take several."""
    return blocks_for(device, -(-count * _WARP // block_of(device)))
