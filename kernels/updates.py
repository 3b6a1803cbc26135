"""One pass over memory from a summed gradient to new weights, whatever the optimiser.

`take_step` cuts the vector into tiles that stay in cache and leaves each to one of the rules, ``rule``:

- `PLAIN`     w ← w − η·g
- `MOMENTUM`  u ← μ·u + g, w ← w − η·u
- `NESTEROV`  u ← μ·u + g, w ← w − η·(g + μ·u)
- `ADAGRAD`   G ← G + g², w ← w − η·g/(√G + ε)
- `RMSPROP`   v ← v + (1 − β₂)(g² − v), w ← w − η·g/(√v + ε)
- `ADAM`      m ← m + (1 − β₁)(g − m), v as above, w ← w − η·(m̂/(√v̂ + ε) + decay·w)

and all of them are followed by the proximal step of l1·‖w‖₁; see `dml_hpc.optim.optimiser`. Within a rule, arrays are
(count,) of one dtype, as are scalars; only ``summed`` may be int64 (a sum in fixed point). Nothing is reordered or
contracted, so that the result does not depend on how a vector is cut.
"""

from __future__ import annotations

import math

from numba import njit

PLAIN = 0
MOMENTUM = 1
NESTEROV = 2
ADAGRAD = 3
RMSPROP = 4
ADAM = 5
_TILE = 1024


@njit(cache=True, nogil=True, error_model="numpy")
def clipped(value, limit):
    """Return ``value`` brought into ±``limit``; NaN stays NaN."""
    return limit if value > limit else -limit if value < -limit else value


@njit(cache=True, nogil=True, error_model="numpy")
def soft(value, threshold):
    """Return ``value`` moved towards 0 by ``threshold``, and to 0 at most; NaN stays NaN, infinity infinite."""
    return value - clipped(value, threshold)


@njit(cache=True, nogil=True, error_model="numpy")
def _plain(weights, summed, unit, clip, step_size, l1, l2):
    threshold = step_size * l1
    for j in range(len(weights)):
        w = weights[j]
        g = clipped(weights.dtype.type(summed[j] * unit), clip) + l2 * w
        weights[j] = soft(w - step_size * g, threshold)


@njit(cache=True, nogil=True, error_model="numpy")
def _momentum(weights, summed, velocity, nesterov, unit, clip, step_size, momentum, l1, l2):
    """With l1, the velocity gathers g + σ, where σ is the subgradient of l1·|w| at the new weight."""
    one = weights.dtype.type(1)
    reach = step_size * (one + momentum if nesterov else one)  # how far σ moves the weight
    threshold = reach * l1
    inverse = one / reach if reach > 0 else one - one
    for j in range(len(weights)):
        w = weights[j]
        g = clipped(weights.dtype.type(summed[j] * unit), clip) + l2 * w
        u = momentum * velocity[j] + g
        moved = w - step_size * (g + momentum * u if nesterov else u)
        cut = clipped(moved, threshold)
        velocity[j] = u + cut * inverse
        weights[j] = moved - cut


@njit(cache=True, nogil=True, error_model="numpy")
def _adagrad(weights, summed, squares, unit, clip, step_size, epsilon, l1, l2):
    for j in range(len(weights)):
        w = weights[j]
        g = clipped(weights.dtype.type(summed[j] * unit), clip) + l2 * w
        G = squares[j] + g * g
        squares[j] = G
        step = step_size / (math.sqrt(G) + epsilon)
        weights[j] = soft(w - step * g, step * l1)


@njit(cache=True, nogil=True, error_model="numpy")
def _rmsprop(weights, summed, squares, unit, clip, step_size, fresh2, epsilon, l1, l2):
    for j in range(len(weights)):
        w = weights[j]
        g = clipped(weights.dtype.type(summed[j] * unit), clip) + l2 * w
        v = squares[j]
        v += fresh2 * (g * g - v)
        squares[j] = v
        step = step_size / (math.sqrt(v) + epsilon)
        weights[j] = soft(w - step * g, step * l1)


@njit(cache=True, nogil=True, error_model="numpy")
def _adam(weights, summed, means, squares, unit, clip, step_size, fresh1, fresh2, correct1, correct2, epsilon, l1, l2,
          decay):
    for j in range(len(weights)):
        w = weights[j]
        g = clipped(weights.dtype.type(summed[j] * unit), clip) + l2 * w
        m = means[j]
        m += fresh1 * (g - m)
        means[j] = m
        v = squares[j]
        v += fresh2 * (g * g - v)
        squares[j] = v
        step = step_size / (math.sqrt(v) * correct2 + epsilon)
        weights[j] = soft(w - step * (m * correct1) - step_size * decay * w, step * l1)


@njit(cache=True, nogil=True, error_model="numpy")
def _average(weights, average, pace):
    for j in range(len(weights)):
        average[j] += pace * (weights[j] - average[j])


@njit(cache=True, nogil=True, error_model="numpy")
def take_step(rule, weights, summed, first, second, average, start, edges, unit, clip, step_size, momentum, fresh1,
              fresh2, correct1, correct2, epsilon, l1, l2, decay, pace):
    """Take a step in place of ``weights`` (count,), elements ``start`` … of a vector, by the gradient unit·summed.

    ``edges`` (runs + 1,) int64 cut that vector into runs, of which the second, the fourth … are penalised. ``first``
    and ``second`` are the rule's state, (count,) or empty where it has none; ``average`` (count,) or empty, moves to
    the new weights by the part ``pace`` of the way. Scalars have the weights' dtype, but ``unit``, which has that in
    which g is computed. ``fresh1`` is 1 − β₁, ``fresh2`` 1 − β₂, ``correct1`` 1/(1 − β₁ᵗ), ``correct2`` 1/√(1 − β₂ᵗ).
    """
    none = l1 - l1
    for run in range(len(edges) - 1):
        penalised = run % 2 == 1
        run_l1, run_l2, run_decay = (l1, l2, decay) if penalised else (none, none, none)
        stop = min(edges[run + 1] - start, len(weights))
        for low in range(max(edges[run] - start, 0), stop, _TILE):
            high = min(low + _TILE, stop)
            w, s = weights[low:high], summed[low:high]
            if rule == PLAIN:
                _plain(w, s, unit, clip, step_size, run_l1, run_l2)
            elif rule in (MOMENTUM, NESTEROV):
                _momentum(w, s, first[low:high], rule == NESTEROV, unit, clip, step_size, momentum, run_l1, run_l2)
            elif rule == ADAGRAD:
                _adagrad(w, s, first[low:high], unit, clip, step_size, epsilon, run_l1, run_l2)
            elif rule == RMSPROP:
                _rmsprop(w, s, first[low:high], unit, clip, step_size, fresh2, epsilon, run_l1, run_l2)
            else:
                _adam(w, s, first[low:high], second[low:high], unit, clip, step_size, fresh1, fresh2, correct1,
                      correct2, epsilon, run_l1, run_l2, run_decay)
            if len(average) > 0:
                _average(w, average[low:high], pace)


@njit(cache=True, nogil=True, error_model="numpy")
def scale_to(summed, unit, out):
    """Write ``unit``·``summed`` (int64) to ``out`` (floats); both (count,)."""
    for j in range(len(out)):
        out[j] = summed[j] * unit
