"""The step size of every epoch of rating SGD."""

from __future__ import annotations

import math

from dml_hpc.decomposition.mf import SCHEDULES
from dml_hpc.store.state import Values

DEFAULT_STEP_SIZE = {"constant": 0.02, "inverse-time": 0.05, "cosine": 0.05, "bold-driver": 0.02, "adagrad": 0.1}
GROWTH, CUT = 1.05, 0.5
HALF_LIFE = 10.0


class StepSizes:
    """Step sizes η_e of epochs e = 0, 1 …

    - ``constant``, ``adagrad``: η (the latter is divided for each row in the kernel)
    - ``inverse-time``: η/(1 + e/10)
    - ``cosine``: η·½(1 + cos(πe/epochs))
    - ``bold-driver``: η at first; then 5 % more after an epoch whose loss fell, half after one whose loss rose (Gemulla
      et al., KDD 2011, section 5.1, after Battiti, *Accelerated backpropagation learning*, 1989)

    Raises `ValueError` for an unknown name.
    """

    def __init__(self, name: str, initial: float, epochs: int | None):
        if name not in SCHEDULES:
            raise ValueError(f"unknown schedule {name!r}")
        self.name, self.initial, self.epochs = name, initial, epochs
        self._bold, self._loss = initial, math.inf

    def at(self, epoch: int) -> float:
        """Return the step size of an epoch."""
        if self.name == "inverse-time":
            return self.initial / (1 + epoch / HALF_LIFE)
        if self.name == "cosine":
            assert self.epochs is not None
            return self.initial * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return self._bold

    def after(self, loss: float) -> None:
        """Heed the loss that an epoch has met."""
        if self.name == "bold-driver":
            self._bold *= GROWTH if loss <= self._loss else CUT
            self._loss = loss

    def state(self) -> Values:
        """Return what `restore` needs."""
        return {"bold": self._bold, "loss": None if math.isinf(self._loss) else self._loss}

    def restore(self, values: Values) -> None:
        """Go on as the schedule did whose `state` this is."""
        self._bold = values["bold"]
        self._loss = math.inf if values["loss"] is None else values["loss"]
