"""Reading ahead: the next item is made by a thread while one is used."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


DEPTH = 2
"""How many items are made before they are asked for."""


def ahead(make: Callable[[Item], Made], items: Iterable[Item], depth: int = DEPTH,
          ended: threading.Event | None = None) -> Iterator[Made]:
    """Yield ``make(item)`` of each item in order; up to ``depth`` more are made meanwhile, by one thread.

    What ``make`` raises is raised here, in its turn; after that nothing is made. ``ended`` is set when no more items
    are wanted, for a ``make`` that waits.
    """
    remaining = iter(items)
    failed: list[BaseException] = []

    def made(item: Item) -> Made:
        if failed:
            raise failed[0]
        try:
            return make(item)
        except BaseException as error:
            failed.append(error)
            raise

    with ThreadPoolExecutor(1, "dml-hpc-read") as pool:
        waiting: list[Future[Made]] = []
        try:
            while True:
                while len(waiting) <= depth and (item := next(remaining, None)) is not None:
                    waiting.append(pool.submit(made, item))
                if not waiting:
                    return
                yield waiting.pop(0).result()
        finally:
            if ended is not None:
                ended.set()
            for future in waiting:
                future.cancel()
