"""ALS: implicit feedback against the package implicit, explicit ratings against Spark MLlib, all on two cores.

    python benchmarks/mf_als.py [--peers PYTHON] [--spark PYTHON] [--ratings 5000000]

Ours runs on two ranks of one thread each, the peers with two threads; times are of learning alone, from ratings in
memory: ours the ``learning_s`` of the JSON object, and beside it ``work_s``, which has reading and writing in it.

Implicit: how often each of 60,000 users played each of 20,000 items, ⌈exp(rating)⌉ of ratings of rank 10 with noise and
a skew in popularity; k = 64. Both minimise what Hu, Koren and Volinsky (2008) do, with the same α and λ. The level is
the objective that implicit has reached after its default of 15 iterations (of its default solver, 3 steps of conjugate
gradients a row); ours runs as many epochs as bring it as low, each of its solvers. Objectives are computed here, in
float64, by the same code from the factors of both. Draws results/mf_als.svg.

Explicit: k = 32, the same λ a rating (ALS-WR), as many iterations, no biases, which Spark has not; the error of both on
ratings held out stands beside. Spark's ratings are cached, and it has fitted once before it is timed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from curves import draw_curves
from mf_contest import Files, first_at_most, ours, prepared, spark, spark_factors
from rated import Ratings, Shape, archive, implicit_objective, loaded, made, of_archive, parquet, rmse
from rated import ours as of_file
from results_file import RESULTS
from running import arguments, dml_hpc, finish, peer, version

from dml_hpc.reports.timing import interleave

RANKS, THREADS = 2, 2
K, ALPHA, L2, ITERATIONS = 64, 10.0, 1.0, 15
MOST_EPOCHS = 30
EXPLICIT_K, EXPLICIT_L2, EXPLICIT_ITERATIONS = 32, 0.05, 5
SOLVERS = ("cg", "cholesky")


def played(folder: Path, shape: Shape) -> tuple[Files, Ratings]:
    """Make the plays as a data set and as an archive; return the files and them."""
    files = Files(folder, shape)
    rated = loaded(made(folder / "rated", shape, holdout=0) / "train")
    plays = Ratings(rated.users, rated.items, np.ceil(np.exp(rated.values)).astype(np.float32))
    table = parquet(files.parquet, plays)
    dml_hpc(1, "data", "import", table, "-o", files.train, "--user", "user", "--item", "item", "--rating", "rating")
    archive(files.alone, plays)
    return files, plays


def against_implicit(folder: Path, shape: Shape, k: int, python: str, iterations: int, repeats: int,
                     figure: Path | None) -> dict[str, Any]:
    """Measure implicit ALS to the objective that implicit reaches; contestants take turns."""
    files, plays = played(folder, shape)
    words = ("--algorithm", "als", "--implicit", "--alpha", ALPHA, "--l2", L2)

    def learnt(solver: str, epochs: int) -> dict[str, Any]:
        return ours(files, RANKS, k, *words, "--solver", solver, "--epochs", epochs)

    def theirs(*output: object) -> dict[str, Any]:
        return peer(python, "implicit_als.py", files.alone, k, iterations, ALPHA, L2, THREADS, "cg", *output)

    found = theirs(folder / "implicit")
    values = {"implicit": [implicit_objective(of_archive(folder / f"implicit-{n + 1}.npz"), plays, ALPHA, L2)
                           for n in range(iterations)]}
    level, epochs, runs = values["implicit"][-1], {}, {}
    for solver in SOLVERS:
        run = learnt(solver, min(MOST_EPOCHS, 2 * iterations))
        # Its own objective, to know the epoch; of the factors of that epoch it is computed once more, below.
        scale = implicit_objective(of_file(files.factors, shape), plays, ALPHA, L2) / run["losses"][-1]
        values[solver] = [scale * loss for loss in run["losses"]]
        reached = first_at_most(values[solver], level)
        if reached is None:
            print(f"{solver}: does not reach implicit's objective in {run['epochs']} epochs", flush=True)
            continue
        epochs[solver] = reached + 1
        runs[solver] = learnt(solver, epochs[solver])
        objective = implicit_objective(of_file(files.factors, shape), plays, ALPHA, L2)
        if objective > level * (1 + 1e-4):
            raise AssertionError(f"{solver}: {objective} after {epochs[solver]} epochs is over {level}")
    work: dict[str, list[float]] = {solver: [] for solver in epochs}

    def our_s(solver: str) -> float:
        run = learnt(solver, epochs[solver])
        work[solver].append(run["work_s"])
        return run["learning_s"]

    seconds = interleave({"implicit": lambda: sum(theirs()["seconds"]),
                          **{solver: partial(our_s, solver) for solver in epochs}}, repeats)
    median = {who: float(np.median(times)) for who, times in seconds.items()}
    ratios = {solver: median["implicit"] / median[solver] for solver in epochs}
    for solver, ratio in ratios.items():
        print(f"implicit, k = {k}: {solver}, {epochs[solver]} epochs: {ratio:.2f} times as fast as implicit's "
              f"{iterations} iterations to the same objective", flush=True)
    epoch_s = {"implicit": median["implicit"] / iterations,
               **{solver: median[solver] / epochs[solver] for solver in epochs}}
    names = {"implicit": "implicit, 2 threads", **{solver: f"dml-hpc, {solver}, 2 ranks" for solver in SOLVERS}}
    if figure is not None:
        draw_curves(figure, {names[who]: ([each * (n + 1) for n in range(len(values[who]))],
                                          [value / min(map(min, values.values())) for value in values[who]])
                             for who, each in epoch_s.items()},
                    "seconds of learning", "objective, over the lowest seen", level / min(map(min, values.values())),
                    highest=1.1)
    return {"case": "implicit", "ratings": len(plays.values), "users": shape.users, "items": shape.items, "k": k,
            "alpha": ALPHA, "l2": L2, "implicit": found["version"], "iterations": iterations, "objective": level,
            "epochs_to_objective": epochs, "speed_over_implicit": ratios, "epoch_s": epoch_s,
            "seconds": {who: sorted(times.tolist()) for who, times in seconds.items()},
            "work_s": {who: sorted(times) for who, times in work.items()}, "objectives": values}


def against_spark(folder: Path, shape: Shape, k: int, python: str, iterations: int, repeats: int) -> dict[str, Any]:
    """Measure explicit ALS, half of our rounds before Spark's session and half after."""
    files = prepared(folder, shape)
    test = loaded(files.test)
    runs = []

    def learn() -> None:
        runs.append(ours(files, RANKS, k, "--algorithm", "als", "--no-biases", "--l2", EXPLICIT_L2, "--epochs",
                         iterations))

    learn()  # compiles what is not yet in the cache
    runs.clear()
    for _ in range(-(-repeats // 2)):
        learn()
    found = spark(python, files, k, iterations, [EXPLICIT_L2], THREADS, rounds=max(1, repeats - 1))
    for _ in range(max(1, repeats // 2)):
        learn()
    errors = {"dml-hpc": rmse(of_file(files.factors, shape), test), "spark": rmse(spark_factors(files, 0), test)}
    seconds = {"dml-hpc": sorted(run["learning_s"] for run in runs), "spark": sorted(found["seconds"][0])}
    ratio, work_ratio = (float(np.median(seconds["spark"]) / np.median([run[key] for run in runs]))
                         for key in ("learning_s", "work_s"))
    print(f"explicit, k = {k}: {ratio:.1f} times as fast as Spark ({work_ratio:.1f} with reading and writing); RMSE "
          f"held out {errors['dml-hpc']:.4f}, Spark {errors['spark']:.4f}", flush=True)
    return {"case": "explicit", "ratings": found["ratings"], "users": shape.users, "items": shape.items, "k": k,
            "l2": EXPLICIT_L2, "iterations": iterations, "pyspark": found["version"], "speed_over_spark": ratio,
            "speed_over_spark_by_work_s": work_ratio, "seconds": seconds, "rmse_test": errors,
            "work_s": sorted(run["work_s"] for run in runs)}


def main() -> None:
    """Measure and write the results file."""
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--ratings", type=int, default=5_000_000)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="has implicit  [default: this]")
    parser.add_argument("--spark", default=sys.executable, metavar="PYTHON", help="has pyspark  [default: this]")
    given = parser.parse_args()
    repeats, shape, k, iterations = given.repeats, Shape(given.ratings, 60_000, 20_000), K, ITERATIONS
    explicit_k, explicit_iterations, figure = EXPLICIT_K, EXPLICIT_ITERATIONS, RESULTS / "mf_als.svg"
    if given.tiny:
        repeats, shape, k, iterations = 1, Shape(60_000, 2000, 600), 16, 4
        explicit_k, explicit_iterations = 16, 2
    cases, notes = [], "implicit: contestants interleaved; Spark: in one session, half of our rounds before, half after"
    if version(given.peers, "implicit"):
        with tempfile.TemporaryDirectory() as place:
            cases.append(against_implicit(Path(place), shape, k, given.peers, iterations, repeats,
                                          None if given.tiny else figure))
    else:
        notes += "; implicit was not there (pip install implicit), and is left out"
    if version(given.spark, "pyspark") and shutil.which("java"):
        with tempfile.TemporaryDirectory() as place:
            cases.append(against_spark(Path(place) / "ratings", shape, explicit_k, given.spark, explicit_iterations,
                                       repeats))
    else:
        notes += "; Spark was not there (pip install pyspark, and a Java), and is left out"
    print(notes)
    finish("mf_als", cases, notes, given.tiny)


if __name__ == "__main__":
    main()
