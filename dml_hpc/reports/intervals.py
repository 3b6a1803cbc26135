"""How sure a median is, and what is made of medians."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEAST_REPEATS = 3
"""Of fewer runs nobody can say how they scatter."""
CONFIDENCE = 0.95
UNKNOWN_NOISE = 0.05
"""Standard deviation, relative, that is taken where nothing was repeated."""
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t, two-sided 95 %, for 1 … 10 degrees of freedom."""


def student(degrees: float) -> float:
    """Return Student's t of a two-sided interval of 95 % with so many degrees of freedom, 1 or more."""
    at = min(max(degrees, 1.0), 1e9)
    if at <= len(_T):
        low = min(int(at), len(_T) - 1)
        return _T[low - 1] + (at - low) * (_T[low] - _T[low - 1])
    return 1.96 + 2.68 / at  # within 0.02 of the tables


def median_interval(seconds: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the median of times above 0; None below `LEAST_REPEATS` of them.

    From 6 on it is between two of the times, by their order (H. A. David and H. N. Nagaraja, *Order statistics*, 2003,
    section 7.1: no distribution is assumed). Fewer cannot give 95 % so: there the times are taken to be
    log-normal, and Student's t applies, and the interval holds all of them.
    """
    times = np.sort(np.asarray(seconds, np.float64))
    n = len(times)
    if n < LEAST_REPEATS:
        return None
    if n < 6:
        logs = np.log(times)
        half = student(n - 1) * float(logs.std(ddof=1)) / math.sqrt(n)
        middle = float(np.median(logs))
        return min(math.exp(middle - half), float(times[0])), max(math.exp(middle + half), float(times[-1]))
    outside, below = 0, 0.0
    while below + math.comb(n, outside) / 2.0**n <= (1 - CONFIDENCE) / 2:
        below += math.comb(n, outside) / 2.0**n
        outside += 1
    return float(times[outside - 1]), float(times[n - outside])


def ratio_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of median(after)/median(before); None where either has too few times.

    The bootstrap's percentiles (B. Efron and R. J. Tibshirani, *An introduction to the bootstrap*, 1993, chapter 13),
    and at least as wide as Welch's interval of the means of logarithms: few repeats make a bootstrap too sure.
    """
    if min(len(before), len(after)) < LEAST_REPEATS:
        return None
    random = np.random.default_rng(0)
    logs = [np.log(np.asarray(times, np.float64)) for times in (before, after)]
    old, new = (np.median(random.choice(times, (2000, len(times))), axis=1) for times in logs)
    low, high = np.quantile(new - old, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    errors = [float(times.var(ddof=1)) / len(times) for times in logs]
    if (both := sum(errors)) > 0:
        degrees = both**2 / sum(error**2 / (len(times) - 1) for error, times in zip(errors, logs, strict=True))
        half = student(degrees) * math.sqrt(both)
        middle = float(np.median(logs[1]) - np.median(logs[0]))
        low, high = min(low, middle - half), max(high, middle + half)
    return math.exp(low), math.exp(high)


def resampled_medians(measured: Sequence[np.ndarray], draws: int, random: np.random.Generator) -> np.ndarray:
    """Return medians as they might have come out, (draws, len(measured), quantities).

    ``measured`` holds for each setting an array (runs, quantities), 0 or more, one run at least. Settings are few and
    so are runs of each: how runs deviate from their median, relatively, is therefore taken from all settings
    together, and is widened for what a median has already taken out of it.
    """
    medians = [np.median(runs, axis=0) for runs in measured]
    deviations = [np.divide(runs, middle, out=np.ones_like(runs), where=middle > 0) - 1
                  for runs, middle in zip(measured, medians, strict=True)]
    pool = [apart * math.sqrt(len(apart) / (len(apart) - 1)) for apart in deviations if len(apart) > 1]
    unknown = random.normal(0, UNKNOWN_NOISE, (200, 1)) * np.ones(measured[0].shape[1])
    pooled = np.concatenate(pool or [unknown])
    drawn = np.empty((draws, len(measured), measured[0].shape[1]))
    for at, (runs, middle) in enumerate(zip(measured, medians, strict=True)):
        chosen = pooled[random.integers(len(pooled), size=(draws, len(runs)))]
        drawn[:, at] = np.median(np.maximum(1 + chosen, 0.01), axis=1) * middle
    return drawn


def least_squares(columns: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return the coefficients, none below 0, with the least squares of (columns · coefficients − measured)/measured.

    ``columns`` (settings, terms), 0 or more; ``measured`` (…, settings), above 0; returns (…, terms). Relative,
    because times at many ranks are small and count as much as those at few. The best of all subsets of terms whose
    coefficients come out at 0 or more: exact for the few terms there are.
    """
    flat = measured.reshape(-1, measured.shape[-1])
    terms = columns.shape[1]
    best = np.zeros((len(flat), terms))
    error = np.full(len(flat), np.inf)
    for subset in range(1, 1 << terms):
        used = [term for term in range(terms) if subset >> term & 1 and columns[:, term].any()]
        if not used or len(used) > columns.shape[0]:
            continue
        scale = np.linalg.norm(columns[:, used], axis=0)
        relative = columns[:, used] / scale / flat[:, :, None]
        if np.linalg.matrix_rank(relative[0], tol=1e-6 * float(np.abs(relative[0]).max())) < len(used):
            continue
        found = np.linalg.pinv(relative).sum(axis=2)  # pinv · ones
        off = np.square(np.einsum("nst,nt->ns", relative, found) - 1).sum(axis=1)
        better = (found >= 0).all(axis=1) & (off < error - 1e-12)
        error = np.where(better, off, error)
        row = np.zeros((len(flat), terms))
        row[:, used] = found / scale
        best[better] = row[better]
    return best.reshape(*measured.shape[:-1], terms)
