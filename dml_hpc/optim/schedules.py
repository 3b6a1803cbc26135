"""How the step size changes over a run."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The step size of every step of a run of ``steps`` steps, ``steps_per_epoch`` to the epoch.

    - ``constant``: η
    - ``step``: η, a tenth of it after half of the steps, a hundredth after three quarters
    - ``inverse-time``: η/(1 + e), e the epochs done so far (a fraction)
    - ``inverse-sqrt``: η/√(1 + e)
    - ``cosine``: η·½(1 + cos πx), x the part of the run that is done (Loshchilov and Hutter, *SGDR*, 2017)

    During the first ``warmup`` epochs all of it is multiplied by a factor rising linearly from 0 to 1.
    """

    name: str
    initial: float
    steps: int
    steps_per_epoch: int
    warmup: float = 0.0

    def step_size(self, step: int) -> float:
        """Return the step size of step 0, 1, … ``steps`` − 1; raises `ValueError` for an unknown schedule."""
        epochs = step / self.steps_per_epoch
        done = step / self.steps
        ramp = min(1.0, (step + 1) / (self.warmup * self.steps_per_epoch)) if self.warmup > 0 else 1.0
        if self.name == "constant":
            factor = 1.0
        elif self.name == "step":
            factor = 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
        elif self.name == "inverse-time":
            factor = 1 / (1 + epochs)
        elif self.name == "inverse-sqrt":
            factor = 1 / math.sqrt(1 + epochs)
        elif self.name == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * done))
        else:
            raise ValueError(f"unknown schedule {self.name!r}")
        return self.initial * ramp * factor
