"""Train on a data set eight times as large as the memory limit, and say how much each rank really took.

    python benchmarks/memory_limit.py [--limit-mebibytes 384] [--ranks 1 2]

For plain and for Blosc2 shards, mini-batches and full batches; beside each, the same run without a limit, for which
rows are mapped or kept in memory. Peaks are the kernel's own (VmHWM), of the whole process. Speeds are of one run
each, and say only what streaming costs about.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results_file import write_results

FEATURES = 256
TIMES = 8


def command(*arguments: object) -> dict[str, Any]:
    """Run ``dml-hpc`` and return its JSON object."""
    words = [str(argument) for argument in arguments]
    out = subprocess.run([*words, "--json"], check=True, text=True, stdout=subprocess.PIPE)
    return json.loads(out.stdout.splitlines()[-1])


def main() -> None:
    """Measure and write the results file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit-mebibytes", type=int, default=384)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    tools = Path(sys.executable).parent
    dml_hpc, mpirun = tools / "dml-hpc", tools / "mpirun"
    limit = given.limit_mebibytes << 20
    rows = TIMES * limit // (4 * FEATURES)
    cases = []
    with tempfile.TemporaryDirectory() as place:
        for compression in ("none", "blosc2"):
            data = Path(place) / compression
            command(dml_hpc, "data", "synth", "binary", "--rows", rows, "--features", FEATURES,
                    "--compression", compression, "-o", data)
            for ranks in given.ranks:
                for batch in (1024, "full"):
                    for memory in (f"{given.limit_mebibytes}M", None):
                        result = command(mpirun, "-n", ranks, dml_hpc, "train", data, "-o", Path(place) / "model.h5",
                                         "--overwrite", "--epochs", 1, "--batch-size", batch, "--reproducible",
                                         *(("--memory-limit", memory) if memory else ()))
                        peaks = [rank["peak_bytes"] for rank in result["per_rank"]]
                        cases.append({
                            "compression": compression, "ranks": ranks, "batch_size": batch, "memory_limit_bytes":
                            limit if memory else None, "data_bytes": rows * FEATURES * 4,
                            "rows_are": result["per_rank"][0]["rows_are"], "peak_bytes": peaks,
                            "peak_over_limit_mebibytes": (max(peaks) - limit) / (1 << 20) if memory else None,
                            "examples_per_s": result["examples_per_s"], "weights_digest": result["weights_digest"]})
                        print(f"{compression:7s} {ranks} ranks, batch {batch!s:5s} limit {memory or 'none':>5s}: "
                              f"{cases[-1]['rows_are']:8s} peak {max(peaks) >> 20:6,} MiB, "
                              f"{result['examples_per_s']:12,.0f} examples/s, {result['weights_digest'][:12]}",
                              flush=True)
    print(write_results("memory-limit", cases, f"logistic, {TIMES} times as much data as the limit, one epoch"))


if __name__ == "__main__":
    main()
