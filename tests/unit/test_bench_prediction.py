"""All-reduces on more nodes than were measured: from made-up wires, and from times once measured on emulated hosts."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from dml_hpc.comm.cost import cost
from dml_hpc.reports.bench_prediction import BenchPrediction, predict_benches
from dml_hpc.reports.scaling import analyse

MIB = 1 << 20
RATE = 3.125e6
"""Bytes per second of the hosts below: 25 Mbit/s."""

# Seconds by reducer, MiB and number of hosts; one core for every eight hosts, so that 16 are disturbed a little.
MEASURED = {
    ("ring", 4): {2: 1.521, 4: 2.347, 8: 2.705, 16: 3.194}, ("ring", 1): {2: 0.493, 4: 0.636, 8: 0.698, 16: 0.772},
    ("tree", 4): {2: 1.680, 4: 4.818, 8: 7.428, 16: 8.543}, ("tree", 1): {2: 0.463, 4: 1.275, 8: 1.997, 16: 2.666},
    ("mpi", 4): {2: 1.501, 4: 2.898, 8: 3.748, 16: 4.140}, ("mpi", 1): {2: 0.378, 4: 0.789, 8: 0.996, 16: 1.130}}


def bench(nodes: int, seconds: dict[tuple[str, int], float], alpha: float = 1e-4, beta: float = 1.07 / RATE,
          per_node: int = 1) -> dict[str, Any]:
    """Return a record of ``bench allreduce``: ``seconds`` by reducer and bytes."""
    results = [{"case": f"{name} float32", "reducer": name, "dtype": "float32", "bytes": n_bytes, "seconds_median": s,
                "seconds_p99": 1.04 * s, "errors": 0} for (name, n_bytes), s in seconds.items()]
    return {"command": "bench allreduce", "ranks": nodes * per_node, "nodes": nodes, "seconds": 9.0, "repeats": 5,
            "fan_in": 2, "results": results,
            "wire": {"between_nodes": {"alpha_s": alpha, "beta_s_per_byte": beta, "bandwidth_bytes_per_s": 1 / beta}}}


def measured(nodes: int) -> dict[str, Any]:
    return bench(nodes, {(name, size * MIB): times[nodes] for (name, size), times in MEASURED.items()})


@pytest.mark.parametrize(("name", "size"), MEASURED)
def test_from_2_and_4_hosts_8_and_16_are_predicted_within_10_percent(name: str, size: int) -> None:
    (found,) = (one for one in predict_benches([measured(2), measured(4)])
                if (one.case, one.bytes) == (f"{name} float32", size * MIB))
    assert found.measured_nodes == (2, 4) and found.nodes[:2] == (8, 16) and found.nodes[-1] == 1024
    for nodes, seconds, low, high in zip(found.nodes[:2], found.seconds, found.low_s, found.high_s, strict=False):
        assert seconds == pytest.approx(MEASURED[name, size][nodes], rel=0.1)
        assert low < MEASURED[name, size][nodes] < high
    assert found.wire_share > 0.8 and "from 2 and 4 nodes" in found.basis


def test_what_was_measured_last_counts_not_a_prediction_of_it() -> None:
    (found,) = (one for one in predict_benches([measured(n) for n in (2, 4, 8)])
                if (one.case, one.bytes) == ("ring float32", 4 * MIB))
    assert found.measured_nodes == (2, 4, 8) and found.nodes[0] == 16
    assert found.seconds[0] == pytest.approx(MEASURED["ring", 4][16], rel=0.05)
    # How it would have done from the fewest is told, too.
    ((nodes, said, took),) = found.checks
    assert (nodes, took) == (8, 2.705) and said == pytest.approx(took, rel=0.1)
    assert found.hindsight.startswith("From 2 and 4 nodes alone it says")
    assert "for 8 (2.71 s measured, +" in found.hindsight
    assert all(one.hindsight == "" for one in predict_benches([measured(2), measured(4)]))


@pytest.mark.parametrize("name", ["ring", "hierarchical"])
@pytest.mark.parametrize("per_node", [1, 4])
def test_a_reducer_that_does_as_its_model_says_is_predicted_exactly(name: str, per_node: int) -> None:
    alpha, beta = 2e-4, 8e-9

    def seconds(nodes: int, n_bytes: int) -> float:
        found = cost(name, nodes * per_node, nodes, n_bytes)
        assert found is not None
        return found.messages * alpha + found.n_bytes * beta

    records = [bench(nodes, {(name, n): seconds(nodes, n) for n in (1 << 12, 1 << 16, 1 << 20, 1 << 24)}, alpha, beta,
                     per_node) for nodes in (2, 4)]
    found = {one.bytes: one for one in predict_benches(records)}
    for n_bytes in (1 << 20, 1 << 24):
        one = found[n_bytes]
        assert one.ranks_per_node == per_node
        for at, predicted, low, high in zip(one.nodes[:4], one.seconds, one.low_s, one.high_s, strict=False):
            assert predicted == pytest.approx(seconds(at, n_bytes), rel=0.05)
            assert low < seconds(at, n_bytes) < high


@pytest.mark.parametrize(("algorithm", "shape"), [
    ("Rabenseifner", lambda p: 2 * (p - 1) / p), ("half the speed after the first exchange", lambda p: 3 - 4 / p)])
def test_the_librarys_algorithm_is_found_by_what_it_takes(algorithm: str, shape: Any) -> None:
    records = [bench(nodes, {("mpi", 4 * MIB): shape(nodes) * 4 * MIB / RATE}) for nodes in (2, 4)]
    (found,) = predict_benches(records)
    for nodes, seconds in zip((8, 16), found.seconds, strict=False):
        assert seconds == pytest.approx(shape(nodes) * 4 * MIB / RATE, rel=0.05), algorithm
    assert "the library does not say" in found.basis


def test_intervals_cover_noise_and_grow() -> None:
    random = np.random.default_rng(0)
    inside = []
    for _ in range(60):
        def noisy(nodes: int) -> float:
            return float(2 * (nodes - 1) / nodes * 4 * MIB / RATE * np.exp(random.normal(0, 0.02)))

        (found,) = predict_benches([bench(nodes, {("ring", 4 * MIB): noisy(nodes)}, alpha=1e-9) for nodes in (2, 4)])
        truth = [2 * (nodes - 1) / nodes * 4 * MIB / RATE for nodes in found.nodes]
        inside += [low <= true <= high for low, true, high in zip(found.low_s, truth, found.high_s, strict=True)]
        wide = [high / low for low, high in zip(found.low_s, found.high_s, strict=True)]
        assert wide[0] < wide[-1]
    assert np.mean(inside) >= 0.9


def test_what_cannot_be_predicted_is_left_out() -> None:
    good = bench(4, {("ring", MIB): 1.0})
    wrong = bench(2, {("ring", MIB): 1.0})
    wrong["results"][0]["errors"] = 3
    for records in ([good], [good, good], [good, bench(1, {("ring", MIB): 1.0})], [good, wrong],
                    [good, bench(2, {("ring", 2 * MIB): 1.0})], [good, bench(2, {("horovod", MIB): 1.0})],
                    [good, {**bench(2, {("ring", MIB): 1.0}), "command": "bench gradient"}],
                    [good, {**bench(2, {("ring", MIB): 1.0}), "results": ["?", {"reducer": "ring", "bytes": -1}]}],
                    [bench(512, {("ring", MIB): 1.0}), bench(1024, {("ring", MIB): 1.0})]):
        assert predict_benches(records) == ()


def test_an_analysis_brings_them_along_as_plain_numbers() -> None:
    told = analyse([measured(2), measured(4), {**measured(4), "wire": None}]).bench_predictions
    assert len(told) == len(MEASURED) and all(isinstance(one, BenchPrediction) for one in told)
    json.dumps([asdict(one) for one in told], allow_nan=False)
