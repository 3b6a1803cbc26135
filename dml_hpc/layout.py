"""Who owns which range: contiguous, balanced, a pure integer function of (n, parts, index)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def bound(n: int, parts: int, index: int) -> int:
    """Return where part ``index`` of ``n`` items begins (``index == parts`` gives ``n``).

    The parts are contiguous, cover ``0 … n`` in order, and differ in length by at most one; with more parts
    than items some are empty. Python integers, so no size overflows.
    """
    return n * index // parts


def split(n: int, parts: int, index: int) -> tuple[int, int]:
    """Return ``(start, stop)`` of part ``index`` when ``n`` items are shared by ``parts`` owners (see `bound`)."""
    return bound(n, parts, index), bound(n, parts, index + 1)


def weighted_bounds(n: int, shares: Sequence[float]) -> list[int]:
    """Return where each part of ``n`` items begins, and ``n``, when owners have ``shares`` of any positive sum.

    The parts are contiguous and cover ``0 … n`` in order; each bound is the item next to where the shares have it, but
    no part is empty where there is an item for each.
    """
    parts, sums = len(shares), [0.0, *accumulate(shares)]
    bounds = [min(n, int(n * (part / sums[-1]) + 0.5)) for part in sums]
    if n >= parts:
        for index in range(1, parts):
            bounds[index] = min(max(bounds[index], bounds[index - 1] + 1), n - (parts - index))
    return [*bounds[:-1], n]
