"""One node of the tree of summaries: what a leaf and a merge promise, whatever the rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml_hpc.decomposition.svd.incremental import _summary
from dml_hpc.decomposition.svd.tsqr import _leaf, _merged

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 12))
SEEDS = st.integers(0, 2**32 - 1)


def drawn(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Rows of any rank, their columns of lengths that differ by many orders."""
    rng = np.random.default_rng(seed)
    inner = int(rng.integers(1, 13))
    A = rng.standard_normal((shape[0], inner)) @ rng.standard_normal((inner, shape[1]))
    return A * 10.0 ** rng.uniform(-8, 8, shape[1])


@given(SHAPES, st.integers(1, 12), SEEDS)
@settings(max_examples=60, deadline=None)
def test_what_a_summary_misses_is_positive_and_within_its_bound(shape, kept, seed):
    B = drawn(shape, seed)
    n, squares = shape[1], float(np.sum(B * B))
    kept = min(kept, n)
    summary = _summary(B, kept, 0.0, squares)
    S, (delta, told) = summary[:, :n], summary[:, n:].sum(axis=0)
    assert len(S) == min(shape[0], kept)
    assert told == squares
    missing = np.linalg.eigvalsh(B.T @ B - S.T @ S) / squares
    assert missing[-1] <= delta / squares + 1e-15
    assert missing[0] >= -1e-14
    best = np.append(np.linalg.svd(B, compute_uv=False)**2, 0.0)[min(kept, *shape)]
    assert delta <= best + 1e-13 * squares


def test_a_summary_adds_to_what_was_missing_before():
    B = np.diag([3.0, 2, 1])
    summary = _summary(B, 2, 0.5, 20.0)  # 20: the squares of rows of which 14 are left
    assert summary[:, 3:].sum(axis=0) == pytest.approx([1.5, 20])
    np.testing.assert_allclose(np.linalg.svd(summary[:, :3], compute_uv=False), [3, 2])


@given(SHAPES, st.integers(0, 40), SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_triangle_stands_for_its_rows(shape, below, seed):
    m, n = shape
    A = drawn((m + n + below, n), seed)
    norms = np.linalg.norm(A, axis=0)
    R = _leaf(A[:m + n])
    for part in (R, _merged(R.copy(), _leaf(A[m + n:]))) if below else (R,):
        rows = A if part is not R else A[:m + n]
        assert part.shape == (n, n)
        assert (np.tril(part, -1) == 0).all()
        # Column by column: Householder's reflectors do not care for the columns' lengths.
        np.testing.assert_allclose(part.T @ part / np.outer(norms, norms), rows.T @ rows / np.outer(norms, norms),
                                   atol=1e-13)


def test_few_rows_stay_as_they_are():
    rows = np.arange(6.0).reshape(2, 3)
    kept = _leaf(rows)
    assert kept.tolist() == rows.tolist()
    assert not np.shares_memory(kept, rows)
