"""Launches ``kernels/softmax_steps.cu``: SGD one example at a time for the softmax, by one block.

Arrays are the device's, otherwise what `dml_hpc.kernels.softmax_steps` says of them, with ``rows`` None for all in
their order. What the twins return is added to ``loss`` (1,) float64.
"""

from __future__ import annotations

from dml_hpc.device import Array, Device, cpp_name
from dml_hpc.kernels.cuda.network import MOST_THREADS, across, stored_name

FILE = "softmax_steps.cu"
_WARP = 32


def steps(device: Device, X: Array, y: Array, weight: Array | None, rows: Array | None, shift: Array, scale: Array,
          block: Array, step_size: float, l1: float, l2: float, loss: Array) -> None:
    """Take a step for each of ``rows`` of dense X, changing ``block`` (features + 1, classes), which are W and b."""
    features, classes = X.shape[1], block.shape[1]
    count, item_bytes = len(X) if rows is None else len(rows), block.dtype.itemsize
    threads, scratch, shared_bytes = _room(device, features, block)
    held = []
    for elements in (2 * features, block.size):
        fits = shared_bytes + elements * item_bytes <= device.shared_bytes
        shared_bytes += elements * item_bytes if fits else 0
        held.append(fits)
    device.launch(FILE, f"steps<{stored_name(X.dtype)}, {cpp_name(block.dtype)}>", 1, threads, X, y, weight, rows,
                  count, features, classes, shift, scale, block, float(step_size), float(l1), float(l2),
                  across(classes), *held, scratch, loss, shared_bytes=shared_bytes)


def sparse_steps(device: Device, data: Array, indices: Array, indptr: Array, y: Array, weight: Array | None,
                 rows: Array | None, scale: Array | None, block: Array, seen: Array | None, worth: Array,
                 step_size: float, l1: float, l2: float, loss: Array) -> None:
    """Take a step for each of the sparse ``rows``, touching the weights of their own features alone.

    ``block`` (features + 1, classes), ``seen`` and ``worth`` are in the twin's form, which `glm_sparse.settle` ends.
    """
    features, classes = len(block) - 1, block.shape[1]
    count = len(indptr) - 1 if rows is None else len(rows)
    entries = len(data) // max(1, len(indptr) - 1)  # of a row, about
    threads, scratch, shared_bytes = _room(device, entries, block)
    kinds = f"{cpp_name(data.dtype)}, {cpp_name(block.dtype)}, {cpp_name(indices.dtype)}"
    device.launch(FILE, f"sparse_steps<{kinds}>", 1, threads, data, indices, indptr, y, weight, rows, count, features,
                  classes, scale, block, seen, worth, float(step_size), float(l1), float(l2), across(classes), scratch,
                  loss, shared_bytes=shared_bytes)


def _room(device: Device, elements: int, block: Array) -> tuple[int, Array | None, int]:
    """Return how many threads to have, where partials and slopes lie, and how much shared memory they take.

    A row has so many ``elements``.
    """
    classes = block.shape[1]
    wanted = -(-elements * across(classes) // (4 * _WARP)) * _WARP  # a few elements for each thread
    threads = max(_WARP, min(wanted, 4 * device.block_threads, MOST_THREADS))
    sums = (threads // _WARP + 1) * classes
    needed = sums * block.dtype.itemsize
    if needed <= device.shared_bytes:
        return threads, None, needed
    return threads, device.empty(sums, block.dtype), 0
