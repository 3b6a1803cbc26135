"""Launches ``kernels/blocks.cu``: dense rows on their way into a product, and products on their way into a sum."""

from __future__ import annotations

from dml_hpc.device import Array, Device, cpp_name

_PACK_BYTES = 16
_BLOCKS_A_PROCESSOR = 8
_MOST_THREADS = 256
_MOST_DOWN = 65535
"""Blocks that a grid may have in its second direction."""


def prepared(device: Device, X: Array, shift: Array | None, inverse: Array | None, out: Array) -> None:
    """out = (X − shift)·inverse, computed in float64, then rounded to what ``out`` holds: float32 or float64.

    X and ``out`` are (rows, columns), contiguous; X float16, float32 or float64.
    ``shift`` and ``inverse``, 1/scale, are (columns,) float64 or None: zeros, ones.
    """
    (rows, columns), threads, pack = X.shape, _threads(device), _pack(X)
    packs = columns // pack
    across = max(1, min(packs, threads))
    wide = -(-packs // across)
    down = min(-(-rows // (threads // across)), max(1, _BLOCKS_A_PROCESSOR * device.processors // max(wide, 1)),
               _MOST_DOWN)
    device.launch("blocks.cu", f"prepared<{cpp_name(X.dtype)}, {cpp_name(out.dtype)}, {pack}>", (wide, down),
                  threads, X, shift, inverse, out, rows, columns, across)


def sum_of_squares(device: Device, X: Array, shift: Array | None, inverse: Array | None, chunk_rows: int,
                   out: Array) -> None:
    """Add Σ ((X − shift)·inverse)² over rows c·``chunk_rows`` … (c + 1)·``chunk_rows`` − 1 to ``out[c]``, for each c.

    Squared and summed in float64. ``out`` is float64, with an element for each such chunk that X has rows of; the
    other arguments are as in `prepared`. What is not finite makes its chunk's sum NaN or infinite.
    """
    (rows, columns), threads, pack = X.shape, _threads(device), _pack(X)
    across = max(1, min(columns // pack, threads))
    for first in range(0, len(out), _MOST_DOWN):
        some, part = out[first:first + _MOST_DOWN], X[first * chunk_rows:(first + _MOST_DOWN) * chunk_rows]
        strips = max(1, min(_BLOCKS_A_PROCESSOR * device.processors // len(some),
                            -(-min(chunk_rows, rows) // (threads // across))))
        parts = device.empty(strips * len(some), "float64")
        device.launch("blocks.cu", f"sum_of_squares<{cpp_name(X.dtype)}, {pack}>", (strips, len(some)), threads,
                      part, shift, inverse, parts, len(part), columns, chunk_rows, across)
        device.launch("blocks.cu", "add_parts", len(some), threads, parts, strips, some)


def add_fixed(device: Device, part: Array, per_unit: float, out: Array) -> None:
    """out += part·per_unit, rounded to the nearest whole number (halves to even), to int64; both (count,).

    ``part`` is float32 or float64, the product float64. It must be finite and less than 2⁶³.
    """
    threads = _threads(device)
    blocks = min(-(-len(out) // threads), _BLOCKS_A_PROCESSOR * device.processors)
    device.launch("blocks.cu", f"add_fixed<{cpp_name(part.dtype)}>", blocks, threads, part, per_unit, out, len(out))


def _threads(device: Device) -> int:
    return min(device.block_threads, _MOST_THREADS)


def _pack(X: Array) -> int:
    """Return how many neighbouring columns a thread takes: 16 bytes of X, where every row begins at a multiple of that.

    Device arrays begin at a multiple of 256 bytes, and views of their rows where a row does.
    """
    pack = _PACK_BYTES // X.dtype.itemsize
    return pack if X.shape[1] % pack == 0 else 1
