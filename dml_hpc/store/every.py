"""How often something is done in a run."""

from __future__ import annotations

from typing import NamedTuple


class Every(NamedTuple):
    """Every so many ``seconds``, or ``steps``; the other is None."""

    seconds: float | None = None
    steps: int | None = None
