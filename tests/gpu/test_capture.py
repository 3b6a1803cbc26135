"""Captured work, queued again, does what it did on what its arrays hold by then."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.kernels.cuda import sums
from dml_hpc.optim import OPTIMISERS, open_optimiser
from dml_hpc.optim.optimiser import CHANGING
from dml_hpc.optim.settings import OptimiserSettings
from dml_hpc.trainers import captured
from dml_hpc.trainers.captured import Captured

SIZE = 733


def random(seed, size=SIZE):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


class Doubled:
    """Work: ``out`` = 2·``x``, by way of an array that it allocates."""

    def __init__(self, device):
        self.device, self.x, self.out = device, device.put(random(0)), device.put(random(1))

    def __call__(self):
        again = self.device.empty(SIZE, np.float32)
        sums.add_up(self.device, self.x, again)
        self.device.zero(self.out)
        sums.add(self.device, self.out, again, self.out)
        sums.add(self.device, self.out, again, self.out)


def test_captured_work_is_done_when_it_is_queued_again(quick_device):
    device, work = quick_device, Doubled(quick_device)
    work()
    before = device.get(work.out)
    np.testing.assert_array_equal(before, 2 * random(0))
    device.put(random(2), work.x)
    replay = device.capture(work)
    np.testing.assert_array_equal(device.get(work.out), before)
    for seed in (2, 3):
        device.put(random(seed), work.x)
        replay()
        np.testing.assert_array_equal(device.get(work.out), 2 * random(seed))


def test_nobody_else_gets_the_memory_that_captured_work_has_allocated(quick_device):
    device, work = quick_device, Doubled(quick_device)
    work()
    replay = device.capture(work)
    others = [device.put(random(seed)) for seed in range(20)]
    for _ in range(2):
        replay()
    for seed, other in enumerate(others):
        np.testing.assert_array_equal(device.get(other), random(seed))
    np.testing.assert_array_equal(device.get(work.out), 2 * random(0))


def test_what_is_loaded_is_what_pinned_memory_holds_by_then(quick_device):
    device, told = quick_device, quick_device.pinned(SIZE, np.float32)
    there, out = device.empty(SIZE, np.float32), device.empty(SIZE, np.float32)

    def work():
        device.load(there, told)
        sums.add_up(device, there, out)

    told[:] = random(0)
    work()
    np.testing.assert_array_equal(device.get(out), random(0))
    replay = device.capture(work)
    for seed in (1, 2):
        told[:] = random(seed)
        replay()
        np.testing.assert_array_equal(device.get(out), random(seed))


@pytest.mark.parametrize("dtype", ["uint16", "float32", "int64"])
def test_zeros(quick_device, dtype):
    device = quick_device
    for first, last in ((0, 9), (3, 8), (4, 4)):
        array = device.put(np.arange(1, 10).astype(dtype))
        device.zero(array[first:last])
        wanted = np.arange(1, 10)
        wanted[first:last] = 0
        np.testing.assert_array_equal(device.get(array), wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_captured_step_has_the_hosts_bits_at_every_step(quick_device, name, dtype):
    device, kind = quick_device, np.dtype(dtype)
    settings = OptimiserSettings(name, momentum=0.9, l1=0.02, l2=0.05)
    host = open_optimiser(settings, (0, SIZE), kind, [(0, 600)], average_iterates=True)
    ours = open_optimiser(settings, (0, SIZE), kind, [(0, 600)], average_iterates=True, device=device)
    weights = random(5).astype(kind)
    there, gradient = device.put(weights), device.empty(SIZE, kind)
    told, changing = device.pinned(CHANGING, np.float64), device.empty(CHANGING, np.float64)

    def work():
        device.load(changing, told)
        ours.update(there, gradient, 0, 1.0, 1.0, 1, changing=changing)

    steps = Captured(device)
    for t in range(1, 7):
        own = random(t).astype(kind)
        device.put(own, gradient)
        told[:] = ours.changing(0.37 * t, 0.1 / t, t)
        steps.queue("step", lambda: work)
        host.update(weights, own, 0, 0.37 * t, 0.1 / t, t)
        for wanted, got in zip([weights, host.average, *host.state], [there, ours.average, *ours.state], strict=True):
            np.testing.assert_array_equal(device.get(got), wanted)


def test_work_is_made_twice_and_then_no_more(quick_device, monkeypatch):
    device, work, made = quick_device, Doubled(quick_device), []

    def make():
        made.append(None)
        return work

    some = Captured(device)
    assert not some.again("work")
    for seed in range(5):
        device.put(random(seed), work.x)
        some.queue("work", make)
        np.testing.assert_array_equal(device.get(work.out), 2 * random(seed))
    assert len(made) == 2
    device.put(random(9), work.x)
    assert some.again("work")
    np.testing.assert_array_equal(device.get(work.out), 2 * random(9))
    monkeypatch.setattr(captured, "MOST_GRAPHS", 1)
    for _ in range(4):
        some.queue("other", make)
    assert not some.again("other")
    assert len(made) == 6


def test_a_graph_that_was_let_go_of_lets_go_of_its_work(quick_device):
    import gc
    import weakref

    work = Doubled(quick_device)
    work()
    replay, seen = quick_device.capture(work), weakref.ref(work)
    del work
    gc.collect()
    assert seen() is not None
    replay()
    quick_device.synchronize()
    del replay
    gc.collect()
    assert seen() is None
