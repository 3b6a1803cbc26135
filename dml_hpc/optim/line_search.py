"""A step along a direction that satisfies the strong Wolfe conditions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

MOST_TRIALS = 20
DECREASE = 1e-4
_CURVATURE = 0.9


class _Point(NamedTuple):
    step: float
    loss: float
    slope: float


def wolfe_step(probe: Callable[[float], tuple[float, float]], loss: float, slope: float, step: float,
               slack: float) -> float | None:
    """Return a step α with φ(α) ≤ φ(0) + 1e-4·α·φ'(0) + slack and |φ'(α)| ≤ 0.9·|φ'(0)|, the last one probed.

    ``probe`` returns (φ, φ') at a step, ``loss`` and ``slope`` < 0 are those at 0, ``step`` is tried first. ``slack``
    is what φ may differ by rounding. A φ that is not finite means that a step is too long. When trials run out, the
    best step that meets the first alone and lowers φ is returned, or None. Nocedal and Wright, *Numerical
    optimization*, 2006, algorithms 3.5 and 3.6, cubic interpolation 3.59.
    """
    low, high = _Point(0.0, loss, slope), None  # between them a step is sought, beyond low while there is no high
    for _ in range(MOST_TRIALS):
        point = _Point(step, *probe(step))
        before = low
        if not (math.isfinite(point.loss) and math.isfinite(point.slope)):
            high = _Point(step, math.inf, math.nan)
        elif (point.loss > loss + DECREASE * step * slope + slack
              or (low.step > 0 and point.loss > low.loss + slack)):
            high = point
        elif abs(point.slope) <= -_CURVATURE * slope:
            return step
        else:
            if high is None:
                high = low if point.slope >= 0 else None
            elif point.slope * (high.step - low.step) >= 0:
                high = low
            low = point
        step = _beyond(before, low) if high is None else _between(low, high)
    if not low.loss < loss:
        return None
    probe(low.step)
    return low.step


def _between(low: _Point, high: _Point) -> float:
    """Return a step between two, no nearer to either than a tenth of the way."""
    if not math.isfinite(high.loss):
        return low.step + 0.1 * (high.step - low.step)
    part = (_cubic_minimum(low, high) - low.step) / (high.step - low.step)
    return low.step + (min(max(part, 0.1), 0.9) if math.isfinite(part) else 0.5) * (high.step - low.step)


def _beyond(before: _Point, now: _Point) -> float:
    """Return a step beyond ``now``, by once to nine times the way from ``before``."""
    part = (_cubic_minimum(before, now) - now.step) / (now.step - before.step)
    return now.step + (min(max(part, 1.0), 9.0) if math.isfinite(part) and part > 0 else 4.0) * (now.step - before.step)


def _cubic_minimum(a: _Point, b: _Point) -> float:
    """Return where the cubic through both losses and slopes is least, NaN if nowhere."""
    if a.step == b.step:
        return math.nan
    mean = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.step - b.step)
    square = mean * mean - a.slope * b.slope
    if not square >= 0:
        return math.nan
    root = math.copysign(math.sqrt(square), b.step - a.step)
    below = b.slope - a.slope + 2 * root
    return b.step - (b.step - a.step) * (b.slope + root - mean) / below if below else math.nan
