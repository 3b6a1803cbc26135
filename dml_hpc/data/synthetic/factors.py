"""Synthetic matrices that are products of known factors: dense of low rank, and ratings.

Every random number is a pure function of (seed, purpose, place); see `dml_hpc.kernels.random`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dml_hpc.data.sources.source import About
from dml_hpc.errors import UserError
from dml_hpc.kernels import synthetic as kernels
from dml_hpc.kernels.random import fill_normals, stream
from dml_hpc.kernels.sampling import permute

LEFT, RIGHT, NOISE, ORDER, USERS, ITEMS, PLACES = range(7)
"""What a stream of random numbers is for."""

MOST_SKEW = 30.0
"""Users and items differ in popularity by up to about (1 + this)² = 961."""
MOST_ROWS = 1 << 31
"""Of a low-rank matrix; also of users and items."""


class LowRank:
    """Dense rows of U·diag(singular_values)·Vᵀ plus normal noise; y is 0.

    The columns of U and V are columns of the orthonormal cosine transforms (DCT-II) of length ``rows`` and
    ``features``, chosen at random: orthonormal for any shape, and known by row. The singular values fall
    geometrically, from √(rows·features) to a tenth of it.
    """

    kind = "dense"

    def __init__(self, rows: int, features: int, seed: int, dtype: str, k: int, noise: float):
        if k > min(rows, features):
            raise UserError(f"a matrix of {rows:,} × {features:,} has no rank {k}; choose a smaller --k")
        if max(rows, features) > MOST_ROWS:
            raise UserError(f"lowrank makes up to {MOST_ROWS:,} rows and features")
        self.rows, self.features = rows, features
        self.about = About(source={"synthetic": "lowrank", "seed": seed, "k": k, "noise": noise})
        self.singular_values = math.sqrt(rows * features) * 10.0 ** -np.linspace(0, 1, k)
        self.left = _frequencies(rows, k, stream(seed, LEFT))
        self.right = _frequencies(features, k, stream(seed, RIGHT))
        angles = (2 * np.arange(features) + 1) * self.right[:, None] % (4 * features)
        self.V = np.cos(np.pi * angles / (2 * features)).T * _norms(self.right, features)
        self._rows_of_v = np.ascontiguousarray(self.V.T)
        self._sizes = self.singular_values * _norms(self.left, rows)
        self._noise, self._key = noise, stream(seed, NOISE)
        self._dtype = np.float64 if dtype == "float64" else np.float32

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """See `RowSource.read`."""
        rows = np.empty((stop - start, self.features), self._dtype)
        kernels.low_rank_rows(start, self.rows, self.left, self._sizes, self._rows_of_v, rows)
        if self._noise:
            kernels.add_noise(self._key, start * self.features, self._noise, rows.reshape(-1))
        return rows, np.zeros(len(rows))

    def truth(self) -> dict[str, Any]:
        """See `synthesis`; ``left_frequencies`` f (k,) give U[i, c] = n_c cos(π (2i + 1) f_c / (2 rows)).

        n_c is √(2 / rows), or √(1 / rows) where f_c is 0.
        """
        return {"singular_values": self.singular_values, "left_frequencies": self.left,
                "right_frequencies": self.right, "V": self.V}


def _frequencies(length: int, k: int, key: np.uint64) -> np.ndarray:
    return np.array([permute(i, length, key) for i in range(k)], np.int64)


def _norms(frequencies: np.ndarray, length: int) -> np.ndarray:
    return np.sqrt(np.where(frequencies == 0, 1, 2) / length)


class Ratings:
    """Ratings P_u·Q_i plus normal noise, of mean 0 and variance 1 + noise², each pair (u, i) at most once.

    P (users, k) and Q (items, k) are normal numbers. Users and items differ in popularity; see `kernels.rating_rows`.
    """

    kind = "ratings"

    def __init__(self, rows: int, users: int, items: int, seed: int, k: int, noise: float):
        if rows > users * items:
            raise UserError(f"{users:,} users have at most {users * items:,} ratings of {items:,} items, not {rows:,}; "
                            "choose fewer --rows, or more --users or --items")
        if max(users, items) > MOST_ROWS or rows * users >= 1 << 63:
            raise UserError(f"ratings are made for up to {MOST_ROWS:,} users and items, and 2^63 users × ratings")
        if k > min(users, items):
            raise UserError(f"a matrix of {users:,} × {items:,} has no rank {k}; choose a smaller --k")
        self.rows, self.features = rows, items
        self.about = About(label="rating", users=users,
                           source={"synthetic": "ratings", "seed": seed, "k": k, "noise": noise})
        self.user_factors, self.item_factors = np.empty((users, k)), np.empty((items, k))
        fill_normals(stream(seed, LEFT), 0, k**-0.25, self.user_factors.reshape(-1))
        fill_normals(stream(seed, RIGHT), 0, k**-0.25, self.item_factors.reshape(-1))
        self._starts = np.empty(users + 1, np.int64)
        kernels.cell_starts(rows, min(MOST_SKEW, users * items / (2 * rows) - 1), self._starts)
        self._keys = np.array([stream(seed, purpose) for purpose in (ORDER, USERS, ITEMS, PLACES)])
        self._noise, self._noise_key = noise, stream(seed, NOISE)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (user, item) (stop − start, 2) int64 and ratings (stop − start,) float64; see `RowSource.read`."""
        pairs, ratings = self.pairs(start, stop), np.empty(stop - start)
        kernels.factor_products(pairs, self.user_factors, self.item_factors, ratings)
        if self._noise:
            kernels.add_noise(self._noise_key, start, self._noise, ratings)
        return pairs, ratings

    def pairs(self, start: int, stop: int) -> np.ndarray:
        """Return (user, item) (stop − start, 2) int64 of ratings alone."""
        pairs = np.empty((stop - start, 2), np.int64)
        kernels.rating_rows(self._keys, start, self.rows, self._starts, self.features, MOST_SKEW, pairs)
        return pairs

    def truth(self) -> dict[str, Any]:
        """See `synthesis`; no model has a smaller expected RMSE on unseen ratings than the noise."""
        return {"user_factors": self.user_factors, "item_factors": self.item_factors}
