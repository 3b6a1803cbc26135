"""``dml-hpc train`` and what belongs to models: ``compare``, ``evaluate``, ``predict``."""

from __future__ import annotations

from typing import Any

import click

from dml_hpc.comm import ALLREDUCES, COMPRESSIONS
from dml_hpc.objectives import ACTIVATIONS, OBJECTIVES
from dml_hpc.optim import OPTIMISERS, SCHEDULES
from dml_hpc.parameters import BatchSize, ClassWeight, Contenders, Finite, Size, Widths
from dml_hpc.trainers import ALGORITHMS, EXCHANGES, WEIGHTINGS
from dml_hpc.verb import LongVerb, RanksVerb, option
from dml_hpc.verbs.shared import (
    KEEPING_OPTIONS,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    SURVIVAL_OPTIONS,
    data_argument,
    device,
    fan_in,
    options,
    output,
    overwrite,
    seed,
    skip_bad_shards,
    tuning,
    weight_key,
    x_key,
    y_key,
)

rows_as = option("--rows-as", type=click.Choice(["float16", "bfloat16"]), default=None,
                 help="cuda: keep dense float32 rows in 16 bits on the GPU: half the memory, half the bytes a pass.  "
                 "[default: as stored]")
MODEL_OPTIONS = (
    option("--objective", type=click.Choice(OBJECTIVES), default="logistic", help="What is minimised."),
    option("--huber-delta", type=Finite(min=0, min_open=True), default=None, metavar="δ",
           help="huber: residuals beyond δ count linearly.  [default: 1.35]"),
    option("--hidden", type=Widths(), default=None, help="mlp: widths of the hidden layers.  [default: 128]"),
    option("--activation", type=click.Choice(ACTIVATIONS), default=None, help="mlp: between layers.  [default: relu]"),
    option("--class-weight", type=ClassWeight(), default=None,
           help="What rows of a class count: balanced, or VALUE=WEIGHT,…  [default: 1 each]"),
    option("--sample-weight/--no-sample-weight", default=True, help="Heed the weights that the rows have."),
    option("--l1", type=NOT_NEGATIVE, default=0.0, metavar="λ", help="Penalty λ‖w‖₁; with --l2 the elastic net."),
    option("--l2", type=NOT_NEGATIVE, default=0.0, metavar="λ", help="Penalty ½λ‖w‖² on the standardised weights."),
    option("--intercept/--no-intercept", default=True, help="Learn an intercept."),
    option("--scale/--no-scale", default=True, help="Standardise numeric features (the data is not rewritten)."),
)
SUM_OPTIONS = (
    option("--allreduce", type=click.Choice(ALLREDUCES), default="auto",
           help="How vectors are summed; auto measures and takes the fastest."),
    tuning, fan_in,
    option("--exchange", type=click.Choice(EXCHANGES), default=None,
           help="sync on sparse rows: sum whole gradients (dense) or exchange what rows touch (sparse); "
           "auto measures.  [default: auto]"),
    option("--overlap/--no-overlap", default=None,
           help="sync, networks: send a layer's gradient while others are computed.  [default: measured]"),
    option("--compression", type=click.Choice(COMPRESSIONS), default="none",
           help="Send gradients compressed; what is lost is made up for in later steps."),
    option("--compression-ratio", type=Finite(0, 1, min_open=True), default=None, metavar="SHARE",
           help="Share of the elements that topk sends.  [default: 0.01]"),
    option("--compression-rank", type=POSITIVE, default=None, metavar="N", help="Factors of powersgd.  [default: 4]"),
)
STEP_OPTIONS = (
    option("--batch-size", type=BatchSize(), default=None,
           help="Rows of a step, all ranks together.  [default: 1024; mlp: 256; average: 1 a machine]"),
    option("--optimizer", type=click.Choice(OPTIMISERS), default=None,
           help="How a gradient becomes a step.  [default: sgd; mlp: adam; very wide sparse rows: adagrad]"),
    option("--step-size", type=Finite(min=0, min_open=True), default=None,
           help="Step size at the start.  [default: 0.1; rmsprop, adam, adamw: 0.01; mlp: a tenth; average: 0.002]"),
    option("--schedule", type=click.Choice(SCHEDULES), default=None,
           help="How the step size falls.  [default: cosine; average: constant; --time-budget: inverse-sqrt]"),
    option("--warmup", type=NOT_NEGATIVE, default=None, metavar="EPOCHS",
           help="Epochs over which the step size rises."),
    option("--momentum", type=Finite(0, 1, max_open=True), default=None,
           help="Momentum of sgd and nesterov, β₁ of adam and adamw.  [default: 0.9]"),
    option("--beta2", type=Finite(0, 1, max_open=True), default=None,
           help="Memory of squared gradients: rmsprop [default: 0.9], adam, adamw [default: 0.999]."),
    option("--clip-norm", type=Finite(min=0, min_open=True), default=None,
           help="Shorten longer gradients to this length."),
    option("--clip-value", type=Finite(min=0, min_open=True), default=None, help="Clip each element of the gradient."),
    option("--average-iterates", is_flag=True, help="The model is the average of the iterates, later ones count more."),
    option("--tau", type=POSITIVE, default=None, metavar="τ", help="local: steps between averages.  [default: 10]"),
    option("--average-momentum", is_flag=True, help="local: average the optimiser's state too."),
    option("--machines", type=POSITIVE, default=None, metavar="M",
           help="average: machines to stand for.  [default: one a rank]"),
    option("--replicas", is_flag=True, help="average: each machine draws from all rows, instead of having its own."),
    option("--rounds", type=POSITIVE, default=None, metavar="N", help="average: averages in a run.  [default: 1]"),
    option("--weighting", type=click.Choice(WEIGHTINGS), default=None,
           help="average: what a machine's model counts.  [default: equal]"),
)
LIMIT_OPTIONS = (
    option("--epochs", type=POSITIVE, default=None,
           help="Passes over the data; lbfgs: iterations.  [default: 10; lbfgs: 100]"),
    option("--steps", type=POSITIVE, default=None,
           help="Steps, instead of --epochs: batches (sync, local), examples a machine (average), iterations (lbfgs)."),
    option("--time-budget", type=Finite(min=0, min_open=True), default=None, metavar="SECONDS",
           help="Train for so long, without --epochs or --steps as far as that goes."),
    option("--tolerance", type=NOT_NEGATIVE, default=None, metavar="SHARE",
           help="Stop when an epoch lowers the loss by less than this share of it.  [default: never; lbfgs: 1e-7]"),
    option("--validation", type=PATH, default=None, metavar="DATASET",
           help="Keep the model that is best on this data set, looked at after every epoch (average: every round)."),
    option("--patience", type=POSITIVE, default=None, metavar="N",
           help="Stop after N looks that find it no better.  [default: 3; compare: never]"),
)
OTHER_TRAINING_OPTIONS = (
    option("--memory-limit", type=Size(), default=None, help="Memory that a rank may take in all, such as 2G; rows "
           "that do not fit are read as training goes."),
    option("--shuffle/--no-shuffle", default=True, help="Draw the rows of a step at random."),
    seed, device, rows_as,
    option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", help="Type of weights and sums."),
    option("--reproducible", is_flag=True, help="The same model, bit for bit, on any number of ranks."),
    skip_bad_shards,
)


@click.command(cls=LongVerb)
@data_argument
@x_key
@y_key
@weight_key
@output
@option("--algorithm", type=click.Choice(ALGORITHMS), default=None,
        help="sync: every step, all ranks sum one gradient. local: average every τ steps. average: each machine alone, "
        "one example at a time, then one average. lbfgs: quasi-Newton on all rows.  [default: sync; lbfgs for smooth "
        "convex objectives with --batch-size full]")
@options(MODEL_OPTIONS, STEP_OPTIONS, LIMIT_OPTIONS, SUM_OPTIONS, OTHER_TRAINING_OPTIONS)
@options(KEEPING_OPTIONS, SURVIVAL_OPTIONS)
@option("--rebalance", is_flag=True, help="Between epochs, move rows from ranks that were slow to fast ones.")
@option("--trace", type=PATH, default=None, metavar="FILE.json",
        help="Write a timeline of every rank for chrome://tracing or ui.perfetto.dev.")
@overwrite
def train(comm: Any, console: Any, **arguments: Any) -> Any:
    """Train a model on the data set DATA, on all ranks."""
    from dml_hpc.commands import train

    return train.run(comm, console, **arguments)


@click.command(cls=RanksVerb)
@data_argument
@x_key
@y_key
@weight_key
@option("--contenders", type=Contenders("train"), default=None,
        help="What to compare: algorithms, each with options of train that differ: "
        "sync,sync:optimizer=adam:step-size=0.01.  [default: every algorithm]")
@options(MODEL_OPTIONS, LIMIT_OPTIONS, SUM_OPTIONS, OTHER_TRAINING_OPTIONS)
@option("-o", "--plot", type=PATH, default=None, metavar="FILE", help="Draw loss against time into FILE.png or .svg.")
@overwrite
def compare(comm: Any, console: Any, **arguments: Any) -> Any:
    """Train on DATA in several ways, each for the same --time-budget (or --epochs), and tell which came furthest."""
    from dml_hpc.commands import compare

    return compare.run(comm, console, **arguments)


@click.command(cls=RanksVerb)
@click.argument("model", type=PATH)
@data_argument
@x_key
@y_key
@weight_key
def evaluate(comm: Any, console: Any, **arguments: Any) -> Any:
    """How good MODEL is on the data set DATA."""
    from dml_hpc.commands import evaluate

    return evaluate.run(comm, console, **arguments)


@click.command(cls=RanksVerb)
@click.argument("model", type=PATH)
@data_argument
@x_key
@y_key
@output
@overwrite
def predict(comm: Any, console: Any, **arguments: Any) -> Any:
    """MODEL's prediction for every row of DATA, into an HDF5 file."""
    from dml_hpc.commands import predict

    return predict.run(comm, console, **arguments)
