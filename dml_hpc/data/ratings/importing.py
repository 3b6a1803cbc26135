"""Import ratings: files of users, items and what they gave become a data set cut into a grid of blocks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dml_hpc.console import Console
from dml_hpc.data.manifest import Manifest
from dml_hpc.data.ratings.blocks import MOST_BLOCKS, grid_shape
from dml_hpc.data.ratings.build import Cut, Form, Parts, check_room, write_ratings
from dml_hpc.data.ratings.columns import Roles, Wanted, wanted
from dml_hpc.data.ratings.cutting import ITEMS, USERS, numbering
from dml_hpc.data.ratings.holding import held_share
from dml_hpc.data.ratings.source import RatingSource
from dml_hpc.data.ratings.stripes import DUPLICATES, DuplicateError, Numbers, spread
from dml_hpc.data.ratings.tables import spooled
from dml_hpc.data.replaceable import check_replaceable
from dml_hpc.data.sources.cuts import PIECE_BYTES
from dml_hpc.data.sources.matching import matching
from dml_hpc.data.sources.tables import Table, is_table, open_table
from dml_hpc.errors import UserError
from dml_hpc.files import one_line
from dml_hpc.mpi import Alone, agreed, on_root, shared_folder

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

class Settings(NamedTuple):
    """How ratings are cut and stored; ``grid`` None: see `grid_shape`. ``holdout`` is the share that is held out."""

    grid: tuple[int, int] | None = None
    duplicates: str = "last"
    holdout: float = 0.0
    seed: int = 0
    shards: int = 8
    compression: str | None = None


DEFAULT = Settings()


class Built(NamedTuple):
    """What was written: the manifests by part, how many ratings were duplicates, and how heavy stripes are."""

    manifests: dict[str, Manifest]
    duplicates: int
    heaviest: dict[str, float]
    """By "user" and "item": the heaviest stripe's ratings as a multiple of the mean."""
    most: dict[str, tuple[str, int]]
    """By "user" and "item": who has most ratings, and how many."""

    def result(self, output: Path) -> dict[str, Any]:
        """Return what a command says of it."""
        first = next(iter(self.manifests.values()))
        assert first.grid is not None
        held = len(self.manifests) > 1
        return {"rows": sum(manifest.rows for manifest in self.manifests.values()), "users": first.users,
                "items": first.features, "features": first.features, "kind": "ratings",
                "nonzeros": sum(manifest.nonzeros for manifest in self.manifests.values()),
                "weighted": first.weighted, "timed": first.grid["timed"], "duplicates": self.duplicates,
                "grid": [len(first.grid["user_bounds"]) - 1, len(first.grid["item_bounds"]) - 1],
                "heaviest_user_stripe": self.heaviest["user"], "heaviest_item_stripe": self.heaviest["item"],
                "top_user": list(self.most["user"]), "top_item": list(self.most["item"]),
                "shards": len(first.shards), "output": str(output),
                "train_rows": self.manifests["train"].rows if held else None,
                "test_rows": self.manifests["test"].rows if held else None}


def check_settings(settings: Settings) -> None:
    """Raise `UserError` for settings that cut nothing."""
    if not 0 <= settings.holdout < 1 or settings.seed < 0 or settings.shards < 1:
        raise UserError(f"--holdout is a share from 0 to below 1, --seed at least 0, --shards at least 1; got "
                        f"{settings.holdout}, {settings.seed}, {settings.shards}")
    if settings.duplicates not in DUPLICATES:
        raise UserError(f"--duplicates is {', '.join(DUPLICATES)}, not {settings.duplicates}")
    if settings.grid is not None and not 0 < settings.grid[0] * settings.grid[1] <= MOST_BLOCKS:
        raise UserError(f"--grid has from 1 to {MOST_BLOCKS:,} blocks, not {settings.grid[0]}x{settings.grid[1]}")


def import_ratings(comm: Intracomm | Alone, sources: Sequence[Path | str], output: Path, roles: Roles, *,
                   text_ids: bool = False, limits: tuple[float, float] | None = None, settings: Settings = DEFAULT,
                   piece_bytes: int = PIECE_BYTES, console: Console | None = None) -> dict[str, Any]:
    """Collective: import the ratings in tables, paths or patterns of paths, into ``output``, a new data set.

    ``roles`` name the columns. Ids are whole numbers of 64 bits, or with ``text_ids``, or where a column holds
    anything else, text. Ratings outside ``limits`` are refused, as are missing, infinite and NaN ones. Of ratings of
    the same user and item count those that ``settings.duplicates`` says. With ``settings.holdout`` that share of
    them, chosen at random by the pair, goes to ``output/test``, the others to ``output/train``: both have the same
    users, items and grid.

    ``output`` appears when it is complete; a data set that stood there is replaced. It is the same, byte for byte, on
    any number of ranks. Files are read once; memory holds the ids, a piece of a file, and one stripe of users. Returns
    what `Built.result` says, ``rows_read`` and ``work_s``. Raises `AgreedError` for every input that does not fit.
    """
    started = time.perf_counter()
    console = console or Console(progress=False)

    def settle() -> tuple[Table, Wanted]:
        check_settings(settings)
        paths = matching(sources)
        check_replaceable(output, paths)
        for path in paths:
            if not is_table(path):
                raise UserError(f"{path} is neither .csv, .csv.gz, .csv.zip nor .parquet, by its name; ratings are "
                                "imported from these")
        table = open_table(paths)
        return table, wanted(table, roles, text_ids, limits)

    table, want = on_root(comm, settle)
    with shared_folder(comm, output) as folder:
        scratch = folder / "scratch"
        on_root(comm, scratch.mkdir)
        bar = console.bar(table.bytes // comm.size, "reading")
        source = spooled(comm, table, want, scratch, piece_bytes, bar)
        bar.close()
        about = {"files": [str(part.path) for part in table.sources], "columns": roles.given(),
                 "range": None if limits is None else list(limits)}
        built = build(comm, folder, scratch, source, roles.rating or "rating", about, settings, console)
        del source  # which holds files in scratch
        comm.Barrier()
        on_root(comm, lambda: shutil.rmtree(scratch))
    return {**built.result(output), "rows_read": built.duplicates + built.result(output)["rows"],
            "work_s": round(time.perf_counter() - started, 6)}


def build(comm: Intracomm | Alone, folder: Path, scratch: Path, source: RatingSource, label: str,
          about: dict[str, Any], settings: Settings, console: Console) -> Built:
    """Collective: number the users and items of ``source``, cut, sort and write its ratings into ``folder``.

    ``scratch`` is a folder for what is kept meanwhile. ``about`` goes to the manifests. Raises `AgreedError`.
    """
    total = int(source.users.counts.sum())
    form = Form(label, source.weighted, source.timed, settings.shards, settings.compression,
                {**about, "duplicates": settings.duplicates, "seed": settings.seed, "holdout": settings.holdout})
    with agreed(comm), one_line("the shards"):
        check_room(folder, total, form)
        if len(source.items.ids) > np.iinfo(np.int32).max:
            raise UserError(f"{len(source.items.ids):,} items are too many, 2^31 − 1 is the most; take users for items")
    numbers = on_root(comm, lambda: _numbers(source, settings))
    bar = console.bar(total // comm.size, "dealing")
    found = spread(comm, source, numbers, scratch, settings.duplicates, bar)
    bar.close()
    order = [np.empty(len(side), np.int64) for side in (numbers.users, numbers.items)]
    for places, side in zip(order, (numbers.users, numbers.items), strict=True):
        places[side] = np.arange(len(side))
    cut = Cut(numbers.user_bounds, numbers.item_bounds, source.users.ids[order[0]], source.items.ids[order[1]])

    def stripe(u: int) -> Any:
        try:
            return found.stripe(u)
        except DuplicateError as error:
            user, item = cut.user_ids[error.user], cut.item_ids[error.item]
            raise UserError(f"user '{user}' has rated item '{item}' more than once; leave all but one rating out, or "
                            "say what counts: --duplicates last, or mean") from None

    held = held_share(cut, settings.holdout, settings.seed, total) if settings.holdout else None
    parts = Parts(stripe, held)
    bar = console.bar(total // comm.size, "writing")
    manifests, dropped = write_ratings(comm, folder, parts, cut, form, bar)
    bar.close()
    sides = {"user": (source.users, numbers.users, numbers.user_bounds),
             "item": (source.items, numbers.items, numbers.item_bounds)}
    heaviest, most = {}, {}
    for role, (known, new, bounds) in sides.items():
        loads = np.add.reduceat(known.counts[np.argsort(new)], bounds[:-1])
        heaviest[role] = round(float(loads.max() / max(loads.mean(), 1e-300)), 4)
        top = int(np.argmax(known.counts))
        most[role] = str(known.ids[top]), int(known.counts[top])
    return Built(manifests, dropped, heaviest, most)


def _numbers(source: RatingSource, settings: Settings) -> Numbers:
    shape = grid_shape(len(source.users.ids), len(source.items.ids), settings.grid)
    users, user_bounds = numbering(source.users.counts, shape[0], settings.seed, USERS)
    items, item_bounds = numbering(source.items.counts, shape[1], settings.seed, ITEMS)
    return Numbers(users, items, user_bounds, item_bounds)
