"""A truncated SVD by Heat of a dense matrix whose rows are spread over the ranks; rank 0 prints one JSON line.

    mpirun -n RANKS PYTHON heat_svd.py MATRIX.h5 K rsvd|hsvd_rank POWER_ITERATIONS

MATRIX.h5 holds ``X``. Every rank has its rows in memory before the clock starts, and has warmed the call on a few of
them. ``rsvd`` is the randomised one, with that many power iterations, ``hsvd_rank`` the hierarchical one, which
has none; both give U, σ and V. ``seconds`` are from one barrier to the next.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time

import h5py
import heat
import numpy as np
from mpi4py import MPI

WARMING_ROWS = 2000


def main(path: str, k: str, method: str, iterations: str) -> None:
    """Factorise and print the time and the singular values."""
    comm = MPI.COMM_WORLD
    count = int(k)
    with h5py.File(path) as file:
        rows = len(file["X"])
        mine = file["X"][rows * comm.rank // comm.size:rows * (comm.rank + 1) // comm.size]
    calls = {"rsvd": lambda X: heat.linalg.rsvd(X, count, power_iter=int(iterations))[1],
             "hsvd_rank": lambda X: heat.linalg.hsvd_rank(X, count, compute_sv=True)[1]}
    calls[method](heat.array(mine[:WARMING_ROWS], is_split=0))
    X = heat.array(mine, is_split=0)
    comm.Barrier()
    started = time.perf_counter()
    sigma = calls[method](X)
    comm.Barrier()
    seconds = time.perf_counter() - started
    found = np.sort(sigma.numpy())[::-1].tolist()
    if comm.rank == 0:
        print(json.dumps({"version": importlib.metadata.version("heat"), "seconds": seconds,
                          "singular_values": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
