"""Who factorises ratings: the public command and its peers, each called with the same few settings.

λ means the same to all of them: Σ (r − p·q)² + λ(‖p_u‖² + ‖q_i‖²), once a rating (Spark's is ALS-WR, LIBMF's steps take
λ off at every rating). Ours divides ratings by their deviation first, and λ is of what is left; LIBMF and Spark are
given λ times the deviation, which is the same penalty.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rated import Factors, Shape, archive, loaded, made, of_archive, of_parquet, parquet
from running import dml_hpc, peer


class Files(NamedTuple):
    """Ratings as ours and as each peer finds them: ``folder/train``, ``folder/test``."""

    folder: Path
    shape: Shape

    @property
    def train(self) -> Path:
        """The data set learnt from."""
        return self.folder / "train"

    @property
    def test(self) -> Path:
        """The data set held out."""
        return self.folder / "test"

    @property
    def alone(self) -> Path:
        """The archive without those held out."""
        return self.folder / "alone.npz"

    @property
    def both(self) -> Path:
        """The archive with them."""
        return self.folder / "both.npz"

    @property
    def parquet(self) -> Path:
        """The ratings to be learnt from."""
        return self.folder / "train.parquet"

    @property
    def spark(self) -> Path:
        """Where Spark's factors go, ``fit-N`` for the N-th fit."""
        return self.folder / "spark"

    @property
    def factors(self) -> Path:
        """Where our factors go."""
        return self.folder / "factors.h5"


def prepared(folder: Path, shape: Shape, holdout: float = 0.1, seed: int = 0) -> Files:
    """Make the ratings and all files of them."""
    files = Files(made(folder, shape, holdout, seed), shape)
    train, test = loaded(files.train), loaded(files.test)
    archive(files.alone, train)
    archive(files.both, train, test)
    parquet(files.parquet, train)
    return files


def ours(files: Files, ranks: int, k: int, *options: object, test: bool = False) -> dict[str, Any]:
    """Run ``dml-hpc mf``, of one thread a rank, and return its JSON object."""
    return dml_hpc(ranks, "mf", files.train, "-o", files.factors, "--overwrite", "-k", k, "--threads", 1,
                   *(("--test", files.test) if test else ()), *options)


class Libmf(NamedTuple):
    """LIBMF: the Python that has it, and another build of its library, if any."""

    python: str
    library: Path | None = None

    def run(self, files: Files, k: int, epochs: int, l2: float = 0.05, step_size: float = 0.1, test: bool = False,
            threads: int = 1, output: Path | None = None) -> dict[str, Any]:
        """Let it learn; with ``test`` it tells its error of those ratings, which takes it time."""
        with _environment("LIBMF_OBJ", self.library):
            return peer(self.python, "libmf_sgd.py", files.both if test else files.alone, k, epochs,
                        l2 * files.shape.deviation, step_size, threads, *([] if output is None else [output]))

    def factors(self, file: Path) -> Factors:
        """Return those that a run has written."""
        return of_archive(file)


def spark(python: str, files: Files, k: int, iterations: int, penalties: Sequence[float], cores: int,
          rounds: int = 0) -> dict[str, Any]:
    """Let Spark's ALS fit with each of the penalties λ, once to warm up and ``rounds`` times to be timed."""
    return peer(python, "spark_als.py", files.parquet, files.spark, k, iterations, cores, rounds,
                *(l2 * files.shape.deviation for l2 in penalties))


def spark_factors(files: Files, fit: int) -> Factors:
    """Return the factors of Spark's fit number ``fit``."""
    return of_parquet(files.spark / f"fit-{fit}", files.shape)


def first_at_most(values: Sequence[float], level: float) -> int | None:
    """Return the number of the first of ``values`` that is at most ``level``, None where there is none."""
    return next((number for number, value in enumerate(values) if value <= level), None)


def reached_s(epoch_s: float, values: Sequence[float], level: float) -> float:
    """Return the seconds after which epochs of so many have come to ``level``; infinity where they do not."""
    number = first_at_most(values, level)
    return math.inf if number is None else epoch_s * (number + 1)


def mean_s(seconds: Sequence[float]) -> float:
    """Return the mean of an iteration's seconds."""
    return float(np.mean(seconds))


@contextmanager
def _environment(name: str, value: Path | None) -> Iterator[None]:
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = str(value)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
