"""Feature hashing: words as numbers, by MurmurHash3."""

from __future__ import annotations

import numpy as np
from numba import njit

_C1, _C2 = np.uint32(0xCC9E2D51), np.uint32(0x1B873593)


@njit(cache=True, nogil=True)
def _rotated(x, bits):
    return np.uint32(x << np.uint32(bits)) | np.uint32(x >> np.uint32(32 - bits))


@njit(cache=True, nogil=True)
def _scrambled(block):
    return np.uint32(_rotated(np.uint32(block * _C1), 15) * _C2)


@njit(cache=True, nogil=True)
def murmur3(key, length):
    """Return MurmurHash3 (Appleby; 32 bits, seed 0) of the first ``length`` bytes of ``key`` (bytes,) uint8."""
    h = np.uint32(0)
    whole = length // 4 * 4
    for i in range(0, whole, 4):
        block = (np.uint32(key[i]) | np.uint32(key[i + 1]) << np.uint32(8)
                 | np.uint32(key[i + 2]) << np.uint32(16) | np.uint32(key[i + 3]) << np.uint32(24))
        h = np.uint32(_rotated(np.uint32(h ^ _scrambled(np.uint32(block))), 13) * np.uint32(5)
                      + np.uint32(0xE6546B64))
    rest = np.uint32(0)
    for i in range(length - 1, whole - 1, -1):
        rest = np.uint32(rest << np.uint32(8)) | np.uint32(key[i])
    if length > whole:
        h = np.uint32(h ^ _scrambled(rest))
    h = np.uint32(h ^ np.uint32(length))
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))


@njit(cache=True, nogil=True)
def hash_words(prefix, text, ends, bits, columns, signs):
    """Give each word its column, below 2^``bits``, and its sign, 1 or -1.

    Word i is ``prefix`` (bytes,) uint8 and then ``text[ends[i]:ends[i + 1]]``, uint8. Its hash taken as a signed
    number, the sign is that of the hash and the column its magnitude modulo 2^``bits``, as scikit-learn has them
    (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", 2009). ``columns`` (words,) int64,
    ``signs`` (words,) float64.
    """
    longest = 0
    for i in range(len(columns)):
        longest = max(longest, ends[i + 1] - ends[i])
    key = np.empty(len(prefix) + longest, np.uint8)
    key[:len(prefix)] = prefix
    for i in range(len(columns)):
        length = len(prefix)
        for k in range(ends[i], ends[i + 1]):
            key[length] = text[k]
            length += 1
        h = np.int64(np.int32(murmur3(key, length)))
        columns[i] = abs(h) & ((np.int64(1) << bits) - 1)
        signs[i] = 1 if h >= 0 else -1
