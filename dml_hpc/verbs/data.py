"""``dml-hpc data …``: data sets."""

from __future__ import annotations

from typing import Any

import click

from dml_hpc.parameters import Finite, GridShape, Limits, Names
from dml_hpc.verb import SharedVerb, Verb, option
from dml_hpc.verbs.shared import (
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    data_argument,
    output,
    overwrite,
    seed,
    weight_key,
    x_key,
    y_key,
)

SHARD_COMPRESSIONS = ("none", "gzip", "lzf", "blosc2", "zstd")
"""As `dml_hpc.data.writer.COMPRESSIONS`, which would import h5py. Those of ``train`` are others, hence the variable."""
kept_compression = option("--compression", type=click.Choice(SHARD_COMPRESSIONS), envvar="DML_HPC_SHARD_COMPRESSION",
                          default=None, help="Compress the shards.  [default: as DATA is]")
grid = option("--grid", type=GridShape("UxI", "blocks"), default=None, envvar="DML_HPC_RATINGS_GRID",
              help="ratings: stripes of users and of items that they are cut into.  [default: 16x32; fewer of few]")


@click.group()
def data() -> None:
    """Make and look at data sets: folders of HDF5 shards."""


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
        default="none", help="Compress the shards.")
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
        default="none", help="Compress the shards.")
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
