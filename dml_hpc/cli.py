"""The verbs and what each accepts: options to arguments of the command's ``run``, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dml_hpc import __version__
from dml_hpc.comm import ALLREDUCES, COMPRESSIONS, REDUCERS
from dml_hpc.objectives import OBJECTIVES
from dml_hpc.optim import SCHEDULES
from dml_hpc.parameters import BatchSize, Finite, Names, Sizes
from dml_hpc.trainers import ALGORITHMS
from dml_hpc.verb import RanksVerb, Verb, option, run

PATH = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)
NOT_NEGATIVE = Finite(min=0)
output = option("-o", "--output", type=PATH, required=True, metavar="PATH", help="Where the result goes.")
overwrite = option("--overwrite", is_flag=True, help="Replace what is at the output.")


def allreduce(default: str) -> Any:
    """Return the option that says how vectors are summed."""
    return option("--allreduce", type=click.Choice(ALLREDUCES), default=default,
                  help="How vectors are summed; auto measures and takes the fastest.")


tuning = option("--tuning", type=PATH, default=None, metavar="FILE",
                help="Keep what auto measured in FILE, and take it from there next time.")
fan_in = option("--fan-in", type=POSITIVE, default=2, help="Children of a rank in the tree all-reduce.")
seed = option("--seed", type=click.IntRange(min=0), default=0, help="Seed of everything random.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
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


@data.command("import", cls=Verb)
@click.argument("sources", nargs=-1, required=True, type=PATH)
@output
@option("--label", required=True, metavar="COLUMN", help="The column to predict; rows without it are dropped.")
@option("--categorical", type=Names(), default=(), help="Columns to one-hot encode.")
@option("--numeric", type=Names(), default=(), help="Columns of numbers. With neither this nor --categorical: "
        "all columns, text one-hot.")
@option("--drop", type=Names(), default=(), help="Columns to leave out.")
@option("--holdout", type=Finite(0, 1, max_open=True), default=0.0, metavar="SHARE",
        help="Put this share of the rows in OUTPUT/test, the rest in OUTPUT/train.")
@seed
@option("--shards", type=POSITIVE, default=8, help="Files a data set.")
@option("--dtype", type=click.Choice(["float16", "float32", "float64"]), default="float32",
        help="Storage of features.")
@option("--like", type=PATH, default=None, metavar="DATASET", help="Encode as this data set was: same features.")
@overwrite
def data_import(console: Any, **arguments: Any) -> Any:
    """Import CSV (.csv, .csv.gz, .csv.zip) or Parquet tables into HDF5 shards."""
    from dml_hpc.commands import data_import

    return data_import.run(console, **arguments)


@data.command("info", cls=Verb)
@click.argument("data", type=PATH)
def data_info(console: Any, **arguments: Any) -> Any:
    """What a data set holds."""
    from dml_hpc.commands import data_info

    return data_info.run(console, **arguments)


@root.command(cls=RanksVerb)
@click.argument("data", type=PATH)
@output
@option("--objective", type=click.Choice(OBJECTIVES), default="logistic", help="What is minimised.")
@option("--algorithm", type=click.Choice(ALGORITHMS), default="sync",
        help="sync: every step, all ranks sum one gradient. average: each rank alone, then one average.")
@allreduce("auto")
@tuning
@fan_in
@option("--batch-size", type=BatchSize(), default=None, help="Rows of a step, all ranks together.  [default: 1024]")
@option("--epochs", type=POSITIVE, default=10, help="Passes over the data.")
@option("--steps", type=POSITIVE, default=None, help="Steps, instead of --epochs.")
@option("--step-size", type=Finite(min=0, min_open=True), default=None,
        help="Step size at the start.  [default: 0.1; average: 0.002]")
@option("--schedule", type=click.Choice(SCHEDULES), default=None, help="How the step size falls.  [default: cosine]")
@option("--momentum", type=Finite(0, 1, max_open=True), default=None, help="Momentum.  [default: 0.9]")
@option("--warmup", type=NOT_NEGATIVE, default=None, metavar="EPOCHS", help="Epochs over which the step size rises.")
@option("--l2", type=NOT_NEGATIVE, default=0.0, metavar="λ", help="Penalty ½λ‖w‖² on the standardised weights.")
@option("--intercept/--no-intercept", default=True, help="Learn an intercept.")
@option("--scale/--no-scale", default=True, help="Standardise numeric features (the data is not rewritten).")
@option("--shuffle/--no-shuffle", default=True, help="Draw the rows of a step at random.")
@seed
@option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", help="Type of weights and sums.")
@option("--reproducible", is_flag=True, help="The same model, bit for bit, on any number of ranks.")
@option("--compression", type=click.Choice(COMPRESSIONS), default="none",
        help="Send gradients compressed; what is lost is made up for in later steps.")
@option("--compression-ratio", type=Finite(0, 1, min_open=True), default=None, metavar="SHARE",
        help="Share of the elements that topk sends.  [default: 0.01]")
@option("--compression-rank", type=POSITIVE, default=None, metavar="N", help="Factors of powersgd.  [default: 4]")
@overwrite
def train(comm: Any, console: Any, **arguments: Any) -> Any:
    """Train a model on the data set DATA, on all ranks."""
    from dml_hpc.commands import train

    return train.run(comm, console, **arguments)


@root.command(cls=RanksVerb)
@click.argument("model", type=PATH)
@click.argument("data", type=PATH)
def evaluate(comm: Any, console: Any, **arguments: Any) -> Any:
    """How good MODEL is on the data set DATA."""
    from dml_hpc.commands import evaluate

    return evaluate.run(comm, console, **arguments)


@root.command(cls=RanksVerb)
@click.argument("model", type=PATH)
@click.argument("data", type=PATH)
@output
@overwrite
def predict(comm: Any, console: Any, **arguments: Any) -> Any:
    """MODEL's prediction for every row of DATA, into an HDF5 file."""
    from dml_hpc.commands import predict

    return predict.run(comm, console, **arguments)


@root.command(cls=RanksVerb)
@click.argument("data", type=PATH)
@output
@option("-k", "--k", "k", type=POSITIVE, required=True, metavar="N", help="Singular triplets to compute.")
@allreduce("hierarchical")
@tuning
@overwrite
def svd(comm: Any, console: Any, **arguments: Any) -> Any:
    """The K largest singular values of DATA's matrix and their vectors, each with its residual."""
    from dml_hpc.commands import svd

    return svd.run(comm, console, **arguments)


@root.group()
def bench() -> None:
    """Measure this machine and this MPI."""


@bench.command("allreduce", cls=RanksVerb)
@option("--sizes", type=Sizes(), default="1K,4K,16K,64K,256K,1M,4M,16M,64M",
        help="Bytes of the vectors; K, M and G are powers of 1024.")
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


@root.command(cls=Verb)
@click.argument("records", nargs=-1, required=True, type=PATH)
@output
@overwrite
def report(console: Any, **arguments: Any) -> Any:
    """Turn run RECORDS (--record FILE) into speed-up tables and plots: -o report.html, .png, .md or .csv."""
    from dml_hpc.commands import report

    return report.run(console, **arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run(root, arguments)
