"""Rows of synthetic data sets: each a pure function of a key and the row's number, whatever block it is written in."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from dml_hpc.kernels.random import bits, log, normal, uniform
from dml_hpc.kernels.sampling import permute


@njit(cache=True, nogil=True)
def dense_scores(X, weights, bias, out):
    """Write X·weightsᵀ + bias to ``out`` (count, classes) float64.

    ``X`` is (count, features), ``weights`` (classes, features) and ``bias`` (classes,) float64. Added in the order of
    the columns, which a BLAS would choose by the size of the block.
    """
    for i in range(X.shape[0]):
        for c in range(weights.shape[0]):
            total = bias[c]
            for j in range(X.shape[1]):
                total += X[i, j] * weights[c, j]
            out[i, c] = total


@njit(cache=True, nogil=True)
def sparse_scores(data, indices, indptr, weights, bias, out):
    """Write the scores of sparse rows, as `dense_scores` those of dense ones."""
    for i in range(len(indptr) - 1):
        for c in range(weights.shape[0]):
            total = bias[c]
            for k in range(indptr[i], indptr[i + 1]):
                total += data[k] * weights[c, indices[k]]
            out[i, c] = total


@njit(cache=True, nogil=True)
def add_noise(key, first, noise, out):
    """Add a normal number of deviation ``noise`` to each of ``out`` (count,), which begins at draw ``first``."""
    for i in range(len(out)):
        out[i] += noise * normal(key, first + i)


@njit(cache=True, nogil=True)
def draw_classes(key, first, scores, out):
    """Write a class for each row of ``scores`` (count, classes) float64 to ``out`` (count,); rows begin at ``first``.

    With one class: 1 with probability 1 / (1 + e^−score), else 0. With more: c with the c-th of the softmax of the
    scores, as the largest of the scores plus Gumbel noise (Maddison, Tarlow and Minka, *A\\* sampling*, 2014).
    """
    count, classes = scores.shape
    for i in range(count):
        if classes == 1:
            u = uniform(key, first + i)
            out[i] = 1 if log(u) - log(1 - u) < scores[i, 0] else 0
        else:
            best = -math.inf
            for c in range(classes):
                value = scores[i, c] - log(-log(uniform(key, (first + i) * classes + c)))
                if value > best:
                    best, out[i] = value, c


@njit(cache=True, nogil=True)
def word_counts(key, first, mean, out):
    """Write to ``out`` (count,) int64 how many words each row has: 1 or more, geometric, ``mean`` on average."""
    more = log(1 - 1 / mean) if mean > 1 else -math.inf
    for i in range(len(out)):
        out[i] = 1 + np.int64(log(uniform(key, first + i)) / more)


@njit(cache=True, nogil=True)
def draw_words(key, first, features, stops, out):
    """Write the words of rows ``first`` …, numbered row in block · ``features`` + word, to ``out`` int64.

    Row i's end at ``stops[i]``. Word j is drawn with probability 2^−⌊log2(j + 1)⌋ over their sum: twice as far down
    the list, half as often.
    """
    octaves = math.frexp(features + 1.0)[1] - 1
    span = octaves + (features + 1.0) / 2.0**octaves - 1
    start = 0
    for i in range(len(stops)):
        row_key = bits(key, first + i)
        for t in range(stops[i] - start):
            place = uniform(row_key, t) * span
            octave = int(place)
            word = np.int64(math.ldexp(1 + place - octave, octave)) - 1
            out[start + t] = i * features + min(word, features - 1)
        start = stops[i]


@njit(cache=True, nogil=True)
def low_rank_rows(first, rows, frequencies, sizes, right, out):
    """Write rows ``first`` … of U·diag(``sizes``)·``right`` to ``out`` (count, features), floats.

    U[i, c] = cos(π (2i + 1) f_c / (2 ``rows``)) with ``frequencies`` f (k,) int64; ``sizes`` is (k,) and ``right``
    (k, features) float64. The angle is reduced in integers, exact for up to 2^31 rows.
    """
    total = np.empty(out.shape[1])
    for i in range(out.shape[0]):
        total[:] = 0
        for c in range(len(sizes)):
            angle = (2 * (first + i) + 1) * frequencies[c] % (4 * rows)
            left = sizes[c] * math.cos(math.pi * angle / (2 * rows))
            for j in range(len(total)):
                total[j] += left * right[c, j]
        out[i] = total


@njit(cache=True, nogil=True)
def cell_start(place, cells, items, skew):
    """Return where cell ``place`` of ``cells`` begins when these cut ``items`` items, wide ones last.

    The last cell is about (1 + ``skew``)² times as wide as the first; all are equal when ``skew`` is 0, and none is
    empty when it is at most ``items`` / (2 ``cells``) − 1. ``place == cells`` gives ``items``.
    """
    if skew <= 0:
        return place * items // cells
    return np.int64(items * np.float64(place) / (cells + skew * (cells - place)))


@njit(cache=True, nogil=True)
def cell_starts(items, skew, out):
    """Write where each of ``len(out) − 1`` cells of ``items`` items begins to ``out`` (cells + 1,) int64."""
    for i in range(len(out)):
        out[i] = cell_start(i, len(out) - 1, items, skew)


@njit(cache=True, nogil=True)
def rating_rows(keys, first, rows, starts, items, most_skew, pairs):
    """Write the (user, item) of ratings ``first`` … of ``rows`` to ``pairs`` (count, 2) int64; no pair comes twice.

    User u, by activity, has the ratings ``starts[u]`` … ``starts[u + 1] − 1``; ``starts`` is (users + 1,) int64. They
    are one item each of as many disjoint cells of the items by popularity (`cell_start`). ``keys`` (4,) uint64 scatter
    the ratings, the users' numbers and the items', and draw within a cell.
    """
    users = len(starts) - 1
    for i in range(len(pairs)):
        place = permute(first + i, rows, keys[0])
        user = np.searchsorted(starts, place, side="right") - 1
        cells = starts[user + 1] - starts[user]
        skew = min(most_skew, items / (2 * cells) - 1)
        cell = place - starts[user]
        low, high = cell_start(cell, cells, items, skew), cell_start(cell + 1, cells, items, skew)
        item = low + np.int64(uniform(keys[3], place) * (high - low))
        pairs[i, 0] = permute(user, users, keys[1])
        pairs[i, 1] = permute(item, items, keys[2])


@njit(cache=True, nogil=True)
def factor_products(pairs, user_factors, item_factors, out):
    """Write the products of the factors (users, k) and (items, k) float64 of each of ``pairs`` to ``out`` (count,)."""
    for i in range(len(pairs)):
        total = 0.0
        for c in range(user_factors.shape[1]):
            total += user_factors[pairs[i, 0], c] * item_factors[pairs[i, 1], c]
        out[i] = total
