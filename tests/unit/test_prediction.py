"""Predictions: made-up jobs whose time is known at any number of ranks must lie in the intervals."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from runs_support import Truth, rank, record

from dml_hpc.reports.prediction import Prediction
from dml_hpc.reports.scaling import analyse


def predicted(records: list[dict[str, Any]]) -> Prediction:
    (group,) = analyse(records).groups
    assert group.prediction is not None
    return group.prediction


@pytest.mark.parametrize(("truth", "ranks", "repeats"), [
    (Truth(), [1, 2, 4, 8, 16], 5),
    (Truth(serial=3, alpha=1e-6, beta=1e-10), [1, 2, 4, 8], 5),
    (Truth(serial=0.1, alpha=1e-3, beta=1e-10), [2, 4, 8], 5),
    (Truth(noise=0.05), [1, 2, 4, 8, 16], 5),
    (Truth(), [1, 2, 4], 3),
], ids=["usual", "serial", "latency", "noisy", "few"])
def test_the_truth_lies_in_the_interval_about_as_often_as_it_says(
        truth: Truth, ranks: list[int], repeats: int) -> None:
    random = np.random.default_rng(0)
    inside: dict[int, list[bool]] = {}
    for _ in range(40):
        found = predicted(truth.runs(ranks, repeats, random))
        for at, low, high in zip(found.ranks, found.low_s, found.high_s, strict=True):
            inside.setdefault(at, []).append(low <= truth.seconds(at) <= high)
    assert max(inside) <= 1024 < 2 * max(inside)
    assert np.mean(inside[2 * ranks[-1]]) >= 0.9
    assert np.mean([hit for hits in inside.values() for hit in hits]) >= 0.88


def test_near_predictions_are_close_and_uncertainty_grows_with_distance() -> None:
    truth = Truth()
    found = predicted(truth.runs([1, 2, 4, 8, 16], 5, np.random.default_rng(5)))
    assert found.measured_to == 16 and found.ranks == (32, 64, 128, 256, 512, 1024)
    assert found.seconds[0] == pytest.approx(truth.seconds(32), rel=0.08)
    wide = [high / low for low, high in zip(found.low_s, found.high_s, strict=True)]
    assert wide == sorted(wide) and wide[0] < 1.25 < wide[-1] * 1.1
    for low, middle, high in zip(found.efficiency_low, found.efficiency, found.efficiency_high, strict=True):
        assert 0 < low <= middle <= high
    assert found.efficiency[0] == pytest.approx(truth.seconds(1) / (32 * truth.seconds(32)), rel=0.1)
    json.dumps(asdict(found), allow_nan=False)
    assert "From up to 8 ranks it says" in found.basis and "for 16, which took" in found.basis


def test_two_numbers_of_ranks_give_amdahl_alone_and_a_wide_interval() -> None:
    found = predicted(Truth().runs([1, 2], 5, np.random.default_rng(0)))
    assert "Amdahl's law alone" in found.basis and "two numbers of ranks" in found.basis
    assert found.high_s[0] / found.low_s[0] > 1.5 and found.high_s[-1] / found.low_s[-1] > 10


def test_records_without_a_split_give_amdahl_alone() -> None:
    runs = [{"command": "mf", "ranks": p, "seconds": 10 * (0.1 + 0.9 / p) * noise}
            for p in (1, 2, 4, 8) for noise in (0.99, 1.0, 1.01)]
    found = predicted(runs)
    assert "Amdahl's law alone" in found.basis and "do not say where" in found.basis
    assert found.low_s[0] < 10 * (0.1 + 0.9 / 16) < found.high_s[0]


def test_one_number_of_ranks_predicts_nothing_and_nor_do_1024() -> None:
    truth, random = Truth(), np.random.default_rng(0)
    for ranks in ([4], [512, 1024]):
        (group,) = analyse(truth.runs(ranks, 3, random)).groups
        assert group.prediction is None


def test_runs_without_repeats_are_less_sure() -> None:
    once = predicted(Truth(noise=0).runs([1, 2, 4, 8], 1, np.random.default_rng(0)))
    often = predicted(Truth(noise=0).runs([1, 2, 4, 8], 5, np.random.default_rng(0)))
    assert "noise of 5% taken" in once.basis and "as seen in the repeats" in often.basis
    assert once.high_s[0] / once.low_s[0] > often.high_s[0] / often.low_s[0]


def test_the_basis_says_where_it_was_measured() -> None:
    runs = [record([rank(compute=8 / p, communicate=0.1 * (p > 1))] * p, per_node=8) for p in (1, 2, 4)]
    assert "all ran on one node" in predicted(runs).basis
    runs = [record([rank(compute=8 / p, communicate=0.1 * (p > 1))] * p) for p in (2, 4, 8)]
    assert "as many ranks a node as measured (1)" in predicted(runs).basis


def test_weak_scaling_that_holds_is_predicted_to_hold() -> None:
    runs = [record([rank(compute=8.0 * noise, communicate=0.01 * (p > 1))] * p, scaling="weak", rows=1000 * p)
            for p in (1, 2, 4, 8) for noise in (0.99, 1.0, 1.01)]
    found = predicted(runs)
    assert found.efficiency[0] > 0.9 and found.efficiency_high[-1] > 0.85
    assert "work that grows with the ranks" in found.basis


JUNK = (None, True, -1, 0, 1, 3, 10**30, 1e-320, 1e300, float("nan"), float("inf"), "", "ring", [], [1, "x"], {},
        {"a": 1})


def junk(value: Any, random: np.random.Generator) -> Any:
    """Return ``value`` with something in it, here or deep down, replaced by what does not belong there."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = list(value)[random.integers(len(value))]
        return {**value, key: junk(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        at = int(random.integers(len(value)))
        return [*value[:at], junk(value[at], random), *value[at + 1:]]
    return JUNK[random.integers(len(JUNK))]


def test_whatever_stands_in_records_the_analysis_is_plain_numbers() -> None:
    wire = {"pairs": [{"ranks": [i, (i + 1) % 4], "same_node": False, "alpha_s": 1e-5, "beta_s_per_byte": 1e-9}
                      for i in range(4)], "between_nodes": {"alpha_s": 1e-5, "beta_s_per_byte": 1e-9}}
    more = {"cpu_s": 1.0, "major_faults": 5.0, "disk_bytes": 1e6, "switches": 50.0}
    good = [record([rank(compute=8 / p, read=0.1, communicate=0.1, wait=0.1, **more)] * p, wire=wire, trace=[
        [{"seconds": 1.0, "loss": 0.5, "read": 0.1}]] * p, stragglers=[{"rank": 0, "ratio": 2.0, "host": "n"}],
        examples=1000, epochs=2) for p in (1, 2, 4)]
    result = {"case": "tree float32", "reducer": "tree", "dtype": "float32", "bytes": 1 << 20, "seconds_median": 1.0,
              "seconds_p99": 1.1, "errors": 0}
    bench = {"command": "bench allreduce", "ranks": 4, "nodes": 4, "repeats": 3, "seconds": 1.0, "wire": wire,
             "results": [result]}
    good += [bench, {**bench, "ranks": 2, "nodes": 2}]
    random = np.random.default_rng(0)
    for _ in range(100):
        odd = [junk(one, random) if random.random() < 0.5 else one for one in good]
        told = analyse([one for one in odd if isinstance(one, dict) and "command" in one])
        json.dumps(asdict(told), allow_nan=False)


def test_odd_records_are_survived() -> None:
    odd = record([rank(compute=1.0)] * 2, per_rank=[{"read": "x"}, None], time_split={"read": -1}, hosts=[None],
                 nodes="many", steps=True, parameters=[], wire={"pairs": [{"ranks": [0]}, 3]}, trace=["?"])
    for more in ([], [record([rank()] * 4, work_s=0.5, steps=10**30)],
                 [record([rank(compute=1e-12)] * 8, work_s=1e-9)]):
        analyse([odd, *more, {**odd, "ranks": 1}])
