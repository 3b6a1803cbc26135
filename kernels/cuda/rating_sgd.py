"""Launches ``kernels/rating_sgd.cu``: steps for the ratings of blocks that share neither users nor items.

Arrays are the device's, otherwise what `dml_hpc.kernels.rating_sgd` says of them, without its squared lengths, which
are not kept there: of ``p_squares`` and ``q_squares`` only the sums (elements 2·row) change. Many steps are taken at a
time, without locks; results vary from run to run where ratings of a block share users or items.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dml_hpc.device import Array, Device, cpp_name
from dml_hpc.kernels.cuda.sums import address

FILE = "rating_sgd.cu"
CHUNK = 256
"""Ratings that a block of threads takes at a time. Also in ``rating_sgd.cu``."""
SHAPES = ((8, 1), (16, 1), (32, 1), (32, 4))
"""Lanes that share a row, and how many packs of four numbers a lane has of it."""
MOST_WIDTH = 4 * max(lanes * packs for lanes, packs in SHAPES)
"""Elements of a row."""
APART = 8
"""Of users, and of items, there are so many for each step that is taken at a time: few then meet in a row.

Simulated (``benchmarks/lost_steps.py``), the RMSE held out after 12 epochs is 0.5 % above that of few steps at a time
for 16, 0.9 % for 8, 1.3 % for 4 and 2.7 % for 2: learning is up to two epochs behind for 8.
"""
_BLOCKS_A_PROCESSOR = 4
_MOST_THREADS = 256


class Sides(NamedTuple):
    """The rows that a block's ratings are about: factors (flat), biases and squares of users and items, or None."""

    p: Array
    q: Array
    b: Array | None = None
    c: Array | None = None
    p_squares: Array | None = None
    q_squares: Array | None = None


def entry(users: Array, items: Array, ratings: Array | None, weights: Array | None, sides: Sides,
          first: int = 0) -> list[int]:
    """Return what a table of blocks holds of one: `put` an int64 array of these rows. All arrays must live on.

    ``first``: the rating that `sgd` begins with, or where predictions go.
    """
    return [len(users), first, *(0 if array is None or not array.size else address(array)
                                   for array in (users, items, ratings, weights, *sides))]


def most_blocks(device: Device) -> int:
    """Return how many sums of losses `sgd` needs."""
    return _BLOCKS_A_PROCESSOR * device.processors


def sgd(device: Device, table: Array, longest: int, rows: tuple[int, int], dtype: np.dtype, width: int, mean: float,
        scale: float, step_size: float, l2: float, bias_l2: float, losses: Array) -> None:
    """Take a step for each rating of the blocks in ``table`` (blocks, 12) int64, of `entry`.

    ``longest`` is the number of ratings of the longest, ``rows`` how many users and items they have in all, and what
    ``dtype`` and ``width`` rows are of. Adds to ``losses`` (`most_blocks`,) float64, whose sum is then Σ w·e² of before
    each step. Where there are less than twice `APART` users or items, steps are taken one after the other.
    """
    lanes, packs = shape(width)
    threads = min(device.block_threads, _MOST_THREADS)
    at_once = max(1, min(rows) // APART)  # steps
    chunks, in_block = -(-longest // CHUNK), threads // lanes
    blocks = min(len(table) * chunks, max(1, at_once // in_block), most_blocks(device))
    device.launch(FILE, f"sgd<{cpp_name(dtype)}, {lanes}, {packs}>", blocks, threads, table, len(table), chunks,
                  min(at_once, in_block), width, *map(np.float32, (mean, 1 / scale, step_size, l2, bias_l2)), losses)


def predict(device: Device, table: Array, longest: int, dtype: np.dtype, width: int, mean: float, scale: float,
            out: Array) -> None:
    """Write what the ratings of the blocks in ``table`` are predicted to be to ``out``, from each one's ``first`` on.

    Users and items below 0 are unknown. The same bits whatever else is predicted, on a kind of GPU.
    """
    lanes, packs = shape(width)
    chunks = -(-longest // CHUNK)
    device.launch(FILE, f"predict<{cpp_name(dtype)}, {lanes}, {packs}>",
                  min(len(table) * chunks, 2 * most_blocks(device)), min(device.block_threads, _MOST_THREADS), table,
                  len(table), chunks, width, np.float32(mean), np.float32(scale), out)


def shape(width: int) -> tuple[int, int]:
    """Return the first of `SHAPES` that holds rows of ``width`` elements, which are at most `MOST_WIDTH`."""
    return next(one for one in SHAPES if width <= 4 * one[0] * one[1])
