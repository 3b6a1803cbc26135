"""What communication cost, and why: a narrow link, latency or bandwidth."""

from __future__ import annotations

from collections.abc import Sequence

from dml_hpc.reports.laws import hockney
from dml_hpc.reports.quantities import count, duration, listed, rate, size
from dml_hpc.reports.runs import Pair, Run
from dml_hpc.reports.scene import Scene, Suspect

NARROW = 1.5
"""A link is narrow that takes so many times as long for a byte as the usual link of its kind.

That is one of the faster third: one slow host of three or four is at the end of half of all links, or more.
"""
LEAST_PAIRS = 3
"""Of fewer links nobody can say which one is odd."""
SHORT = 4096
"""Bytes of a message that no network takes noticeably longer for than for an empty one."""
CLEAR = 2.0
"""So many times as much of one than of the other is called that one alone."""


def narrow(pairs: Sequence[Pair]) -> tuple[list[tuple[Pair, float]], float]:
    """Return the narrow ones of ``pairs``, each with the times it is slower, the worst first, and the usual β."""
    for same_node in (False, True):
        alike = [pair for pair in pairs if pair.same_node is same_node]
        if len(alike) < LEAST_PAIRS:
            continue
        usual = sorted(pair.beta_s_per_byte for pair in alike)[(len(alike) - 1) // 3]
        found = [(pair, pair.beta_s_per_byte / usual) for pair in alike
                 if usual > 0 and pair.beta_s_per_byte >= NARROW * usual]
        if found:
            return sorted(found, key=lambda one: -one[1]), usual
    return [], 0.0


def communication(scene: Scene, lost_s: float) -> list[Suspect]:
    """Return what ``lost_s`` of communicating went to."""
    run = next((run for run in scene.runs if run.pairs), scene.runs[0])
    latency_s, transfer_s = _parts(scene, run)
    of_bytes = transfer_s / (latency_s + transfer_s) if latency_s + transfer_s > 0 else 1.0
    found = []
    slow, usual = narrow(run.pairs)
    if slow:
        worst = slow[0][1]
        by_link = lost_s * of_bytes * (1 - 1 / worst)
        lost_s -= by_link
        names = [_link(run, pair) for pair, _ in slow[:4]]
        hosts = [{run.host(rank) or f"rank {rank}" for rank in pair.ranks} for pair, _ in slow]
        both = sorted(set.intersection(*hosts)) if len(slow) > 1 else []
        shared = f"; {both[0]} is at the end of all of them" if len(both) == 1 else ""
        found.append(Suspect("narrow_link", by_link,
                             f"the link{'s' * (len(slow) > 1)} between {'; '.join(names)} "
                             f"carr{'y' if len(slow) > 1 else 'ies'} {rate(1 / slow[0][0].beta_s_per_byte)} where "
                             f"others carry {rate(1 / usual)} ({worst:.1f} times as slow){shared}: all ranks go at "
                             "its pace",
                             f"have the cable, port and card of {both[0] if len(both) == 1 else names[0]} checked, or "
                             "leave one of them out"))
    if lost_s <= 0:
        return found
    each = "" if not run.exchanges or run.exchange is None else (
        f"{count(round(run.exchange.messages), 'message')} and {size(round(run.exchange.n_bytes))} "
        f"{'an epoch' if scene.rates else 'each time'}")
    fewer, smaller = _advice(scene, run)
    what = ("communicating, and waiting for item factors on their way," if run.overlapped else "communicating")
    took = f"{what} took {duration(lost_s)}" + " more than at the fewest ranks" * (scene.base is not None)
    if latency_s > CLEAR * transfer_s:
        found.append(Suspect("latency", lost_s, f"{took}: it is bound by latency, {each}, of which messages take "
                             f"{duration(latency_s)} and bytes {duration(transfer_s)}", f"meet less often: {fewer}"))
    elif run.exchange is not None and latency_s == transfer_s and run.exchange.n_bytes < SHORT * run.exchange.messages:
        found.append(Suspect("latency", lost_s, f"{took}: it is bound by latency, as messages are short ({each})",
                             f"meet less often: {fewer}"))
    elif transfer_s > CLEAR * latency_s:
        found.append(Suspect("communication", lost_s, f"{took}: it is bound by bandwidth, {each}, of which bytes take "
                             f"{duration(transfer_s)} and messages {duration(latency_s)}", f"send less: {smaller}"))
    else:
        found.append(Suspect("communication", lost_s, took + (f" ({each})" if each else ""),
                             f"{'' if smaller == fewer else 'send less, or less often: '}{smaller}"))
    return found


def unhidden(scene: Scene) -> float:
    """Return for how long what is sent beside computing travels when that is done, by the model of it; seconds."""
    run = next((run for run in scene.runs if run.pairs), scene.runs[0])
    if not run.overlapped or run.exchanges is None or scene.phases is None:
        return 0.0
    return max(sum(_parts(scene, run)) * run.exchanges - scene.phases.busy - scene.phases.communicate, 0.0)


def _advice(scene: Scene, run: Run) -> tuple[str, str]:
    """Return how to send less often, and how to send less."""
    if scene.trains:
        return ("a larger --batch-size, --algorithm local (sums every --tau steps), or fewer ranks",
                "--compression float16, --overlap, a larger --batch-size, or --algorithm local or average")
    if not scene.rates:
        return "fewer ranks, or more work for each", "fewer ranks, or nodes with a faster network"
    if run.record.get("algorithm") == "sgd" and run.exchange is None:  # ranks of a node hand over where things lie
        return ("fewer ranks, or more ratings for each",) * 2
    if run.record.get("algorithm") == "als":
        return ("fewer ranks, or more ratings for each",
                "a smaller -k, fewer ranks, nodes with a faster network, or --algorithm sgd, which sends the items' "
                "factors alone, while it computes")
    half = "--factors float16, " if run.record.get("factors_dtype") == "float32" else ""
    return ("ratings imported with fewer stripes of items (--grid), or fewer ranks",
            f"{half}a smaller -k, or nodes with a faster network; as many bytes travel on any number of ranks, so more "
            "ratings for each, or fewer ranks, hide them")


def _parts(scene: Scene, run: Run) -> tuple[float, float]:
    """Return what a step's messages take and what its bytes take, seconds; 0 and 0 where that is not known."""
    laws = scene.laws
    if run.exchange is None or laws is None or laws.alpha_s is None or laws.beta_s_per_byte is None:
        alpha, beta = hockney({run.ranks: list(scene.runs)})
    else:
        alpha, beta = laws.alpha_s, laws.beta_s_per_byte
    if run.exchange is None or alpha is None or beta is None:
        return 0.0, 0.0
    return run.exchange.messages * alpha, run.exchange.n_bytes * beta


def _link(run: Run, pair: Pair) -> str:
    hosts = [run.host(rank) for rank in pair.ranks]
    ranks = f"ranks {pair.ranks[0]} and {pair.ranks[1]}"
    return ranks if None in hosts else f"{listed([str(host) for host in hosts])} ({ranks})"
