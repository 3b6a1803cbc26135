"""The cost model against hand-made counts, the fit against made-up times, and who plays ping-pong with whom."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dml_hpc.comm import REDUCERS
from dml_hpc.comm.addends import Addends, whole_numbers
from dml_hpc.comm.cost import Cost, cost, fit, least_seconds
from dml_hpc.comm.elements import DTYPES
from dml_hpc.comm.wire import Wire, phases
from dml_hpc.memory import free_bytes
from dml_hpc.reports.allreduce import Measured, limit_bus_bandwidth, models, rows, wires
from dml_hpc.reports.plots import allreduce_figure, as_svg

MIB = 1 << 20


@pytest.mark.parametrize(("name", "ranks", "nodes", "n_bytes", "fan_in", "messages", "link_bytes"), [
    ("ring", 2, 1, 1000, 2, 2, 1000),
    ("ring", 8, 8, 8000, 2, 14, 14_000),
    ("ring", 4, 1, 4 * MIB, 2, 6 * 4, 6 * MIB),  # blocks of 1 MiB, four segments each
    ("ring", 4, 2, 8000, 2, 6, 12_000),  # a ring crosses a node's link once
    ("ring", 4, 1, 0, 2, 6, 0),
    ("mpi", 8, 1, 8000, 2, 6, 14_000),
    ("mpi", 5, 1, 5000, 2, 6, 8000),
    ("mpi", 8, 2, 8000, 2, 6, 8000),
    ("tree", 8, 8, 1000, 2, 3, 3000),  # doubling
    ("tree", 6, 6, 1000, 2, 4, 4000),  # doubling among four, and two ranks beside
    ("tree", 8, 2, 1000, 2, 3, 4000),  # of three steps one goes between nodes, four ranks at a time
    ("tree", 2, 2, 100_000, 2, 2, 200_000),  # up and down, one segment
    ("tree", 4, 4, 100_000, 2, 6, 600_000),  # rank 3 to 1, then 1 and 2 to 0
    ("tree", 4, 4, 100_000, 3, 6, 600_000),  # all three to 0
    ("tree", 4, 4, 100_000, 9, 6, 600_000),
    ("tree", 4, 4, 100_000, 1, 6, 600_000),  # a chain
    ("tree", 4, 4, 16 * MIB, 1, 2 * (2 + 64), 2 * (2 + 64) * 16 * MIB / 64),  # of many segments it is a pipeline
    ("tree", 4, 2, 64 * MIB, 2, 2 * (1 + 64 * 2), 2 * (1 + 64 * 2) * MIB),  # 2 and 3 send to 0 and 1
    ("hierarchical", 4, 1, 4000, 2, 2, 3000),
    ("hierarchical", 8, 4, 8000, 2, 6, 12_000),
    ("hierarchical", 4, 4, 8000, 2, 6, 12_000),  # one rank a node: the ring
])
def test_costs_by_hand(name, ranks, nodes, n_bytes, fan_in, messages, link_bytes):
    assert cost(name, ranks, nodes, n_bytes, fan_in) == pytest.approx((messages, link_bytes))


def test_what_has_no_model():
    assert cost("ring", 1, 1, 1000) is None
    assert cost("gloo", 4, 1, 1000) is None


@pytest.mark.parametrize("nodes", [2, 3, 7])
def test_no_model_is_below_the_limit(nodes):
    for name in REDUCERS:
        for ranks in (nodes, 4 * nodes):
            found = cost(name, ranks, nodes, MIB)
            assert found.n_bytes / 1e9 >= least_seconds(MIB, nodes, 1e9) * (1 - 1e-12)


def test_the_limit_of_the_emulated_cluster():
    # 16 MiB over 8 hosts at 1 Gbit/s: 2 · 7/8 · 16 MiB / 125 MB/s
    assert least_seconds(16 * MIB, 8, 125e6) == pytest.approx(0.235, abs=1e-3)


def test_a_fit_finds_what_made_the_times():
    costs = [cost("ring", 8, 8, n) for n in (0, 1024, 65536, MIB, 64 * MIB)]
    found = fit(costs, [one.messages * 2e-6 + one.n_bytes * 1e-9 for one in costs])
    assert found == pytest.approx((2e-6, 1e-9, 0), abs=1e-12)
    assert found.seconds(Cost(10, 1e9)) == pytest.approx(1.00002)


def test_a_fit_counts_every_size_alike():
    costs = [Cost(1, n) for n in (1, 1000, 1_000_000)]
    exact = [1e-6 + one.n_bytes * 1e-9 for one in costs]
    small_off = fit(costs, [exact[0] * 1.1, *exact[1:]])
    large_off = fit(costs, [*exact[:2], exact[2] * 1.1])
    assert small_off.relative_error == pytest.approx(large_off.relative_error, rel=0.5)


def test_neither_constant_is_negative():
    falling = fit([Cost(2, 1000), Cost(2, 2000)], [2e-6, 1e-6])
    assert falling.beta_s_per_byte == 0 and falling.alpha_s > 0
    steep = fit([Cost(2, 1000), Cost(2, 2000)], [1e-6, 1e-5])
    assert steep.alpha_s == 0 and steep.beta_s_per_byte > 0


@pytest.mark.parametrize("costs", [[Cost(2, 1000)], [Cost(2, 1000)] * 3, [Cost(2, 0), Cost(2, 0)],
                                   [Cost(2, 1000), Cost(4, 2000)]])
def test_what_cannot_be_told_apart_is_not_fitted(costs):
    assert fit(costs, [1e-6 * (1 + i) for i in range(len(costs))]) is None


@pytest.mark.parametrize(("nodes", "most"), [([0] * 6, 6), ([0, 1, 2, 3, 4, 5], 2), ([0, 1, 2, 3, 4], 3),
                                             ([0, 0, 0, 3, 3, 3], 4), ([0, 1, 0, 1, 0, 1], 6)])
def test_a_node_plays_one_game_at_a_time(nodes, most):
    pairs = [(rank, (rank + 1) % len(nodes)) for rank in range(len(nodes))]
    divided = phases(pairs, nodes)
    assert sorted(pair for phase in divided for pair in phase) == sorted(pairs)
    assert len(divided) <= most
    for phase in divided:
        ends = [node for pair in phase for node in {nodes[rank] for rank in pair}]
        assert len(ends) == len(set(ends))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ranks", [1, 2, 31, 256, 257, 512, 1000])
def test_every_order_of_adding_is_exact(dtype, ranks):
    magnitudes = sum(np.abs(whole_numbers(rank, ranks, dtype)) for rank in range(ranks))
    assert 0 < magnitudes.max() <= {"bfloat16": 2**8, "float16": 2**11}.get(dtype, 2**24)


def test_distances():
    addends = Addends(0, 1, "float32", exact=False)
    total = np.zeros(25_000, np.float32)
    addends.write(total)
    assert addends.squares(total)[0] == 0
    apart, length = addends.squares(total * np.float32(1.5))
    assert apart == pytest.approx(length / 4) and length == pytest.approx(float(np.square(total, dtype=float).sum()))


def results(wire=None, nodes=1):
    measured = [Measured(name, "float32", n, [k * (1e-5 + n * 1e-9)] * 3, 1, 0, None, None)
                for n in (1024, MIB, 64 * MIB) for k, name in enumerate(("mpi", "ring", "gloo"), 1)]
    return rows(measured, ["mpi", "gloo"], 4, nodes, wire)


def test_rows_and_models():
    wire = Wire(2e-5, 1e-9, (1, 2), (3, 0))
    found = results(wire, nodes=2)
    assert found[1]["vs"] == {"mpi": pytest.approx(0.5), "gloo": pytest.approx(1.5)}
    assert found[0]["of_limit"] == pytest.approx(1024e-9 / (1e-5 + 1024e-9))
    fitted = models(found, 4, 2, 2)
    assert [model["reducer"] for model in fitted] == ["mpi", "ring"]
    assert found[2]["seconds_model"] is None and found[1]["seconds_model"] > 0
    told = wires(Wire(1e-6, 2e-9, (0, 1), (2, 3)), wire)
    assert (told["alpha_s"], told["alpha_ranks"]) == (2e-5, [1, 2])
    assert (told["beta_s_per_byte"], told["beta_ranks"]) == (2e-9, [2, 3])
    assert limit_bus_bandwidth(told, 4, 2) == pytest.approx(1e9 * (2 * 3 / 4) / (2 * 1 / 2))
    assert limit_bus_bandwidth(wires(wire, None), 4, 1) is None and wires(None, None) is None
    json.dumps([found, fitted, told], allow_nan=False)


def test_a_figure_says_what_it_shows():
    found = results()
    models(found, 4, 1, 2)
    found[1]["errors"] = 3
    found.append({**found[0], "bytes": 0})
    svg = as_svg(allreduce_figure(found, 4, 1e9), "figure")
    for text in ("mpi", "ring (WRONG)", "gloo", "64 MiB", "bus bandwidth, GB/s", "float32, 4 ranks", "dotted",
                 "wire's limit"):
        assert text in svg, text


def test_labels_stand_beside_their_curves():
    figure = allreduce_figure(results(), 4)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    for name, seconds in (("mpi", 1), ("ring", 2), ("gloo", 3)):
        end = axes.transAxes.inverted().transform(axes.transData.transform((MIB, seconds * (1e-5 + 64e-3 * 1.048576))))
        assert heights[name] == pytest.approx(end[1], abs=0.1)


def test_memory_is_known_and_limited(tmp_path, monkeypatch):
    from dml_hpc import memory as node_memory

    free = free_bytes()
    assert free is not None and free > MIB
    group = tmp_path / "group"
    group.mkdir()
    for name, text in (("max", "5000"), ("current", "4000"), ("stat", "anon 1\ninactive_file 300\n")):
        (group / f"memory.{name}").write_text(text)
    assert node_memory._left(group, 9999) == 1300
    (group / "memory.max").write_text("max\n")
    assert node_memory._left(group, 9999) == 9999
    assert node_memory._left(tmp_path / "none", 9999) == 9999


@pytest.mark.maths
@pytest.mark.job
def test_the_command(mpirun, tmp_path):
    plot, record = tmp_path / "figure.png", tmp_path / "runs.jsonl"
    done = mpirun(2, "-m", "dml_hpc", "bench", "allreduce", "--sizes", "0,1K,1M", "--dtypes", "float32,bfloat16",
                  "--compressions", "none,float16", "--repeats", 2, "--peers", "-o", plot, "--record", record, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert json.loads(record.read_text())["results"] == result["results"]
    assert {"results", "models", "wire", "nodes", "dtypes"} <= set(result)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.maths
@pytest.mark.job
@pytest.mark.parametrize(("arguments", "says"), [
    (["--sizes", "900000G"], "name smaller --sizes"), (["-o", "figure.pdf"], "a figure ends in .png or .svg"),
    (["--plot", "no/such/figure.png"], "does not exist"), (["--reducers", "rign"], "did you mean 'ring'"),
    (["--dtypes", "float8"], "'float8' is not one of"), (["--compressions", "zip"], "'zip' is not one of"),
])
def test_refusals_are_one_line(arguments, says, mpirun):
    done = mpirun(2, "-m", "dml_hpc", "bench", "allreduce", *arguments)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("dml-hpc:")]
    assert len(lines) == 1 and says in lines[0], done.stderr
