"""Made-up run records, of runs whose truth is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dml_hpc.comm.cost import cost


def rank(read: float = 0.0, compute: float = 0.0, communicate: float = 0.0, wait: float = 0.0,
         **more: float) -> dict[str, float]:
    return {"read": read, "compute": compute, "communicate": communicate, "wait": wait, "rows": 1000.0,
            "work_s": read + compute + communicate + wait, **more}


def record(ranks: list[dict[str, float]], per_node: int = 1, **more: Any) -> dict[str, Any]:
    """Return a record of ``train`` that took as long as its longest rank."""
    work_s = max(one["work_s"] for one in ranks)
    phases = ("read", "compute", "communicate", "wait")
    p = len(ranks)
    return {"command": "train", "objective": "logistic", "algorithm": "sync", "allreduce": "ring", "data": "d/train",
            "arguments": ["train", "d/train"], "ranks": p, "seconds": work_s + 1, "work_s": work_s, "per_rank": ranks,
            "time_split": {phase: max(one[phase] for one in ranks) for phase in phases},
            "hosts": [f"node{i // per_node}" for i in range(p)], "nodes": -(-p // per_node), "allreduce_used": "ring",
            "dtype": "float32", "parameters": 1_000_000, "steps": 100, "batch_size": 4096, **more}


def together(busy: list[float], communicate: float = 0.0, **more: float) -> list[dict[str, float]]:
    """Return ranks that compute for so long and wait for the slowest one."""
    return [rank(compute=own, communicate=communicate, wait=max(busy) - own, **more) for own in busy]


class Truth:
    """A job whose time is known at any number of ranks: t(p) = serial + parallel/p + steps · (α, β) + skew."""

    def __init__(self, parallel: float = 100.0, serial: float = 0.5, alpha: float = 2e-5, beta: float = 1e-9,
                 skew: float = 0.02, noise: float = 0.02, steps: int = 1000, parameters: int = 250_000):
        self.parallel, self.serial, self.alpha, self.beta = parallel, serial, alpha, beta
        self.skew, self.noise, self.steps, self.parameters = skew, noise, steps, parameters

    def parts(self, p: int) -> tuple[float, float, float]:
        busy = self.serial + self.parallel / p
        found = cost("ring", p, p, 4 * self.parameters)
        sums = 0.0 if found is None else self.steps * (found.messages * self.alpha + found.n_bytes * self.beta)
        return busy, sums, self.skew * busy if p > 1 else 0.0

    def seconds(self, p: int) -> float:
        return sum(self.parts(p))

    def runs(self, ranks: list[int], repeats: int, random: np.random.Generator) -> list[dict[str, Any]]:
        found = []
        for p in ranks:
            for _ in range(repeats):
                # What disturbs a run disturbs all of its parts, and each of them by itself.
                whole = random.normal(0, self.noise / math.sqrt(2))
                busy, sums, skew = (part * math.exp(whole + random.normal(0, self.noise / math.sqrt(2)))
                                    for part in self.parts(p))
                found.append(record([rank(compute=busy, communicate=sums, wait=skew)] * p, steps=self.steps,
                                    parameters=self.parameters))
        return found
