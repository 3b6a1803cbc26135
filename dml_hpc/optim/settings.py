"""What an optimiser is told once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimiserSettings:
    """``name`` is one of `OPTIMISERS`; numbers that an optimiser has no use for are ignored.

    - ``momentum``: μ of sgd (0: plain SGD) and nesterov, β₁ of adam and adamw, in [0, 1)
    - ``beta2``: how much of the mean square gradient each step keeps (rmsprop, adam, adamw), in [0, 1)
    - ``epsilon``: added to the root of the (mean or summed) square gradient, in the gradient's units
    - ``l1``, ``l2``: penalties l1·‖w‖₁ and ½·l2·‖w‖² of the penalised weights; adamw's l2 is its decoupled decay
    - ``clip_value``: each element of the gradient of the loss (without penalties) is brought into ±clip_value
    """

    name: str = "sgd"
    momentum: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    l1: float = 0.0
    l2: float = 0.0
    clip_value: float | None = None
