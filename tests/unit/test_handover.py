"""Queues of one writer and one reader: what comes out is what went in, in its order, and not before."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from dml_hpc.kernels.handover import put, take
from dml_hpc.kernels.node import LINE

pytestmark = pytest.mark.maths


def test_numbers_come_out_in_their_order_round_and_round():
    queue = np.zeros(LINE + 3, np.int64)
    assert take(queue, 0) == -1
    for first in range(0, 12, 3):
        for count in range(first, first + 3):
            put(queue, count, 7 * count)
        assert [take(queue, count) for count in range(first, first + 4)] == [*range(7 * first, 7 * first + 15, 7), -1]


def test_a_reader_finds_what_was_written_before_the_number():
    """Each of 200 buffers goes to another thread and back, and both write to it."""
    there, back = (np.zeros(LINE + 2, np.int64) for _ in range(2))
    buffers = np.zeros((2, 512))

    def relay() -> None:
        for count in range(200):
            while (number := take(there, count)) < 0:
                pass
            buffers[number] += buffers[number, 0]
            put(back, count, number)

    thread = threading.Thread(target=relay)
    thread.start()
    for count in range(200):
        buffers[count % 2] = count
        put(there, count, count % 2)
        while take(back, count) < 0:
            pass
        assert (buffers[count % 2] == 2 * count).all()
    thread.join()
