"""The external shuffle against a permutation applied in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dml_hpc.data.csr import sparse
from dml_hpc.data.sources.shuffle import shuffled
from dml_hpc.data.sources.source import About
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.kernels.sampling import permute
from dml_hpc.mpi import Alone


class Rows:
    """A source over arrays that forbids reading more than ``most`` rows at once."""

    def __init__(self, X, y, kind="dense", most=None):
        self.X, self.y, self.kind, self.most = X if kind == "dense" else sparse(X), y, kind, most
        self.rows, self.features = X.shape
        self.about = About(label="target")

    def read(self, start, stop):
        assert 0 <= start <= stop <= self.rows
        assert self.most is None or stop - start <= self.most
        X = self.X[start:stop]
        return (X if self.kind == "dense" else X.packed()), self.y[start:stop]


def source(rows, features, kind="dense", dtype=np.float64, **more):
    rng = np.random.default_rng(rows)
    X = rng.standard_normal((rows, features)).astype(dtype)
    X[rng.random(X.shape) < 0.6] = 0
    return Rows(X, np.arange(rows) * 1.0, kind, **more)


def dense(X):
    return X.dense() if hasattr(X, "indptr") else X


def expected(rows, seed):
    """Return which source row each row of the result is."""
    key = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    order = np.empty(rows, np.int64)
    for i in range(rows):
        order[permute(i, rows, key)] = i
    return order


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(0, 300), features=st.integers(1, 6), kind=st.sampled_from(["dense", "csr"]),
       dtype=st.sampled_from([np.float32, np.float64]), seed=st.integers(0, 1 << 70),
       bucket_bytes=st.sampled_from([1, 100, 1500, 1 << 20]), data=st.data())
def test_every_row_goes_where_the_permutation_says(tmp_path, rows, features, kind, dtype, seed, bucket_bytes, data):
    given_rows = source(rows, features, kind, dtype)
    result = shuffled(Alone(), given_rows, seed, tmp_path / "scratch", bucket_bytes=bucket_bytes)
    assert (result.kind, result.rows, result.features) == (kind, rows, features)
    assert result.about is given_rows.about
    order = expected(rows, seed)
    for _ in range(3):
        start = data.draw(st.integers(0, rows))
        stop = data.draw(st.integers(start, rows))
        X, y = result.read(start, stop)
        assert X.dtype == dtype and X.shape == (stop - start, features) and y.dtype == np.float64
        assert np.array_equal(y, given_rows.y[order[start:stop]])
        assert np.array_equal(dense(X), dense(given_rows.X)[order[start:stop]])


def test_the_order_is_random_and_depends_on_the_seed_alone(tmp_path):
    rows = source(2000, 1)
    orders = [shuffled(Alone(), rows, seed, tmp_path / str(i), bucket_bytes=size).read(0, 2000)[1]
              for i, (seed, size) in enumerate([(1, 1 << 20), (1, 999), (2, 1 << 20)])]
    assert np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    assert sorted(orders[0]) == list(range(2000))
    assert abs(np.corrcoef(orders[0], np.arange(2000))[0, 1]) < 0.1
    assert abs(np.corrcoef(orders[0], orders[2])[0, 1]) < 0.1


def test_neither_phase_holds_more_than_a_bucket(tmp_path):
    rows = source(4000, 8, most=4000 * (8 * 8 + 24) // 16 // (8 * 8 + 16))
    result = shuffled(Alone(), rows, 3, tmp_path, bucket_bytes=4000 * (8 * 8 + 24) // 4)
    found = [result.read(start, start + 50)[1] for start in range(0, 4000, 50)]
    assert np.array_equal(np.concatenate(found), expected(4000, 3))
    assert [len(result._bucket(i)[1]) for i in range(4)] == [1000] * 4


def test_pairs_of_integers_stay_what_they_are(tmp_path):
    pairs = Rows(np.random.default_rng(0).integers(0, 1 << 40, (100, 2)), np.ones(100))
    pairs.kind, pairs.features = "dense", 7
    X, _ = shuffled(Alone(), pairs, 0, tmp_path).read(0, 100)
    assert X.dtype == np.int64
    assert np.array_equal(X, pairs.X[expected(100, 0)])


def test_what_the_source_raises_is_raised(tmp_path):
    class Broken(Rows):
        def read(self, start, stop):
            if stop > 50:
                raise UserError("row 50 is bad")
            return super().read(start, stop)

    with pytest.raises(AgreedError, match="row 50 is bad"):
        shuffled(Alone(), Broken(np.ones((100, 2)), np.ones(100)), 0, tmp_path)


def test_float16_sparse_rows_are_shuffled_too(tmp_path):
    (tmp_path / "scratch").mkdir()
    rows = source(50, 8, "csr", np.float16)
    found, y = shuffled(Alone(), rows, 3, tmp_path / "scratch").read(0, 50)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found.dense(), rows.X.dense()[y.astype(int)])
