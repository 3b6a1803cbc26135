#!/usr/bin/env python3
"""Strike real jobs at random and see that none is lost: kill ranks, fill disks, damage checkpoints.

    scripts/chaos.py [--seed 0] [--kills 200] [--supervised 20] [--elastic 50] [--files 100] [--launchers MPIRUN,…]
                     [--jobs 1] [--only kills:17] [-o RESULTS.json]

Kills: a rank is killed, stopped, raises or runs out of memory; the job must end in time, say why and leave no model,
and a resumed one, on any number of ranks, must end with the model of the undisturbed one. Supervised: it must get there
by itself. Elastic (Open MPI): the other ranks must get there. Files: full disks, damaged checkpoints, failing shards.
Prints a table; exit code 1 when anything was not as it must be. Which moments are struck depends on the seed alone.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from random import Random
from typing import Any

from chaos_runs.deaths import elastic, killed, supervised
from chaos_runs.faults import files
from chaos_runs.jobs import end_everything, folder_for_runs, launchers
from chaos_runs.shop import Case, Shop

from dml_hpc import __version__
from dml_hpc.files import replaced_file
from dml_hpc.reports.records import environment

KINDS: dict[str, tuple[Callable[[Shop, Random, int], Case], int]] = {
    "kills": (killed, 200), "supervised": (supervised, 20), "elastic": (elastic, 50), "files": (files, 100)}
"""Each kind's case, and how many there are by default."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases and return the exit code."""
    chosen = _parsed(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that all is tidied up
    wanted = _wanted(chosen)
    found = launchers([Path(path) for path in chosen.launchers.split(",") if path])
    if not any(launcher.name == "openmpi" for launcher in found):
        skipped = sum(kind == "elastic" for kind, _ in wanted)
        wanted = [(kind, number) for kind, number in wanted if kind != "elastic"]
        if skipped:
            print(f"elastic: {skipped} cases are left out, as they need Open MPI's mpirun (--launchers)")
    done: list[Case] = []
    with folder_for_runs() as folder, ThreadPoolExecutor(chosen.jobs) as pool:
        shop = Shop(found, folder)
        try:
            for case in pool.map(lambda one: run_case(shop, chosen.seed, *one), wanted):
                done.append(case)
                if case.faults or chosen.only:
                    print(f"{case.kind}:{case.number} {json.dumps(case.what)} "
                          f"{'; '.join(case.faults) or 'good'}\n{case.said}", flush=True)
                if len(done) % 20 == 0:
                    print(f"{len(done)} of {len(wanted)} cases", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            end_everything(folder)
            raise
    summary = summarised(done)
    print("\n".join(table(summary)))
    if chosen.output is not None:
        write_results(chosen.output, chosen.seed, done, summary)
    return 1 if any(case.faults for case in done) else 0


def run_case(shop: Shop, seed: int, kind: str, number: int) -> Case:
    """Run case ``number`` of a kind; what it draws depends on these and the seed."""
    return KINDS[kind][0](shop, Random(f"{seed} {kind} {number}"), number)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    for kind, (_, count) in KINDS.items():
        parser.add_argument(f"--{kind}", type=int, default=count, metavar="N")
    parser.add_argument("--launchers", default="", help="mpiruns, separated by commas; default: that of this Python")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time; recovery times need one")
    parser.add_argument("--only", help="one kind, or one case: kills, kills:17")
    parser.add_argument("-o", "--output", type=Path, help="where the results go, as JSON")
    return parser.parse_args(arguments)


def _wanted(chosen: argparse.Namespace) -> list[tuple[str, int]]:
    kind, _, number = (chosen.only or "").partition(":")
    if kind and kind not in KINDS:
        raise SystemExit(f"--only: there are {', '.join(KINDS)}")
    if number:
        return [(kind, int(number))]
    return [(one, case) for one in KINDS if kind in ("", one) for case in range(getattr(chosen, one))]


def _group(case: Case) -> str:
    if case.kind in ("kills", "supervised"):
        return f"{case.kind}: {case.what['how']} in {case.what['moment']}"
    if case.kind == "elastic":
        return f"elastic: {case.what['deaths']} of 4 ranks, {case.what['algorithm']}"
    return f"files: {case.what['fault']}{' (skipped)' if 'skipped' in case.what else ''}".replace("_", " ")


def summarised(cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """Return the figures of each group of cases, and of each kind as a whole."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(_group(case), []).append(case)
    for kind in KINDS:
        if whole := [case for case in cases if case.kind == kind]:
            groups[f"{kind}, all"] = whole
    return {name: _figures(group) for name, group in groups.items()}


def _figures(cases: Sequence[Case]) -> dict[str, Any]:
    figures: Counter[str] = Counter()
    for case in cases:
        figures.update(cases=1, skipped="skipped" in case.what, struck=case.struck > 0, hangs=case.hung,
                       wrong_models=case.wrong_model, resumed=case.resumed, same_digest=case.same_digest,
                       bad=bool(case.faults))
    recoveries = [case.recovery_s for case in cases if case.recovery_s is not None]
    ends = [case.ended_s for case in cases if case.ended_s is not None]
    counts = {name: int(count) for name, count in figures.items()}
    return {**counts, "ended_s": _spread(ends), "recovery_s": _spread(recoveries)}


def _spread(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {"median": round(statistics.median(seconds), 3), "max": round(max(seconds), 3)}


def table(summary: dict[str, dict[str, Any]]) -> list[str]:
    """Return the summary as lines of text."""
    columns = ("cases", "struck", "hangs", "wrong_models", "resumed", "same_digest", "bad")
    width = max((len(name) for name in summary), default=0)
    lines = [" " * width + "".join(f"{name.replace('_', ' '):>14}" for name in (*columns, "end s", "recovery s"))]
    for name, figures in summary.items():
        times = [figures["ended_s"], figures["recovery_s"]]
        shown = [f"{time['median']:.2f}–{time['max']:.2f}" if time else "" for time in times]
        lines.append(f"{name:{width}}" + "".join(f"{value:>14}" for value in (*(figures[one] for one in columns),
                                                                              *shown)))
    return [*lines, "times: the median and the longest, from the strike to the job's end or to the next step"]


def write_results(path: Path, seed: int, cases: Sequence[Case], summary: dict[str, dict[str, Any]]) -> None:
    """Write what was run, where, when, and what came of it."""
    root = Path(__file__).parents[1]
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, text=True, capture_output=True)
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "dml_hpc", "kernels", "scripts"], cwd=root,
                             capture_output=True).returncode
    body = {
        "command": " ".join(["python", *sys.orig_argv[1:]]), "seed": seed,
        "date": datetime.now(timezone.utc).date().isoformat(), "dml_hpc": __version__,
        "commit": commit.stdout.strip() + ("-dirty" if changed else ""),
        "environment": {key: value for key, value in environment().items() if key != "host"},
        "summary": summary,
        "cases": [{key: value for key, value in asdict(case).items() if key != "said"} for case in cases],
    }
    with replaced_file(path) as new:
        new.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
