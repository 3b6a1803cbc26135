"""What the verbs under ``data`` do with ratings: import and split them, and say how they are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.console import Console
from dml_hpc.errors import UserError
from dml_hpc.mpi import Alone, agreed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.data.manifest import Manifest

ROLES = ("user", "item", "rating", "time")
RATINGS_ONLY = (*ROLES, "grid", "duplicates", "limits", "text_ids")
OPTIONS = {"limits": "range"}
"""What an argument is called on the command line, where it is called otherwise."""
HEAVY = 1.5
"""A stripe of so many times the mean is told: who works on it has more to do than others."""


def of_ratings(given: Mapping[str, Any], rows_only: Mapping[str, Any]) -> bool:
    """Say whether an import is of ratings; raises `UserError` for options that do not go together.

    ``given`` are those of the options `RATINGS_ONLY` that there are, and ``rows_only`` those that ratings do not take
    with their defaults, as (value, default) pairs.
    """
    named = [name for name in RATINGS_ONLY if given.get(name) not in (None, False)]
    if not named:
        return False
    if given.get("user") is None or given.get("item") is None:
        raise UserError(f"{_option(named[0])} is for ratings: give --user and --item, who rated and what")
    for name, (value, default) in rows_only.items():
        if value != default:
            raise UserError(f"{_option(name)} is not for ratings (--user, --item); leave it out")
    return True


def _option(name: str) -> str:
    return "--" + OPTIONS.get(name, name).replace("_", "-")


def run_import(comm: Intracomm | Alone, console: Console, *, sources: Sequence[str], output: Path, user: str, item: str,
               rating: str | None, weight: str | None, time: str | None, grid: tuple[int, int] | None,
               duplicates: str | None, limits: tuple[float, float] | None, text_ids: bool, holdout: float, seed: int,
               shards: int, compression: str | None) -> dict[str, Any]:
    """Import ratings into the folder ``output``; see `import_ratings` for the arguments and the result."""
    from dml_hpc.data.ratings.columns import Roles
    from dml_hpc.data.ratings.importing import Settings, import_ratings

    result = import_ratings(
        comm, sources, output, Roles(user, item, rating, weight, time), text_ids=text_ids, limits=limits,
        settings=Settings(grid, duplicates or "last", holdout, seed, shards, compression), console=console)
    gone = result["duplicates"]
    what = {"mean": "merged into the mean of their pair"}.get(duplicates or "last", "of a pair rated again later")
    console.say(f"read {result['rows_read']:,} ratings of {result['items']:,} items by {result['users']:,} users"
                + (f", dropped {gone:,} {what}" if gone else ""))
    parts = {"train": result["train_rows"], "test": result["test_rows"]} if holdout else {"": result["rows"]}
    for part, rows in parts.items():
        say_written(console, output / part, rows, result)
    for role in ("user", "item"):
        heavy = result[f"heaviest_{role}_stripe"]
        if heavy > HEAVY:
            name, count = result[f"top_{role}"]
            console.say(f"{role} '{name}' has {count:,} ratings, so one stripe of {role}s holds {heavy:.2g} times the "
                        "mean: ranks will wait for whoever has it")
    console.say(f"took {result['work_s']:.1f} s")
    return result


def say_written(console: Console, folder: Path, rows: int, result: Mapping[str, Any]) -> None:
    """Say what was written to a folder."""
    files = "1 shard" if result["shards"] == 1 else f"{result['shards']} shards"
    grid = result["grid"]
    console.say(f"{folder}: {rows:,} ratings in {grid[0]} × {grid[1]} blocks, {files}")


def run_split(comm: Intracomm | Alone, console: Console, data: Path, output: Path, *, by: str | None,
              holdout: float | None, seed: int, shards: int | None, compression: str | None,
              rows_only: Mapping[str, Any]) -> dict[str, Any]:
    """Split the ratings ``data`` into ``output/train`` and ``output/test``; see `split_ratings`."""
    from dml_hpc.commands.rewriting import chosen
    from dml_hpc.data.ratings.opened import open_ratings
    from dml_hpc.data.ratings.splitting import split_ratings

    with agreed(comm):
        for name, value in rows_only.items():
            if value:
                raise UserError(f"{_option(name)} is not for ratings, which {data} holds; leave it out")
        if by == "last" and holdout is not None:
            raise UserError("--by last holds out one rating of every user; leave out --holdout")
        if by != "last" and holdout is None:
            raise UserError("--holdout is needed: the share of the ratings to hold out")
    ratings = open_ratings(comm, data)
    manifest = ratings.dataset.manifest
    result = split_ratings(comm, ratings, output, by=by or "share", holdout=holdout, seed=seed,
                           shards=shards or len(manifest.shards), compression=chosen(compression, manifest.compression),
                           console=console)
    for part in ("train", "test"):
        say_written(console, output / part, result[f"{part}_rows"], result)
    return result


def say_grid(console: Console, manifest: Manifest) -> dict[str, Any]:
    """Say how ratings are cut; return ``shape``, ``mean``, ``lowest``, ``highest``, ``timed`` and the counts' range."""
    import numpy as np

    from dml_hpc.data.ratings.blocks import grid_of

    assert manifest.grid is not None
    grid = grid_of(manifest.grid)
    stripes = [grid.counts.sum(axis=axis) for axis in (1, 0)]
    heavy = [float(counts.max() / max(counts.mean(), 1e-300)) for counts in stripes]
    low, high = int(grid.counts.min()), int(grid.counts.max())
    console.say(f"{grid.shape[0]} × {grid.shape[1]} blocks of {low:,} to {high:,} ratings; the heaviest stripe of "
                f"users holds {heavy[0]:.3g} times the mean, of items {heavy[1]:.3g}")
    console.say(f"ratings from {grid.lowest:g} to {grid.highest:g}, mean {grid.mean:.6g}; "
                f"{'with' if manifest.grid['timed'] else 'without'} times")
    return {"shape": list(grid.shape), "mean": grid.mean, "lowest": grid.lowest, "highest": grid.highest,
            "timed": manifest.grid["timed"], "smallest_block": low, "largest_block": high,
            "empty_blocks": int(np.count_nonzero(grid.counts == 0)), "heaviest_user_stripe": round(heavy[0], 4),
            "heaviest_item_stripe": round(heavy[1], 4)}
