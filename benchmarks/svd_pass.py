"""One pass of the SVD over dense rows in memory, against what the machine can do: its matrix product and its reading.

    python benchmarks/svd_pass.py

One core. The pass of ``gram`` (XᵀX in float32 chunks, summed in float64) and that of ``randomized`` and of every
certificate (XᵀXV with 24 and 48 columns of V, each chunk read once) over float32 rows, in turns with ``sgemm`` of two
square matrices and with a plain sum of X. A pass is bounded by whichever of the two would take longer: its operations
at the speed of sgemm (n² a row for XᵀX, as it is symmetric; 4·n·l a row for XᵀXV), or its bytes at that of reading.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np
from matrices import write_matrix
from running import added, arguments, finish, medians

from dml_hpc.comm import open_reducer
from dml_hpc.comm.clock import Clock
from dml_hpc.console import Console
from dml_hpc.data.dataset import open_dataset
from dml_hpc.data.shard import Keys
from dml_hpc.decomposition.grid import Grid
from dml_hpc.decomposition.matrix import Matrix
from dml_hpc.decomposition.svd import gram
from dml_hpc.reports.timing import interleave

SIDE = 2048
COLUMNS = (24, 48)


def seconds_of(work: Callable[[], object]) -> float:
    """Do it; return how long it took."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def case(features: int, bytes_of_X: int, repeats: int) -> dict[str, Any]:
    """Measure with rows of so many features."""
    from mpi4py import MPI

    rng = np.random.default_rng(0)
    rows = bytes_of_X // (4 * features)
    X = rng.standard_normal((rows, features), dtype=np.float32)
    square = rng.standard_normal((SIDE, SIDE), dtype=np.float32)
    with tempfile.TemporaryDirectory() as place:
        path = write_matrix(Path(place) / "matrix.h5", X)
        dataset = open_dataset([path], Keys(y=None), labels=False)
        with Grid(MPI.COMM_SELF, (1, 1)) as grid, Matrix(grid, dataset, partial(open_reducer, "mpi"), Clock(),
                                                         Console()) as matrix:
            work = {"sgemm": partial(np.matmul, square, square), "read": partial(added, X.reshape(-1)),
                    "gram": partial(gram.summed, matrix, None)}
            thin = {count: np.linalg.qr(rng.standard_normal((features, count)))[0] for count in COLUMNS}
            work |= {f"products of {count}": partial(matrix.gram_products, V) for count, V in thin.items()}
            for one in work.values():
                one()
            seconds = medians(interleave({name: partial(seconds_of, one) for name, one in work.items()}, repeats))
    flops_a_s, bytes_a_s = 2 * SIDE**3 / seconds["sgemm"], X.nbytes / seconds["read"]
    needed = {"gram": rows * features**2, **{f"products of {count}": 4 * rows * features * count for count in COLUMNS}}
    shares = {}
    for name, flops in needed.items():
        bounds = {"sgemm": flops / flops_a_s, "reading": X.nbytes / bytes_a_s}
        bound = max(bounds, key=lambda which: bounds[which])
        shares[name] = {"bound": bound, "of_bound": bounds[bound] / seconds[name]}
        print(f"{features:,} features, {name}: {shares[name]['of_bound']:.0%} of {bound}", flush=True)
    return {"rows": rows, "features": features, "dtype": "float32", "sgemm_flops_a_s": flops_a_s,
            "read_bytes_a_s": bytes_a_s, "passes": shares, "seconds": seconds}


def main() -> None:
    """Measure, write the results file."""
    given = arguments(__doc__, repeats=7).parse_args()
    size, repeats = (1 << 24, 1) if given.tiny else (1 << 29, given.repeats)
    finish("svd_pass", [case(features, size, repeats) for features in (256, 512, 2048)], "one core", given.tiny)


if __name__ == "__main__":
    main()
