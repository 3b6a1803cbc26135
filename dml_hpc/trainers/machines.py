"""The machines of an averaging run, of which a rank may stand for several: what each reads, and how far it has come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dml_hpc.comm.clock import Clock
from dml_hpc.data.reading import Reader, Rows
from dml_hpc.store.state import Values


@dataclass
class Machine:
    """A machine, by its ``number``; its next example is number ``inside`` of chunk ``chunk`` of its reader's steps.

    ``examples`` it has learnt from in all, ``in_round`` of them in this round, with the summed loss ``loss``. Once it
    has ``finished`` the round, ``square`` is the squared norm of its model.
    """

    number: int
    reader: Reader
    chunk: int = 0
    inside: int = 0
    examples: int = 0
    in_round: int = 0
    loss: float = 0.0
    square: float = 0.0
    finished: bool = False

    def begin_round(self) -> None:
        """Begin another round where the last one ended."""
        self.in_round, self.loss, self.square, self.finished = 0, 0.0, 0.0, False

    def place(self) -> Values:
        """Return how far it has come."""
        return {name: getattr(self, name) for name in _PLACE}

    def go_on(self, place: Values) -> None:
        """Go on from a `place`, by a reader of the same rows."""
        for name in _PLACE:
            setattr(self, name, place[name])

    def chunks(self, most: int | None, clock: Clock) -> Iterator[Iterable[Rows]]:
        """Yield the examples that are left of a round's ``most``, chunk by chunk, pass after pass over the rows.

        None: without end. Each chunk is to be gone through before the next is asked for, and each of its parts is valid
        until the next.
        """
        while self.reader.used and (most is None or self.in_round < most):
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


_PLACE = ("number", "chunk", "inside", "examples", "in_round", "loss", "square", "finished")


def cut(parts: Iterable[Rows], size: int | None) -> Iterator[Rows]:
    """Yield the same rows, at most ``size`` at a time; None: as they come."""
    for part in parts:
        for start in range(0, len(part.rows), size or max(len(part.rows), 1)):
            yield part if size is None else part._replace(rows=part.rows[start:start + size])
