"""Rating SGD over four emulated hosts: whether the item factors' way round the ranks is hidden behind computing.

    python benchmarks/mf_hosts.py [--hosts 4] [--rates 1gbit 500mbit] [--ratings 5000000 20000000]
    python benchmarks/mf_hosts.py --draw

60,000 users × 20,000 items, k = 32, `adagrad` as it is by default, one rank a host, in float32 and in float16 factors.
``idle_share`` is the wait of all ranks over all of their time while they learn: time in which no stripe of items was
there to work on. Hosts share this machine's cores, so that of four ranks on two cores each computes at half the speed
that a host of its own would give it, while a link of 1 Gbit/s stays one: that flatters. A link of 500 Mbit/s is beside
half a core what 1 Gbit/s is beside a whole one, so its share is the one to quote for 1 Gbit/s. What such links take of
the cores, for packets that a network card would carry, is on top. ``no wire`` are as many ranks on this machine without
links, by shared memory: what they wait there, they wait for each other's turn on a core, and not for a wire.

``ideal`` says what is possible: the seconds in which a link carries what a rank sends in an epoch (at 0.96 of the rate,
which is what TCP leaves), and those in which a rank with a core of its own computes its share, by a run on one rank.
Where the former are fewer, sending can be hidden. Needs root, see scripts/emulated_cluster.sh.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from curves import save_svg
from matplotlib.figure import Figure
from mf_contest import Files, ours
from rated import Shape, made
from running import arguments, drawn, finish, on_hosts

from dml_hpc.reports.figures.canvas import INK, PAPER, legend, style
from dml_hpc.reports.figures.phases import COLOURS, HATCHES
from dml_hpc.reports.timing import interleave

K, EPOCHS = 32, 10
PAYLOAD = 0.96
"""Of a link's rate, what is left for data after TCP's headers, as the all-reduces found."""
NO_WIRE = "no wire"
PHASES = ("compute", "communicate", "wait")
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def bytes_per_s(rate: str) -> float:
    """Return what a link of a rate such as 500mbit carries."""
    return float(rate[:-4]) * UNITS[rate[-4:]] / 8 * PAYLOAD


def idle_share(run: dict[str, Any]) -> float:
    """Return the share of waiting in the time in which all ranks learn: without reading, which is once."""
    spent = {phase: sum(rank[phase] for rank in run["per_rank"]) for phase in PHASES}
    return spent["wait"] / sum(spent.values())


def case(files: Files, hosts: int, rates: list[str], dtype: str, epochs: int, repeats: int) -> list[dict[str, Any]]:
    """Run over every rate in turns; return a case each."""
    words = ("--factors", dtype, "--epochs", epochs)
    ours(files, 1, K, *words)  # compiles what is not yet in the cache
    alone = [ours(files, 1, K, *words) for _ in range(repeats)]
    own_s = float(np.median([run["learning_s"] for run in alone])) / epochs / hosts
    runs: dict[str, list[dict[str, Any]]] = {rate: [] for rate in (NO_WIRE, *rates)}

    def share(rate: str) -> float:
        runs[rate].append(ours(files, hosts, K, *words) if rate == NO_WIRE else on_hosts(
            hosts, rate, "mf", files.train, "-o", files.factors, "--overwrite", "-k", K, "--threads", 1, *words))
        return idle_share(runs[rate][-1])

    shares = interleave({rate: partial(share, rate) for rate in runs}, repeats)
    cases = []
    for rate, found in shares.items():
        last = runs[rate][-1]
        sent = max(rank["bytes_sent"] for rank in last["per_rank"]) / epochs
        wire_s = None if rate == NO_WIRE else sent / bytes_per_s(rate)
        split = {phase: float(np.median([sum(rank[phase] for rank in run["per_rank"]) for run in runs[rate]])) / hosts
                 for phase in PHASES}
        cases.append({
            "ratings": last["ratings"], "users": last["users"], "items": last["items"], "k": K, "factors": dtype,
            "hosts": hosts, "cores": os.cpu_count(), "rate": rate, "epochs": epochs,
            "idle_share": float(np.median(found)), "idle_shares": sorted(found.tolist()), "mean_split_s": split,
            "learning_s": sorted(run["learning_s"] for run in runs[rate]),
            "learning_one_rank_s": sorted(run["learning_s"] for run in alone),
            "bytes_sent_per_epoch": sent, "ideal": None if wire_s is None else {
                "wire_s_per_epoch": wire_s, "compute_s_per_epoch_on_a_core": own_s, "wire_over_compute": wire_s / own_s,
                "idle_share_if_all_is_hidden": max(0.0, 1 - own_s / wire_s)}})
        print(f"{last['ratings']:11,} ratings, {dtype}, {hosts} hosts, {rate}: idle {cases[-1]['idle_share']:.1%}"
              + ("" if wire_s is None else f"; an epoch's factors take the wire {wire_s * 1e3:.1f} ms, a core computes "
                 f"{own_s * 1e3:.1f} ms"), flush=True)
    return cases


def draw(cases: list[dict[str, Any]], path: Path) -> None:
    """Draw where the time of each case goes, all of its ranks together, and how far the repeats' waiting differs."""
    groups = list(dict.fromkeys((case["ratings"], case["factors"]) for case in cases))
    figure = Figure(figsize=(7.2, 6.4), facecolor="white", layout="constrained")
    rows = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
    for axes, group in zip(rows, groups, strict=True):
        ratings, dtype = group
        own = [case for case in cases if (case["ratings"], case["factors"]) == group]
        style(axes, "share of all ranks' time while they learn, %" if group == groups[-1] else "",
              f"{ratings / 1e6:,.0f} million ratings, {dtype} factors", size=10)
        axes.grid(axis="y", visible=False)
        left = np.zeros(len(own))
        for phase in PHASES:
            shares = np.array([100 * case["mean_split_s"][phase] / sum(case["mean_split_s"].values()) for case in own])
            axes.barh(range(len(own)), shares, 0.7, left, color=COLOURS[phase], edgecolor=PAPER, hatch=HATCHES[phase],
                      label=phase)
            left += shares
        for at, case in enumerate(own):
            low, high = 100 * (1 - np.array(case["idle_shares"])[[-1, 0]])
            axes.plot([low, high], [at, at], color=INK, linewidth=1.2, marker="|", markersize=8,
                      label="wait begins, lowest to highest of the repeats" if at == 0 else None)
            axes.annotate(f"{case['idle_share']:.0%}", (100, at), (4, 0), textcoords="offset points", va="center",
                          color=INK, fontsize=10)
        axes.set_yticks(range(len(own)), [case["rate"] for case in own])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
    legend(figure, rows[0], n_columns=2, longest=80)
    save_svg(figure, path)


def main() -> None:
    """Measure in turns, write the results file and draw it."""
    parser = arguments(__doc__, repeats=3, draws=True)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--rates", nargs="+", default=["1gbit", "500mbit"])
    parser.add_argument("--ratings", type=int, nargs="+", default=[5_000_000, 20_000_000])
    given = parser.parse_args()
    if given.draw:
        drawn("mf_hosts", draw)
        return
    shapes, epochs, repeats = [Shape(count, 60_000, 20_000) for count in given.ratings], EPOCHS, given.repeats
    if given.tiny:
        shapes, epochs, repeats = [Shape(60_000, 2000, 600)], 2, 1
    cases = []
    for shape in shapes:
        with tempfile.TemporaryDirectory() as place:
            files = Files(made(Path(place), shape, holdout=0), shape)
            for dtype in ("float32", "float16"):
                cases += case(files, given.hosts, given.rates, dtype, epochs, repeats)
    finish("mf_hosts", cases, "one rank a host, hosts emulated on one machine whose cores they share; rates "
           "interleaved; medians; with half a core a rank, 500mbit stands for 1gbit", given.tiny, draw)


if __name__ == "__main__":
    main()
