"""Compressed sums: the same bits on every rank, and nothing lost in the long run."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from dml_hpc.comm import REDUCERS, open_reducer
from dml_hpc.comm.compression import METHODS, Compression, open_compressed

pytestmark = pytest.mark.mpi
# Each method over two reducers, each reducer under two methods.
PAIRS = [(method, REDUCERS[(i + more) % len(REDUCERS)]) for i, method in enumerate(METHODS) for more in (0, 1)]


def open_one(comm, size, method, inner="ring", weights=None, **options):
    return open_compressed(Compression(method, **options), partial(open_reducer, inner), comm, size, weights=weights)


def addend(rank: int, size: int, call: int = 0) -> np.ndarray:
    """Small integers of eight binary digits at most, whose sums over a few ranks have no more."""
    return np.random.default_rng([rank, call, size]).integers(-15, 16, size).astype(np.float32)


def total(p: int, size: int, call: int = 0) -> np.ndarray:
    return np.sum([addend(rank, size, call) for rank in range(p)], axis=0)


def normal(rank: int, size: int, call: int = 0) -> np.ndarray:
    return np.random.default_rng([rank, call, size]).standard_normal(size).astype(np.float32)


@pytest.mark.parametrize("inner", REDUCERS)
@pytest.mark.parametrize("method", ["float16", "bfloat16", "topk"])
def test_what_fits_the_wire_is_exact(comms, method, inner):
    p = comms.size
    for size in sorted({0, 1, p - 1, p, p + 1, 1000, (1 << 16) + 3, (1 << 18) + 3}):
        with open_one(comms, size, method, inner, ratio=1.0) as reducer:
            assert reducer.owned == (0, size)
            for call in range(3):
                reducer.buffer[:] = addend(comms.rank, size, call)
                reducer.allreduce()
                np.testing.assert_array_equal(reducer.total, total(p, size, call), f"{size} elements, call {call}")


@pytest.mark.parametrize("inner", REDUCERS)
def test_powersgd_is_exact_for_matrices_of_its_rank(comms, inner):
    p, rows, cols = comms.size, 40, 40

    def matrix(rank):
        return normal(rank, rows).reshape(rows, 1) * normal(rank + p, cols)

    exact = np.sum([matrix(rank).astype(float) for rank in range(p)], axis=0).ravel()
    with open_one(comms, rows * cols, "powersgd", inner, rank=4) as reducer:  # the sum's rank is p, up to 4
        for _ in range(3):
            reducer.buffer[:] = matrix(comms.rank).ravel()
            reducer.allreduce()
        np.testing.assert_allclose(reducer.total, exact, atol=1e-4)


@pytest.mark.parametrize("inner", REDUCERS)
@pytest.mark.parametrize("method", METHODS)
def test_all_ranks_hold_the_same_bits(comms, method, inner):
    for size in (1, comms.size + 1, 1000, 100_003):
        with open_one(comms, size, method, inner, exact=1) as reducer:
            for call in range(3):
                reducer.buffer[:] = 10.0 ** comms.rank * normal(comms.rank, size, call)
                reducer.allreduce()
                assert len(set(comms.allgather(reducer.total.tobytes()))) == 1, f"{size} elements, call {call}"


@pytest.mark.parametrize(("method", "inner"), PAIRS)
def test_exact_elements_are_exact(comms, method, inner):
    p = comms.size
    values = [np.array([2.0 ** 24 + 2, -1e30 if rank else 1e30, 1 / (rank + 3)], np.float32) for rank in range(p)]
    expected = np.sum(values, axis=0, dtype=float)
    for size in (3, 4, 1000):
        with open_one(comms, size, method, inner, exact=3) as reducer:
            for call in range(3):
                reducer.buffer[:] = normal(comms.rank, size, call)
                reducer.buffer[-3:] = values[comms.rank]
                reducer.allreduce()
                np.testing.assert_allclose(reducer.total[-3:], expected, rtol=2e-7)


@pytest.mark.parametrize(("method", "inner"), PAIRS)
def test_over_many_calls_nothing_is_lost(comms, method, inner):
    """The sum of all totals plus all residuals is the sum of all addends, and what is still to be sent stays small."""
    p, size, calls = comms.size, 1024, 128
    gradient = normal(comms.rank, size)  # a different one on every rank, the same one in every call
    every = comms.allgather(gradient.astype(float))
    exact, magnitude = np.sum(every, axis=0), np.sum(np.abs(every), axis=0)
    # What additions of 16-bit floats round on the way is not fed back.
    on_the_way = {"float16": 2.0 ** -11, "bfloat16": 2.0 ** -8}.get(method, 0) * (p - 1) * magnitude
    summed, waiting = np.zeros(size), []
    with open_one(comms, size, method, inner, ratio=0.1, rank=4) as reducer:
        for call in range(1, calls + 1):
            reducer.buffer[:] = gradient
            reducer.allreduce()
            summed += reducer.total
            left = np.sum(comms.allgather(reducer.residual.astype(float)), axis=0)
            assert np.all(np.abs(summed + left - call * exact) <= call * (1.01 * on_the_way + 1e-5))
            waiting.append(np.linalg.norm(left))
    assert max(waiting[calls // 2:]) <= 1.2 * max(waiting[:calls // 2])
    error = np.linalg.norm(summed / calls - exact) / np.linalg.norm(exact)
    assert error < {"float16": 1e-3, "bfloat16": 5e-3, "topk": 0.1, "powersgd": 0.1}[method]


@pytest.mark.parametrize("magnitude", [1e-20, 1e10, 1e30])
def test_float16_adapts_to_any_magnitude(comm, magnitude):
    p, size = comm.size, 1000
    exact = np.sum([magnitude * normal(rank, size).astype(float) for rank in range(p)], axis=0)
    with open_one(comm, size, "float16") as reducer:
        for _ in range(2):
            reducer.buffer[:] = magnitude * normal(comm.rank, size)
            reducer.allreduce()
            np.testing.assert_allclose(reducer.total, exact, atol=magnitude * p * 4e-3)


def test_float16_overflows_never_and_makes_up_for_what_it_cut(comm):
    p, size = comm.size, 100
    summed, exact = np.zeros(size), np.zeros(size)
    with open_one(comm, size, "float16") as reducer:
        for magnitude in (0, 1, 1e6, 1e6, 1e6, 1, 1):  # grows beyond what a scale foresees
            signs = np.sign(normal(0, size))  # on all ranks the same, so that sums are as large as can be
            reducer.buffer[:] = magnitude * signs
            exact += p * magnitude * signs
            reducer.allreduce()
            assert np.isfinite(reducer.total).all()
            summed += reducer.total
    np.testing.assert_allclose(summed, exact, rtol=1e-2)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("odd", [np.nan, np.inf])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_shows_on_every_rank(comm, method, odd):
    with open_one(comm, 1000, method) as reducer:
        for call in range(3):
            reducer.buffer[:] = normal(comm.rank, 1000, call)
            if call == 1 and comm.rank == comm.size - 1:
                reducer.buffer[500] = odd
            reducer.allreduce()
            assert np.isfinite(reducer.total[500]) == (call == 0)


def test_small_vectors_are_not_compressed_by_powersgd(comm):
    with open_one(comm, 64, "powersgd", rank=4, weights="float64") as reducer:
        assert reducer.name == "ring"
        assert reducer.weights.dtype == "float64"
        reducer.buffer[:] = addend(comm.rank, 64)
        reducer.allreduce()
        np.testing.assert_array_equal(reducer.total, total(comm.size, 64))


def test_bytes_on_the_ring(comm):
    p, size, exact = comm.size, (1 << 18) + 2, 2
    n = size - exact
    rounds = 2 * (p - 1)  # of each element, over all ranks
    words = 1 + 4 + exact + 2622  # a head for four blocks, the exact elements, a hundredth of the elements
    expected = {"float16": rounds * 2 * (n + p * 4 * (exact + 1)), "bfloat16": rounds * 2 * (n + p * 4 * exact),
                "topk": p * (p - 1) * 4 * words, "powersgd": rounds * 4 * (4 * (512 + 512) + exact)}
    for method in METHODS:
        with open_one(comm, size, method, exact=exact) as reducer:
            for call in (1, 2):
                reducer.buffer[:] = normal(comm.rank, size, call)
                reducer.allreduce()
                assert comm.allreduce(reducer.bytes_sent) == call * expected[method], method
    with open_one(comm, size, "bfloat16", "mpi") as reducer:
        assert reducer.bytes_sent is None


@pytest.mark.parametrize(("method", "inner"), PAIRS)
def test_in_the_background_and_with_an_update(comm, method, inner):
    size = 5000

    def update(summed, start, stop):
        weights[start:stop] -= summed

    with (open_one(comm, size, method, inner) as plain,
          open_one(comm, size, method, inner, weights="float32") as fused,
          open_one(comm, size, method, inner, weights="float32") as background):
        for call in range(3):
            for reducer in (plain, fused, background):
                reducer.buffer[:] = normal(comm.rank, size, call)
            before = fused.weights.copy()
            weights = background.weights
            background.start(update)
            plain.allreduce()
            background.wait()
            weights = fused.weights
            fused.reduce_update(update)
            np.testing.assert_array_equal(fused.weights, before - plain.total)
            np.testing.assert_array_equal(background.weights, fused.weights)
            assert len(set(comm.allgather(fused.weights.tobytes()))) == 1


def test_bad_arguments_are_refused(comm):
    with pytest.raises(ValueError, match="unknown compression 'zip'"):
        Compression("zip")
    for ratio in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="ratio"):
            Compression("topk", ratio=ratio)
    with pytest.raises(ValueError, match="rank"):
        Compression("powersgd", rank=0)
    with pytest.raises(ValueError, match="float64"):
        open_compressed(Compression("topk"), partial(open_reducer, "ring"), comm, 5, "float64")
    with pytest.raises(ValueError, match="of 5 elements 6"):
        open_one(comm, 5, "topk", exact=6)


@pytest.mark.parametrize("names", [("ring", "mpi"), ("mpi", "ring")])
def test_what_carries_the_two_sums_of_powersgd_may_differ(comm, names):
    left = list(names)

    def open_inner(comm, size, dtype):
        return open_reducer(left.pop(0), comm, size, dtype)

    with open_compressed(Compression("powersgd"), open_inner, comm, 3000, weights="float32") as reducer:
        reducer.buffer[:] = 1
        reducer.allreduce()
        np.testing.assert_allclose(reducer.total, comm.size, rtol=1e-5)
        assert reducer.bytes_sent is None  # MPI's own does not say, so nobody knows the whole
