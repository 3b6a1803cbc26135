"""L-BFGS, and OWL-QN for an L1 penalty, on vectors of which every rank holds a slice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dml_hpc.kernels.orthants import choose_orthant, pseudo_gradient, step_inside
from dml_hpc.optim.history import Dots, History
from dml_hpc.optim.line_search import DECREASE, MOST_TRIALS, wolfe_step

Evaluate = Callable[[np.ndarray], tuple[float, np.ndarray]]
_MOST_STALLED = 5


@dataclass(frozen=True)
class Iterate:
    """Where an iteration led.

    ``x`` is this rank's slice, valid until the next iteration. ``loss`` includes all penalties; ``gradient_norm`` is
    the 2-norm of the gradient, with L1 of the subgradient of least norm. ``step`` is the factor of the direction that
    was taken, ``evaluations`` how often the loss has been computed so far. ``ended`` says why there will be no other.
    """

    x: np.ndarray
    loss: float
    gradient_norm: float
    step: float
    evaluations: int
    ended: str | None = None


class Minimiser:
    """Minimises loss(x) + l1·Σ|xⱼ| from ``x`` (count,), which is not changed; an iterator that yields every iteration.

    Collective if ``evaluate`` and ``dots`` are. ``evaluate(x)`` returns the loss with its smooth penalties, the same
    on all ranks, and its gradient (count,), which it may overwrite in the next call; ``dots(rows, vector)`` the inner
    products over all ranks, in float64 and the same on all ranks. Decisions depend on these alone, so all ranks take
    the same; an iteration asks for ``dots`` four times and once more for every evaluation. ``penalised`` are the
    ranges (start, stop) within this slice that L1 means (None: all of it); ``memory`` is the number of pairs kept;
    ``first_step`` the first factor of the negative gradient to try (None: 1, or 1/‖∇‖ if that is less). The last
    iterate tells why it is the last; it is the one before it once more where nothing better was found.

    Between iterations `values` and `vectors` are all that the next depend on; `restore` gives them to another, which
    goes on to the same bits, whatever its slices, as long as ``dots`` returns the same.

    L-BFGS: Liu and Nocedal, *Mathematical programming*, 1989; the recursion on inner products: Chen, Wang and
    Zhou, *Large-scale L-BFGS using MapReduce*, NIPS 2014; OWL-QN: Andrew and Gao, ICML 2007.
    """

    def __init__(self, evaluate: Evaluate, x: np.ndarray, dots: Dots, *, l1: float = 0.0,
                 penalised: Sequence[tuple[int, int]] | None = None, memory: int = 10,
                 first_step: float | None = None):
        self._walk = _L1Walk(evaluate, x, dots, l1, penalised) if l1 > 0 else _Walk(evaluate, x, dots)
        self._history = History(memory, len(x), x.dtype, dots)
        self._first_step = first_step
        self._begun = False
        self._norm = self._step = self._lowest_loss = self._lowest_norm = 0.0
        self._stalled = 0
        self._ended: str | None = None

    @property
    def x(self) -> np.ndarray:
        """This rank's slice of where it is, valid until the next iteration."""
        return self._walk.x

    @property
    def evaluations(self) -> int:
        """How often the loss has been computed."""
        return self._walk.evaluations

    def __iter__(self) -> Iterator[Iterate]:
        return self

    def __next__(self) -> Iterate:
        if self._ended is not None:
            raise StopIteration
        if not self._begun:
            self._begin()
        while self._ended is None and not self._moved():
            self._history.clear()  # its estimate of the curvature may be what misleads
        return Iterate(self.x, self._walk.loss, self._norm, self._step, self.evaluations, self._ended)

    def values(self) -> dict[str, Any]:
        """Return all that is no vector, as JSON has it; the same on all ranks."""
        values = {name: getattr(self, "_" + name) for name in _REMEMBERED}
        return {**values, "walk": [self._walk.loss, self._walk.evaluations], "history": self._history.values()}

    def vectors(self) -> dict[str, np.ndarray]:
        """Return this rank's slices of all vectors, by name: views, valid until the next iteration."""
        return {"x": self.x, "gradient": self._walk.gradient, **self._history.vectors()}

    def restore(self, values: dict[str, Any], read: Callable[[str, np.ndarray], None]) -> None:
        """Go on from `values`; ``read(name, out)`` writes this rank's slice of one of its `vectors` to ``out``."""
        for name in _REMEMBERED:
            setattr(self, "_" + name, values[name])
        self._walk.loss, self._walk.evaluations = values["walk"]
        self._history.restore(values["history"])
        for name, out in self.vectors().items():
            read(name, out)
        self._walk.settle()

    def _begin(self) -> None:
        """Look at the start."""
        walk = self._walk
        walk.begin()
        self._begun = True
        self._norm = self._history.look(walk.steepest)
        self._lowest_loss, self._lowest_norm = walk.loss, self._norm
        self._ended = _over(walk.loss, self._norm, "at the start")

    def _moved(self) -> bool:
        """Take a step, or end where there is none; False: there may be one without the history."""
        walk, history = self._walk, self._history
        history.direct(walk.steepest, walk.direction, walk.trial)
        unscaled = min(1.0, 1 / self._norm) if self._first_step is None else self._first_step
        taken = walk.search(1.0 if len(history) else unscaled)
        if taken is None and len(history):
            return False
        if taken is None:
            self._step = 0.0
            self._ended = ("no step along the negative gradient lowers the loss" if walk.was_finite else
                           "the loss is not finite at any step that was tried")
            return True
        self._step = taken
        walk.accept(*history.room())
        history.add()
        self._norm = history.look(walk.steepest)
        better = walk.loss < self._lowest_loss or self._norm < self._lowest_norm / 2
        self._stalled = 0 if better else self._stalled + 1
        self._lowest_loss, self._lowest_norm = min(self._lowest_loss, walk.loss), min(self._lowest_norm, self._norm)
        self._ended = _over(walk.loss, self._norm, "after a step")
        if self._stalled == _MOST_STALLED:
            self._ended = f"the loss has not become less in {_MOST_STALLED} iterations: the rest is rounding"
        return True


_REMEMBERED = ("begun", "norm", "step", "stalled", "lowest_loss", "lowest_norm", "ended")


def _over(loss: float, norm: float, when: str) -> str | None:
    """Return why a point with this loss and norm of the gradient is the last, if it is."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return f"the loss or its gradient is not finite {when}"
    return "the gradient is zero" if norm == 0 else None


class _Walk:
    """Where the walk is: ``x``, ``loss`` and ``gradient``; a ``direction``, and the ``trial`` point last looked at.

    ``gradient`` is that of the smooth part; ``was_finite`` tells whether the loss was finite where it was computed
    last. `begin` comes first; or x, gradient, ``loss`` and ``evaluations`` are written to it, then `settle`.
    """

    def __init__(self, evaluate: Evaluate, x: np.ndarray, dots: Dots):
        self._evaluate, self._dots = evaluate, dots
        self.x, self.trial, self.direction = x.copy(), np.empty_like(x), np.empty_like(x)
        self.gradient = self._trial_gradient = np.zeros_like(x)
        self.loss = self._trial_loss = 0.0
        self._rounding = 10 * float(np.finfo(x.dtype).eps)
        self.evaluations, self.was_finite = 0, True

    def begin(self) -> None:
        """Compute the loss and its gradient where the walk starts."""
        self.loss, self.gradient[:] = self._evaluate(self.x)
        self.evaluations = 1
        self.settle()

    def settle(self) -> None:
        """Derive what follows from x and the gradient."""

    @property
    def steepest(self) -> np.ndarray:
        """The vector against which the loss falls most steeply."""
        return self.gradient

    def search(self, first: float) -> float | None:
        """Look for a step along ``direction``, ``first`` to begin with; return it, or None if there is none."""
        slope = float(self._dots([self.gradient], self.direction)[0])
        return wolfe_step(self._probe, self.loss, slope, first, self._slack) if slope < 0 else None

    def accept(self, s: np.ndarray, y: np.ndarray) -> None:
        """Move to the trial point; write how x and the gradient of the smooth part changed to ``s`` and ``y``."""
        np.subtract(self.trial, self.x, out=s)
        np.subtract(self._trial_gradient, self.gradient, out=y)
        self.x, self.trial = self.trial, self.x
        self.gradient[:] = self._trial_gradient
        self.loss = self._trial_loss

    @property
    def _slack(self) -> float:
        """What losses may differ by through rounding."""
        return self._rounding * abs(self.loss)

    def _probe(self, step: float) -> tuple[float, float]:
        np.multiply(self.direction, step, out=self.trial)
        self.trial += self.x
        self._look()
        return self._trial_loss, float(self._dots([self.direction], self._trial_gradient)[0])

    def _look(self) -> None:
        self._trial_loss, self._trial_gradient = self._evaluate(self.trial)
        self.evaluations += 1
        self.was_finite = math.isfinite(self._trial_loss)


class _L1Walk(_Walk):
    """The same with l1·Σ|xⱼ| added: every search stays in one orthant, where that is linear."""

    def __init__(self, evaluate: Evaluate, x: np.ndarray, dots: Dots, l1: float,
                 penalised: Sequence[tuple[int, int]] | None):
        super().__init__(evaluate, x, dots)
        self._tax = np.zeros_like(x)
        for start, stop in [(0, len(x))] if penalised is None else penalised:
            self._tax[start:stop] = l1
        self._orthant, self._pseudo, self._moved = np.empty_like(x), np.empty_like(x), np.empty_like(x)

    def begin(self) -> None:
        super().begin()
        np.multiply(np.sign(self.x), self._tax, out=self._orthant)
        self.loss += float(self._dots([self._orthant], self.x)[0])

    def settle(self) -> None:
        pseudo_gradient(self.x, self.gradient, self._tax, self._pseudo)

    @property
    def steepest(self) -> np.ndarray:
        return self._pseudo

    def search(self, first: float) -> float | None:
        """Halve the step until it lowers the loss enough (a tenth where the loss is not finite)."""
        choose_orthant(self.x, self._pseudo, self._tax, self.direction, self._orthant)
        step = first
        for _ in range(MOST_TRIALS):
            step_inside(self.x, self.x.dtype.type(step), self.direction, self._tax, self._orthant, self.trial)
            np.subtract(self.trial, self.x, out=self._moved)
            expected = float(self._dots([self._pseudo], self._moved)[0])
            if not expected < 0:
                return None
            self._look()
            self._trial_loss += float(self._dots([self._orthant], self.trial)[0])
            if self._trial_loss <= self.loss + DECREASE * expected + self._slack:
                return step
            step *= 0.5 if math.isfinite(self._trial_loss) else 0.1
        return None

    def accept(self, s: np.ndarray, y: np.ndarray) -> None:
        super().accept(s, y)
        self.settle()
