"""``dml-hpc bench scaling``: the same job on several numbers of ranks, in turns, into the records that reports read."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dml_hpc.commands.rank_launchers import (
    Launcher,
    emulated_hosts,
    in_slurm_job,
    nodes_of_job,
    open_launcher,
    ranks_per_node,
)
from dml_hpc.commands.ranks_run import program, run_ranks
from dml_hpc.commands.weak import growing_data, growing_ratings
from dml_hpc.console import Console
from dml_hpc.errors import EXIT_JOB, EXIT_USER, JobError, UserError
from dml_hpc.files import PREFIX, check_output
from dml_hpc.reports.quantities import Record, count, duration, positive
from dml_hpc.reports.records import append_line
from dml_hpc.reports.scaling import Analysis, analyse
from dml_hpc.reports.tables import bench_table, group_table
from dml_hpc.reports.timing import interleave

OUTPUTS = {"output": "-o", "left": "--left", "plot": "--plot", "trace": "--trace"}
"""What runs write where a user may have something else."""
_ONE_RUN = {"checkpoint": "--checkpoint", "resume": "--resume", "elastic": "--elastic", "min_ranks": "--min-ranks"}
"""Options of runs that are interrupted."""


class RunError(JobError):
    """A run has failed, with this exit code."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def run(console: Console, words: Sequence[str], parsed: Mapping[str, Any], record: Path,
        ranks: Sequence[int] | None = None, repeats: int = 5, weak: bool = False, launcher: str = "auto",
        ranks_per_node: int | None = None, emulate_hosts: bool = False, rate: str | None = None,
        delay: str | None = None, ranks_per_host: int | None = None) -> dict[str, Any]:
    """Run a verb on each of so many ``ranks``, ``repeats`` times, and append the records of its runs to ``record``.

    ``words`` are those of the verb, ``parsed`` what it makes of them (see `dml_hpc.inner.arguments_of`). In every round
    all numbers of ranks take turns, another one first in each; the round before them does not count. Outputs that
    are left out go to a folder that is removed at the end. Every record is written whole, when its run has ended, with
    ``scaling`` ("strong", "weak"), ``round`` and ``started_by``, and what the launcher's own keys are.

    Returns ``results`` (one for each number of ranks, or for each of its sizes and cases), ``runs`` (how many were
    recorded), ``records`` (the file) and ``scaling``. Raises `UserError` for what could not run, before anything is
    started, and `RunError` with the exit code of a run that failed.
    """
    hosts = {"--rate": rate, "--delay": delay, "--ranks-per-host": ranks_per_host}
    for option, value in hosts.items():
        if value is not None and not emulate_hosts:
            raise UserError(f"{option} is for emulated hosts: give --emulate-hosts as well, or leave it out")
    _check(parsed, weak)
    ranks = _ranks(ranks, ranks_per_node, emulate_hosts)
    growing = growing_ratings if "ratings" in parsed else growing_data
    data = growing(parsed, ranks) if weak else None
    if emulate_hosts:
        if launcher != "auto" or ranks_per_node is not None:
            raise UserError("emulated hosts have a launcher of their own: leave out --launcher and --ranks-per-node")
        starter = emulated_hosts(ranks, rate or "1gbit", delay, ranks_per_host or 1)
    else:
        starter = open_launcher(launcher, ranks, ranks_per_node)
    console.say(f"scaling  {shlex.join(words)}: {count(repeats, 'round')} on {', '.join(map(str, ranks))} ranks, after "
                "one that does not count")
    if data is not None:
        console.say(f"weak     {data.told}")
    if starter.warning is not None:
        console.say(f"note     {starter.warning}")
    with tempfile.TemporaryDirectory(prefix=PREFIX, suffix=".partial", dir=record.absolute().parent,
                                     ignore_cleanup_errors=True) as folder:
        job = _Job(words, parsed, starter, record, Path(folder), console, repeats * len(ranks),
                   None if data is None else data.files(Path(folder)))
        job.rounds(ranks, repeats)
    analysis = analyse(job.records)
    _show(console, analysis)
    console.say(f"records  {record}: {count(len(job.records), 'run')} appended; the report: dml-hpc report "
                f"{shlex.quote(str(record))} -o report.html")
    return {"scaling": "weak" if weak else "strong", "results": _results(analysis), "runs": len(job.records),
            "repeats": repeats, "records": str(record)}


def _check(parsed: Mapping[str, Any], weak: bool) -> None:
    """Raise `UserError` for what cannot be repeated."""
    for name, option in _ONE_RUN.items():
        if parsed.get(name):
            raise UserError(f"{option} is for one run, and this one is repeated: leave it out")
    if "record" in parsed["given"]:
        raise UserError("--record stands before the --: runs are recorded in one file")
    for name, option in OUTPUTS.items():
        if parsed.get(name) is not None:
            check_output(parsed[name], parsed["overwrite"], folder=name == "left", option=option,
                         inputs=parsed["inputs"])
    if weak:
        if not parsed["inputs"]:
            raise UserError(f"--weak: the work of {parsed['verb']} is no data, which could grow with the ranks")
        for name in ("steps", "time_budget"):
            if parsed.get(name) is not None:
                raise UserError(f"--weak: --{name.replace('_', '-')} fixes the work; give --epochs, which grow with "
                                "the data")
        if "ratings" in parsed and parsed["test"] is not None:
            raise UserError("--weak: --test is of all users, of whom fewer ranks have fewer: leave it out")


def _ranks(asked: Sequence[int] | None, per_node: int | None, emulated: bool) -> Sequence[int]:
    if asked is not None:
        return asked
    if emulated or not in_slurm_job():
        raise UserError("on how many ranks? give --ranks 1,2,4")
    nodes = nodes_of_job()
    powers = [1 << power for power in range(nodes.bit_length()) if 1 << power < nodes]
    return [number * ranks_per_node(per_node) for number in (*powers, nodes)]


@dataclass
class _Job:
    """What is run, by what, and where its records go; ``records`` are those written so far."""

    words: Sequence[str]
    parsed: Mapping[str, Any]
    launcher: Launcher
    record: Path
    folder: Path
    console: Console
    n_runs: int
    data: Mapping[int, Sequence[str]] | None

    def __post_init__(self) -> None:
        self.records: list[Record] = []

    def rounds(self, ranks: Sequence[int], repeats: int) -> None:
        """Run on every number of ranks once for nothing, then in turns."""
        for number in ranks:
            self.run(number, 0)
        turns = {number: self._turns(number) for number in ranks}
        interleave(turns, repeats)

    def _turns(self, ranks: int) -> Callable[[], float]:
        rounds = iter(range(1, self.n_runs + 1))
        return lambda: self.run(ranks, next(rounds))

    def run(self, ranks: int, at: int) -> float:
        """Run on so many ranks in round ``at``, 0: the one that does not count; return the seconds of its work."""
        # A name of its own: a shared file system may go on telling for a while that there is no such file.
        own = self.folder / f"record-{ranks}-{at}.jsonl"
        command = self.command(ranks)
        added = ["--no-progress", "--record", str(own)]
        if "output" in self.parsed and self.parsed["output"] is None:
            added += ["-o", str(self.folder / "output")]
        if self.parsed.get("probe") is False and ranks > 1:
            added.append("--probe")
        verb = 2 if command[0] == "bench" else 1
        line = [*self.launcher.line(ranks), *program(), *command[:verb], *added, *command[verb:]]
        done = run_ranks(line, self.launcher.environment)
        where = f"{count(ranks, 'rank')}, " + (f"round {at}" if at else "the round that does not count")
        if done.code:
            raise _failed(done.code, done.said, where, len(self.records), self.record)
        if not at and done.said.strip():
            print(done.said.rstrip("\n"), file=sys.stderr, flush=True)
        found = _read(own, ranks, where)
        for key in ("model", "output", "data"):
            if self._passing(found.get(key)):
                found[key] = str(self.parsed["ratings"]) if key == "data" else None
        seconds = positive(found, "work_s") or positive(found, "seconds") or 0.0
        if at:
            lasting = [str(self.parsed["ratings"]) if self._passing(word) else word for word in command]
            found |= {"arguments": lasting, "started_by": self.launcher.told(ranks),
                      "scaling": "strong" if self.data is None else "weak", "round": at, **self.launcher.keys}
            append_line(self.record, found)
            self.records.append(found)
            self.console.say(f"run      {len(self.records)} of {self.n_runs}: {where}, {duration(seconds)}")
        return seconds

    def _passing(self, path: Any) -> bool:
        """Say whether a path does not outlast this process: such are ratings of fewer users, and what runs write."""
        return str(path).startswith(str(self.folder))

    def command(self, ranks: int) -> list[str]:
        """Return the words of the verb on so many ranks."""
        words = list(self.words)
        if self.data is not None:
            first, *others = self.parsed["places"]
            for place in reversed(others):
                del words[place]
            words[first:first + 1] = self.data[ranks]
        verb = ["bench"] * (self.parsed["verb"] == "allreduce" and words[0] != "bench")
        writes = "output" in self.parsed or any(self.parsed.get(name) is not None for name in OUTPUTS)
        after = ["--overwrite"] if writes and "overwrite" not in self.parsed["given"] else []
        at = 2 if words[0] == "bench" or verb else 1
        words = [*verb, *words]
        return [*words[:at], *after, *words[at:]]


def _failed(code: int, said: str, where: str, written: int, record: Path) -> RunError:
    lines = said.strip().splitlines()
    if code == EXIT_USER and len(lines) == 1:  # a mistake, said in a line
        return RunError(f"{lines[0].removeprefix('dml-hpc: ')} ({where})", code)
    if lines:
        print("\n".join(lines), file=sys.stderr, flush=True)
    kept = f"; {count(written, 'record')} of runs before stay in {record}" if written else ""
    return RunError(f"the run on {where}, failed with exit code {code}{kept}", code)


def _read(path: Path, ranks: int, where: str) -> Record:
    """Return the record that a run has left. Raises `RunError` for none, or one of another number of ranks."""
    found: Any = None
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise RunError(f"the run on {where}, has ended without a record: rank 0 was lost, or cannot see the folder of "
                       "--record", EXIT_JOB)
    if found.get("ranks") != ranks:
        raise RunError(f"the run on {where}, had {found.get('ranks')}: the launcher and this Python's MPI library do "
                       "not fit (`dml-hpc doctor` tells more)", EXIT_JOB)
    return found


def _show(console: Console, analysis: Analysis) -> None:
    for group in analysis.groups:
        console.say()
        console.say(group.label)
        table = group_table(group)
        console.table(table.header, table.rows)
        console.say(group.verdict)
    for bench in analysis.benches:
        console.say()
        console.say(bench.label)
        table = bench_table(bench)
        console.table(table.header, table.rows)
    console.say()
    for line in analysis.left_out:
        console.say(line)


def _results(analysis: Analysis) -> list[dict[str, Any]]:
    nothing = {"bytes": None, "bus_bandwidth_bytes_per_s": None, "errors": 0, "vs": None}
    results = [{"case": group.label, **nothing, "ranks": point.ranks, "nodes": point.nodes, "repeats": point.repeats,
                "seconds_median": point.seconds, "seconds_p99": point.seconds_max, "seconds_low": point.low,
                "seconds_high": point.high, "speedup": point.speedup, "efficiency": point.efficiency}
               for group in analysis.groups for point in group.points]
    return results + [
        {"case": cell.case, **nothing, "ranks": bench.ranks, "nodes": bench.nodes, "repeats": len(cell.times),
         "seconds_median": cell.seconds, "seconds_p99": max(cell.times, default=cell.seconds), "bytes": cell.bytes,
         "bus_bandwidth_bytes_per_s": cell.bandwidth, "errors": cell.errors}
        for bench in analysis.benches for cell in bench.cells]
