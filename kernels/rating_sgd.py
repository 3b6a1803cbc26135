"""Stochastic gradient descent on a block of ratings: one step for each, in the order in which they lie.

A rating r of user u for item i is predicted as μ + s·(b_u + c_i + p_u·q_i), with the mean μ and the scale s of all
ratings. With e = (r − μ)/s − (b_u + c_i + p_u·q_i) a rating of weight w adds to the objective

    w·½·(e² + λ·(‖p_u‖² + ‖q_i‖²) + λ_b·(b_u² + c_i²))

(Koren, Bell and Volinsky, *Matrix factorization techniques for recommender systems*, IEEE Computer 42(8), 2009, whose
penalties count once a rating too), and a step goes against the gradient of that, for biases `BIAS_STEP` as far.

Rows of ``p`` and ``q`` have 16·``len(lanes)``·(1 + ``len(more)``) elements, float32 or the bits of float16 (uint16),
flat; see `dml_hpc.kernels.rating_rows`. ``users`` and ``items`` (n,) int32 are rows, ``ratings`` and ``weights`` (n,)
float32, ``weights`` None: 1 each. ``b`` and ``c`` are the biases (rows,) float32, None: there are none.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from dml_hpc.kernels.losses import FAST
from dml_hpc.kernels.prefetch import prefetch
from dml_hpc.kernels.rating_rows import LANES, row_fetch, row_product, row_step

MOST_LANES = 8
"""Sixteens of a row that are computed without a loop."""
BIAS_STEP = np.float32(0.3)
"""Of a factor's step is a bias's: its gradient is the whole error, not the error times a factor that is well below 1.

With as large steps biases stay noisy, and predictions are 1 to 3 % worse; half or twice this makes no difference.
"""
_PLACE = np.uintp
"""Of what is no negative number: else each access would ask whether to count from the end."""
_ONE, _TWO = _PLACE(1), _PLACE(2)
_AHEAD = _PLACE(20)
"""How many ratings ahead rows are fetched."""


def padded(k: int) -> int:
    """Return how many elements a row of ``k`` factors has."""
    unit = LANES * (MOST_LANES if k > LANES * MOST_LANES else 1)
    return -(-k // unit) * unit


def lanes_of(width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return ``lanes`` and ``more`` for rows of `padded` ``width``."""
    lanes = min(width // LANES, MOST_LANES)
    return (0,) * lanes, (0,) * (width // (lanes * LANES) - 1)


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _product(p, i, q, j, lanes, more):
    total = row_product(p, i, q, j, lanes)
    for piece in range(len(more)):
        there = (piece + 1) * MOST_LANES * LANES
        total += row_product(p, i + there, q, j + there, lanes)
    return total


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def sgd(users, items, ratings, weights, p, q, b, c, p_squares, q_squares, lanes, more, mean, scale, step_size, l2,
        bias_l2, first):
    """Take a step for each rating, from number ``first`` on and around; return the sum of w·e² before each step.

    ``p_squares`` and ``q_squares`` (2·rows,) float32 hold for each row the sum of its squared gradients, as a mean
    over its elements, and its own squared length, as `measure` has set it: it follows from step to step, and costs no
    second look at the row. Steps are then ``step_size``/√(1 + sum), AdaGrad with one step size a row (Duchi, Hazan and
    Singer, JMLR 12, 2011; Chin, Zhuang, Juan and Lin, *A learning-rate schedule for stochastic gradient methods to
    matrix factorization*, PAKDD 2015). None: all steps are ``step_size``. The numbers after ``more`` are float32, but
    ``first``.
    """
    count, width, total = len(ratings), np.int64(len(lanes) * LANES * (1 + len(more))), 0.0
    one, inverse = np.float32(1), np.float32(1) / scale
    mean_of = np.float32(1) / np.float32(width)
    last = _PLACE(max(count - 1, 0))
    for number in range(2):
        start, stop = (first, count) if number == 0 else (0, first)
        for n in range(_PLACE(start), _PLACE(stop)):
            ahead = min(n + _AHEAD, last)
            next_u, next_i = _PLACE(users[ahead]), _PLACE(items[ahead])
            row_fetch(p, np.int64(next_u) * width, lanes)
            row_fetch(q, np.int64(next_i) * width, lanes)
            if b is not None:
                prefetch(b, next_u)
                prefetch(c, next_i)
            if p_squares is not None:
                prefetch(p_squares, _TWO * next_u)
                prefetch(q_squares, _TWO * next_i)
            u, i = _PLACE(users[n]), _PLACE(items[n])
            at, to = np.int64(u) * width, np.int64(i) * width
            product = _product(p, at, q, to, lanes, more)
            e = (ratings[n] - mean) * inverse - product
            if b is not None:
                e -= b[u] + c[i]
            weight = one if weights is None else weights[n]
            total += np.float64(weight * e * e)
            step_p, step_q = step_size * weight, step_size * weight
            if p_squares is not None:
                step_p /= np.float32(math.sqrt(one + p_squares[_TWO * u]))
                step_q /= np.float32(math.sqrt(one + q_squares[_TWO * i]))
            keep_p, gain_p, keep_q, gain_q = one - step_p * l2, step_p * e, one - step_q * l2, step_q * e
            if p_squares is not None:
                pp, qq = p_squares[_TWO * u + _ONE], q_squares[_TWO * i + _ONE]
                twice, ww = np.float32(2) * product, weight * weight * mean_of
                p_squares[_TWO * u] += ww * max(e * e * qq - e * l2 * twice + l2 * l2 * pp, np.float32(0))
                q_squares[_TWO * i] += ww * max(e * e * pp - e * l2 * twice + l2 * l2 * qq, np.float32(0))
                p_squares[_TWO * u + _ONE] = keep_p * keep_p * pp + keep_p * gain_p * twice + gain_p * gain_p * qq
                q_squares[_TWO * i + _ONE] = keep_q * keep_q * qq + keep_q * gain_q * twice + gain_q * gain_q * pp
            row_step(p, at, q, to, keep_p, gain_p, keep_q, gain_q, lanes)
            for piece in range(len(more)):
                there = (piece + 1) * MOST_LANES * LANES
                row_step(p, at + there, q, to + there, keep_p, gain_p, keep_q, gain_q, lanes)
            if b is not None:
                b[u] += BIAS_STEP * step_p * (e - bias_l2 * b[u])
                c[i] += BIAS_STEP * step_q * (e - bias_l2 * c[i])
    return total


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def measure(p, squares, lanes, more):
    """Set the squared lengths in ``squares`` (2·rows,) to those that the rows of ``p`` have; see `sgd`."""
    width = np.int64(len(lanes) * LANES * (1 + len(more)))
    for row in range(len(squares) // 2):
        squares[2 * row + 1] = _product(p, row * width, p, row * width, lanes, more)


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def predict(users, items, p, q, b, c, lanes, more, mean, scale, out):
    """Write what ratings are predicted to be to ``out`` (n,) float32.

    A user or item below 0 is unknown: it has no factors, and its bias is 0.
    """
    width = np.int64(len(lanes) * LANES * (1 + len(more)))
    for n in range(len(out)):
        u, i = np.int64(users[n]), np.int64(items[n])
        score = np.float32(0)
        if u >= 0 and i >= 0:
            score = _product(p, u * width, q, i * width, lanes, more)
        if b is not None:
            if u >= 0:
                score += b[u]
            if i >= 0:
                score += c[i]
        out[n] = mean + scale * score
