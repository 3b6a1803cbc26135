"""Strong scaling of the main jobs on one machine: 1, 2, … ranks in turn, several times, into run records.

    python benchmarks/scaling.py DATASET RECORDS.jsonl [RANKS]
    dml-hpc report RECORDS.jsonl -o report.html

Full-batch training (one pass over memory an epoch), mini-batch training (one small all-reduce a step) and the SVD
(bound by arithmetic): three kinds of limit in one report, each measured by ``dml-hpc bench scaling``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOL = str(Path(sys.executable).parent / "dml-hpc")
JOBS = (
    ("train", "--batch-size", "full", "--epochs", "100", "--step-size", "1"),
    ("train", "--epochs", "20", "--step-size", "0.5"),
    ("svd", "-k", "20"),
)


def main(data: str, records: str, most_ranks: str = "2") -> None:
    """Measure every job on 1, 2, 4 … ranks; append one record a run."""
    ranks = ",".join(str(n) for n in (1, 2, 4, 8, 16, 32, 64) if n <= int(most_ranks))
    for verb, *options in JOBS:
        line = [TOOL, "bench", "scaling", "--ranks", ranks, "--record", records, "--", verb, data, *options]
        subprocess.run(line, check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
