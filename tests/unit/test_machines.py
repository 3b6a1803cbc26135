"""A machine goes through its own rows again and again, whatever the rounds, and never keeps a part beyond its time."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.comm.clock import Clock
from dml_hpc.data.reading import Rows
from dml_hpc.trainers.machines import Machine, cut


class OneBuffer:
    """Ten rows an epoch in three steps of up to two parts, all in one array that is overwritten, as when streamed."""

    count = used = 10
    steps, waited_s = 3, 0.0
    PARTS = (((0, 1, 2), (3,)), ((4, 5),), ((6, 7), (8, 9)))

    def __init__(self):
        self.buffer, self.taken = np.empty(3, np.int64), 0

    def take(self, epoch, step):
        self.taken += 1

        def parts():
            for part in self.PARTS[step]:
                self.buffer[:] = -1
                self.buffer[:len(part)] = part
                yield Rows(np.zeros((0, 1)), np.zeros(0), self.buffer[:len(part)])

        return parts(), 4


@pytest.mark.parametrize("sizes", [[10, 10], [3, 4, 13], [1] * 20, [20], [7, 0, 13]])
def test_rounds_go_on_where_the_last_one_ended(sizes):
    machine, seen = Machine(0, OneBuffer()), []
    for size in sizes:
        machine.begin_round()
        for parts in machine.chunks(size, Clock()):
            for part in parts:
                seen += part.rows.tolist()
        assert machine.in_round == size
    assert seen == list(range(10)) * 2 and machine.examples == 20
    assert machine.reader.taken <= 6 + len(sizes)  # no chunk is gone through again from the epoch's beginning


def test_parts_are_cut_into_mini_batches():
    rows = Rows(np.zeros((0, 1)), np.zeros(0), np.arange(7))
    assert [part.rows.tolist() for part in cut([rows], 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [part.rows.tolist() for part in cut([rows], None)] == [list(range(7))]
