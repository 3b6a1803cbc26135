"""``dml-hpc bench allreduce``: how long a sum over the ranks takes, by size and reducer, and is it right?

Results are checked on small integers, whose sums have no rounding in any order. Bus bandwidth is
bytes/time · 2(p − 1)/p: what the busiest wire must carry, whatever the algorithm, so that all are held
against the same limit (nccl-tests, doc/PERFORMANCE.md).
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.comm import REDUCERS, open_reducer
from dml_hpc.errors import EXIT_JOB, UserError, did_you_mean
from dml_hpc.mpi import agreed
from dml_hpc.reports.timing import calls_per_timing, interleave, summarise

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.comm.reducer import Reducer
    from dml_hpc.console import Console

DTYPES = ("float32", "float64", "int64")
LEAST_TIMING_S = 2e-4
"""Shorter calls are timed several at a time: far above the clock's tick, the barrier's skew shared by all."""
WARM_UPS = 3
PATTERN = 10_007
"""Addends repeat with this period: a prime, so that no segment in the wrong place looks right."""


def run(comm: Intracomm, console: Console, sizes: tuple[int, ...], reducers: tuple[str, ...], dtype: str,
        repeats: int, fan_in: int) -> dict[str, Any]:
    """Collective: time every reducer at every size (bytes, rounded up to whole elements).

    Returns the ``--json`` keys. At each size the reducers take turns, ``repeats`` rounds. A timing is that of
    the slowest rank, from a barrier to the end of its call (of short calls: the mean of several). ``errors``
    counts wrong elements over all ranks and checks; any makes the exit code 1. Raises `AgreedError` on every
    rank for an unknown name or a senseless number.
    """
    with agreed(comm):
        _check(sizes, reducers, dtype, repeats, fan_in)
    itemsize = np.dtype(dtype).itemsize
    counts = list(dict.fromkeys(-(-size // itemsize) for size in sizes))
    reducers = tuple(dict.fromkeys(reducers))
    bar = console.bar(len(counts), "bench allreduce")
    results: list[dict[str, Any]] = []
    for count in counts:
        results += _measure(comm, count, reducers, dtype, repeats, fan_in)
        bar.advance(1)
    bar.close()
    _show(console, results, comm.size, dtype)
    wrong = sum(result["errors"] for result in results)
    if wrong:
        console.say(f"{wrong} elements were summed WRONGLY: do not trust these reducers on this machine")
    outcome: dict[str, Any] = {"results": results, "dtype": dtype, "repeats": repeats, "fan_in": fan_in}
    return {**outcome, "exit_code": EXIT_JOB} if wrong else outcome


def _check(sizes: tuple[int, ...], reducers: tuple[str, ...], dtype: str, repeats: int, fan_in: int) -> None:
    for name in reducers:
        if name not in REDUCERS:
            raise UserError(f"unknown reducer {name!r}{did_you_mean(name, REDUCERS)}; "
                            f"there are {', '.join(REDUCERS)}")
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}{did_you_mean(dtype, DTYPES)}; "
                        f"there are {', '.join(DTYPES)}")
    if not sizes or not reducers:
        raise UserError("there is nothing to measure; name at least one size and one reducer")
    for what, value, least in (("a size", min(sizes), 0), ("repeats", repeats, 1), ("fan-in", fan_in, 1)):
        if value < least:
            raise UserError(f"{what} of {value} makes no sense; it is at least {least}")


class _Trial:
    """One reducer at one size: timed calls and the wrong elements this rank has seen."""

    def __init__(self, comm: Intracomm, reducer: Reducer, addend: np.ndarray, expected: np.ndarray):
        self.comm, self.reducer, self.addend, self.expected = comm, reducer, addend, expected
        self.errors = 0
        self.calls = 1
        seconds = min(self() for _ in range(WARM_UPS))
        # All ranks must make the same number of calls: the slowest rank's clock decides.
        self.calls = calls_per_timing(max(comm.allgather(seconds)), LEAST_TIMING_S)

    def __call__(self) -> float:
        """Collective: time ``calls`` all-reduces, check one result, return this rank's seconds a call."""
        reducer = self.reducer
        reducer.buffer[:] = self.addend
        self.comm.Barrier()
        started = time.perf_counter()
        for _ in range(self.calls):
            reducer.allreduce()
        seconds = (time.perf_counter() - started) / self.calls
        if self.calls > 1:
            # Sums of sums soon leave the range where floats are exact: check a call that starts afresh.
            reducer.buffer[:] = self.addend
            reducer.allreduce()
        self.errors += int(np.count_nonzero(reducer.buffer != self.expected))
        return seconds


def _measure(comm: Intracomm, count: int, reducers: tuple[str, ...], dtype: str, repeats: int,
             fan_in: int) -> list[dict[str, Any]]:
    """Collective: return one result a reducer for vectors of ``count`` elements."""
    p = comm.size
    addend = np.resize(_addend(comm.rank), count).astype(dtype)
    expected = np.resize(sum(_addend(rank) for rank in range(p)), count).astype(dtype)
    with ExitStack() as opened:
        trials = {
            name: _Trial(comm, opened.enter_context(open_reducer(name, comm, count, dtype, fan_in=fan_in)),
                         addend, expected)
            for name in reducers
        }
        own = interleave(trials, repeats)
    seconds = {name: np.max(comm.allgather(own[name]), axis=0) for name in reducers}
    errors = {name: sum(comm.allgather(trials[name].errors)) for name in reducers}
    summaries = {name: summarise(seconds[name]) for name in reducers}
    base_s = summaries["mpi"].median_s if "mpi" in reducers else None
    results = []
    for name in reducers:
        median_s, p99_s = summaries[name]
        per_s = addend.nbytes / median_s
        results.append({
            "case": f"{name} {addend.nbytes}",
            "reducer": name,
            "bytes": addend.nbytes,
            "seconds_median": median_s,
            "seconds_p99": p99_s,
            "calls_per_timing": trials[name].calls,
            "algorithm_bandwidth_bytes_per_s": per_s,
            "bus_bandwidth_bytes_per_s": per_s * 2 * (p - 1) / p if p > 1 else None,
            "errors": errors[name],
            "vs": None if base_s is None else {"mpi": base_s / median_s},
        })
    return results


def _addend(rank: int) -> np.ndarray:
    """Return one period, (`PATTERN`,) int64, of what ``rank`` adds: −8 … 8, different on every rank."""
    return (np.arange(PATTERN) * (rank % 16 + 1) + rank) % 17 - 8


def _show(console: Console, results: list[dict[str, Any]], ranks: int, dtype: str) -> None:
    many = "s" if ranks > 1 else ""
    console.say(f"all-reduce of {dtype} over {ranks} rank{many}; times are the slowest rank's")

    def rate(value: float | None) -> str:
        return "-" if value is None else f"{value / 1e9:.3f}"

    console.table(
        ("bytes", "reducer", "median µs", "p99 µs", "bus GB/s", "algorithm GB/s", "× mpi", "errors"),
        [(r["bytes"], r["reducer"], f"{r['seconds_median'] * 1e6:.1f}", f"{r['seconds_p99'] * 1e6:.1f}",
          rate(r["bus_bandwidth_bytes_per_s"]), rate(r["algorithm_bandwidth_bytes_per_s"]),
          "-" if r["vs"] is None else f"{r['vs']['mpi']:.2f}", r["errors"]) for r in results])
