"""Importing LIBSVM text in one process, against scikit-learn's reader and h5py's writer.

    python benchmarks/import_libsvm.py [--mebibytes 200]

Contestants take turns, several times; ratios are of medians. ``import`` is all that ``dml-hpc data import`` does:
parsing, spooling, shards, statistics, checksums. ``scikit-learn`` is ``load_svmlight_file`` and writing its arrays with
h5py. ``short`` values have six digits, ``full`` ones all that a float64 needs. The peak memory (mapped files are part
of it) is that of a process of its own that imports the file, for a quarter of the size and for all of it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from results_file import write_results
from sklearn.datasets import load_svmlight_file

from dml_hpc.data.csr import Csr
from dml_hpc.data.dataset import open_dataset
from dml_hpc.data.importing import import_data
from dml_hpc.mpi import Alone
from dml_hpc.reports.timing import interleave, timed

REPEATS = 7
FEATURES = 100_000
ROWS_A_BLOCK = 2000
WORD: dict[str, Callable[[float], str]] = {"short": "{:.6g}".format, "full": repr}
MEMORY = """
import re, sys
from pathlib import Path
from dml_hpc.data.importing import import_data
from dml_hpc.mpi import Alone
import_data(Alone(), [Path(sys.argv[1])], Path(sys.argv[2]))
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]))
"""


def made(path: Path, size_bytes: int, word: Callable[[float], str]) -> Path:
    """Write a file of sparse rows of 20 … 120 entries, low columns more often, and labels ±1."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        while file.tell() < size_bytes:
            for _ in range(ROWS_A_BLOCK):
                columns = np.unique((FEATURES * rng.random(rng.integers(20, 120)) ** 3).astype(int)) + 1
                entries = zip(columns.tolist(), rng.random(len(columns)).tolist(), strict=True)
                file.write(f"{2 * rng.integers(2) - 1:+d} " + " ".join(f"{j}:{word(x)}" for j, x in entries) + "\n")
    return path


def peer(path: Path, output: Path) -> None:
    """Do with scikit-learn and h5py what an import does."""
    X, y = load_svmlight_file(str(path), dtype=np.float32)
    with h5py.File(output, "w") as file:
        group = file.create_group("X")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(X, name)
        file["y"] = y


def check(path: Path, folder: Path) -> None:
    """See that the data set holds what scikit-learn reads."""
    X, y = load_svmlight_file(str(path), dtype=np.float32)
    dataset = open_dataset(folder)
    assert (dataset.rows, dataset.features) == X.shape
    for piece in dataset.pieces(0, dataset.rows):
        assert isinstance(piece.X, Csr)
        rows = piece.X.packed()
        start, stop = X.indptr[piece.first], X.indptr[piece.first + len(piece.y)]
        assert np.array_equal(rows.data, X.data[start:stop]) and np.array_equal(rows.indices, X.indices[start:stop])
        assert np.array_equal(piece.y, y[piece.first:piece.first + len(piece.y)])


def peak_bytes(path: Path, output: Path) -> int:
    """Return the most memory that a process needs that imports ``path``."""
    done = subprocess.run([sys.executable, "-c", MEMORY, path, output], capture_output=True, text=True, check=True)
    return int(done.stdout)


def case(name: str, size_bytes: int, folder: Path) -> dict[str, object]:
    """Measure values of one length."""
    path = made(folder / "a.svm", size_bytes, WORD[name])
    part = made(folder / "part.svm", size_bytes // 4, WORD[name])
    data, other = folder / "data", folder / "other.h5"
    import_data(Alone(), [path], data)
    check(path, data)
    seconds = interleave({"import": timed(lambda: import_data(Alone(), [path], data)),
                          "scikit-learn": timed(lambda: peer(path, other))}, REPEATS)
    median = {who: float(np.median(times)) for who, times in seconds.items()}
    size = path.stat().st_size
    memory = {each.stat().st_size: peak_bytes(each, folder / "memory") for each in (part, path)}
    ratio = median["scikit-learn"] / median["import"]
    small, large = memory.values()
    print(f"{name:6s}  {ratio:5.2f}× the speed of scikit-learn and h5py, {size / median['import'] / 1e6:6.0f} MB/s; "
          f"peak memory {small >> 20} MiB for a quarter of the file, {large >> 20} MiB for all of it", flush=True)
    return {"case": name, "bytes": size, "speed_ratio": ratio,
            "megabytes_per_s": {who: size / each / 1e6 for who, each in median.items()},
            "peak_bytes_by_file_size": memory, "seconds": {who: sorted(times) for who, times in seconds.items()}}


def main() -> None:
    """Measure both lengths of values and write the results file."""
    parser = argparse.ArgumentParser(description="Importing LIBSVM text against scikit-learn and h5py.")
    parser.add_argument("--mebibytes", type=int, default=200, help="size of each file")
    size_bytes = parser.parse_args().mebibytes << 20
    cases = []
    for name in WORD:
        with tempfile.TemporaryDirectory() as folder:
            cases.append(case(name, size_bytes, Path(folder)))
    print(write_results("import_libsvm", cases, "whole import of LIBSVM text, one process, contestants interleaved"))


if __name__ == "__main__":
    main()
