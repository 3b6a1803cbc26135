"""The laws of scaling, held against times made from known constants, and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from runs_support import Truth, rank, record

from dml_hpc.reports.intervals import least_squares, median_interval, ratio_interval, student
from dml_hpc.reports.laws import Laws, amdahl, gustafson, karp_flatt
from dml_hpc.reports.scaling import Group, analyse


def group(records: list[dict[str, object]]) -> Group:
    (found,) = analyse(records).groups
    return found


def laws(records: list[dict[str, object]]) -> Laws:
    found = group(records).laws
    assert found is not None
    return found


def test_amdahl_of_exact_times_by_hand() -> None:
    # A fifth of 10 s is serial: t(p) = 10 (0.2 + 0.8/p).
    assert amdahl([1, 2, 4], np.array([10.0, 6.0, 4.0])) == pytest.approx(0.2)
    assert amdahl([1, 2, 4], np.array([8.0, 4.0, 2.0])) == 0
    assert amdahl([1, 2, 4], np.array([8.0, 3.5, 1.5])) == 0  # faster than ideal: no negative part
    assert amdahl([1, 2, 4], np.array([8.0, 8.0, 8.0])) == pytest.approx(1)
    many = np.array([[10.0, 6.0, 4.0], [8.0, 4.0, 2.0]])
    assert amdahl([1, 2, 4], many) == pytest.approx([0.2, 0])


def test_gustafson_by_hand() -> None:
    # S(p) = p − s (p − 1) with s = 0.1.
    assert gustafson([2, 4, 8], [1.9, 3.7, 7.3]) == pytest.approx(0.1)
    assert gustafson([2, 4], [2.0, 4.0]) == 0
    assert gustafson([2, 4], [1.0, 1.0]) == pytest.approx(1)


def test_the_serial_fraction_lies_in_its_interval_about_as_often_as_it_says() -> None:
    truth = Truth(parallel=98, serial=2, alpha=0, beta=0, skew=0)
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(100):
        found = laws(truth.runs([1, 2, 4, 8], 5, random))
        assert found.amdahl_low is not None and found.amdahl_high is not None and found.amdahl_serial is not None
        assert found.amdahl_low <= found.amdahl_serial <= found.amdahl_high
        inside += found.amdahl_low <= 0.02 <= found.amdahl_high
    assert inside >= 88


def test_alpha_and_beta_are_those_the_times_were_made_of() -> None:
    truth = Truth(alpha=1e-4, beta=2e-9, noise=0.0)
    found = laws(truth.runs([1, 2, 4, 8], 3, np.random.default_rng(0)))
    assert found.alpha_s == pytest.approx(1e-4) and found.beta_s_per_byte == pytest.approx(2e-9)


def test_the_wire_stands_in_where_times_cannot_tell_latency_from_bandwidth() -> None:
    wire = {"between_nodes": {"alpha_s": 3e-5, "beta_s_per_byte": 8e-9}, "within_node": None}
    runs = [record([rank(compute=8 / p, communicate=1.0 * (p > 1))] * p, wire=wire) for p in (1, 2)]
    found = laws(runs)
    assert (found.alpha_s, found.beta_s_per_byte) == (3e-5, 8e-9)
    for run in runs:
        run["wire"] = {"between_nodes": "?", "within_node": {"alpha_s": True}}
    found = laws(runs)
    assert (found.alpha_s, found.beta_s_per_byte) == (None, None)


def test_karp_flatt_is_told_for_each_number_of_ranks_and_one_number_has_no_laws() -> None:
    runs = [record([rank(compute=10 * (0.2 + 0.8 / p))] * p) for p in (1, 2, 4)]
    assert laws(runs).karp_flatt == (pytest.approx((2, 0.2)), pytest.approx((4, 0.2)))
    assert karp_flatt(2.5, 4) == pytest.approx(0.2)
    assert group(runs[:1]).laws is None


def test_weak_scaling_compares_times_of_work_that_grows() -> None:
    runs = [record([rank(compute=t)] * p, scaling="weak", rows=1000 * p, data=f"/tmp/w{p}")
            for p, t in ((1, 8.0), (2, 8.0), (4, 10.0))]
    found = group(runs)
    assert found.weak and [point.ranks for point in found.points] == [1, 2, 4]
    assert [point.efficiency for point in found.points] == pytest.approx([1, 1, 0.8])
    assert [point.speedup for point in found.points] == pytest.approx([1, 2, 3.2])
    assert found.points[-1].serial_fraction is None
    assert found.laws is not None and found.laws.amdahl_serial is None and found.laws.karp_flatt == ()
    assert found.laws.gustafson_serial == gustafson([2, 4], [2.0, 3.2])
    assert "3.20 times as much a second" in found.verdict and "weak scaling" in found.label
    # What really grew counts: three times the work on four ranks.
    runs[-1]["rows"] = 3000
    assert group(runs).points[-1].efficiency == pytest.approx(0.6)


def test_strong_and_weak_runs_of_one_job_stand_apart() -> None:
    runs = [record([rank(compute=8 / p)] * p, rows=1000) for p in (1, 2)]
    weak = [record([rank(compute=8.0)] * p, rows=1000 * p, scaling="weak") for p in (1, 2)]
    assert [one.weak for one in analyse([*runs, *weak]).groups] == [False, True]
    # Records say "strong" or nothing: the same.
    assert len(analyse([{**runs[0], "scaling": "strong"}, runs[1]]).groups) == 1


def test_the_interval_of_a_median() -> None:
    assert median_interval([1.0, 2.0]) is None
    low, high = median_interval([1.0, 1.1, 1.2]) or (0, 0)
    assert low <= 1.0 and high >= 1.2
    # Of ten, between the second and the ninth: 1 − 2 · 11/1024 = 97.9 %.
    assert median_interval([float(i) for i in range(1, 11)]) == (2.0, 9.0)
    random = np.random.default_rng(3)
    for repeats in (3, 5, 8, 20):
        inside = 0
        for _ in range(400):
            low, high = median_interval(np.exp(random.normal(0, 0.05, repeats)).tolist()) or (0, 0)
            inside += low <= 1 <= high
        assert inside >= 0.93 * 400, repeats


def test_students_t_of_the_tables() -> None:
    assert [student(n) for n in (1, 2, 5, 10)] == pytest.approx([12.706, 4.303, 2.571, 2.228])
    assert student(20) == pytest.approx(2.086, abs=0.02) and student(1e9) == pytest.approx(1.96, abs=0.001)
    assert 2.571 < student(4.5) < 2.776


def test_the_interval_of_a_ratio_covers_it() -> None:
    assert ratio_interval([1.0, 2.0], [1.0, 2.0, 3.0]) is None
    random = np.random.default_rng(4)
    for repeats in (3, 5, 12):
        inside = 0
        for _ in range(200):
            before, after = (center * np.exp(random.normal(0, 0.05, repeats)) for center in (1.0, 1.3))
            low, high = ratio_interval(before.tolist(), after.tolist()) or (0, 0)
            inside += low <= 1.3 <= high
        assert inside >= 0.92 * 200, repeats


def test_least_squares_with_no_negative_terms() -> None:
    columns = np.array([[1.0, 1.0], [1.0, 0.5], [1.0, 0.25]])
    assert least_squares(columns, np.array([3.0, 2.0, 1.5])) == pytest.approx([1.0, 2.0])
    assert least_squares(columns, np.array([4.0, 2.0, 1.0])) == pytest.approx([0.0, 4.0])
    # One measurement cannot tell two terms apart: one of them takes it.
    assert np.count_nonzero(least_squares(columns[:1], np.array([3.0]))) == 1
    brute = min((np.square((columns @ [a, b] - [1, 2, 3]) / [1, 2, 3]).sum(), a, b)
                for a in np.linspace(0, 3, 301) for b in np.linspace(0, 3, 301))
    assert least_squares(columns, np.array([1.0, 2.0, 3.0])) == pytest.approx(brute[1:], abs=0.01)
