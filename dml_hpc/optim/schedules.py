"""Step sizes over a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dml_hpc.optim import ENDLESS_SCHEDULES, SCHEDULES


@dataclass(frozen=True)
class Schedule:
    """The step size of every step of a run of ``steps`` steps, ``steps_per_epoch`` to the epoch.

    - ``constant``: η
    - ``step``: η, a tenth of it after half of the steps, a hundredth after three quarters
    - ``inverse-time``: η/(1 + e), e the epochs done so far (a fraction)
    - ``inverse-sqrt``: η/√(1 + e)
    - ``cosine``: η·½(1 + cos πx), x the part of the run that is done (Loshchilov and Hutter, *SGDR*, 2017)

    During the first ``warmup`` epochs all of it is multiplied by a factor rising linearly from 0 to 1. ``steps`` is
    None where no end is known, as in a run that a clock ends. Raises `ValueError` for an unknown name, and for
    ``step`` and ``cosine`` without an end.
    """

    name: str
    initial: float
    steps: int | None
    steps_per_epoch: int
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.name!r}")
        if self.steps is None and self.name not in ENDLESS_SCHEDULES:
            raise ValueError(f"the schedule {self.name} must know how many steps there are")

    def step_size(self, step: int) -> float:
        """Return the step size of step 0, 1, … ``steps`` − 1."""
        epochs = step / self.steps_per_epoch
        done = step / self.steps if self.steps else 0.0
        ramp = min(1.0, (step + 1) / (self.warmup * self.steps_per_epoch)) if self.warmup > 0 else 1.0
        if self.name == "step":
            factor = 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
        elif self.name == "inverse-time":
            factor = 1 / (1 + epochs)
        elif self.name == "inverse-sqrt":
            factor = 1 / math.sqrt(1 + epochs)
        elif self.name == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * done))
        else:
            factor = 1.0
        return self.initial * ramp * factor
