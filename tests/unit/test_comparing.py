"""Comparisons of two sets of records, and efficiencies that are too low."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs_support import rank, record

from dml_hpc.cli import main
from dml_hpc.reports.comparing import compare
from dml_hpc.reports.scaling import analyse
from dml_hpc.reports.verdicts import judged, shortfalls


def runs(seconds: dict[int, float], noise: float = 0.01, repeats: int = 5, seed: int = 0, **more: Any) -> list[Any]:
    random = np.random.default_rng(seed)
    return [record([rank(compute=t * (1 + random.normal(0, noise)))] * p, **more)
            for p, t in seconds.items() for _ in range(repeats)]


def test_what_got_slower_beyond_noise_is_told_first() -> None:
    before = analyse(runs({1: 8.0, 2: 4.0, 4: 2.0}))
    after = analyse(runs({1: 8.0, 2: 4.4, 4: 1.6}, seed=1))
    found = compare(before, after)
    assert [(one.ranks, one.verdict) for one in found] == [(2, "slower"), (4, "faster"), (1, "same")]
    slower = found[0]
    assert slower.job == before.groups[0].label and slower.low is not None and slower.high is not None
    assert 1 < slower.low < slower.ratio < slower.high and abs(slower.ratio - 1.1) < 0.03


def test_noise_is_no_change_and_small_changes_are_none_however_sure() -> None:
    wild = compare(analyse(runs({2: 4.0}, noise=0.2)), analyse(runs({2: 4.4}, noise=0.2, seed=1)))
    assert [one.verdict for one in wild] == ["same"]
    sure = compare(analyse(runs({2: 4.0}, noise=0.0001)), analyse(runs({2: 4.04}, noise=0.0001, seed=1)))
    assert [one.verdict for one in sure] == ["same"] and sure[0].low is not None and sure[0].low > 1


def test_equal_jobs_are_hardly_ever_called_changed() -> None:
    wrong = 0
    for seed in range(60):
        before, after = (analyse(runs({2: 4.0}, 0.05, 5, 2 * seed + at)) for at in (0, 1))
        wrong += compare(before, after)[0].verdict != "same"
    assert wrong <= 6


def test_too_few_runs_say_nothing_and_strangers_are_not_compared() -> None:
    before = analyse(runs({1: 8.0, 2: 4.0}, repeats=2))
    after = analyse([*runs({1: 9.0, 4: 4.0}, repeats=5), *runs({1: 9.0}, allreduce="tree")])
    (one,) = compare(before, after)
    assert (one.ranks, one.verdict, one.low, one.high) == (1, "unknown", None, None)


def test_the_job_decides_not_the_name_that_its_neighbours_give_it() -> None:
    alone = analyse(runs({2: 4.0}, epochs=3))
    among = analyse([*runs({2: 5.0}, epochs=3), *runs({2: 5.0}, epochs=4)])
    assert alone.groups[0].label != among.groups[0].label or alone.groups[0].short != among.groups[0].short
    assert [one.verdict for one in compare(alone, among)] == ["slower"]


def test_benchmarks_are_compared_case_by_case() -> None:
    def bench(seconds: float) -> dict[str, Any]:
        return {"command": "bench allreduce", "ranks": 4, "seconds": 9.0, "results": [
            {"case": "ring float32", "bytes": 1024, "seconds_median": seconds},
            {"case": "mpi float32", "bytes": 1024, "seconds_median": 1e-3}]}

    before = analyse([bench(t) for t in (1.0e-3, 1.01e-3, 0.99e-3)])
    after = analyse([bench(t) for t in (1.5e-3, 1.51e-3, 1.49e-3)])
    found = compare(before, after)
    assert [one.verdict for one in found] == ["slower", "same"] and "ring float32, 1 KiB" in found[0].job


def test_a_shortfall_has_a_line_for_each_job() -> None:
    groups = analyse([*runs({1: 8.0, 2: 4.1, 4: 3.0}, 0.0), *runs({1: 8.0, 4: 2.1}, 0.0, allreduce="tree"),
                      *runs({1: 8.0}, 0.0, allreduce="mpi")]).groups
    (line,) = shortfalls(groups, 0.8)
    assert groups[0].label in line and "66.7% at 4 ranks" in line and "below 80.0%" in line
    assert shortfalls(groups, 0.5) == () and len(judged(groups)) == 2


def test_the_command_line_fails_under_an_efficiency_and_compares_two_files(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for name, seconds in (("before", {1: 8.0, 2: 4.1}), ("after", {1: 8.0, 2: 6.0})):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(one) + "\n" for one in runs(seconds)))
    before, after = map(str, files)

    def report(*arguments: str) -> int:
        return main(["report", *arguments])

    assert report(before, "--fail-under", "0.8") == 0
    assert report(after, "--fail-under", "0.8") == 1
    assert "efficiency 66." in capsys.readouterr().out
    assert report("--compare", before, after, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["ranks"], one["verdict"]) for one in told["changes"]] == [(2, "slower"), (1, "same")]
    assert report() == 2 and report("--compare", before) == 2 and report(after, "--fail-under", "0") == 2


def test_cost_in_node_hours_and_what_half_the_nodes_would_have_cost() -> None:
    found = analyse(runs({2: 2000.0, 4: 1250.0}, 0.0, examples=5_000_000, epochs=10)).groups[0]
    first, last = found.points
    assert (first.nodes, last.nodes) == (2, 4)
    assert first.node_hours == 2 * 2000 / 3600 and last.node_hours == 4 * 1250 / 3600
    assert (last.node_hours_per_million, last.node_hours_per_epoch) == pytest.approx((1.388889 / 5, 1.388889 / 10))
    assert found.cost is not None and "cost 20% less and taken 60% longer" in found.cost
    assert analyse([{**one, "nodes": None, "hosts": None} for one in runs({2: 2.0})]).groups[0].cost is None
