"""L-BFGS on the flights: does it reach scikit-learn's optimum, and sooner than scikit-learn's own ``lbfgs``?

    python benchmarks/lbfgs.py FLIGHTS.csv [--l2 1e-5] [--ranks 1 2 3 4]

FLIGHTS.csv is the table that scripts/quickstart.sh makes (quickstart/flights.csv). The optimum is scikit-learn's in
float64 with a tolerance that leaves nothing to gain. Ours is timed by the work of its record; scikit-learn by ``fit``
on the same standardised matrix in memory, with the threads it takes by itself, in float32 and in float64. Each stops by
its own default, and where it got is reported beside its time: the gap is (loss − optimum) / optimum, of the penalised
mean loss in float64. scikit-learn is also run with the largest tolerance, of powers of ten, that gets it to 1e-4.
More ranks than cores are run for their answer, once, not for their time.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from running import arguments, dml_hpc, finish, medians
from sklearn import __version__ as sklearn_version
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from dml_hpc.data.dataset import open_dataset
from dml_hpc.reports.timing import interleave

DTYPES = ("float32", "float64")
TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
"""Of scikit-learn; the first is its default."""
GAP = 1e-4
COLUMNS = ("--label", "late", "--categorical", "carrier,origin,dest,hour,month,weekday",
           "--numeric", "distance,dep_delay", "--holdout", 0.2, "--seed", 1)


class Flights:
    """The training rows standardised as ours are, (rows, features) float64, and their labels."""

    def __init__(self, folder: Path, l2: float):
        dataset = open_dataset(folder)
        pieces = [(np.asarray(piece.X, np.float64), piece.y) for piece in dataset.pieces(0, dataset.rows)]
        X, y = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        figures = dataset.manifest.statistics
        assert figures is not None
        numeric = np.asarray(figures.numeric, bool)
        self.shift = np.where(numeric, figures.mean, 0.0)
        self.scale = np.where(numeric & (np.asarray(figures.deviation) > 0), figures.deviation, 1.0)
        self.X, self.y, self._l2 = (X - self.shift) / self.scale, y, l2

    def objective(self, weights: np.ndarray, intercept: float) -> float:
        """Return the mean loss with its penalty, of weights by standardised features."""
        scores = self.X @ weights + intercept
        return float(np.mean(np.logaddexp(0, scores) - self.y * scores) + self._l2 / 2 * weights @ weights)

    def of_model(self, path: Path) -> float:
        """Return the objective of a model file, whose weights are by features as they are stored."""
        with h5py.File(path) as file:
            raw = file["weights"][()].reshape(-1).astype(np.float64)
        weights = raw[:-1] * self.scale
        return self.objective(weights, float(raw[-1] + raw[:-1] @ self.shift))

    def scikit_learn(self, dtype: str, **settings: Any) -> tuple[float, float, int]:
        """Fit; return the seconds, the objective and the number of iterations."""
        model = LogisticRegression(C=1 / (self._l2 * len(self.y)), **settings)
        X, y = self.X.astype(dtype), self.y.astype(dtype)
        started = time.perf_counter()
        model.fit(X, y)
        seconds = time.perf_counter() - started
        value = self.objective(model.coef_[0].astype(np.float64), float(model.intercept_[0]))
        return seconds, value, int(model.n_iter_[0])


def main() -> None:
    """Import, find the optimum, measure in turns, write the results file."""
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("flights", type=Path)
    parser.add_argument("--l2", type=float, default=1e-5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4])
    given = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    with tempfile.TemporaryDirectory() as place:
        folder, table = Path(place) / "flights", given.flights
        if given.tiny:
            table = Path(place) / "some.csv"
            with given.flights.open() as file:
                table.write_text("".join(line for line, _ in zip(file, range(5000), strict=False)))
        dml_hpc(1, "data", "import", table, "-o", folder, *COLUMNS)
        flights = Flights(folder / "train", given.l2)
        optimum = flights.scikit_learn("float64", tol=1e-10, max_iter=20_000)[1]

        reached: dict[str, list[float]] = {}
        iterations: dict[str, int] = {}

        def ours(ranks: int, dtype: str) -> float:
            model, who = Path(place) / "model.h5", f"dml-hpc, {dtype}, {ranks} rank{'s' * (ranks > 1)}"
            run = dml_hpc(ranks, "train", folder / "train", "-o", model, "--overwrite", "--objective", "logistic",
                          "--algorithm", "lbfgs", "--l2", given.l2, "--dtype", dtype)
            reached.setdefault(who, []).append(flights.of_model(model))
            iterations[who] = run["steps"]
            return run["work_s"]

        def theirs(who: str, dtype: str, tolerance: float) -> float:
            seconds, value, iterations[who] = flights.scikit_learn(dtype, tol=tolerance, max_iter=10_000)
            reached.setdefault(who, []).append(value)
            return seconds

        few = [ranks for ranks in given.ranks if ranks <= (os.cpu_count() or 1)]
        contestants: dict[str, Any] = {}
        for dtype in DTYPES:
            known = f"scikit-learn, {dtype}"
            contestants[known] = partial(theirs, known, dtype, TOLERANCES[0])
            for tolerance in TOLERANCES[1:]:
                if flights.scikit_learn(dtype, tol=tolerance, max_iter=10_000)[1] <= (1 + GAP) * optimum:
                    known += f", to {GAP:g}"
                    contestants[known] = partial(theirs, known, dtype, tolerance)
                    break
            for ranks in few:
                contestants[f"dml-hpc, {dtype}, {ranks} rank{'s' * (ranks > 1)}"] = partial(ours, ranks, dtype)
        seconds = interleave(contestants, 1 if given.tiny else given.repeats)
        for ranks in given.ranks:
            if ranks not in few:
                for dtype in DTYPES:
                    ours(ranks, dtype)
        shape = flights.X.shape
    median = medians(seconds)
    gaps = {who: max(values) / optimum - 1 for who, values in reached.items()}
    best = min(median[f"scikit-learn, {dtype}"] for dtype in DTYPES)
    speed = {who: best / each for who, each in median.items()}
    for who, gap in gaps.items():
        timing = f"{speed[who]:.2f} times the speed of scikit-learn's faster" if who in speed else "not timed"
        print(f"{who:32s} {iterations[who]:4d} iterations, gap {gap:8.1e}, {timing}")
    case = {"rows": shape[0], "features": shape[1], "l2": given.l2, "optimum": optimum, "scikit-learn": sklearn_version,
            "relative_gap": gaps, "iterations": iterations, "speed_over_scikit_learn": speed,
            "seconds": {who: sorted(times) for who, times in seconds.items()}}
    finish("lbfgs", [case], "whole fits to each one's default tolerance, contestants interleaved; speeds are against "
           "the faster of scikit-learn's two with its default tolerance", given.tiny)


if __name__ == "__main__":
    main()
