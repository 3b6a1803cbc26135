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

from dml_hpc.kernels.fours import (
    COUNT,
    distinct,
    filled,
    gathered,
    gathered_pairs,
    loaded,
    not_negative,
    places,
    root,
    scattered,
    scattered_pairs,
    summed,
)
from dml_hpc.kernels.losses import FAST
from dml_hpc.kernels.rating_rows import LANES, four_fetch, four_products, four_steps, row_fetch, row_product, row_step

MOST_LANES = 8
"""Sixteens of a row that are computed without a loop."""
BIAS_STEP = np.float32(0.3)
"""Of a factor's step is a bias's: its gradient is the whole error, not the error times a factor that is well below 1.

With as large steps biases stay noisy, and predictions are 1 to 3 % worse; half or twice this makes no difference.
"""
_BOTH = 2 * COUNT
_PLACE = np.uintp
"""Of what is no negative number: else each access would ask whether to count from the end."""
_ONE, _TWO = _PLACE(1), _PLACE(2)
_AHEAD = 5 * COUNT
"""How many ratings ahead rows are fetched."""
_part = njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy", forceinline=True)
"""A part of a kernel, always put into it. As functions, parts would be compiled once by themselves and once with it,
and round differently (float16 did): which is called depends on whether the kernel comes from its cache.
"""


def padded(k: int) -> int:
    """Return how many elements a row of ``k`` factors has."""
    unit = LANES * (MOST_LANES if k > LANES * MOST_LANES else 1)
    return -(-k // unit) * unit


def lanes_of(width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return ``lanes`` and ``more`` for rows of `padded` ``width``."""
    lanes = min(width // LANES, MOST_LANES)
    return (0,) * lanes, (0,) * (width // (lanes * LANES) - 1)


@_part
def _product(p, i, q, j, lanes, more):
    total = row_product(p, i, q, j, lanes)
    for piece in range(len(more)):
        there = (piece + 1) * MOST_LANES * LANES
        total += row_product(p, i + there, q, j + there, lanes)
    return total


@_part
def _four_products(p, u, q, i, width, lanes, more):
    total = four_products(p, u, q, i, width, 0, lanes)
    for piece in range(len(more)):
        total += four_products(p, u, q, i, width, (piece + 1) * MOST_LANES * LANES, lanes)
    return total


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def sgd(users, items, ratings, weights, p, q, b, c, p_squares, q_squares, lanes, more, mean, scale, step_size, l2,
        bias_l2, first):
    """Take a step for each rating, from number ``first`` on and around; return the sum of w·e² before each step.

    ``p_squares`` and ``q_squares`` (2·rows,) float32 hold for each row the sum of its squared gradients (of the errors,
    without the penalty), as a mean over its elements, and its own squared length, as `measure` has set it: it follows
    from step to step, and costs no second look at the row (but at one of float16). Steps are then ``step_size``/√(1 +
    sum), the sum with the gradient of the step itself: AdaGrad with one step size a row (Duchi, Hazan and Singer, JMLR
    12, 2011; Chin, Zhuang, Juan and Lin, *A learning-rate schedule for stochastic gradient methods to matrix
    factorization*, PAKDD 2015). None: all steps are ``step_size``. The numbers after ``more`` are float32, but
    ``first``.

    With AdaGrad four ratings in a row whose users and items all differ are computed at once, and while their steps are
    taken, the products of the next four, if these have none of their rows: each rating's numbers are as if one came
    after the other.
    """
    total = 0.0
    for turn in range(2):
        start, stop = (first, len(ratings)) if turn == 0 else (0, first)
        if p_squares is None:
            total += _one_by_one(start, stop, users, items, ratings, weights, p, q, b, c, p_squares, q_squares, lanes,
                                 more, mean, np.float32(1) / scale, step_size, l2, bias_l2)
        else:
            total += _by_fours(start, stop, users, items, ratings, weights, p, q, b, c, p_squares, q_squares, lanes,
                               more, mean, np.float32(1) / scale, step_size, l2, bias_l2)
    return total


@_part
def _one_by_one(start, stop, users, items, ratings, weights, p, q, b, c, p_squares, q_squares, lanes, more, mean,
                inverse, step_size, l2, bias_l2):
    """Take the steps of ratings ``start`` … ``stop`` − 1; return the sum of w·e²."""
    width, total = np.int64(len(lanes) * LANES * (1 + len(more))), 0.0
    last = _PLACE(max(stop - 1, 0))
    for n in range(_PLACE(start), _PLACE(stop)):
        ahead = min(n + _PLACE(_AHEAD), last)
        row_fetch(p, np.int64(users[ahead]) * width, lanes)
        row_fetch(q, np.int64(items[ahead]) * width, lanes)
        total += _step(n, users, items, ratings, weights, p, q, b, c, p_squares, q_squares, lanes, more, mean, inverse,
                       step_size, l2, bias_l2)
    return total


@_part
def _by_fours(start, stop, users, items, ratings, weights, p, q, b, c, p_squares, q_squares, lanes, more, mean, inverse,
              step_size, l2, bias_l2):
    """The same by fours, with AdaGrad."""
    width, total = np.int64(len(lanes) * LANES * (1 + len(more))), 0.0
    one, mean_of, last = np.float32(1), np.float32(1) / np.float32(width), stop - COUNT
    by_fours = start + (stop - start) // COUNT * COUNT
    ready = False
    u, i, product = next_u, next_i, next_product = (0, 0, 0, 0), (0, 0, 0, 0), filled(one)
    for n in range(start, by_fours, COUNT):
        ahead = min(n + _AHEAD, last)
        four_fetch(p, places(users, ahead), q, places(items, ahead), width, lanes)
        if ready:
            u, i, product = next_u, next_i, next_product
        elif distinct(users, n, COUNT) and distinct(items, n, COUNT):
            u, i = places(users, n), places(items, n)
            product = _four_products(p, u, q, i, width, lanes, more)
        else:
            for m in range(_PLACE(n), _PLACE(n + COUNT)):
                total += _step(m, users, items, ratings, weights, p, q, b, c, p_squares, q_squares, lanes, more,
                               mean, inverse, step_size, l2, bias_l2)
            continue
        ready = n + _BOTH <= by_fours and distinct(users, n, _BOTH) and distinct(items, n, _BOTH)
        if ready:
            next_u, next_i = places(users, n + COUNT), places(items, n + COUNT)
            next_product = _four_products(p, next_u, q, next_i, width, lanes, more)
        e = (loaded(ratings, n) - mean) * inverse - product
        if b is not None:
            own_b, own_c = gathered(b, u), gathered(c, i)
            e -= own_b + own_c
        weight = filled(one) if weights is None else loaded(weights, n)
        loss = weight * e * e
        total += summed(loss)
        (p_sum, pp), (q_sum, qq) = gathered_pairs(p_squares, u), gathered_pairs(q_squares, i)
        if p.itemsize == 2:  # what float16 rounds away is not known to the lengths that follow from step to step
            pp, qq = _four_products(p, u, p, u, width, lanes, more), _four_products(q, i, q, i, width, lanes, more)
        else:
            pp, qq = not_negative(pp), not_negative(qq)
        share = loss * (weight * mean_of)
        p_sum, q_sum = p_sum + share * qq, q_sum + share * pp
        step_p, step_q = step_size * weight / root(one + p_sum), step_size * weight / root(one + q_sum)
        keep_p, gain_p, keep_q, gain_q = one - step_p * l2, step_p * e, one - step_q * l2, step_q * e
        four_steps(p, u, q, i, width, 0, keep_p, gain_p, keep_q, gain_q, lanes)
        for piece in range(len(more)):
            there = (piece + 1) * MOST_LANES * LANES
            four_steps(p, u, q, i, width, there, keep_p, gain_p, keep_q, gain_q, lanes)
        twice = product + product
        scattered_pairs(p_squares, u, p_sum, keep_p * (keep_p * pp + gain_p * twice) + gain_p * gain_p * qq)
        scattered_pairs(q_squares, i, q_sum, keep_q * (keep_q * qq + gain_q * twice) + gain_q * gain_q * pp)
        if b is not None:
            scattered(b, u, own_b + BIAS_STEP * step_p * (e - bias_l2 * own_b))
            scattered(c, i, own_c + BIAS_STEP * step_q * (e - bias_l2 * own_c))
    for m in range(_PLACE(by_fours), _PLACE(stop)):
        total += _step(m, users, items, ratings, weights, p, q, b, c, p_squares, q_squares, lanes, more,
                       mean, inverse, step_size, l2, bias_l2)
    return total


@_part
def _step(n, users, items, ratings, weights, p, q, b, c, p_squares, q_squares, lanes, more, mean, inverse, step_size,
          l2, bias_l2):
    """Take the step for rating ``n``; return its w·e²."""
    width, one = np.int64(len(lanes) * LANES * (1 + len(more))), np.float32(1)
    u, i = _PLACE(users[n]), _PLACE(items[n])
    at, to = np.int64(u) * width, np.int64(i) * width
    product = _product(p, at, q, to, lanes, more)
    e = (ratings[n] - mean) * inverse - product
    if b is not None:
        e -= b[u] + c[i]
    weight = one if weights is None else weights[n]
    loss = weight * e * e
    step_p, step_q = step_size * weight, step_size * weight
    if p_squares is not None:
        pp, qq = max(p_squares[_TWO * u + _ONE], np.float32(0)), max(q_squares[_TWO * i + _ONE], np.float32(0))
        if p.itemsize == 2:
            pp, qq = _product(p, at, p, at, lanes, more), _product(q, to, q, to, lanes, more)
        share = loss * (weight / np.float32(width))
        p_squares[_TWO * u] += share * qq
        q_squares[_TWO * i] += share * pp
        step_p /= np.float32(math.sqrt(one + p_squares[_TWO * u]))
        step_q /= np.float32(math.sqrt(one + q_squares[_TWO * i]))
    keep_p, gain_p, keep_q, gain_q = one - step_p * l2, step_p * e, one - step_q * l2, step_q * e
    row_step(p, at, q, to, keep_p, gain_p, keep_q, gain_q, lanes)
    for piece in range(len(more)):
        there = (piece + 1) * MOST_LANES * LANES
        row_step(p, at + there, q, to + there, keep_p, gain_p, keep_q, gain_q, lanes)
    if p_squares is not None:
        twice = product + product
        p_squares[_TWO * u + _ONE] = keep_p * (keep_p * pp + gain_p * twice) + gain_p * gain_p * qq
        q_squares[_TWO * i + _ONE] = keep_q * (keep_q * qq + gain_q * twice) + gain_q * gain_q * pp
    if b is not None:
        b[u] += BIAS_STEP * step_p * (e - bias_l2 * b[u])
        c[i] += BIAS_STEP * step_q * (e - bias_l2 * c[i])
    return np.float64(loss)


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
