"""Optimisers, step-size schedules and L-BFGS: pure functions of state, gradient and time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from dml_hpc.device import Device
    from dml_hpc.optim.optimiser import Optimiser
    from dml_hpc.optim.settings import OptimiserSettings

OPTIMISERS = ("sgd", "nesterov", "adagrad", "rmsprop", "adam", "adamw")
"""How a gradient becomes a step; see `dml_hpc.optim.optimiser`."""

SCHEDULES = ("constant", "step", "inverse-time", "inverse-sqrt", "cosine")
"""How the step size changes over a run."""

ENDLESS_SCHEDULES = ("constant", "inverse-time", "inverse-sqrt")
"""Those that need not know how many steps a run will take."""


def open_optimiser(settings: OptimiserSettings, owned: tuple[int, int], dtype: np.dtype,
                   penalised: Sequence[tuple[int, int]], repeats: bool = False,
                   average_iterates: bool = False, device: Device | None = None) -> Optimiser:
    """Return an optimiser for elements ``owned`` (start, stop) of a vector of ``dtype``: see `Optimiser`.

    With a ``device``, for a vector that lies there.

    Raises `ValueError` for a name not in `OPTIMISERS`.
    """
    from dml_hpc.optim.optimiser import Optimiser

    return Optimiser(settings, owned, dtype, penalised, repeats, average_iterates, device)
