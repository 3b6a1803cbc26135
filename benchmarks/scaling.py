"""Strong scaling of every job on one machine: 1, 2, … ranks in turn, several times, into run records.

    python benchmarks/scaling.py DATASET RECORDS.jsonl [RANKS]
    dml-hpc report RECORDS.jsonl -o report.html

Full-batch training (one pass over memory an epoch), mini-batch training (one small all-reduce a step), local SGD, model
averaging, L-BFGS, SVD by two methods and matrix factorisation: each by ``dml-hpc bench scaling``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

TOOL = str(Path(sys.executable).parent / "dml-hpc")
JOBS = (
    ("train", "--algorithm", "sync", "--batch-size", "full", "--epochs", "100", "--step-size", "1"),
    ("train", "--epochs", "20", "--step-size", "0.5"),
    ("train", "--algorithm", "local", "--epochs", "20", "--step-size", "0.5"),
    ("train", "--algorithm", "average", "--epochs", "10"),
    ("train", "--algorithm", "lbfgs", "--epochs", "100", "--tolerance", "0"),
    ("svd", "-k", "20", "--method", "gram"),
    ("svd", "-k", "20", "--method", "randomized"),
)
RATINGS = ("--rows", "5000000", "--users", "60000", "--items", "20000")


def main(data: str, records: str, most_ranks: str = "2") -> None:
    """Measure every job on 1, 2, 4 … ranks; append one record a run."""
    ranks = ",".join(str(n) for n in (1, 2, 4, 8, 16, 32, 64) if n <= int(most_ranks))
    measure = [TOOL, "bench", "scaling", "--ranks", ranks, "--record", str(Path(records).absolute()), "--"]
    for verb, *options in JOBS:
        subprocess.run([*measure, verb, data, *options], check=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([TOOL, "data", "synth", "ratings", *RATINGS, "-o", "ratings"], check=True, cwd=folder)
        subprocess.run([*measure, "mf", "ratings", "-k", "32", "--epochs", "10"], check=True, cwd=folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
