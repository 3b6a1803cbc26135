"""The machines of an averaging run, of which a rank may stand for several: what each reads, and how far it has come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dml_hpc.comm.clock import Clock
from dml_hpc.data.reading import Reader, Rows


@dataclass
class Machine:
    """A machine, by its ``number``; its next example is number ``inside`` of chunk ``chunk`` of its reader's steps.

    ``examples`` it has learnt from in all, ``in_round`` of them in this round.
    """

    number: int
    reader: Reader
    chunk: int = 0
    inside: int = 0
    examples: int = 0
    in_round: int = 0

    def chunks(self, most: int | None, clock: Clock) -> Iterator[Iterable[Rows]]:
        """Yield the next ``most`` examples, chunk by chunk, pass after pass over the rows; None: without end.

        Each chunk is to be gone through before the next is asked for, and each of its parts is valid until the next.
        """
        self.in_round = 0
        while self.reader.count and (most is None or self.in_round < most):
            parts, _ = self.reader.take(*divmod(self.chunk, self.reader.steps))
            clock.lap("read")
            yield self._of_chunk(parts, None if most is None else most - self.in_round)

    def _of_chunk(self, parts: Iterable[Rows], left: int | None) -> Iterator[Rows]:
        skip, taken, whole = self.inside, 0, True
        for part in parts:
            rows = part.rows[skip:]
            skip -= len(part.rows) - len(rows)
            if left is not None and taken + len(rows) > left:
                rows, whole = rows[:left - taken], False
            taken += len(rows)
            if len(rows):
                yield part._replace(rows=rows)
            if not whole:
                break
        self.chunk, self.inside = (self.chunk + 1, 0) if whole else (self.chunk, self.inside + taken)
        self.in_round += taken
        self.examples += taken


def cut(parts: Iterable[Rows], size: int | None) -> Iterator[Rows]:
    """Yield the same rows, at most ``size`` at a time; None: as they come."""
    for part in parts:
        for start in range(0, len(part.rows), size or max(len(part.rows), 1)):
            yield part if size is None else part._replace(rows=part.rows[start:start + size])
