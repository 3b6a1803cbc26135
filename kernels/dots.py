"""Inner products, summed in float64 whatever the vectors' type; always in the same order."""

from __future__ import annotations

from numba import njit


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def dot(a, b):
    """Return Σ a_j·b_j (float64) of two vectors (count,)."""
    total = 0.0
    for j in range(len(a)):
        total += float(a[j]) * float(b[j])
    return total


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def squared_norm(a):
    """Return Σ a_j² (float64) of a vector (count,) of floats or whole numbers."""
    total = 0.0
    for j in range(len(a)):
        total += float(a[j]) * float(a[j])
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def combine(coefficients, vectors, out):
    """out = Σ_i coefficients_i·vectors_i, of vectors (rows, count), in the order of the rows."""
    for start in range(0, len(out), 4096):  # a piece of out stays in the cache
        stop = min(start + 4096, len(out))
        for j in range(start, stop):
            out[j] = 0
        for i in range(len(coefficients)):
            c = coefficients[i]
            if c != 0:
                for j in range(start, stop):
                    out[j] += c * vectors[i, j]
