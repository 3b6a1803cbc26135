"""Epoch after epoch, by any algorithm: until a limit is reached, the error no longer falls, or it is not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dml_hpc.decomposition.mf.held_out import Errors
from dml_hpc.decomposition.mf.learner import Learner, Progress
from dml_hpc.decomposition.mf.steps import DEFAULT_STEP_SIZE, StepSizes
from dml_hpc.errors import AgreedError
from dml_hpc.store.saving import Saving
from dml_hpc.store.state import State
from dml_hpc.watch import at_step

DIVERGED = 10.0
"""An error so many times that of predicting the mean is not on its way anywhere."""
PART = "mf"


@dataclass(frozen=True)
class Limits:
    """When a run ends: after ``epochs``, after ``seconds``, or an epoch that lowers the error by less than
    ``tolerance`` of it (None: never mind). The error is the RMSE of the ratings held out where there are any, else the
    objective, or, where the algorithm does not tell it, the training RMSE.
    """

    epochs: int | None
    seconds: float | None = None
    tolerance: float | None = None


@dataclass
class Outcome:
    """What came of a run, the same on every rank but for ``points``, this rank's course.

    ``rmse_train``, ``losses`` and ``rmse_test`` are those of each epoch, as far as the algorithm has them.
    """

    epochs: int = 0
    rmse_train: list[float] = field(default_factory=list)
    rmse_test: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    step_sizes: list[float] = field(default_factory=list)
    stopped: str = "all epochs are done"
    errors: Errors | None = None
    learning_s: float = 0.0
    seconds: float = 0.0
    points: list[dict[str, Any]] = field(default_factory=list)


    @property
    def course(self) -> list[float]:
        """What falls from epoch to epoch: the error of the ratings held out, the objective, or the training error."""
        return self.rmse_test or self.losses or self.rmse_train


def learn(learner: Learner, steps: StepSizes | None, limits: Limits, saving: Saving,
          on_epoch: Callable[[Outcome], None]) -> Outcome:
    """Collective: improve the factors until a limit is reached; begin where ``saving`` says.

    ``steps`` is None for an algorithm that has no step size. Raises `AgreedError`, exit code 1, on all ranks when the
    error is no longer finite, or far above that at the start.
    """
    outcome, comm, clock = Outcome(), learner.comm, learner.clock
    lists = ("rmse_train", "rmse_test", "losses", "step_sizes")
    if saving.kept is None:
        learner.begin()
    else:
        part = saving.kept.part(PART)
        values = part.values
        learner.restore(part.part("factors"))
        if steps is not None:
            steps.restore(values["steps"])
        outcome.epochs, outcome.seconds = values["epochs"], values["seconds"]
        for name in lists:
            setattr(outcome, name, values.get(name, []))
        if learner.is_held:
            outcome.errors = learner.errors()
        else:
            outcome.rmse_test = []  # of ratings that are no longer measured on
    earlier_s, earlier_epochs = outcome.seconds, outcome.epochs
    started = time.perf_counter()

    def state() -> State:
        part = State({"epochs": outcome.epochs, "steps": None if steps is None else steps.state(),
                      "seconds": outcome.seconds, **{name: getattr(outcome, name) for name in lists}})
        part.add("factors", learner.state())
        whole = State()
        whole.add("loop", State({"step": outcome.epochs}))
        whole.add(PART, part)
        return whole

    def look() -> dict[str, Any]:
        found = outcome.rmse_train or outcome.losses
        return {"epoch": outcome.epochs, "loss": found[-1] if found else None,
                "examples": learner.n_ratings * (outcome.epochs - earlier_epochs)}

    saving.watch(outcome.epochs, limits.epochs, look, clock.so_far)
    saving.start(outcome.epochs)
    while limits.epochs is None or outcome.epochs < limits.epochs:
        at_step(outcome.epochs + 1)
        began = time.perf_counter()
        step_size = None if steps is None else steps.at(outcome.epochs)
        met = learner.improve(outcome.epochs, step_size)
        outcome.learning_s += time.perf_counter() - began
        outcome.epochs += 1
        _check(learner, outcome.epochs, met, step_size, steps)
        if met.rmse is not None:
            outcome.rmse_train.append(met.rmse)
        if met.loss is not None:
            outcome.losses.append(met.loss)
        if steps is not None and met.rmse is not None and step_size is not None:
            steps.after(met.rmse)
            outcome.step_sizes.append(step_size)
        if learner.is_held:
            outcome.errors = learner.errors()
            if outcome.errors.rmse is not None:
                outcome.rmse_test.append(outcome.errors.rmse)
        outcome.seconds = comm.bcast(earlier_s + time.perf_counter() - started)
        outcome.points.append(_point(learner, outcome, earlier_epochs))
        on_epoch(outcome)
        if limits.seconds is not None and outcome.seconds >= limits.seconds:
            outcome.stopped = "the time is over"
            break
        if limits.tolerance is not None and _settled(outcome.course, limits.tolerance):
            outcome.stopped = "the error no longer falls"
            break
        if outcome.epochs != limits.epochs:
            saving.meet(outcome.epochs, state)
    saving.complete(outcome.epochs, state)
    return outcome


def _point(learner: Learner, outcome: Outcome, earlier_epochs: int) -> dict[str, Any]:
    """Return this rank's figures after an epoch."""
    spent = learner.clock.seconds
    whole = sum(spent.values())
    return {
        "seconds": round(outcome.seconds, 6), "examples": learner.own_ratings * (outcome.epochs - earlier_epochs),
        "loss": (outcome.rmse_train or outcome.losses)[-1],
        "rmse_test": outcome.rmse_test[-1] if outcome.rmse_test else None, "bytes_sent": learner.bytes_sent,
        "idle": round(spent["wait"] / whole, 6) if whole else 0.0,
        **{phase: round(seconds, 6) for phase, seconds in spent.items()}}


def _check(learner: Learner, epoch: int, met: Progress, step_size: float | None, steps: StepSizes | None) -> None:
    """Raise `AgreedError` where an epoch has led nowhere."""
    if steps is None or step_size is None:
        if not math.isfinite((met.loss or 0.0) + (met.rmse or 0.0)) or (met.rmse or 0.0) > DIVERGED * learner.scale:
            raise AgreedError(f"the objective is beyond all bounds in epoch {epoch}: ratings, or their weights, are "
                              "too large for float32, or too few for so many factors; scale them, or try a larger --l2 "
                              "or --solver cholesky; no factors are saved", 0, 1)
    elif met.rmse is None or not met.rmse <= DIVERGED * learner.scale:
        raise AgreedError(_diverged(epoch, met.rmse or math.nan, step_size, steps.name, learner.most_weight), 0, 1)


def _settled(errors: list[float], tolerance: float) -> bool:
    return len(errors) > 1 and errors[-2] - errors[-1] < tolerance * errors[-2]


def _diverged(epoch: int, rmse: float, step_size: float, schedule: str, most_weight: float) -> str:
    how = f"rose to {rmse:.3g}" if math.isfinite(rmse) else "is no longer finite"
    why = f", for a rating that weighs {most_weight:g}," if most_weight > 1 else ""
    better = min(step_size / 10, DEFAULT_STEP_SIZE[schedule])
    return (f"the training RMSE {how} in epoch {epoch}: the step size {step_size:.3g}{why} is too large for these "
            f"ratings: try --step-size {better:.1g}, or a larger --l2; no factors are saved")
