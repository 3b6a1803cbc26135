"""Numbers out of records, which are not to be trusted, and numbers as a person reads them."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]

LEAST, MOST = 1e-50, 1e50
"""Numbers beyond would overflow when they are multiplied or divided."""


def number(value: Any) -> float | None:
    """Return ``value`` when it is a number, 0 or more, that can be reckoned with; records are not to be trusted."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if value == 0 or LEAST <= value <= MOST else None


def positive(record: Record, key: str) -> float | None:
    """Return what ``record`` holds under ``key`` when that is a finite number above 0."""
    return number(record.get(key)) or None


def whole(value: Any) -> int | None:
    """Return ``value`` when it is a whole number above 0 that a count may be."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 62 else None


def count(n: int, noun: str) -> str:
    """Return "1 rank", "2 ranks"."""
    return f"{n} {noun}{'s' * (n != 1)}"


def listed(words: list[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return " and ".join([*([", ".join(words[:-1])] if words[1:] else []), *words[-1:]])


def duration(seconds: float) -> str:
    """Return seconds with three digits and a unit: ``12.3 µs``, ``1.70 ms``, ``214 s``."""
    factor, unit = next(((factor, unit) for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs"))
                         if seconds * factor >= 0.9995), (1e6, "µs"))
    value = seconds * factor
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}" if seconds else "0 s"


def size(n_bytes: int | None) -> str:
    """Return a number of bytes in binary units: ``512 B``, ``64 KiB``, ``1.5 MiB``."""
    if n_bytes is None:
        return "–"
    power = min((max(n_bytes, 1).bit_length() - 1) // 10, 4)
    return f"{n_bytes / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def rate(bytes_per_s: float) -> str:
    """Return a speed in decimal units: ``85 MB/s``, ``1.2 GB/s``."""
    factor, unit = (1e9, "GB/s") if bytes_per_s >= 9.995e8 else (1e6, "MB/s")
    value = bytes_per_s / factor
    return f"{value:.0f} {unit}" if value >= 99.95 else f"{value:.3g} {unit}"
