"""Who or what made a run lose time: the records of its ranks and wires, looked at for each known cause."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, median_low
from typing import NamedTuple

from dml_hpc.reports.links import communication, unhidden
from dml_hpc.reports.quantities import count, duration, listed, rate
from dml_hpc.reports.runs import Phases, Run
from dml_hpc.reports.scene import Scene, Suspect

UNEVEN = 0.1
"""By so much of the typical rank's time one must be busier to be called slow."""
WORTH = 0.02
"""Of the run's time: what costs less is not looked into."""
FAULTS_PER_S = 20.0
"""Pages that a rank had to wait for, a second of missing CPU time: from then on the disk is why."""
DISK_BYTES_PER_S = 1e6
"""Or so much read from it; reading that brings less comes from memory."""
SWITCHES_PER_S = 10.0
"""A process with a core to itself is put off less often than this."""
READING = 0.2
"""From this share of the time on reading is worth a word, even where it shrinks as it should."""
TINY_STEP_S = 2e-4
"""A rank that works for less than this between two sums is as good as idle: a message takes as long."""


class _Rank(NamedTuple):
    """Seconds of one rank: ``disk`` reading or waiting for pages, ``denied`` runnable without a core, of its ``busy``
    ones; ``stored`` says whether what was read came from storage, None: the record does not tell.
    """

    busy: float
    disk: float
    denied: float
    rows: float | None
    disk_bytes: float
    switches_per_s: float
    faults: float
    stored: bool | None


def faults(scene: Scene) -> list[Suspect]:
    """Return every cause that the records show; what they cost adds up to the scene's loss at most."""
    if scene.phases is None:
        return []
    excess = scene.excess or Phases(0.0, 0.0, 0.0, 0.0)
    ranks = _ranks(scene.last.per_rank)
    uneven, skew_s = _uneven(scene, ranks, excess)
    # Who is slow is first busy for longer, and this is part of the mean; the rest of it is the others' waiting.
    from_wait = min(skew_s, excess.wait)
    wait_s, busy_s = excess.wait - from_wait, excess.busy - min(skew_s - from_wait, excess.busy)
    alike, left_s = _alike(scene, ranks, busy_s, named={one.kind for one in uneven})
    # What the wire takes by the model of it is not for want of a core, and nobody was late.
    on_wire_s = min(wait_s, unhidden(scene))
    communicate_s, wait_s = excess.communicate, wait_s - on_wire_s
    for at, one in enumerate(alike):
        if one.kind == "oversubscribed":
            # Who has no core answers late: that much of communicating and waiting is the same lack.
            denied = median(rank.denied / rank.busy for rank in ranks if rank.busy > 0)
            alike[at] = one._replace(lost_s=one.lost_s + denied * (communicate_s + wait_s))
            communicate_s, wait_s = (1 - denied) * communicate_s, (1 - denied) * wait_s
    found = [*uneven, *alike, *communication(scene, communicate_s + on_wire_s),
             *_rest(scene, left_s, wait_s, excess.other)]
    return [one for one in found if one.lost_s > WORTH * scene.last.seconds or
            one.kind in ("slow_disk", "narrow_link", "oversubscribed")]


def _ranks(per_rank: Sequence[dict[str, float]]) -> list[_Rank]:
    """Return what each rank did; nothing unless all told how long they were busy."""
    if not per_rank or not all("read" in rank and "compute" in rank for rank in per_rank):
        return []
    found = []
    for rank in per_rank:
        busy, rows = rank["read"] + rank["compute"], rank.get("examples") or rank.get("rows")
        wall = max(rank.get("work_s", 0.0), busy + rank.get("communicate", 0.0) + rank.get("wait", 0.0))
        cpu, switches = rank.get("cpu_s"), rank.get("switches", 0.0) / wall if wall > 0 else 0.0
        majors, disk_bytes = rank.get("major_faults", 0.0), rank.get("disk_bytes", 0.0)
        disk, denied = rank["read"], 0.0
        if cpu is not None:
            # Waiting for messages may take CPU time too, so this is the least that is missing.
            missing = max(rank["compute"] - cpu, 0.0)
            if missing > 0 and (majors >= FAULTS_PER_S * missing or disk_bytes >= DISK_BYTES_PER_S * missing):
                disk += missing
            elif switches >= SWITCHES_PER_S and cpu < 0.85 * wall:
                # A process that sleeps is not put off: it wanted a core, in the same share of all it did.
                denied = max(missing, rank["compute"] * (1 - cpu / wall))
        stored = None
        if "major_faults" in rank or "disk_bytes" in rank:
            stored = majors >= FAULTS_PER_S * disk or disk_bytes >= DISK_BYTES_PER_S * disk
        found.append(_Rank(busy, disk, denied, rows, disk_bytes, switches, majors, stored))
    return found


def _uneven(scene: Scene, ranks: Sequence[_Rank], excess: Phases) -> tuple[list[Suspect], float]:
    """Return why some ranks were busier than the others, and the seconds that this cost in all."""
    if len(ranks) < 2:
        return [], 0.0
    typical = median_low([rank.busy for rank in ranks])
    over = max(rank.busy for rank in ranks) - typical
    cost_s = min(over, excess.wait + excess.busy)
    if over < UNEVEN * typical or cost_s < WORTH * scene.last.seconds:
        return [], 0.0
    slow = [at for at, rank in enumerate(ranks) if rank.busy > typical + over / 2]
    if 2 * len(slow) > len(ranks):
        return [], 0.0
    others = [rank for at, rank in enumerate(ranks) if at not in slow]
    own = [ranks[at] for at in slow]

    def more(key: str) -> float:
        return max(median(getattr(one, key) for one in own) - median_low([getattr(one, key) for one in others]), 0.0)

    # Reading from memory takes long where a rank is slow or has no core, and no disk is to blame.
    from_disk = 2 * sum(one.stored is not False for one in own) > len(own)
    parts = {"slow_disk": more("disk") if from_disk else 0.0, "oversubscribed": more("denied")}
    rows, typical_rows = median(one.rows or 0 for one in own), median_low([one.rows or 0 for one in others])
    more_rows = rows / typical_rows - 1 if typical_rows > 0 and rows > 0 else 0.0
    parts["imbalance"] = typical * more_rows if more_rows > 0.05 else 0.0
    parts["slow_rank"] = max(over - sum(parts.values()), 0.0)
    parts = {kind: part for kind, part in parts.items() if part > 0.15 * over}
    whole = sum(parts.values())
    waited = [rank["wait"] for at, rank in enumerate(scene.last.per_rank) if at not in slow and "wait" in rank]
    wait_s = median(waited) if waited else cost_s
    return [_uneven_suspect(scene, kind, cost_s * part / whole, slow, own, others, wait_s)
            for kind, part in parts.items()], cost_s


def _uneven_suspect(scene: Scene, kind: str, lost_s: float, slow: list[int], own: Sequence[_Rank],
                    others: Sequence[_Rank], wait_s: float) -> Suspect:
    who, several = scene.where(slow), len(slow) > 1
    waits = f"the others waited {duration(wait_s)} ({wait_s / scene.last.seconds:.0%} of the time)"
    if kind == "slow_disk":
        disk_s, usual_s = median(one.disk for one in own), median_low([one.disk for one in others])
        return Suspect(kind, lost_s, f"the disk is slow for {who} alone: {duration(disk_s)} were spent on reading"
                       f"{_speed(own)}, where the other ranks spent {duration(usual_s)}{_speed(others)}, and {waits}",
                       f"have the data of {who} on a disk as fast as the others': copy the shards to the node's own "
                       "disk before the run, or leave that node out")
    if kind == "oversubscribed":
        return Suspect(kind, lost_s, f"{who} had no core for {duration(median(one.denied for one in own))} of the time "
                       f"in which there was work (put off {median(one.switches_per_s for one in own):.0f} times a "
                       f"second), and {waits}",
                       f"see what else runs there, and give each of {who} a core to itself (mpirun --bind-to core)"
                       if several else
                       "see what else runs there, and give the rank a core to itself (mpirun --bind-to core)")
    if kind == "imbalance":
        times = median(one.rows or 0 for one in own) / median_low([one.rows or 0 for one in others])
        return Suspect(kind, lost_s, f"{who} had {times:.2g} times as many {'ratings' if scene.rates else 'rows'} as "
                       f"the median rank, and {waits}",
                       "import the ratings with more stripes of users (--grid), so that they can be divided evenly"
                       if scene.rates else
                       "use more shards than ranks or more rows, so that they can be divided evenly")
    by_row = all(one.rows for one in (*own, *others))
    pace = [median(one.busy / (one.rows or 1) if by_row else one.busy for one in group) for group in (own, others)]
    exclude = f"leave the node of {who} out (mpirun --host, sbatch --exclude) and look at what else it does"
    rebalance = scene.trains and scene.runs[0].record.get("rebalance") is not True
    return Suspect(kind, lost_s, f"{who} took {pace[0] / pace[1]:.2f} times as long as the others for the same work, "
                   f"and {waits}",
                   f"give slow ranks fewer rows with --rebalance, or {exclude}" if rebalance else exclude)


def _alike(scene: Scene, ranks: Sequence[_Rank], busy_s: float, named: set[str]) -> tuple[list[Suspect], float]:
    """Return what kept all ranks from working alike, and what is left of the ``busy_s`` they were busy too long."""
    if not ranks:
        return [], busy_s
    before = _ranks(scene.base.per_rank) if scene.base is not None else []

    def excess(key: str) -> tuple[float, float]:
        now = median_low([getattr(rank, key) for rank in ranks])
        then = median([getattr(rank, key) for rank in before]) if before else 0.0
        return now, max(now - then * scene.shrink, 0.0)

    found, last_s = [], scene.last.seconds
    (disk_s, more_disk_s), (denied_s, more_denied_s) = excess("disk"), excess("denied")
    stored = [rank.stored for rank in ranks if rank.stored is not False]
    if disk_s >= READING * last_s and 2 * len(stored) > len(ranks) and "slow_disk" not in named:
        lost_s = min(more_disk_s, busy_s)
        busy_s -= lost_s
        grew = "" if lost_s > WORTH * last_s else "; it shrinks with the ranks, so it is no loss, but it is time"
        what = "reading is slow" if None in stored else "the disk is slow"
        doubt = " (from storage or from memory, the records do not say)" if None in stored else ""
        found.append(Suspect("slow_disk", lost_s, f"{what} for all ranks: each spent {duration(disk_s)} of "
                             f"{duration(last_s)} on it{_speed(ranks)}{doubt}{grew}",
                             "copy the shards to each node's own disk before the run; use nodes with more memory, or "
                             "more of them, so that the data stays in memory; or write the data set as float16"))
    if more_denied_s > WORTH * last_s and "oversubscribed" not in named:
        lost_s = min(more_denied_s, busy_s)
        busy_s -= lost_s
        found.append(Suspect("oversubscribed", lost_s, f"ranks had no core for {duration(denied_s)} of "
                             f"{duration(last_s)} in which they had work (put off "
                             f"{median(rank.switches_per_s for rank in ranks):.0f} times a second each): more runs on "
                             "the nodes than they have cores", "start fewer ranks or threads a node, no more than it "
                             "has cores (OMP_NUM_THREADS=1, mpirun --bind-to core)"))
    return found, busy_s


def _rest(scene: Scene, busy_s: float, wait_s: float, other_s: float) -> list[Suspect]:
    """Return what is left: steps too small, ranks that are late in turn, and work that does not shrink."""
    run, found = scene.runs[0], []
    steps, batch = run.exchanges, run.record.get("batch_size")
    assert scene.phases is not None
    if steps and run.overlapped and run.exchange is not None:
        steps *= run.exchange.messages  # a stripe of items each
    each = scene.phases.busy / steps if steps else None
    if each is not None and each < TINY_STEP_S:
        rows = f" ({batch / scene.last.ranks:.0f} rows)" if isinstance(batch, int) else ""
        unit = "a step" if not scene.rates else "a stripe of items" if run.overlapped else "an epoch"
        found.append(Suspect("too_little_work", busy_s + wait_s, f"a rank has only {duration(each)} of work "
                             f"{unit}{rows}: what every {unit.partition(' ')[2]} costs besides, and any jitter, weighs "
                             "as much", _more_work(scene, run)))
        busy_s = wait_s = 0.0
    if wait_s > 0:
        change = "see that nothing else runs on the nodes"
        if scene.trains:
            change += "; meet less often (a larger --batch-size, --algorithm local)"
        if scene.rates:
            change += "; import the ratings with other stripes (--grid), whose blocks differ less"
        doubt = ("; or item factors were late, as they are on a slow network, which --probe would tell"
                 if run.overlapped and not run.pairs else "")
        found.append(Suspect("imbalance", wait_s, f"ranks waited {duration(wait_s)} for one another though each was "
                             "busy as long as the others in all: which one is late changes from "
                             f"{'block to block' if scene.rates else 'step to step'}{doubt}", change))
    if busy_s + other_s > 0:
        laws = scene.laws
        part = "" if laws is None or laws.amdahl_serial is None else (
            f"; as a serial part (Amdahl) it is {laws.amdahl_serial:.1%} of the work")
        what = [f"computing did not shrink as the ranks grew ({duration(busy_s)} too much: work that every rank "
                "repeats, or cores that share memory, caches and clock)"] * (busy_s > 0.1 * other_s)
        what += [f"work outside reading, computing and communicating took {duration(other_s)} more than its "
                 "share"] * (other_s > 0.1 * busy_s)
        found.append(Suspect("serial", busy_s + other_s, f"{listed(what)}{part}",
                             "use fewer ranks a node, or more work for each; more ranks will not take this off"))
    return found


def _more_work(scene: Scene, run: Run) -> str:
    """Return how ranks get more to do between two messages."""
    if not scene.rates:
        return "give ranks more to do between two sums: a larger --batch-size, --algorithm local, or fewer ranks"
    return "take fewer ranks" + ", or import the ratings with fewer stripes of items (--grid)" * run.overlapped


def _speed(ranks: Sequence[_Rank]) -> str:
    """Return " at 85 MB/s", of what was read from storage; nothing where that is not known."""
    speeds = [rank.disk_bytes / rank.disk for rank in ranks if rank.disk > 0 and rank.disk_bytes > 0]
    pages = [rank.faults for rank in ranks]
    text = f" at {rate(median(speeds))} a rank" if speeds else ""
    return text + (f" ({count(round(median(pages)), 'page')} had to be waited for)" if median(pages) >= 1 else "")
