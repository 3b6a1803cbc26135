"""Reading shards from the page cache on one core, against the plain ways to read the same numbers.

    python benchmarks/reading.py [--mebibytes 1024]

Each contestant opens its files anew, reads every number once and adds them up with the same kernel; they run in turn,
several times, and ratios are of medians. ``dense``: float32 rows, mapped, against `numpy.memmap`. ``streamed``: the
same through buffers, as under ``--memory-limit``, against `numpy.memmap` too. ``compressed``: Blosc2 shards against
h5py slicing a gzip dataset chunk by chunk. ``sparse``: CSR rows with their structure checked, against `numpy.memmap` of
their arrays.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from numba import njit
from results_file import write_results

from dml_hpc.data.build import build
from dml_hpc.data.csr import Csr
from dml_hpc.data.dataset import open_dataset
from dml_hpc.data.sources.source import About
from dml_hpc.mpi import Alone
from dml_hpc.reports.timing import interleave, timed

REPEATS = 9
FEATURES = 256
SHARDS = 8
ROW_ENTRIES = 40
SPARSE_FEATURES = 1 << 18


@njit(fastmath=True, nogil=True)
def added(values):
    """Return the sum of a flat array: one vectorised pass over memory."""
    total = values.dtype.type(0)
    for i in range(values.size):
        total += values[i]
    return total


class DenseRows:
    """Random rows; with ``steps`` rounded to multiples of 1/``steps``, so that there is something to compress."""

    kind, features, about = "dense", FEATURES, About()

    def __init__(self, rows: int, steps: int | None = None):
        self.rows, self._steps = rows, steps

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """See `RowSource.read`."""
        X = np.random.default_rng(start).standard_normal((stop - start, FEATURES), dtype=np.float32)
        return (X if self._steps is None else np.round(X * self._steps) / self._steps), np.zeros(stop - start)


class SparseRows:
    """Random sparse rows of `ROW_ENTRIES` entries."""

    kind, features, about = "csr", SPARSE_FEATURES, About()

    def __init__(self, rows: int):
        self.rows = rows

    def read(self, start: int, stop: int) -> tuple[Csr, np.ndarray]:
        """See `RowSource.read`."""
        rng, rows = np.random.default_rng(start), stop - start
        indices = np.sort(rng.integers(0, SPARSE_FEATURES, (rows, ROW_ENTRIES)).astype(np.int32), axis=1)
        data = rng.standard_normal(rows * ROW_ENTRIES, dtype=np.float32)
        return Csr(data, indices.reshape(-1), np.arange(rows + 1) * ROW_ENTRIES, SPARSE_FEATURES), np.zeros(rows)


def ours(folder: Path, mapped: bool = True) -> Callable[[], float]:
    """Return what reads a data set through the public way."""
    def read() -> float:
        dataset, total = open_dataset(folder), 0.0
        for piece in dataset.pieces(0, dataset.rows, mapped=mapped):
            if isinstance(piece.X, Csr):
                packed = piece.X.packed()
                total += float(added(packed.data)) + float(added(packed.indices))
            else:
                total += float(added(piece.X.reshape(-1)))
        return total

    return read


def plain(folder: Path, names: tuple[str, ...]) -> Callable[[], float]:
    """Return what maps the same datasets with NumPy and reads them from end to end."""
    places = []
    for path in sorted(folder.glob("part-*.h5")):
        with h5py.File(path) as file:
            places += [(path, file[name].dtype, file[name].id.get_offset(), file[name].size) for name in names]

    def read() -> float:
        return sum(float(added(np.memmap(path, dtype, "r", offset, (size,)))) for path, dtype, offset, size in places)

    return read


def by_chunk(folder: Path) -> Callable[[], float]:
    """Return what slices X through h5py chunk by chunk."""
    def read() -> float:
        total = 0.0
        for path in sorted(folder.glob("part-*.h5")):
            with h5py.File(path) as file:
                X = file["X"]
                for start in range(0, len(X), X.chunks[0]):
                    total += float(added(X[start:start + X.chunks[0]].reshape(-1)))
        return total

    return read


def made(folder: Path, source: DenseRows | SparseRows, compression: str | None = None) -> Path:
    """Write a data set of the source's rows."""
    folder.mkdir()
    build(Alone(), folder, {"": source}, shards=SHARDS, dtype="float32", compression=compression)
    return folder


def case(name: str, number_bytes: int, contestants: dict[str, Callable[[], float]]) -> dict[str, object]:
    """Run the contestants in turn, see that they read the same, and print the ratio of the first two."""
    totals = [read() for read in contestants.values()]
    assert np.allclose(totals, totals[0], rtol=1e-2, atol=1e3), totals
    seconds = interleave({who: timed(read) for who, read in contestants.items()}, REPEATS)
    median = {who: float(np.median(times)) for who, times in seconds.items()}
    first, second = list(median)[:2]
    rates = {who: number_bytes / each / 1e9 for who, each in median.items()}
    print(f"{name:12s} {median[second] / median[first]:5.2f}× the speed of {second}; "
          + ", ".join(f"{who} {rate:.2f} GB/s" for who, rate in rates.items()), flush=True)
    return {"case": name, "bytes": number_bytes, "speed_ratio": median[second] / median[first],
            "ratio_of": [first, second], "gigabytes_per_s": rates,
            "seconds": {who: sorted(times) for who, times in seconds.items()}}


def main() -> None:
    """Measure every case and write the results file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mebibytes", type=int, default=1024)
    number_bytes = parser.parse_args().mebibytes << 20
    rows, sparse_rows = number_bytes // (4 * FEATURES), number_bytes // (8 * ROW_ENTRIES)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        dense, sparse = made(root / "dense", DenseRows(rows)), made(root / "sparse", SparseRows(sparse_rows))
        rounded = DenseRows(rows // 4, 8)
        blosc2, gzip = made(root / "blosc2", rounded, "blosc2"), made(root / "gzip", rounded, "gzip")
        cases = [
            case("dense", number_bytes, {"dml-hpc": ours(dense), "numpy.memmap": plain(dense, ("X",))}),
            case("streamed", number_bytes, {"dml-hpc": ours(dense, mapped=False),
                                            "numpy.memmap": plain(dense, ("X",))}),
            case("compressed", number_bytes // 4, {
                "dml-hpc, Blosc2": ours(blosc2), "h5py, gzip, by chunk": by_chunk(gzip),
                "h5py, Blosc2, by chunk": by_chunk(blosc2), "dml-hpc, gzip": ours(gzip)}),
            case("sparse", number_bytes, {"dml-hpc": ours(sparse),
                                          "numpy.memmap": plain(sparse, ("X/data", "X/indices"))}),
        ]
    print(write_results("reading", cases, "rows from the page cache, one rank, contestants interleaved"))


if __name__ == "__main__":
    main()
