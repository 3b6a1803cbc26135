"""The fused dense logistic gradient on one core, against NumPy's two passes and against plainly reading X.

    python benchmarks/gradient.py

Every case runs its contestants in turn, several times; ratios are of medians. ``numpy`` is what one writes without
a kernel: X @ w, the sigmoid, then r @ X. ``read`` sums X once with a vectorised loop: no pass can be faster.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from results_file import write_results
from threadpoolctl import threadpool_limits

from dml_hpc.kernels import glm
from dml_hpc.kernels.losses import LOGISTIC
from dml_hpc.reports.timing import interleave, timed

FEATURES = (64, 165, 512, 2048, 16384)
BYTES = 512 << 20
REPEATS = 11


@njit(fastmath=True)
def read(values):
    """Return the sum of a flat array: one vectorised pass over memory."""
    total = values.dtype.type(0)
    for i in range(values.size):
        total += values[i]
    return total


def two_passes(X: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, float]:
    """Return gradient (features + 1,) and summed loss the NumPy way."""
    scores = X @ w[:-1] + w[-1]
    residual = 1 / (1 + np.exp(-scores)) - y
    loss = float(np.sum(np.logaddexp(0, scores) - y * scores))
    return np.append(residual @ X, residual.sum()), loss


def case(features: int) -> dict[str, object]:
    """Measure one width of X (float32, half a GiB) and check the fused gradient against NumPy's in float64."""
    rows = BYTES // (4 * features)
    rng = np.random.default_rng(features)
    X = rng.standard_normal((rows, features), dtype=np.float32)
    y = (rng.random(rows) < 0.3).astype(np.float32)
    w = (rng.standard_normal(features + 1) / np.sqrt(features)).astype(np.float32)
    gradient, order, shuffled = np.zeros(features + 1, np.float32), np.arange(rows), rng.permutation(rows)
    flat = X.reshape(-1)

    def fused(rows: np.ndarray) -> float:
        return glm.loss_and_gradient(LOGISTIC, 1.0, X, y, None, rows, w, gradient)

    fused(order)
    exact, _ = two_passes(X.astype(np.float64), y.astype(np.float64), w.astype(np.float64))
    error = float(np.linalg.norm(gradient - exact) / np.linalg.norm(exact))
    seconds = interleave({
        "fused": timed(lambda: fused(order)),
        "fused, shuffled rows": timed(lambda: fused(shuffled)),
        "numpy": timed(lambda: two_passes(X, y, w)),
        "read": timed(lambda: read(flat)),
    }, REPEATS)
    median = {name: float(np.median(times)) for name, times in seconds.items()}
    return {
        "features": features, "rows": rows, "bytes": X.nbytes, "relative_error": error,
        "numpy_over_fused": median["numpy"] / median["fused"], "fused_over_read": median["fused"] / median["read"],
        "shuffled_over_fused": median["fused, shuffled rows"] / median["fused"],
        "gigabytes_per_s": {name: X.nbytes / each / 1e9 for name, each in median.items()},
        "seconds": {name: sorted(times) for name, times in seconds.items()},
    }


def main() -> None:
    """Measure every width, print the table, write the results file."""
    read(np.ones(8, np.float32))
    cases = []
    print("features  NumPy/fused  fused/read  shuffled/fused  fused GB/s  error")
    for features in FEATURES:
        found = case(features)
        cases.append(found)
        print(f"{features:8d}  {found['numpy_over_fused']:10.2f}×  {found['fused_over_read']:9.2f}×"
              f"  {found['shuffled_over_fused']:13.2f}×  {found['gigabytes_per_s']['fused']:10.1f}"  # type: ignore[index]
              f"  {found['relative_error']:.0e}", flush=True)
    print(write_results("gradient", cases, "float32 logistic gradient, one core, contestants interleaved"))


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
