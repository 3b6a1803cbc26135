"""Rules for timings that are compared: contestants take turns, and the median is quoted beside the worst."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

Key = TypeVar("Key")


class Summary(NamedTuple):
    """Median and 99th percentile of repeated timings, seconds."""

    median_s: float
    p99_s: float


def summarise(seconds: Sequence[float] | np.ndarray) -> Summary:
    """Return the summary of one timing or more. The p99 is one that occurred: of under 100, the slowest."""
    seconds = np.asarray(seconds, dtype=np.float64)
    return Summary(float(np.median(seconds)), float(np.quantile(seconds, 0.99, method="higher")))


def interleave(contestants: Mapping[Key, Callable[[], float]], repeats: int) -> dict[Key, np.ndarray]:
    """Call every contestant once a round, ``repeats`` rounds; return its results, (repeats,) float64 each.

    A machine that slows down or speeds up meanwhile hits all alike. Each round starts with another
    contestant, so that none is always the first. The order is a function of the arguments alone: ranks that
    call this together stay together.
    """
    keys = list(contestants)
    seconds = {key: np.empty(repeats) for key in keys}
    for repeat in range(repeats):
        for turn in range(len(keys)):
            key = keys[(turn + repeat) % len(keys)]
            seconds[key][repeat] = contestants[key]()
    return seconds


def calls_per_timing(call_s: float, least_s: float, most: int = 10_000) -> int:
    """Return how many calls of about ``call_s`` seconds make a timing last ``least_s``: 1 … ``most``."""
    return most if call_s * most <= least_s else max(1, math.ceil(least_s / call_s))


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Return a contestant for `interleave`: it does ``work`` and returns the seconds that took."""

    def contestant() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return contestant
