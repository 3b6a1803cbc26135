"""Sequential SGD over sparse rows, against scikit-learn's SGDClassifier and Vowpal Wabbit reading its cache.

    python benchmarks/sequential_sgd.py [--rows 1000000] [--peers PYTHON]

Logistic regression on the words of synthetic texts, 2^18 features. All take one example at a time with a constant
step size (Vowpal Wabbit also with its default, adaptive steps), the same number of epochs, after which each is
judged on held-out rows at its best step size of the same grid. Times are per epoch: ours as the record of the run
gives it; the peers' the difference between E + 1 epochs and one, over E, so that what they do once costs them nothing.
scikit-learn is given the matrix in memory, in float32 and in float64. PYTHON is one that has vowpalwabbit.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from running import arguments, dml_hpc, finish, medians, version
from scipy.sparse import csr_matrix, vstack
from sklearn import __version__ as sklearn_version
from sklearn.linear_model import SGDClassifier

from dml_hpc.data.csr import Csr
from dml_hpc.data.dataset import open_dataset
from dml_hpc.reports.timing import interleave

STEP_SIZES: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
VW_STEPS = {"Vowpal Wabbit, plain steps": ["--sgd", "--power_t", "0"], "Vowpal Wabbit, its default steps": []}


def in_memory(folder: Path) -> tuple[csr_matrix, np.ndarray]:
    """Return a data set's rows and labels."""
    dataset, pieces, labels = open_dataset(folder), [], []
    for piece in dataset.pieces(0, dataset.rows):
        assert isinstance(piece.X, Csr)
        rows = piece.X.packed()
        pieces.append(csr_matrix((rows.data, rows.indices, rows.indptr), (len(piece.y), dataset.features)))
        labels.append(piece.y)
    return vstack(pieces, "csr"), np.concatenate(labels)


def log_loss(scores: np.ndarray, y: np.ndarray) -> float:
    """Return the mean of log(1 + eˢ) − y·s."""
    scores = scores.astype(np.float64)
    return float(np.mean(np.logaddexp(0, scores) - y * scores))


class Ours:
    """``dml-hpc train --algorithm average`` on so many ranks."""

    def __init__(self, folder: Path, ranks: int, epochs: int):
        self._folder, self._ranks, self._epochs = folder, ranks, epochs
        self._model = folder / f"model-{ranks}.h5"

    def epoch_s(self, step_size: float) -> float:
        """Train and return the seconds of an epoch."""
        run = dml_hpc(self._ranks, "train", self._folder / "train", "-o", self._model, "--overwrite", "--objective",
                      "logistic", "--algorithm", "average", "--epochs", self._epochs, "--step-size", step_size,
                      "--no-scale")
        return run["rows"] / run["examples_per_s"]

    def loss(self, step_size: float) -> float:
        """Train and return the loss of the held-out rows."""
        self.epoch_s(step_size)
        return dml_hpc(1, "evaluate", self._model, self._folder / "test")["loss"]


class ScikitLearn:
    """``SGDClassifier`` on a matrix in memory."""

    def __init__(self, train: tuple[csr_matrix, np.ndarray], test: tuple[csr_matrix, np.ndarray], dtype: str,
                 epochs: int):
        self._X, self._y, self._test, self._epochs = train[0].astype(dtype), train[1], test, epochs

    def _fit(self, epochs: int, step_size: float) -> tuple[SGDClassifier, float]:
        model = SGDClassifier(loss="log_loss", penalty=None, learning_rate="constant", eta0=step_size, tol=None,
                              max_iter=epochs, random_state=0)
        started = time.perf_counter()
        model.fit(self._X, self._y)
        return model, time.perf_counter() - started

    def epoch_s(self, step_size: float) -> float:
        """Train and return the seconds of an epoch."""
        return (self._fit(1 + self._epochs, step_size)[1] - self._fit(1, step_size)[1]) / self._epochs

    def loss(self, step_size: float) -> float:
        """Train and return the loss of the held-out rows."""
        X, y = self._test
        return log_loss(self._fit(self._epochs, step_size)[0].decision_function(X), y)


class VowpalWabbit:
    """``vw`` on its cache of the rows, made here once; a Python package starts it, the driver is the same."""

    def __init__(self, folder: Path, python: str, test_y: np.ndarray, steps: list[str], epochs: int):
        self._folder, self._vw, self._y = folder, [python, "-m", "vowpalwabbit"], test_y
        self._train = ["--cache_file", str(folder / "train.cache"), "-b", "18", "--loss_function", "logistic",
                       "--holdout_off", *steps]
        self._epochs = epochs
        if not (folder / "train.cache").exists():
            self._run("-d", folder / "train.vw", *self._train)

    def _run(self, *words: object) -> float:
        started = time.perf_counter()
        subprocess.run([*self._vw, *map(str, words), "--quiet"], check=True, capture_output=True)
        return time.perf_counter() - started

    def epoch_s(self, step_size: float) -> float:
        """Train and return the seconds of a pass over the cache."""
        more, once = (self._run(*self._train, "-l", step_size, "--passes", n) for n in (1 + self._epochs, 1))
        return (more - once) / self._epochs

    def loss(self, step_size: float) -> float:
        """Train and return the loss of the held-out rows."""
        model, scores = self._folder / "model.vw", self._folder / "scores"
        self._run(*self._train, "-l", step_size, "--passes", self._epochs, "-f", model)
        self._run("-t", "-i", model, "-d", self._folder / "test.vw", "-r", scores)
        return log_loss(np.loadtxt(scores), self._y)


def write_vw(path: Path, X: csr_matrix, y: np.ndarray) -> None:
    """Write rows as Vowpal Wabbit's text; its index of a feature is ours, so that none collide."""
    with path.open("w") as file:
        for i in range(X.shape[0]):
            entries = slice(X.indptr[i], X.indptr[i + 1])
            words = zip(X.indices[entries].tolist(), X.data[entries].tolist(), strict=True)
            file.write(f"{1 if y[i] > 0 else -1} | " + " ".join(f"{j}:{value:g}" for j, value in words) + "\n")


def best_step(loss: Callable[[float], float], step_sizes: tuple[float, ...]) -> tuple[float, float]:
    """Return the step size of the least held-out loss, and that loss; one that diverges is not the best."""
    def tried(step_size: float) -> float:
        try:
            found = loss(step_size)
        except subprocess.CalledProcessError as failed:
            if failed.returncode != 1:
                raise
            return np.inf
        return found if np.isfinite(found) else np.inf

    return min(((step_size, tried(step_size)) for step_size in step_sizes), key=lambda pair: pair[1])


def main() -> None:
    """Make the data, tune, measure in turns, write the results file."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows to train on; a tenth as many are held out")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="has vowpalwabbit  [default: this]")
    given = parser.parse_args()
    rows, epochs, repeats, steps = given.rows, given.epochs, given.repeats, STEP_SIZES
    if given.tiny:
        rows, epochs, repeats, steps = 5000, 1, 1, (0.01, 0.1)
    vw_version = version(given.peers, "vowpalwabbit")
    versions = {"scikit-learn": sklearn_version, "vowpalwabbit": vw_version}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        dml_hpc(2, "data", "synth", "sparse-binary", "--rows", rows * 11 // 10, "--features", 1 << 18,
                "--row-entries", 40, "--holdout", 1 / 11, "-o", folder, "--overwrite")
        train, test = in_memory(folder / "train"), in_memory(folder / "test")
        contestants: dict[str, Any] = {
            "dml-hpc, 1 rank": Ours(folder, 1, epochs), "dml-hpc, 2 ranks": Ours(folder, 2, epochs),
            "scikit-learn, float32": ScikitLearn(train, test, "float32", epochs),
            "scikit-learn, float64": ScikitLearn(train, test, "float64", epochs)}
        if vw_version is not None:
            write_vw(folder / "train.vw", *train)
            write_vw(folder / "test.vw", *test)
            for who, options in VW_STEPS.items():
                contestants[who] = VowpalWabbit(folder, given.peers, test[1], options, epochs)
        tuned = {}
        for who, contestant in contestants.items():
            tuned[who] = best_step(contestant.loss, steps)
            print(f"{who:34s} held-out loss {tuned[who][1]:.5f} at step size {tuned[who][0]:g}", flush=True)
        seconds = interleave({who: partial(contestant.epoch_s, tuned[who][0])
                              for who, contestant in contestants.items()}, repeats)
    median = medians(seconds)
    ours = median["dml-hpc, 1 rank"]
    ratios = {who: each / ours for who, each in median.items()}
    for who, ratio in ratios.items():
        print(f"{who:34s} {ratio:6.2f} of our time per epoch, {rows / median[who]:12,.0f} examples/s")
    case = {"rows": len(train[1]), "features": 1 << 18, "entries_a_row": train[0].nnz / len(train[1]),
            "epochs": epochs, "versions": versions, "time_over_ours": ratios,
            "two_ranks_over_one": ours / median["dml-hpc, 2 ranks"],
            "held_out": {who: {"step_size": step, "loss": loss} for who, (step, loss) in tuned.items()},
            "examples_per_s": {who: rows / each for who, each in median.items()},
            "epoch_s": {who: sorted(times) for who, times in seconds.items()}}
    finish("sequential_sgd", [case], "one example at a time over sparse rows, contestants interleaved; a version that "
           "is null was not there, and is left out", given.tiny)


if __name__ == "__main__":
    main()
