"""The all-reduce benchmark: what it reports and draws, and that it catches a reducer that sums wrongly."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec

import numpy as np
import pytest

from dml_hpc.comm import REDUCERS
from dml_hpc.comm.elements import DTYPES, storage
from dml_hpc.comm.mpi_library import LibraryReducer
from dml_hpc.commands import bench_allreduce, contestants
from dml_hpc.console import Console
from dml_hpc.errors import AgreedError
from dml_hpc.reports import plots

pytestmark = pytest.mark.mpi

SIZES = (0, 4, 4096, 300_000)


def bench(comm, sizes=SIZES, **options):
    options.setdefault("repeats", 3)
    return bench_allreduce.run(comm, Console(rank=comm.rank), sizes, **options)


class Wrong(LibraryReducer):
    """Sums rightly, but for the last element on rank 0."""

    def allreduce(self):
        super().allreduce()
        if self.comm.rank == 0 and self.size:
            self.buffer[-1] += 1


@pytest.fixture
def wrong_ring(monkeypatch):
    right = contestants.open_reducer

    def open_reducer(name, comm, size, dtype, **options):
        return Wrong(comm, size, dtype) if name == "ring" else right(name, comm, size, dtype, **options)

    monkeypatch.setattr(contestants, "open_reducer", open_reducer)


@pytest.fixture
def shared_path(comm, tmp_path):
    """A folder that every rank knows; pytest gives each rank its own."""
    return comm.bcast(tmp_path)


def test_results(comms, capsys):
    p = comms.size
    result = bench(comms)
    assert "exit_code" not in result
    rows = result["results"]
    assert [(row["case"], row["bytes"]) for row in rows] == [(f"{r} float32", size) for size in SIZES for r in REDUCERS]
    assert result["nodes"] == 1 and result["dtypes"] == ["float32"]
    for row in rows:
        assert row["errors"] == 0 and row["relative_error"] is None
        assert 0 < row["seconds_median"] <= row["seconds_p99"]
        assert row["of_limit"] is None  # no wire between nodes
        wire = row["bytes"] / row["seconds_median"] * 2 * (p - 1) / p
        assert row["bus_bandwidth_bytes_per_s"] == (pytest.approx(wire) if p > 1 else None)
        mpi = next(r for r in rows if r["reducer"] == "mpi" and r["bytes"] == row["bytes"])
        assert row["vs"] == {"mpi": pytest.approx(mpi["seconds_median"] / row["seconds_median"])}
    json.dumps(result, allow_nan=False)
    printed = capsys.readouterr().out
    assert ("300000" in printed) == (comms.rank == 0)


def test_the_wire_and_a_model_of_each_reducer(comms):
    result = bench(comms)
    if comms.size == 1:
        assert result["wire"] is None and result["models"] == []
        return
    wire = result["wire"]
    assert wire["between_nodes"] is None
    assert {key: wire[key] for key in wire["within_node"]} == wire["within_node"]
    assert wire["alpha_s"] > 0 and wire["beta_s_per_byte"] > 0
    assert wire["bandwidth_bytes_per_s"] == pytest.approx(1 / wire["beta_s_per_byte"])
    first, second = wire["alpha_ranks"]
    assert second == (first + 1) % comms.size
    assert comms.bcast(wire) == wire
    assert [model["reducer"] for model in result["models"]] == list(REDUCERS)
    for model in result["models"]:
        assert model["alpha_s"] >= 0 and model["beta_s_per_byte"] >= 0 and model["relative_error"] >= 0
        rows = [row for row in result["results"] if row["case"] == model["case"] and row["bytes"]]
        for row, cost in zip(rows, model["costs"], strict=True):
            assert row["seconds_model"] == pytest.approx(
                cost["messages"] * model["alpha_s"] + cost["link_bytes"] * model["beta_s_per_byte"])


def test_one_size_gives_no_model(comm):
    result = bench(comm, sizes=(4096,), reducers=("ring",))
    assert all(model["alpha_s"] is None and model["bandwidth_bytes_per_s"] is None for model in result["models"])
    assert result["results"][0]["seconds_model"] is None


def test_the_share_of_the_limit_between_nodes(comm, monkeypatch, capsys):
    if comm.size == 1:
        return
    monkeypatch.setattr(bench_allreduce, "nodes_of", lambda comm: [rank * 2 // comm.size for rank in range(comm.size)])
    result = bench(comm, sizes=(0, 1 << 20), reducers=("mpi",))
    between = result["wire"]["between_nodes"]
    assert result["nodes"] == 2
    assert (result["wire"]["within_node"] is None) == (comm.size == 2)
    empty, row = result["results"]
    assert empty["of_limit"] is None
    # 2 (n − 1)/n · bytes / bandwidth, with n = 2 nodes
    assert row["of_limit"] == pytest.approx((1 << 20) / between["bandwidth_bytes_per_s"] / row["seconds_median"])
    if comm.rank == 0:
        assert "of limit" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_become_whole_elements_and_every_type_is_exact(comm, dtype):
    result = bench(comm, sizes=(1, 2, 1001, 100_000), dtypes=(dtype,), repeats=2)
    itemsize = storage(dtype).itemsize
    assert sorted({row["bytes"] for row in result["results"]}) == [itemsize, -(-1001 // itemsize) * itemsize, 100_000]
    assert {row["dtype"] for row in result["results"]} == {dtype}
    assert not any(row["errors"] for row in result["results"])


def test_all_types_in_one_run(comm):
    result = bench(comm, sizes=(1000,), dtypes=DTYPES, reducers=("mpi", "tree"), repeats=1)
    assert [row["case"] for row in result["results"]] == [f"{name} {dtype}" for dtype in DTYPES
                                                          for name in ("mpi", "tree")]


def test_without_mpi_there_is_nothing_to_compare_with(comm):
    result = bench(comm, sizes=(64,), reducers=("ring",), repeats=1)
    assert result["results"][0]["vs"] is None


def test_auto_says_what_it_took(comm, capsys):
    result = bench(comm, sizes=(64,), reducers=("auto",), repeats=1)
    assert result["results"][0]["choice"].split(",")[0] in REDUCERS
    assert result["models"] == []
    if comm.rank == 0:
        assert f"auto took {result['results'][0]['choice']}" in capsys.readouterr().out


def test_compressed_sums(comm):
    result = bench(comm, sizes=(0, 40_000), reducers=("mpi", "ring"), compressions=("none", "bfloat16", "topk"),
                   dtypes=("float32", "int64"))
    rows = [row for row in result["results"] if row["dtype"] == "float32" and row["bytes"]]
    assert [row["reducer"] for row in rows] == ["mpi", "ring", "mpi+bfloat16", "ring+bfloat16", "topk"]
    assert [row["reducer"] for row in result["results"] if row["dtype"] == "int64" and row["bytes"]] == ["mpi", "ring"]
    assert not any(row["errors"] for row in rows)
    assert [row["relative_error"] for row in rows[:2]] == [None, None]
    assert all(1e-4 < row["relative_error"] < 1e-2 for row in rows[2:4])
    assert 0.5 < rows[4]["relative_error"] < 1  # most of a vector is yet to come
    assert {model["reducer"] for model in result["models"]} == ({"mpi", "ring"} if comm.size > 1 else set())


def test_what_would_disturb_the_others_runs_in_its_own_turns(comm, monkeypatch):
    monkeypatch.setattr(contestants.Contestant, "restless", property(lambda one: one.name == "ring"))
    result = bench(comm, sizes=(4096,))
    assert not any(row["errors"] for row in result["results"])


def test_peers(comm, capsys):
    result = bench(comm, sizes=(0, 1001, 100_000), reducers=("mpi", "ring"), with_peers=True,
                   dtypes=("float32", "float16"))
    rows = [row for row in result["results"] if row["dtype"] == "float32"]
    assert [row["reducer"] for row in rows[:3]] == ["mpi", "ring", "MPI_Allreduce"]
    assert not any(row["errors"] for row in rows)
    assert set(rows[0]["vs"]) == {row["reducer"] for row in rows} - {"ring"}
    assert "MPI_Allreduce" not in {row["reducer"] for row in result["results"] if row["dtype"] == "float16"}
    printed = capsys.readouterr().out
    if comm.rank == 0:
        assert ("install_horovod.sh" in printed) == (find_spec("horovod") is None)
        assert ("pip install torch" in printed) == (find_spec("torch") is None)
        assert "does not sum float16, so not measured: MPI_Allreduce" in printed


def test_wrong_sums_are_counted_and_fail_the_run(comm, wrong_ring, capsys):
    result = bench(comm, sizes=(0, 4096), reducers=("mpi", "ring"), repeats=5)
    errors = {(row["reducer"], row["bytes"]): row["errors"] for row in result["results"]}
    checks = 5 + bench_allreduce.WARM_UPS
    assert errors == {("mpi", 0): 0, ("ring", 0): 0, ("mpi", 4096): 0, ("ring", 4096): checks}  # one element, one rank
    assert result["exit_code"] == 1
    if comm.rank == 0:
        assert f"{checks} elements were summed WRONGLY" in capsys.readouterr().out


def test_of_compressed_sums_what_differs_between_ranks_is_wrong(comm, monkeypatch):
    def open_reducer(name, comm, size, dtype, **options):
        reducer = LibraryReducer(comm, size, dtype)
        right = reducer.allreduce

        def allreduce():
            right()
            if comm.rank == comm.size - 1:
                reducer.total[3:5] += 1

        reducer.allreduce = allreduce
        return reducer

    monkeypatch.setattr(contestants, "open_reducer", open_reducer)
    result = bench(comm, sizes=(4096,), reducers=("mpi",), compressions=("float16",), repeats=1)
    checks = 1 + bench_allreduce.WARM_UPS
    assert result["results"][0]["errors"] == (2 * checks if comm.size > 1 else 0)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"reducers": ("mpi", "rign")}, r"unknown reducer 'rign' \(did you mean 'ring'\?\)"),
    ({"dtypes": ("float23",)}, r"unknown dtype 'float23' \(did you mean 'float32'\?\)"),
    ({"compressions": ("topp",)}, r"unknown compression 'topp' \(did you mean 'topk'\?\)"),
    ({"compressions": ("topk",), "dtypes": ("int64",)}, "compression sums float32, not int64"),
    ({"sizes": (4, -1)}, "a size of -1"),
    ({"sizes": ()}, "nothing to measure"),
    ({"reducers": ()}, "nothing to measure"),
    ({"repeats": 0}, "repeats of 0"),
    ({"fan_in": 0}, "fan-in of 0"),
    ({"sizes": (1 << 50,)}, r"4 all-reduces of 1125899.9 GB need about \d+.* free; name smaller --sizes"),
])
def test_nonsense_is_refused_by_all_ranks(comm, wrong, message):
    with pytest.raises(AgreedError, match=message) as refusal:
        bench(comm, **wrong)
    assert refusal.value.exit_code == 2


@pytest.mark.maths
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_figure(comm, shared_path, ending):
    plot = shared_path / f"figure.{ending}"
    bench(comm, plot=plot, dtypes=("float32", "bfloat16"), compressions=("none", "bfloat16"))
    assert comm.bcast(os.listdir(shared_path)) == [plot.name]
    if comm.rank == 0:
        assert plot.read_bytes().startswith(b"\x89PNG" if ending == "png" else b"<svg")


@pytest.mark.parametrize(("name", "message"), [
    ("figure.pgn", r"a figure ends in .png or .svg \(did you mean '.png'\?\)"), ("figure", "a figure ends in"),
    ("there.svg", "give --overwrite to replace it"), ("no/figure.png", "does not exist; make it first"),
])
def test_a_figure_that_cannot_be_written_is_refused_before_anything_is_measured(comm, shared_path, name, message,
                                                                                monkeypatch):
    if comm.rank == 0:
        (shared_path / "there.svg").write_text("old")
    comm.Barrier()
    monkeypatch.setattr(bench_allreduce, "measure", None)
    with pytest.raises(AgreedError, match=message) as refusal:
        bench(comm, plot=shared_path / name)
    assert refusal.value.exit_code == 2


def test_nothing_is_left_of_a_figure_that_fails(comm, shared_path, monkeypatch):
    def save_png(figure, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plots, "save_png", save_png)
    with pytest.raises(AgreedError, match=r"cannot write .*figure\.png: No space left") as refusal:
        bench(comm, sizes=(64,), plot=shared_path / "figure.png")
    assert refusal.value.exit_code == 2
    comm.Barrier()
    assert os.listdir(shared_path) == []


def test_a_vector_of_no_bytes_cannot_be_drawn(comm, shared_path):
    with pytest.raises(AgreedError, match="nothing to draw"):
        bench(comm, sizes=(0,), plot=shared_path / "figure.png")


def test_ranks_hold_other_addends_and_know_the_sum(comm):
    from dml_hpc.comm.addends import Addends, decode, differing

    for dtype in DTYPES:
        addends = Addends(comm.rank, comm.size, dtype)
        buffer = np.zeros(25_001, storage(dtype))
        addends.write(buffer)
        everyone = comm.allgather(decode(buffer, dtype))
        assert len({one.tobytes() for one in everyone}) == comm.size
        total = sum(everyone)
        wrong = total.copy()
        wrong[-1] += 1
        for values, count in ((total, 0), (wrong, 1)):
            held = values.astype(np.float32).view(np.uint32) >> 16 if dtype == "bfloat16" else values
            assert addends.wrong(held.astype(storage(dtype))) == count
        assert differing(comm, buffer) == 0 if comm.rank == 0 else differing(comm, buffer) > 0
