"""Where the parameters of a model lie in one vector: layer after layer, each a matrix with its biases below."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Layers:
    """``widths`` are (features, …, outputs): layer l maps widths[l] numbers to widths[l + 1].

    Its parameters are a block (widths[l] + 1, widths[l + 1]) in C order, whose last row are the biases; the blocks
    follow one another. A linear score is one layer with one output: the weights, then the intercept.
    """

    widths: tuple[int, ...]

    @property
    def features(self) -> int:
        """How many numbers go in."""
        return self.widths[0]

    @property
    def outputs(self) -> int:
        """How many scores come out."""
        return self.widths[-1]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each block begins and, last, how many parameters there are."""
        starts = [0]
        for rows, columns in pairwise(self.widths):
            starts.append(starts[-1] + (rows + 1) * columns)
        return tuple(starts)

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return self.starts[-1]

    @cached_property
    def penalised(self) -> tuple[tuple[int, int], ...]:
        """The ranges of the vector that hold weights, not biases."""
        return tuple((start, stop - columns)
                     for (start, stop), columns in zip(pairwise(self.starts), self.widths[1:], strict=True))

    def block(self, vector: np.ndarray, layer: int) -> np.ndarray:
        """Return the block of a layer, a view (widths[layer] + 1, widths[layer + 1]) of ``vector`` (size,)."""
        start, stop = self.starts[layer:layer + 2]
        return vector[start:stop].reshape(self.widths[layer] + 1, self.widths[layer + 1])
