"""The speed-up grid of Moritz, Nishihara, Stoica and Jordan, *SparkNet: Training Deep Networks in Spark* (ICLR 2016).

    cd benchmarks && python -m papers.sparknet [--rows 20000]

K workers each take τ mini-batches of b rows of their own alone, then average their models: a round. To reach a loss a,
one worker takes N_a iterations, and K take M_a rounds; were averaging free, N_a / (τ·M_a) would be the speed-up
(section 2.1; the paper's threshold is an accuracy, ours the loss of the training rows, which is less grainy). ``train
--algorithm local`` on K ranks, each number of rounds a run of its own; where a loss is first reached is searched for.
Only iterations count, so ranks may share cores. Writes a table, a figure and a page into benchmarks/results/.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from results_file import RESULTS
from running import arguments, dml_hpc, finish

from papers.sparknet_page import draw, page

WORKERS: tuple[int, ...] = (1, 2, 3, 4, 5)
TAUS: tuple[int, ...] = (1, 2, 5, 10, 25, 50, 100, 250)
BATCH = 16
HIDDEN = 32
STEP_SIZE = 0.1
CLASSES = 10
FEATURES = 32
PRECISION = 0.04
"""Searches end when the answer is known to this share of it."""
MOST = 4
"""Workers who need more than so many times the iterations of one are said not to get there."""


def least(reaches: Callable[[int], bool], guess: int, most: int) -> int | None:
    """Return about the least count ≥ 1 for which ``reaches`` holds, None where ``most`` does not reach.

    Assumes that a count reaches if a smaller one does; known to `PRECISION`, and exactly below its inverse.
    """
    low, high = 0, most + 1  # the largest count that does not reach, the smallest that does, as far as is known
    count = min(max(guess, 1), most)
    while True:
        if reaches(count):
            high = count
        else:
            low = count
        if low == most:
            return None
        if high - low <= max(1, int(PRECISION * low)) and high <= most:
            return high
        if high > most:
            count = min(most, low + max(1, low // 4))
        elif low == 0:
            count = high - max(1, high // 4)
        else:
            count = (low + high) // 2


class Grid:
    """Measures rounds to a loss on the data set ``data``."""

    def __init__(self, data: Path, target: float, seed: int):
        self._data, self._target, self._seed = data, target, seed

    def loss(self, workers: int, tau: int, rounds: int) -> float:
        """Return the training loss after so many rounds."""
        return dml_hpc(workers, "train", self._data, "-o", self._data.with_suffix(".h5"), "--overwrite", "--objective",
                       "mlp", "--hidden", HIDDEN, "--algorithm", "local", "--tau", tau, "--steps", tau * rounds,
                       "--batch-size", BATCH * workers, "--optimizer", "sgd", "--momentum", 0, "--schedule", "constant",
                       "--step-size", STEP_SIZE, "--seed", self._seed, "--allreduce", "mpi")["loss"]

    def rounds(self, workers: int, tau: int, guess: int, most: int) -> int | None:
        """Return M_a: the least number of rounds that reach the loss."""
        return least(lambda rounds: self.loss(workers, tau, rounds) <= self._target, guess, most)


def row(grid: Grid, workers: int, taus: Sequence[int], serial: int) -> list[float | None]:
    """Return N_a / (τ·M_a) of so many workers by τ, None where they do not get there."""
    speedups: list[float | None] = []
    guess = serial / workers
    for tau in taus:
        rounds = grid.rounds(workers, tau, round(guess / tau), MOST * serial // tau + 1)
        speedups.append(None if rounds is None else serial / (tau * rounds))
        guess = float(serial if rounds is None else tau * rounds)
    return speedups


def main() -> None:
    """Make the data, fill the grid, write the table, the figure and the page."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--target", type=float, default=None, help="the loss to reach  [default: see --serial]")
    parser.add_argument("--serial", type=int, default=2000, help="aim at the loss that one worker has reached by then")
    parser.add_argument("--seeds", type=int, default=3, help="the grid is the median over so many seeds")
    given = parser.parse_args()
    rows, seeds, serial, workers, taus = given.rows, given.seeds, given.serial, WORKERS, TAUS
    if given.tiny:
        rows, seeds, serial, workers, taus = 2000, 1, 50, (1, 2), (1, 10)
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data"
        dml_hpc(1, "data", "synth", "multiclass", "--rows", rows, "--features", FEATURES, "--classes", CLASSES,
                "-o", data)
        target = given.target
        if target is None:
            target = float(np.median([Grid(data, 0.0, seed).loss(1, 1, serial) for seed in range(1, 1 + seeds)]))
        grids: list[list[list[float | None]]] = []
        counts = []
        for seed in range(1, 1 + seeds):
            grid = Grid(data, target, seed)
            alone = grid.rounds(1, 1, serial, MOST * serial)
            if alone is None:
                raise SystemExit(f"one worker does not reach a loss of {target:.4f} in {MOST * serial} iterations")
            counts.append(alone)
            # Of one worker's model the average is itself: no need to measure that.
            found: list[list[float | None]] = [[alone / (tau * -(-alone // tau)) for tau in taus]]
            for count in workers[1:]:
                found.append(row(grid, count, taus, alone))
                print(f"seed {seed}, {count} workers: {found[-1]}", flush=True)
            grids.append(found)
    median = [[_median([grid[i][j] for grid in grids]) for j in range(len(taus))] for i in range(len(workers))]
    case = {"workers": workers, "tau": taus, "loss": target, "serial_iterations": counts, "speedup": median,
            "by_seed": grids, "batch_size": BATCH, "hidden": HIDDEN, "step_size": STEP_SIZE, "rows": rows,
            "features": FEATURES, "classes": CLASSES}
    text = page(case)
    print(text)
    if not given.tiny:
        draw(case, RESULTS / "sparknet.svg")
        (RESULTS / "sparknet.md").write_text(text, encoding="utf-8")
    finish("sparknet", [case], "speed-up N_a / (τ·M_a) if averaging were free; null: not reached", given.tiny)


def _median(values: Sequence[float | None]) -> float | None:
    """Return the median, with None for no speed at all."""
    middle = float(np.median([0.0 if value is None else value for value in values]))
    return middle or None


if __name__ == "__main__":
    main()
