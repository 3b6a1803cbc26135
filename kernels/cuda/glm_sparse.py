"""Launches ``kernels/glm_sparse.cu``: loss and gradient of a linear score over sparse rows (CSR).

Functions are those of `dml_hpc.kernels.glm_sparse`, with the differences that `dml_hpc.kernels.cuda.glm` has: arrays
are the device's, ``rows`` None stands for all rows in their order, and losses are added to ``total`` (1,) float64.
Column numbers are int32 or int64. Gradients in floating point are added up in no fixed order, so that their last bits
are not the same each time; in fixed point they are.

``long_entries`` is how many entries the matrix has at most in rows that are very long (see
`dml_hpc.kernels.cuda.long_rows`; None: nobody knows): with any, parts of such rows are dealt to all blocks, which takes
two more launches, three for a gradient. Where ``rows`` name very long rows more than once, not all of them may find a
place among these, and are then summed in another order.
"""

from __future__ import annotations

from dml_hpc.device import Array, Device, cpp_name
from dml_hpc.kernels.cuda import long_rows
from dml_hpc.kernels.cuda.glm import add_partials

FILE = "glm_sparse.cu"
_WARP, _MOST_THREADS = 32, 512
_RESIDENT = 1024
"""How many threads of these kernels a processor has at once."""
_ROWS_A_WARP = 8
"""At a time: enough to even rows out within a block, where there are so many."""
_PART = 4096
"""Entries of a very long row that a block takes at a time. Also in ``glm_sparse.cu``."""


def loss_and_gradient(device: Device, loss: int, delta: float, data: Array, indices: Array, indptr: Array, y: Array,
                      weight: Array | None, rows: Array | None, parameters: Array, gradient: Array, total: Array,
                      long_entries: int | None = None) -> None:
    """Add the rows' gradient to ``gradient``, their summed loss to ``total``; see `glm_sparse.loss_and_gradient`."""
    count, features = _counted(indptr, rows), len(parameters) - 1
    if not count:
        return
    blocks, threads, at_once = _shared_out(device, count)
    biases, losses = device.empty((blocks, 1), "float64"), device.empty(blocks, "float64")
    parts = _Parts(device, data, indices, indptr, rows, parameters, None, long_entries)
    device.launch(FILE, f"gradient_of_sparse<{_types(data, indices, parameters)}>", blocks, threads, loss,
                  float(delta), data, indices, indptr, features, y, weight, rows, count, at_once, parameters, gradient,
                  biases, losses, *parts.found)
    parts.add_to(gradient)
    add_partials(device, biases, gradient[features:], losses, total)


def fixed_point_gradient(device: Device, loss: int, delta: float, data: Array, indices: Array, indptr: Array, y: Array,
                         weight: Array | None, rows: Array | None, parameters: Array, scale: Array, per_unit: float,
                         per_loss_unit: float, out: Array, long_entries: int | None = None) -> None:
    """Add the rows' gradient, loss and masses in fixed point to ``out``; see `glm_sparse.fixed_point_gradient`.

    The bits of ``out`` do not depend on the processors, nor on how rows are dealt to calls; they are not the host's.
    """
    count, features = _counted(indptr, rows), len(parameters) - 1
    if not count:
        return
    blocks, threads, at_once = _shared_out(device, count)
    parts = _Parts(device, data, indices, indptr, rows, parameters, scale, long_entries)
    device.launch(FILE, f"fixed_point_of_sparse<{_types(data, indices, parameters)}>", blocks, threads, loss,
                  float(delta), data, indices, indptr, features, y, weight, rows, count, at_once, parameters, scale,
                  float(per_unit), float(per_loss_unit), out, *parts.found)
    parts.add_to(out)


def scores(device: Device, data: Array, indices: Array, indptr: Array, parameters: Array, out: Array,
           long_entries: int | None = None) -> None:
    """Write the score of every row to ``out`` (rows,)."""
    _scores(device, 0, 1.0, data, indices, indptr, None, None, None, parameters, out, None, long_entries)


def summed_loss(device: Device, loss: int, delta: float, data: Array, indices: Array, indptr: Array, y: Array,
                weight: Array | None, rows: Array | None, parameters: Array, total: Array,
                long_entries: int | None = None) -> None:
    """Add the summed loss of the rows to ``total``."""
    _scores(device, loss, delta, data, indices, indptr, y, weight, rows, parameters, None, total, long_entries)


def sequential_sgd(device: Device, loss: int, delta: float, data: Array, indices: Array, indptr: Array, y: Array,
                   weight: Array | None, rows: Array | None, scale: Array | None, held: Array, seen: Array | None,
                   worth: Array, step_size: float, l1: float, l2: float, total: Array) -> None:
    """Take one SGD step for each of the rows in turn, by one block; see `glm_sparse.sequential_sgd`."""
    count = _counted(indptr, rows)
    if not count:
        return
    entries = len(data) // (len(indptr) - 1)
    threads = min(max(1, -(-entries // _WARP)) * _WARP, device.block_threads, _MOST_THREADS)
    device.launch(FILE, f"sequential_sparse<{_types(data, indices, held)}>", 1, threads, loss, float(delta), data,
                  indices, indptr, len(held) - 1, y, weight, rows, count, scale, held, seen, worth, float(step_size),
                  float(l1), float(l2), total)


def settle(device: Device, held: Array, biases: int, seen: Array | None, worth: Array) -> None:
    """Make ``held`` what it is worth; see `glm_sparse.settle`."""
    features, threads = held.size // biases - 1, min(device.block_threads, _MOST_THREADS)
    blocks = min(-(-features // threads), device.processors * _RESIDENT // threads)
    device.launch(FILE, f"settle<{cpp_name(held.dtype)}>", blocks, threads, held, features, biases, seen, worth)
    device.launch(FILE, "worth_again<double>", 1, _WARP, worth)


class _Parts:
    """The sums of the parts of very long rows, if there are any: queued when this is made."""

    def __init__(self, device, data, indices, indptr, rows, parameters, scale, long_entries):
        self._device, self._X, self._scale = device, (data, indices, indptr), scale
        self._list = long_rows.find(device, indptr, rows, _counted(indptr, rows), _PART,
                                    len(data) if long_entries is None else long_entries)
        self.found = None, None, None
        """What kernels of rows are told of them: where a row's are, their sums, and where to leave its step."""
        if self._list is not None:
            sums = device.empty((self._list.room, 2), parameters.dtype)
            self._launch(f"sums_of_parts<{_types(data, indices, parameters)}>", parameters, scale, sums)
            self.found = self._list.where, sums, device.empty(self._list.room, parameters.dtype)

    def add_to(self, out):
        """Add them to a gradient, by the steps that their rows have left."""
        if self._list is not None:
            steps = self.found[2]
            self._launch(f"add_parts<{_types(*self._X[:2], steps)}, {cpp_name(out.dtype)}>", self._scale, steps, out)

    def _launch(self, kernel, *arguments):
        device, parts = self._device, self._list
        threads = min(device.block_threads, _MOST_THREADS)
        blocks = min(parts.room, device.processors * max(1, _RESIDENT // threads))
        device.launch(FILE, kernel, blocks, threads, *self._X, parts.parts, parts.used, parts.room, *arguments)


def _scores(device, loss, delta, data, indices, indptr, y, weight, rows, parameters, out, total, long_entries):
    count = _counted(indptr, rows)
    if not count:
        return
    blocks, threads, at_once = _shared_out(device, count)
    losses = None if total is None else device.empty((blocks, 1), "float64")
    parts = _Parts(device, data, indices, indptr, rows, parameters, None, long_entries)
    device.launch(FILE, f"scores_of_sparse<{_types(data, indices, parameters)}>", blocks, threads, loss, float(delta),
                  data, indices, indptr, len(parameters) - 1, y, weight, rows, count, at_once, parameters, out, losses,
                  *parts.found[:2])
    if losses is not None:
        add_partials(device, losses, total)


def _counted(indptr, rows):
    return len(indptr) - 1 if rows is None else len(rows)


def _shared_out(device, count):
    """Return the blocks, the threads of each, and how many rows a block takes at a time."""
    threads = min(device.block_threads, _MOST_THREADS)
    warps = threads // _WARP
    most = device.processors * max(1, _RESIDENT // threads)
    rows_a_warp = max(1, min(_ROWS_A_WARP, count // (most * warps)))
    return min(most, -(-count // (warps * rows_a_warp))), threads, warps * rows_a_warp


def _types(data, indices, parameters):
    return f"{cpp_name(data.dtype)}, {cpp_name(indices.dtype)}, {cpp_name(parameters.dtype)}"
