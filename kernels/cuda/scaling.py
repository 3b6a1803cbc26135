"""Launches ``kernels/scaling.cu``: scaling folded into parameters and out of gradients."""

from __future__ import annotations

from dml_hpc.device import Array, Device, cpp_name

_BLOCKS_A_PROCESSOR = 4


def fold(device: Device, parameters: Array, shift: Array | None, scale: Array, outputs: int, out: Array) -> None:
    """Write to ``out`` (size,) the parameters for stored rows that score as ``parameters`` do for standardised ones.

    The first layer has ``len(scale) − 1`` features and ``outputs`` outputs. ``shift`` None: zeros.
    """
    kind, features = cpp_name(parameters.dtype), len(scale) - 1
    rest = len(parameters) - len(scale) * outputs
    device.launch("scaling.cu", f"fold<{kind}>", _grid(device, len(parameters)), device.block_threads,
                  parameters, scale, out, features, outputs, rest)
    if shift is not None:
        device.launch("scaling.cu", f"fold_biases<{kind}>", outputs, device.block_threads, parameters, shift, scale,
                      out, features, outputs)


def pull_back(device: Device, gradient: Array, shift: Array | None, scale: Array, outputs: int) -> None:
    """Turn the ``gradient`` (size,) by parameters for stored rows into that by standardised ones, in place.

    Where there is a ``shift``, the last element of ``scale`` is 1.
    """
    device.launch("scaling.cu", f"pull_back<{cpp_name(gradient.dtype)}>", _grid(device, len(scale) * outputs),
                  device.block_threads, gradient, shift, scale, len(scale) - 1, outputs)


def _grid(device: Device, count: int) -> int:
    return min(-(-count // device.block_threads), _BLOCKS_A_PROCESSOR * device.processors)
