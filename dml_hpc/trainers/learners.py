"""How one machine learns alone from the rows it is given: an example at a time, or a mini-batch at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np

from dml_hpc.data.reading import Rows
from dml_hpc.device import Array
from dml_hpc.objectives.sequential import Sequential
from dml_hpc.optim.optimiser import Optimiser
from dml_hpc.trainers.problem import Problem
from dml_hpc.trainers.vectors import Vectors
from dml_hpc.watch import progressed


class Learner(ABC):
    """Holds a model of its own; `begin` gives it one, `learn` changes it, `parameters` returns it."""

    @abstractmethod
    def begin(self, parameters: np.ndarray) -> None:
        """Go on from ``parameters`` (size,), by standardised features, which are copied."""

    @abstractmethod
    def learn(self, parts: Iterable[Rows], step_size: float) -> tuple[int, float]:
        """Learn from rows; return how many there were, and their summed loss as it was met."""

    @abstractmethod
    def parameters(self) -> np.ndarray:
        """Return the model (size,), by standardised features; valid until the next call."""

    @abstractmethod
    def kept(self) -> dict[str, np.ndarray]:
        """Return the model as it is held, to the bit: vectors of the host by name, valid until the next call."""

    @abstractmethod
    def go_on(self, kept: dict[str, np.ndarray]) -> None:
        """Hold what another one's `kept` returned, copied."""


class OneByOne(Learner):
    """SGD, one example a step: algorithm 1 of Zinkevich, Weimer, Smola and Li, NIPS 2010."""

    def __init__(self, problem: Problem):
        self._problem = problem
        self._state = Sequential(np.zeros(problem.layers.size, problem.dtype), problem.l1, problem.l2)

    def begin(self, parameters: np.ndarray) -> None:
        """See `Learner.begin`."""
        self._state.settle()[:] = parameters

    def learn(self, parts: Iterable[Rows], step_size: float) -> tuple[int, float]:
        """See `Learner.learn`."""
        problem, count, loss = self._problem, 0, 0.0
        for part in parts:
            loss += problem.objective.sequential_sgd(
                problem.layers, part.X, part.y, part.weight, part.rows, problem.scaling.shift, problem.scaling.scale,
                self._state, step_size)
            count += len(part.rows)
            progressed()
        return count, loss

    def parameters(self) -> np.ndarray:
        """See `Learner.parameters`."""
        return self._state.settle()

    def kept(self) -> dict[str, np.ndarray]:
        """See `Learner.kept`."""
        return self._state.kept()

    def go_on(self, kept: dict[str, np.ndarray]) -> None:
        """See `Learner.go_on`."""
        self._state.go_on(kept)


class MiniBatches(Learner):
    """One step of an optimiser for all the rows that `learn` is given.

    ``weights`` (size,) lie where the ``optimiser``'s state does, where ``vectors`` says. ``number`` counts the steps.
    """

    def __init__(self, vectors: Vectors, optimiser: Optimiser, clip_norm: float | None = None):
        self._vectors, self.optimiser, self._clip_norm = vectors, optimiser, clip_norm
        problem = vectors.problem
        size = problem.layers.size
        self.weights, self._gradient = vectors.empty(size, problem.dtype), vectors.empty(size, problem.dtype)
        self.weights[:] = 0
        self.folded = self._folding = vectors.empty(0 if problem.scaling.trivial else size, problem.dtype)
        self.number = 0

    def begin(self, parameters: np.ndarray) -> None:
        """See `Learner.begin`."""
        self._vectors.copy(parameters, self.weights)

    def move(self, places: Sequence[Array]) -> None:
        """Keep the weights, and with more ``places`` the optimiser's state, in these arrays (size,) from now on."""
        for place, vector in zip(places, [self.weights, *self.optimiser.state], strict=False):
            place[:] = vector
        self.weights, *state = places
        self.optimiser.state[:len(state)] = state

    def learn(self, parts: Iterable[Rows], step_size: float) -> tuple[int, float]:
        """See `Learner.learn`."""
        vectors, gradient = self._vectors, self._gradient
        gradient[:] = 0
        count = 0

        def counted() -> Iterable[Rows]:
            nonlocal count
            for part in parts:
                count += len(part.rows)
                yield part

        self.folded = vectors.scaling.fold(self.weights, self._folding)
        loss = vectors.loss_and_gradient(counted(), self.folded, gradient)
        if not count:
            return 0, 0.0
        vectors.scaling.pull_back(gradient)
        mean = vectors.problem.mean_weight
        unit = 1 / (count * mean)
        if self._clip_norm is not None:
            norm = unit * vectors.norm(gradient)
            unit *= min(1.0, self._clip_norm / norm) if norm > 0 else 1.0
        self.number += 1
        self.optimiser.update(self.weights, gradient, 0, unit, step_size, self.number)
        return count, loss / mean

    def parameters(self) -> np.ndarray:
        """See `Learner.parameters`."""
        return self._vectors.host(self.weights)

    def kept(self) -> dict[str, np.ndarray]:
        """See `Learner.kept`: the weights alone, all that there is where the optimiser is plain SGD."""
        return {"weights": self._vectors.host(self.weights)}

    def go_on(self, kept: dict[str, np.ndarray]) -> None:
        """See `Learner.go_on`."""
        self._vectors.copy(kept["weights"], self.weights)
