"""One pass over memory from a summed gradient to new weights."""

from __future__ import annotations

from numba import njit


@njit(cache=True, nogil=True, error_model="numpy")
def momentum_step(weights, summed, velocity, penalised, unit, step_size, momentum, l2):
    """Take a heavy-ball step in place: g = unit·summed + l2·w, u ← momentum·u + g, w ← w − step_size·u.

    ``weights`` and ``velocity`` are (count,), ``summed`` too, of their dtype or int64 (a sum in fixed point); only the
    first ``penalised`` weights are penalised. The scalars have the weights' dtype, but ``unit``, which has that in
    which g is computed.
    """
    zero = l2 - l2
    for j in range(len(weights)):
        w = weights[j]
        penalty = l2 if j < penalised else zero
        g = weights.dtype.type(summed[j] * unit) + penalty * w
        u = momentum * velocity[j] + g
        velocity[j] = u
        weights[j] = w - step_size * u


@njit(cache=True, nogil=True, error_model="numpy")
def scale_to(summed, unit, out):
    """Write ``unit``·``summed`` (int64) to ``out`` (floats); both (count,)."""
    for j in range(len(out)):
        out[j] = summed[j] * unit
