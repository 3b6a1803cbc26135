"""What a step costs after the gradient: fused update, all-reduce and NumPy, and the same in fixed point.

    mpirun -n 2 python benchmarks/fused_update.py NAME

writes results/fused-update-NAME.json. Contestants take turns; a time is that of the slowest rank, ratios are of
medians. Each fills the buffer first, untimed, and leaves every rank with new weights:

- ``numpy``: `allreduce`, then on every rank the momentum step as three NumPy lines;
- ``fused``: `reduce_update`: each rank updates its slice, weights are gathered;
- ``fused, reproducible``: the same from an int64 sum in fixed point;
- ``sum`` and ``sum, int64``: the all-reduce alone, in floats and in integers of twice the bytes;
- ``sum, reproducible``: the int64 sum turned into float32 on its owner, gathered as float32.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from results_file import write_results

from dml_hpc.comm import open_reducer
from dml_hpc.comm.reducer import Reducer
from dml_hpc.kernels.updates import scale_to
from dml_hpc.mpi import world
from dml_hpc.optim import open_optimiser
from dml_hpc.optim.settings import OptimiserSettings
from dml_hpc.reports.timing import interleave

SIZES = (1 << 16, 1 << 20, 1 << 22, 1 << 24, 1 << 26)
REPEATS = 41
STEP, MOMENTUM = np.float32(1e-3), np.float32(0.9)
KIND = np.dtype("float32")


def numpy_step(reducer: Reducer) -> Callable[[], None]:
    """Return the all-reduce and the momentum step on all weights."""
    weights, velocity = np.zeros(reducer.size, KIND), np.zeros(reducer.size, KIND)
    change = np.empty_like(weights)

    def step() -> None:
        reducer.allreduce()
        np.multiply(velocity, MOMENTUM, out=velocity)
        np.add(velocity, reducer.total, out=velocity)
        np.multiply(velocity, STEP, out=change)
        np.subtract(weights, change, out=weights)

    return step


def fused_step(reducer: Reducer, unit: float) -> Callable[[], None]:
    """Return the fused momentum step."""
    optimiser = open_optimiser(OptimiserSettings("sgd", float(MOMENTUM)), reducer.owned, KIND, ())
    weights = reducer.weights
    assert weights is not None

    def update(summed: np.ndarray, start: int, stop: int) -> None:
        optimiser.update(weights[start:stop], summed, start, unit, float(STEP), 1)

    return lambda: reducer.reduce_update(update)


def to_float(reducer: Reducer, unit: float) -> Callable[[], None]:
    """Return the sum in fixed point with its result as floats."""
    weights = reducer.weights
    assert weights is not None
    return lambda: reducer.reduce_update(lambda summed, start, stop: scale_to(summed, unit, weights[start:stop]))


def main(name: str) -> None:
    """Measure every size and reducer."""
    comm = world()
    cases: list[dict[str, Any]] = []
    for n_bytes in SIZES:
        for kind in ("hierarchical", "ring"):
            cases.append(measure(comm, n_bytes, kind))
            if comm.rank == 0:
                print(cases[-1]["case"], cases[-1]["ratios"], flush=True)
    if comm.rank == 0:
        write_results(f"fused-update-{name}", cases, f"{comm.size} ranks, float32 weights, contestants interleaved")


def measure(comm: Any, n_bytes: int, kind: str) -> dict[str, Any]:
    """Collective: return one size's medians and ratios."""
    size = n_bytes // 4
    floats = open_reducer(kind, comm, size, weights="float32")
    integers = open_reducer(kind, comm, size, "int64", weights="float32")
    unit = 2.0**-30
    steps: dict[str, tuple[Reducer, Callable[[], None]]] = {
        "numpy": (floats, numpy_step(floats)),
        "fused": (floats, fused_step(floats, 1.0)),
        "fused, reproducible": (integers, fused_step(integers, unit)),
        "sum": (floats, floats.allreduce),
        "sum, int64": (integers, integers.allreduce),
        "sum, reproducible": (integers, to_float(integers, unit)),
    }

    def contestant(reducer: Reducer, step: Callable[[], None]) -> Callable[[], float]:
        def timed() -> float:
            reducer.buffer[:] = comm.rank + 1
            comm.Barrier()
            started = time.perf_counter()
            step()
            return time.perf_counter() - started

        return timed

    contestants = {name: contestant(*pair) for name, pair in steps.items()}
    for run in contestants.values():
        run()
    own = interleave(contestants, REPEATS)
    seconds = {name: np.max(comm.allgather(own[name]), axis=0) for name in own}
    median = {name: float(np.median(times)) for name, times in seconds.items()}
    floats.close()
    integers.close()
    return {
        "case": f"{kind} {n_bytes}", "ranks": comm.size, "bytes": n_bytes,
        "ratios": {
            "numpy / fused": round(median["numpy"] / median["fused"], 2),
            "fused, reproducible / fused": round(median["fused, reproducible"] / median["fused"], 2),
            "sum, reproducible / sum": round(median["sum, reproducible"] / median["sum"], 2),
            "sum, int64 / sum": round(median["sum, int64"] / median["sum"], 2),
        },
        "seconds_median": median,
        "seconds": {name: sorted(times.tolist()) for name, times in seconds.items()},
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
