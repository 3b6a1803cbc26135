"""What more ranks than were measured would bring, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

import numpy as np

from dml_hpc.reports.intervals import CONFIDENCE, UNKNOWN_NOISE, least_squares, resampled_medians, student
from dml_hpc.reports.laws import hockney
from dml_hpc.reports.quantities import count, duration
from dml_hpc.reports.runs import Run, exchange_of, work_of

MOST_RANKS = 1024
DRAWS = 1000
LEAST_NOISE = 0.01
"""Relative; no median is trusted further when variants of a model are weighed."""
_ROOM = 0.15
"""Relative standard deviation for each doubling beyond what was measured, where two numbers of ranks were; less where
more were, see `_room`."""

Columns = Callable[[float], Sequence[float]]
"""Terms of a model at some ranks."""


@dataclass(frozen=True)
class Prediction:
    """Times and efficiencies at ``ranks``, all above ``measured_to``, each with its 95 % interval.

    ``basis`` says in one sentence what the model is made of and what it assumes, and in another, where enough was
    measured, how it would have done.
    """

    ranks: tuple[int, ...]
    seconds: tuple[float, ...]
    low_s: tuple[float, ...]
    high_s: tuple[float, ...]
    efficiency: tuple[float, ...]
    efficiency_low: tuple[float, ...]
    efficiency_high: tuple[float, ...]
    measured_to: int
    basis: str


class _Fitted(NamedTuple):
    """One variant of a part of the time: its terms, fitted to each draw (draws, terms), and how well it does."""

    columns: Columns
    drawn: np.ndarray
    likelihood: float


def predict(by_ranks: dict[int, list[Run]], weak: bool) -> Prediction | None:
    """Predict twice as many ranks as were measured, and so on up to 1,024; None from one number of ranks.

    The time is a sum of parts, each from the records: work that shrinks as 1/p and work that does not; the
    all-reduces of the steps (`dml_hpc.comm.cost`); waiting for one another. Where several variants of a part fit (with
    or without a serial part; latency or bandwidth; waiting that shrinks with the work or grows as the slowest of p
    ranks does), each is taken as often as its Akaike weight says (K. P. Burnham and D. R. Anderson, *Model selection
    and multimodel inference*, 2002). Noise comes from the repeats (`resampled_medians`). Since no model is exact,
    every doubling adds room of its own, more where few numbers of ranks were measured or the model misses them.
    """
    told = _predicted(by_ranks, weak)
    return None if told is None else replace(told, basis=told.basis + _hindsight(by_ranks, weak))


def _predicted(by_ranks: dict[int, list[Run]], weak: bool) -> Prediction | None:
    ranks = list(by_ranks)
    further = [ranks[-1] << doubling for doubling in range(1, MOST_RANKS.bit_length())
               if ranks[-1] << doubling <= MOST_RANKS]
    if len(ranks) < 2 or not further:
        return None
    random = np.random.default_rng(0)
    work = _growth(work_of(by_ranks))
    split = len(ranks) > 2 and all(run.phases is not None for runs in by_ranks.values() for run in runs)
    parts = _parts(by_ranks, work, weak) if split else _whole(ranks, work, weak)
    measured = [np.array([_quantities(run, split) for run in runs]) for runs in by_ranks.values()]
    medians = np.array([np.median(runs, axis=0) for runs in measured])
    drawn = resampled_medians(measured, DRAWS, random)
    noise = np.maximum(np.divide(drawn.std(axis=0), medians, out=np.zeros_like(medians), where=medians > 0),
                       LEAST_NOISE)
    times_s, fitted_s = np.zeros((DRAWS, len(further))), np.zeros((DRAWS, len(ranks)))
    for part, variants in enumerate(parts):
        known = medians[:, part] > 0
        if known.any():
            fitted = [_fit(columns, np.array(ranks)[known], medians[known, part], drawn[:, known, part],
                           noise[known, part]) for columns in variants]
            chosen = _chosen(fitted, random)
            times_s += _drawn(fitted, chosen, further)
            fitted_s += _drawn(fitted, chosen, ranks)
    totals = medians.sum(axis=1)
    spread = _room(np.median(fitted_s, axis=0), totals, drawn.sum(axis=2).std(axis=0))
    beyond = np.sqrt(np.log2(np.array(further) / ranks[-1]))
    times_s *= np.exp(spread * beyond * random.standard_normal((DRAWS, 1)))
    times_s = np.maximum(times_s, _least_s(by_ranks))
    base_s = drawn[:, 0].sum(axis=1)[:, None]
    ideal = np.array([work(p / ranks[0]) * ranks[0] / p for p in further])
    low, middle, high = _interval(times_s, measured)
    worst, likely, best = _interval(base_s * ideal / times_s, measured)
    seconds, low_s, high_s, efficiency, efficiency_low, efficiency_high = (
        tuple(map(float, one)) for one in (middle, low, high, likely, worst, best))
    return Prediction(tuple(further), seconds, low_s, high_s, efficiency, efficiency_low, efficiency_high, ranks[-1],
                      _basis(by_ranks, split, weak))


def _least_s(by_ranks: dict[int, list[Run]]) -> float:
    """Return what several ranks take at least, as that goes over the wire while they compute; 0 where none is known.

    That is for what is sent to a neighbour, and is as much for any number of ranks: never more than a run has taken.
    """
    run = by_ranks[max(by_ranks)][0]
    fastest_s = min((run.seconds for ranks, runs in by_ranks.items() for run in runs if ranks > 1), default=0.0)
    alpha, beta = hockney(by_ranks) if run.overlapped else (None, None)
    if run.exchange is None or run.exchanges is None or alpha is None or beta is None:
        return 0.0
    return min(run.exchanges * (run.exchange.messages * alpha + run.exchange.n_bytes * beta), fastest_s)


def _hindsight(by_ranks: dict[int, list[Run]], weak: bool) -> str:
    """Say what would have been predicted of the most ranks from fewer, where four numbers of ranks were measured."""
    *fewer, last = by_ranks
    if len(fewer) < 3:
        return ""
    told = _predicted({ranks: by_ranks[ranks] for ranks in fewer}, weak)
    if told is None or last not in told.ranks:
        return ""
    at, measured_s = told.ranks.index(last), median(run.seconds for run in by_ranks[last])
    return (f" From up to {fewer[-1]} ranks it says {duration(told.low_s[at])} to {duration(told.high_s[at])} for "
            f"{last}, which took {duration(measured_s)}.")


def _interval(drawn: np.ndarray, measured: Sequence[np.ndarray]) -> np.ndarray:
    """Return the low end, the median and the high end of each column of ``drawn``, above 0.

    A bootstrap of few runs is too sure: its deviations are widened as Student's t is beside the normal's.
    """
    low, middle, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, 0.5, (1 + CONFIDENCE) / 2], axis=0)
    spare = sum(map(len, measured)) - 2 * len(measured)
    widened = student(spare) / student(math.inf) if spare > 0 else 1.0
    return np.stack([middle * (low / middle) ** widened, middle, middle + widened * (high - middle)])


def _quantities(run: Run, split: bool) -> Sequence[float]:
    phases = run.phases
    if not split or phases is None:
        return [run.seconds]
    return [phases.busy + max(phases.other, 0.0), phases.communicate, phases.wait]


def _growth(work: dict[int, float]) -> Callable[[float], float]:
    """Return how the work grows with multiples of the fewest ranks: a power, as between the fewest and the most."""
    ranks = list(work)
    power = math.log(work[ranks[-1]]) / math.log(ranks[-1] / ranks[0]) if len(ranks) > 1 else 0.0
    power = min(max(power, -3.0), 3.0)  # records may say anything
    return lambda p: p**power


def _whole(ranks: Sequence[int], work: Callable[[float], float], weak: bool) -> list[list[Columns]]:
    """Return the variants of the whole time, of records that do not say where it went."""
    base = ranks[0]

    def share(p: float) -> float:
        return work(p / base) * base / p

    constant: list[Columns] = [lambda p: (share(p),)]
    fixed: list[Columns] = [lambda p: (share(p), work(p / base))] if weak else [lambda p: (share(p), 1.0)]
    return [[*constant, *fixed, lambda p: (share(p), math.log2(p / base))]]


def _parts(by_ranks: dict[int, list[Run]], work: Callable[[float], float], weak: bool) -> list[list[Columns]]:
    """Return the variants of working, of communicating and of waiting."""
    ranks = list(by_ranks)
    base, last = ranks[0], by_ranks[ranks[-1]][0]

    def share(p: float) -> float:
        return work(p / base) * base / p

    def slowest(p: float) -> float:
        # The greatest of p normal deviates, in standard deviations, to within some percent of it for large p.
        return math.sqrt(2 * math.log(p)) if p > 1 else 0.0

    working: list[Columns] = [lambda p: (share(p),), lambda p: (share(p), work(p / base) if weak else 1.0)]
    waiting: list[Columns] = [lambda p: (share(p) * (p > 1),), slowest_of(slowest, lambda p: 1.0),
                              slowest_of(slowest, share)]
    if last.exchange is None or last.exchanges is None or last.overlapped:
        return [working, [lambda p: (math.log2(p),), lambda p: ((p - 1) / p,), lambda p: (p - 1,),
                          lambda p: (math.log2(p), (p - 1) / p)], waiting]
    steps = _growth({p: median(run.exchanges or 1.0 for run in runs) / (by_ranks[base][0].exchanges or 1.0)
                     for p, runs in by_ranks.items()})
    times = by_ranks[base][0].exchanges or 1.0
    on_a_node = last.ranks / (last.nodes or 1)

    def pays(p: float) -> tuple[float, float]:
        found, _ = exchange_of(last.record, round(p), max(1, round(p / on_a_node)))
        if found is None:
            return 0.0, 0.0
        each = times * steps(p / base)
        return each * found.messages, each * found.n_bytes

    return [working, [pays, lambda p: pays(p)[:1], lambda p: pays(p)[1:]], waiting]


def slowest_of(slowest: Callable[[float], float], work: Callable[[float], float]) -> Columns:
    """Return the term of waiting for the slowest of p ranks, of which each takes now and then longer for ``work``."""
    return lambda p: (slowest(p) * work(p),)


def _fit(columns: Columns, ranks: np.ndarray, medians: np.ndarray, drawn: np.ndarray, noise: np.ndarray) -> _Fitted:
    terms = np.array([columns(float(p)) for p in ranks], np.float64)
    misses = (terms @ least_squares(terms, medians) / medians - 1) / noise
    likelihood = math.exp(-min(float(np.square(misses).sum()) / 2, 600.0) - terms.shape[1])
    return _Fitted(columns, least_squares(terms, np.maximum(drawn, 1e-300)), likelihood)


def _chosen(fitted: Sequence[_Fitted], random: np.random.Generator) -> np.ndarray:
    weights = np.array([one.likelihood for one in fitted])
    weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(fitted), 1 / len(fitted))
    return random.choice(len(fitted), size=DRAWS, p=weights)


def _drawn(fitted: Sequence[_Fitted], chosen: np.ndarray, ranks: Sequence[int]) -> np.ndarray:
    """Return seconds (draws, ranks), each draw by the variant ``chosen`` for it."""
    seconds = np.empty((DRAWS, len(ranks)))
    for variant, one in enumerate(fitted):
        terms = np.array([one.columns(float(p)) for p in ranks], np.float64)
        seconds[chosen == variant] = one.drawn[chosen == variant] @ terms.T
    return seconds


def _room(fitted_s: np.ndarray, measured_s: np.ndarray, noise_s: np.ndarray) -> float:
    """Return the relative standard deviation that a doubling adds.

    By how far the model misses, beyond noise, and more where noise or few numbers of ranks hide whether it does.
    """
    noise = float(np.square(noise_s / measured_s).mean())
    missed = float(np.square(fitted_s / measured_s - 1).mean()) - noise
    return math.hypot(_ROOM / (len(measured_s) - 1) ** 1.5, math.sqrt(max(missed, 0.0)), math.sqrt(noise))


def _basis(by_ranks: dict[int, list[Run]], split: bool, weak: bool) -> str:
    ranks = list(by_ranks)
    last = by_ranks[ranks[-1]][0]
    from_ = f"Predicted from {', '.join(map(str, ranks[:-1]))} and {count(ranks[-1], 'rank')}"
    grows = "work that grows with the ranks" if weak else "work that shrinks as 1/p"
    if not split:
        why = ("two numbers of ranks tell no more" if len(ranks) == 2 else
               "the records do not say where the time went")
        text = f"{from_} by Amdahl's law alone: {grows}, and a part that stays or grows as log p ({why})"
    else:
        what = "exchanges of factors" if last.record.get("command") == "mf" else "all-reduces"
        sums = ("looking after messages" if last.overlapped else
                f"{what} that cost messages · α + bytes · β" if last.exchange is not None else
                "communication that grows as log p, (p − 1)/p or p − 1 does, whichever fits")
        text = (f"{from_}: {grows}, a part that does not, {sums}, and waiting for the slowest rank")
        if (least_s := _least_s(by_ranks)) > 0:
            text += f"; no less than the {duration(least_s)} that item factors take on the wire as it was probed"
    repeated = any(len(runs) > 1 for runs in by_ranks.values())
    noise = ("noise as seen in the repeats" if repeated else
             f"noise of {UNKNOWN_NOISE:.0%} taken, as nothing was repeated")
    where = ""
    if last.nodes == 1:
        where = "; all ran on one node, so a network between nodes is not in it"
    elif last.nodes is not None and last.nodes > 1:
        where = f"; as many ranks a node as measured ({last.ranks / last.nodes:g})"
    return f"{text}; {noise}, and room for what no model knows that grows with every doubling{where}."
