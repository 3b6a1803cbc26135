"""The package implicit: ALS of implicit feedback on one machine; prints one JSON line.

    PYTHON implicit_als.py RATINGS.npz K ITERATIONS ALPHA L2 THREADS SOLVER [FACTORS]

RATINGS.npz holds users, items and values. SOLVER is cg, its default of three steps a row, or cholesky. implicit takes
an entry as the confidence itself and as a preference of 1: it is given 1 + α·value, with its own alpha 1, so that it
minimises what Hu, Koren and Volinsky do. ``seconds`` (ITERATIONS,) are those of each iteration, by implicit's own
clock, and ``whole_s`` is the call of ``fit``, which transposes the matrix, too. With FACTORS, FACTORS-N.npz holds P and
Q after N iterations.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its rows are in parallel; it warns about anything else

import implicit
import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix


def main(file: str, k: str, iterations: str, alpha: str, l2: str, threads: str, solver: str, output: str = "") -> None:
    """Learn and print."""
    stored = np.load(file)
    confidence = (1 + float(alpha) * stored["values"]).astype(np.float32)
    matrix = csr_matrix((confidence, (stored["users"], stored["items"])))
    model = AlternatingLeastSquares(factors=int(k), regularization=float(l2), alpha=1.0, iterations=int(iterations),
                                    use_cg={"cg": True, "cholesky": False}[solver], num_threads=int(threads),
                                    random_state=0)
    seconds: list[float] = []

    def note(iteration: int, elapsed_s: float, loss: float | None) -> None:
        seconds.append(elapsed_s)
        if output:
            np.savez(f"{output}-{iteration + 1}.npz", P=model.user_factors, Q=model.item_factors)

    started = time.perf_counter()
    model.fit(matrix, show_progress=False, callback=note)
    whole_s = time.perf_counter() - started
    print(json.dumps({"version": implicit.__version__, "seconds": seconds, "whole_s": whole_s}))


if __name__ == "__main__":
    main(*sys.argv[1:])
