"""Models that are bound by arithmetic: two ranks against one, and against scikit-learn's network on two threads.

    python benchmarks/compute_bound.py [--rows 100000]

``softmax`` with 100 classes and ``mlp`` with two hidden layers, plain mini-batch SGD. scikit-learn's MLPClassifier is
given the same rows in memory in float32, the same layers (none for softmax) and the same batches; of it, the
difference between E + 1 epochs and one counts. All take turns.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from running import arguments, dml_hpc, finish, medians
from sklearn import __version__ as sklearn_version
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from dml_hpc.data.dataset import open_dataset
from dml_hpc.reports.timing import interleave

CLASSES = 100
FEATURES = 256
BATCH = 4096
MODELS: dict[str, tuple[int, ...]] = {"softmax": (), "mlp": (256, 128)}


def ours(folder: Path, ranks: int, objective: str, hidden: tuple[int, ...], epochs: int) -> Callable[[], float]:
    """Return what trains and returns the seconds of an epoch."""
    layers = ("--hidden", ",".join(map(str, hidden))) if hidden else ()

    def epoch_s() -> float:
        run = dml_hpc(ranks, "train", folder, "-o", folder.with_suffix(".h5"), "--overwrite", "--objective", objective,
                      *layers, "--algorithm", "sync", "--batch-size", BATCH, "--epochs", epochs, "--step-size", 0.01,
                      "--schedule", "constant", "--momentum", 0.9)
        return run["rows"] / run["examples_per_s"]

    return epoch_s


def scikit_learn(X: np.ndarray, y: np.ndarray, hidden: tuple[int, ...], epochs: int) -> Callable[[], float]:
    """Return what trains scikit-learn's network and returns the seconds of an epoch."""
    def fit_s(count: int) -> float:
        model = MLPClassifier(hidden, solver="sgd", alpha=0.0, batch_size=BATCH, learning_rate_init=0.01, tol=0.0,
                              max_iter=count, n_iter_no_change=count + 1, nesterovs_momentum=False)
        started = time.perf_counter()
        model.fit(X, y)
        return time.perf_counter() - started

    def epoch_s() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return (fit_s(1 + epochs) - fit_s(1)) / epochs

    return epoch_s


def main() -> None:
    """Make the data, measure in turns, write the results file."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    rows, epochs, repeats = given.rows, given.epochs, given.repeats
    if given.tiny:
        rows, epochs, repeats = 5000, 1, 1
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "data"
        dml_hpc(2, "data", "synth", "multiclass", "--classes", CLASSES, "--rows", rows, "--features", FEATURES,
                "-o", folder)
        dataset = open_dataset(folder)
        pieces = [(np.asarray(piece.X), piece.y) for piece in dataset.pieces(0, dataset.rows)]
        X, y = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        for objective, hidden in MODELS.items():
            seconds = interleave({
                "1 rank": ours(folder, 1, objective, hidden, epochs),
                "2 ranks": ours(folder, 2, objective, hidden, epochs),
                "scikit-learn": scikit_learn(X, y, hidden, epochs)}, repeats)
            median = medians(seconds)
            speedup, over = median["1 rank"] / median["2 ranks"], median["scikit-learn"] / median["2 ranks"]
            print(f"{objective:8s} 2 ranks: {speedup:.2f} times one, {over:.2f} times scikit-learn", flush=True)
            cases.append({"objective": objective, "hidden": hidden, "classes": CLASSES, "features": FEATURES,
                          "rows": rows, "batch_size": BATCH, "scikit-learn": sklearn_version,
                          "two_ranks_over_one": speedup, "two_ranks_over_scikit_learn": over,
                          "examples_per_s": {who: rows / each for who, each in median.items()},
                          "epoch_s": {who: sorted(times) for who, times in seconds.items()}})
    finish("compute_bound", cases, "mini-batch SGD in float32, contestants interleaved", given.tiny)


if __name__ == "__main__":
    main()
