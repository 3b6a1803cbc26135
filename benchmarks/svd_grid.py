"""A large square matrix on grids of ranks: what memory a rank takes, and that every grid finds the same values.

    python benchmarks/svd_grid.py [--side 30000]

float32, of rank 40 with known singular values (``data synth lowrank``), of which the 20 largest are computed. Peaks are
the kernel's own (VmHWM), of the whole process, interpreter and libraries and mapped pages of the file included: the
largest of the ranks. More ranks than cores are run for their memory, not for their time, which is not reported.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import h5py
from matrices import sigma_error
from running import arguments, dml_hpc, finish

GRIDS = ("1x1", "2x1", "1x2", "2x2")
RANK_OF_MATRIX = 40
MEBI = 1 << 20


def main() -> None:
    """Make the matrix, run every grid, write the results file."""
    parser = arguments(__doc__)
    parser.add_argument("--side", type=int, default=30_000, help="rows, and columns")
    given = parser.parse_args()
    side, k = (600, 5) if given.tiny else (given.side, 20)
    matrix_bytes = 4 * side * side
    cases = []
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "lowrank"
        dml_hpc(2, "data", "synth", "lowrank", "--rows", side, "--features", side, "-k", RANK_OF_MATRIX, "-o", data)
        with h5py.File(data / "truth.h5") as truth:
            exact = truth["singular_values"][:k]
        for grid in GRIDS:
            down, across = map(int, grid.split("x"))
            run = dml_hpc(down * across, "svd", data, "-o", Path(place) / "svd.h5", "--overwrite", "-k", k, "--method",
                          "randomized", "--grid", grid)
            error, peak, share = sigma_error(run["singular_values"], exact), run["peak_bytes"], down * across
            cases.append({"rows": side, "features": side, "k": k, "grid": run["grid"], "ranks": share,
                          "matrix_bytes": matrix_bytes, "peak_bytes": peak,
                          "peak_over_share_of_matrix": peak / (matrix_bytes / share), "largest_relative_error": error,
                          "largest_residual": max(run["relative_residuals"]), "accuracy_met": run["accuracy_met"],
                          "passes_over_data": run["passes_over_data"]})
            print(f"{side:,} × {side:,}, grid {grid}: peak {peak / MEBI:,.0f} MiB a rank, whose share of the matrix is "
                  f"{matrix_bytes / share / MEBI:,.0f}; largest relative error of σ {error:.1e}", flush=True)
    finish("svd_grid", cases, "the largest peak of the ranks, mapped pages included", given.tiny)


if __name__ == "__main__":
    main()
