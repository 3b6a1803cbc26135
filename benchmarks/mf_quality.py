"""The error on ratings held out: ours, LIBMF's and Spark's, each at its best setting of the same small grid.

    python benchmarks/mf_quality.py [--peers PYTHON] [--spark PYTHON]
    python benchmarks/mf_quality.py --draw

Two kinds of ratings of rank 10 with noise and a skew in popularity: dense, of which users have many, and thin, of which
they have few; each with little noise, and with as much as people's tastes have (0.3 and 0.8, of ratings whose own
deviation is 1). k = 16. The grid: λ for everybody; step size, and the number of epochs, which is read off the course of
one run, for SGD (`adagrad`, and LIBMF, whose steps are much the same); 10 iterations of ALS.
The data have mean 0 and no biases, as suits the peers, which learn none; on the grid ours learns none either. Beside it
are our defaults, nothing but -k given, biases and all. LIBMF's errors are those that it prints, to four digits, Spark's
are computed here from its factors.

The best setting is chosen by the ratings held out for everybody alike: this compares what can be had.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from curves import save_svg
from matplotlib.figure import Figure
from mf_contest import Files, Libmf, ours, prepared, spark, spark_factors
from rated import Shape, loaded, rmse
from running import arguments, drawn, finish, version

from dml_hpc.reports.figures.canvas import CURVES, curve_style, legend, style

K, ITERATIONS, CORES = 16, 10, 2
EPOCHS = (10, 20, 40)
SHAPES = {"dense": Shape(600_000, 3000, 1000), "thin": Shape(600_000, 30_000, 6000)}
NOISES = (0.3, 0.8)
SEED = 5
"""Of ratings that no default was chosen by."""
OURS = ("dml-hpc sgd", "dml-hpc als")


class Grid(NamedTuple):
    """The settings that everybody tries."""

    penalties: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2)
    step_sizes: tuple[float, ...] = (0.05, 0.1, 0.2)


class Setting(NamedTuple):
    """One place of the grid; ALS has no step size."""

    l2: float
    epochs: int
    step_size: float | None = None


Errors = dict[Setting, float]
"""The RMSE of the ratings held out, by setting."""


def by_epochs(l2: float, step_size: float, values: list[float]) -> Errors:
    """Return the errors of one course of SGD at the numbers of epochs that are looked at."""
    return {Setting(l2, epochs, step_size): values[epochs - 1] for epochs in EPOCHS if epochs <= len(values)}


def our_errors(files: Files, grid: Grid) -> dict[str, Errors]:
    """Return the errors of ours, over the grid, of the model that the peers have: without biases."""
    sgd: Errors = {}
    als: Errors = {}
    for l2, step_size in product(*grid):
        run = ours(files, 1, K, "--no-biases", "--l2", l2, "--step-size", step_size, "--epochs", max(EPOCHS), test=True)
        sgd.update(by_epochs(l2, step_size, run["rmses_test"]))
    for l2 in grid.penalties:
        run = ours(files, 1, K, "--algorithm", "als", "--no-biases", "--l2", l2, "--epochs", ITERATIONS, test=True)
        als[Setting(l2, ITERATIONS)] = run["rmse_test"]
    return dict(zip(OURS, (sgd, als), strict=True))


def their_errors(files: Files, grid: Grid, libmf: Libmf | None, spark_python: str | None) -> dict[str, Errors]:
    """Return the errors of the peers that are there, over the grid."""
    found: dict[str, Errors] = {}
    if libmf:
        found["LIBMF"] = {}
        for l2, step_size in product(*grid):
            run = libmf.run(files, K, max(EPOCHS), l2, step_size, test=True)
            found["LIBMF"].update(by_epochs(l2, step_size, run["rmses_test"]))
    if spark_python:
        test = loaded(files.test)
        spark(spark_python, files, K, ITERATIONS, grid.penalties, CORES)
        found["Spark ALS"] = {Setting(l2, ITERATIONS): rmse(spark_factors(files, number), test)
                              for number, l2 in enumerate(grid.penalties)}
    return found


def by_default(files: Files) -> dict[str, float]:
    """Return the errors of ours with nothing but k given."""
    return {who: ours(files, 1, K, "--algorithm", who.rpartition(" ")[2], test=True)["rmse_test"] for who in OURS}


def judged(kind: str, files: Files, grid: Grid, libmf: Libmf | None, spark_python: str | None,
           ) -> dict[str, Any]:
    """Run the grid of everybody, print and return the case of the results file."""
    errors = {**our_errors(files, grid), **their_errors(files, grid, libmf, spark_python)}
    best = {who: min(found.items(), key=lambda item: item[1]) for who, found in errors.items()}
    defaults = by_default(files)
    peers = {who: value for who, (_, value) in best.items() if who not in OURS}
    case: dict[str, Any] = {
        "kind": kind, **files.shape._asdict(), "learner_k": K,
        "best": {who: {**setting._asdict(), "rmse_test": value} for who, (setting, value) in best.items()},
        "defaults": defaults,
        "grid": {who: [{**setting._asdict(), "rmse_test": value} for setting, value in found.items()]
                 for who, found in errors.items()}}
    for who, (setting, value) in best.items():
        print(f"{kind}, noise {files.shape.noise:g}: {who:12s} {value:.4f}  (λ = {setting.l2:g}, {setting.epochs} "
              "epochs" + ("" if setting.step_size is None else f", step size {setting.step_size:g}") + ")")
    if peers:
        least = min(peers.values())
        case["best_over_best_peer"] = min(best[who][1] for who in OURS) / least
        case["each_best_over_best_peer"] = {who: best[who][1] / least for who in OURS}
        case["defaults_over_best_peer"] = {who: value / least for who, value in defaults.items()}
        print(f"    over the better peer: best {case['best_over_best_peer']:.4f} "
              f"({', '.join(f'{who} {value:.4f}' for who, value in case['each_best_over_best_peer'].items())}); "
              f"defaults {', '.join(f'{who} {value:.4f}' for who, value in case['defaults_over_best_peer'].items())}",
              flush=True)
    return case


def draw(cases: list[dict[str, Any]], path: Path) -> None:
    """Draw each contestant's error against λ, at its best number of epochs and step size, and our defaults."""
    figure = Figure(figsize=(7.2, 6.8), facecolor="white", layout="constrained")
    panels = figure.subplots(-(-len(cases) // 2), 2, squeeze=False).reshape(-1)
    for axes, case in zip(panels, cases, strict=False):
        style(axes, "λ", f"RMSE: {case['ratings'] // case['users']} ratings a user, noise {case['noise']:g}", size=10)
        for i, (who, grid) in enumerate(case["grid"].items()):
            penalties = sorted({one["l2"] for one in grid})
            errors = [min(one["rmse_test"] for one in grid if one["l2"] == l2) for l2 in penalties]
            axes.plot(penalties, errors, label=who, **{**curve_style(i), "markersize": 5, "linewidth": 1.5})
            if who in case["defaults"]:
                axes.axhline(case["defaults"][who], color=CURVES[i], linewidth=1, linestyle=(0, (1, 2)),
                             label=f"{who}, as it is by default")
        axes.set_xscale("log")
        axes.set_xticks(penalties, [f"{l2:g}" for l2 in penalties])
        axes.minorticks_off()
        least, shown = min(one["rmse_test"] for one in case["best"].values()), max(case["defaults"].values())
        axes.set_ylim(least - 0.005 * least, max(1.15 * least, 1.02 * shown))
    legend(figure, panels[0], n_columns=2, longest=80)
    save_svg(figure, path)


def main() -> None:
    """Run every grid, write the results file and draw it."""
    parser = arguments(__doc__, draws=True)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="has libmf  [default: this]")
    parser.add_argument("--spark", default=sys.executable, metavar="PYTHON", help="has pyspark  [default: this]")
    parser.add_argument("--libmf-library", type=Path, metavar="FILE", help="LIBMF's library, built for this CPU")
    given = parser.parse_args()
    if given.draw:
        drawn("mf_quality", draw)
        return
    shapes, noises, grid = SHAPES, list(NOISES), Grid()
    if given.tiny:
        shapes, noises, grid = {"thin": Shape(60_000, 2000, 600)}, [0.3], Grid((0.05,), (0.1,))
    libmf = Libmf(given.peers, given.libmf_library and given.libmf_library.absolute()) if version(
        given.peers, "libmf") else None
    spark_python = given.spark if version(given.spark, "pyspark") and shutil.which("java") else None
    cases, notes = [], "best settings by the ratings held out, for everybody alike"
    for who, there in (("LIBMF", libmf), ("Spark", spark_python)):
        if there is None:
            notes += f"; {who} was not there, and is left out"
    for kind, shape in shapes.items():
        for noise in noises:
            with tempfile.TemporaryDirectory() as place:
                files = prepared(Path(place) / "ratings", shape._replace(noise=noise), seed=SEED)
                cases.append(judged(kind, files, grid, libmf, spark_python))
    print(notes)
    finish("mf_quality", cases, notes, given.tiny, draw)


if __name__ == "__main__":
    main()
