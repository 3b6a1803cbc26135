"""Synchronous training of a linear model: how near it comes to reading memory as fast as two cores can.

    python benchmarks/sync_memory.py [--mebibytes 1024]

Full batches, and mini-batches of 65,536 shuffled rows, of a dense float32 data set; full batches of the same rows
stored in float16. Beside them, two threads that sum the same mapped shards, and two that sum as many numbers in memory
of the process; all take turns. Training is timed by its record: all of its work, sums and steps too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from running import added, arguments, dml_hpc, finish, medians, on_cores

from dml_hpc.data.dataset import open_dataset
from dml_hpc.reports.timing import interleave, timed

FEATURES = 256


def training(folder: Path, ranks: int, batch: int | str, epochs: int) -> Callable[[], float]:
    """Return what trains and returns the seconds of an epoch."""
    def epoch_s() -> float:
        run = dml_hpc(ranks, "train", folder, "-o", folder.with_suffix(".h5"), "--overwrite", "--objective", "logistic",
                      "--algorithm", "sync", "--batch-size", batch, "--epochs", epochs, "--step-size", 0.1)
        return run["rows"] / run["examples_per_s"]

    return epoch_s


def reading(arrays: list[np.ndarray]) -> Callable[[], float]:
    """Return what sums the arrays on two threads, half of them each, and returns the seconds that took."""
    flat = [array.reshape(-1) for array in arrays]

    def half(core: int) -> float:
        return sum(float(added(numbers)) for numbers in flat[core::2])

    read = on_cores(2, half)
    read()
    return timed(read)


def read_from_disk(folder: Path) -> None:
    """Have a data set's files in the page cache as a job that reads them from disk has them, in large pieces.

    Files that were just written lie there page by page, as they came, which reading them mapped pays for.
    """
    for path in folder.glob("*.h5"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while file.read(1 << 24):
                pass


def main() -> None:
    """Make the data, measure in turns, write the results file."""
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--mebibytes", type=int, default=1024, help="size of the data set in float32")
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    size, epochs, repeats = given.mebibytes << 20, given.epochs, given.repeats
    if given.tiny:
        size, epochs, repeats = 8 << 20, 2, 1
    rows = size // (4 * FEATURES)
    with tempfile.TemporaryDirectory() as place:
        folders = {dtype: Path(place) / dtype for dtype in ("float32", "float16")}
        for dtype, folder in folders.items():
            dml_hpc(2, "data", "synth", "binary", "--rows", rows, "--features", FEATURES, "--dtype", dtype,
                    "-o", folder)
            read_from_disk(folder)
        full, half = folders["float32"], folders["float16"]
        dataset = open_dataset(full)
        mapped = [np.asarray(piece.X) for piece in dataset.pieces(0, dataset.rows, mapped=True)]
        contestants = {
            "read mapped shards, 2 cores": reading(mapped),
            "read memory, 2 cores": reading([array.copy() for array in mapped]),
            "full batch, 2 ranks": training(full, 2, "full", epochs),
            "full batch, 1 rank": training(full, 1, "full", epochs),
            "batches of 65,536, 2 ranks": training(full, 2, 65536, epochs),
            "full batch in float16, 2 ranks": training(half, 2, "full", epochs),
        }
        seconds = interleave(contestants, repeats)
    median = medians(seconds)
    read = min(median["read mapped shards, 2 cores"], median["read memory, 2 cores"])
    stored = {who: size // 2 if "float16" in who else size for who in median}
    shares = {who: read * stored[who] / size / each for who, each in median.items()}
    for who, each in median.items():
        print(f"{who:31s} {stored[who] / each / 1e9:6.2f} GB/s, {shares[who]:4.0%} of what two cores read")
    ratio = median["full batch, 2 ranks"] / median["full batch in float16, 2 ranks"]
    print(f"float16: {ratio:.2f} times the examples a second")
    case = {"rows": rows, "features": FEATURES, "bytes": size, "epochs": epochs, "share_of_read_bandwidth": shares,
            "float16_over_float32_examples_per_s": ratio,
            "two_ranks_over_one": median["full batch, 1 rank"] / median["full batch, 2 ranks"],
            "gigabytes_per_s": {who: stored[who] / each / 1e9 for who, each in median.items()},
            "epoch_s": {who: sorted(times) for who, times in seconds.items()}}
    finish("sync_memory", [case], "logistic regression over dense rows; shares are of the faster of the two reads",
           given.tiny)


if __name__ == "__main__":
    main()
