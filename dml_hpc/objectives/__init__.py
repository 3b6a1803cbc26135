"""Pure maths of one batch: loss, gradient, prediction. Nothing here knows of ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dml_hpc.objectives.objective import Objective

OBJECTIVES = ("linear", "huber", "logistic", "hinge", "squared-hinge", "poisson", "softmax", "mlp")
ACTIVATIONS = ("relu", "tanh")
"""What stands between the layers of a network."""


def open_objective(name: str, **settings: Any) -> Objective:
    """Return the objective called ``name`` with its ``settings``, as `Objective.settings` gives them.

    They are ``delta`` (float) of huber, ``hidden`` (sequence of int) and ``activation`` ("relu" or "tanh") of mlp, each
    with a default; others have none. Raises `ValueError` for a name not in `OBJECTIVES`, `TypeError` for a setting
    that the objective does not have.
    """
    if name == "linear":
        from dml_hpc.objectives.linear import Linear

        return Linear(**settings)
    if name == "huber":
        from dml_hpc.objectives.huber import Huber

        return Huber(**settings)
    if name == "logistic":
        from dml_hpc.objectives.logistic import Logistic

        return Logistic(**settings)
    if name == "hinge":
        from dml_hpc.objectives.hinge import Hinge

        return Hinge(**settings)
    if name == "squared-hinge":
        from dml_hpc.objectives.hinge import SquaredHinge

        return SquaredHinge(**settings)
    if name == "poisson":
        from dml_hpc.objectives.poisson import Poisson

        return Poisson(**settings)
    if name == "softmax":
        from dml_hpc.objectives.network import Softmax

        return Softmax(**settings)
    if name == "mlp":
        from dml_hpc.objectives.network import Mlp

        return Mlp(**settings)
    raise ValueError(f"unknown objective {name!r}")
