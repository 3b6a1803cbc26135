"""Networks of fully connected layers: `Softmax`, which has one, and `Mlp`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.data.joining import Joining
from dml_hpc.data.reading import Rows
from dml_hpc.errors import UserError
from dml_hpc.kernels import network, network_rows, plain, softmax_steps
from dml_hpc.objectives import ACTIVATIONS, classification
from dml_hpc.objectives.layers import Layers
from dml_hpc.objectives.linear import Linear
from dml_hpc.objectives.objective import Objective
from dml_hpc.objectives.propagation import MOST_ROWS, Hooks, Propagation
from dml_hpc.objectives.sequential import Sequential
from dml_hpc.watch import progressed


class Network(Objective):
    """a_0 = x, a_l = f(a_{l−1}·W_l + b_l), s = a_{L−1}·W_L + b_L, with f the ``activation`` of the ``hidden`` layers.

    With several outputs the loss is the cross-entropy ℓ = log Σ_c exp(s_c) − s_y of the class number y, with one
    ½(s − y)². Gradients by back-propagation (Rumelhart, Hinton and Williams, *Learning Representations by
    Back-Propagating Errors*, Nature 323, 1986).

    While a batch's gradient is computed, ``needed(layer)``, where that is set, is called once before the layer's block
    is first read, and ``finished(start, stop)`` as soon as elements ``start`` … ``stop − 1`` of ``gradient`` are what
    they will be at the end: from the last layer to the first, so that they can be sent while earlier layers are at
    work.
    """

    def __init__(self, hidden: Sequence[int] = (), activation: str = "relu"):
        self.hidden, self.activation = tuple(hidden), activation
        self.needed: Callable[[int], None] | None = None
        self.finished: Callable[[int, int], None] | None = None
        self._propagation: Propagation | None = None
        self._joining: Joining | None = None
        self._own, self._tops = np.empty(0), np.empty(0)
        self._numbers = Linear()  # what one output learns, it learns as this does

    def layers(self, features: int, classes: list[float] | None) -> Layers:
        """See `Objective.layers`: an output for each class, or one."""
        return Layers((features, *self.hidden, 1 if classes is None else len(classes)))

    def targets(self, y: np.ndarray, classes: list[float] | None, dtype: np.dtype) -> np.ndarray:
        """See `Objective.targets`: the number of the class, or the label itself."""
        if classes is None:
            return self._numbers.targets(y, None, dtype)
        return classification.targets(y, classes, dtype)

    def losses(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """See `Objective.losses`."""
        if scores.shape[1] == 1:
            return self._numbers.losses(scores, targets)
        return classification.losses(scores, targets)

    def metrics(self, scores: np.ndarray, targets: np.ndarray, weight: np.ndarray | None) -> dict[str, float | None]:
        """See `Objective.metrics`; ``auc`` of two classes alone."""
        if scores.shape[1] == 1:
            return self._numbers.metrics(scores, targets, weight)
        return classification.metrics(scores, targets, weight)

    def tallies(self, scores: np.ndarray, targets: np.ndarray, weight: np.ndarray | None) -> np.ndarray | None:
        """See `Objective.tallies`."""
        return classification.tallies(scores, targets, weight) if scores.shape[1] > 2 else None

    def metrics_of(self, tallies: np.ndarray) -> dict[str, float | None]:
        """See `Objective.metrics_of`."""
        return classification.metrics_of(tallies)

    def predictions(self, scores: np.ndarray, classes: list[float] | None) -> dict[str, np.ndarray]:
        """See `Objective.predictions`: the class, and the probability of each; or the number."""
        if classes is None:
            return self._numbers.predictions(scores, None)
        return classification.predictions(scores, classes)

    def loss_and_gradient(self, layers: Layers, X: np.ndarray | Csr, y: np.ndarray, weight: np.ndarray | None,
                          rows: np.ndarray, parameters: np.ndarray, gradient: np.ndarray) -> float:
        """See `Objective.loss_and_gradient`."""
        return self.batch_loss_and_gradient(layers, [Rows(X, y, rows, weight)], parameters, gradient)

    def batch_loss_and_gradient(self, layers: Layers, parts: Iterable[Rows], parameters: np.ndarray,
                                gradient: np.ndarray) -> float:
        """See `Objective.batch_loss_and_gradient`: small parts go through the layers together."""
        total, first, told = 0.0, True, False
        self._passes(layers, parameters.dtype)
        assert self._joining is not None
        for part, last in self._joining.join(parts):
            hooks = Hooks(self.needed if first else None, self.finished if last else None)
            total += self._part(layers, part, parameters, gradient, hooks)
            first, told = False, last
            progressed()
        if first and self.needed is not None:
            for layer in range(len(layers.widths) - 1):
                self.needed(layer)
        if not told and self.finished is not None:
            self.finished(0, layers.size)
        return total

    def _part(self, layers: Layers, part: Rows, parameters: np.ndarray, gradient: np.ndarray, told: Hooks) -> float:
        """Do as `loss_and_gradient` says; the products are BLAS's, and nothing large is allocated."""
        (X, y, rows, weight), passes, total = part, self._passes(layers, parameters.dtype), 0.0
        biases = layers.block(parameters, len(layers.widths) - 2)[-1]
        bias_gradient = layers.block(gradient, len(layers.widths) - 2)[-1]
        with np.errstate(all="ignore"):  # what is not finite shows in the loss
            step = passes.most_rows(X)
            for start in range(0, max(len(rows), 1), step):
                chunk = rows[start:start + step]
                hooks = Hooks(told.needed if start == 0 else None, told.finished if start + step >= len(rows) else None)
                scores = passes.forward(X, chunk, parameters, hooks)
                total += self._slopes(scores, biases, y, weight, chunk, bias_gradient)
                passes.backward(scores, parameters, gradient, hooks)
        return total

    def _slopes(self, scores: np.ndarray, biases: np.ndarray, y: np.ndarray, weight: np.ndarray | None,
                rows: np.ndarray, bias_gradient: np.ndarray) -> float:
        """Turn ``scores`` (count, outputs), less their biases, into the loss's slopes; return the loss."""
        if len(biases) == 1:
            return network.squared_slopes(scores, biases, y, weight, rows, bias_gradient)
        own = self._own[:len(rows)]
        network.below_largest(scores, biases, y, rows, self._tops, own)
        np.exp(scores, out=scores)
        return network.softmax_slopes(scores, y, weight, rows, own, bias_gradient)

    def fixed_point_gradient(self, layers: Layers, X: np.ndarray | Csr, y: np.ndarray, weight: np.ndarray | None,
                             rows: np.ndarray, parameters: np.ndarray, shift: np.ndarray, scale: np.ndarray,
                             per_unit: float, per_loss_unit: float, out: np.ndarray) -> None:
        """See `Objective.fixed_point_gradient`."""
        form = np.array(layers.widths), np.array(layers.starts), parameters, self.activation == "tanh"
        if isinstance(X, Csr):
            network_rows.sparse_fixed_point_gradient(X.data, X.indices, X.indptr, y, weight, rows, *form, scale,
                                                     per_unit, per_loss_unit, out)
        else:
            network_rows.fixed_point_gradient(plain(X), y, weight, rows, *form, shift, scale, per_unit, per_loss_unit,
                                              out)

    def scores(self, layers: Layers, X: np.ndarray | Csr, parameters: np.ndarray, out: np.ndarray) -> None:
        """See `Objective.scores`."""
        passes = self._passes(layers, parameters.dtype)
        step, none = passes.most_rows(X), Hooks()
        order = np.arange(min(len(X), step))
        with np.errstate(all="ignore"):
            for start in range(0, max(len(X), 1), step):
                part = X[start:start + step]
                out[start:start + step] = passes.forward(part, order[:len(part)], parameters, none)
            out += layers.block(parameters, len(layers.widths) - 2)[-1]

    def _passes(self, layers: Layers, dtype: np.dtype) -> Propagation:
        """Return what goes through the layers, with its buffers, and see to those of the loss."""
        passes = self._propagation
        if passes is None or passes.layers != layers or passes.dtype != dtype:
            self._propagation = passes = Propagation(layers, dtype, self.activation)
            self._joining = Joining(passes.most_rows, dtype)
            self._own, self._tops = np.empty(MOST_ROWS, dtype), np.empty(network.LANES, dtype)
        return passes


class Softmax(Network):
    """Multinomial logistic regression: cross-entropy over the label's classes, the scores linear in the features."""

    name = "softmax"
    curvature = 0.5
    """The Hessian by s is diag(p) − ppᵀ, whose largest eigenvalue is at most ½."""
    sequential = True

    def __init__(self) -> None:
        super().__init__()

    def classes(self, name: str, values: list[float] | None) -> list[float]:
        """See `Objective.classes`: at least two."""
        if values is None:
            raise UserError(f"the label '{name}' has too many values for classes, as softmax needs them (for a number, "
                            "use --objective linear)")
        return classification.at_least_two(name, values, self.name)

    def sequential_sgd(self, layers: Layers, X: np.ndarray | Csr, y: np.ndarray, weight: np.ndarray | None,
                       rows: np.ndarray, shift: np.ndarray, scale: np.ndarray, state: Sequential,
                       step_size: float) -> float:
        """See `Objective.sequential_sgd`; rows that are dense have all features."""
        if isinstance(X, Csr):
            state.hold(layers.outputs)
            return softmax_steps.sparse_steps(X.data, X.indices, X.indptr, y, weight, rows, state.unless_plain(scale),
                                              layers.block(state.parameters, 0), state.seen, state.worth, step_size,
                                              state.l1, state.l2)
        return softmax_steps.steps(plain(X), y, weight, rows, shift, scale, layers.block(state.settle(), 0),
                                   step_size, state.l1, state.l2)


class Mlp(Network):
    """A network with ``hidden`` layers of so many units; ``activation`` is one of `ACTIVATIONS`.

    It tells classes apart where the label lists its values, and predicts a number where it does not.
    """

    name = "mlp"
    convex = False

    def __init__(self, hidden: Sequence[int] = (128,), activation: str = "relu"):
        if not hidden or min(hidden) < 1 or activation not in ACTIVATIONS:
            raise ValueError(f"no network has hidden layers {hidden} with {activation!r}")
        super().__init__(hidden, activation)

    @property
    def settings(self) -> dict[str, Any]:
        """See `Objective.settings`."""
        return {"hidden": list(self.hidden), "activation": self.activation}

    def classes(self, name: str, values: list[float] | None) -> list[float] | None:
        """See `Objective.classes`: at least two, or any number where there are too many to list."""
        return None if values is None else classification.at_least_two(name, values, self.name)

    def initial(self, layers: Layers, seed: int, dtype: np.dtype) -> np.ndarray:
        """See `Objective.initial`: uniform, biases 0.

        Weights into relu have the variance 2/inputs (He, Zhang, Ren and Sun, *Delving Deep into Rectifiers*, ICCV 2015,
        equation 10), others 2/(inputs + outputs) (Glorot and Bengio, *Understanding the Difficulty of Training Deep
        Feedforward Neural Networks*, AISTATS 2010, equation 16).
        """
        parameters = np.zeros(layers.size, dtype)
        random = np.random.default_rng([seed, 0x6D6C70])
        for layer, (inputs, outputs) in enumerate(pairwise(layers.widths)):
            into_relu = self.activation == "relu" and layer + 2 < len(layers.widths)
            bound = (6 / (inputs if into_relu else inputs + outputs)) ** 0.5
            layers.block(parameters, layer)[:-1] = random.uniform(-bound, bound, (inputs, outputs))
        return parameters
