"""The host's CUDA itself: what kernels are told by it is what a GPU would tell them, and mistakes do not go unseen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from host_device import COMPILER, HostCuda
from variants import VARIANTS

INSTANCES = ["block_sums<float>", "block_sums<double>", "warps", "atomics", "conversions", "narrowed", "turned<true>",
             "turned<false>", "arguments", *(f"faulty<{fault}>" for fault in range(7))]


@pytest.fixture(autouse=True)
def shim(monkeypatch):
    monkeypatch.setitem(VARIANTS, "shim.cu", INSTANCES)


@pytest.fixture(params=["device", "quick_device"])
def device(request):
    if COMPILER is None:
        pytest.skip("there is no g++ to compile the CUDA kernels for the CPU")
    return HostCuda(threads=request.param == "device")


@pytest.mark.parametrize(("kind", "dtype"), [("float", np.float32), ("double", np.float64)])
@pytest.mark.parametrize("threads", [32, 64, 256])
def test_barriers_and_shared_memory(device, kind, dtype, threads):
    x = np.random.default_rng(0).integers(-100, 100, 1000).astype(dtype)
    out = device.zeros(3, dtype)
    device.launch("shim.cu", f"block_sums<{kind}>", 3, threads, device.put(x), x.size, out)
    parts = [sum(x[start:start + threads].sum() for start in range(block * threads, x.size, 3 * threads))
             for block in range(3)]
    assert device.get(out).tolist() == parts


def test_a_grid_of_three_dimensions(device):
    out = device.empty((8, 64), np.int64)
    device.launch("shim.cu", "turned<true>", (2, 2, 2), (4, 4, 4), out, shared_bytes=64 * 8)
    assert np.array_equal(device.get(out)[:, ::-1].ravel(), np.arange(512))


def test_a_warp_sees_its_own_lanes(device):
    x = np.random.default_rng(1).integers(0, 100, 64).astype(np.int32)
    x[32:] %= 90
    out = device.empty((8, 64), np.int32)
    device.launch("shim.cu", "warps", 1, 64, device.put(x), out)
    lanes, found = np.arange(32), device.get(out).reshape(8, 2, 32)
    for warp, of in enumerate((x[:32], x[32:])):
        assert np.array_equal(found[0, warp], np.full(32, of[5]))
        assert np.array_equal(found[1, warp], of[np.where(lanes < 3, lanes, lanes - 3)])
        assert np.array_equal(found[2, warp], of[np.where(lanes > 28, lanes, lanes + 3) % 32])
        assert np.array_equal(found[3, warp], of[lanes ^ 9])
        assert np.array_equal(found[4, warp], of[lanes // 8 * 8 + 2])
        assert np.array_equal(found[5, warp].view(np.uint32), np.full(32, np.sum((of % 2) << lanes), np.uint32))
        assert np.array_equal(found[6, warp], np.full(32, (of > 90).any() * 2 + (of < 90).all()))
        assert np.array_equal(found[7, warp], of[np.where(lanes % 4 < 2, lanes + 2, lanes) % 32])


def test_atomics(device):
    count, total, small = device.zeros(1, np.uint64), device.zeros(1, np.float64), device.zeros(1, np.float32)
    most, slots = device.put(np.full(1, -5, np.int32)), device.put(np.full(200, -1, np.int32))
    device.launch("shim.cu", "atomics", 3, 64, count, total, small, most, slots, np.int32(200))
    assert [device.get(each)[0] for each in (count, total, small, most)] == [192, 96, 192, 191]
    assert sorted(device.get(slots)) == sorted([-1] * 8 + list(range(192)))


def test_conversions_of_all_bit_patterns(device):
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide, brain = device.empty(bits.size, np.float32), device.empty(bits.size, np.float32)
    again, brains_again = device.empty(bits.size, np.float16), device.empty(bits.size, np.uint16)
    device.launch("shim.cu", "conversions", 2, 64, device.put(bits.view(np.float16)), device.put(bits), bits.size,
                  wide, brain, again, brains_again)
    with np.errstate(invalid="ignore"):
        halves, brains = bits.view(np.float16).astype(np.float32), (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(device.get(wide), halves, equal_nan=True)
    assert np.array_equal(device.get(brain), brains, equal_nan=True)
    assert np.array_equal(np.signbit(device.get(wide)), np.signbit(halves))
    numbers = ~np.isnan(halves)
    assert np.array_equal(device.get(again).view(np.uint16)[numbers], bits[numbers])
    assert np.isnan(device.get(again)[~numbers]).all()
    numbers = ~np.isnan(brains)
    assert np.array_equal(device.get(brains_again)[numbers], bits[numbers])


def test_rounding_to_narrow_types(device):
    bits = np.random.default_rng(2).integers(0, 1 << 32, 40_000, dtype=np.uint32)
    ends = np.arange(0, 0x7c00, 7, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (ends[1:] + ends[:-1]) / 2
    x = np.concatenate([bits.view(np.float32), ties, -ties, np.float32([65504, 65519.9, 65520, 65536, 2e-8, 3e-8, 0])])
    x = x[~np.isnan(x)]
    halves, brains = device.empty(x.size, np.float16), device.empty(x.size, np.uint16)
    device.launch("shim.cu", "narrowed", 2, 64, device.put(x), x.size, halves, brains)
    with np.errstate(over="ignore"):
        assert np.array_equal(device.get(halves).view(np.uint16), x.astype(np.float16).view(np.uint16))
    exact = x.view(np.uint32).astype(np.uint64)
    nearest = ((exact + 0x7fff + (exact >> 16 & 1)) >> 16).astype(np.uint16)
    assert np.array_equal(device.get(brains), nearest)


def test_arguments_of_all_kinds(device):
    out = device.zeros(8, np.float64)
    pair = np.zeros(1, np.dtype([("a", np.int64), ("b", np.float64)]))
    pair["a"], pair["b"] = 1 << 40, 0.5
    device.launch("shim.cu", "arguments", 1, 32, 1 << 50, np.int32(-3), np.float32(0.5), 2.5, True, pair[0],
                  None, out, out)
    assert device.get(out).tolist() == [2.0**50, -3, 0.5, 2.5, 1, 2.0**40 + 0.5, 1, 1]


@pytest.mark.parametrize(("number", "value", "word"), [
    (0, 1.0, "argument 0"), (0, np.int32(1), "i4"), (1, 1, "i8"), (2, 0.5, "f8"), (4, 1, "i8"),
    (6, [0.0], "device"), (8, "float32", "float32"), (8, 7, "array"),
])
def test_arguments_that_do_not_fit(quick_device, number, value, word):
    pair = np.zeros(1, np.dtype([("a", np.int64), ("b", np.float64)]))[0]
    good = [1, np.int32(1), np.float32(1), 1.0, True, pair, None, None, quick_device.zeros(8, np.float64)]
    good[number] = quick_device.zeros(8, np.float32) if value == "float32" else value
    with pytest.raises(TypeError, match=word):
        quick_device.launch("shim.cu", "arguments", 1, 32, *good)


def test_launches_that_a_gpu_refuses(quick_device):
    out = quick_device.zeros(64, np.int64)
    for grid, block, shared_bytes in ((1, 33, 0), (1, 2048, 0), (1, 64, 1 << 20), ((1, 1 << 16), 32, 0)):
        with pytest.raises(ValueError):
            quick_device.launch("shim.cu", "turned<true>", grid, block, out, shared_bytes=shared_bytes)
    with pytest.raises(TypeError, match="takes 1 arguments"):
        quick_device.launch("shim.cu", "turned<true>", 1, 32)
    with pytest.raises(ValueError, match="does not list"):
        quick_device.launch("shim.cu", "turned<7>", 1, 32, out)
    quick_device.launch("shim.cu", "turned<true>", 0, 32, out)  # a grid without blocks does nothing
    assert not quick_device.get(out).any()


RUN = """
import sys
sys.path[:0] = [{folder!r}]
import numpy as np
from variants import VARIANTS
VARIANTS["shim.cu"] = {instances!r}
from host_device import HostCuda
device = HostCuda(threads={threads}, sanitizer={sanitizer!r})
out = device.zeros(512, {dtype!r})
device.launch("shim.cu", {kernel!r}, 2, 64, out, shared_bytes={shared_bytes})
"""


def launch_elsewhere(kernel, dtype, shared_bytes=0, threads=True, sanitizer="", environment=(), before=()):
    code = RUN.format(folder=str(Path(__file__).parent), instances=INSTANCES, kernel=kernel, dtype=dtype,
                      shared_bytes=shared_bytes, threads=threads, sanitizer=sanitizer)
    return subprocess.run([*before, sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **dict(environment)})


@pytest.mark.parametrize(("fault", "word"), [
    (0, ""), (1, "without reaching this __syncthreads()"), (2, "without taking part"), (3, "past the end"),
    (4, "not all of its lanes"), (5, "different operations"),
])
@pytest.mark.parametrize("threads", [True, False], ids=["threads", "fibers"])
def test_what_cuda_leaves_undefined_ends_the_process(quick_device, threads, fault, word):
    done = launch_elsewhere(f"faulty<{fault}>", "int32", 128 if fault == 3 else 256, threads)
    assert (done.returncode == 0) == (fault == 0), done.stderr
    assert word in done.stderr


def test_threads_that_wait_for_one_another_do_not_hang(quick_device):
    done = launch_elsewhere("faulty<6>", "int32", 256, threads=False)
    assert done.returncode != 0
    assert "wait for one another at different barriers" in done.stderr


def test_an_upload_happens_when_it_is_followed(quick_device):
    source, target = quick_device.pinned(4, np.float64), quick_device.zeros(4, np.float64)
    source[:] = 1
    end = quick_device.upload(target, source, quick_device.mark())
    assert np.isnan(quick_device.get(target)).all()  # not yet, and what was there is gone
    quick_device.follow(quick_device.mark())  # the work's own end has nothing to do with it
    assert np.isnan(quick_device.get(target)).all()
    source[:] = 2  # too early
    quick_device.follow(end)
    assert quick_device.get(target).tolist() == [2] * 4
    with pytest.raises(TypeError, match="pinned"):
        quick_device.upload(target, np.zeros(4))


def test_a_download_holds_what_was_there_and_comes_when_it_is_waited_for(quick_device):
    source, target = quick_device.zeros(4, np.float64), quick_device.pinned(4, np.float64)
    end = quick_device.download(target, source)
    source += 1
    assert np.isnan(target).all()
    end.wait()
    assert not target.any()
    quick_device.download(target, source)
    quick_device.synchronize()
    assert target.tolist() == [1] * 4


def test_arrays_of_the_host_and_the_device_do_not_mix(quick_device):
    xp = quick_device.xp
    on_device, on_host = quick_device.put(np.arange(6.0).reshape(2, 3)), np.ones((2, 3))
    for mix in (lambda: on_device + on_host, lambda: xp.matmul(on_device, on_host.T), lambda: on_device.dot(on_host.T),
                lambda: on_device.__setitem__(0, on_host[0]), lambda: xp.concatenate([on_device, on_host]),
                lambda: quick_device.put(on_device), lambda: quick_device.get(on_host)):
        with pytest.raises(TypeError):
            mix()
    kind = type(on_device)
    product = xp.empty((2, 2), np.float64)
    xp.matmul(on_device, on_device.T, out=product)
    for array in (product, on_device[0], on_device[0, 0], on_device.sum(), xp.zeros(3), xp.linalg.norm(on_device),
                  xp.concatenate([on_device, on_device]), on_device.astype(np.float32), xp.sqrt(on_device)):
        assert type(array) is kind
    assert float(on_device.sum()) == 15
    assert quick_device.get(product).tolist() == [[5, 14], [14, 50]]


SHARING = """
import sys
sys.path[:0] = [{folder!r}]
from host_device import HostCuda
device = HostCuda()
array = device.open_shared(bytes.fromhex(sys.argv[1]), (3, 5), "float32")
array += 1
device.close_shared(array)
"""


def test_processes_share_an_array(quick_device):
    array = quick_device.shareable((3, 5), np.float32)
    handle = quick_device.share(array)
    assert len(handle) == 64
    subprocess.run([sys.executable, "-c", SHARING.format(folder=str(Path(__file__).parent)), handle.hex()], check=True)
    assert quick_device.get(array).tolist() == [[1] * 5] * 3
    with pytest.raises(RuntimeError):  # as a GPU's driver refuses it
        quick_device.open_shared(handle, (3, 5), np.float32)
    with pytest.raises(ValueError):
        quick_device.share(quick_device.zeros(3, np.float32))
    before = len(os.listdir("/proc/self/fd"))
    del array
    assert len(os.listdir("/proc/self/fd")) < before


REFUSED = {
    "put": lambda device, x, pinned: device.put(np.zeros(3)),
    "get": lambda device, x, pinned: device.get(x),
    "assignment": lambda device, x, pinned: x.__setitem__(slice(None), 0),
    "add": lambda device, x, pinned: x + x,
    "fill": lambda device, x, pinned: x.fill(0),
    "astype": lambda device, x, pinned: x.astype(np.float64),
    "copy": lambda device, x, pinned: x.copy(),
    "zeros_like": lambda device, x, pinned: device.xp.zeros_like(x),
    "synchronize": lambda device, x, pinned: device.synchronize(),
    "mark": lambda device, x, pinned: device.mark(),
    "pinned": lambda device, x, pinned: device.pinned(3, np.float32),
    "copy beside": lambda device, x, pinned: device.upload(x, pinned),
    "capture": lambda device, x, pinned: device.capture(lambda: None),
    "before it was ever launched": lambda device, x, pinned: device.launch("shim.cu", "warps", 1, 64, x, x),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_captured_is_refused(quick_device, what):
    device = quick_device
    x, pinned = device.zeros(64, np.int32), device.pinned(64, np.int32)
    with pytest.raises(RuntimeError, match=what):
        device.capture(lambda: REFUSED[what](device, x, pinned))
    device.put(np.arange(64, dtype=np.int32), x)  # and all is as it was
    assert device.get(x + x)[5] == 10


def test_captured_launches_have_the_arguments_they_had(quick_device):
    device, x, out = quick_device, quick_device.put(np.arange(64.0)), quick_device.zeros(3, np.float64)
    count = 10

    def work():
        device.launch("shim.cu", "block_sums<double>", 3, 32, x, count, out)

    work()
    assert device.get(out)[0] == 45
    replay = device.capture(work)
    count = 3  # too late
    device.zero(out)
    assert device.launched["shim.cu", "block_sums<double>"] == 1
    replay()
    assert device.get(out)[0] == 45
    assert (device.replayed, device.launched["shim.cu", "block_sums<double>"]) == (1, 2)
