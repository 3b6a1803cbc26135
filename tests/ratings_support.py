"""Ratings for tests: thin matrices of low rank, and data sets of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dml_hpc.commands.ratings_data import run_import
from dml_hpc.console import Console
from dml_hpc.mpi import Alone


def low_rank(users: int = 90, items: int = 60, count: int = 2500, seed: int = 0,
             heavy: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return users, items (count,), no pair twice, and their ratings: 3 + biases + rank 2 + a little noise.

    With ``heavy`` user 0 has rated everything, and half of the ratings are theirs.
    """
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(users * items)[:count]
    if heavy:
        pairs = np.concatenate([np.arange(items), pairs[pairs >= items][:items]])
    u, i = pairs // items, pairs % items
    P, Q = rng.normal(0, 0.7, (users, 2)), rng.normal(0, 0.7, (items, 2))
    ratings = 3 + rng.normal(0, 0.3, users)[u] + rng.normal(0, 0.3, items)[i] + np.sum(P[u] * Q[i], axis=1)
    return u, i, (ratings + rng.normal(0, 0.1, len(u))).astype(np.float32)


def import_ratings(folder: Path, name: str, given: tuple[np.ndarray, ...],
                   grid: tuple[int, int] | None = None, text_ids: bool = False) -> Path:
    """Write a table of users ("u7"), items (numbers) and ratings, import it on this rank alone, return the data set."""
    table = folder / f"{name}.csv"
    rows = [f"u{user},{item},{rating!r}" for user, item, rating in zip(*(part.tolist() for part in given), strict=True)]
    table.write_text("\n".join(["user,item,rating", *rows]) + "\n")
    run_import(Alone(), Console(rank=1), sources=[str(table)], output=folder / name, user="user", item="item",
               rating="rating", weight=None, time=None, grid=grid, duplicates=None, limits=None, text_ids=text_ids,
               holdout=0.0, seed=0, shards=2, compression=None)
    return folder / name
