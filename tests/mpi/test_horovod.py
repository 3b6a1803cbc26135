"""Horovod's all-reduce, where Horovod is installed: exact sums, all ranks or none, and as often as one likes."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from dml_hpc.comm import open_reducer
from dml_hpc.errors import AgreedError

pytestmark = pytest.mark.mpi

MIB = 1 << 20


@pytest.fixture
def horovod():
    """Skip the test where there is no Horovod."""
    pytest.importorskip("horovod.torch")


def addend(rank: int, size: int, call: int = 0) -> np.ndarray:
    """Small integers that differ between ranks, elements and calls, in no pattern."""
    return np.random.default_rng([rank, call]).integers(-8, 9, size)


def total(p: int, size: int, call: int = 0) -> np.ndarray:
    return np.sum([addend(rank, size, call) for rank in range(p)], axis=0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "float16"])
def test_sums_are_exact(horovod, comm, dtype):
    for size in (0, 1, 3, MIB + 3):
        with open_reducer("horovod", comm, size, dtype) as reducer:
            for call in range(3):
                reducer.buffer[:] = addend(comm.rank, size, call)
                reducer.allreduce()
                np.testing.assert_array_equal(reducer.total, total(comm.size, size, call), f"{size} elements")
            assert reducer.total.dtype == dtype
            assert reducer.bytes_sent is None


def test_a_long_vector_goes_in_several_calls(horovod, comm, monkeypatch):
    monkeypatch.setattr("dml_hpc.comm.horovod.MOST_ELEMENTS", 1000)
    with open_reducer("horovod", comm, 2500) as reducer:
        reducer.buffer[:] = addend(comm.rank, 2500)
        reducer.allreduce()
        np.testing.assert_array_equal(reducer.total, total(comm.size, 2500))


def test_every_rank_updates_all_weights(horovod, comm):
    with open_reducer("horovod", comm, 5, weights="float64") as reducer:
        def update(summed, start, stop):
            reducer.weights[start:stop] += 10.0 * summed

        for _ in range(2):
            reducer.buffer[:] = comm.rank + np.arange(5)
            reducer.reduce_update(update)
        ranks = sum(range(comm.size))
        np.testing.assert_array_equal(reducer.weights, 20.0 * (ranks + comm.size * np.arange(5)))


def test_halves_make_a_whole(horovod, comm):
    with open_reducer("horovod", comm, 7) as reducer:
        reducer.buffer[:] = comm.rank
        reducer.reduce_scatter()
        assert reducer.owned == (0, 7)
        reducer.allgather()
        np.testing.assert_array_equal(reducer.total, sum(range(comm.size)))


def test_reducers_are_under_way_together_and_in_any_order(horovod, comm):
    with open_reducer("horovod", comm, 1000) as one, open_reducer("horovod", comm, 10) as other:
        for call in range(3):
            one.buffer[:], other.buffer[:] = addend(comm.rank, 1000, call), comm.rank
            mine = (one, other) if comm.rank % 2 else (other, one)
            for reducer in mine:
                reducer.start()
            for reducer in mine:
                reducer.wait()
            np.testing.assert_array_equal(one.total, total(comm.size, 1000, call))
            np.testing.assert_array_equal(other.total, sum(range(comm.size)))


def test_the_order_of_ranks_does_not_matter(horovod, comm):
    backwards = comm.Split(0, -comm.rank)
    with open_reducer("horovod", backwards, 3) as reducer:
        reducer.buffer[:] = comm.rank
        reducer.allreduce()
        np.testing.assert_array_equal(reducer.total, sum(range(comm.size)))
    backwards.Free()


def test_some_of_the_ranks_are_refused(comm):
    if comm.size == 1:
        pytest.skip("one rank is all of them")
    alone = comm.Split(comm.rank)
    with pytest.raises(AgreedError, match="over all ranks of the job"):
        open_reducer("horovod", alone, 3)
    alone.Free()


def test_what_it_cannot_sum_is_refused(comm):
    with pytest.raises(AgreedError, match="does not sum bfloat16"):
        open_reducer("horovod", comm, 3, "bfloat16")


def test_without_horovod_the_user_is_told_how_to_get_it(comm, monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod", None)
    monkeypatch.setitem(sys.modules, "horovod.torch", None)
    with pytest.raises(AgreedError, match=r"scripts/install_horovod\.sh"):
        open_reducer("horovod", comm, 3)
