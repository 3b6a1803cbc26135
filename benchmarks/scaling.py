"""Strong scaling of the main jobs on one machine: 1, 2, … ranks in turn, several times, into run records.

    python benchmarks/scaling.py DATASET RECORDS.jsonl [RANKS]
    dml-hpc report RECORDS.jsonl -o report.html

Full-batch training (one pass over memory an epoch), mini-batch training (one small all-reduce a step) and the SVD
(bound by arithmetic): three kinds of limit in one report. BLAS has one thread a rank, so that a rank is a core.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPEATS = 5
BIN = Path(sys.executable).parent


def main(data: str, records: str, most_ranks: str = "2") -> None:
    """Run every job at every number of ranks, taking turns; append one record a run."""
    ranks = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= int(most_ranks)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            ["train", data, "-o", f"{folder}/full.h5", "--batch-size", "full", "--epochs", "100", "--step-size", "1"],
            ["train", data, "-o", f"{folder}/mini.h5", "--epochs", "20", "--step-size", "0.5"],
            ["svd", data, "-o", f"{folder}/svd.h5", "-k", "20"],
        ]
        for repeat in range(REPEATS + 1):
            for job in jobs:
                for n in ranks:
                    line = [str(BIN / "mpirun"), "-n", str(n), str(BIN / "dml-hpc"), *job, "--overwrite"]
                    kept = ["--record", records] if repeat else []  # the first round warms caches
                    subprocess.run([*line, *kept], check=True, stdout=subprocess.DEVNULL, env=one_thread)
                    print(f"repeat {repeat}: {n} × {job[0]}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
