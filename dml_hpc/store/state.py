"""What a run is made of at one moment: small values, and vectors of which each rank may hold a piece.

An algorithm gives its `State`, and takes it back from `Kept`, wherever that was kept meanwhile and by however many
ranks it was given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dml_hpc.layout import split

Values = dict[str, Any]
"""What JSON holds: numbers, words, None, lists and tables of these."""


class Piece(NamedTuple):
    """Elements ``start`` … of a vector of ``total`` elements called ``name``: ``array`` (count,), C-contiguous."""

    name: str
    start: int
    array: np.ndarray
    total: int


@dataclass
class State:
    """This rank's part of the state of a run.

    ``values`` are the same on every rank, ``own`` may differ from rank to rank. The ``pieces`` of all ranks together
    hold every element of each vector exactly once. Arrays may be views: they are good until the next step.
    """

    values: Values = field(default_factory=dict)
    own: Values = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)

    def put(self, name: str, array: np.ndarray, start: int, total: int) -> None:
        """Add elements ``start`` … of a vector of ``total`` elements, which no other rank adds."""
        self.pieces.append(Piece(name, start, np.ascontiguousarray(array), total))

    def put_shared(self, name: str, array: np.ndarray, rank: int, ranks: int) -> None:
        """Add a vector that every rank has alike: each of the ``ranks`` brings a share of it."""
        start, stop = split(len(array), ranks, rank)
        self.put(name, array[start:stop], start, len(array))

    def add(self, prefix: str, part: State) -> None:
        """Add the state of a part of the run, under names of its own."""
        self.values[prefix], self.own[prefix] = part.values, part.own
        self.pieces += [piece._replace(name=f"{prefix}/{piece.name}") for piece in part.pieces]


class Kept(ABC):
    """A state that was kept: ``values`` as they were given, ``own`` those of each rank that gave it, in their order."""

    values: Values
    own: list[Values]

    @abstractmethod
    def names(self) -> Iterable[str]:
        """Return the vectors' names."""

    @abstractmethod
    def kind(self, name: str) -> tuple[np.dtype, int]:
        """Return a vector's dtype, and how many elements it has. Raises `JobError` where there is none."""

    @abstractmethod
    def read(self, name: str, out: np.ndarray, start: int = 0) -> None:
        """Write elements ``start`` … of a vector to ``out`` (count,), which has the dtype that it was given with.

        Not collective: each rank reads what it needs. Raises `JobError` for what is not there.
        """

    def vector(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements ``start`` … ``stop − 1`` of a vector, None: to its end."""
        dtype, total = self.kind(name)
        out = np.empty((total if stop is None else stop) - start, dtype)
        self.read(name, out, start)
        return out

    def part(self, prefix: str) -> Kept:
        """Return what `State.add` added under ``prefix``; its values may be changed, what was kept stays as it is."""
        return _Part(self, prefix)


class _Part(Kept):
    def __init__(self, whole: Kept, prefix: str):
        self._whole, self._prefix = whole, prefix + "/"
        self.values, self.own = deepcopy(whole.values[prefix]), deepcopy([own[prefix] for own in whole.own])

    def names(self) -> Iterable[str]:
        return [name.removeprefix(self._prefix) for name in self._whole.names() if name.startswith(self._prefix)]

    def kind(self, name: str) -> tuple[np.dtype, int]:
        return self._whole.kind(self._prefix + name)

    def read(self, name: str, out: np.ndarray, start: int = 0) -> None:
        self._whole.read(self._prefix + name, out, start)
