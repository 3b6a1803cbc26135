"""A full-batch gradient of logistic regression: against Spark MLlib, and against plainly reading the rows.

    python benchmarks/full_batch.py [--rows 200000] [--peers PYTHON]

*Spark.* ``train --batch-size full`` on two ranks against MLlib with ``local[2]`` on the same rows (float32 for us,
float64 is all that it has), seconds an iteration. Spark's gradient descent takes the very steps that ours takes with
``--schedule inverse-sqrt``: their weights are compared. Of Spark count, once the JVM is warm, the time from one
gradient to the next, and the whole fit over its iterations; of ours, all the work of the run over its steps. Rounds of
the two take turns. PYTHON is one that has pyspark and pyarrow, and there is a Java.

*Read.* The pass over rows that training makes, in one process on one core and on two threads, against a vectorised
sum of X on as many.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from running import added, arguments, dml_hpc, finish, medians, on_cores, peer, version

from dml_hpc.data.dataset import open_dataset
from dml_hpc.objectives import open_objective
from dml_hpc.reports.timing import interleave, timed

WIDTHS: tuple[int, ...] = (256, 512, 1024, 4096)


def against_spark(rows: int, features: int, python: str, iterations: int, repeats: int) -> dict[str, Any]:
    """Measure seconds an iteration of both, in turns of one run of ours and one round of Spark's."""
    ours_s: list[float] = []
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder, model = Path(place) / "data", Path(place) / "model.h5"
        dml_hpc(2, "data", "synth", "binary", "--rows", rows, "--features", features, "-o", folder)
        dataset = open_dataset(folder)
        pieces = [(np.asarray(piece.X), piece.y) for piece in dataset.pieces(0, dataset.rows)]
        X, y = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        np.savez(Path(place) / "rows.npz", X=X, y=y)
        for _ in range(repeats):
            run = dml_hpc(2, "train", folder, "-o", model, "--overwrite", "--objective", "logistic", "--algorithm",
                          "sync", "--batch-size", "full", "--step-size", 1, "--schedule", "inverse-sqrt",
                          "--momentum", 0, "--no-scale", "--no-intercept", "--steps", iterations)
            ours_s.append(run["work_s"] / run["steps"])
            spark = peer(python, "spark_logistic.py", Path(place) / "rows.npz", 2, iterations, 1)
            for name, times in spark["found"].items():
                known = found.setdefault(name, {"gradient_s": [], "fit_s": [], "iterations": times["iterations"]})
                known["gradient_s"] += times["gradient_s"]
                known["fit_s"] += times["fit_s"]
        with h5py.File(model) as file:
            weights = file["weights"][()].reshape(-1)[:features].astype(np.float64)
    error = float(np.linalg.norm(weights - spark["weights"]) / np.linalg.norm(spark["weights"]))
    ours = float(np.median(ours_s))
    gradient = {name: float(np.median(times["gradient_s"])) / ours for name, times in found.items()}
    whole = {name: float(np.median(times["fit_s"])) / times["iterations"] / ours for name, times in found.items()}
    for name, times in found.items():
        print(f"{rows:,} × {features}, 2 ranks: Spark, {name}: {gradient[name]:.1f} times our time from "
              f"gradient to gradient, {whole[name]:.1f} times by whole fits of {times['iterations']} iterations")
    print(f"the same {iterations} steps end {error:.0e} apart", flush=True)
    return {"case": "spark", "rows": rows, "features": features, "ranks": 2, "pyspark": spark["version"],
            "gradient_over_ours": gradient, "fit_per_iteration_over_ours": whole,
            "relative_difference_of_weights": error, "iteration_s": sorted(ours_s), "spark": found}


def against_reading(features: int, size_bytes: int, cores: int, repeats: int) -> dict[str, Any]:
    """Measure one pass of the objective over X (float32) on so many threads against a sum of X on as many."""
    rows = size_bytes // (4 * features) // cores
    rng = np.random.default_rng(features)
    objective = open_objective("logistic")
    layers = objective.layers(features, [0.0, 1.0])
    parameters = (rng.standard_normal(layers.size) / np.sqrt(features)).astype(np.float32)
    X = [rng.standard_normal((rows, features), dtype=np.float32) for _ in range(cores)]
    y = [(rng.random(rows) < 0.5).astype(np.float32) for _ in range(cores)]
    gradients = [np.zeros(layers.size, np.float32) for _ in range(cores)]
    order = np.arange(rows)

    def gradient(core: int) -> None:
        objective.loss_and_gradient(layers, X[core], y[core], None, order, parameters, gradients[core])

    def read(core: int) -> None:
        added(X[core].reshape(-1))

    both = {"gradient": on_cores(cores, gradient), "read": on_cores(cores, read)}
    for work in both.values():
        work()
    seconds = interleave({name: timed(work) for name, work in both.items()}, repeats)
    median = medians(seconds)
    ratio, total = median["gradient"] / median["read"], sum(part.nbytes for part in X)
    print(f"{features:5d} features, {cores} core{'s' * (cores > 1)}: a gradient takes {ratio:.2f} times a read, "
          f"{total / median['gradient'] / 1e9:.1f} GB/s", flush=True)
    return {"case": "read", "features": features, "cores": cores, "bytes": total, "gradient_over_read": ratio,
            "gigabytes_per_s": {name: total / each / 1e9 for name, each in median.items()},
            "seconds": {name: sorted(times) for name, times in seconds.items()}}


def main() -> None:
    """Measure both and write the results file."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="has pyspark  [default: this]")
    given = parser.parse_args()
    rows, features, iterations = given.rows, given.features, given.iterations
    repeats, size_bytes, widths = given.repeats, 512 << 20, WIDTHS
    if given.tiny:
        rows, features, iterations, repeats, size_bytes, widths = 2000, 16, 6, 1, 8 << 20, (512,)
    cases, notes = [], "contestants interleaved"
    if version(given.peers, "pyspark") and shutil.which("java"):
        cases.append(against_spark(rows, features, given.peers, iterations, repeats))
    else:
        notes += "; Spark was not there (pip install pyspark pyarrow, and a Java), and is left out"
        print(notes)
    cases += [against_reading(width, size_bytes, cores, 3 * repeats) for width in widths for cores in (1, 2)]
    finish("full_batch", cases, notes, given.tiny)


if __name__ == "__main__":
    main()
