"""Where an algorithm's vectors of parameters lie, and what is done to them there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.data.reading import Rows
from dml_hpc.device import Array, Device
from dml_hpc.kernels.cuda import sums
from dml_hpc.kernels.dots import squared_norm
from dml_hpc.layout import split
from dml_hpc.objectives.on_device.scaling import DeviceScaling
from dml_hpc.store.state import Kept, State
from dml_hpc.trainers.problem import Problem

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Vectors:
    """Vectors in the host's memory, NumPy's arrays; ``scaling`` folds and pulls them back."""

    device: Device | None = None

    def __init__(self, problem: Problem):
        self.problem = problem
        self.scaling: Any = problem.scaling

    def empty(self, size: int, dtype: np.dtype) -> Array:
        """Return a vector with any content."""
        return np.empty(size, dtype)

    def copy(self, source: np.ndarray, target: Array) -> None:
        """Copy a vector of the host to ``target``."""
        target[:] = source

    def assign(self, target: Array, summed: Any, divisor: float = 1.0) -> None:
        """Write a reducer's sum to ``target`` in its dtype, or that of its own dtype by ``divisor``."""
        if divisor == 1:
            target[:] = summed
        else:
            np.divide(summed, np.float64(divisor), out=target, casting="same_kind")

    def host(self, vector: Array) -> np.ndarray:
        """Return a vector as one of the host's: itself, where it is one."""
        return vector

    def put(self, state: State, name: str, vector: Array, start: int, total: int) -> None:
        """Add ``vector`` to ``state`` as elements ``start`` … of one of ``total``, which no other rank adds."""
        state.put(name, self.host(vector), start, total)

    def put_shared(self, state: State, name: str, vector: Array, comm: Intracomm) -> None:
        """Add a vector that every rank of ``comm`` has alike: each brings a share of it."""
        start, stop = split(len(vector), comm.size, comm.rank)
        self.put(state, name, vector[start:stop], start, len(vector))

    def take(self, kept: Kept, name: str, vector: Array, start: int = 0) -> None:
        """Write elements ``start`` … of a kept vector to ``vector``."""
        part = np.empty(len(vector), vector.dtype)
        kept.read(name, part, start)
        self.copy(part, vector)

    def wait(self) -> None:
        """Wait for what is under way."""

    def norm(self, vector: Array) -> float:
        """Return ‖vector‖."""
        return squared_norm(vector) ** 0.5

    def loss_and_gradient(self, parts: Iterable[Rows], parameters: Array, gradient: Array) -> float:
        """See `Problem.loss_and_gradient`."""
        return self.problem.loss_and_gradient(parts, parameters, gradient)


class DeviceVectors(Vectors):
    """Vectors on the device of a `DeviceProblem`."""

    def __init__(self, problem: Any):
        super().__init__(problem)
        self.device = self._device = problem.device
        self.scaling = DeviceScaling(problem.scaling, problem.layers.widths[1], problem.device)
        self._loss = self._device.zeros(1, np.float64)

    def empty(self, size: int, dtype: np.dtype) -> Array:
        """See `Vectors.empty`."""
        return self._device.empty(size, dtype)

    def copy(self, source: np.ndarray, target: Array) -> None:
        """See `Vectors.copy`."""
        self._device.put(source, target)

    def assign(self, target: Array, summed: Any, divisor: float = 1.0) -> None:
        """See `Vectors.assign`: the sum may not have been taken yet."""
        if divisor != 1:
            sums.average(self._device, summed, divisor, target)
        elif isinstance(summed, sums.LazySum) or summed.dtype == target.dtype:
            sums.add_up(self._device, summed, target)
        else:
            target[:] = summed

    def host(self, vector: Array) -> np.ndarray:
        """See `Vectors.host`: a copy, once all that was queued is done."""
        return self._device.get(vector)

    def wait(self) -> None:
        """See `Vectors.wait`."""
        self._device.synchronize()

    def norm(self, vector: Array) -> float:
        """See `Vectors.norm`; the sum is float64's."""
        wide = vector.astype(np.float64)
        return float((wide @ wide) ** 0.5)

    def loss_and_gradient(self, parts: Iterable[Rows], parameters: Array, gradient: Array) -> float:
        """See `Vectors.loss_and_gradient`; waits for the device."""
        self._loss[:] = 0
        self.problem.add_loss_and_gradient(parts, parameters, gradient, self._loss)  # type: ignore[attr-defined]
        return float(self._device.get(self._loss)[0])
