"""Launches ``kernels/network.cu``: what a network needs beside matrix products.

Arrays are the device's, otherwise what `dml_hpc.kernels.network` says of them, X in bfloat16 as bits (uint16) too, and
``rows`` None for all in their order. Losses are added to a (1,) float64 array. Slopes' sums come out the same whenever
the rows of a call are as many, and the device is of the same kind.
"""

from __future__ import annotations

from typing import Any

from dml_hpc.device import Array, Device, cpp_name

FILE = "network.cu"
ACTIVATIONS = {None: 0, "relu": 1, "tanh": 2}
"""Their numbers in the kernels."""
MOST_THREADS = 256
_BLOCKS_A_PROCESSOR = 4
_IN_FLIGHT = 4
"""How many rows or pieces a thread takes at once."""
_HELD = 4
"""How many classes a lane holds."""
_WARP, _ACCESS_BYTES = 32, 16


def stored_name(dtype: Any) -> str:
    """Return what elements of an X of ``dtype`` are called in C++; uint16 are the bits of bfloat16."""
    return "bfloat16" if dtype == "uint16" else cpp_name(dtype)


def block_of(device: Device) -> int:
    """Return how many threads a block has where that is open."""
    return min(device.block_threads, MOST_THREADS)


def blocks_for(device: Device, needed: int) -> int:
    """Return how many blocks to launch where ``needed`` would give each its work but once."""
    return max(1, min(needed, device.processors * _BLOCKS_A_PROCESSOR))


def across(width: int) -> int:
    """Return the power of two, 32 at most, of lanes that take ``width`` side by side."""
    return min(_WARP, 1 << max(width - 1, 0).bit_length())


def gather(device: Device, X: Array, rows: Array | None, out: Array) -> None:
    """Write the ``rows`` of X to ``out`` (count, features), converted to its dtype."""
    count, features = out.shape
    if not out.size:
        return
    threads, group = block_of(device), _WARP
    while group < threads and group * _IN_FLIGHT * _ACCESS_BYTES < features * X.dtype.itemsize:
        group *= 2
    if threads % group:
        group = _WARP
    device.launch(FILE, f"gather<{stored_name(X.dtype)}, {cpp_name(out.dtype)}>",
                  blocks_for(device, -(-count * group // threads)), threads, X, rows, count, features, group, out)


def activate(device: Device, activation: str | None, scores: Array, bias: Array) -> None:
    """Replace every row s of ``scores`` (count, outputs) by f(s + bias); ``activation`` None: without f."""
    if not scores.size:
        return
    threads = block_of(device)
    pieces = -(-scores.size * scores.dtype.itemsize // (_ACCESS_BYTES * _IN_FLIGHT))
    device.launch(FILE, f"activate<{cpp_name(scores.dtype)}, {ACTIVATIONS[activation]}>",
                  blocks_for(device, -(-pieces // threads)), threads, scores, bias, *scores.shape)


def relu(device: Device, scores: Array, bias: Array) -> None:
    """Replace every row s of ``scores`` (count, outputs) by max(s + bias, 0); NaN stays NaN."""
    activate(device, "relu", scores, bias)


def tanh(device: Device, scores: Array, bias: Array) -> None:
    """Replace every row s of ``scores`` (count, outputs) by tanh(s + bias)."""
    activate(device, "tanh", scores, bias)


def through_relu(device: Device, slopes: Array, activations: Array, bias_gradient: Array) -> None:
    """Turn slopes by relu's outputs into those by its inputs, in place; add their sum to ``bias_gradient``."""
    through(device, "relu", slopes, activations, bias_gradient)


def through_tanh(device: Device, slopes: Array, activations: Array, bias_gradient: Array) -> None:
    """As `through_relu`, for tanh."""
    through(device, "tanh", slopes, activations, bias_gradient)


def through(device: Device, activation: str | None, slopes: Array, activations: Array | None,
            bias_gradient: Array) -> None:
    """As `through_relu`; ``activation`` None: add the slopes' sum to ``bias_gradient`` (outputs,), and that is all."""
    count, outputs = slopes.shape
    if not slopes.size:
        return
    packed = _ACCESS_BYTES // slopes.dtype.itemsize
    pieces = outputs // packed if outputs % packed == 0 else outputs
    threads, lanes = block_of(device), across(pieces)
    columns = -(-pieces // lanes)
    lines = blocks_for(device, -(-count * lanes // (threads * _IN_FLIGHT)))
    grid = columns, max(1, min(lines, device.processors * _BLOCKS_A_PROCESSOR // columns))
    partials, kind = device.empty((grid[1], outputs), slopes.dtype), cpp_name(slopes.dtype)
    device.launch(FILE, f"through<{kind}, {ACTIVATIONS[activation]}>", grid, threads, slopes,
                  activations, count, outputs, lanes, partials)
    _add_partials(device, kind, grid[1], partials, bias_gradient, None, None)


def softmax_slopes(device: Device, scores: Array, bias: Array, y: Array, weight: Array | None, rows: Array | None,
                   bias_gradient: Array | None, loss: Array) -> None:
    """Turn ``scores`` (count, classes), their biases not yet added, into the slopes of their cross-entropy.

    Adds the slopes' sum to ``bias_gradient`` (classes,), unless that is None, and the cross-entropy's to ``loss``. It
    is `below_largest`, exp and `softmax_slopes` of the twin.
    """
    count, classes = scores.shape
    if not count:
        return
    threads, kind, held = block_of(device), cpp_name(scores.dtype), classes <= _WARP * _HELD
    lanes = across(-(-classes // _HELD)) if held else _WARP
    blocks = blocks_for(device, -(-count * lanes // threads))
    losses = device.empty(blocks, "float64")
    if held:
        partials = device.empty((blocks, classes), scores.dtype)
        device.launch(FILE, f"softmax_slopes<{kind}>", blocks, threads, scores, bias, y, weight, rows, count, classes,
                      lanes, partials, losses,
                      shared_bytes=threads // _WARP * lanes * _HELD * scores.dtype.itemsize)
        _add_partials(device, kind, blocks, partials, bias_gradient, losses, loss)
        return
    device.launch(FILE, f"softmax_slopes_wide<{kind}>", blocks, threads, scores, bias, y, weight, rows, count, classes,
                  losses)
    _add_partials(device, kind, blocks, None, None, losses, loss)
    if bias_gradient is not None:
        through(device, None, scores, None, bias_gradient)


def squared_slopes(device: Device, scores: Array, bias: Array, y: Array, weight: Array | None, rows: Array | None,
                   bias_gradient: Array | None, loss: Array) -> None:
    """Add Σ ½(s − y)² of ``scores`` (count, 1) + bias to ``loss``; they become its slopes, see `softmax_slopes`."""
    count = len(scores)
    if not count:
        return
    threads, kind = block_of(device), cpp_name(scores.dtype)
    blocks = blocks_for(device, -(-count // threads))
    partials, losses = device.empty((blocks, 1), scores.dtype), device.empty(blocks, "float64")
    device.launch(FILE, f"squared_slopes<{kind}>", blocks, threads, scores, bias, y, weight, rows,
                  count, partials, losses)
    _add_partials(device, kind, blocks, partials, bias_gradient, losses, loss)


def _add_partials(device: Device, kind: str, blocks: int, partials: Array | None, sums: Array | None,
                  losses: Array | None, loss: Array | None) -> None:
    """Add what blocks left, ``partials`` (blocks, columns) and ``losses`` (blocks,), to ``sums`` and ``loss``.

    What has nowhere to go is left.
    """
    columns = 0 if sums is None else len(sums)
    device.launch(FILE, f"add_partials<{kind}>", -(-columns // _WARP) + 1, block_of(device), partials, losses, blocks,
                  columns, sums, loss)


def sparse_products(device: Device, data: Array, indices: Array, indptr: Array, rows: Array | None, block: Array,
                    out: Array) -> None:
    """Write x·W of the sparse ``rows`` x to ``out`` (count, outputs); W is ``block`` without its last row.

    A row of ``out`` depends on nothing but the row and W.
    """
    count, outputs = out.shape
    if not count:
        return
    threads, lanes, wide = block_of(device), across(outputs), _HELD if outputs > _WARP else 1
    grid = blocks_for(device, -(-count * _WARP // threads)), -(-outputs // (lanes * wide))
    kinds = f"{cpp_name(data.dtype)}, {cpp_name(out.dtype)}, {cpp_name(indices.dtype)}"
    device.launch(FILE, f"sparse_products<{kinds}, {wide}>", grid, threads, data, indices, indptr, rows, count, block,
                  outputs, lanes, out)


def scatter_slopes(device: Device, data: Array, indices: Array, indptr: Array, rows: Array | None, slopes: Array,
                   gradient: Array) -> None:
    """Add Σ xᵀ·slope of the sparse ``rows`` x to ``gradient`` (features + 1, outputs); slopes are (count, outputs).

    The order of the additions, so the last bits of their sums, differ from one call to the next.
    """
    count, outputs = slopes.shape
    if not count:
        return
    threads, lanes = block_of(device), across(outputs)
    grid = blocks_for(device, -(-count * _WARP // threads)), -(-outputs // lanes)
    kinds = f"{cpp_name(data.dtype)}, {cpp_name(slopes.dtype)}, {cpp_name(indices.dtype)}"
    device.launch(FILE, f"scatter_slopes<{kinds}>", grid, threads, data, indices, indptr, rows, count, slopes, outputs,
                  lanes, gradient)
