"""Which runs are the same job, and what a job is called."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dml_hpc.reports.quantities import Record

JOB_KEYS = ("command", "objective", "hidden", "algorithm", "tau", "allreduce", "compression", "compression_ratio",
            "compression_rank", "overlap", "exchange", "reproducible", "device", "rows_as", "data", "rows", "features",
            "k", "method", "implicit", "solver", "biases", "test", "batch_size", "epochs", "repeats", "optimizer",
            "schedule", "momentum", "dtype", "fan_in", "factors_dtype", "threads", "scale", "intercept", "shuffle",
            "rebalance", "memory_limit", "emulated", "rate", "delay", "ranks_per_host", "scaling")
"""Runs that agree in all of these did the same work and may be compared at different numbers of ranks."""
TITLE_KEYS = ("command", "objective", "algorithm", "allreduce", "compression", "reproducible", "device", "data", "k",
              "method", "implicit", "solver", "batch_size", "epochs", "dtype", "emulated", "rate", "scaling")
"""What names a job; of the others only those in which it differs from its peers."""
GROWING = ("data", "rows")
"""What differs between the runs of one job when the work grows with the ranks."""


def is_weak(record: Record) -> bool:
    """Say whether the run is one of weak scaling: the work grows with the ranks."""
    return record.get("scaling") == "weak"


def settings(record: Record) -> Record:
    """Return what tells the run's job from others."""
    left_out = GROWING if is_weak(record) else ()
    found = {key: record[key] for key in JOB_KEYS if record.get(key) is not None and key not in left_out}
    # What older records do not tell is what is not so in newer ones.
    for key in ("overlap", "rebalance", "emulated"):
        if found.get(key) is False:
            del found[key]
    if found.get("scaling") != "weak":
        found.pop("scaling", None)
    if found.get("algorithm") == "lbfgs":
        found.pop("epochs", None)  # those that its line searches took, which rounding may change
    if found.get("allreduce") == "auto":
        found.pop("fan_in", None)  # of the reducer that it took, which may be another one in each run
    return found


def counted(record: Record) -> str:
    """Return what a run's rows or examples are called."""
    return "ratings" if record.get("command") == "mf" else "examples"


def job(record: Record) -> tuple[str, ...]:
    """Return `settings` as what can be compared and ordered."""
    return tuple(json.dumps([key, value], sort_keys=True) for key, value in settings(record).items())


def title(record: Record) -> list[str]:
    """Return the words of a job's name."""
    return [_setting(key, value) for key, value in settings(record).items() if key in TITLE_KEYS and value is not False]


def short_names(records: Sequence[Record]) -> list[str]:
    """Name each job by the settings in which it differs from others of its verb, for labels in a figure."""
    several = any(record["command"] != records[0]["command"] for record in records)
    names = []
    for record in records:
        peers = [settings(peer) for peer in records if peer["command"] == record["command"]]
        parts = [_setting(key, value) for key, value in settings(record).items()
                 if (several if key == "command" else any(peer.get(key) != value for peer in peers))]
        names.append(", ".join(parts) or str(record["command"]))
    return names


def _setting(key: str, value: Any) -> str:
    name = key.replace("_", " ")
    if isinstance(value, bool):
        return name if value else f"not {name}"
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if key == "scaling":
        return f"{value} scaling"
    if key == "test":
        return f"tested on {value}"
    return value if isinstance(value, str) and key != "batch_size" else f"{name} {value}"
