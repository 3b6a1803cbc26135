"""How accurate each method of the SVD is on hard spectra, and whether its residuals tell: against LAPACK in float64.

    python benchmarks/svd_accuracy.py

Matrices of 2,000 × 200 float64 with random singular vectors; through the command, on two ranks, with every method, at
the default accuracy and at 1e-12. The errors of σ are against LAPACK's (gesdd), relative to each σ and to σ₁: LAPACK's
own are about 1e-16 σ₁, so that nobody's value of 1e-12 σ₁ has more than four digits. The angle is the largest between
the spans of the first j right singular vectors, j where the spectrum has a gap. The true residual is the largest
‖Aᵀu − σv‖/σ₁ with u = Av/σ of the values and vectors in the file, in extended precision, over the triplets for which a
residual is reported; LAPACK's is what rounding its v leaves. Writes the table to results/svd_accuracy.md too.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from matrices import orthonormal, sigma_error, write_matrix
from results_file import RESULTS
from running import arguments, dml_hpc, finish
from scipy.linalg import subspace_angles

RANKS = 2
METHODS = ("gram", "tsqr", "randomized", "incremental")
ACCURACIES = (1e-5, 1e-12)


def spectra(features: int) -> list[tuple[str, np.ndarray, int, int]]:
    """Return the name, σ (features,), k and j (after which there is a gap) of every case."""
    number = np.arange(features)
    exponential = 10.0 ** np.linspace(0, -12, features)
    flat = np.where(number < 10, 1 - 0.09 * np.minimum(number, 10), 1e-2)
    return [("exponential, 1 to 1e-12", exponential, 20, 20),
            ("exponential, 1 to 1e-12", exponential, features, features // 2),
            ("groups of five equal values, each 0.8 of the last", 0.8 ** (number // 5), 20, 20),
            ("ten of 1 to 0.19, the rest 0.01", flat, 20, 10)]


def true_residual(A: np.ndarray, sigma: np.ndarray, V: np.ndarray) -> float:
    """Return max ‖Aᵀ(Av/σ) − σv‖/σ₁ in NumPy's extended precision."""
    wide, values, vectors = (np.asarray(part, np.longdouble) for part in (A, sigma, V))
    difference = wide.T @ (wide @ vectors / values) - vectors * values
    return float(np.sqrt(np.max(np.sum(difference**2, axis=0))) / values[0])


def judged(A: np.ndarray, exact: tuple[np.ndarray, np.ndarray], file: Path, k: int, gap: int, method: str,
           accuracy: float) -> dict[str, Any]:
    """Run the command and return how near its result is to the exact σ and V, or what it refused with."""
    output = file.with_name("svd.h5")
    try:
        run = dml_hpc(RANKS, "svd", file, "-o", output, "--overwrite", "-k", k, "--method", method, "--accuracy",
                      accuracy)
    except subprocess.CalledProcessError as refused:
        if refused.returncode != 2:
            raise
        return {"refused": refused.stderr.splitlines()[-1]}
    with h5py.File(output) as found:
        sigma, V, residuals = (found[name][()] for name in ("singular_values", "V", "relative_residuals"))
    told = np.isfinite(residuals)
    return {"accuracy_met": run["accuracy_met"], "passes_over_data": run["passes_over_data"],
            "largest_relative_error": sigma_error(sigma, exact[0][:k]),
            "largest_error_over_first": float(np.max(np.abs(sigma - exact[0][:k])) / exact[0][0]),
            "largest_angle": float(subspace_angles(V[:, :gap], exact[1][:, :gap]).max()),
            "reported_residual": float(residuals[told].max()),
            "true_residual": true_residual(A, sigma[told], V[:, told]),
            "triplets_without_residual": int(k - told.sum())}


def table(cases: list[dict[str, Any]]) -> str:
    """Return the cases as a Markdown table."""
    lines = ["| spectrum | k | method | accuracy asked | met | max error of σᵢ / σᵢ | max error of σᵢ / σ₁ | "
             "angle of the first j (radians) | residual reported | true | LAPACK's true | passes |", "|" + "---|" * 12]
    for case in cases:
        row = [case["spectrum"], case["k"], case["method"], f"{case['accuracy']:g}"]
        if "refused" in case:
            row += ["refused", *["–"] * 7]
        else:
            without = case["triplets_without_residual"]
            row += ["yes" if case["accuracy_met"] else "no",
                    f"{case['largest_relative_error']:.1e}", f"{case['largest_error_over_first']:.1e}",
                    f"{case['largest_angle']:.1e} (j = {case['gap_after']})",
                    f"{case['reported_residual']:.1e}" + (f" ({without} have none)" if without else ""),
                    f"{case['true_residual']:.1e}", f"{case['true_residual_of_lapack']:.1e}", case["passes_over_data"]]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run every method on every spectrum; write the results file and the table."""
    given = arguments(__doc__).parse_args()
    rows, features = (300, 40) if given.tiny else (2000, 200)
    rng = np.random.default_rng(0)
    cases = []
    with tempfile.TemporaryDirectory() as place:
        for name, sigma, k, gap in spectra(features):
            A = orthonormal(rng, rows, features) * sigma @ orthonormal(rng, features, features).T
            file = write_matrix(Path(place) / "matrix.h5", A)
            exact, Vt = np.linalg.svd(A, full_matrices=False)[1:]
            case = {"spectrum": name, "rows": rows, "features": features, "k": k, "gap_after": gap, "ranks": RANKS,
                    "true_residual_of_lapack": true_residual(A, exact[:k], Vt[:k].T)}
            cases += [{**case, "method": method, "accuracy": accuracy,
                       **judged(A, (exact, Vt.T), file, k, gap, method, accuracy)}
                      for method in METHODS for accuracy in ACCURACIES]
    text = table(cases)
    print(text)
    if not given.tiny:
        head = (f"# Accuracy of the SVD's methods\n\n{rows:,} × {features} float64, {RANKS} ranks, against LAPACK in "
                "float64; made by `python benchmarks/svd_accuracy.py`, whose head says what is what.\n\n")
        (RESULTS / "svd_accuracy.md").write_text(f"{head}{text}\n", encoding="utf-8")
    finish("svd_accuracy", cases, "against LAPACK in float64, whose own error is about 1e-16 of the largest value",
           given.tiny)


if __name__ == "__main__":
    main()
