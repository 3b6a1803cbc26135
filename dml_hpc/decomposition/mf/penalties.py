"""Penalties of alternating least squares: those that are asked for, and those that the ratings themselves call for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

SIDES = ("user", "item")
_BEGIN_NOISE = 0.3
"""Of ratings of variance 1, before an epoch has told: whether it is 0.1 or 1 no longer shows after a few epochs."""
_LEAST = 1e-12
_BINS = 16
"""An octave of the rows' weights: within 2 % they are alike."""


def fixed_penalties(width: int, l2: float, implicit: bool) -> np.ndarray:
    """Return penalties (2·(width + 1),) float32, see `dml_hpc.kernels.normal_equations`: a rating, implicit: a row."""
    found = np.zeros((2, width + 1), np.float32)
    found[int(implicit)] = l2
    return found.reshape(-1)


def packed(numbers: Any, k: int, width: int) -> np.ndarray:
    """Return penalties as the kernels take them, of those of `Learnt.told`; raises `ValueError` where they are none."""
    given = np.array(numbers, np.float32)
    if given.shape != (2, k + 1) or not np.isfinite(given).all() or given.min() < 0:
        raise ValueError("no penalties")
    found = np.ones((2, width + 1), np.float32)  # of columns behind k, where all is 0
    found[:, :k], found[:, width] = given[:, :k], given[:, k]
    return found.reshape(-1)


class Weights(NamedTuple):
    """How much rows weigh, all ranks' of a side: ``rows`` (n,) of them the same ``values`` (n,) each, within 2 %."""

    values: np.ndarray
    rows: np.ndarray


def weights_of(comm: Intracomm, own: np.ndarray) -> Weights:
    """Collective: return those of all ranks' rows, of which this one's weigh ``own`` (n,); 0: they have no part."""
    octaves, counts = np.unique(np.rint(_BINS * np.log2(own[own > 0].astype(np.float64))), return_counts=True)
    everybody: dict[float, int] = {}
    for found in comm.allgather(list(zip(octaves.tolist(), counts.tolist(), strict=True))):
        for octave, count in found:
            everybody[octave] = everybody.get(octave, 0) + count
    places = sorted(everybody)
    return Weights(2.0 ** (np.array(places) / _BINS), np.array([everybody[place] for place in places], np.float64))


class Learnt:
    """Noise and penalties, found while factors are: variational Bayes, of which they are the mean.

    Ratings are (b_u + c_i + p_u·q_i) and normal noise of variance σ², elements of column j normal with variance τ_j,
    one for each side. What is known of an element of a row of weight n is that it is normal, about what was solved for,
    with the variance σ²/(n·m_j + σ²/τ_j), m_j being the mean over ratings of the square of column j of the other side
    and of what it is not known to within.
    So a row is solved for with the penalty n·s_j + σ²/τ_j, s_j the mean of the other side's variances over ratings: the
    sum over its ratings of a square that is not known, but to lie s_j above that of its mean. τ and σ² are those that
    are then most likely. A column that ratings do not call for has its τ fall, and vanishes.

    Lim and Teh, *Variational Bayesian approach to movie rating prediction*, KDD Cup 2007; Raiko, Ilin and Karhunen,
    *Principal component analysis for large scale problems with lots of missing values*, ECML 2007;
    Bishop, *Variational principal components*, ICANN 1999 (τ by column). Ours alone: a row's variances are taken to
    depend on nothing but its weight, so they are neither kept nor sent.

    The same on every rank. Ratings have the variance 1, and weigh ``weight`` together, ``mean_weight`` on average: the
    noise of one that weighs w has the variance σ²·mean_weight/w, so the unit of weights does not matter.
    """

    def __init__(self, k: int, biased: bool, weights: tuple[Weights, Weights], weight: float, mean_weight: float):
        self._k, self._biased, self._weights = k, biased, weights
        self._weight, self._mean_weight = weight or 1.0, mean_weight or 1.0
        self.noise = _BEGIN_NOISE
        self._prior = [np.ones(k + 1), np.full(k + 1, 1 / k)]
        self._variances = [np.zeros(k + 1), np.zeros(k + 1)]
        self._squares = [np.zeros(k + 1), np.full(k + 1, 1 / k)]

    def _numbers(self, side: int) -> np.ndarray:
        found = np.array([self._variances[1 - side], self._mean_weight * self.noise / self._prior[side]])
        found[0, self._k] = 0  # a bias is multiplied by 1, which is known
        return found.astype(np.float32)

    def penalties(self, side: int, width: int) -> np.ndarray:
        """Return those of users (0), or items, as the kernels take them; not finite where numbers no longer are."""
        found = np.ones((2, width + 1), np.float32)
        numbers = self._numbers(side)
        found[:, :self._k], found[:, width] = numbers[:, :self._k], numbers[:, self._k]
        return found.reshape(-1)

    def heaviest(self, side: int) -> float:
        """Return what no row of a side, of all ranks', is heavier than."""
        return 1.05 * max(self._weights[side].values, default=0.0)

    def solved(self, side: int, sums: np.ndarray) -> None:
        """Take up a half-step, by ``sums`` (2·(k + 1),): Σ x² and Σ n·x² of each column, and the bias, of its rows."""
        plain, weighted = sums.reshape(2, -1)
        values, rows = self._weights[side]
        count = max(rows.sum(), 1.0)
        curvature = self._squares[1 - side] + self._variances[1 - side]
        curvature[self._k] = 1
        variances = self.noise / (values[:, None] / self._mean_weight * curvature + self.noise / self._prior[side])
        self._squares[side] = weighted / self._weight
        self._variances[side] = (values * rows) @ variances / (values @ rows if len(rows) else 1.0)
        self._prior[side] = np.maximum((plain + rows @ variances) / count, _LEAST)

    def fitted(self, squares: float) -> None:
        """Take up the sum of the squared errors after an epoch: what is left of them is noise."""
        (p, q), (v, w) = self._squares, self._variances
        unknown = p * w + q * v + v * w
        unknown[self._k] = v[self._k] + w[self._k] if self._biased else 0.0
        self.noise = max(squares / self._weight + float(unknown.sum()), _LEAST)

    def told(self) -> dict[str, list[list[float]]]:
        """Return by side the penalties (2, k + 1) of its rows, a rating and a row, for the file: see `packed`."""
        return {name: [[float(f"{value:.9g}") for value in row] for row in self._numbers(side).tolist()]
                for side, name in enumerate(SIDES)}

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as JSON has it."""
        return {"noise": self.noise, **{name: [array.tolist() for array in getattr(self, f"_{name}")]
                                        for name in ("prior", "variances", "squares")}}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on with what another run has learnt."""
        self.noise = kept["noise"]
        for name in ("prior", "variances", "squares"):
            setattr(self, f"_{name}", [np.array(values) for values in kept[name]])
