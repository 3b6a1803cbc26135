"""``auto``: measures the other reducers on a vector of the real size and takes the fastest.

What it found can be kept in a tuning file and used again: the file holds one entry a situation (MPI library, ranks,
nodes, GPU, type, size to a power of two, fused update or not) with the times measured then.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.comm.topology import node_of
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.files import check_output, first_line, replaced_file
from dml_hpc.mpi import on_root

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mpi4py.MPI import Intracomm

    from dml_hpc.comm.reducer import Reducer

CANDIDATES = ("mpi", "ring", "tree", "hierarchical")
MOST_ROUNDS = 21
ROUND_S = 1e-3
"""Short calls are timed several at a time."""
ENOUGH_S = 0.05
"""One candidate's rounds take no longer than this, or one call."""
HOPELESS = 2.0
"""A candidate that needs this many times the best one's time in its first round gets no second."""

_FORMAT = "dml-hpc tuning 1"


def open_auto(comm: Intracomm, size: int, dtype: str, fused: bool, tuning: Path | None,
              open_one: Callable[[str], Reducer], candidates: Sequence[str] = CANDIDATES,
              device: str | None = None) -> Reducer:
    """Collective: return the fastest of ``candidates`` here, opened by ``open_one(name)``; ``choice`` says why it is.

    ``fused``: it will do fused updates. ``device`` names the GPU that vectors lie on, if they do. With ``tuning`` the
    entry of that file for this situation decides, and is added when there is none. Raises `AgreedError` on every rank
    for a file that is no such file or cannot be written.
    """
    if comm.size == 1:
        reducer = open_one("mpi" if device is None else "hierarchical")  # which sends nothing then
        reducer.choice = f"{reducer.name}, as one rank has nothing to sum"
        return reducer
    situation = _situation(comm, size, dtype, fused, device)
    known = None if tuning is None else on_root(comm, lambda: _look_up(tuning, situation))
    if known is not None:
        reducer = open_one(known["allreduce"])
        reducer.choice = (f"{reducer.choice or reducer.name}, as {tuning} says "
                          f"({_in_words(known['microseconds'])})")
        return reducer
    best, times_us, refused = _fastest(comm, open_one, fused, candidates)
    if tuning is not None:
        entry = {**situation, "allreduce": best.name, "microseconds": times_us}
        on_root(comm, lambda: _remember(tuning, entry))
    best.choice = (f"{best.choice or best.name}, measured with {best.buffer.nbytes:,} bytes: {_in_words(times_us)}"
                   + "".join(f"; {name} not here ({why})" for name, why in refused.items()))
    return best


def check_tuning(path: Path) -> None:
    """Raise `UserError` unless ``path`` is a tuning file, or one can be made there."""
    check_output(path, overwrite=True)
    _entries(path)


def _fastest(comm: Intracomm, open_one: Callable[[str], Reducer], fused: bool,
             candidates: Sequence[str]) -> tuple[Reducer, dict[str, float], dict[str, str]]:
    """Collective: measure one candidate after the other; return the best, opened, and all times in µs.

    Never more than two are open at a time. Of a candidate's times the shortest counts: disturbance only adds. Third:
    why candidates that cannot be opened here cannot.
    """
    best: Reducer | None = None
    times: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name in candidates:
        try:
            reducer = open_one(name)
        except AgreedError as error:
            refused[name] = str(error)
            continue
        seconds = _measure(comm, reducer, fused, min(times.values(), default=float("inf")))
        if seconds < min(times.values(), default=float("inf")):
            best, reducer = reducer, best
        times[name] = seconds
        if reducer is not None:
            reducer.close()
    if best is None:
        raise AgreedError(f"no all-reduce works here: {'; '.join(refused.values())}", 0, 1)
    return best, {name: round(seconds * 1e6, 2) for name, seconds in times.items()}, refused


def _measure(comm: Intracomm, reducer: Reducer, fused: bool, to_beat: float) -> float:
    """Collective: return the seconds of one call on the slowest rank, the same number on every rank."""
    def call() -> None:
        if fused:
            reducer.reduce_update(_copy(reducer))
        else:
            reducer.allreduce()

    def timed(calls: int) -> float:
        comm.Barrier()
        started = time.perf_counter()
        for _ in range(calls):
            call()
        reducer.settle()
        return max(comm.allgather((time.perf_counter() - started) / calls))

    reducer.buffer[:] = 0
    call()  # connections are made, memory is touched
    shortest = timed(1)
    calls = max(1, min(1000, int(ROUND_S / max(shortest, 1e-7))))
    spent = shortest
    for _ in range(MOST_ROUNDS):
        if spent > ENOUGH_S or (shortest > HOPELESS * to_beat and calls == 1):
            break
        seconds = timed(calls)
        shortest = min(shortest, seconds)
        spent += seconds * calls
    return shortest


def _copy(reducer: Reducer) -> Callable[[Any, int, int], None]:
    def update(summed: Any, start: int, stop: int) -> None:
        assert reducer.weights is not None
        reducer.weights[start:stop] = summed

    return update


def _situation(comm: Intracomm, size: int, dtype: str, fused: bool, device: str | None) -> dict[str, Any]:
    """Collective: return what a choice depends on."""
    from mpi4py import MPI

    node = node_of(comm)
    nodes = comm.allreduce(int(node.rank == 0))
    node.Free()
    library = " ".join(MPI.Get_library_version().replace("\t", " ").splitlines()[0].split())
    return {"library": library, "ranks": comm.size, "nodes": nodes, "device": device, "dtype": dtype, "fused": fused,
            "elements_up_to": 1 << max(size - 1, 0).bit_length()}


def _look_up(path: Path, situation: dict[str, Any]) -> dict[str, Any] | None:
    """Return the file's entry for ``situation``, None when it has none or does not exist."""
    for entry in _entries(path):
        if all(entry.get(key) == value for key, value in situation.items()):
            return entry
    return None


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is no tuning file ({first_line(error)}); delete it, or name another") from None
    entries = content.get("entries") if isinstance(content, dict) and content.get("format") == _FORMAT else None
    if not isinstance(entries, list):
        raise UserError(f"{path} is no tuning file of this version; delete it, or name another")
    known = {*CANDIDATES, "nccl"}
    for entry in entries:
        if not (isinstance(entry, dict) and entry.get("allreduce") in known
                and isinstance(entry.get("microseconds"), dict)
                and all(isinstance(us, (int, float)) for us in entry["microseconds"].values())):
            raise UserError(f"{path} has an entry without an allreduce ({', '.join(CANDIDATES)}) or without times "
                            "(microseconds, by name); mend or delete that entry")
    return entries


def _remember(path: Path, entry: dict[str, Any]) -> None:
    entries = [*_entries(path), entry]
    with replaced_file(path) as partial:
        _write(partial, entries)


def _write(path: Path, entries: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({"format": _FORMAT, "entries": entries}, indent=1) + "\n", encoding="utf-8")


def _in_words(times_us: dict[str, float]) -> str:
    return ", ".join(f"{name} {us:,.1f} µs" for name, us in sorted(times_us.items(), key=lambda item: item[1]))
