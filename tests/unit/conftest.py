"""Data that the tests of one process share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_support import write_dataset


@pytest.fixture(scope="session")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 3,000 rows × 6 features in 3 shards with labels 0 and 1, two features far from standardised."""
    rng = np.random.default_rng(7)
    X = rng.standard_normal((3000, 6))
    y = rng.random(3000) < 1 / (1 + np.exp(-(X @ [2.0, -1.0, 0.5, 0, 0, 1] - 0.5)))
    X[:, 0] = 40 * X[:, 0] + 100
    X[:, 1] = X[:, 1] / 50 - 3
    return write_dataset(tmp_path_factory.mktemp("data") / "two_classes", X, y, [1000, 0, 2000])
