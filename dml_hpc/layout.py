"""Who owns which range: contiguous, balanced, a pure integer function of (n, parts, index)."""

from __future__ import annotations


def bound(n: int, parts: int, index: int) -> int:
    """Return where part ``index`` of ``n`` items begins (``index == parts`` gives ``n``).

    The parts are contiguous, cover ``0 … n`` in order, and differ in length by at most one; with more parts
    than items some are empty. Python integers, so no size overflows.
    """
    return n * index // parts


def split(n: int, parts: int, index: int) -> tuple[int, int]:
    """Return ``(start, stop)`` of part ``index`` when ``n`` items are shared by ``parts`` owners (see `bound`)."""
    return bound(n, parts, index), bound(n, parts, index + 1)
