"""Pure maths of one batch: loss, gradient, prediction. Nothing here knows of ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dml_hpc.objectives.objective import Objective

OBJECTIVES = ("linear", "logistic")


def open_objective(name: str) -> Objective:
    """Return the objective called ``name``; raises `ValueError` for a name not in `OBJECTIVES`."""
    if name == "linear":
        from dml_hpc.objectives.linear import Linear

        return Linear()
    if name == "logistic":
        from dml_hpc.objectives.logistic import Logistic

        return Logistic()
    raise ValueError(f"unknown objective {name!r}")
