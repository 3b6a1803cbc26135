"""What ``mf`` is told to learn: options as given, checked against one another, and what they are if not given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dml_hpc.decomposition.mf import ALPHA, EPOCHS, L2, als, sgd
from dml_hpc.decomposition.mf.steps import DEFAULT_STEP_SIZE, StepSizes
from dml_hpc.errors import UserError

OF_ALGORITHM = {"schedule": "sgd", "step_size": "sgd", "factors": "sgd", "implicit": "als", "alpha": "als",
                "solver": "als"}

MOST_GPU_K = {"sgd": 512, "als": 128}
"""What the kernels for GPUs have room for; also in `dml_hpc.kernels.cuda`."""


@dataclass(frozen=True)
class Options:
    """The options of ``dml-hpc mf --help`` that say what is learnt, by their names; None: nothing was said."""

    k: int = 32
    algorithm: str = "sgd"
    l2: float | str | None = None
    biases: bool | None = None
    implicit: bool = False
    alpha: float | None = None
    solver: str | None = None
    schedule: str | None = None
    step_size: float | None = None
    epochs: int | None = None
    time_budget: float | None = None
    tolerance: float | None = None
    factors: str | None = None
    threads: int | None = None
    reproducible: bool = False
    seed: int = 0

    @classmethod
    def among(cls, parsed: Mapping[str, Any]) -> Options:
        """Return those among the arguments of the verb, ``parsed``."""
        return cls(**{one.name: parsed[one.name] for one in fields(cls)})


@dataclass(frozen=True)
class Wanted:
    """An algorithm and what belongs to it; what belongs to another is None, or False."""

    algorithm: str
    k: int
    l2: float | str
    biases: bool
    epochs: int | None
    seed: int
    threads: int
    factors: str = "float32"
    schedule: str | None = None
    step_size: float | None = None
    implicit: bool = False
    alpha: float | None = None
    solver: str | None = None

    @property
    def settings(self) -> sgd.Settings | als.Settings:
        """What the algorithm is told."""
        if self.algorithm == "als":
            return als.Settings(self.k, None if self.l2 == "auto" else float(self.l2), self.biases, self.alpha,
                                self.solver or "cholesky", self.seed, self.threads)
        return sgd.Settings(self.k, float(self.l2), self.biases, self.factors, self.schedule == "adagrad", self.seed,
                            self.threads)

    @property
    def steps(self) -> StepSizes | None:
        """Step sizes of the epochs, None: the algorithm has none."""
        if self.schedule is None or self.step_size is None:
            return None
        return StepSizes(self.schedule, self.step_size, self.epochs)

    def described(self) -> dict[str, Any]:
        """Return what factors depend on, for checkpoints and the file: two runs that differ in it are not one."""
        own = ("implicit", "alpha", "solver") if self.algorithm == "als" else ("schedule", "step_size", "factors")
        return {name: getattr(self, name) for name in ("k", "algorithm", "l2", "biases", *own, "seed")}


def wanted(given: Options, test: bool, device: str = "cpu") -> Wanted:
    """Return what the options ``given`` mean together; raises `UserError`. ``test``: there is --test."""
    algorithm = given.algorithm
    for name, owner in OF_ALGORITHM.items():
        if getattr(given, name) and owner != algorithm:
            raise UserError(f"--{name.replace('_', '-')} is for --algorithm {owner}, and this is --algorithm "
                            f"{algorithm}; leave one of them out")
    if given.reproducible and given.time_budget is not None:
        raise UserError("--reproducible and --time-budget: how far a run comes in a time is never the same; give "
                        "--epochs instead")
    implicit = given.implicit
    if given.alpha is not None and not implicit:
        raise UserError("--alpha is for --implicit ratings; give that too, or leave --alpha out")
    if implicit and given.biases:
        raise UserError("--implicit ratings have no biases; leave --biases out")
    if implicit and test:
        raise UserError("--test tells an RMSE, and --implicit predicts no ratings; leave it out, and measure what was "
                        "learnt by `dml-hpc mf evaluate FACTORS RATINGS --at 10`")
    if device == "cuda":
        _check_gpu(algorithm, given.k, given.solver, given.reproducible)
    epochs = given.epochs
    if epochs is None and given.time_budget is None:
        epochs = EPOCHS[algorithm]
    own: dict[str, Any]
    if algorithm == "als":
        own = {"implicit": implicit, "alpha": (given.alpha or ALPHA) if implicit else None,
               "solver": given.solver or ("cg" if implicit and device == "cpu" else "cholesky")}
    else:
        schedule = given.schedule or "adagrad"
        if schedule == "cosine" and given.epochs is None and given.time_budget is not None:
            raise UserError("--schedule cosine ends with the last epoch: say which with --epochs, or choose another")
        own = {"schedule": schedule, "step_size": given.step_size or DEFAULT_STEP_SIZE[schedule],
               "factors": given.factors or "float32"}
    l2 = L2["implicit" if implicit else algorithm] if given.l2 is None else given.l2
    if l2 == "auto" and (implicit or algorithm != "als"):
        raise UserError("--l2 auto is for --algorithm als and ratings that are not --implicit; give a number")
    if l2 == "auto" and given.tolerance is not None and not test:
        raise UserError("--tolerance needs --test while penalties are found (--l2 auto): the training RMSE rises at "
                        "first, while predictions get better; give --test RATINGS, or a number for --l2")
    return Wanted(algorithm, given.k, l2, not implicit and given.biases is not False, epochs, given.seed,
                  given.threads or rank_threads(), **own)


def _check_gpu(algorithm: str, k: int, solver: str | None, reproducible: bool) -> None:
    """Raise `UserError` for what GPUs do not do."""
    if algorithm == "sgd" and reproducible:
        raise UserError("--reproducible: on GPUs the ratings of a block are taken all at once, and factors differ from "
                        "run to run; leave out --device cuda, or take --algorithm als")
    if solver == "cg":
        raise UserError("--solver cg computes on the CPU; leave out --device cuda, or take --solver cholesky")
    if k > MOST_GPU_K[algorithm]:
        raise UserError(f"--algorithm {algorithm} takes up to -k {MOST_GPU_K[algorithm]} on GPUs, and this is -k {k}; "
                        "leave out --device cuda, or take fewer factors")


def rank_threads() -> int:
    """Return how many threads a rank may start: what was said of it, or was divided among the node's ranks."""
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(said) if said.isdigit() and int(said) else len(os.sched_getaffinity(0))
