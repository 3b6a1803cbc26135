"""The parameters of a model that learns from one example at a time, kept so that a step touches few of them."""

from __future__ import annotations

import numpy as np


class Sequential:
    """Parameters (size,) by standardised features, under an L2 penalty ½·l2·‖w‖² and an L1 penalty l1·‖w‖₁.

    Between steps they may be held in another form (scaled, with penalties still to be paid); `settle` makes
    ``parameters`` the real ones. The form is that of `dml_hpc.kernels.glm_sparse.sequential_sgd`: ``worth`` (2,)
    float64 are the factor by which weights are to be multiplied and the sum of the thresholds that they owe since they
    last were real, ``seen`` (features,) float64 is what each feature has paid of it, None where l1 is 0.
    """

    def __init__(self, parameters: np.ndarray, l1: float = 0.0, l2: float = 0.0):
        self.parameters = parameters
        self.l1, self.l2 = l1, l2
        self.worth = np.array([1.0, 0.0])
        self.seen: np.ndarray | None = None
        self._biases = 0
        self._scale: np.ndarray | None = None
        self._plain = False

    def hold(self, biases: int) -> None:
        """Make ready for steps that leave weights in another form: all ``parameters`` but the last ``biases``."""
        if self._biases != biases:
            self._biases = biases
            self.seen = np.zeros(len(self.parameters) // biases - 1) if self.l1 else None

    def unless_plain(self, scale: np.ndarray) -> np.ndarray | None:
        """Return ``scale``, None where it is 1 throughout; looked through once for each array."""
        if self._scale is not scale:
            self._scale, self._plain = scale, bool(np.all(scale == 1))
        return None if self._plain else scale

    def settle(self) -> np.ndarray:
        """Make ``parameters`` what they are worth, in place, and return them."""
        if self._biases:
            from dml_hpc.kernels import glm_sparse

            glm_sparse.settle(self.parameters, self._biases, self.seen, self.worth)
        return self.parameters

    def kept(self) -> dict[str, np.ndarray]:
        """Return the parameters as they are held, to the bit: vectors by name, views, for `go_on`."""
        found = {"parameters": self.parameters, "form": np.array([*self.worth, self._biases])}
        return found if self.seen is None else {**found, "seen": self.seen}

    def go_on(self, kept: dict[str, np.ndarray]) -> None:
        """Hold what `kept` returned of another with the same penalties."""
        self.parameters[:], form = kept["parameters"], kept["form"]
        if form[2]:
            self.hold(int(form[2]))
        self.worth[:] = form[:2]
        if self.seen is not None:
            self.seen[:] = kept.get("seen", 0.0)
