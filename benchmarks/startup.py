"""How long it takes to begin: ``--help``, and a training run of one step on two ranks, from the shell.

    python benchmarks/startup.py DATASET

Beside them, in turn: an empty Python, and two ranks that only import what a run needs and start MPI. Numba's cache
is warm: the first, discarded round fills it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from results_file import write_results

from dml_hpc.reports.timing import interleave, timed

REPEATS = 11
BIN = Path(sys.executable).parent
IMPORTS = "import numpy, h5py, numba; from mpi4py import MPI"


def main(data: str) -> None:
    """Time all four, print the table, write the results file."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [str(BIN / "mpirun"), "-n", "2"]
        lines = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "dml-hpc --help": [str(BIN / "dml-hpc"), "--help"],
            "mpirun -n 2 python -c imports": [*ranks, sys.executable, "-c", IMPORTS],
            "mpirun -n 2 dml-hpc train --steps 1": [*ranks, str(BIN / "dml-hpc"), "train", data, "-o",
                                                    f"{folder}/model.h5", "--overwrite", "--steps", "1"],
        }

        seconds = interleave({name: timed(partial(subprocess.run, line, check=True, capture_output=True))
                              for name, line in lines.items()}, REPEATS + 1)
    cases = [{"case": name, "seconds_median": float(np.median(times[1:])), "seconds": sorted(times[1:])}
             for name, times in seconds.items()]
    for case in cases:
        print(f"{case['seconds_median']:.3f} s  {case['case']}")
    print(write_results("startup", cases, "wall time of whole commands, contestants interleaved, caches warm"))


if __name__ == "__main__":
    main(*sys.argv[1:])
