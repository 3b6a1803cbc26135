"""Who is slow, and who gets whose rows: the arithmetic, on times that are given."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml_hpc.comm.clock import Clock
from dml_hpc.layout import split, weighted_bounds
from dml_hpc.trainers import stragglers as module
from dml_hpc.trainers.rebalancing import LEAST_SHARE, MOST_CHANGE, MOVING_SHARE, Rebalancing, better_shares, gain
from dml_hpc.trainers.stragglers import WINDOW, Stragglers

EQUAL = np.ones(4)


def told(judge, times, busy, work=EQUAL, seconds=1.0, step=0):
    """Tell ``judge`` the same so often; return whose case changed, by measurement."""
    return [(number, one) for number in range(times)
            for one in judge.seen(step + number, np.asarray(busy, float), np.asarray(work, float), seconds)]


def test_a_rank_that_stays_slow_is_named_once_as_slow_as_it_is():
    judge = Stragglers(4)
    ((number, found),) = told(judge, 50, [0.5, 0.5, 0.5, 0.8])
    assert number == WINDOW - 1 and judge.found == [found]
    assert (found.rank, found.since_step, found.until_step) == (3, 0, None)
    assert found.ratio == pytest.approx(1.6) and found.wait == pytest.approx(0.3)
    np.testing.assert_allclose(judge.slowness(), [[1, 1, 1, 1.6]] * WINDOW)
    assert judge.busiest() == pytest.approx(0.8)


def test_of_two_ranks_the_faster_one_is_the_measure():
    judge = Stragglers(2)
    ((_, found),) = told(judge, 20, [0.3, 0.6], EQUAL[:2])
    assert found.rank == 1 and found.ratio == pytest.approx(2)
    assert [one.rank for _, one in told(Stragglers(4), 20, [0.3, 0.3, 0.6, 0.6])] == [2, 3]
    assert not told(Stragglers(4), 20, [0.3, 0.6, 0.6, 0.6])  # one fast rank makes no slow ones


def test_who_is_fast_again_is_slow_no_more_and_who_gets_worse_is_told_of_again():
    judge = Stragglers(4)
    told(judge, 10, [0.4, 0.4, 0.4, 0.6])
    changes = told(judge, 20, [0.2, 0.2, 0.2, 0.8], step=10)
    assert [one.ratio for _, one in changes] == [pytest.approx(4)]
    changes = told(judge, 20, [0.4] * 4, step=30)
    assert [one.until_step for _, one in changes] == [30 + WINDOW // 2]  # the middle of the window
    told(judge, 20, [0.4, 0.4, 0.4, 0.8], step=50)
    assert [(one.rank, one.until_step) for one in judge.found] == [(3, 34), (3, None)]


def test_stalls_and_noise_name_nobody():
    random = np.random.default_rng(0)
    judge = Stragglers(4)
    for step in range(8_000):
        busy = 0.5 * random.lognormal(0, 0.15, 4)
        if step % 7 == 0:
            busy[random.integers(4)] += 5.0  # a page that is read from a disk, another job's second
        assert not judge.seen(step, busy, EQUAL, 1.0)


@pytest.mark.parametrize("ratio", [1.3, 1.6, 4.0])
def test_through_noise_a_slow_rank_is_named(ratio):
    random = np.random.default_rng(1)
    judge = Stragglers(4)
    for step in range(400):
        judge.seen(step, 0.2 * random.lognormal(0, 0.08, 4) * [1, ratio, 1, 1], EQUAL, 1.0)
    assert {one.rank for one in judge.found} == {1} and judge.found[-1].ratio == pytest.approx(ratio, rel=0.1)


def test_a_rank_nobody_has_to_wait_for_long_is_not_named():
    assert not told(Stragglers(4), 30, [0.01, 0.01, 0.01, 0.04])


def test_less_time_than_a_measurement_takes_is_added_up():
    judge = Stragglers(4)
    parts = round(module.MEASURED_S / 0.01)
    ((number, found),) = told(judge, parts * WINDOW * 2, [0.004, 0.004, 0.004, 0.008], seconds=0.01)
    assert parts * WINDOW - 1 <= number <= (parts + 1) * WINDOW and found.ratio == pytest.approx(2)


def test_more_rows_are_no_slowness_nor_are_fewer_that_take_as_long():
    assert not told(Stragglers(4), 30, [0.3, 0.3, 0.3, 0.6], [1, 1, 1, 2])
    assert not told(Stragglers(4), 30, [0.3] * 4, [2, 2, 2, 1])


def test_a_slow_rank_that_was_given_fewer_rows_stays_slow():
    judge = Stragglers(4)
    told(judge, 10, [0.3, 0.3, 0.3, 0.6])
    judge.forget()
    assert judge.slowness() is None
    assert not told(judge, 20, [0.35, 0.35, 0.35, 0.35], [1, 1, 1, 0.5])
    np.testing.assert_allclose(judge.slowness(), [[1, 1, 1, 2]] * WINDOW)
    assert judge.found[0].until_step is None


def test_a_rank_without_work_is_not_judged():
    judge = Stragglers(3)
    changes = told(judge, 20, [0.3, 0.0, 0.6], [1, 0, 1])
    assert [one.rank for _, one in changes] == [2] and judge.slowness() is None
    assert not told(Stragglers(2), 20, [0.0, 0.0], [1, 1])
    assert not told(Stragglers(2), 20, [0.0, 0.0], [0, 0])


def test_shares_become_what_ranks_can_do_in_the_same_time():
    equal = np.full(4, 0.25)
    better = better_shares(equal, np.array([1, 1, 1, 1.6]))
    np.testing.assert_allclose(better * [1, 1, 1, 1.6], 1 / (3 + 1 / 1.6))
    assert better.sum() == pytest.approx(1)
    assert gain(equal, better, np.array([1, 1, 1, 1.6])) == pytest.approx(1 - 4 / 1.6 / (3 + 1 / 1.6))
    np.testing.assert_allclose(better_shares(equal, np.ones(4)), equal)
    assert gain(equal, equal, np.ones(4)) == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=9))
def test_shares_change_by_bounded_factors_and_never_to_the_worse(slowness):
    slow, shares = np.array(slowness), np.full(len(slowness), 1 / len(slowness))
    for _ in range(8):
        better = better_shares(shares, slow)
        assert better.sum() == pytest.approx(1) and (better >= 0.99 * LEAST_SHARE / 2 / len(slow)).all()
        assert (better <= 1.001 * MOST_CHANGE**2 * shares).all()
        assert gain(shares, better, slow) >= -0.05
        shares = better


def test_time_that_does_not_depend_on_rows_makes_shares_neither_swing_nor_run_away():
    each, a_row = np.array([0.2, 0.2, 0.2, 0.2]), np.array([1, 1, 1, 2.0])
    shares = np.full(4, 0.25)
    for _ in range(30):
        busy = each + a_row * shares
        shares = better_shares(shares, busy / shares)
    busy = each + a_row * shares
    np.testing.assert_allclose(busy, busy[0], rtol=1e-3)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**12), st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20))
def test_weighted_parts_cover_everything_in_order_and_are_as_large_as_their_shares(n, shares):
    bounds = weighted_bounds(n, shares)
    assert bounds[0] == 0 and bounds[-1] == n and len(bounds) == len(shares) + 1
    counts = [stop - start for start, stop in pairwise(bounds)]
    assert min(counts) >= (n >= len(shares))
    if n >= 10**6:
        np.testing.assert_allclose(counts, n * np.array(shares) / sum(shares), rtol=1e-3, atol=len(shares) + 1)


def test_parts_of_equal_weights_are_equal():
    for n, parts in ((0, 3), (7, 3), (100, 8), (2**40 + 3, 7)):
        bounds = weighted_bounds(n, [0.1] * parts)
        assert all(abs(bounds[i] - split(n, parts, i)[0]) <= 1 for i in range(parts))


def test_places_are_told_in_few_words():
    assert module._ranges([0, 1, 2, 3, 8, 10, 11]) == "cores 0-3, 8, 10-11"
    assert module._ranges([5]) == "core 5" and module._ranges([]) == "all cores"


def test_who_is_through_with_a_round_before_the_others_is_measured_by_rounds():
    judge = Stragglers(3)
    for step in range(20):
        judge.seen(step, np.array([0.3, 0.3, 0.4]), np.array([1, 1, 0.5]), 1.0)
        judge.seen(step, np.array([0.0, 0.0, 0.4]), np.array([0, 0, 0.5]), 1.0)
    assert [(one.rank, one.ratio) for one in judge.found] == [(2, pytest.approx(0.8 / 0.3))]


class Run:
    """What `Rebalancing` sees of a run of several ranks, on rank 0; ``slowness`` is what is measured."""

    def __init__(self, ranks, monkeypatch, moving_s=0.0):
        self.rank, self.size, self.seconds, self.moving_s = 0, ranks, 0.0, moving_s
        self.shares, self.slowness, self.restarts = [1 / ranks] * ranks, None, 0
        self.reader = SimpleNamespace(work_share=self.shares[0])
        self.clock, self.stragglers = Clock(), SimpleNamespace(slowness=lambda: self.slowness, busiest=lambda: 0.9)
        monkeypatch.setattr("dml_hpc.trainers.rebalancing.time.monotonic", lambda: self.seconds)

    def allgather(self, share):
        return list(self.shares)

    def bcast(self, wanted):
        return wanted

    def start(self):
        self.restarts += 1

    def read_anew(self, open_reader):
        open_reader()

    def open(self, shares):
        self.seconds += self.moving_s
        self.shares = list(shares)


def looked(run, moving, ratios, step=0):
    """Let ``moving`` look after all measurements of a window were the same; return whether rows moved."""
    before = len(moving.moves)
    run.slowness = np.tile(np.asarray(ratios, float), (WINDOW, 1))
    moving.look(step)
    return len(moving.moves) > before


def test_rows_move_where_that_saves_time_and_not_so_often_that_moving_costs_it(monkeypatch):
    run, said = Run(3, monkeypatch, moving_s=1.0), []
    moving = Rebalancing(run, run, run, run.open, said.append)
    moving.look(1)  # nothing is known
    assert not looked(run, moving, [1, 1, 1.02]) and not said and not run.restarts
    assert looked(run, moving, [1, 1, 2], step=7) and run.restarts == 1
    assert moving.moves == [{"step": 7, "shares": [0.4, 0.4, 0.2]}]
    assert said == ["moved    rows after step 7: rank 2 has 20.0% of them instead of 33.3%, rank 0 has 40.0% of them "
                    "instead of 33.3%, rank 1 has 40.0% of them instead of 33.3%"]
    assert not looked(run, moving, [1, 1, 4])
    run.seconds += 1 / MOVING_SHARE
    assert looked(run, moving, [1, 1, 4])


def test_who_is_slow_in_half_of_the_measurements_keeps_its_rows(monkeypatch):
    run = Run(2, monkeypatch)
    moving = Rebalancing(run, run, run, run.open, print)
    run.slowness = np.array([[1, 2.0], [1, 1]] * (WINDOW // 2))
    moving.look(0)
    assert moving.moves == []


def test_moves_that_are_taken_back_grow_rare(monkeypatch):
    run = Run(2, monkeypatch)
    moving, moved = Rebalancing(run, run, run, run.open, lambda line: None), []
    for turn in range(1000):
        run.seconds += 3.0
        if looked(run, moving, [1, 2] if turn % 2 else [2, 1]):
            moved.append(run.seconds)
    assert 4 < len(moved) < 14 and all(later >= sooner for sooner, later in pairwise(np.diff(moved)))
