"""L-BFGS, and OWL-QN for an L1 penalty, on vectors of which every rank holds a slice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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


def lbfgs(evaluate: Evaluate, x: np.ndarray, dots: Dots, *, l1: float = 0.0,
          penalised: Sequence[tuple[int, int]] | None = None, memory: int = 10,
          first_step: float | None = None) -> Iterator[Iterate]:
    """Minimise loss(x) + l1·Σ|xⱼ| from ``x`` (count,), which is not changed; yield after every iteration.

    Collective if ``evaluate`` and ``dots`` are. ``evaluate(x)`` returns the loss with its smooth penalties, the same
    on all ranks, and its gradient (count,), which it may overwrite in the next call; ``dots(rows, vector)`` the inner
    products over all ranks, in float64 and the same on all ranks. Decisions depend on these alone, so all ranks take
    the same; an iteration asks for ``dots`` four times and once more for every evaluation. ``penalised`` are the
    ranges (start, stop) within this slice that L1 means (None: all of it); ``memory`` is the number of pairs kept;
    ``first_step`` the first factor of the negative gradient to try (None: 1, or 1/‖∇‖ if that is less). The last
    iterate tells why it is the last; it is the one before it once more where nothing better was found.

    L-BFGS: Liu and Nocedal, *Mathematical programming*, 1989; the recursion on inner products: Chen, Wang and
    Zhou, *Large-scale L-BFGS using MapReduce*, NIPS 2014; OWL-QN: Andrew and Gao, ICML 2007.
    """
    walk = _L1Walk(evaluate, x, dots, l1, penalised) if l1 > 0 else _Walk(evaluate, x, dots)
    history = History(memory, len(x), x.dtype, dots)
    norm = history.look(walk.steepest)
    ended = _over(walk.loss, norm, "at the start")
    step, stalled, lowest_loss, lowest_norm = 0.0, 0, walk.loss, norm
    while ended is None:
        history.direct(walk.steepest, walk.direction, walk.trial)
        unscaled = min(1.0, 1 / norm) if first_step is None else first_step
        taken = walk.search(1.0 if len(history) else unscaled)
        if taken is None and len(history):
            history.clear()  # its estimate of the curvature may be what misleads
            continue
        if taken is None:
            step, ended = 0.0, ("no step along the negative gradient lowers the loss" if walk.was_finite else
                                "the loss is not finite at any step that was tried")
            break
        step = taken
        walk.accept(*history.room())
        history.add()
        norm = history.look(walk.steepest)
        stalled = 0 if walk.loss < lowest_loss or norm < lowest_norm / 2 else stalled + 1
        lowest_loss, lowest_norm = min(lowest_loss, walk.loss), min(lowest_norm, norm)
        ended = _over(walk.loss, norm, "after a step")
        if stalled == _MOST_STALLED:
            ended = f"the loss has not become less in {_MOST_STALLED} iterations: the rest is rounding"
        if ended is None:
            yield Iterate(walk.x, walk.loss, norm, step, walk.evaluations)
    yield Iterate(walk.x, walk.loss, norm, step, walk.evaluations, ended)


def _over(loss: float, norm: float, when: str) -> str | None:
    """Return why a point with this loss and norm of the gradient is the last, if it is."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return f"the loss or its gradient is not finite {when}"
    return "the gradient is zero" if norm == 0 else None


class _Walk:
    """Where the walk is: ``x``, ``loss`` and gradient; a ``direction``, and the ``trial`` point last looked at.

    ``was_finite`` tells whether the loss was finite where it was last computed.
    """

    def __init__(self, evaluate: Evaluate, x: np.ndarray, dots: Dots):
        self._evaluate, self._dots = evaluate, dots
        self.x, self.trial, self.direction = x.copy(), np.empty_like(x), np.empty_like(x)
        self.loss, gradient = evaluate(self.x)
        self._gradient, self._trial_gradient, self._trial_loss = gradient.copy(), gradient, self.loss
        self._rounding = 10 * float(np.finfo(x.dtype).eps)
        self.evaluations, self.was_finite = 1, True

    @property
    def steepest(self) -> np.ndarray:
        """The vector against which the loss falls most steeply."""
        return self._gradient

    def search(self, first: float) -> float | None:
        """Look for a step along ``direction``, ``first`` to begin with; return it, or None if there is none."""
        slope = float(self._dots([self._gradient], self.direction)[0])
        return wolfe_step(self._probe, self.loss, slope, first, self._slack) if slope < 0 else None

    def accept(self, s: np.ndarray, y: np.ndarray) -> None:
        """Move to the trial point; write how x and the gradient of the smooth part changed to ``s`` and ``y``."""
        np.subtract(self.trial, self.x, out=s)
        np.subtract(self._trial_gradient, self._gradient, out=y)
        self.x, self.trial = self.trial, self.x
        self._gradient[:] = self._trial_gradient
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
        self._orthant, self._pseudo, self._moved = np.sign(x) * self._tax, np.empty_like(x), np.empty_like(x)
        self.loss += float(dots([self._orthant], self.x)[0])
        pseudo_gradient(self.x, self._gradient, self._tax, self._pseudo)

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
        pseudo_gradient(self.x, self._gradient, self._tax, self._pseudo)
