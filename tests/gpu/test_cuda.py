"""The device that is a GPU, against a CuPy that writes down what it is asked; and what `doctor` tries on a device."""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from dml_hpc import cuda
from dml_hpc.checks import gpu, on_gpu
from dml_hpc.device import open_device
from dml_hpc.errors import UserError


class FakeArray(np.ndarray):
    """An array of the fake CuPy: its ``data`` copies at once, and writes down in which stream it did."""

    @property
    def data(self):
        return SimpleNamespace(
            ptr=self.ctypes.data,
            copy_from_host_async=lambda address, n_bytes, stream: stream.copy(self.ctypes.data, address, n_bytes),
            copy_to_host_async=lambda address, n_bytes, stream: stream.copy(address, self.ctypes.data, n_bytes),
            memset_async=lambda value, n_bytes, stream: stream.set(self.ctypes.data, value, n_bytes))

    def get(self, stream):
        stream.log.append((stream.name, "get"))
        return np.array(self)


class FakeCupy(ModuleType):
    """As much of CuPy as `dml_hpc.cuda` uses; ``log`` says what was asked of which stream, in turn."""

    def __init__(self, gpus=2):
        super().__init__("cupy")
        self.log, self.gpus, self.built, self.current = [], gpus, [], threading.local()
        self.empty = lambda shape, dtype: np.empty(shape, dtype).view(FakeArray)
        self.zeros = lambda shape, dtype: np.zeros(shape, dtype).view(FakeArray)
        self.ndarray = lambda shape, dtype, pointer: np.full(shape, 7, dtype).view(FakeArray)
        self.get_default_memory_pool = lambda: SimpleNamespace(free_bytes=lambda: 1000)
        fake = self

        class Stream:
            made = 0

            def __init__(self, non_blocking):
                assert non_blocking
                self.name, self.log = f"stream {Stream.made}", fake.log
                Stream.made += 1

            def use(self):
                fake.current.stream = self

            def copy(self, target, source, n_bytes):
                import ctypes

                ctypes.memmove(target, source, n_bytes)
                self.log.append((self.name, "copy", n_bytes))

            def set(self, target, value, n_bytes):
                import ctypes

                ctypes.memset(target, value, n_bytes)
                self.log.append((self.name, "set", n_bytes))

            def begin_capture(self):
                self.log.append((self.name, "begin"))

            def end_capture(self):
                self.log.append((self.name, "end"))
                return SimpleNamespace(launch=lambda stream: stream.log.append((stream.name, "graph")))

            def synchronize(self):
                self.log.append((self.name, "synchronize"))

            def wait_event(self, event):
                self.log.append((self.name, "wait", event.recorded))

        class Event:
            made = 0

            def __init__(self, disable_timing):
                self.done = False
                Event.made += 1
                self.number = Event.made

            def record(self, stream):
                self.recorded = f"event {self.number} of {stream.name}"
                fake.log.append((stream.name, "record"))

            def synchronize(self):
                fake.log.append(("wait for", self.recorded))

        class Kernel:
            max_dynamic_shared_size_bytes = 48 << 10

            def __init__(self, name):
                self.name = name

            def __call__(self, grid, block, arguments, shared_mem):
                assert shared_mem <= self.max_dynamic_shared_size_bytes
                fake.log.append((fake.current.stream.name, self.name, grid, block, arguments, shared_mem))

        def module(code, options, name_expressions):
            fake.built.append((code, options, name_expressions))
            return SimpleNamespace(get_function=Kernel)

        class Device:
            def __init__(self, number):
                self.number = number

            def use(self):
                fake.current.device = self.number

        self.RawModule = module
        self.cuda = SimpleNamespace(
            Stream=Stream, Event=Event, Device=Device, runtime=SimpleNamespace(
                CUDARuntimeError=RuntimeError, getDeviceCount=lambda: self.gpus, memGetInfo=lambda: (5000, 9000),
                getDeviceProperties=lambda number: {
                    "name": b"NVIDIA H100", "multiProcessorCount": 132, "sharedMemPerBlockOptin": 227 << 10,
                    "l2CacheSize": 50 << 20, "totalGlobalMem": 80 << 30},
                cudaDevAttrMemoryClockRate=36, cudaDevAttrGlobalMemoryBusWidth=37,
                deviceGetAttribute=lambda attribute, number: {36: 2619000, 37: 5120}[attribute],
                deviceGetPCIBusId=lambda number: f"0000:{number:02x}:00.0", ipcGetMemHandle=lambda address: bytes(64),
                ipcOpenMemHandle=lambda handle: 4096,
                ipcCloseMemHandle=lambda address: self.log.append(("close", address))),
            Memory=lambda n_bytes: self.log.append(("malloc", n_bytes)), MemoryPointer=lambda memory, offset: memory,
            UnownedMemory=lambda *arguments: arguments, alloc_pinned_memory=bytearray)


@pytest.fixture
def fake(monkeypatch):
    module = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


@pytest.fixture
def device(fake):
    device = open_device("cuda", 3)
    fake.log.clear()
    return device


def test_what_a_kernel_writer_is_told(device, fake):
    assert (device.number, fake.current.device) == (1, 1)  # the fourth rank of a node with two GPUs
    assert (device.processors, device.shared_bytes, device.cache_bytes) == (132, 227 << 10, 50 << 20)
    assert device.block_threads % 32 == 0
    assert device.description == "NVIDIA H100 (80 GiB)"
    assert device.free_bytes() == 6000


def test_no_gpu(monkeypatch, fake):
    fake.gpus = 0
    with pytest.raises(UserError, match="no GPU") as refusal:
        open_device("cuda", 0)
    assert "\n" not in str(refusal.value)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(UserError, match=r"pip install 'dml-hpc\[cuda12\]'") as refusal:
        open_device("cuda", 0)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_no_driver():
    import cupy

    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        with pytest.raises(UserError, match="no GPU can be used here") as refusal:
            open_device("cuda", 0)
        assert "\n" not in str(refusal.value)
    else:
        pytest.skip("there is a GPU")


def test_a_launch(device, fake):
    x = device.zeros(5, np.float32)
    for grid, shared_bytes in ((2, 0), ((3, 1), 100_000), (4, 1000), (0, 0)):
        device.launch("scaling.cu", "fold<half, bfloat16, 4>", grid, 64, x, None, 3, 2.5, True, np.int32(1),
                      shared_bytes=shared_bytes)
    name = "dml::fold<dml::half, dml::bfloat16, 4>"
    assert [entry[:4] for entry in fake.log] == [(device.stream.name, name, grid, (64,))
                                                 for grid in ((2,), (3, 1), (4,))]
    arguments = fake.log[0][4]
    assert arguments[0] is x
    assert [type(value) for value in arguments[1:]] == [np.uintp, np.int64, np.float64, np.bool_, np.int32]
    [(code, options, names)] = fake.built
    assert code == (cuda.SOURCES / "scaling.cu").read_text()
    assert names == [name]
    assert f"-I{cuda.SOURCES}" in options
    assert device._kernels["scaling.cu", "fold<half, bfloat16, 4>"].max_dynamic_shared_size_bytes == 100_000


def test_a_changed_header_is_another_build(tmp_path, monkeypatch):
    before = cuda._headers_digest()
    (tmp_path / "common.cuh").write_text("// another")
    monkeypatch.setattr(cuda, "SOURCES", tmp_path)
    assert cuda._headers_digest() != before


def test_what_is_put_may_change_at_once(device, fake):
    small, large = np.arange(10.0), np.zeros(1 << 20)
    out = device.put(small)
    assert np.array_equal(out, small)
    assert (device.stream.name, "synchronize") not in fake.log  # copied to pinned memory, which is kept until then
    assert len(device._in_use) == 1
    device._in_use[0][0].done = True
    device.put(large, out=device.zeros(1 << 20, np.float64))
    assert fake.log[-1] == (device.stream.name, "synchronize")
    device.put(small, out)
    assert len(device._in_use) == 1  # the first one is let go of
    with pytest.raises(ValueError, match="does not fit"):
        device.put(small, device.zeros(3, np.float64))


def test_an_upload_goes_beside_the_work_and_behind_what_it_must(device, fake):
    source, target = device.pinned((2, 3), np.float32), device.empty((2, 3), np.float32)
    source[:] = 3
    after = device.mark()
    fake.log.clear()
    end = device.upload(target, source, after)
    uploads, work = device._uploads.name, device.stream.name
    assert fake.log == [(uploads, "wait", after.event.recorded), (uploads, "copy", 24), (uploads, "record")]
    device.follow(end)
    assert fake.log[-1] == (work, "wait", end.event.recorded)
    end.wait()
    assert fake.log[-1] == ("wait for", end.event.recorded)
    fake.log.clear()
    device.upload(target, source)  # without one, behind all work: the pool may give out what that still uses
    assert fake.log[0] == (work, "record")
    assert fake.log[1][:2] == (uploads, "wait")
    with pytest.raises(ValueError, match="contiguous"):
        device.upload(target[:, :2], source[:, :2])
    back = device.pinned((2, 3), np.float32)
    device.download(back, target)
    assert fake.log[-2:] == [(work, "copy", 24), (work, "record")]
    assert np.array_equal(back, source)


def test_what_is_captured_is_queued_as_a_graph(device, fake):
    stream, x, told = device.stream.name, device.zeros(5, np.float32), device.pinned(5, np.float32)
    told[:] = 3

    def work():
        kept.append(device.empty(7, np.float32))
        device.zero(x[1:3])
        device.load(x, told)
        device.zero(x[:0])
        device.launch("scaling.cu", "fold<float>", 1, 32, x)

    kept = []
    replay = device.capture(work)
    assert [entry[:2] for entry in fake.log] == [(stream, what) for what in (
        "begin", "set", "copy", "dml::fold<float>", "end")]
    assert x.tolist() == [3] * 5
    fake.log.clear()
    replay()
    replay()
    assert fake.log == [(stream, "graph")] * 2
    assert [array is kept[0] for array in replay._held[1]] == [True]
    device.empty(7, np.float32)
    assert len(replay._held[1]) == 1  # what comes later is not the graph's
    with pytest.raises(ValueError, match="fit"):
        device.load(x, device.pinned(4, np.float32))


def test_a_capture_that_fails_ends(device, fake):
    def work():
        raise ValueError("no work")

    with pytest.raises(ValueError, match="no work"):
        device.capture(work)
    assert fake.log[-1] == (device.stream.name, "end")
    assert device._captured is None


def test_getting_waits(device, fake):
    out = np.zeros(4)
    assert device.get(device.zeros(4, np.float64) + 1, out) is out
    assert fake.log[-2:] == [(device.stream.name, "get"), (device.stream.name, "synchronize")]
    assert out.tolist() == [1] * 4


def test_a_shared_array_has_pages_of_its_own(device, fake):
    array = device.shareable(1000, np.float32)
    assert fake.log == [("malloc", cuda.PAGE_BYTES), (device.stream.name, "synchronize")]
    assert not array.any()
    opened = device.open_shared(device.share(array), 1000, np.float32)
    device.close_shared(opened)
    assert fake.log[-1] == ("close", opened.data.ptr)


def test_another_thread_of_the_rank_uses_the_same_stream(device, fake):
    seen = []

    def work():
        device.launch("scaling.cu", "fold<float>", 1, 32)
        seen.append((fake.current.device, fake.current.stream))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(1, device.stream)]


CHILD = """
import sys
sys.path[:0] = [{folder!r}]
from dml_hpc.checks import on_gpu
from host_device import HostCuda
on_gpu.visit(sys.argv[1], HostCuda())
"""


@pytest.mark.parametrize("operation", sorted(set(on_gpu.OPERATIONS) - {"nccl"}))
def test_what_doctor_tries(quick_device, operation):
    child = [sys.executable, "-c", CHILD.format(folder=str(Path(__file__).parent))]
    answer = (on_gpu.ipc(quick_device, child) if operation == "gpu ipc" else on_gpu.OPERATIONS[operation](quick_device))
    assert answer
    assert "\n" not in answer


def test_doctor_sees_what_goes_wrong(quick_device, monkeypatch):
    with pytest.raises(RuntimeError, match="no such thing"):
        on_gpu.ipc(quick_device, [sys.executable, "-c", "raise OSError('no such thing')"])
    with pytest.raises(ValueError, match="came out wrong"):
        on_gpu.ipc(quick_device, [sys.executable, "-c", "pass"])
    monkeypatch.setattr(quick_device, "follow", lambda event: None)
    with pytest.raises(ValueError, match="came out wrong"):
        on_gpu.copies(quick_device)


def test_every_operation_has_a_mend():
    text = Path(gpu.__file__).read_text()
    assert all(f'"{name}":' in text for name in on_gpu.OPERATIONS)
