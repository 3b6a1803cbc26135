"""``dml-hpc mf`` and what is done with its factors."""

from __future__ import annotations

from typing import Any

import click

from dml_hpc.decomposition.mf import ALGORITHMS, EPOCHS, SCHEDULES, SOLVERS
from dml_hpc.parameters import Finite, FiniteOrAuto, Names, Size
from dml_hpc.verb import LongVerb, RanksVerb, Verb, option
from dml_hpc.verbs.shared import (
    KEEPING_OPTIONS,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    SURVIVAL_OPTIONS,
    device,
    options,
    output,
    overwrite,
    seed,
)


@click.command(cls=LongVerb)
@click.argument("ratings", type=PATH)
@output
@option("-k", "--k", "k", type=click.IntRange(1, 4096), default=32, metavar="N", help="Factors of a user and of an "
        "item.")
@option("--algorithm", type=click.Choice(ALGORITHMS), default="sgd", envvar="DML_HPC_MF_ALGORITHM",
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
@option("--solver", type=click.Choice(SOLVERS), default=None, envvar="DML_HPC_MF_SOLVER", help="als: solve for a "
        "row exactly, or take 3 steps of conjugate gradients from where it is.  [default: cholesky; --implicit: cg]")
@option("--schedule", type=click.Choice(SCHEDULES), default=None, envvar="DML_HPC_MF_SCHEDULE",
        help="sgd: how step sizes change; adagrad's fall for each row by itself.  [default: adagrad]")
@option("--step-size", type=Finite(min=0, min_open=True), default=None, help="sgd: step size at the start, for "
        "ratings divided by their deviation.  [default: 0.1; cosine, inverse-time: 0.05; constant, bold-driver: 0.02]")
@option("--epochs", type=POSITIVE, default=None, help="Passes over the ratings.  "
        f"[default: {EPOCHS['sgd']}, als: {EPOCHS['als']}; with --time-budget no limit]")
@option("--time-budget", type=Finite(min=0, min_open=True), default=None, metavar="SECONDS", help="Stop after the "
        "first epoch that ends later than this.")
@option("--tolerance", type=NOT_NEGATIVE, default=None, metavar="SHARE", help="Stop when an epoch lowers the RMSE "
        "of --test, else the objective (als with --l2 NUMBER) or training RMSE (sgd), by less than this share of it.  "
        "[default: never]")
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


@click.command("mf evaluate", cls=RanksVerb)
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


@click.command("mf recommend", cls=RanksVerb)
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


@click.command("mf similar", cls=RanksVerb)
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


@click.command("mf fold-in", cls=RanksVerb)
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


@click.command("mf export", cls=Verb)
@factors_argument
@output
@option("--format", "form", type=click.Choice(["npy", "parquet"]), default="npy", envvar="DML_HPC_EXPORT_FORMAT",
        help="npy: an array a file, and the ids; parquet: a table of users and one of items.")
@overwrite
def mf_export(console: Any, **arguments: Any) -> Any:
    """FACTORS as files for other programs."""
    from dml_hpc.commands import mf_export

    return mf_export.run(console, **arguments)
