"""A matrix and those who factorise it: what each found, how far that is from the truth, and in what time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matrices import sigma_error
from running import dml_hpc, medians

Outcome = tuple[float, Any]
"""Seconds, and singular values in any order."""
SAID = ("method", "why", "precision", "accuracy", "accuracy_met", "passes_over_data")
"""What our record says of how it went about it."""


class Contest:
    """For the ``k`` largest singular values of the matrix in ``file``, which are ``exact`` (k,), descending."""

    def __init__(self, file: Path, k: int, exact: np.ndarray):
        self.file, self.k, self.exact = file, k, exact
        self.errors: dict[str, float] = {}
        """The largest relative error that a contestant made in any round."""
        self.said: dict[str, Any] = {}

    def ours(self, who: str, ranks: int, *options: object) -> float:
        """Run ``dml-hpc svd`` and return its seconds, of all that it does once it runs."""
        output = self.file.with_name("svd.h5")
        run = dml_hpc(ranks, "svd", self.file, "-o", output, "--overwrite", "-k", self.k, *options)
        self.said[who] = {key: run.get(key) for key in SAID}
        return self.turn(who, lambda: (run["work_s"], run["singular_values"]))

    def turn(self, who: str, call: Callable[[], Outcome]) -> float:
        """Let a peer take its turn; return its seconds."""
        seconds, sigma = call()
        self.errors[who] = max(self.errors.get(who, 0.0), self._error(sigma))
        return seconds

    def fewest(self, who: str, call: Callable[[int], Outcome], counts: Iterable[int], error: float) -> int:
        """Return the first of ``counts`` iterations with which a peer errs no more than ``error``, else the last."""
        for count in counts:
            found = self._error(call(count)[1])
            print(f"{who}, {count} iterations: largest relative error of σ {found:.1e}", flush=True)
            if found <= error:
                break
        return count

    def _error(self, sigma: Any) -> float:
        return sigma_error(np.sort(np.asarray(sigma, np.float64))[::-1], self.exact)

    def case(self, seconds: dict[str, np.ndarray], first: str) -> dict[str, Any]:
        """Print all by the time of ``first``, one of ours, and return what the results file says of them."""
        median = medians(seconds)
        ratios = {who: each / median[first] for who, each in median.items()}
        for who, ratio in ratios.items():
            print(f"{who:36s} {ratio:7.2f} times our time, largest relative error of σ {self.errors[who]:.1e}",
                  flush=True)
        return {"k": self.k, "ours": self.said, "ours_is": first, "time_over_ours": ratios,
                "largest_relative_error": self.errors,
                "seconds": {who: sorted(times) for who, times in seconds.items()}}


def timed_svd(call: Callable[[], tuple[np.ndarray, ...]]) -> Outcome:
    """Call what returns U, σ, Vᵀ; return its seconds and σ."""
    started = time.perf_counter()
    sigma = call()[1]
    return time.perf_counter() - started, sigma
