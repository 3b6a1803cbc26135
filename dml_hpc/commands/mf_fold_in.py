"""``dml-hpc mf fold-in``: factors of users who came after the others were learnt, from their ratings alone."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dml_hpc.commands.mf_options import rank_threads
from dml_hpc.commands.serving import open_factors
from dml_hpc.console import Console
from dml_hpc.data.ratings.by_row import ByRow, by_row, matched
from dml_hpc.data.ratings.ids import Ids
from dml_hpc.data.ratings.opened import StoredRatings, open_ratings
from dml_hpc.decomposition.mf import penalties
from dml_hpc.decomposition.mf.blocks import summed_exactly
from dml_hpc.decomposition.mf.folding import Fixed, Folded, fold, gram_of
from dml_hpc.errors import UserError
from dml_hpc.files import check_output
from dml_hpc.kernels import start_compiler
from dml_hpc.kernels.rating_sgd import padded
from dml_hpc.layout import split
from dml_hpc.mpi import agreed, first_on_node
from dml_hpc.store.rating_factors import Piece, RatingFactors, write_rating_factors

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class _Targets(NamedTuple):
    """Who is solved for: rows of the file that are ``known`` (n,), ascending, then those that are ``new``.

    ``rows`` (of the ratings,) is the place of each of the ratings' users among both, −1: left as it is. ``ids`` are
    those of the new ones.
    """

    known: np.ndarray
    rows: np.ndarray
    ids: np.ndarray


def run(comm: Intracomm, console: Console, factors: Path, ratings: Path, output: Path, items: bool = False,
        update: bool = False, threads: int | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Collective: write ``factors``, together with those of the users that only ``ratings`` know, to ``output``.

    With ``items``, of the items. The other side stays as it is. With ``update`` those that are known, and have ratings
    here, are solved for anew, too. Each rank does a part; the file is the same for any number of ranks. Returns the
    keys of the ``--json`` object on every rank. Raises `AgreedError`.
    """
    started = time.perf_counter()
    what = "item" if items else "user"
    with agreed(comm):
        if comm.rank == 0:
            check_output(output, overwrite, inputs=[factors, ratings])
    found = open_factors(comm, factors)
    given = open_ratings(comm, ratings)
    with agreed(comm):
        fixed = _fixed(found, items)
        if fixed.alpha is not None and given.grid.lowest < 0:
            raise UserError(f"{ratings} holds negative ratings (the lowest is {given.grid.lowest:g}), and {factors} "
                            "was learnt with --implicit; import others")
        targets = _targets(found, given, items, update)
    start_compiler()
    empty = ByRow(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32),
                  np.empty(0, np.float32) if given.weighted else None, 0)
    gram = None if fixed.alpha is None else np.empty(0, np.float32)
    with first_on_node(comm):
        fold(empty, fixed, gram)
    with agreed(comm):
        first, last = split(len(targets.known) + len(targets.ids), comm.size, comm.rank)
        place = np.where((targets.rows >= first) & (targets.rows < last), targets.rows - first, -1)
        others, theirs = (found.users, given.users) if items else (found.items, given.items)
        own = by_row(given, place, matched(others, theirs), last - first, of_items=items)
    if fixed.alpha is not None:
        gram = gram_of(comm, fixed)
    with agreed(comm):
        began = time.perf_counter()
        solved = fold(own, fixed, gram, threads or rank_threads())
        solving_s = time.perf_counter() - began
        stored = (found.item_factors if items else found.user_factors).dtype
        with np.errstate(over="ignore"):
            finite = np.isfinite(solved.factors.astype(stored)).all()
        if not finite:
            raise UserError(f"what was found for {what}s is not finite; are the ratings of {ratings} in the unit of "
                            f"those that {factors} was learnt from?")
        rated = np.diff(own.starts) > 0
    squares, weight, unknown, without = _sums(comm, own, solved, rated)
    known = len(targets.known) - first  # of this rank's: those before are known
    digest, added, updated = _write(comm, output, found, targets, solved, rated, max(0, min(known, last - first)),
                                    items)
    result = {f"{what}s_added": added, f"{what}s_updated": updated, f"{what}s_without_ratings": without,
              "ratings": int(sum(comm.allgather(len(own.columns)))),
              f"unknown_{'users' if items else 'items'}": unknown, f"{what}s": len(found.items if items else
                                                                                   found.users) + added,
              "rmse": math.sqrt(squares / weight) if fixed.alpha is None and weight else None, "k": found.k,
              "l2": found.settings["l2"], "alpha": fixed.alpha, "factors": str(factors), "data": str(ratings),
              "output": str(output), "weights_digest": digest, "solving_s": round(max(comm.allgather(solving_s)), 6),
              "work_s": round(max(comm.allgather(time.perf_counter() - started)), 6)}
    _tell(console, result, what, "user" if items else "item")
    return result


def _fixed(found: RatingFactors, items: bool) -> Fixed:
    """Return the side that stays, and how it was learnt; raises `UserError` where the file does not say."""
    implicit = bool(found.settings.get("implicit"))
    factors, biases = (found.user_factors, found.user_biases) if items else (found.item_factors, found.item_biases)
    width, learnt = padded(found.k), found.settings.get("penalties")
    told = {name: found.settings.get(name) for name in (*([] if learnt else ["l2"]), "scale",
                                                        *(["alpha"] if implicit else []))}
    for name, value in told.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise UserError(f"{found.path} does not say with which {name} it was learnt, as an older dml-hpc wrote it; "
                            "run mf again")
    try:
        if learnt:
            rows = penalties.packed(learnt["item" if items else "user"], found.k, width)
        else:
            rows = penalties.fixed_penalties(width, float(told["l2"] or 0), implicit)
    except (ValueError, TypeError, KeyError, IndexError):
        raise UserError(f"{found.path} has no penalties that are such; run mf again") from None
    return Fixed(factors, biases, found.mean, float(told["scale"] or 1), rows, told.get("alpha"))


def _targets(found: RatingFactors, given: StoredRatings, items: bool, update: bool) -> _Targets:
    """Return who is solved for; raises `UserError` where nobody is, or new ids are none that the file can have."""
    known, ids = (found.items, given.items) if items else (found.users, given.users)
    what = "item" if items else "user"
    numbers = matched(known, ids)
    new = np.flatnonzero(numbers < 0)
    if not len(new) and not update:
        raise UserError(f"{found.path} knows every {what} of {given.path}; give --update to solve for them anew")
    old = np.sort(numbers[numbers >= 0]) if update else np.empty(0, np.int64)
    rows = np.full(len(ids), -1)
    rows[new] = len(old) + np.arange(len(new))
    if update:
        rows[numbers >= 0] = np.searchsorted(old, numbers[numbers >= 0])
    values = ids.values[new]
    if known.is_text and not ids.is_text:
        values = np.array([str(value) for value in values], object)
    elif ids.is_text and not known.is_text:
        if len(new):
            raise UserError(f"the {what} {values[0]!r} of {given.path} is text, and in {found.path} {what}s are whole "
                            "numbers; import the ratings with such")
        values = known.values[:0]
    return _Targets(old, rows, values)


def _sums(comm: Intracomm, own: ByRow, solved: Folded, rated: np.ndarray) -> tuple[float, float, int, int]:
    """Collective: return all ranks' squared errors, weights, entries that were left out, rows without any."""
    weights = np.diff(own.starts).astype(np.float64) if own.weights is None else np.add.reduceat(
        np.append(own.weights.astype(np.float64), 0), own.starts[:-1]) * rated
    squares, weight = summed_exactly(comm, np.stack([solved.squares, weights], axis=1)).tolist()
    return squares, weight, sum(comm.allgather(own.unknown)), sum(comm.allgather(int(np.count_nonzero(~rated))))


def _write(comm: Intracomm, output: Path, found: RatingFactors, targets: _Targets, solved: Folded, rated: np.ndarray,
           known: int, items: bool) -> tuple[str, int, int]:
    """Collective: write the file; return its digest, how many rows are new in it, and how many were solved for anew.

    Of the rows ``solved`` here the first ``known`` are known. Those without a rating stay as they were, or out.
    """
    side, other = ("item", "user") if items else ("user", "item")
    rows = getattr(found, f"{side}_factors")
    biases = getattr(found, f"{side}_biases")
    anew = [part[:known][rated[:known]] if part is not None else None for part in (solved.factors, solved.biases)]
    fresh = [part[known:][rated[known:]] if part is not None else None for part in (solved.factors, solved.biases)]
    changed = comm.gather(anew)
    flags = np.concatenate(comm.allgather(rated))
    updated = targets.known[flags[:len(targets.known)]]
    kept = flags[len(targets.known):]
    pieces = []
    if comm.rank == 0:
        assert changed is not None
        for name, old, number in (("factors", rows, 0), ("biases", biases, 1)):
            if old is None:
                continue
            if len(updated):
                old = np.array(old)  # those who are solved for anew are somewhere among the others
                old[updated] = np.concatenate([part[number] for part in changed])
            pieces.append(Piece(f"{side}_{name}", 0, old))
        pieces += [Piece(f"{other}_{name}", 0, array) for name in ("factors", "biases")
                   if (array := getattr(found, f"{other}_{name}")) is not None]
    for name, part, like in (("factors", fresh[0], rows), ("biases", fresh[1], biases)):
        if part is not None and len(part):
            pieces.append(Piece(f"{side}_{name}", len(rows), part.astype(like.dtype)))
    known_ids = found.items if items else found.users
    ids = Ids(np.concatenate([known_ids.values, targets.ids[kept]]))
    settings = found.settings | {f"{side}s_folded_in": int(found.settings.get(f"{side}s_folded_in", 0))
                                 + int(kept.sum())}
    digest = write_rating_factors(comm, output, pieces, *((found.users, ids) if items else (ids, found.items)),
                                  found.mean, settings)
    return digest, int(kept.sum()), len(updated)


def _tell(console: Console, result: dict[str, Any], what: str, other: str) -> None:
    told = "" if result["rmse"] is None else f", RMSE {result['rmse']:.4f}"
    again = f" and {result[f'{what}s_updated']:,} known ones anew" if result[f"{what}s_updated"] else ""
    console.say(f"solved   {result[f'{what}s_added']:,} new {what}s{again} from {result['ratings']:,} ratings in "
                f"{result['solving_s']:.2f} s{told}")
    if result[f"unknown_{other}s"]:
        console.say(f"unknown  {result[f'unknown_{other}s']:,} ratings are of {other}s that {result['factors']} does "
                    "not know, and were left out")
    if result[f"{what}s_without_ratings"]:
        console.say(f"warning  {result[f'{what}s_without_ratings']:,} {what}s have no other ratings: new ones are not "
                    "in the file, known ones stay as they were")
    console.say(f"factors  {result['output']}: {result[f'{what}s']:,} {what}s, k = {result['k']}, weights "
                f"{result['weights_digest'][:16]}…")
