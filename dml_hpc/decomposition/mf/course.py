"""Epoch after epoch of rating SGD: until a limit is reached, the error no longer falls, or it is not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dml_hpc.decomposition.mf.held_out import Errors
from dml_hpc.decomposition.mf.sgd import Sgd
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
    ``tolerance`` of it (None: never mind). The error is that of the ratings held out where there are any.
    """

    epochs: int | None
    seconds: float | None = None
    tolerance: float | None = None


@dataclass
class Outcome:
    """What came of a run, the same on every rank but for ``points``, this rank's course.

    ``rmse_train`` and ``rmse_test`` are those of each epoch; the former as it was met, before each step.
    """

    epochs: int = 0
    rmse_train: list[float] = field(default_factory=list)
    rmse_test: list[float] = field(default_factory=list)
    step_sizes: list[float] = field(default_factory=list)
    stopped: str = "all epochs are done"
    errors: Errors | None = None
    learning_s: float = 0.0
    seconds: float = 0.0
    points: list[dict[str, Any]] = field(default_factory=list)


def learn(sgd: Sgd, steps: StepSizes, limits: Limits, saving: Saving, own_ratings: int,
          on_epoch: Callable[[Outcome], None]) -> Outcome:
    """Collective: improve the factors until a limit is reached; begin where ``saving`` says.

    Raises `AgreedError`, exit code 1, on all ranks when the error is no longer finite, or far above that at the start.
    """
    outcome, comm, clock = Outcome(), sgd.comm, sgd.clock
    if saving.kept is None:
        sgd.begin()
    else:
        part = saving.kept.part(PART)
        values = part.values
        sgd.restore(part.part("factors"))
        steps.restore(values["steps"])
        outcome.epochs, outcome.seconds = values["epochs"], values["seconds"]
        outcome.rmse_train, outcome.rmse_test, outcome.step_sizes = (
            values[name] for name in ("rmse_train", "rmse_test", "step_sizes"))
        if sgd.held is not None:
            outcome.errors = sgd.errors()
    earlier_s, earlier_epochs = outcome.seconds, outcome.epochs
    started = time.perf_counter()

    def state() -> State:
        part = State({"epochs": outcome.epochs, "steps": steps.state(), "seconds": outcome.seconds,
                      "rmse_train": outcome.rmse_train, "rmse_test": outcome.rmse_test,
                      "step_sizes": outcome.step_sizes})
        part.add("factors", sgd.state())
        whole = State()
        whole.add("loop", State({"step": outcome.epochs}))
        whole.add(PART, part)
        return whole

    def look() -> dict[str, Any]:
        return {"epoch": outcome.epochs, "loss": outcome.rmse_train[-1] if outcome.rmse_train else None,
                "examples": sgd.n_ratings * (outcome.epochs - earlier_epochs)}

    saving.watch(outcome.epochs, limits.epochs, look, clock.so_far)
    saving.start(outcome.epochs)
    while limits.epochs is None or outcome.epochs < limits.epochs:
        at_step(outcome.epochs + 1)
        began = time.perf_counter()
        step_size = steps.at(outcome.epochs)
        rmse = sgd.learn(outcome.epochs, step_size)
        outcome.learning_s += time.perf_counter() - began
        outcome.epochs += 1
        if not rmse <= DIVERGED * sgd.scale:
            raise AgreedError(_diverged(outcome.epochs, rmse, step_size, steps.name, sgd.most_weight), 0, 1)
        steps.after(rmse)
        outcome.rmse_train.append(rmse)
        outcome.step_sizes.append(step_size)
        if sgd.held is not None:
            outcome.errors = sgd.errors()
            if outcome.errors.rmse is not None:
                outcome.rmse_test.append(outcome.errors.rmse)
        outcome.seconds = comm.bcast(earlier_s + time.perf_counter() - started)
        spent = sum(clock.seconds.values())
        outcome.points.append({
            "seconds": round(outcome.seconds, 6), "examples": own_ratings * (outcome.epochs - earlier_epochs),
            "loss": rmse, "rmse_test": outcome.rmse_test[-1] if outcome.rmse_test else None,
            "bytes_sent": 0 if sgd.carousel is None else sgd.carousel.bytes_sent,
            "idle": round(clock.seconds["wait"] / spent, 6) if spent else 0.0,
            **{phase: round(seconds, 6) for phase, seconds in clock.seconds.items()}})
        on_epoch(outcome)
        if limits.seconds is not None and outcome.seconds >= limits.seconds:
            outcome.stopped = "the time is over"
            break
        if limits.tolerance is not None and _settled(outcome.rmse_test or outcome.rmse_train, limits.tolerance):
            outcome.stopped = "the error no longer falls"
            break
        if outcome.epochs != limits.epochs:
            saving.meet(outcome.epochs, state)
    saving.complete(outcome.epochs, state)
    return outcome


def _settled(errors: list[float], tolerance: float) -> bool:
    return len(errors) > 1 and errors[-2] - errors[-1] < tolerance * errors[-2]


def _diverged(epoch: int, rmse: float, step_size: float, schedule: str, most_weight: float) -> str:
    how = f"rose to {rmse:.3g}" if math.isfinite(rmse) else "is no longer finite"
    why = f", for a rating that weighs {most_weight:g}," if most_weight > 1 else ""
    better = min(step_size / 10, DEFAULT_STEP_SIZE[schedule])
    return (f"the training RMSE {how} in epoch {epoch}: the step size {step_size:.3g}{why} is too large for these "
            f"ratings: try --step-size {better:.1g}, or a larger --l2; no factors are saved")
