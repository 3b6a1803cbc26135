"""Timing rules: the summary, the turns, the number of calls in a timing."""

from __future__ import annotations

import pytest

from dml_hpc.reports.timing import calls_per_timing, interleave, summarise


def test_summary():
    assert summarise([3.0, 1.0, 2.0]) == (2.0, 3.0)
    assert summarise([5.0]) == (5.0, 5.0)
    assert summarise(range(1000)) == (499.5, 990.0)


def test_contestants_take_turns_and_the_first_changes():
    order = []

    def contestant(name):
        def call():
            order.append(name)
            return float(len(order))
        return call

    seconds = interleave({name: contestant(name) for name in "abc"}, 3)
    assert "".join(order) == "abcbcacab"
    assert seconds["a"].tolist() == [1, 6, 8]


@pytest.mark.parametrize(("call_s", "calls"), [(1.0, 1), (1e-3, 1), (3e-5, 4), (0.0, 500), (1e-9, 500)])
def test_calls_per_timing(call_s, calls):
    assert calls_per_timing(call_s, 1e-4, most=500) == calls
