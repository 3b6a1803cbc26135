"""Every reducer against NumPy, on small integers, whose sums have the same bits in any order."""

from __future__ import annotations

import errno
import gc
import os
import random
import time

import numpy as np
import pytest

from dml_hpc.comm import REDUCERS, circle, doubling, hierarchical, open_reducer, tree
from dml_hpc.comm.hierarchical import HierarchicalReducer
from dml_hpc.errors import AgreedError
from dml_hpc.kernels import node as kernels
from dml_hpc.memory import free_bytes

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
    with pytest.raises(ValueError, match="fan-in"):
        open_reducer("tree", comm, 1, fan_in=0)


@pytest.mark.parametrize("name", REDUCERS)
def test_the_halves_make_the_whole(comms, name):
    p, rank = comms.size, comms.rank
    for size in (0, 1, p + 1, 5000, MIB // 4 + 3):
        with open_reducer(name, comms, size) as reducer:
            for call in range(3):
                reducer.buffer[:] = addend(rank, size, call)
                reducer.reduce_scatter()
                start, stop = reducer.owned
                np.testing.assert_array_equal(reducer.total[start:stop], total(p, size, call)[start:stop])
                owners = np.zeros(size, int)
                for first, last in comms.allgather((start, stop)):
                    owners[first:last] += 1
                assert owners.all(), "every element is some rank's"
                reducer.total[start:stop] += 1  # what an owner makes of it, all are given
                reducer.allgather()
                np.testing.assert_array_equal(reducer.total, total(p, size, call) + 1)


@pytest.mark.parametrize("weights", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.parametrize("name", REDUCERS)
def test_a_fused_update_gives_all_ranks_the_owners_weights(comms, name, dtype, weights):
    p, rank = comms.size, comms.rank
    for size in (0, 1, p - 1, p + 1, 70_001, MIB // 4 + 3):
        with open_reducer(name, comms, size, dtype, weights=weights) as reducer:
            reducer.weights[:] = np.arange(size) % 7

            def update(summed, start, stop, reducer=reducer):
                assert reducer.owned[0] <= start <= stop <= reducer.owned[1]
                reducer.weights[start:stop] += 2 * summed

            expected = np.arange(size) % 7
            for call in range(4):
                reducer.buffer[:] = addend(rank, size, call)
                if call == 2:  # the two kinds of call may follow each other
                    reducer.allreduce()
                    np.testing.assert_array_equal(reducer.total, total(p, size, call))
                    continue
                reducer.reduce_update(update)
                expected += 2 * total(p, size, call)
                np.testing.assert_array_equal(reducer.weights, expected)


def test_without_weights_there_is_nothing_to_update(comm):
    with open_reducer("ring", comm, 3) as reducer, pytest.raises(ValueError, match="opened with weights"):
        reducer.reduce_update(lambda *chunk: None)


@pytest.mark.parametrize("name", REDUCERS)
def test_split_sums_run_side_by_side_in_any_order(comms, name):
    p, rank = comms.size, comms.rank
    sizes_ = (5, 100_003, 70_000)
    reducers = [open_reducer(name, comms, size, weights="float32") for size in sizes_]
    for call in range(3):
        for reducer in reducers:
            reducer.buffer[:] = addend(rank, reducer.size, call)
            reducer.start()
        for reducer in reducers[::1 if rank % 2 else -1]:
            reducer.wait()
        for reducer in reducers:
            np.testing.assert_array_equal(reducer.total, total(p, reducer.size, call))
    one = reducers[1]
    one.buffer[:] = addend(rank, one.size)

    def update(summed, start, stop):
        one.weights[start:stop] = -summed

    one.start(update)
    with pytest.raises(ValueError, match="started twice"):
        one.start()
    one.wait()
    np.testing.assert_array_equal(one.weights, -total(p, one.size))
    with pytest.raises(ValueError, match="nothing was started"):
        one.wait()
    for reducer in reducers:
        reducer.close()


def test_a_failure_in_the_background_is_raised_where_it_is_waited_for(comm):
    def fail(summed, start, stop):
        raise ArithmeticError("no update")

    with open_reducer("mpi", comm, 10, weights="float32") as reducer:
        reducer.start(fail)
        with pytest.raises(ArithmeticError, match="no update"):
            reducer.wait()


@pytest.mark.parametrize("name", [*REDUCERS, "hierarchical, two nodes"])
def test_calls_of_all_kinds_may_follow_each_other(comms, name):
    """At random, with ranks that are late here and there; every sum and every weight is right whenever it is read."""
    p, rank = comms.size, comms.rank
    together, alone = random.Random(p), random.Random(rank)
    size = 20_011
    node = comms.Split(rank % 2)
    if "," in name:
        reducer = HierarchicalReducer(comms, size, "float32", "float32", node=node)
    else:
        reducer = open_reducer(name, comms, size, weights="float32")

    def late():
        if alone.random() < 0.3:
            time.sleep(alone.random() * 1e-3)

    def update(summed, start, stop):
        late()
        reducer.weights[start:stop] = summed - reducer.weights[start:stop]

    weights = np.zeros(size)
    with reducer:
        for call in range(60):
            expected = total(p, size, call)
            reducer.buffer[:] = addend(rank, size, call)
            kind = together.choice(["whole", "halves", "half", "split", "update", "split update"])
            own = slice(0, size)
            if kind == "whole":
                reducer.allreduce()
            elif kind in ("half", "halves"):
                reducer.reduce_scatter()
                own = slice(*reducer.owned)
                if kind == "halves":
                    late()
                    reducer.allgather()
                    own = slice(0, size)
            elif kind == "update":
                reducer.reduce_update(update)
            else:
                reducer.start(update if "update" in kind else None)
                reducer.wait()
            late()
            if "update" in kind:
                weights = expected - weights
            else:
                np.testing.assert_array_equal(reducer.total[own], expected[own], f"call {call}: {kind}")
            late()
            np.testing.assert_array_equal(reducer.weights, weights, f"call {call}: {kind}")
    node.Free()


@pytest.mark.parametrize("name", REDUCERS)
def test_a_reducer_gives_back_all_it_took(comm, name):
    if comm.size != 2:
        pytest.skip("once, on two ranks")
    files = len(os.listdir("/proc/self/fd"))
    for size in [1] * 2100 + [5000] * 20:  # MPICH has room for 2,048 communicators
        with open_reducer(name, comm, size, weights="float32") as reducer:
            reducer.allreduce()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= files + 2


NODES = {
    "all alone": lambda rank: rank,
    "one apart": lambda rank: int(rank > 0),
    "by turns": lambda rank: rank % 2,
    "the last apart": lambda rank: int(rank > 1),
}


@pytest.mark.parametrize("nodes", NODES)
def test_a_node_without_memory_stops_all_nodes(comm, nodes, monkeypatch):
    node = comm.Split(NODES[nodes](comm.rank))
    files = len(os.listdir("/proc/self/fd"))

    def full(*arguments):
        raise OSError(errno.ENOSPC, "no space")

    if comm.rank == comm.size - 1:
        monkeypatch.setattr("os.posix_fallocate", full)
    for _ in range(3):
        with pytest.raises(AgreedError, match=r"the node has not the .* GB of memory") as refusal:
            HierarchicalReducer(comm, 100_000, "float32", node=node)
        assert (refusal.value.rank, refusal.value.exit_code) == (comm.size - 1, 2)
    assert len(os.listdir("/proc/self/fd")) == files
    node.Free()


@pytest.mark.parametrize("dtype", [*DTYPES, "float16"])
@pytest.mark.parametrize("nodes", NODES)
def test_nodes_may_hold_different_numbers_of_ranks(comms, nodes, dtype):
    p, rank = comms.size, comms.rank
    node = comms.Split(NODES[nodes](rank))
    for size in (0, 1, p + 1, 3000, MIB // 8 + 3):
        with HierarchicalReducer(comms, size, dtype, "float32", node=node) as reducer:
            for call in range(3):
                reducer.buffer[:] = addend(rank, size, call)
                reducer.allreduce()
                np.testing.assert_array_equal(reducer.total, total(p, size, call))
                reducer.buffer[:] = addend(rank, size, call)
                reducer.reduce_scatter()
                reducer.allgather()
                np.testing.assert_array_equal(reducer.total, total(p, size, call))

            def update(summed, start, stop, reducer=reducer):
                reducer.weights[start:stop] += summed

            for call in range(2):
                reducer.buffer[:] = addend(rank, size, call)
                reducer.reduce_update(update)
            np.testing.assert_array_equal(reducer.weights, total(p, size, 0) + total(p, size, 1))
    node.Free()


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("name", [*REDUCERS, "hierarchical, two nodes"])
def test_no_schedule_of_delays_changes_a_sum(comms, name, background, monkeypatch):
    """Ranks pause at random between the steps that Python takes; who is late, and where, differs from call to call."""
    p, rank = comms.size, comms.rank
    luck = random.Random(rank)

    def late(step):
        def delayed(*arguments):
            if luck.random() < 0.2:
                time.sleep(luck.random() * 2e-3)
            return step(*arguments)

        return delayed

    for module in (circle, tree, doubling):
        monkeypatch.setattr(module, "finish", late(module.finish))
    for kernel in ("meet", "node_allreduce", "add_rows"):
        monkeypatch.setattr(kernels, kernel, late(getattr(kernels, kernel)))
    monkeypatch.setattr(hierarchical, "PATIENCE", 3)  # looks after its signals after hardly any waiting
    monkeypatch.setattr(circle, "SEGMENT_BYTES", 4096)
    monkeypatch.setattr(tree, "SEGMENT_BYTES", 4096)
    node = comms.Split(rank % 2)
    for size in (7, 30_011):
        if "," in name:
            reducer = HierarchicalReducer(comms, size, "float32", node=node)
        else:
            reducer = open_reducer(name, comms, size)
        with reducer:
            for call in range(12):
                reducer.buffer[:] = addend(rank, size, call)
                if background:
                    reducer.start()
                    reducer.wait()
                else:
                    reducer.allreduce()
                np.testing.assert_array_equal(reducer.total, total(p, size, call))
                if luck.random() < 0.3:
                    time.sleep(1e-3)  # still reading while others go on
                np.testing.assert_array_equal(reducer.total, total(p, size, call))
    node.Free()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", REDUCERS)
def test_16_bit_floats_are_summed_by_all(comms, name, dtype):
    p, rank = comms.size, comms.rank
    for size in (0, 1, p + 1, 50_001):
        with open_reducer(name, comms, size, dtype) as reducer:
            mine = addend(rank, size).astype(np.float32)  # sums of up to 256 are exact in bfloat16 too
            reducer.buffer[:] = mine if dtype == "float16" else mine.view(np.uint32) >> 16
            reducer.allreduce()
            got = reducer.total
            if dtype == "bfloat16":
                got = (got.astype(np.uint32) << 16).view(np.float32)
            np.testing.assert_array_equal(got, total(p, size))


@pytest.mark.parametrize("name", REDUCERS)
def test_more_than_two_gib(comm, name):
    if comm.size != 2:
        pytest.skip("once, on two ranks")
    if comm.allreduce(int(free_bytes() < 10 << 30)):
        pytest.skip("needs 10 GiB of free memory")
    size = (1 << 29) + 1001
    with open_reducer(name, comm, size) as reducer:
        reducer.buffer[:] = comm.rank + 1
        places = [0, 1, (1 << 29) - 1, 1 << 29, size - 1]
        reducer.buffer[places] = np.arange(5) + comm.rank
        reducer.allreduce()
        np.testing.assert_array_equal(reducer.total[places], 2 * np.arange(5) + 1)
        comm.Barrier()  # a node's total may be one memory: nobody writes before all have read, and one rank alone
        if reducer.name != "hierarchical" or comm.rank == 0:
            reducer.total[places] = 3
        comm.Barrier()
        for start in range(0, size, 1 << 26):
            part = reducer.total[start:start + (1 << 26)]
            assert part.min() == part.max() == 3
