"""Launches ``kernels/compression.cu``: vectors of 16-bit floats, and the exact numbers that travel with them.

``gradient``, ``residual`` and what is widened are (n,) float32; float16 is NumPy's, bfloat16 its bits in uint16.
"""

from __future__ import annotations

from dml_hpc.device import Array, Device
from dml_hpc.kernels.cuda.sums import blocks, stored_name, threads


def encode_bfloat16(device: Device, gradient: Array, residual: Array, wire: Array) -> None:
    """Write gradient + residual, rounded, to ``wire`` (n,), bfloat16 held as uint16, and the rest to ``residual``."""
    device.launch("compression.cu", "encode_bfloat16", blocks(device, len(wire), 4), threads(device), gradient,
                  residual, wire, len(wire))


def encode_float16(device: Device, gradient: Array, residual: Array, wire: Array, scale: Array, top: float,
                   peak: Array) -> None:
    """Write scale·(gradient + residual), rounded, to ``wire`` (n,) float16, and the rest, unscaled, to ``residual``.

    ``scale`` (1,) float32 is a power of two. Finite sums beyond ±top/scale are cut to it. ``peak`` (1,) uint32, the
    bits of a float32, is raised to the largest |g + r|.
    """
    device.launch("compression.cu", "encode_float16", blocks(device, len(wire), 4), threads(device), gradient, residual,
                  wire, len(wire), scale, float(top), peak)


def widen_float16(device: Device, halves: Array, out: Array, scale: Array) -> None:
    """Write ``halves`` (n,) float16 divided by ``scale`` (1,) to ``out`` (n,) float32."""
    device.launch("compression.cu", "widen_float16", blocks(device, len(out), 4), threads(device), halves, out,
                  len(out), scale)


def write_exact(device: Device, exact: Array, peak: Array | None, rank: int, ranks: int, places: Array) -> None:
    """Fill ``places``, 4 elements a float and rank, with zeros and the bytes of this rank's floats, as numbers.

    They are ``exact`` (count,) and, if there is one, ``peak``, a float32's bits (1,) uint32.
    """
    device.launch("compression.cu", f"write_exact<{stored_name(places.dtype)}>", blocks(device, len(places), 4),
                  threads(device), exact, len(exact), peak, rank, ranks, places)


def read_exact(device: Device, places: Array, ranks: int, exact: Array, scale: Array | None, limit: int,
               most: int) -> None:
    """Make ``exact`` (count,) the sums of the ranks' floats in ``places``.

    ``scale`` (1,) becomes the power of two, within 2^±most, that brings the largest of their peaks below 2^(limit − 2).
    """
    floats = len(exact) + (scale is not None)
    device.launch("compression.cu", f"read_exact<{stored_name(places.dtype)}>", blocks(device, floats, 4),
                  threads(device), places, ranks, exact, len(exact), scale, limit, most)
