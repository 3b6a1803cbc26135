"""Where the numbers of a report come from: the exact commands, the machines, versions."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable
from typing import Any

from dml_hpc.reports.document import Column, Table, table
from dml_hpc.reports.quantities import Record, whole

MOST_HOSTS = 3
"""That are named of those with the same hardware and versions."""


def commands_table(records: Iterable[Record]) -> Table:
    """Return a row for every distinct command, with what launched it where the record knows."""
    runs: Counter[tuple[str, str]] = Counter()
    for record in records:
        arguments, launcher = record.get("arguments"), record.get("launcher")
        line = f"{record['command']} (its options were not recorded)"
        if isinstance(arguments, list):
            line = shlex.join(map(str, arguments))
        start = f"{launcher} " if isinstance(launcher, str) and launcher.strip() else ""
        runs[str(record["ranks"]), f"{start}dml-hpc {line}"] += 1
    return table("commands", (Column("ranks", "ranks"), Column("runs", "runs"), Column("command", "command")),
                 [(ranks, n, line) for (ranks, line), n in runs.items()])


def machines_table(records: Iterable[Record]) -> Table:
    """Return a row for every distinct environment, with the hosts that ran it (those of rank 0) and their numbers."""
    runs: Counter[tuple[str, str]] = Counter()
    hosts: dict[tuple[str, str], dict[str, None]] = {}
    nodes: dict[tuple[str, str], set[int]] = {}
    for record in records:
        environment = record.get("environment")
        known = environment if isinstance(environment, dict) else {"machine": "not recorded"}
        machine = _words({key: value for key, value in known.items() if key not in ("host", "slurm_job")})
        place = str(record.get("version", "–")), machine
        runs[place] += 1
        hosts.setdefault(place, {}).update({str(known["host"]): None} if "host" in known else {})
        if (n_nodes := whole(record.get("nodes"))) is not None:
            nodes.setdefault(place, set()).add(n_nodes)
    columns = (Column("version", "version"), Column("runs", "runs"), Column("nodes", "nodes"),
               Column("hosts of rank 0", "hosts"), Column("machine", "machine"))
    return table("machines", columns, [
        (version, n, ", ".join(map(str, sorted(nodes.get((version, machine), ())))) or None,
         _some(list(hosts[version, machine])) or None, machine) for (version, machine), n in runs.items()])


def _some(names: list[str]) -> str:
    return ", ".join(names[:MOST_HOSTS]) + (f" and {len(names) - MOST_HOSTS} more" if names[MOST_HOSTS:] else "")


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items() if inner is not None)
    return str(value)
