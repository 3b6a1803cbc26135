"""Every reducer against NumPy, on small integers, whose sums have the same bits in any order."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.comm import REDUCERS, open_reducer

pytestmark = pytest.mark.mpi

DTYPES = ("float32", "float64", "int64")
MIB = 1 << 20


def sizes(p: int, dtype: str) -> list[int]:
    mib = MIB // np.dtype(dtype).itemsize
    return sorted({0, 1, p - 1, p, p + 1, mib, mib + 3})


def addend(rank: int, size: int, call: int = 0) -> np.ndarray:
    """Small integers that differ between ranks, elements and calls, in no pattern."""
    return np.random.default_rng([rank, call]).integers(-8, 9, size)


def total(p: int, size: int, call: int = 0) -> np.ndarray:
    return np.sum([addend(rank, size, call) for rank in range(p)], axis=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", REDUCERS)
def test_sums_are_exact(comms, name, dtype):
    for size in sizes(comms.size, dtype):
        with open_reducer(name, comms, size, dtype) as reducer:
            assert reducer.buffer.shape == (size,)
            assert reducer.buffer.dtype == dtype
            reducer.buffer[:] = addend(comms.rank, size)
            reducer.allreduce()
            np.testing.assert_array_equal(reducer.total, total(comms.size, size), f"{size} elements")


@pytest.mark.parametrize("name", REDUCERS)
def test_a_reducer_can_be_used_again(comms, name):
    for size in (comms.size + 1, MIB // 4 + 3):
        with open_reducer(name, comms, size) as reducer:
            for call in range(4):
                reducer.buffer[:] = addend(comms.rank, size, call)
                reducer.allreduce()
                np.testing.assert_array_equal(reducer.total, total(comms.size, size, call), f"call {call}")


@pytest.mark.parametrize("fan_in", [1, 2, 3, 8])
def test_trees_of_every_fan_in(comms, fan_in):
    for dtype in DTYPES:
        for size in sizes(comms.size, dtype):
            with open_reducer("tree", comms, size, dtype, fan_in=fan_in) as reducer:
                reducer.buffer[:] = addend(comms.rank, size)
                reducer.allreduce()
                np.testing.assert_array_equal(reducer.total, total(comms.size, size))


@pytest.mark.parametrize("name", REDUCERS)
def test_all_ranks_hold_the_same_bits(comms, name):
    for size in (1, comms.size + 1, 100_003):
        with open_reducer(name, comms, size) as reducer:
            scale = 10.0 ** (4 * comms.rank)  # of different size, so that every order rounds differently
            reducer.buffer[:] = scale * np.random.default_rng(comms.rank).standard_normal(size)
            reducer.allreduce()
            assert len(set(comms.allgather(reducer.total.tobytes()))) == 1


@pytest.mark.parametrize("name", REDUCERS)
def test_reducers_do_not_meet_each_other_or_the_caller(comms, name):
    p, rank = comms.size, comms.rank
    note = comms.isend(("note", rank), (rank + 1) % p)
    with open_reducer(name, comms, 1000) as one, open_reducer(name, comms, 1000) as other:
        for reducer, call in ((one, 0), (other, 1)):
            reducer.buffer[:] = addend(rank, 1000, call)
        for reducer in (other, one):
            reducer.allreduce()
        np.testing.assert_array_equal(one.total, total(p, 1000, 0))
        np.testing.assert_array_equal(other.total, total(p, 1000, 1))
    assert comms.recv(source=(rank - 1) % p) == ("note", (rank - 1) % p)
    note.wait()


def test_a_ring_sends_the_least(comms):
    p, size = comms.size, 12 * 1000
    with open_reducer("ring", comms, size) as reducer:
        reducer.allreduce()
        assert reducer.bytes_sent == 2 * (p - 1) * (size // p) * 4


def test_bad_arguments_are_refused(comm):
    with pytest.raises(ValueError, match="unknown reducer 'rign'"):
        open_reducer("rign", comm, 1)
    with pytest.raises(ValueError, match="device 'abacus'"):
        open_reducer("ring", comm, 1, device="abacus")
    with pytest.raises(ValueError, match="fan-in"):
        open_reducer("tree", comm, 1, fan_in=0)
