"""Launches ``kernels/products.cu``: AᵀAV of dense rows, A = (X − 1·shiftᵀ)·diag(inverse), at one reading of X."""

from __future__ import annotations

from typing import Any, NamedTuple

from dml_hpc.device import Array, Device, cpp_name

WIDTHS = (16, 24, 32, 48)
"""Columns of V that a kernel is built for; fewer are filled up with zeros."""
ROWS_A_SUM = 1024
"""So many rows are summed in float32 before float64 goes on."""
FIXED_ROWS_A_SUM = 512
"""So many before fixed point does, which asks for room for no float64 sums, but for as many blocks as can be."""
_MOST_THREADS = 256


class Shape(NamedTuple):
    """Of a kernel: columns of V, columns of X a thread reads at a time of a row of four, rows of a tile."""

    width: int
    columns: int
    rows: int


SHAPES = [Shape(width, columns, 32 if columns * width <= 48 and width < 48 else 16)
          for columns in (1, 2, 4) for width in WIDTHS if columns * (width + 16) <= 128]
"""Of each, a thread's share of the sums and of two tiles fits its registers."""


def fits(device: Device, width: int, count: int, precision: Any) -> bool:
    """Say whether `fused` takes a V (width, count) and computes in ``precision``, which is float32."""
    return precision == "float32" and width > 0 and _shape(device, width, count) is not None


def fused(device: Device, X: Array, shift: Array | None, inverse: Array | None, V: Array, Y: Array | None,
          out: Array) -> None:
    """Add AᵀAV to ``out`` (width·count,) float64, and write AV to ``Y`` (rows, count) unless that is None.

    X is (rows, width) float16 or float32, contiguous; ``shift`` and ``inverse`` are
    (width,) float64 or None: zeros, ones. V (width, count) and Y are float32, in which products are computed, and sums
    of `ROWS_A_SUM` rows. V must be one that `fits`. The same bits from run to run on a kind of GPU.
    """
    (rows, width), count, threads = X.shape, V.shape[1], _threads(device)
    shape = _shape(device, width, count)
    assert shape is not None
    blocks = min(device.processors, -(-rows // shape.rows))
    if not blocks:
        return
    sums = device.zeros((blocks, width * count), "float64")
    device.launch("products.cu", _name(X, shape, "double"), blocks, threads, X, shift, inverse, V, Y, sums, rows, width,
                  count, max(1, ROWS_A_SUM // shape.rows), rows, 1.0,
                  shared_bytes=_shared_bytes(shape, width, threads))
    device.launch("products.cu", "add_products", -(-width * count // threads), threads, sums, blocks, width * count,
                  out)


def fused_fixed(device: Device, X: Array, shift: Array | None, inverse: Array | None, V: Array, Y: Array | None,
                chunk_rows: int, per_unit: float, out: Array) -> None:
    """Add AᵀAV·``per_unit`` to ``out`` (width·count,) int64, and write AV to ``Y``, as `fused` does.

    Sums of at most `FIXED_ROWS_A_SUM` rows of a chunk, which has rows c·``chunk_rows`` … of X, are rounded to the
    nearest whole number (halves to even): of any whole chunks, in any calls, the sums are the same bits. They, and
    ``out``, must be less than 2⁶³.
    """
    (rows, width), count, threads = X.shape, V.shape[1], _threads(device)
    shape = _shape(device, width, count)
    assert shape is not None
    tiles = FIXED_ROWS_A_SUM // shape.rows
    runs = -(-rows // chunk_rows) * -(-chunk_rows // (tiles * shape.rows))
    device.launch("products.cu", _name(X, shape, "long long"), min(device.processors, runs), threads, X, shift, inverse,
                  V, Y, out, rows, width, count, tiles, chunk_rows, per_unit,
                  shared_bytes=_shared_bytes(shape, width, threads))


def _name(X: Array, shape: Shape, sums: str) -> str:
    return f"fused<{cpp_name(X.dtype)}, {shape.width}, {shape.columns}, {shape.rows}, {sums}>"


def _shape(device: Device, width: int, count: int) -> Shape | None:
    """Return the smallest kernel that does, None where none does."""
    threads = _threads(device)
    fitting = [shape for shape in SHAPES if count <= shape.width and width <= shape.columns * threads
               and _shared_bytes(shape, width, threads) <= device.shared_bytes]
    return min(fitting, key=lambda shape: (shape.width, shape.columns), default=None)


def _shared_bytes(shape: Shape, width: int, threads: int) -> int:
    """Return what `TileShape` of the kernel says."""
    X, V = shape.rows * (-(-width // 32) * 32 + 8), -(-width // 4) * (4 * shape.width + 8)
    return 4 * (X + V + (threads // 32 + 1) * shape.rows * shape.width)


def _threads(device: Device) -> int:
    return min(device.block_threads, _MOST_THREADS)
