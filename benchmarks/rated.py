"""Ratings for the benchmarks of `mf`: made by ``data synth ratings``, handed to the peers; and a judge of all factors.

Peers find them in a NumPy archive (users, items (n,) int32, ratings (n,) float32) or a Parquet file of those columns,
numbered by the ids of the data set, and write what they learnt as such. Errors and objectives are computed here, in
float64, by the same code for everybody's factors.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
from running import dml_hpc

from dml_hpc.data.ratings.opened import open_ratings
from dml_hpc.mpi import Alone

AT_A_TIME = 1 << 18


class Ratings(NamedTuple):
    """``users``, ``items`` (n,) int32 numbers, ``values`` (n,) float32."""

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray


class Factors(NamedTuple):
    """Ratings are ``mean`` + ``user_biases[u]`` + ``item_biases[i]`` + ``P[u]``·``Q[i]``."""

    P: np.ndarray
    Q: np.ndarray
    user_biases: np.ndarray | None = None
    item_biases: np.ndarray | None = None
    mean: float = 0.0


class Shape(NamedTuple):
    """What is made: so many ratings, of so many users and items, of rank ``k``, with noise of deviation ``noise``."""

    ratings: int
    users: int
    items: int
    k: int = 10
    noise: float = 0.3

    @property
    def deviation(self) -> float:
        """That of the ratings."""
        return math.hypot(1, self.noise)


def made(folder: Path, shape: Shape, holdout: float = 0.1, seed: int = 0) -> Path:
    """Have ``data synth ratings`` make ``folder/train`` and ``folder/test`` (without ``holdout`` the former alone)."""
    if not holdout:
        folder.mkdir(exist_ok=True)
    parts = ("--holdout", holdout) if holdout else ()
    dml_hpc(2, "data", "synth", "ratings", "--rows", shape.ratings, "--users", shape.users, "--items", shape.items,
            "-k", shape.k, "--noise", shape.noise, "--seed", seed, *parts, "-o",
            folder if holdout else folder / "train")
    return folder


def loaded(folder: Path) -> Ratings:
    """Return all ratings of a data set whose ids are whole numbers, which the ratings then have."""
    stored = open_ratings(Alone(), folder)
    grid = stored.grid
    ids = np.asarray(stored.user_ids(), np.int32), np.asarray(stored.item_ids(), np.int32)
    parts = []
    for u in range(grid.shape[0]):
        for i in range(grid.shape[1]):
            block = stored.block(u, i)
            parts.append(Ratings(ids[0][grid.user_bounds[u] + block.users], ids[1][grid.item_bounds[i] + block.items],
                                 np.asarray(block.ratings)))
    return Ratings(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def archive(file: Path, train: Ratings, test: Ratings | None = None) -> Path:
    """Write ratings, and those held out, for peers that read NumPy archives."""
    more = {} if test is None else {f"test_{name}": array for name, array in test._asdict().items()}
    np.savez(file, **train._asdict(), **more)
    return file


def parquet(file: Path, ratings: Ratings) -> Path:
    """Write ratings as a Parquet file of the columns user, item and rating."""
    pyarrow.parquet.write_table(pyarrow.table({"user": ratings.users, "item": ratings.items,
                                               "rating": ratings.values}), file, row_group_size=1 << 18)
    return file


def ours(file: Path, shape: Shape) -> Factors:
    """Return the factors in a file of ``dml-hpc mf``, by id; zeros for who had no rating."""
    with h5py.File(file) as found:
        ids = found["users"][()], found["items"][()]
        sides: list[Any] = []
        for name, numbers, size in (("user", ids[0], shape.users), ("item", ids[1], shape.items)):
            for part in ("factors", "biases"):
                key = f"{name}_{part}"
                if key not in found:
                    sides.append(None)
                    continue
                rows = found[key]
                sides.append(np.zeros((size, *rows.shape[1:])))
                sides[-1][numbers] = rows[()]
        return Factors(sides[0], sides[2], sides[1], sides[3], float(found.attrs["mean"]))


def of_archive(file: Path) -> Factors:
    """Return the factors that a peer has written as a NumPy archive of P and Q."""
    found = np.load(file)
    return Factors(found["P"].astype(np.float64), found["Q"].astype(np.float64))


def of_parquet(folder: Path, shape: Shape) -> Factors:
    """Return the factors that Spark has written: ``folder/users`` and ``folder/items`` of the columns id, features."""
    both = []
    for name, size in (("users", shape.users), ("items", shape.items)):
        table = pyarrow.parquet.read_table(folder / name)
        flat = table["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        rows = np.zeros((size, len(flat) // len(table)))
        rows[table["id"].to_numpy()] = flat.reshape(len(table), -1)
        both.append(rows)
    return Factors(both[0], both[1])


def rmse(factors: Factors, ratings: Ratings) -> float:
    """Return the root of the mean squared error of the predictions of ``ratings``."""
    total = 0.0
    for start in range(0, len(ratings.values), AT_A_TIME):
        u, i, r = (part[start:start + AT_A_TIME] for part in ratings)
        predicted = factors.mean + _products(factors, u, i)
        for biases, numbers in ((factors.user_biases, u), (factors.item_biases, i)):
            if biases is not None:
                predicted += biases[numbers]
        total += float(np.sum((r - predicted) ** 2))
    return math.sqrt(total / len(ratings.values))


def implicit_objective(factors: Factors, ratings: Ratings, alpha: float, l2: float) -> float:
    """Return Σ c(p − x·y)² + λ(Σ‖x‖² + Σ‖y‖²) over all pairs (Hu, Koren, Volinsky 2008, equation 3).

    Pairs without a rating have p = 0, c = 1; their sum is that over all pairs, by the Gram matrices, less that over
    the rated ones, of which p = 1 where r > 0, c = 1 + αr.
    """
    P, Q = factors.P, factors.Q
    total = float(np.sum((P.T @ P) * (Q.T @ Q))) + l2 * float(np.sum(P * P) + np.sum(Q * Q))
    for start in range(0, len(ratings.values), AT_A_TIME):
        u, i, r = (part[start:start + AT_A_TIME] for part in ratings)
        score, r = _products(factors, u, i), r.astype(np.float64)
        total += float(np.sum((1 + alpha * r) * ((r > 0) - score) ** 2 - score**2))
    return total


def _products(factors: Factors, u: np.ndarray, i: np.ndarray) -> np.ndarray:
    return np.einsum("nk,nk->n", factors.P[u], factors.Q[i])
