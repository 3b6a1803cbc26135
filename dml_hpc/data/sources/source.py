"""What a data set is made from: rows that can be asked for by number, and what is known of them beforehand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.data.manifest import Column


@dataclass
class About:
    """What a manifest says of a data set that its rows do not show.

    ``feature_names`` None: they have none but their numbers. ``numeric`` (features,) bool, None: all of them;
    ``missing`` (features,) int64 counts the values that were missing and are now filled, None: none. ``label_names``
    are the words for the labels 0, 1, …; ``label_values`` those that are known beforehand, whether or not a row
    has them; ``label_missing`` counts the rows dropped for want of a label. ``weighted``: rows have weights.
    ``users`` is for made ratings: how many there are.
    """

    feature_names: list[str] | None = None
    numeric: np.ndarray | None = None
    missing: np.ndarray | None = None
    columns: list[Column] = field(default_factory=list)
    label: str = "y"
    label_names: list[str] | None = None
    label_values: list[float] | None = None
    label_missing: int = 0
    weighted: bool = False
    hash_bits: int | None = None
    users: int | None = None
    source: dict[str, Any] = field(default_factory=dict)


class RowSource(Protocol):
    """Rows 0 … ``rows`` − 1, read in any ranges, by any rank; ``kind`` is "dense" or "csr".

    What `read` returns for a row does not depend on the range it is asked for in, nor on the rank.
    """

    kind: str
    rows: int
    features: int
    about: About

    def read(self, start: int, stop: int) -> tuple[np.ndarray | Csr, np.ndarray]:
        """Return ``X`` (stop − start, features) in a float type, finite, and ``y`` (stop − start,) float64.

        Where rows have weights ``y`` is (stop − start, 2): the label and the weight of each, so that whoever chooses,
        orders or joins rows has them together (`with_weight`, `label_and_weight`).
        """
        ...


def with_weight(y: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """Return labels (count,) with the weights of the rows (None: they have none) as `RowSource.read` gives both."""
    return y if weight is None else np.column_stack([y, weight]).astype(np.float64, copy=False)


def label_and_weight(y: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return labels and weights (None: there are none), each (count,), of what `RowSource.read` gave."""
    return (y, None) if y.ndim == 1 else (y[:, 0], y[:, 1])
