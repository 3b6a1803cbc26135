"""The verbs and what each accepts: options to arguments of the command's ``run``, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dml_hpc import __version__
from dml_hpc.comm import ALLREDUCES, COMPRESSIONS, REDUCERS
from dml_hpc.decomposition.mf import ALGORITHMS as MF_ALGORITHMS
from dml_hpc.decomposition.mf import EPOCHS as MF_EPOCHS
from dml_hpc.decomposition.mf import SCHEDULES as MF_SCHEDULES
from dml_hpc.decomposition.mf import SOLVERS as MF_SOLVERS
from dml_hpc.decomposition.svd import METHODS as SVD_METHODS
from dml_hpc.device import DEVICES
from dml_hpc.inner import arguments_of
from dml_hpc.objectives import ACTIVATIONS, OBJECTIVES
from dml_hpc.optim import OPTIMISERS, SCHEDULES
from dml_hpc.parameters import (
    BatchSize,
    ClassWeight,
    Contenders,
    Counts,
    Finite,
    FiniteOrAuto,
    Gpus,
    GridShape,
    Interval,
    Limits,
    Names,
    Size,
    Sizes,
    Tolerance,
    WallTime,
    Widths,
)
from dml_hpc.trainers import ALGORITHMS, EXCHANGES, WEIGHTINGS
from dml_hpc.verb import LongVerb, RanksVerb, RunsVerb, SharedVerb, Verb, Verbs, option, run

PATH = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)
NOT_NEGATIVE = Finite(min=0)
output = option("-o", "--output", type=PATH, required=True, metavar="PATH", help="Where the result goes.")
overwrite = option("--overwrite", is_flag=True, help="Replace what is at the output.")


data_argument = click.argument("data", nargs=-1, required=True, type=PATH)


x_key = option("--x-key", metavar="NAME", default=None, help="The matrix's name in HDF5 files that were not imported.  "
               "[default: X]")
y_key = option("--y-key", metavar="NAME", default=None, help="The labels' name in such files.  [default: y]")


weight_key = option("--weight-key", metavar="NAME", default=None, help="The name of the rows' weights in such files.  "
                    "[default: 1 each]")


SHARD_COMPRESSIONS = ("none", "gzip", "lzf", "blosc2", "zstd")
"""As `dml_hpc.data.writer.COMPRESSIONS`, which would import h5py. Those of ``train`` are others, hence the variable."""
kept_compression = option("--compression", type=click.Choice(SHARD_COMPRESSIONS), envvar="DML_HPC_SHARD_COMPRESSION",
        default=None,
                          help="Compress the shards.  [default: as DATA is]")


def allreduce(default: str) -> Any:
    """Return the option that says how vectors are summed."""
    return option("--allreduce", type=click.Choice(ALLREDUCES), default=default,
                  help="How vectors are summed; auto measures and takes the fastest.")


tuning = option("--tuning", type=PATH, default=None, metavar="FILE",
                help="Keep what auto measured in FILE, and take it from there next time.")
fan_in = option("--fan-in", type=POSITIVE, default=2, help="Children of a rank in the tree all-reduce.")
device = option("--device", type=click.Choice(DEVICES), default="cpu",
                help="Where ranks compute: on the CPU, or each on a GPU of its node, which several may share.")
rows_as = option("--rows-as", type=click.Choice(["float16", "bfloat16"]), default=None,
                 help="cuda: keep dense float32 rows in 16 bits on the GPU: half the memory, half the bytes a pass.  "
                 "[default: as stored]")
skip_bad_shards = option("--skip-bad-shards", is_flag=True, help="Leave out shards that are missing or damaged at the "
                         "start, and in train those that turn unreadable, and count their rows, instead of ending.")
seed = option("--seed", type=click.IntRange(min=0), default=0, help="Seed of everything random.")


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dml-hpc")
def root() -> None:
    """Train and factorise over MPI: HDF5 shards in, a model and an honest scaling report out.

    Start verbs that use ranks under a launcher: mpirun -n 4 dml-hpc train …
    """


@root.command(cls=Verb)
def doctor(console: Any) -> Any:
    """What works here, what does not, and the line that mends it."""
    from dml_hpc.commands import doctor

    return doctor.run(console)


@root.group()
def data() -> None:
    """Make and look at data sets: folders of HDF5 shards."""


grid = option("--grid", type=GridShape("UxI", "blocks"), default=None, envvar="DML_HPC_RATINGS_GRID",
              help="ratings: stripes of users and of items that they are cut into.  [default: 16x32; fewer of few]")


@data.command("import", cls=SharedVerb)
@click.argument("sources", nargs=-1, required=True)
@output
@option("--user", default=None, metavar="COLUMN", help="ratings: who rated. With --item, SOURCES hold ratings.")
@option("--item", default=None, metavar="COLUMN", help="ratings: what was rated.")
@option("--rating", default=None, metavar="COLUMN", help="ratings: how.  [default: 1 each]")
@option("--time", default=None, metavar="COLUMN", help="ratings: when, a whole number or a date.")
@grid
@option("--duplicates", type=click.Choice(["last", "mean", "refuse"]), default=None,
        help="ratings: what counts where a user has rated an item more than once.  [default: last, by time if there is "
        "one]")
@option("--range", "limits", type=Limits(), default=None, help="ratings: refuse others.")
@option("--text-ids", is_flag=True, help="ratings: ids are text, also where they look like whole numbers.")
@option("--label", default=None, metavar="COLUMN",
        help="The column to predict (tables need it; rows without a value are dropped), or a file of labels (.npy).")
@option("--weight", default=None, metavar="COLUMN",
        help="What each row counts: a column of a table, which is then no feature, or a file of weights (.npy).")
@option("--categorical", type=Names(), default=(), help="Columns to one-hot encode.")
@option("--numeric", type=Names(), default=(), help="Columns of numbers. With neither these, --categorical nor --text: "
        "all columns, text one-hot.")
@option("--text", type=Names(), default=(), help="Columns of text, whose words are counted; needs --hash-bits.")
@option("--drop", type=Names(), default=(), help="Columns to leave out.")
@option("--hash-bits", type=click.IntRange(1, 30), default=None, metavar="B",
        help="Hash features to 2^B: for more categories or words than can be listed.")
@x_key
@y_key
@weight_key
@option("--features", type=POSITIVE, default=None, metavar="N", help="LIBSVM: there are at least so many features.")
@option("--holdout", type=Finite(0, 1, max_open=True), default=0.0, metavar="SHARE",
        help="Put this share of the rows in OUTPUT/test, the rest in OUTPUT/train.")
@seed
@option("--shuffle/--no-shuffle", default=False, help="Store the rows in random order.")
@option("--shards", type=POSITIVE, default=8, help="Files a data set.")
@option("--dtype", type=click.Choice(["float16", "float32", "float64"]), default="float32",
        help="Storage of features.")
@option("--layout", type=click.Choice(["auto", "dense", "csr"]), default="auto",
        help="Storage of rows: csr keeps what is not zero; auto takes it for LIBSVM files and --hash-bits.")
@option("--compression", type=click.Choice(SHARD_COMPRESSIONS), envvar="DML_HPC_SHARD_COMPRESSION",
        default="none",
        help="Compress the shards.")
@option("--like", type=PATH, default=None, metavar="DATASET", help="Encode as this data set was: same features.")
@overwrite
def data_import(comm: Any, console: Any, **arguments: Any) -> Any:
    """Import tables (.csv, .csv.gz, .csv.zip, .parquet), LIBSVM, .npy, .npz or HDF5 files into HDF5 shards.

    With --user and --item they are ratings, for mf.

    SOURCES are files or quoted patterns: 'data/*.csv'. All ranks share the work when there are several.
    """
    from dml_hpc.commands import data_import

    return data_import.run(comm, console, **arguments)


@data.command("synth", cls=SharedVerb)
@click.argument("kind", type=click.Choice(["regression", "binary", "multiclass", "sparse-binary", "lowrank",
                                           "ratings"]))
@output
@option("--rows", type=POSITIVE, required=True, metavar="N", help="Rows, or ratings.")
@option("--features", type=POSITIVE, default=None, metavar="N", help="Features (not for ratings).")
@option("--noise", type=NOT_NEGATIVE, default=None, metavar="σ",
        help="Deviation of the noise: regression, ratings [default: 0.1], lowrank [default: 0].")
@option("-k", "--k", "k", type=POSITIVE, default=None, metavar="N", help="Rank: lowrank, ratings.  [default: 10]")
@option("--classes", type=click.IntRange(min=2), default=None, metavar="N", help="For multiclass.  [default: 10]")
@option("--row-entries", type=Finite(min=1), default=None, metavar="N",
        help="Entries that a row has on average: sparse-binary.  [default: 32]")
@option("--density", type=Finite(0, 1, min_open=True), default=None, metavar="SHARE",
        help="The same as a share of the features.")
@option("--users", type=POSITIVE, default=None, metavar="N", help="For ratings.")
@option("--items", type=POSITIVE, default=None, metavar="N", help="For ratings.")
@grid
@option("--holdout", type=Finite(0, 1, max_open=True), default=0.0, metavar="SHARE",
        help="Put this share of the rows in OUTPUT/test, the rest in OUTPUT/train.")
@seed
@option("--shards", type=POSITIVE, default=8, help="Files a data set.")
@option("--dtype", type=click.Choice(["float16", "float32", "float64"]), default="float32",
        help="Storage of features.")
@option("--compression", type=click.Choice(SHARD_COMPRESSIONS), envvar="DML_HPC_SHARD_COMPRESSION",
        default="none",
        help="Compress the shards.")
@overwrite
def data_synth(comm: Any, console: Any, **arguments: Any) -> Any:
    """Make a data set whose true answer is known (OUTPUT/truth.h5), of any size, on all ranks."""
    from dml_hpc.commands import data_synth

    return data_synth.run(comm, console, **arguments)


@data.command("info", cls=Verb)
@data_argument
@x_key
@y_key
@weight_key
def data_info(console: Any, **arguments: Any) -> Any:
    """What a data set holds."""
    from dml_hpc.commands import data_info

    return data_info.run(console, **arguments)


@data.command("verify", cls=SharedVerb)
@data_argument
@x_key
@y_key
@weight_key
def data_verify(comm: Any, console: Any, **arguments: Any) -> Any:
    """Every byte of data sets or HDF5 files: are they whole, and what their manifests say?"""
    from dml_hpc.commands import data_verify

    return data_verify.run(comm, console, **arguments)


@data.command("split", cls=SharedVerb)
@data_argument
@output
@option("--holdout", type=Finite(0, 1, min_open=True, max_open=True), default=None, metavar="SHARE",
        help="Put this share of the rows in OUTPUT/test, the rest in OUTPUT/train.")
@option("--by", type=click.Choice(["time", "last"]), default=None,
        help="ratings: hold out the latest ones (time), or every user's last (last, without --holdout).  [default: at "
        "random]")
@option("--stratify", is_flag=True, help="Hold out this share of the rows of every label value.")
@option("--shuffle", is_flag=True, help="Store the rows in random order.")
@seed
@option("--shards", type=POSITIVE, default=None, help="Files of each part.  [default: as many as DATA has]")
@kept_compression
@x_key
@y_key
@weight_key
@overwrite
def data_split(comm: Any, console: Any, **arguments: Any) -> Any:
    """Split DATA into a training part and one held out, on all ranks."""
    from dml_hpc.commands import data_split

    return data_split.run(comm, console, **arguments)


@data.command("merge", cls=SharedVerb)
@data_argument
@output
@option("--shards", type=POSITIVE, default=None, help="Files of the result.  [default: as many as DATA has]")
@option("--dtype", type=click.Choice(["float16", "float32", "float64"]), default=None,
        help="Storage of features.  [default: the widest there is]")
@kept_compression
@option("--shuffle", is_flag=True, help="Store the rows in random order.")
@seed
@x_key
@y_key
@weight_key
@overwrite
def data_merge(comm: Any, console: Any, **arguments: Any) -> Any:
    """Make one data set of several of the same features, or cut one into other shards, on all ranks."""
    from dml_hpc.commands import data_merge

    return data_merge.run(comm, console, **arguments)


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
    allreduce("auto"), tuning, fan_in,
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


KEEPING_OPTIONS = (
    option("--checkpoint", type=PATH, default=None, metavar="DIR", help="Write checkpoints to the folder DIR."),
    option("--checkpoint-every", type=Interval(), default=None, metavar="60s|10m|500steps",
           help="How often.  [default: 60s]"),
    option("--keep", type=POSITIVE, default=None, metavar="N", help="How many checkpoints stay, the newest.  "
           "[default: 3]"),
    option("--resume", is_flag=True, help="Go on from the newest checkpoint that is whole, if there is one; with any "
           "number of ranks."),
)
SURVIVAL_OPTIONS = (
    option("--elastic", is_flag=True, help="When ranks die, the others go on: under Open MPI's mpirun --with-ft ulfm."),
    option("--min-ranks", type=POSITIVE, default=None, metavar="N", help="elastic: give up when fewer are left.  "
           "[default: 1]"),
)


def options(*groups: tuple[Any, ...]) -> Any:
    """Return a decorator that adds options in their order."""
    def add(function: Any) -> Any:
        for one in reversed([one for group in groups for one in group]):
            function = one(function)
        return function

    return add


@root.command(cls=LongVerb)
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


@root.command(cls=RanksVerb)
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


@root.command(cls=RanksVerb)
@click.argument("model", type=PATH)
@data_argument
@x_key
@y_key
@weight_key
def evaluate(comm: Any, console: Any, **arguments: Any) -> Any:
    """How good MODEL is on the data set DATA."""
    from dml_hpc.commands import evaluate

    return evaluate.run(comm, console, **arguments)


@root.command(cls=RanksVerb)
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


@root.command(cls=LongVerb)
@data_argument
@x_key
@output
@option("-k", "--k", "k", type=POSITIVE, default=None, metavar="N", help="Singular triplets to compute; with "
        "--tolerance the most.")
@option("--tolerance", type=Tolerance(), default=None, help="As many triplets as hold this share of ‖A‖² "
        "(energy=0.95), or all with σ ≥ this times σ₁ (sigma=1e-3).")
@option("--accuracy", type=Finite(min=0, min_open=True, max=1), default=1e-5, help="Residual ‖Aᵀu − σv‖/σ₁ that "
        "every triplet is to have.")
@option("--method", type=click.Choice(["auto", *SVD_METHODS]), default="auto", help="How; auto chooses and says why.")
@option("--grid", type=GridShape(), default=None, help="Ranks in a grid of blocks, for --method randomized.  "
        "[default: what moves least]")
@option("--center", is_flag=True, help="Take its mean off every column: principal components.")
@option("--scale", is_flag=True, help="Divide every column by its deviation.")
@option("--left", type=PATH, default=None, metavar="DIR", help="Write the left singular vectors as a data set, row by "
        "row.")
@option("--plot", type=PATH, default=None, metavar="FILE", help="Draw the singular values into FILE.png or .svg.")
@option("--memory-limit", type=Size(), default=None, help="Memory that a rank may take in all, such as 2G; rows that "
        "do not fit are read again in each pass.")
@option("--reproducible", is_flag=True, help="The same factors, bit for bit, on any number of ranks.")
@skip_bad_shards
@seed
@device
@option("--allreduce", type=click.Choice(ALLREDUCES), default=None, help="How vectors are summed; auto measures and "
        "takes the fastest.  [default: hierarchical for sparse rows, else mpi]")
@tuning
@options(KEEPING_OPTIONS, SURVIVAL_OPTIONS)
@overwrite
def svd(comm: Any, console: Any, **arguments: Any) -> Any:
    """The largest singular values of DATA's matrix and their vectors, each with its residual."""
    from dml_hpc.commands import svd

    return svd.run(comm, console, **arguments)


@root.command("svd-apply", cls=RanksVerb)
@click.argument("factors", type=PATH)
@data_argument
@x_key
@option("--y-key", metavar="NAME", default=None, help="The labels' name in such files.  [default: labels are 0]")
@output
@option("--scores", is_flag=True, help="Coordinates times singular values: A·V, the principal component scores.")
@overwrite
def svd_apply(comm: Any, console: Any, **arguments: Any) -> Any:
    """DATA's rows in the coordinates of the singular vectors in FACTORS, A·V/σ, as a data set.

    FACTORS is what svd wrote, of any data set with the same features.
    """
    from dml_hpc.commands import svd_apply

    return svd_apply.run(comm, console, **arguments)


@root.command(cls=LongVerb)
@click.argument("ratings", type=PATH)
@output
@option("-k", "--k", "k", type=click.IntRange(1, 4096), default=32, metavar="N", help="Factors of a user and of an "
        "item.")
@option("--algorithm", type=click.Choice(MF_ALGORITHMS), default="sgd", envvar="DML_HPC_MF_ALGORITHM",
        help="sgd: stratified stochastic gradient descent, item factors travel round the ranks; als: alternating "
        "least squares, users and items are solved for in turn.")
@option("--l2", type=FiniteOrAuto(min=0), default=None, metavar="λ|auto", help="Penalty λ(‖p‖² + ‖q‖² + b² + c²) a "
        "rating; with --implicit λ‖p‖² a user and λ‖q‖² an item; auto, for als: found from the ratings.  [default: "
        "sgd: 0.02, als: auto; --implicit: 0.1]")
@option("--biases/--no-biases", default=None, help="Learn what is particular to a user, or to an item, alone.  "
        "[default: --biases; --implicit has none]")
@option("--implicit", is_flag=True, help="als: ratings count how often something was done, 0 where there are none; "
        "predicted is whether it is.")
@option("--alpha", type=Finite(min=0, min_open=True), default=None, help="With --implicit: a pair counts 1 + α·rating "
        "times.  [default: 40]")
@option("--solver", type=click.Choice(MF_SOLVERS), default=None, envvar="DML_HPC_MF_SOLVER", help="als: solve for a "
        "row exactly, or take 3 steps of conjugate gradients from where it is.  [default: cholesky; --implicit: cg]")
@option("--schedule", type=click.Choice(MF_SCHEDULES), default=None, envvar="DML_HPC_MF_SCHEDULE",
        help="sgd: how step sizes change; adagrad's fall for each row by itself.  [default: adagrad]")
@option("--step-size", type=Finite(min=0, min_open=True), default=None, help="sgd: step size at the start, for "
        "ratings divided by their deviation.  [default: 0.1; cosine, inverse-time: 0.05; constant, bold-driver: 0.02]")
@option("--epochs", type=POSITIVE, default=None, help="Passes over the ratings.  "
        f"[default: {MF_EPOCHS['sgd']}, als: {MF_EPOCHS['als']}; with --time-budget no limit]")
@option("--time-budget", type=Finite(min=0, min_open=True), default=None, metavar="SECONDS", help="Stop after the "
        "first epoch that ends later than this.")
@option("--tolerance", type=NOT_NEGATIVE, default=None, metavar="SHARE", help="Stop when an epoch lowers the RMSE "
        "of --test, else the objective (als) or training RMSE (sgd), by less than this share of it.  [default: never]")
@option("--test", type=PATH, default=None, metavar="RATINGS", help="Tell the RMSE of these ratings, too, after "
        "every epoch; their users and items are matched by their ids.")
@option("--factors", type=click.Choice(["float32", "float16"]), default=None, help="sgd: type in which factors are "
        "kept and sent; sums are float32.  [default: float32]")
@option("--threads", type=POSITIVE, default=None, metavar="N", help="Blocks, or rows, that a rank works on at a time.  "
        "[default: OMP_NUM_THREADS, or the rank's share of the cores]")
@option("--memory-limit", type=Size(), default=None, help="Memory that a rank may take in all, such as 2G; compressed "
        "ratings that do not fit are read again in each pass.")
@option("--reproducible", is_flag=True, help="The same factors, bit for bit, on any number of ranks, as is always so; "
        "refuses what would prevent it.")
@seed
@options(KEEPING_OPTIONS, SURVIVAL_OPTIONS)
@option("--trace", type=PATH, default=None, metavar="FILE.json",
        help="Write a timeline of every rank for chrome://tracing or ui.perfetto.dev.")
@overwrite
@device
def mf(comm: Any, console: Any, **arguments: Any) -> Any:
    """Factors of users and items whose products predict RATINGS: matrix factorisation.

    RATINGS is a data set that `data import --user … --item … --rating …` has made. See also: mf evaluate, mf recommend,
    mf similar, mf fold-in, mf export.
    """
    from dml_hpc.commands import mf

    return mf.run(comm, console, **arguments)


factors_argument = click.argument("factors", type=PATH)
top_threads = option("--threads", type=POSITIVE, default=None, metavar="N", help="Blocks that a rank works on at a "
                     "time.  [default: OMP_NUM_THREADS, or the rank's share of the cores]")
table = option("-o", "--output", type=PATH, default=None, metavar="FILE", help="Where the table goes, by its name as "
               "CSV (.csv), Parquet (.parquet) or HDF5 (.h5).  [default: printed, for up to 20]")


@root.command("mf evaluate", cls=RanksVerb)
@factors_argument
@click.argument("ratings", type=PATH)
@option("--at", type=click.IntRange(1, 10_000), default=None, metavar="N", help="Recommend N items to every user, and "
        "tell precision, recall, NDCG and MAP: how many RATINGS know of, and how far up.")
@option("--seen", type=PATH, default=None, metavar="RATINGS", help="With --at: recommend nothing that a user has rated "
        "in RATINGS, mostly those that were learnt from.")
@option("--relevant", type=Finite(), default=None, metavar="R", help="With --at: an item is relevant that got at least "
        "R.  [default: that was rated]")
@top_threads
def mf_evaluate(comm: Any, console: Any, **arguments: Any) -> Any:
    """How good FACTORS are, by RATINGS held out.

    FACTORS are what mf wrote. How far their predictions are off; with --at, how good their recommendations are.
    """
    from dml_hpc.commands import mf_evaluate

    return mf_evaluate.run(comm, console, **arguments)


def _named(ctx: click.Context, param: click.Parameter, given: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    if given and not any(given):  # an empty variable of a script is not everybody
        raise click.BadParameter("it names nothing; give an id, or leave it out", ctx, param)
    return tuple(one for several in given for one in several)


def _ids(name: str, variable: str, what: str) -> Any:
    return option(name, type=Names(), multiple=True, metavar="ID,…", envvar=f"DML_HPC_RECOMMEND_{variable}",
                  show_default=False, callback=_named,
                  help=f"{what}: ids, or @FILE, one a line. May be repeated.")


@root.command("mf recommend", cls=RanksVerb)
@factors_argument
@option("-n", "--n", "n", type=click.IntRange(1, 10_000), default=10, metavar="N", help="Items for each user.")
@_ids("--users", "USERS", "To whom, all users if not given")
@option("--users-of", type=PATH, default=None, metavar="RATINGS", help="To the users of this data set.")
@option("--seen", type=PATH, default=None, metavar="RATINGS", help="Leave out what a user has rated in RATINGS, mostly "
        "those that were learnt from.")
@_ids("--items", "ITEMS", "What may be recommended, all items if not given")
@_ids("--exclude", "EXCLUDE", "What may not be recommended")
@table
@top_threads
@overwrite
def mf_recommend(comm: Any, console: Any, **arguments: Any) -> Any:
    """The best N items for users.

    Those that FACTORS, which mf wrote, predict a user to rate highest; all items are compared.

    mpirun -n 4 dml-hpc mf recommend factors.h5 --seen ratings/train -o recommended.csv
    """
    from dml_hpc.commands import mf_recommend

    return mf_recommend.run(comm, console, **arguments)


@root.command("mf similar", cls=RanksVerb)
@factors_argument
@click.argument("ids", nargs=-1, metavar="[ID|@FILE]...")
@option("-n", "--n", "n", type=click.IntRange(1, 10_000), default=10, metavar="N", help="Neighbours of each.")
@option("--users", is_flag=True, envvar="DML_HPC_SIMILAR_USERS", help="The ids are of users, and so are the "
        "neighbours.")
@option("--all", "everything", is_flag=True, envvar="DML_HPC_SIMILAR_ALL", help="The neighbours of all.")
@table
@top_threads
@overwrite
def mf_similar(comm: Any, console: Any, **arguments: Any) -> Any:
    """The N items most like some, or users.

    Those of which the factors, in FACTORS, have the largest cosine with those of each ID.

    mpirun -n 4 dml-hpc mf similar factors.h5 --all -o neighbours.parquet
    """
    from dml_hpc.commands import mf_similar

    return mf_similar.run(comm, console, **arguments)


@root.command("mf fold-in", cls=RanksVerb)
@factors_argument
@click.argument("ratings", type=PATH)
@output
@option("--items", is_flag=True, envvar="DML_HPC_FOLD_IN_ITEMS", help="Solve for items that are new, not for users.")
@option("--update", is_flag=True, help="Solve anew for those that are known and have ratings here, too; from these "
        "ratings alone.")
@option("--threads", type=POSITIVE, default=None, metavar="N", help="Rows that a rank solves for at a time.  [default: "
        "OMP_NUM_THREADS, or the rank's share of the cores]")
@overwrite
def mf_fold_in(comm: Any, console: Any, **arguments: Any) -> Any:
    """Factors of users who came later.

    Writes FACTORS, and with them those of the users that only RATINGS know, found from their ratings of known items.
    Nothing is learnt anew: each user is one least-squares problem, with the penalty that FACTORS were learnt with.
    """
    from dml_hpc.commands import mf_fold_in

    return mf_fold_in.run(comm, console, **arguments)


@root.command("mf export", cls=Verb)
@factors_argument
@output
@option("--format", "form", type=click.Choice(["npy", "parquet"]), default="npy", envvar="DML_HPC_EXPORT_FORMAT",
        help="npy: an array a file, and the ids; parquet: a table of users and one of items.")
@overwrite
def mf_export(console: Any, **arguments: Any) -> Any:
    """FACTORS as files for other programs."""
    from dml_hpc.commands import mf_export

    return mf_export.run(console, **arguments)


@root.command(cls=Verb, context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
@option("--max-restarts", type=click.IntRange(min=0), default=3, metavar="N", help="Give up after so many.")
def supervise(console: Any, **arguments: Any) -> Any:
    """Run a COMMAND that trains with --checkpoint, and start it again, all ranks, when it dies.

    dml-hpc supervise --max-restarts 3 -- mpirun -n 4 dml-hpc train …
    """
    from dml_hpc.commands import supervise

    return supervise.run(console, **arguments)


@root.group()
def slurm() -> None:
    """Write batch scripts for Slurm, check them against the cluster, submit and follow them.

    dml-hpc slurm train --nodes 4 --time 2:00:00 --submit -- DATA -o model.h5 …
    """


SLURM_OPTIONS = (
    option("--nodes", type=POSITIVE, default=None, metavar="N", help="Nodes.  [default: 1; scaling: 2]"),
    option("--ranks-per-node", type=POSITIVE, default=None, metavar="R", help="Ranks of a node.  [default: 2; with "
           "GPUs one each]"),
    option("--cpus-per-rank", type=POSITIVE, default=None, metavar="C", help="CPUs of a rank.  [default: 1]"),
    option("--gpus-per-node", type=Gpus(), default=None, help="Compute on so many GPUs of a node (--device cuda)."),
    option("--time", type=WallTime(), default=None, metavar="TIME", help="How long it may take, such as 2:00:00, 90m, "
           "1-12:00:00; then it is saved, and goes on when its turn comes again.  [default: 1:00:00]"),
    option("--partition", metavar="NAME", default=None, help="Where.  [default: that of slurm/site.sh, else the "
           "cluster's]"),
    option("--account", metavar="NAME", default=None, help="Who pays.  [default: that of slurm/site.sh]"),
    option("--qos", metavar="NAME", default=None, help="Quality of service."),
    option("--mem", type=Size(), default=None, help="Memory of a node, such as 64G.  [default: the partition's]"),
    option("--name", metavar="NAME", default=None, help="The job's name, and its log's.  [default: dml-hpc-train …]"),
    option("--constraint", metavar="FEATURES", default=None, help="Features that nodes are to have."),
    option("--exclusive", is_flag=True, help="Share nodes with nobody."),
    option("--stage", is_flag=True, help="Copy the data to every node's own scratch first."),
    option("-o", "--output", type=PATH, default=None, metavar="FILE", envvar="DML_HPC_SCRIPT",
           help="Where the script goes.  [default: NAME.sbatch]"),
    option("--overwrite", is_flag=True, envvar="DML_HPC_OVERWRITE_SCRIPT", help="Replace what is there."),
    option("--submit", is_flag=True, help="Submit it, and print the job's number."),
    option("--watch", is_flag=True, help="Follow the job, show its log, end with its exit code; Ctrl-C stops watching, "
           "not the job."),
)
# What comes after the first argument is the job's, with or without a -- before it.
SLURM_SETTINGS = {"allow_interspersed_args": False}


@slurm.command("train", cls=Verb, context_settings=SLURM_SETTINGS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, required=True, callback=arguments_of("train"))
@options(SLURM_OPTIONS)
def slurm_train(console: Any, **arguments: Any) -> Any:
    """A batch script that trains: after -- come the ARGUMENTS of dml-hpc train."""
    return _slurm(console, "train", arguments)


@slurm.command("svd", cls=Verb, context_settings=SLURM_SETTINGS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, required=True, callback=arguments_of("svd"))
@options(SLURM_OPTIONS)
def slurm_svd(console: Any, **arguments: Any) -> Any:
    """A batch script that factorises: after -- come the ARGUMENTS of dml-hpc svd."""
    return _slurm(console, "svd", arguments)


@slurm.command("mf", cls=Verb, context_settings=SLURM_SETTINGS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, required=True, callback=arguments_of("mf"))
@options(SLURM_OPTIONS)
def slurm_mf(console: Any, **arguments: Any) -> Any:
    """A batch script that factorises ratings: after -- come the ARGUMENTS of dml-hpc mf."""
    return _slurm(console, "mf", arguments)


@slurm.command("scaling", cls=Verb, context_settings=SLURM_SETTINGS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, required=True,
                callback=arguments_of("train", "svd", "mf", "allreduce", needs_output=False))
@options(SLURM_OPTIONS)
def slurm_scaling(console: Any, **arguments: Any) -> Any:
    """A batch script that measures 1, 2, 4 … N nodes: after -- come train, svd, mf or allreduce, and ARGUMENTS."""
    return _slurm(console, "scaling", arguments)


def _slurm(console: Any, job: str, arguments: dict[str, Any]) -> Any:
    from dml_hpc.commands import slurm

    words, parsed = arguments.pop("arguments")
    return slurm.run(console, job, words, parsed, **arguments)


@slurm.command("watch", cls=Verb)
@click.argument("job_id", type=POSITIVE, metavar="JOB")
def slurm_watch(console: Any, **arguments: Any) -> Any:
    """Follow a JOB by its number: its states, its log as it grows; ends with its exit code. Ctrl-C stops watching."""
    from dml_hpc.commands import slurm

    return slurm.watch(console, **arguments)


@root.group()
def bench() -> None:
    """Measure this machine and this MPI."""


@bench.command("allreduce", cls=RanksVerb)
@option("--sizes", type=Sizes(), default="1K,4K,16K,64K,256K,1M,4M,16M,64M",
        help="Bytes of the vectors; K, M, G and T are powers of 1024.")
@option("--reducers", type=Names(ALLREDUCES), default=REDUCERS, help="Which to measure; also auto and horovod.",
        show_default=", ".join(REDUCERS))
@option("--dtypes", type=Names(("float32", "float64", "int64", "float16", "bfloat16")), default="float32",
        help="Types of element; also float64, int64, float16, bfloat16.")
@option("--compressions", type=Names(COMPRESSIONS), default="none",
        help=f"How the vector is compressed: {', '.join(COMPRESSIONS)}.")
@option("--peers", "with_peers", is_flag=True, help="Also measure the raw MPI_Allreduce, Horovod and torch's gloo.")
@option("--repeats", type=POSITIVE, default=11, help="Timed repeats; the median is reported.")
@fan_in
@option("-o", "--plot", type=PATH, default=None, metavar="FILE", help="Draw time and bandwidth into FILE.png or .svg.")
@overwrite
def bench_allreduce(comm: Any, console: Any, **arguments: Any) -> Any:
    """Time every all-reduce against the MPI library's own, and check every sum."""
    from dml_hpc.commands import bench_allreduce

    return bench_allreduce.run(comm, console, **arguments)


MEASURED = ("train", "svd", "mf", "evaluate", "predict", "allreduce")
"""Verbs that can be measured on several numbers of ranks; the last one is ``bench allreduce``."""


@bench.command("scaling", cls=RunsVerb, context_settings=SLURM_SETTINGS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, required=True,
                callback=arguments_of(*MEASURED, needs_output=False))
@option("--ranks", type=Counts(), default=None, help="Numbers of ranks.  [default, in a Slurm job: those of 1, 2, 4 … "
        "all nodes]")
@option("--repeats", type=POSITIVE, default=5, envvar="DML_HPC_SCALING_REPEATS", help="Runs on each number of ranks, "
        "in turns, after one that does not count.")
@option("--weak", is_flag=True, help="The work grows with the ranks: each has the same number of shards.")
@option("--launcher", default="auto", metavar="auto|mpirun|srun|TEMPLATE", help="What starts the ranks; or a line such "
        "as 'mpiexec -n {ranks}'.")
@option("--ranks-per-node", type=POSITIVE, default=None, metavar="R", help="Ranks of a node of a Slurm job.  "
        "[default: --ntasks-per-node]")
@option("--emulate-hosts", is_flag=True, help="Run on emulated hosts of this machine, with a network between them "
        "(needs root).")
@option("--rate", default=None, metavar="RATE", help="Their links: 1gbit, 100mbit …  [default: 1gbit]")
@option("--delay", default=None, metavar="TIME", help="What a message between them takes more: 1ms, 50us …")
@option("--ranks-per-host", type=POSITIVE, default=None, metavar="R", help="Ranks of such a host.  [default: 1]")
def bench_scaling(console: Any, **arguments: Any) -> Any:
    """Run the same job on several numbers of ranks, in turns: after -- comes train, svd … and its ARGUMENTS.

    dml-hpc bench scaling --ranks 1,2,4 -- train DATA --epochs 20
    """
    from dml_hpc.commands import bench_scaling

    words, parsed = arguments.pop("arguments")
    return bench_scaling.run(console, words, parsed, **arguments)


@root.command(cls=Verb)
@click.argument("records", nargs=-1, type=PATH)
@option("-o", "--output", type=PATH, default=None, metavar="FILE", help="Where the report goes: .html, .md, .csv or "
        ".png (the speed-ups).  [default: tables on the screen]")
@overwrite
@option("--format", "form", type=click.Choice(["html", "markdown", "png", "csv"]), default=None,
        help="The form of the report.  [default: by the output's ending]")
@option("--compare", "compared", nargs=2, type=PATH, default=None, metavar="BEFORE AFTER",
        help="Instead of RECORDS, two files of them: what got slower or faster, beyond noise.")
@option("--fail-under", type=click.FloatRange(0, 2, min_open=True), default=None, metavar="EFFICIENCY",
        help="Exit code 1 where a job's efficiency at the most ranks measured is below this, such as 0.8.")
def report(console: Any, **arguments: Any) -> Any:
    """Say from run RECORDS (--record FILE) what more ranks brought, what limits a job and what to change."""
    from dml_hpc.commands import report

    return report.run(console, **arguments)


@root.command(cls=Verb)
@click.argument("watched", type=PATH, metavar="RECORD")
@option("--once", is_flag=True, help="Show it as it is now, and end.")
def top(console: Any, **arguments: Any) -> Any:
    """Watch the run that was started with --record RECORD: how far it is, its loss, what each rank does.

    Until the run ends; q leaves before. Where stdout is no terminal, it is shown once.
    """
    from dml_hpc.commands import top

    return top.run(console, **arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run(root, arguments)
