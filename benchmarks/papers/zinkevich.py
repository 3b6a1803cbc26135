"""The experiment of Zinkevich, Weimer, Smola and Li, *Parallelized Stochastic Gradient Descent* (NIPS 2010), redone.

    cd benchmarks && python -m papers.zinkevich [--rows 131072] [--entries 100]

The paper learnt which of 3.2 million e-mails are unwanted, 2^18 hashed features, rows of length 1: Huber and squared
loss, λ = 1e-3 and 1e-6, a constant step size, 1, 10 and 100 machines, each learning from random rows of the whole
data set, and the average of their models after each had seen k of them. Values are divided by those of one
sequential pass. Here the rows are synthetic texts of as many features, and the step size is the paper's times
2,508,220 / rows, so that as much is learnt in a pass. Writes a table, a figure and a page into benchmarks/results/.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from results_file import RESULTS
from running import arguments, dml_hpc, finish

from dml_hpc.data.build import build
from dml_hpc.data.csr import Csr
from dml_hpc.data.dataset import open_dataset
from dml_hpc.data.sources.source import About
from dml_hpc.data.synthetic.linear import SparseBinary
from dml_hpc.kernels.random import fill_normals, stream
from dml_hpc.mpi import Alone
from papers.zinkevich_page import draw, page

PAPER_ROWS = 2_508_220
PAPER_STEP_SIZE = 1e-3
FEATURES = 1 << 18
MACHINES = (1, 10, 100)
HALVINGS = 5
"""Models are looked at after rows/2^5, …, rows/2 and all rows a machine."""
SETTINGS = [("huber", 1e-3), ("linear", 1e-3), ("huber", 1e-6), ("linear", 1e-6)]
RARE = 1.6449
"""A normal number is larger once in twenty times."""
TURNING = 100
"""What this stream of random numbers is for."""
RUNS_OF_ONE = 4
"""A single machine's values are means over so many runs: one run's depend on which examples came last."""
SEEDS = {1: 8, 10: 4, 100: 3}
"""How many runs the noise of a model is estimated from, by machines."""


class Texts:
    """Rows ``first`` … of synthetic texts (`SparseBinary`), of length 1.

    They are labelled −1 or 1 by the sign of a linear score of their words; one label in twenty is turned round.
    """

    kind = "csr"

    def __init__(self, first: int, rows: int, entries: float):
        self._texts = SparseBinary(first + rows, FEATURES, 0, "float32", entries)
        self.rows, self.features, self._first = rows, FEATURES, first
        self.about = About(source={"benchmark": "zinkevich", "entries": entries})

    def read(self, start: int, stop: int) -> tuple[Csr, np.ndarray]:
        """See `RowSource.read`."""
        X, _ = self._texts.read(self._first + start, self._first + stop)
        turning = np.empty(stop - start)
        fill_normals(stream(0, TURNING), self._first + start, 1.0, turning)
        y = np.where((self._texts.model.scores(X)[:, 0] > 0) ^ (turning > RARE), 1.0, -1.0)
        lengths = np.sqrt(np.add.reduceat(np.square(X.data, dtype=np.float64), X.indptr[:-1]))
        data = (X.data / np.repeat(lengths, np.diff(X.indptr))).astype(np.float32)
        return Csr(data, X.indices, X.indptr, X.features), y


class Value(NamedTuple):
    """What a model came to."""

    objective: float
    rmse: float


class Trial:
    """Trains on the texts in ``folder`` and judges models."""

    def __init__(self, folder: Path, rows: int, entries: float):
        self.rows, self._folder = rows, folder
        self.step_size = PAPER_STEP_SIZE * PAPER_ROWS / rows
        build(Alone(), folder, {"train": Texts(0, rows, entries), "test": Texts(rows, rows // 4, entries)}, shards=8,
              dtype="float32")
        held = open_dataset(folder / "test")
        self._held = [(piece.X.packed(), piece.y) for piece in held.pieces(0, held.rows) if isinstance(piece.X, Csr)]

    def _train(self, objective: str, l2: float, *options: object, ranks: int = 2) -> tuple[float, np.ndarray]:
        model = self._folder / "model.h5"
        run = dml_hpc(ranks, "train", self._folder / "train", "-o", model, "--overwrite", "--objective", objective,
                      "--l2", l2, "--no-scale", "--no-intercept", *options)
        with h5py.File(model) as file:
            return run["loss"] + run["penalty"], file["weights"][()].reshape(-1).astype(np.float64)

    def averaged(self, objective: str, l2: float, machines: int, examples: int,
                 seed: int = 0) -> tuple[float, np.ndarray]:
        """Return the objective on the training rows, and the weights, after so many examples a machine."""
        return self._train(objective, l2, "--algorithm", "average", "--machines", machines, "--replicas", "--steps",
                           examples, "--step-size", self.step_size, "--seed", seed, ranks=min(machines, 2))

    def optimum(self, objective: str, l2: float) -> np.ndarray:
        """Return the weights that minimise the objective."""
        return self._train(objective, l2, "--algorithm", "lbfgs", "--tolerance", 1e-9, "--steps", 1000,
                           "--dtype", "float64")[1]

    def rmse(self, weights: np.ndarray) -> float:
        """Return the root mean squared error on the rows held out."""
        squares = 0.0
        for X, y in self._held:
            scores = np.add.reduceat(X.data * weights[X.indices], X.indptr[:-1]) + weights[-1]
            squares += float(np.square(scores - y).sum())
        return float(np.sqrt(squares / sum(len(y) for _, y in self._held)))


def curves(trial: Trial, objective: str, l2: float, machines: Sequence[int], examples: Sequence[int]) -> dict[str, Any]:
    """Return a setting's values by machines and examples a machine, absolute and over those of a sequential pass."""
    found: dict[str, Any] = {}
    for count in machines:
        values = []
        for each in examples:
            seeds = range(RUNS_OF_ONE if count == 1 else 1)
            runs = [trial.averaged(objective, l2, count, each, seed) for seed in seeds]
            values.append(Value(float(np.mean([value for value, _ in runs])),
                                float(np.mean([trial.rmse(weights) for _, weights in runs]))))
        found[str(count)] = values
        print(f"{objective:8s} λ = {l2:g}, {count:3d} machines: RMSE "
              + " ".join(f"{value.rmse:.4f}" for value in values), flush=True)
    once = found[str(machines[0])][-1]
    return {"loss": objective, "l2": l2, "examples_a_machine": list(examples), "one_pass": once._asdict(),
            "values": {count: [value._asdict() for value in values] for count, values in found.items()},
            "relative": {name: {count: [getattr(value, name) / getattr(once, name) for value in values]
                                for count, values in found.items()} for name in Value._fields}}


def bias_and_variance(models: np.ndarray, optimum: np.ndarray) -> tuple[float, float]:
    """Return ‖E w − w*‖² and E‖w − E w‖², both without bias, of models (runs, size) and the optimum (size,)."""
    mean = models.mean(axis=0)
    variance = float(np.square(models - mean).sum() / (len(models) - 1))
    return float(np.square(mean - optimum).sum()) - variance / len(models), variance


def noise(trial: Trial, objective: str, l2: float, seeds: dict[int, int], examples: int) -> list[dict[str, Any]]:
    """Return bias and variance of the averaged model by machines, from runs of different seeds."""
    optimum, found = trial.optimum(objective, l2), []
    for machines, runs in seeds.items():
        models = np.array([trial.averaged(objective, l2, machines, examples, 1 + run)[1] for run in range(runs)])
        bias, variance = bias_and_variance(models, optimum)
        found.append({"machines": machines, "runs": runs, "bias": bias, "variance": variance})
        print(f"{machines:3d} machines: bias² {bias:.4g}, variance {variance:.4g}", flush=True)
    return found


def main() -> None:
    """Make the texts, run every setting, write the table, the figure and the page."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=1 << 17, help="rows to learn from; a fourth as many are held out")
    parser.add_argument("--entries", type=float, default=100, help="words a row; the paper's e-mails had 313")
    given = parser.parse_args()
    rows, halvings, machines, seeds, settings = given.rows, HALVINGS, MACHINES, SEEDS, SETTINGS
    if given.tiny:
        rows, halvings, machines, seeds, settings = 4096, 1, (1, 3, 9), {1: 2, 3: 2, 9: 2}, SETTINGS[:3:2]
    examples = [max(1, rows >> halving) for halving in range(halvings, -1, -1)]
    with tempfile.TemporaryDirectory() as place:
        trial = Trial(Path(place), rows, given.entries)
        cases = [curves(trial, objective, l2, machines, examples) for objective, l2 in settings]
        spread = noise(trial, *settings[-1 if given.tiny else 2], seeds, rows)
    text = page(cases, spread, rows, given.entries, trial.step_size)
    print(text)
    if not given.tiny:
        draw(cases, RESULTS / "zinkevich.svg")
        (RESULTS / "zinkevich.md").write_text(text, encoding="utf-8")
    notes = f"{rows} rows of {given.entries:g} words, step size {trial.step_size:g}; bias and variance: Huber, λ = 1e-6"
    finish("zinkevich", [*cases, {"case": "noise", "by_machines": spread}], notes, given.tiny)


if __name__ == "__main__":
    main()
