"""Split ratings into those to learn from and those held out, or take those of some users; blocks stay as they are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.console import Console
from dml_hpc.data.ratings.build import Cut, Form, Parts, write_ratings
from dml_hpc.data.ratings.holding import held_last, held_share, held_since
from dml_hpc.data.ratings.opened import StoredRatings
from dml_hpc.data.ratings.stripes import Stripe
from dml_hpc.errors import UserError
from dml_hpc.layout import split
from dml_hpc.mpi import Alone, agreed, on_root, shared_folder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

WAYS = ("share", "time", "last")
DIGIT_BITS = 16


def split_ratings(comm: Intracomm | Alone, ratings: StoredRatings, output: Path, *, by: str, holdout: float | None,
                  seed: int, shards: int, compression: str | None, console: Console) -> dict[str, Any]:
    """Collective: write some ratings to ``output/test``, the others to ``output/train``.

    ``by`` "share" holds out the share ``holdout`` of the pairs at random, "time" that share or a little less, the
    latest (ratings of one time stay together), "last" the latest rating of every user who has more than one. The same
    on any number of ranks. Returns ``rows``, ``users``, ``items``, ``features``, ``kind``, ``by``, ``grid``,
    ``shards``, ``train_rows``, ``test_rows``, ``compression``, ``output`` and ``work_s``. Raises `AgreedError`.
    """
    started = time.perf_counter()
    grid = ratings.grid
    with agreed(comm):
        if by != "share" and not ratings.timed:
            raise UserError(f"{ratings.path} has no times, which --by {by} needs; import it with --time COLUMN")
    cut: Cut = on_root(comm, lambda: Cut(grid.user_bounds, grid.item_bounds, ratings.user_ids(), ratings.item_ids()))
    if by == "share":
        assert holdout is not None
        held = held_share(cut, holdout, seed, grid.ratings)
    elif by == "time":
        assert holdout is not None
        held = held_since(first_held(comm, ratings, holdout))
    else:
        held = held_last
    manifest = ratings.dataset.manifest
    source = {**manifest.source, "split_of": str(ratings.path), "by": by, "holdout": holdout, "split_seed": seed}
    form = Form(manifest.label.name, ratings.weighted, ratings.timed, shards, compression, source)
    bar = console.bar(grid.ratings // comm.size, "writing")
    with shared_folder(comm, output) as folder:
        manifests, _ = write_ratings(comm, folder, Parts(lambda u: stripe_of(ratings, u), held), cut, form, bar)
    bar.close()
    return {"rows": grid.ratings, "users": grid.users, "items": grid.items, "features": grid.items, "kind": "ratings",
            "by": by, "grid": list(grid.shape), "shards": len(manifests["train"].shards),
            "train_rows": manifests["train"].rows,
            "test_rows": manifests["test"].rows, "compression": compression, "output": str(output),
            "work_s": round(time.perf_counter() - started, 6)}


def write_first(ratings: StoredRatings, output: Path, stripes: int) -> None:
    """Write the ratings of the first ``stripes`` stripes of users, with these users and all items, to a folder.

    What is left is cut as it was: blocks are copied as they are. Not collective. Raises `UserError`, or `AgreedError`.
    """
    grid, manifest = ratings.grid, ratings.dataset.manifest
    bounds = grid.user_bounds[:stripes + 1]
    cut = Cut(bounds, grid.item_bounds, ratings.user_ids()[:int(bounds[-1])], ratings.item_ids())
    form = Form(manifest.label.name, ratings.weighted, ratings.timed, min(len(manifest.shards), stripes),
                manifest.compression, {**manifest.source, "first_stripes": stripes})
    write_ratings(Alone(), output, Parts(lambda u: stripe_of(ratings, u)), cut, form)


def stripe_of(ratings: StoredRatings, u: int) -> Stripe:
    """Return all blocks of a stripe of users, one after the other."""
    items = range(ratings.grid.shape[1])
    blocks = [ratings.block(u, i) for i in items]
    users, own, given = (np.concatenate(some) for some in list(zip(*blocks, strict=True))[:3])
    weights = np.concatenate([block.weights for block in blocks]) if ratings.weighted else None
    times = np.concatenate([ratings.times(u, i) for i in items]) if ratings.timed else None
    return Stripe(users, own, given, weights, times, ratings.grid.counts[u])


def first_held(comm: Intracomm | Alone, ratings: StoredRatings, share: float) -> int:
    """Collective: return the earliest time since which at most ``share`` of the ratings were given.

    The time before it is found digit by digit, by counting, as all times need not fit in memory. Raises `AgreedError`
    when no rating would be held out.
    """
    held = int(share * ratings.grid.ratings)
    wanted = ratings.grid.ratings - held - 1  # so many are before the latest that is not held out
    own = range(*split(ratings.grid.shape[0], comm.size, comm.rank))
    known = np.uint64(0)  # the digits found so far
    for shift in range(64 - DIGIT_BITS, -1, -DIGIT_BITS):
        counts = np.zeros(1 << DIGIT_BITS, np.int64)
        with agreed(comm):
            for u in own:
                for i in range(ratings.grid.shape[1]):
                    times = ratings.times(u, i)
                    assert times is not None
                    # With the sign turned, whole numbers rise as unsigned ones do.
                    bits = np.ascontiguousarray(times).view(np.uint64) ^ np.uint64(1 << 63)
                    if shift + DIGIT_BITS < 64:
                        above = np.uint64(shift + DIGIT_BITS)
                        bits = bits[bits >> above == known >> above]
                    digits = (bits >> np.uint64(shift)) & np.uint64((1 << DIGIT_BITS) - 1)
                    counts += np.bincount(digits.astype(np.int64), minlength=len(counts))
        before = np.cumsum(comm.allreduce(counts))
        digit = int(np.searchsorted(before, wanted, side="right"))
        wanted -= int(before[digit - 1]) if digit else 0
        known |= np.uint64(digit) << np.uint64(shift)
    latest = int((known ^ np.uint64(1 << 63)).astype(np.int64))
    with agreed(comm):
        if latest == np.iinfo(np.int64).max:
            raise UserError("so many ratings have the latest time that none can be held out; choose another --holdout, "
                            "or another way than --by time")
    return latest + 1
