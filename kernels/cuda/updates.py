"""Launches ``kernels/updates.cu``: one pass from a summed gradient, or its addends, to new weights."""

from __future__ import annotations

import numpy as np

from dml_hpc.device import Array, Device, cpp_name
from dml_hpc.kernels.cuda.sums import LazySum, addends_of, blocks, threads


def take_step(device: Device, rule: int, weights: Array, summed: Array | LazySum, first: Array, second: Array,
              average: Array, start: int, edges: Array, unit: float, *scalars: np.generic,
              changing: Array | None = None) -> None:
    """Take a step in place of ``weights`` (count,), by the gradient unit·summed: see ``kernels/updates.py``.

    The result has the same bits as there. ``summed`` may be `LazySum`: the sum is then taken on the way. ``edges`` lie
    on the device. ``scalars`` are the twin's from ``clip`` to ``pace``, of the weights' dtype. ``changing`` (5,)
    float64, where it is given, has the unit, the step size, both corrections and the pace in their place; it is read
    when the step is taken.
    """
    kinds = f"{cpp_name(weights.dtype)},{cpp_name(summed.dtype)}"
    states = [array if len(array) else None for array in (first, second, average)]
    device.launch("updates.cu", f"take_step<{kinds}>", blocks(device, len(weights), weights.dtype.itemsize),
                  threads(device), rule, len(weights), *addends_of(summed), weights, *states, start, edges, float(unit),
                  *scalars, changing)
