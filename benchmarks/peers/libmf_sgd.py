"""LIBMF, by the package libmf of PyPI: SGD with its own step sizes; prints one JSON line.

    [LIBMF_OBJ=libmf.so] PYTHON libmf_sgd.py RATINGS.npz K ITERATIONS L2 STEP_SIZE THREADS [FACTORS.npz]

RATINGS.npz holds users, items and values and, if LIBMF is to tell its error of them after every iteration, test_users,
test_items and test_values. ``seconds`` (ITERATIONS − 1,) are those of each iteration after the first, by when LIBMF
writes its line about it: no reading, sorting or copying is in them. The line costs it a sum over the factors, and
where there are ratings held out, their error too: seconds are to be taken of a run without. LIBMF_OBJ names another
build of the library than what pip has built.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from importlib.metadata import version

import numpy as np

ROW_ENDS_S: list[float] = []
LINES: list[list[str]] = []


def listen(pipe: int) -> None:
    """Note what LIBMF writes, a line an iteration, and when."""
    with os.fdopen(pipe) as file:
        for line in file:
            words = line.split()
            if words and words[0].isdigit():
                ROW_ENDS_S.append(time.perf_counter())
                LINES.append(words)


def main(file: str, k: str, iterations: str, l2: str, step_size: str, threads: str, output: str = "") -> None:
    """Learn and print."""
    stored = np.load(file)
    rows = [np.stack([stored[f"{part}{name}"].astype(np.float32) for name in ("users", "items", "values")], axis=1)
            for part in ("", "test_") if f"{part}users" in stored]
    said = os.dup(1)
    pipe, writing = os.pipe()
    os.dup2(writing, 1)
    os.close(writing)
    from libmf import mf

    ear = threading.Thread(target=listen, args=(pipe,))
    ear.start()
    model = mf.MF(k=int(k), nr_threads=int(threads), nr_iters=int(iterations), lambda_p2=float(l2),
                  lambda_q2=float(l2), lambda_p1=0.0, lambda_q1=0.0, eta=float(step_size), quiet=False)
    started = time.perf_counter()
    if len(rows) == 2:
        model.mf_train_test(*rows)
    else:
        model.fit(rows[0])
    whole_s = time.perf_counter() - started
    os.dup2(said, 1)  # the last that had the pipe: its reader ends
    ear.join()
    if output:
        np.savez(output, P=model.p_factors(), Q=model.q_factors())
    print(json.dumps({
        "version": version("libmf"), "seconds": np.diff(ROW_ENDS_S).tolist(), "whole_s": whole_s,
        "rmses_train": [float(words[1]) for words in LINES],
        "rmses_test": [float(words[2]) for words in LINES] if len(rows) == 2 else None}))


if __name__ == "__main__":
    main(*sys.argv[1:])
