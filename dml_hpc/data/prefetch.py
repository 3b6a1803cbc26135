"""Reading ahead: the next item is made by a thread while one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


DEPTH = 2
"""How many items are made before they are asked for."""


def ahead(make: Callable[[Item], Made], items: Iterable[Item], depth: int = DEPTH) -> Iterator[Made]:
    """Yield ``make(item)`` of each item in order; up to ``depth`` more are made meanwhile, by one thread.

    What ``make`` raises is raised here, in its turn.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(1, "dml-hpc-read") as pool:
        waiting: list[Future[Made]] = []
        try:
            while True:
                while len(waiting) <= depth and (item := next(remaining, None)) is not None:
                    waiting.append(pool.submit(make, item))
                if not waiting:
                    return
                yield waiting.pop(0).result()
        finally:
            for made in waiting:
                made.cancel()
