"""A problem whose rows are worked through on a device, and what learns from them there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

import numpy as np

from dml_hpc.data.on_device import DeviceRows
from dml_hpc.data.reading import Rows
from dml_hpc.device import Array
from dml_hpc.kernels.cuda import sums
from dml_hpc.objectives.on_device import DeviceSequential, on_device
from dml_hpc.objectives.on_device.scaling import DeviceScaling
from dml_hpc.trainers.gradient import FixedPointGradient, FloatGradient
from dml_hpc.trainers.learners import Learner
from dml_hpc.trainers.problem import Problem
from dml_hpc.watch import progressed


class DeviceProblem(Problem):
    """``problem``, whose rows ``moved`` brings to its device, there to be worked through.

    Parts are the host's, as readers yield them. The methods of `Problem` take and return vectors of the host, and wait
    for the device; those that ``add_`` take the device's vectors, and do not.
    """

    def __init__(self, problem: Problem, moved: DeviceRows):
        super().__init__(**{field.name: getattr(problem, field.name) for field in fields(Problem)})
        self.device = device = moved.device
        self.moved, self.computing = moved, on_device(problem.objective, device)
        self._scaling_there = DeviceScaling(problem.scaling, problem.layers.widths[1], device)
        size = problem.layers.size
        self._parameters, self._gradient = device.empty(size, problem.dtype), device.empty(size, problem.dtype)
        self._loss = device.zeros(1, np.float64)

    def add_loss_and_gradient(self, parts: Iterable[Rows], parameters: Array, gradient: Array, loss: Array) -> None:
        """Add the summed gradient of ``parts`` to ``gradient`` (size,) and their loss to ``loss`` (1,) float64."""
        self.add_of(self.moved.of(parts), parameters, gradient, loss)

    def add_of(self, there: Iterable[Rows], parameters: Array, gradient: Array, loss: Array) -> None:
        """Do what `add_loss_and_gradient` does for parts that are on the device, each valid until the next."""
        for part in there:
            self.computing.loss_and_gradient(self.layers, part, parameters, gradient, loss)
            progressed()

    def add_fixed_point_gradient(self, parts: Iterable[Rows], parameters: Array, per_unit: float,
                                 per_loss_unit: float, out: Array) -> None:
        """Do what `fixed_point_gradient` does; ``out`` (size + 3,) int64."""
        scaling = self._scaling_there
        for part in self.moved.of(parts):
            self.computing.fixed_point_gradient(self.layers, part, parameters, scaling.shift, scaling.scale, per_unit,
                                                per_loss_unit, out)
            progressed()

    def loss_and_gradient(self, parts: Iterable[Rows], parameters: np.ndarray, gradient: np.ndarray) -> float:
        """See `Problem.loss_and_gradient`."""
        self.device.put(parameters, self._parameters)
        self._gradient[:] = 0
        self._loss[:] = 0
        self.add_loss_and_gradient(parts, self._parameters, self._gradient, self._loss)
        gradient += self.device.get(self._gradient)
        return float(self.device.get(self._loss)[0])

    def summed_loss(self, parts: Iterable[Rows], parameters: np.ndarray) -> float:
        """See `Problem.summed_loss`."""
        self.device.put(parameters, self._parameters)
        self._loss[:] = 0
        for part in self.moved.of(parts):
            self.computing.summed_loss(self.layers, part, self._parameters, self._loss)
            progressed()
        return float(self.device.get(self._loss)[0])

    def fixed_point_gradient(self, parts: Iterable[Rows], parameters: np.ndarray, per_unit: float,
                             per_loss_unit: float, out: np.ndarray) -> None:
        """See `Problem.fixed_point_gradient`."""
        self.device.put(parameters, self._parameters)
        there = self.device.zeros(len(out), np.int64)
        self.add_fixed_point_gradient(parts, self._parameters, per_unit, per_loss_unit, there)
        out += self.device.get(there)


class DeviceFloatGradient(FloatGradient):
    """`FloatGradient` for a buffer on the device."""

    def __init__(self, problem: DeviceProblem, scaling: DeviceScaling):
        super().__init__(problem)
        self._there, self._scaling = problem, scaling
        self._loss = problem.device.zeros(1, np.float64)
        self.moved, self.capturable = problem.moved, problem.computing.capturable

    def fill(self, parts: Iterable[Rows], folded: Array, buffer: Array, late: bool) -> None:
        """See `Gradient.fill`; the work is queued. ``own_loss`` is not known."""
        self.fill_of(self.moved.of(parts), folded, buffer)
        if late:
            buffer[-1:] = 1

    def fill_of(self, there: Iterable[Rows], folded: Array, buffer: Array) -> None:
        """Do what `fill` does for parts that are on the device, each valid until the next.

        Where it is ``capturable``, this is work for `Device.capture`.
        """
        device, gradient = self._there.device, buffer[:-self.extra]
        device.zero(buffer)
        device.zero(self._loss)
        self._there.add_of(there, folded, gradient, self._loss)
        sums.add_up(device, self._loss, buffer[-2:-1])
        self._scaling.pull_back(gradient)


class DeviceFixedPointGradient(FixedPointGradient):
    """`FixedPointGradient` for a buffer on the device."""

    def __init__(self, problem: DeviceProblem):
        super().__init__(problem)
        self._there = problem

    def fill(self, parts: Iterable[Rows], folded: Array, buffer: Array, late: bool) -> None:
        """See `Gradient.fill`; the work is queued."""
        buffer[:] = 0
        self._there.add_fixed_point_gradient(parts, folded, 1 / self.unit, 1 / self.loss_unit, buffer[:-1])
        if late:
            buffer[-1:] = 1


class DeviceOneByOne(Learner):
    """SGD, one example a step, on a device; see `dml_hpc.trainers.learners.OneByOne`."""

    def __init__(self, problem: DeviceProblem):
        self._problem, device = problem, problem.device
        self._scaling = DeviceScaling(problem.scaling, problem.layers.widths[1], device)
        self._state = DeviceSequential(device, device.zeros(problem.layers.size, problem.dtype), problem.l1, problem.l2)
        self._loss = device.zeros(1, np.float64)

    def begin(self, parameters: np.ndarray) -> None:
        """See `Learner.begin`."""
        self._problem.device.put(parameters, self._state.settle())

    def learn(self, parts: Iterable[Rows], step_size: float) -> tuple[int, float]:
        """See `Learner.learn`."""
        problem, count = self._problem, 0
        self._loss[:] = 0
        for part in problem.moved.of(parts):
            problem.computing.sequential_sgd(problem.layers, part, self._scaling.shift, self._scaling.scale,
                                             self._state, step_size, self._loss)
            count += len(part.y if part.rows is None else part.rows)
            progressed()
        return count, float(problem.device.get(self._loss)[0])

    def parameters(self) -> np.ndarray:
        """See `Learner.parameters`."""
        return self._problem.device.get(self._state.settle())

    def kept(self) -> dict[str, np.ndarray]:
        """See `Learner.kept`."""
        return self._state.kept()

    def go_on(self, kept: dict[str, np.ndarray]) -> None:
        """See `Learner.go_on`."""
        self._state.go_on(kept)
