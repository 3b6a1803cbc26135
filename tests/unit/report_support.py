"""Made-up records of runs that have a trace, for the tests of the report's figures and of its page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

HOSTILE = '<script>alert("1")</script> $\\frac{ | & --> https://example.org'
PHASES = ("read", "compute", "communicate", "wait")


def run(ranks: int, repeat: int = 0, slow: int | None = None, points: int = 24, **more: Any) -> dict[str, Any]:
    """Return the record of a training run of about 24/p s and some all-reduces; ``slow`` computes 1.3 times as long."""
    own = [(21 / ranks + 1) * (1.3 if rank == slow else 1.0) * (1 + 0.01 * repeat) for rank in range(ranks)]
    per_rank = [{"read": 2 / ranks, "compute": busy, "communicate": 0.2 * math.log2(ranks), "wait": max(own) - busy,
                 "rows": 1000, "work_s": 2 / ranks + max(own) + 0.2 * math.log2(ranks)} for busy in own]
    work_s = per_rank[0]["work_s"]
    trace = [[{"seconds": work_s * i / points, "examples": 100 * i, "loss": 0.3 + 0.4 * math.exp(-i / 5), "idle": 0.1,
               "bytes_sent": 0, **{phase: rank[phase] * i / points for phase in PHASES}}
              for i in range(1, points + 1)] for rank in per_rank]
    return {"format": 1, "started": "2026-11-22T19:42:10+00:00", "command": "train", "version": "0.1.0", "ranks": ranks,
            "nodes": -(-ranks // 2), "hosts": [f"node{rank // 2}" for rank in range(ranks)], "repeat": repeat,
            "launcher": f"mpirun -n {ranks}", "arguments": ["train", "flights/train", "-o", "model.h5"],
            "environment": {"host": "node0", "cpu": "AMD EPYC", "cores": 2, "versions": {"numpy": "2.4.6"}},
            "seconds": work_s + 1, "work_s": work_s, "objective": "logistic", "algorithm": "sync", "allreduce": "ring",
            "allreduce_used": "ring", "data": "flights/train", "dtype": "float32", "batch_size": 1024, "epochs": 2.0,
            "steps": 400, "parameters": 20000, "examples": 500_000, "rows": 250_000, "features": 160,
            "time_split": {phase: max(rank[phase] for rank in per_rank) for phase in PHASES},
            "per_rank": per_rank, "trace": trace, **more}


def bench(nodes: int = 8, **more: Any) -> dict[str, Any]:
    """Return the record of a ``bench allreduce`` over one rank a node, and a wire of 125 MB/s between nodes."""
    results = [{"case": f"{name} float32", "reducer": name, "dtype": "float32", "bytes": n_bytes, "errors": 0,
                "seconds_median": seconds * nodes, "bus_bandwidth_bytes_per_s": n_bytes / seconds / nodes * 1.75}
               for name, slow in (("ring", 1.0), ("tree", 2.2), ("mpi", 1.6))
               for n_bytes, seconds in ((1024, 1e-4 / slow), (2**20, 2.4e-3 * slow), (2**24, 35e-3 * slow))]
    wire = {"alpha_s": 2e-5, "beta_s_per_byte": 8e-9, "bandwidth_bytes_per_s": 1.25e8}
    return {"command": "bench allreduce", "ranks": nodes, "nodes": nodes, "seconds": 9.0, "results": results,
            "arguments": ["bench", "allreduce"], "wire": {"within_node": None, "between_nodes": wire, "pairs": []},
            **more}


def usual() -> list[dict[str, Any]]:
    """Return what a person would give: a job with a slow rank, another way to train, a benchmark."""
    job = [run(ranks, repeat, slow=1 if ranks > 2 else None) for ranks in (1, 2, 4, 8) for repeat in range(3)]
    local = [run(ranks, repeat, algorithm="local", tau=8) for ranks in (1, 4) for repeat in range(2)]
    return [*job, *local, bench()]


def odd() -> dict[str, list[dict[str, Any]]]:
    """Return records that a page must survive: hostile, empty, broken, few, many."""
    broken = {"trace": [[{"seconds": math.nan}, 3, None], "x"], "per_rank": [None], "wire": 7, "hosts": "x",
              "nodes": -1, "environment": None, "arguments": 3, "launcher": 5, "started": None, "steps": "many",
              "time_split": {"read": math.nan}}
    return {
        "hostile": [*(run(ranks, data=HOSTILE, allreduce=name, version=HOSTILE, hosts=[HOSTILE] * ranks, note=HOSTILE,
                          arguments=["train", HOSTILE], environment={"cpu": HOSTILE}, launcher=HOSTILE)
                      for ranks in (1, 2, 8) for name in ("ring", HOSTILE)),
                    {"command": "bench allreduce", "ranks": 4, "seconds": 1.0, "nodes": 2, "wire": HOSTILE,
                     "results": [{"case": HOSTILE, "bytes": 1, "seconds_median": 1, "bus_bandwidth_bytes_per_s": 1}]}],
        "broken": [run(1), {**run(2), **broken}],
        "broken everywhere": [{**run(ranks), **broken} for ranks in (1, 2)],
        "one rank": [run(1)],
        "no more than a time": [{"command": "train", "ranks": ranks, "seconds": 8.0 / ranks} for ranks in (1, 2)],
        "512 ranks": [run(ranks, slow=300 if ranks > 300 else None, points=6) for ranks in (1, 512)],
        "40 jobs": [run(ranks, data=f"set-{job}", points=4) for job in range(40)
                    for ranks in ((1, 2) if job % 5 == 0 else (1,))],
        "weak": [run(ranks, scaling="weak", rows=1000 * ranks, examples=1000 * ranks, work_s=10 + ranks / 10)
                 for ranks in (1, 2, 4)],
    }


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
