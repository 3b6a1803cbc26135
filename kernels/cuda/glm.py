"""Launches ``kernels/glm.cu``: loss and gradient of a linear score over dense rows, X read from memory once.

Functions are those of `dml_hpc.kernels.glm`, with these differences: arrays are the device's; X may be bfloat16 too, as
bits (uint16); ``rows`` None stands for all rows in their order; what the host's kernels return is added to ``total``
(1,) float64. The same call gives the same bits on the same kind of device.
"""

from __future__ import annotations

from typing import Any

from dml_hpc.device import Array, Device, cpp_name

FILE = "glm.cu"
_WARP, _MOST_IN_WARPS, _MOST_WIDE, _MOST_WIDE_SINGLY, _MOST_ALONE = 32, 256, 512, 384, 1024
"""A warp, and the most threads of the kernels' blocks, as in the file."""
_HEAVY, _LIGHT = 512, 1536
"""How many threads of a kernel that keeps rows in registers, and of others, a processor has at once."""
_LEAST_ROWS = 4
"""Of each group of threads: a block's partial gradient should be little beside the rows that it comes from."""
_CACHE_SHARE = 3
"""A block of long rows takes 1/3 of the cache, as what comes next goes there too."""
_VECTOR_BYTES = 16
_FIXED_BYTES = 32
"""So much of a row in fixed point, of the parameters' type, a thread keeps."""
_IN_REGISTERS, _STATIC_BYTES = 4, 1024
"""Of `sequential_sgd`: a thread's elements that are read ahead, and more than the shared memory beside the weights."""


def stored_name(dtype: Any) -> str:
    """Return what elements of an X of ``dtype`` are called in C++; uint16 are the bits of bfloat16."""
    return "bfloat16" if dtype == "uint16" else cpp_name(dtype)


def loss_and_gradient(device: Device, loss: int, delta: float, X: Array, y: Array, weight: Array | None,
                      rows: Array | None, parameters: Array, gradient: Array, total: Array) -> None:
    """Add the rows' gradient to ``gradient``, their summed loss to ``total``; see `glm.loss_and_gradient`."""
    count, features = _counted(X, rows)
    if not count:
        return
    held, vector = _held(X, parameters), _vector(X)
    if features > (_MOST_WIDE if vector else _MOST_WIDE_SINGLY) * held:
        _long_rows(device, loss, delta, X, y, weight, rows, parameters, gradient, total)
        return
    wide, threads, group = _shared_out(device, features, held)
    blocks = _blocks(device, count, threads, group)
    partials = device.empty((blocks, features + 1), parameters.dtype)
    losses = device.empty(blocks, "float64")
    device.launch(FILE, f"gradient_of_rows<{_types(X, parameters)}, {_flag(vector)}, {_flag(wide)}>", blocks,
                  threads, loss, float(delta), X, features, y, weight, rows, count, parameters, group, partials, losses)
    add_partials(device, partials, gradient, losses, total)


def fixed_point_gradient(device: Device, loss: int, delta: float, X: Array, y: Array, weight: Array | None,
                         rows: Array | None, parameters: Array, shift: Array, scale: Array, per_unit: float,
                         per_loss_unit: float, out: Array) -> None:
    """Add the rows' gradient, loss and masses in fixed point to ``out``; see `glm.fixed_point_gradient`.

    A row's own sums are taken in an order that depends on ``features`` alone, so that the bits of ``out`` do not depend
    on the processors, nor on how rows are dealt to calls. They are not the host's.
    """
    count, features = _counted(X, rows)
    if not count:
        return
    held = _FIXED_BYTES // parameters.dtype.itemsize
    if features > _MOST_WIDE_SINGLY * held:
        _long_fixed_point(device, loss, delta, X, y, weight, rows, parameters, shift, scale, per_unit, per_loss_unit,
                          out)
        return
    wide, threads, group = _shared_out(device, features, held)
    blocks = _blocks(device, count, threads, group)
    partials = device.zeros((blocks, features + 4), "int64")
    device.launch(FILE, f"fixed_point_of_rows<{_types(X, parameters)}, {_flag(wide)}>", blocks, threads, loss,
                  float(delta), X, features, y, weight, rows, count, parameters, shift, scale, float(per_unit),
                  float(per_loss_unit), group, partials)
    add_partials(device, partials, out)


def scores(device: Device, X: Array, parameters: Array, out: Array) -> None:
    """Write the score of every row of X to ``out`` (rows,)."""
    _scores(device, 0, 1.0, X, None, None, None, parameters, out, None, None)


def summed_loss(device: Device, loss: int, delta: float, X: Array, y: Array, weight: Array | None, rows: Array | None,
                parameters: Array, total: Array) -> None:
    """Add the summed loss of the rows to ``total``."""
    count, _ = _counted(X, rows)
    if not count:
        return
    losses = device.zeros(_resident(device, _threads(device), _LIGHT), "float64")
    _scores(device, loss, delta, X, y, weight, rows, parameters, None, None, losses)
    _add_losses(device, losses, total)


def sequential_sgd(device: Device, loss: int, delta: float, X: Array, y: Array, weight: Array | None,
                   rows: Array | None, shift: Array, scale: Array, parameters: Array, step_size: float, l1: float,
                   l2: float, total: Array) -> None:
    """Take one SGD step for each of the rows in turn, by one block; see `glm.sequential_sgd`."""
    count, features = _counted(X, rows)
    if not count:
        return
    threads = min(_whole_warps(-(-features // _IN_REGISTERS)), 2 * device.block_threads, _MOST_WIDE)
    held_bytes = features * parameters.dtype.itemsize
    in_shared = held_bytes + _STATIC_BYTES <= device.shared_bytes
    device.launch(FILE, f"sequential_sgd<{_types(X, parameters)}>", 1, threads, loss, float(delta), X, features, y,
                  weight, rows, count, shift, scale, parameters, float(step_size), float(l1), float(l2), in_shared,
                  total, shared_bytes=held_bytes if in_shared else 0)


def add_partials(device: Device, partials: Array, out: Array, losses: Array | None = None,
                 total: Array | None = None) -> None:
    """Add ``partials`` (parts, columns) up onto ``out``, a vector (≥ columns,), and ``losses`` (parts,) onto ``total``.

    In float64, or in int64 where they are such, and in an order that depends on ``parts`` alone.
    """
    parts, columns = partials.shape
    kind = cpp_name(partials.dtype)
    warps = max(1, min(_MOST_ALONE // _WARP, -(-parts // 8)))
    device.launch(FILE, f"add_partials<{kind}, {cpp_name(out.dtype)}>", -(-columns // _WARP) + 1, warps * _WARP,
                  partials, parts, columns, out, losses, total)


def _long_rows(device, loss, delta, X, y, weight, rows, parameters, gradient, total):
    """`loss_and_gradient` of rows that no block holds: block of rows by block of rows, the second time from cache."""
    count, features = _counted(X, rows)
    losses = device.zeros(_resident(device, _threads(device), _LIGHT), "float64")
    grid, partials = _columns_grid(device, features + 1, parameters.dtype)
    for X_piece, y_piece, weight_piece, rows_piece, size in _pieces(device, X, y, weight, rows, count):
        slopes = device.empty(size, parameters.dtype)
        _scores(device, loss, delta, X_piece, y_piece, weight_piece, rows_piece, parameters, None, slopes, losses)
        device.launch(FILE, f"gradient_of_columns<{_types(X, parameters)}, {cpp_name(parameters.dtype)}>", grid,
                      _threads(device), X_piece, features, rows_piece, size, slopes, None, None, features + 1, partials)
    add_partials(device, partials, gradient)
    _add_losses(device, losses, total)


def _long_fixed_point(device, loss, delta, X, y, weight, rows, parameters, shift, scale, per_unit, per_loss_unit, out):
    """`fixed_point_gradient` of rows that no block holds, as `_long_rows`."""
    count, features = _counted(X, rows)
    threads = _threads(device)
    blocks = _resident(device, threads, _LIGHT)
    others = device.zeros((blocks, 4), "int64")
    grid, partials = _columns_grid(device, features, "int64")
    for X_piece, y_piece, weight_piece, rows_piece, size in _pieces(device, X, y, weight, rows, count):
        steps = device.empty(size, parameters.dtype)
        device.launch(FILE, f"fixed_point_steps<{_types(X, parameters)}>", blocks, threads, loss, float(delta), X_piece,
                      features, y_piece, weight_piece, rows_piece, size, parameters, shift, scale, float(per_unit),
                      float(per_loss_unit), steps, others)
        device.launch(FILE, f"gradient_of_columns<{_types(X, parameters)}, long long>", grid, threads, X_piece,
                      features, rows_piece, size, steps, shift, scale, features, partials)
    add_partials(device, partials, out)
    add_partials(device, others, out[features:])


def _scores(device, loss, delta, X, y, weight, rows, parameters, out, slopes, losses):
    count, features = _counted(X, rows)
    vector = _vector(X)
    pack = _VECTOR_BYTES // X.dtype.itemsize if vector else 1
    threads, group = _threads(device), 1
    while group < _WARP and group * pack * 4 < features:
        group *= 2
    if group * pack * 16 < features:
        group = threads
    blocks = min(-(-count // (threads // group)), _resident(device, threads, _LIGHT))
    device.launch(FILE, f"scores<{_types(X, parameters)}, {_flag(vector)}>", blocks, threads, loss, float(delta), X,
                  features, y, weight, rows, count, parameters, group, out, slopes, losses)


def _add_losses(device, losses, total):
    add_partials(device, losses.reshape(-1, 1), total)


def _pieces(device, X, y, weight, rows, count):
    """Give the rows by pieces that stay in the cache: X, y, weight, rows, and how many there are."""
    row_bytes = X.shape[1] * X.dtype.itemsize
    size = max(device.processors, device.cache_bytes // _CACHE_SHARE // row_bytes)
    for start in range(0, count, size):
        piece = slice(start, min(start + size, count))
        if rows is not None:
            yield X, y, weight, rows[piece], piece.stop - start
        else:
            yield X[piece], y[piece], None if weight is None else weight[piece], None, piece.stop - start


def _columns_grid(device, columns, dtype):
    """Return the grid of `gradient_of_columns`, and its partial sums, 0."""
    threads = _threads(device)
    tiles = -(-columns // threads)
    parts = max(1, min(16, _resident(device, threads, _LIGHT) // tiles))
    return (tiles, parts), device.zeros((parts, columns), dtype)


def _counted(X, rows):
    return len(X) if rows is None else len(rows), X.shape[1]


def _held(X, parameters):
    """Return how many elements of a row a thread keeps in `gradient_of_rows`."""
    return 8 if X.dtype.itemsize == 8 or parameters.dtype.itemsize == 8 else 16


def _shared_out(device, features, held):
    """Return whether a row is a whole block's, the block's threads, and how many of them share a row."""
    if features > _WARP * held:
        threads = _whole_warps(-(-features // held))
        return True, threads, threads
    group = 1
    while group * held < features:
        group *= 2
    return False, _threads(device), group


def _threads(device):
    return min(device.block_threads, _MOST_IN_WARPS)


def _whole_warps(threads):
    return max(1, -(-threads // _WARP)) * _WARP


def _resident(device, threads, most):
    """Return how many blocks the device has at once, of kernels of which a processor takes ``most`` threads."""
    return device.processors * max(1, most // threads)


def _blocks(device, count, threads, group):
    """Return the blocks of a kernel that keeps rows in registers: each group of threads has some rows to add up."""
    return max(1, min(-(-count // (threads // group * _LEAST_ROWS)), _resident(device, threads, _HEAVY)))


def _vector(X):
    """Say whether rows can be read by 16 bytes at once: every row begins at a multiple of them."""
    address = X.data.ptr if hasattr(X.data, "ptr") else X.ctypes.data
    return X.shape[1] * X.dtype.itemsize % _VECTOR_BYTES == 0 and address % _VECTOR_BYTES == 0


def _types(X, parameters):
    return f"{stored_name(X.dtype)}, {cpp_name(parameters.dtype)}"


def _flag(value):
    return "true" if value else "false"
