"""``dml-hpc bench allreduce``: how long a sum over the ranks takes, by size, type and reducer, and is it right?

docs/collectives.md derives every number that is printed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.comm import ALLREDUCES, COMPRESSIONS, REDUCERS
from dml_hpc.comm.addends import Addends, differing
from dml_hpc.comm.elements import DTYPES, storage
from dml_hpc.comm.reducer import Reducer
from dml_hpc.comm.topology import node_of, nodes_of
from dml_hpc.comm.wire import measure, worst
from dml_hpc.commands.contestants import Contestant, own, peers
from dml_hpc.commands.whereabouts import places
from dml_hpc.errors import EXIT_JOB, UserError, did_you_mean
from dml_hpc.files import check_output, replaced_file
from dml_hpc.memory import free_bytes
from dml_hpc.mpi import agreed, on_root
from dml_hpc.reports.allreduce import Measured, limit_bus_bandwidth, models, rows, show, wires
from dml_hpc.reports.timing import calls_per_timing, interleave
from dml_hpc.watch import waiting

if TYPE_CHECKING:
    import numpy as np
    from mpi4py.MPI import Intracomm

    from dml_hpc.console import Console

LEAST_TIMING_S = 2e-4
"""Shorter calls are timed several at a time: far above the clock's tick, the barrier's skew shared by all."""
WARM_UPS = 3
"""Calls before the timed ones: connections are made, memory is touched, kernels are loaded."""
FIGURES = (".png", ".svg")


def run(comm: Intracomm, console: Console, sizes: Sequence[int], reducers: Sequence[str] = REDUCERS,
        dtypes: Sequence[str] = ("float32",), compressions: Sequence[str] = ("none",), repeats: int = 11,
        fan_in: int = 2, with_peers: bool = False, plot: Path | None = None,
        overwrite: bool = False) -> dict[str, Any]:
    """Collective: time every reducer at every size (bytes, rounded up to whole elements) and type.

    Returns the ``--json`` keys. At each size and type all contestants take turns, ``repeats`` rounds. A timing is that
    of the slowest rank, from a barrier to the end of its call (of short calls: the mean of several); the addend is
    written before each call, off the clock. ``errors`` counts wrong elements over all ranks and checks, with
    compression those whose bits differ from rank 0's; any makes the exit code 1. ``with_peers`` adds other people's
    all-reduces. ``plot`` is written by rank 0. Raises `AgreedError` on every rank for an unknown name, a senseless
    number, a figure that cannot be written there, and sizes that a node's memory cannot hold.
    """
    with agreed(comm):
        _check(sizes, reducers, dtypes, compressions, repeats, fan_in)
        if plot is not None and comm.rank == 0:
            _check_plot(plot, overwrite, sizes)
    nodes = nodes_of(comm)
    n_nodes = len(set(nodes))
    contestants = own(list(dict.fromkeys(reducers)), list(dict.fromkeys(compressions)))
    with ExitStack() as opened:
        others, absent = peers(comm, n_nodes, opened) if with_peers else ([], [])
        contestants = list(dict.fromkeys([*contestants, *others]))
        _check_memory(comm, max(sizes), contestants)
        links = measure(comm, nodes)
        measured = _measure_all(comm, console, sizes, list(dict.fromkeys(dtypes)), contestants, repeats, fan_in)
    within, between = worst(links, True), worst(links, False)
    results = rows(measured, ["mpi", *(other.name for other in others)], comm.size, n_nodes, between)
    outcome: dict[str, Any] = {
        "results": results, "models": models(results, comm.size, n_nodes, fan_in),
        "wire": wires(within, between, links), **places(comm, nodes),
        "dtypes": list(dict.fromkeys(dtypes)), "repeats": repeats, "fan_in": fan_in}
    show(console, outcome, comm.size)
    _say_left_out(console, contestants, outcome["dtypes"], absent)
    if plot is not None:
        on_root(comm, lambda: _draw(plot, outcome, comm.size))
        console.say(f"wrote {plot}")
    wrong = sum(result["errors"] for result in results)
    if wrong:
        console.say(f"{wrong} elements were summed WRONGLY: do not trust these reducers on this machine")
    return {**outcome, "exit_code": EXIT_JOB} if wrong else outcome


def _check(sizes: Sequence[int], reducers: Sequence[str], dtypes: Sequence[str], compressions: Sequence[str],
           repeats: int, fan_in: int) -> None:
    for what, names, known in (("reducer", reducers, ALLREDUCES), ("dtype", dtypes, DTYPES),
                               ("compression", compressions, COMPRESSIONS)):
        for name in names:
            if name not in known:
                raise UserError(f"unknown {what} {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
        if not names:
            raise UserError(f"there is nothing to measure; name at least one {what}: {', '.join(known)}")
    if not sizes:
        raise UserError("there is nothing to measure; name at least one size")
    if "none" not in compressions and "float32" not in dtypes:
        raise UserError(f"there is nothing to measure: compression sums float32, not {', '.join(dtypes)}")
    for what, value, least in (("a size", min(sizes), 0), ("repeats", repeats, 1), ("fan-in", fan_in, 1)):
        if value < least:
            raise UserError(f"{what} of {value} makes no sense; it is at least {least}")


def _check_plot(plot: Path, overwrite: bool, sizes: Sequence[int]) -> None:
    if plot.suffix.lower() not in FIGURES:
        raise UserError(f"-o {plot}: a figure ends in {' or '.join(FIGURES)}"
                        + did_you_mean(plot.suffix.lower(), FIGURES))
    if not any(sizes):
        raise UserError(f"-o {plot}: there is nothing to draw; name a size above 0")
    check_output(plot, overwrite)
    from dml_hpc.reports.plots import check_matplotlib

    check_matplotlib()


def _check_memory(comm: Intracomm, n_bytes: int, contestants: Sequence[Contestant]) -> None:
    """Collective: refuse vectors of ``n_bytes`` that some node has no memory for, all contestants at a time."""
    node = node_of(comm)
    needed = n_bytes * node.size * sum(contestant.vectors for contestant in contestants)
    with agreed(comm):
        free = free_bytes() if node.rank == 0 else None
        if free is not None and needed > free:
            raise UserError(f"{len(contestants)} all-reduces of {n_bytes / 1e9:.1f} GB need about {needed / 1e9:.1f} "
                            f"GB for the {node.size} ranks of a node, which has {free / 1e9:.1f} GB free; name "
                            "smaller --sizes or fewer --reducers, or start fewer ranks a node")
    node.Free()


def _measure_all(comm: Intracomm, console: Console, sizes: Sequence[int], dtypes: Sequence[str],
                 contestants: Sequence[Contestant], repeats: int, fan_in: int) -> list[Measured]:
    vectors = [(dtype, count) for dtype in dtypes
               for count in dict.fromkeys(-(-size // storage(dtype).itemsize) for size in sizes)]
    bar = console.bar(len(vectors), "bench allreduce")
    measured: list[Measured] = []
    addends = {(dtype, exact): Addends(comm.rank, comm.size, dtype, exact)
               for dtype in dtypes for exact in {one.exact for one in contestants}}
    for dtype, count in vectors:
        able = [(one, addends[dtype, one.exact]) for one in contestants if dtype in one.dtypes]
        measured += _measure(comm, count, dtype, able, repeats, fan_in)
        bar.advance(1)
    bar.close()
    return measured


def _measure(comm: Intracomm, count: int, dtype: str, contestants: Sequence[tuple[Contestant, Addends]], repeats: int,
             fan_in: int) -> list[Measured]:
    """Collective: return one measurement a contestant, of vectors of ``count`` elements."""
    with ExitStack() as opened:
        trials = {}
        for one, addends in contestants:
            begin = partial(one.open, comm, count, dtype, fan_in)
            if not one.restless:  # else it is open in its own turns only
                begin = partial(nullcontext, opened.enter_context(begin()))
            trials[one] = _Trial(comm, one, addends, begin)
        seconds = interleave(trials, repeats)
    return [trial.measured(seconds[one], dtype, count * storage(dtype).itemsize) for one, trial in trials.items()]


class _Trial:
    """One contestant with one vector: its timed calls, and the wrong elements this rank has seen."""

    def __init__(self, comm: Intracomm, contestant: Contestant, addends: Addends,
                 begin: Callable[[], AbstractContextManager[Any]]):
        self.comm, self.contestant, self.addends, self.begin = comm, contestant, addends, begin
        self.errors = 0
        self.relative_error: float | None = None
        self.choice: str | None = None
        self.calls = 1
        seconds = min(self() for _ in range(WARM_UPS))
        # All ranks must make the same number of calls: the slowest rank's clock decides.
        self.calls = calls_per_timing(max(comm.allgather(seconds)), LEAST_TIMING_S)

    def __call__(self) -> float:
        """Collective: time ``calls`` all-reduces, check the last one's result, return this rank's seconds a call."""
        with self.begin() as it, nullcontext() if isinstance(it, Reducer) else waiting(f"an all-reduce of {it.name}"):
            for _ in range(WARM_UPS * self.contestant.restless):
                it.allreduce()
            self.addends.write(it.buffer)
            self.comm.Barrier()
            seconds = 0.0
            for call in range(self.calls):
                if call > 0:
                    self.addends.write(it.buffer)
                started = time.perf_counter()
                it.allreduce()
                seconds += time.perf_counter() - started
            self._check(it.total)
            self.choice = getattr(it, "choice", None)
        return seconds / self.calls

    def _check(self, total: np.ndarray) -> None:
        if self.contestant.exact:
            self.errors += self.addends.wrong(total)
            return
        self.errors += differing(self.comm, total)
        if self.relative_error is None:  # of the first call: later ones also bring what it left behind
            apart, length = self.addends.squares(total)
            self.relative_error = math.sqrt(apart / length) if length > 0 else 0.0

    def measured(self, own_s: np.ndarray, dtype: str, n_bytes: int) -> Measured:
        """Collective: return what all ranks have seen together; ``own_s`` (repeats,) are this rank's seconds."""
        everyone = self.comm.allgather((own_s, self.errors))
        slowest = [max(times) for times in zip(*(seconds for seconds, _ in everyone), strict=True)]
        errors = sum(errors for _, errors in everyone)
        return Measured(self.contestant.name, dtype, n_bytes, slowest, self.calls, errors, self.relative_error,
                        self.choice)


def _say_left_out(console: Console, contestants: Sequence[Contestant], dtypes: Sequence[str],
                  absent: Sequence[str]) -> None:
    unable: dict[str, list[str]] = {}
    for one in contestants:
        types = ", ".join(dtype for dtype in dtypes if dtype not in one.dtypes)
        if types:
            unable.setdefault(types, []).append(one.name)
    for types, names in unable.items():
        console.say(f"does not sum {types}, so not measured: {', '.join(names)}")
    if absent:
        console.say(f"not here, so not measured: {'; '.join(absent)}")


def _draw(plot: Path, outcome: dict[str, Any], ranks: int) -> None:
    from dml_hpc.reports.plots import allreduce_figure, as_svg, save_png

    figure = allreduce_figure(outcome["results"], ranks, limit_bus_bandwidth(outcome["wire"], ranks, outcome["nodes"]))
    with replaced_file(plot) as partial:
        if plot.suffix.lower() == ".png":
            save_png(figure, partial)
        else:
            partial.write_text(as_svg(figure, "all-reduce: time and bus bandwidth against bytes"), encoding="utf-8")
