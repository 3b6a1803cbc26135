"""``dml-hpc svd`` and ``svd-apply``."""

from __future__ import annotations

from typing import Any

import click

from dml_hpc.comm import ALLREDUCES
from dml_hpc.decomposition.svd import METHODS
from dml_hpc.parameters import Finite, GridShape, Size, Tolerance
from dml_hpc.verb import LongVerb, RanksVerb, option
from dml_hpc.verbs.shared import (
    KEEPING_OPTIONS,
    PATH,
    POSITIVE,
    SURVIVAL_OPTIONS,
    data_argument,
    device,
    options,
    output,
    overwrite,
    seed,
    skip_bad_shards,
    tuning,
    x_key,
)


@click.command(cls=LongVerb)
@data_argument
@x_key
@output
@option("-k", "--k", "k", type=POSITIVE, default=None, metavar="N", help="Singular triplets to compute; with "
        "--tolerance the most.")
@option("--tolerance", type=Tolerance(), default=None, help="As many triplets as hold this share of ‖A‖² "
        "(energy=0.95), or all with σ ≥ this times σ₁ (sigma=1e-3).")
@option("--accuracy", type=Finite(min=0, min_open=True, max=1), default=1e-5, help="Residual ‖Aᵀu − σv‖/σ₁ that "
        "every triplet is to have.")
@option("--method", type=click.Choice(["auto", *METHODS]), default="auto", help="How; auto chooses and says why.")
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


@click.command("svd-apply", cls=RanksVerb)
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
