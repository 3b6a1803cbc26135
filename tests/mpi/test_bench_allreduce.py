"""The all-reduce benchmark: what it reports, and that it catches a reducer that sums wrongly."""

from __future__ import annotations

import json

import pytest

from dml_hpc.comm import REDUCERS
from dml_hpc.comm.mpi_library import LibraryReducer
from dml_hpc.commands import bench_allreduce
from dml_hpc.console import Console
from dml_hpc.errors import AgreedError

pytestmark = pytest.mark.mpi

SIZES = (0, 4, 4096, 300_000)


def bench(comm, sizes=SIZES, reducers=REDUCERS, dtype="float32", repeats=3, fan_in=2):
    return bench_allreduce.run(comm, Console(rank=comm.rank), sizes, reducers, dtype, repeats, fan_in)


class Wrong(LibraryReducer):
    """Sums rightly, but for the last element on rank 0."""

    def allreduce(self):
        super().allreduce()
        if self.comm.rank == 0 and self.size:
            self.buffer[-1] += 1


def test_results(comms, capsys):
    result = bench(comms)
    assert "exit_code" not in result
    assert [row["case"] for row in result["results"]] == [f"{r} {size}" for size in SIZES for r in REDUCERS]
    for row in result["results"]:
        assert set(row) >= {"case", "bytes", "seconds_median", "seconds_p99", "bus_bandwidth_bytes_per_s",
                            "errors", "vs"}
        assert row["errors"] == 0
        assert 0 < row["seconds_median"] <= row["seconds_p99"]
        if comms.size == 1:
            assert row["bus_bandwidth_bytes_per_s"] is None
        else:
            wire = row["bytes"] / row["seconds_median"] * 2 * (comms.size - 1) / comms.size
            assert row["bus_bandwidth_bytes_per_s"] == pytest.approx(wire)
    for row in result["results"]:
        mpi = next(r for r in result["results"] if r["case"] == f"mpi {row['bytes']}")
        assert row["vs"] == {"mpi": pytest.approx(mpi["seconds_median"] / row["seconds_median"])}
    json.dumps(result, allow_nan=False)
    printed = capsys.readouterr().out
    assert ("300000" in printed) == (comms.rank == 0)


@pytest.mark.parametrize("dtype", bench_allreduce.DTYPES)
def test_sizes_become_whole_elements_and_every_type_is_exact(comm, dtype):
    result = bench(comm, sizes=(1, 2, 1001), dtype=dtype, repeats=2)
    itemsize = 4 if dtype == "float32" else 8
    assert sorted({row["bytes"] for row in result["results"]}) == [itemsize, -(-1001 // itemsize) * itemsize]
    assert not any(row["errors"] for row in result["results"])


def test_without_mpi_there_is_nothing_to_compare_with(comm):
    result = bench(comm, sizes=(64,), reducers=("ring",), repeats=1)
    assert result["results"][0]["vs"] is None


def test_wrong_sums_are_counted_and_fail_the_run(comm, monkeypatch, capsys):
    right = bench_allreduce.open_reducer

    def open_reducer(name, comm, size, dtype, **options):
        return Wrong(comm, size, dtype) if name == "ring" else right(name, comm, size, dtype, **options)

    monkeypatch.setattr(bench_allreduce, "open_reducer", open_reducer)
    result = bench(comm, sizes=(0, 4096), reducers=("mpi", "ring"), repeats=5)
    errors = {row["case"]: row["errors"] for row in result["results"]}
    checks = 5 + bench_allreduce.WARM_UPS
    assert errors == {"mpi 0": 0, "ring 0": 0, "mpi 4096": 0, "ring 4096": checks}  # one element, on one rank
    assert result["exit_code"] == 1
    if comm.rank == 0:
        assert f"{checks} elements were summed WRONGLY" in capsys.readouterr().out


@pytest.mark.parametrize(("wrong", "message"), [
    ({"reducers": ("mpi", "rign")}, r"unknown reducer 'rign' \(did you mean 'ring'\?\)"),
    ({"dtype": "float23"}, r"unknown dtype 'float23' \(did you mean 'float32'\?\)"),
    ({"sizes": (4, -1)}, "a size of -1"),
    ({"sizes": ()}, "nothing to measure"),
    ({"repeats": 0}, "repeats of 0"),
    ({"fan_in": 0}, "fan-in of 0"),
])
def test_nonsense_is_refused_by_all_ranks(comm, wrong, message):
    with pytest.raises(AgreedError, match=message) as refusal:
        bench(comm, **wrong)
    assert refusal.value.exit_code == 2
