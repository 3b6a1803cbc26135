"""The truncated SVD of a tall dense matrix, against scikit-learn, Heat and Spark MLlib.

    python benchmarks/svd.py [--rows 400000] [--heat PYTHON] [--spark PYTHON]

float32, σᵢ = 1/√i, random singular vectors. Ours is ``dml-hpc svd`` on two ranks of one thread each, timed by the
``work_s`` of its JSON object: all that it does once it runs, from the file in the page cache to the file it writes. The
peers are timed by their call alone, on rows that they have in memory: scikit-learn's ``randomized_svd`` as it is by
default, on two threads; Heat's ``rsvd`` with two power iterations and ``hsvd_rank``, on two ranks of one thread each;
Spark's ``RowMatrix.computeSVD`` with ``local[2]`` on a smaller matrix, one call. Beside each time is the largest
relative error of its singular values, by those of the stored numbers in float64. So that like is compared with like,
the randomised peers are also run with the fewest power iterations, of a list, that bring it to 1e-5, and ours also with
an accuracy of 1e-2. HEAT and SPARK are Pythons that have them.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matrices import dense, largest_by_gram, write_matrix
from running import arguments, finish, peer, version
from sklearn import __version__ as sklearn_version
from sklearn.utils.extmath import randomized_svd
from svd_contest import Contest, Outcome, timed_svd

from dml_hpc.reports.timing import interleave

RANKS = 2
ERROR = 1e-5
POWER_ITERATIONS = (4, 7, 12, 20, 30)
OURS = "dml-hpc"
ROUGHLY = ("--accuracy", 1e-2)


def enter(folder: Path, rows: int, features: int, k: int) -> tuple[np.ndarray, Contest]:
    """Make the matrix and write it; return it and its contest."""
    X = dense(np.random.default_rng(features), rows, 1 / np.sqrt(np.arange(1.0, features + 1)))
    contest = Contest(write_matrix(folder / "matrix.h5", X), k, largest_by_gram(X, k))
    contest.ours(OURS, RANKS)  # compiles what is not yet in the cache
    print(f"{rows:,} × {features}, k = {k}", flush=True)
    return X, contest


def described(shape: tuple[int, ...], contest: Contest, seconds: dict[str, np.ndarray],
              **versions: str | None) -> dict[str, Any]:
    """Return the case of the results file."""
    return {"rows": shape[0], "features": shape[1], "dtype": "float32", "spectrum": "1/sqrt(i)", "ranks": RANKS,
            "versions": versions, **contest.case(seconds, OURS)}


def in_memory(folder: Path, rows: int, features: int, k: int, python: str, repeats: int) -> dict[str, Any]:
    """Measure against scikit-learn and, where that Python has it, Heat; contestants take turns."""
    X, contest = enter(folder, rows, features, k)

    def scikit_learn(iterations: int | str) -> Outcome:
        return timed_svd(partial(randomized_svd, X, k, n_iter=iterations, random_state=0))

    def heat(method: str, iterations: int) -> Outcome:
        found = peer(python, "heat_svd.py", contest.file, k, method, iterations, ranks=RANKS)
        return found["seconds"], found["singular_values"]

    most = contest.fewest("scikit-learn", scikit_learn, POWER_ITERATIONS, ERROR)
    called: dict[str, Callable[[], Outcome]] = {
        "scikit-learn, by default": partial(scikit_learn, "auto"),
        f"scikit-learn, {most} iterations": partial(scikit_learn, most)}
    heat_version = version(python, "heat")
    if heat_version:
        most = contest.fewest("Heat, rsvd", partial(heat, "rsvd"), POWER_ITERATIONS, ERROR)
        called |= {"Heat, rsvd, 2 iterations": partial(heat, "rsvd", 2),
                   f"Heat, rsvd, {most} iterations": partial(heat, "rsvd", most),
                   "Heat, hsvd_rank": partial(heat, "hsvd_rank", 0)}
    rough = f"{OURS}, accuracy {ROUGHLY[1]:g}"
    contestants: dict[str, Callable[[], float]] = {OURS: partial(contest.ours, OURS, RANKS),
                                                   rough: partial(contest.ours, rough, RANKS, *ROUGHLY)}
    contestants |= {who: partial(contest.turn, who, call) for who, call in called.items()}
    seconds = interleave(contestants, repeats)
    return described(X.shape, contest, seconds, scikit_learn=sklearn_version, heat=heat_version)


def against_spark(folder: Path, rows: int, features: int, k: int, python: str, repeats: int) -> dict[str, Any]:
    """Measure against one call of Spark's, half of our rounds before it and half after."""
    X, contest = enter(folder, rows, features, k)
    np.save(folder / "matrix.npy", X)
    seconds = [contest.ours(OURS, RANKS) for _ in range(-(-repeats // 2))]
    found = peer(python, "spark_svd.py", folder / "matrix.npy", k, RANKS)
    spark = contest.turn("Spark, computeSVD", lambda: (found["seconds"], found["singular_values"]))
    seconds += [contest.ours(OURS, RANKS) for _ in range(repeats // 2)]
    both = {OURS: np.array(seconds), "Spark, computeSVD": np.array([spark])}
    return described(X.shape, contest, both, pyspark=found["version"])


def main() -> None:
    """Measure and write the results file."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--heat", default=sys.executable, metavar="PYTHON", help="has heat  [default: this]")
    parser.add_argument("--spark", default=sys.executable, metavar="PYTHON", help="has pyspark  [default: this]")
    given = parser.parse_args()
    repeats, shape, spark_shape = given.repeats, (given.rows, 512, 20), (200_000, 256, 10)
    if given.tiny:
        repeats, shape, spark_shape = 1, (4000, 64, 10), (2000, 128, 5)
    cases, notes = [], "contestants interleaved; a version that is null was not there, and is left out"
    with tempfile.TemporaryDirectory() as place:
        cases.append(in_memory(Path(place), *shape, given.heat, repeats))
    if version(given.spark, "pyspark") and shutil.which("java"):
        with tempfile.TemporaryDirectory() as place:
            cases.append(against_spark(Path(place), *spark_shape, given.spark, repeats))
    else:
        notes += "; Spark was not there (pip install pyspark pyarrow, and a Java), and is left out"
        print(notes)
    finish("svd", cases, notes, given.tiny)


if __name__ == "__main__":
    main()
