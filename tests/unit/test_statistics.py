"""Statistics of features: NumPy's in float64, however the rows come in and whether zeros are stored or not."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml_hpc.data import statistics
from dml_hpc.data.csr import sparse
from dml_hpc.data.statistics import Moments


def agree(found, X):
    np.testing.assert_allclose(found.mean, X.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.deviation, X.std(0), rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(found.minimum, X.min(0))
    np.testing.assert_array_equal(found.maximum, X.max(0))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.lists(st.integers(0, 60), max_size=4), st.booleans(), st.booleans(), st.integers(0, 5))
def test_any_cut_and_storage_gives_the_figures_of_the_whole(rows, cuts, thin, through_files, seed):
    rng = np.random.default_rng(seed)
    X = np.where(rng.random((rows, 5)) < 0.4, rng.normal(size=(rows, 5)) * 10.0 ** np.arange(-2, 3), 0)
    edges = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
    whole = Moments(5)
    for low, high in pairwise(edges):
        part = Moments(5)
        part.add(sparse(X[low:high]) if thin else X[low:high])
        if through_files:
            with tempfile.TemporaryDirectory() as folder:
                part.save(Path(folder) / "part.npy")
                whole.merge_saved(Path(folder) / "part.npy")
        else:
            whole.merge(part)
            assert part.nonzeros == np.count_nonzero(X[low:high])
    agree(whole.statistics(rows, None, None), X)


def test_a_mean_far_from_zero_costs_no_digits():
    X = 1e8 + np.random.default_rng(0).normal(size=(5000, 3))
    moments = Moments(3)
    for low in range(0, 5000, 700):
        moments.add(X[low:low + 700])
    np.testing.assert_allclose(moments.statistics(5000, None, None).deviation, X.std(0), rtol=1e-7)


def test_no_rows_have_no_figures():
    found = Moments(2).statistics(0, None, None)
    assert [figures.tolist() for figures in vars(found).values()] == [[True, True], *[[0, 0]] * 5]


def test_very_many_features_are_kept_beside_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "MOST_LISTED", 2)
    X = np.arange(12.0).reshape(4, 3)
    moments = Moments(3)
    moments.add(X)
    entry = statistics.described(tmp_path, moments.statistics(4, None, np.array([0, 1, 2])))
    assert entry["file"] == "statistics.h5"
    found = statistics.read_statistics(tmp_path, entry, 3)
    agree(found, X)
    assert found.missing.tolist() == [0, 1, 2]
    (tmp_path / "statistics.h5").write_bytes(b"no HDF5")
    with pytest.raises(statistics.UserError, match="has changed since it was written"):
        statistics.read_statistics(tmp_path, entry, 3)
