"""Compression loses nothing: what is sent plus what is left is what there was."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.kernels import compression, half, low_rank

SIZES = [0, 1, 15, 16, 17, 1000, compression.BLOCK + 5]


def vectors(size: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a gradient, a residual and their sum."""
    rng = np.random.default_rng(size)
    gradient, residual = (scale * rng.standard_normal((2, size))).astype(np.float32)
    return gradient, residual, gradient + residual


@pytest.mark.parametrize("size", SIZES)
def test_what_bfloat16_does_not_carry_is_left(size):
    gradient, residual, wanted = vectors(size)
    wire, sent = np.empty(size, np.uint16), np.empty(size, np.float32)
    compression.encode_bfloat16(gradient, residual, wire)
    half.round_bfloat16(wanted, expected := np.empty_like(wire))
    np.testing.assert_array_equal(wire, expected)
    half.widen_bfloat16(wire, sent)
    np.testing.assert_array_equal(sent.astype(float) + residual, wanted)


@pytest.mark.parametrize(("size", "magnitude"), [*((size, 1.0) for size in SIZES), (1000, 1e-12), (1000, 1e20)])
def test_what_scaled_float16_does_not_carry_is_left(size, magnitude):
    gradient, residual, wanted = vectors(size, magnitude)
    wire, sent = np.empty(size, np.float16), np.empty(size, np.float32)
    scale = np.float32(2.0 ** round(np.log2(1 / magnitude)))
    limit = 2 / scale
    peak = compression.encode_float16(gradient, residual, wire.view(np.uint16), scale, limit)
    assert peak == np.abs(wanted).max(initial=0)
    cut = np.clip(wanted, -limit, limit)
    np.testing.assert_array_equal(wire, (scale * cut).astype(np.float16))
    assert size < 100 or np.any(cut != wanted)
    half.widen_float16(wire, sent, 1 / scale)
    np.testing.assert_array_equal(sent.astype(float) + residual, wanted)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_sent_and_stays(odd):
    gradient = np.full(40, 3.0, np.float32)
    gradient[[7, 37]] = odd
    for method in ("float16", "bfloat16", "topk"):
        residual, sent = np.zeros(40, np.float32), np.zeros(40, np.float32)
        if method == "topk":
            head, entries = np.zeros(2, np.uint32), np.empty(40, np.uint32)
            assert compression.select(gradient, residual, np.float32(4), head, entries) == 2
            compression.add_entries(head, entries, sent)
        elif method == "bfloat16":
            compression.encode_bfloat16(gradient, residual, wire := np.empty(40, np.uint16))
            half.widen_bfloat16(wire, sent)
        else:
            wire = np.empty(40, np.float16)
            peak = compression.encode_float16(gradient, residual, wire.view(np.uint16), np.float32(1), np.float32(2))
            assert not np.isfinite(peak)
            half.widen_float16(wire, sent)
        np.testing.assert_array_equal(sent[[7, 37]], odd)
        assert np.isnan(residual[[7, 37]]).all()
        assert np.isfinite(sent[8]) and np.isfinite(residual[8])


def message(size: int, room: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    head = np.full(1 + -(-size // compression.BLOCK), 77, np.uint32)
    head[0] = first
    return head, np.empty(room, np.uint32)


@pytest.mark.parametrize("size", [*SIZES, 3 * compression.BLOCK, 3 * compression.BLOCK + 21])
@pytest.mark.parametrize("threshold", [0.0, 1.0, 5.0, 100.0])
def test_the_large_elements_are_sent_and_the_rest_is_left(size, threshold):
    gradient, residual, wanted = vectors(size)
    head, entries = message(size, size)
    found = compression.select(gradient, residual, np.float32(threshold), head, entries)
    large = np.abs(wanted) >= threshold
    assert found == large.sum() == head[1:].sum()
    sent = np.zeros(size, np.float32)
    compression.add_entries(head, entries, sent)
    half.round_bfloat16(wanted, bits := np.empty(size, np.uint16))
    half.widen_bfloat16(bits, rounded := np.empty(size, np.float32))
    np.testing.assert_array_equal(sent, np.where(large, rounded, 0))
    np.testing.assert_array_equal(sent.astype(float) + residual, wanted)
    compression.add_entries(head, entries, sent)
    np.testing.assert_array_equal(sent, np.where(large, 2 * rounded, 0))
    sent[~large] = 5
    compression.clear_entries(head, entries, sent)
    np.testing.assert_array_equal(sent, np.where(large, 0, 5))


@pytest.mark.parametrize("first", [0, 1, 2])
def test_what_does_not_fit_waits_whichever_block_comes_first(first):
    size, room = 2 * compression.BLOCK + 100, 500
    gradient, residual, wanted = vectors(size)
    head, entries = message(size, room, first)
    assert compression.select(gradient, residual, np.float32(1), head, entries) == room
    sent = np.zeros(size, np.float32)
    compression.add_entries(head, entries, sent)
    np.testing.assert_array_equal(sent.astype(float) + residual, wanted)
    in_block = np.add.reduceat(sent != 0, [0, compression.BLOCK, 2 * compression.BLOCK])
    np.testing.assert_array_equal(in_block, head[1:])
    hits = int((np.abs(wanted[2 * compression.BLOCK:]) >= 1).sum())
    expected = [[room, 0, 0], [0, room, 0], [room - hits, 0, hits]][first]
    np.testing.assert_array_equal(in_block, expected)


@pytest.mark.parametrize(("rank", "n"), [(1, 1), (1, 7), (3, 3), (4, 50), (8, 2001)])
def test_orthonormal_vectors_span_what_they_spanned(rank, n):
    rng = np.random.default_rng(n)
    vectors = (1e12 * rng.standard_normal((rank, n))).astype(np.float32)
    before = vectors.astype(float)
    low_rank.orthonormalise(vectors)
    np.testing.assert_allclose(vectors.astype(float) @ vectors.T, np.eye(rank), atol=1e-6)
    np.testing.assert_allclose(before @ vectors.T.astype(float) @ vectors, before, atol=1e6)


def test_vectors_without_a_direction_get_one():
    vectors = np.random.default_rng(1).standard_normal((5, 100)).astype(np.float32)
    vectors[1] = 0
    vectors[3] = 2 * vectors[0] - vectors[2]
    low_rank.orthonormalise(vectors)
    np.testing.assert_allclose(vectors.astype(float) @ vectors.T, np.eye(5), atol=1e-6)
    zeros = np.zeros((2, 5, 100), np.float32)
    for each in zeros:
        low_rank.orthonormalise(each)
    np.testing.assert_allclose(zeros[0].astype(float) @ zeros[0].T, np.eye(5), atol=1e-6)
    np.testing.assert_array_equal(zeros[0], zeros[1])


def test_a_direction_that_is_not_finite_shows():
    vectors = np.ones((2, 10), np.float32)
    vectors[0, 3] = np.inf
    low_rank.orthonormalise(vectors)
    assert np.isnan(vectors).any()


@pytest.mark.parametrize(("rank", "rows", "cols", "n"), [(1, 1, 1, 1), (2, 5, 4, 17), (4, 33, 32, 33 * 32)])
def test_expand_multiplies_and_subtracts(rank, rows, cols, n):
    rng = np.random.default_rng(n)
    P, Q, own = (rng.standard_normal((rank, m)).astype(np.float32) for m in (rows, cols, cols))
    residual = rng.standard_normal(n).astype(np.float32)
    left = residual - (P.T.astype(float) @ own).ravel()[:n]
    total = np.full(n, np.nan, np.float32)
    low_rank.expand(P, Q, own, residual, total)
    np.testing.assert_allclose(total, (P.T.astype(float) @ Q).ravel()[:n], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(residual, left, rtol=1e-5, atol=1e-5)
