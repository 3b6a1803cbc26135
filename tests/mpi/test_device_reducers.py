"""Reducers of vectors on a device, whose kernels the host's compiler builds, on whole numbers."""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dml_hpc.comm import auto, circle, on_device, open_reducer, tree
from dml_hpc.comm.compression import Compression
from dml_hpc.comm.elements import DTYPES
from dml_hpc.comm.on_device import aware, hierarchical, nccl, open_on_device
from dml_hpc.comm.on_device.hierarchical import DeviceHierarchical
from dml_hpc.comm.on_device.places import OnDevice, Pinned
from dml_hpc.comm.on_device.staged import open_staged
from dml_hpc.comm.reducer import takes_lazy_sums
from dml_hpc.errors import AgreedError
from dml_hpc.kernels.cuda import sums
from dml_hpc.mpi import world
from dml_hpc.optim import open_optimiser
from dml_hpc.optim.settings import OptimiserSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
from host_device import COMPILER, HostCuda

ON_GPU = os.environ.get("DML_HPC_TEST_DEVICE") == "cuda"
pytestmark = [pytest.mark.mpi, pytest.mark.skipif(COMPILER is None and not ON_GPU,
                                                  reason="there is no g++ to compile CUDA kernels")]
only_on_the_cpu = pytest.mark.skipif(ON_GPU, reason="it hands the host's memory to MPI for a device's")

WAYS = ("mpi", "ring", "tree", "hierarchical", "sliced hierarchical", "aware ring", "aware tree", "two nodes",
        "staged hierarchical")
MIB = 1 << 20


@pytest.fixture(scope="module")
def device():
    """A device; its kernels are compiled by one rank, and found by the others. DML_HPC_TEST_DEVICE=cuda: a GPU."""
    if ON_GPU:
        from dml_hpc.cuda import Cuda

        return Cuda(world().rank)
    everyone = world().Dup()
    one = HostCuda()
    for rank in range(everyone.size):
        if rank == everyone.rank:
            for dtype in ("float32", "float64", "int64", "float16", "uint16"):
                empty = one.empty(0, dtype)
                sums.add_up(one, empty, empty)
                sums.add(one, empty, empty, empty)
            for dtype in ("uint16", "float32", "float64"):
                several = sums.LazySum(one, [one.empty(0, dtype)] * 2)
                sums.gather(one, several, one.zeros(3, "int64"), -1, one.empty(0, dtype))
            for kind in ("float32", "int64"):
                open_optimiser(OptimiserSettings(), (0, 0), np.dtype("float32"), [], device=one).update(
                    one.empty(0, "float32"), one.empty(0, kind), 0, 1.0, 0.0, 1)
        everyone.Barrier()
    everyone.Free()
    return one


def opened(way, comm, size, dtype, device, weights=None):
    """Return a reducer on the device, opened the ``way``."""
    kind = way.split()[-1]
    if way == "two nodes":
        node = comm.Split(comm.rank % 2)
        reducer = DeviceHierarchical(comm, size, dtype, device, weights, node)
        node.Free()
        return reducer
    if way == "staged hierarchical":
        return open_staged("hierarchical", comm, size, dtype, device, 2, weights, "for a test")
    with pytest.MonkeyPatch.context() as patch:
        if "sliced" in way:
            patch.setattr(hierarchical, "WHOLE_BYTES", -1)
        if not ON_GPU:
            patch.setattr(aware, "library_says", lambda: "aware" in way)
        patch.setattr(aware, "PROBED", (10,))
        return open_reducer(kind, comm, size, dtype, device, weights=weights)


def addend(rank: int, size: int, call: int = 0) -> np.ndarray:
    return np.random.default_rng([rank, call]).integers(-8, 9, size)


def total(p: int, size: int, call: int = 0) -> np.ndarray:
    return np.sum([addend(rank, size, call) for rank in range(p)], axis=0)


def encoded(numbers: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return numbers.astype(dtype)


@pytest.mark.parametrize("way", WAYS)
def test_sums_are_exact(comms, device, way):
    p, rank = comms.size, comms.rank
    whole = min(comms.allgather((p, rank) == (world().size, world().rank)))  # else a few will do
    for dtype in DTYPES if whole else ("float32",):
        for size in sorted({0, p - 1, p + 1, MIB // 4}) if whole and dtype == "float32" else (1000,):
            with opened(way, comms, size, dtype, device) as reducer:
                assert (reducer.size, reducer.buffer.shape) == (size, (size,))
                for call in range(2):
                    device.put(encoded(addend(rank, size, call), dtype), reducer.buffer)
                    reducer.allreduce()
                    np.testing.assert_array_equal(device.get(reducer.total), encoded(total(p, size, call), dtype),
                                                  f"{size} of {dtype}")


@pytest.mark.parametrize("way", WAYS)
def test_the_halves_make_the_whole(comm, device, way):
    p, rank = comm.size, comm.rank
    for size in (0, p + 1, 5000):
        with opened(way, comm, size, "float32", device) as reducer:
            for call in range(2):
                device.put(addend(rank, size, call).astype(np.float32), reducer.buffer)
                reducer.reduce_scatter()
                own = slice(*reducer.owned)
                np.testing.assert_array_equal(device.get(reducer.total)[own], total(p, size, call)[own])
                owners = np.zeros(size, int)
                for first, last in comm.allgather(reducer.owned):
                    owners[first:last] += 1
                assert owners.all()
                reducer.total[own] += 1
                reducer.allgather()
                np.testing.assert_array_equal(device.get(reducer.total), total(p, size, call) + 1)


@pytest.mark.parametrize(("way", "lazy", "dtype"), [
    *((way, True, "float32") for way in WAYS), ("hierarchical", False, "float32"),
    ("sliced hierarchical", False, "int64"), ("hierarchical", True, "int64"), ("ring", True, "int64")])
def test_a_fused_update_is_a_sum_and_a_step(comm, device, way, dtype, lazy):
    """Momentum and penalties on whatever a rank owns, against the same steps on the host's whole vector."""
    p, rank = comm.size, comm.rank
    settings = OptimiserSettings("sgd", momentum=0.5, l1=0.25, l2=0.5)
    for size in (p - 1, 3001):
        with opened(way, comm, size, dtype, device, "float32") as reducer:
            reducer.weights[:] = 1
            optimiser = open_optimiser(settings, reducer.owned, np.dtype("float32"), [(0, size // 2)], device=device)
            host = open_optimiser(settings, (0, size), np.dtype("float32"), [(0, size // 2)])
            weights, handed = np.ones(size, np.float32), []

            def update(summed, start, stop, reducer=reducer, optimiser=optimiser, handed=handed):
                assert reducer.owned[0] <= start <= stop <= reducer.owned[1]
                handed.append(isinstance(summed, sums.LazySum))
                optimiser.update(reducer.weights[start:stop], summed, start, 0.125, 0.5, 1)

            if lazy:
                takes_lazy_sums(update)
            for call in range(3):
                device.put(addend(rank, size, call).astype(dtype), reducer.buffer)
                if call == 1:  # the two kinds of call may follow each other
                    reducer.allreduce()
                    np.testing.assert_array_equal(device.get(reducer.total), total(p, size, call))
                    continue
                reducer.reduce_update(update)
                host.update(weights, total(p, size, call).astype(dtype), 0, 0.125, 0.5, 1)
                np.testing.assert_array_equal(device.get(reducer.weights), weights, f"{size} elements")
            if way in ("hierarchical", "sliced hierarchical") and handed:
                assert set(handed) == {lazy}


@pytest.mark.parametrize("way", WAYS)
def test_calls_of_all_kinds_may_follow_each_other(comm, device, way, monkeypatch):
    """At random, with ranks that are late here and there; every sum and every weight is right whenever it is read."""
    p, rank, size = comm.size, comm.rank, 6001  # a tree, not the doubling of small vectors
    together, alone = random.Random(p), random.Random(rank)
    for place, name in ((circle, "SEGMENT_BYTES"), (tree, "SEGMENT_BYTES"), (OnDevice, "segment_bytes"),
                        (Pinned, "segment_bytes")):
        monkeypatch.setattr(place, name, 1024)
    weights = np.zeros(size)
    with opened(way, comm, size, "float32", device, "float32") as reducer:
        def late():
            if alone.random() < 0.3:
                time.sleep(alone.random() * 1e-3)

        def update(summed, start, stop):
            late()
            reducer.weights[start:stop] = summed - reducer.weights[start:stop]

        for call in range(15):
            expected = total(p, size, call)
            device.put(addend(rank, size, call).astype(np.float32), reducer.buffer)
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
                np.testing.assert_array_equal(device.get(reducer.total)[own], expected[own], f"call {call}: {kind}")
            late()
            np.testing.assert_array_equal(device.get(reducer.weights), weights, f"call {call}: {kind}")


@pytest.mark.parametrize("nodes", [lambda rank: rank, lambda rank: int(rank > 0)])
def test_nodes_may_hold_different_numbers_of_ranks(comm, device, nodes):
    p, rank = comm.size, comm.rank
    node = comm.Split(nodes(rank))
    for size in (0, p + 1, 3000):
        with DeviceHierarchical(comm, size, "float32", device, "float32", node) as reducer:
            device.put(addend(rank, size).astype(np.float32), reducer.buffer)
            reducer.allreduce()
            np.testing.assert_array_equal(device.get(reducer.total), total(p, size))

            def update(summed, start, stop, reducer=reducer):
                reducer.weights[start:stop] += summed

            for _ in range(2):
                reducer.reduce_update(update)
            np.testing.assert_array_equal(device.get(reducer.weights), 2 * total(p, size))
    node.Free()


@only_on_the_cpu
def test_what_goes_through_the_host_is_said(comm, device):
    for way, said in (("mpi", "mpi, staged through pinned host memory"),
                      ("ring", "ring, staged through pinned host memory (this MPI does not take device buffers)"),
                      ("staged hierarchical", "hierarchical, staged through host memory")):
        with opened(way, comm, 10, "float32", device) as reducer:
            assert reducer.choice.startswith(said)
    for way in ("aware ring", "aware tree", "hierarchical"):
        with opened(way, comm, 10, "float32", device) as reducer:
            assert reducer.choice is None


@only_on_the_cpu
def test_a_library_that_sums_wrong_is_not_used(comm, device, monkeypatch):
    if comm.size == 1:
        pytest.skip("one rank sends nothing")
    monkeypatch.setattr(aware, "library_says", lambda: True)
    monkeypatch.setattr(aware, "_numbers", lambda rank, count: np.full(count, 1 + comm.rank, np.float32))
    assert "a sum came out wrong" in aware.why_staged(comm, device)
    monkeypatch.setattr(aware, "library_says", lambda: comm.rank > 0)
    assert aware.why_staged(comm, device) == "this MPI does not take device buffers"


def test_memory_that_cannot_be_opened_stops_all_ranks(comm, device, monkeypatch):
    if comm.size == 1:
        pytest.skip("one rank opens nothing")
    right, opened_ = device.open_shared, []

    def refuse(handle, shape, dtype):
        if comm.rank == comm.size - 1 and opened_:
            raise RuntimeError("cudaErrorPeerAccessUnsupported")
        opened_.append(handle)
        return right(handle, shape, dtype)

    monkeypatch.setattr(device, "open_shared", refuse)
    for _ in range(2):
        opened_.clear()
        with pytest.raises(AgreedError, match=r"cannot read the memory of another .*PeerAccessUnsupported"):
            open_reducer("hierarchical", comm, 100, "float32", device)
    opened_.clear()
    with open_reducer("auto", comm, 100, "float32", device) as reducer:
        assert reducer.name != "hierarchical"
        assert "hierarchical not here (a rank cannot read" in reducer.choice


def test_auto_measures_what_there_is(comm, device, monkeypatch):
    with open_reducer("auto", comm, 3000, "float32", device, weights="float32") as reducer:
        device.put(addend(comm.rank, 3000).astype(np.float32), reducer.buffer)
        reducer.allreduce()
        np.testing.assert_array_equal(device.get(reducer.total), total(comm.size, 3000))
        if comm.size > 1:
            assert all(f"{name} " in reducer.choice for name in on_device.CANDIDATES)
            assert ON_GPU or "nccl not here" in reducer.choice
    if comm.size > 1 and not ON_GPU:
        monkeypatch.setattr(auto, "_measure", lambda comm, reducer, *_: 1.0 + (reducer.name != "ring"))
        with open_reducer("auto", comm, 10, "float32", device) as reducer:
            assert reducer.choice.startswith("ring, staged through pinned host memory")


class _Nccl:
    """NCCL's calls on the addresses that it is given, by MPI."""

    available = True
    NCCL_SUM, NCCL_FLOAT32, NCCL_INT64 = 0, np.dtype("float32"), np.dtype("int64")

    def __init__(self, comm):
        self._comm = comm

    def get_unique_id(self):
        return ("a key",)

    def NcclCommunicator(self, ranks, key, rank):  # noqa: N802 -- NCCL's names
        assert (ranks, key, rank) == (self._comm.size, ("a key",), self._comm.rank)
        return self

    def allReduce(self, source, target, count, kind, op, stream):  # noqa: N802
        self._comm.Allreduce(at(source, count, kind).copy(), at(target, count, kind))
        assert (op, stream) == (0, 77)

    def reduceScatter(self, source, target, count, kind, op, stream):  # noqa: N802
        out = np.empty(count, kind)
        self._comm.Reduce_scatter_block(at(source, count * self._comm.size, kind).copy(), out)
        at(target, count, kind)[:] = out

    def allGather(self, source, target, count, kind, stream):  # noqa: N802
        self._comm.Allgather(at(source, count, kind).copy(), at(target, count * self._comm.size, kind))

    def destroy(self):
        pass


def at(address, count, kind):
    import ctypes

    return np.frombuffer((ctypes.c_byte * (count * kind.itemsize)).from_address(address), kind)


@only_on_the_cpu
def test_nccl_is_called_as_it_must_be(comms, device, monkeypatch):
    p, rank = comms.size, comms.rank
    inner = comms.Dup()
    monkeypatch.setattr(nccl, "load", lambda: _Nccl(inner))
    monkeypatch.setattr(nccl, "gpu", lambda device: ("here", str(rank)))
    monkeypatch.setattr(nccl, "stream", lambda device: 77)
    for dtype in ("float32", "int64"):
        for size in (p - 1, p + 1, 1000):
            with open_on_device("nccl", comms, size, dtype, device, 2, "float32", None) as reducer:
                def update(summed, start, stop, reducer=reducer):
                    assert (start, stop) == reducer.owned
                    reducer.weights[start:stop] += summed

                device.put(addend(rank, size).astype(dtype), reducer.buffer)
                reducer.allreduce()
                np.testing.assert_array_equal(device.get(reducer.total), total(p, size))
                for call in range(2):
                    device.put(addend(rank, size, call).astype(dtype), reducer.buffer)
                    reducer.reduce_update(update)
                np.testing.assert_array_equal(device.get(reducer.weights), total(p, size) + total(p, size, 1))
                device.put(addend(rank, size).astype(dtype), reducer.buffer)
                reducer.reduce_scatter()
                reducer.allgather()
                np.testing.assert_array_equal(device.get(reducer.total), total(p, size))
    if p > 1:
        monkeypatch.setattr(nccl, "gpu", lambda device: ("here", "the only one"))
        with pytest.raises(AgreedError, match="ranks 0 and 1 share a GPU, which NCCL refuses"):
            open_reducer("nccl", comms, 10, "float32", device)
    inner.Free()


def test_nccl_is_for_gpus(comm):
    with pytest.raises(AgreedError, match="nccl sums vectors on GPUs: give --device cuda"):
        open_reducer("nccl", comm, 10)


@pytest.mark.parametrize("way", ["hierarchical", "ring"])
@pytest.mark.parametrize("method", ["float16", "bfloat16"])
def test_vectors_are_compressed_as_on_the_host(comm, device, method, way):
    """The same residuals to the bit, as each rank's own; sums as far as the order of additions leaves them."""
    size, exact = 1003, 3
    compression = Compression(method, exact=exact)
    with open_reducer(way, comm, size, "float32", device, weights="float32", compression=compression) as ours, \
            open_reducer("ring", comm, size, compression=compression) as host:
        assert ours.name == f"{method} {way}"
        assert ours.compression == method
        for call in range(4):
            addend_ = np.random.default_rng([comm.rank, call]).standard_normal(size).astype(np.float32) * 10.0 ** call
            addend_[-exact:] = comm.rank + 1 / 3
            device.put(addend_, ours.buffer)
            host.buffer[:] = addend_
            host.allreduce()
            ours.reduce_update(lambda summed, start, stop: ours.weights.__setitem__(slice(start, stop), summed))
            got = device.get(ours.weights)
            np.testing.assert_array_equal(device.get(ours.residual), host.residual)
            np.testing.assert_array_equal(got[-exact:], host.total[-exact:])
            np.testing.assert_allclose(got, host.total, rtol=0.02, atol=0.02 * 10.0 ** call)
            assert len(set(comm.allgather(got.tobytes()))) == 1


def test_other_compressions_stay_on_the_host(comm, device):
    with pytest.raises(AgreedError, match="--compression topk works in the host's memory only"):
        open_reducer("ring", comm, 100, "float32", device, compression=Compression("topk"))


def test_the_library_is_asked(comm, monkeypatch):
    assert not aware._answer("libm.so.6")  # which knows nothing of it
    monkeypatch.delenv("MPICH_GPU_SUPPORT_ENABLED", raising=False)
    for answer in (True, False):
        monkeypatch.setattr(aware, "_answer", lambda path, answer=answer: answer)
        assert aware.library_says() == answer
    monkeypatch.setenv("MPICH_GPU_SUPPORT_ENABLED", "1")
    assert aware.library_says()
