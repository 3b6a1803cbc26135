"""Two ranks on one GPU: ``hierarchical`` by CUDA IPC against what its bytes take and against staging through the host.

    mpirun -n 2 python benchmarks/gpu_node.py BYTES REPEATS     # `benchmarks/gpu.py` runs this
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from running import medians

from dml_hpc.comm import open_reducer
from dml_hpc.comm.topology import node_of
from dml_hpc.device import Device, open_device
from dml_hpc.mpi import world
from dml_hpc.reports.timing import interleave

CALLS = 5


def measure(comm: Any, device: Device, n_bytes: int, repeats: int) -> dict[str, Any]:
    """Collective: return the case, the same on every rank."""
    size = n_bytes // 4
    source, target = device.zeros(size, np.float32), device.zeros(size, np.float32)
    with open_reducer("hierarchical", comm, size, "float32", device) as fast, \
            open_reducer("ring", comm, size, "float32", device) as staged:
        def copy() -> None:
            target[:] = source

        def contestant(work: Callable[[], object]) -> Callable[[], float]:
            def timed() -> float:
                device.synchronize()
                comm.Barrier()
                began = time.perf_counter()
                for _ in range(CALLS):
                    work()
                device.synchronize()
                return max(comm.allgather((time.perf_counter() - began) / CALLS))

            timed()
            return timed

        fast.buffer[:] = comm.rank + 1
        fast.allreduce()
        right = bool((fast.total == comm.size * (comm.size + 1) / 2).all())
        seconds = interleave({"hierarchical": contestant(fast.allreduce), "staged": contestant(staged.allreduce),
                              "copy": contestant(copy)}, repeats)
        how = staged.choice
    median = medians(seconds)
    p = comm.size
    # Of each slice all p buffers are read and the sum is written; then each rank fetches the others' slices.
    moved = (p + 1) * n_bytes + 2 * p * (p - 1) * n_bytes / p
    copied = p * 2 * n_bytes  # all ranks copy at once, on the same memory
    return {"case": "node", "ranks": p, "bytes": n_bytes, "right": right, "staged": how, "moved_bytes": moved,
            "of_bound": (moved / median["hierarchical"]) / (copied / median["copy"]),
            "staged_over_hierarchical": median["staged"] / median["hierarchical"],
            "seconds": {who: sorted(times.tolist()) for who, times in seconds.items()}}


def main(n_bytes: str, repeats: str) -> None:
    """Measure, and print the case on rank 0."""
    comm = world().Dup()
    node = node_of(comm)
    device = open_device("cuda", node.rank)
    assert device is not None
    case = measure(comm, device, int(n_bytes), int(repeats))
    if comm.rank == 0:
        print(json.dumps(case))


if __name__ == "__main__":
    main(*sys.argv[1:])
