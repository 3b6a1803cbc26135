"""The device's counterpart of `dml_hpc.objectives.sequential`."""

from __future__ import annotations

import numpy as np

from dml_hpc.device import Array, Device


class DeviceSequential:
    """Parameters (size,) of the device, by standardised features, that learn from one example at a time.

    See `dml_hpc.objectives.sequential.Sequential`, whose form this has: ``worth`` (2,) and ``seen`` (features,) or None
    are float64 arrays of the device.
    """

    def __init__(self, device: Device, parameters: Array, l1: float = 0.0, l2: float = 0.0):
        self.device, self.parameters = device, parameters
        self.l1, self.l2 = l1, l2
        self.worth = device.zeros(2, "float64")
        self.worth[0] = 1
        self.seen: Array | None = None
        self._biases = 0

    def begin(self, parameters: Array) -> None:
        """Go on from ``parameters`` (size,), which are copied."""
        self.settle()[:] = parameters

    def hold(self, biases: int) -> None:
        """Make ready for steps that leave weights in another form: all ``parameters`` but the last ``biases``.

        As on the host, all steps of one state have the same ``biases``.
        """
        if self._biases != biases:
            self._biases = biases
            features = self.parameters.size // biases - 1
            self.seen = self.device.zeros(features, "float64") if self.l1 else None

    def settle(self) -> Array:
        """Make ``parameters`` what they are worth, in place, and return them."""
        if self._biases:
            from dml_hpc.kernels.cuda import glm_sparse

            glm_sparse.settle(self.device, self.parameters, self._biases, self.seen, self.worth)
        return self.parameters

    def kept(self) -> dict[str, np.ndarray]:
        """See `dml_hpc.objectives.sequential.Sequential.kept`: copies, the host's."""
        get = self.device.get
        found = {"parameters": get(self.parameters), "form": np.array([*get(self.worth), self._biases])}
        return found if self.seen is None else {**found, "seen": get(self.seen)}

    def go_on(self, kept: dict[str, np.ndarray]) -> None:
        """See `dml_hpc.objectives.sequential.Sequential.go_on`."""
        put, form = self.device.put, kept["form"]
        if form[2]:
            self.hold(int(form[2]))
        put(kept["parameters"], self.parameters)
        put(form[:2], self.worth)
        if self.seen is not None:
            put(kept.get("seen", np.zeros(self.seen.size)), self.seen)
