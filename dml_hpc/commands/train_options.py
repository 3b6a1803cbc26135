"""What ``train`` and ``compare`` can be told, what each algorithm makes of it, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dml_hpc.errors import UserError
from dml_hpc.objectives.objective import Objective
from dml_hpc.optim.settings import OptimiserSettings
from dml_hpc.trainers.gradient import MOST_ROWS

PATIENCE = 3
WIDE = 1 << 16
"""Sparse rows of more features are trained by an optimiser that leaves alone what a step does not touch."""


@dataclass(frozen=True)
class Options:
    """The options of ``dml-hpc train --help``, by their names; None: the algorithm's default."""

    x_key: str | None = None
    y_key: str | None = None
    weight_key: str | None = None
    memory_limit: int | None = None
    objective: str = "logistic"
    huber_delta: float | None = None
    hidden: tuple[int, ...] | None = None
    activation: str | None = None
    class_weight: str | dict[float, float] | None = None
    sample_weight: bool = True
    algorithm: str | None = None
    allreduce: str = "auto"
    tuning: Path | None = None
    fan_in: int = 2
    exchange: str | None = None
    overlap: bool | None = None
    batch_size: int | str | None = None
    epochs: int | None = None
    steps: int | None = None
    time_budget: float | None = None
    tolerance: float | None = None
    validation: Path | None = None
    patience: int | None = None
    optimizer: str | None = None
    step_size: float | None = None
    schedule: str | None = None
    momentum: float | None = None
    beta2: float | None = None
    warmup: float | None = None
    clip_norm: float | None = None
    clip_value: float | None = None
    average_iterates: bool = False
    l1: float = 0.0
    l2: float = 0.0
    intercept: bool = True
    scale: bool = True
    shuffle: bool = True
    seed: int = 0
    dtype: str = "float32"
    reproducible: bool = False
    skip_bad_shards: bool = False
    device: str = "cpu"
    rows_as: str | None = None
    compression: str = "none"
    compression_ratio: float | None = None
    compression_rank: int | None = None
    tau: int | None = None
    average_momentum: bool = False
    machines: int | None = None
    replicas: bool = False
    rounds: int | None = None
    weighting: str | None = None
    rebalance: bool = False
    trace: Path | None = None

    @property
    def objective_settings(self) -> dict[str, Any]:
        """What the objective is opened with; raises `UserError` for an option of another objective."""
        found = {}
        for option, name, objective in (("huber_delta", "delta", "huber"), ("hidden", "hidden", "mlp"),
                                        ("activation", "activation", "mlp")):
            value = getattr(self, option)
            if value is not None:
                if self.objective != objective:
                    raise UserError(f"{_flag(option)} is for --objective {objective}, not {self.objective}; leave it "
                                    "out")
                found[name] = value
        return found

    @property
    def optimiser_settings(self) -> OptimiserSettings:
        """What the optimiser is opened with, once the options are `settled`."""
        return OptimiserSettings(self.optimizer or "sgd", self.momentum or 0.0,
                                 0.999 if self.beta2 is None else self.beta2, l1=self.l1,
                                 l2=self.l2, clip_value=self.clip_value)


_MINI_BATCH: dict[str, Any] = {"batch_size": 1024, "epochs": 10, "optimizer": "sgd", "momentum": 0.9, "beta2": 0.999,
                               "schedule": "cosine", "warmup": 0.0, "clip_norm": None, "clip_value": None,
                               "step_size": None, "tolerance": None, "average_iterates": False}
DEFAULTS: dict[str, dict[str, Any]] = {
    "sync": {**_MINI_BATCH, "exchange": "auto", "overlap": None},
    "local": {**_MINI_BATCH, "tau": 10, "average_momentum": False},
    "average": {"batch_size": 1, "epochs": 10, "step_size": 0.002, "schedule": "constant", "warmup": 0.0, "rounds": 1,
                "tolerance": None, "machines": None, "replicas": False, "weighting": "equal"},
    "lbfgs": {"batch_size": "full", "epochs": 100, "tolerance": 1e-7},
}
"""The options that only some algorithms follow, by algorithm, and what they mean when they are not given."""
_SOME = sorted({name for table in DEFAULTS.values() for name in table})
STEP_SIZES = {"sgd": 0.1, "nesterov": 0.1, "adagrad": 0.1, "rmsprop": 0.01, "adam": 0.01, "adamw": 0.01}


def settled(options: Options, objective: Objective, sparse: bool, features: int, rows: int) -> Options:
    """Return the options with every default filled in; refuse what cannot be followed rather than ignore it.

    What does not apply to the algorithm is None. Raises `UserError`.
    """
    algorithm = options.algorithm or _natural(options, objective)
    known = dict(DEFAULTS[algorithm])
    untouched = {entry.name: entry.default for entry in fields(Options)}
    for name in _SOME:
        if name not in known and getattr(options, name) != untouched[name]:
            others = " or ".join(other for other, table in DEFAULTS.items() if name in table)
            raise UserError(f"--algorithm {algorithm} has no use for {_flag(name)}: leave it out, or use --algorithm "
                            f"{others}")
    if "optimizer" in known:
        if objective.name == "mlp":
            known.update(optimizer="adam", batch_size=256)
        elif sparse and features > WIDE and options.momentum is None:
            known.update(optimizer="adagrad")
        known["beta2"] = 0.9 if (options.optimizer or known["optimizer"]) == "rmsprop" else 0.999
        size = STEP_SIZES[options.optimizer or known["optimizer"]]
        known["step_size"] = size / 10 if objective.name == "mlp" else size
    if algorithm == "average" and not objective.sequential:
        known["batch_size"] = 32
    if options.steps is not None or options.time_budget is not None:
        known["epochs"] = None
    if options.time_budget is not None and options.epochs is None and options.steps is None and "optimizer" in known:
        known["schedule"] = "inverse-sqrt"
    filled: dict[str, Any] = {
        name: known.get(name, False if untouched[name] is False else None)
        if getattr(options, name) in (None, untouched[name]) else getattr(options, name)
        for name in _SOME}
    if options.patience is not None and options.validation is None:
        raise UserError("--patience counts looks at validation data; give --validation too, or leave it out")
    for name, users in (("momentum", ("sgd", "nesterov", "adam", "adamw")), ("beta2", ("rmsprop", "adam", "adamw"))):
        if getattr(options, name) is not None and filled["optimizer"] not in (None, *users):
            raise UserError(f"--optimizer {filled['optimizer']} has no use for {_flag(name)}, which is for "
                            f"{', '.join(users)}; leave it out")
    chosen = replace(options, algorithm=algorithm, patience=options.patience or PATIENCE, **filled)
    _check(chosen, options, objective, rows, sparse)
    return chosen


def _natural(options: Options, objective: Objective) -> str:
    """Return the algorithm for who has named none: ``lbfgs`` for smooth convex problems on full batches."""
    plain = all(getattr(options, name) is None for name in ("optimizer", "step_size", "schedule", "momentum", "beta2",
                                                            "warmup", "clip_norm", "clip_value", "exchange"))
    special = options.average_iterates or options.compression != "none"
    full = options.batch_size == "full" and objective.convex and objective.smooth and plain and not special
    return "lbfgs" if full else "sync"


def _check(chosen: Options, given: Options, objective: Objective, rows: int, sparse: bool) -> None:
    algorithm = chosen.algorithm
    endless = chosen.epochs is None and chosen.steps is None
    if endless and chosen.schedule in ("cosine", "step"):
        raise UserError(f"--schedule {chosen.schedule} needs to know where a run ends, and --time-budget alone does "
                        "not say; give --epochs or --steps too, or --schedule inverse-sqrt")
    if chosen.reproducible and algorithm in ("average", "local"):
        raise UserError(f"--reproducible: what --algorithm {algorithm} learns depends on the number of ranks by its "
                        "nature; use --algorithm sync or lbfgs")
    if chosen.reproducible and chosen.time_budget is not None:
        raise UserError("--reproducible does not go with --time-budget: how far a run gets depends on the machine; "
                        "give --epochs or --steps")
    a_step = rows if chosen.batch_size in ("full", None) else min(int(chosen.batch_size), rows)
    if chosen.reproducible and a_step > MOST_ROWS:
        raise UserError(f"--reproducible sums over at most {MOST_ROWS:,} rows a step; give a smaller --batch-size")
    if algorithm == "average" and chosen.batch_size == "full":
        raise UserError("--algorithm average learns from few rows at a time; give --batch-size a number, or use local")
    if algorithm == "lbfgs" and chosen.batch_size != "full":
        raise UserError("--algorithm lbfgs works on all rows at once; leave out --batch-size, or use --algorithm sync")
    if algorithm == "lbfgs" and not objective.smooth:
        raise UserError(f"--algorithm lbfgs needs a smooth loss, and {objective.name} has a kink; use "
                        "--objective squared-hinge, or --algorithm sync")
    if chosen.replicas and chosen.rounds != 1:
        raise UserError("--replicas draws each machine's examples once; it goes with one round")
    if chosen.allreduce == "nccl" and (chosen.device == "cpu" or algorithm not in ("sync", "local")):
        raise UserError("--allreduce nccl sums vectors that lie on GPUs, as those of --algorithm sync and local do "
                        "with --device cuda; choose another, or leave it out")
    if chosen.device != "cpu" and (chosen.exchange == "sparse" or chosen.overlap):
        option = "--overlap" if chosen.overlap else "--exchange sparse"
        raise UserError(f"{option} is for ranks that compute on the CPU; leave it out, or --device {chosen.device}")
    if chosen.rows_as is not None and (chosen.device == "cpu" or sparse):
        raise UserError(f"--rows-as {chosen.rows_as} is how dense rows stay on a GPU; leave it out, or give "
                        "--device cuda and dense rows")
    if chosen.rebalance and algorithm == "average":
        raise UserError("--rebalance moves rows between ranks, and the machines of --algorithm average keep theirs; "
                        "leave it out, or use sync, local or lbfgs")
    if objective.name == "mlp" and not chosen.intercept:
        raise UserError("--no-intercept has no meaning for mlp, which has biases in every layer; leave it out")
    if chosen.tolerance is not None and algorithm == "average" and chosen.rounds == 1:
        raise UserError("--tolerance compares rounds, and there is one; give --rounds")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
