"""Faults of real jobs must be found in the records that these wrote, by name."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_support import write_dataset
from handicapped import TAKEN_BYTES, forget
from test_emulated_cluster import finish, real, start

from dml_hpc.reports.evidence import SWITCHES_PER_S
from dml_hpc.reports.records import read_records
from dml_hpc.reports.scaling import analyse
from dml_hpc.usage import since, usage

HANDICAPPED = Path(__file__).with_name("handicapped.py")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 8 MiB."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((100_000, 20), np.float32)
    return write_dataset(tmp_path_factory.mktemp("data") / "rows", X, X[:, 0] > 0, [50_000, 50_000])


def found(record: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the only record, and what was found in it: what is said of each cause, by its kind, the worst first."""
    (told,) = records = read_records([record])
    (group,) = analyse(records).groups
    assert group.explanation is not None
    return told, {one.kind: f"{one.text}. {one.change}" for one in group.explanation.findings}


@pytest.mark.maths
@pytest.mark.job
def test_a_slow_rank_is_named(mpirun, rows, tmp_path):
    record = tmp_path / "runs.jsonl"
    done = mpirun(2, HANDICAPPED, "slow", 1, "train", rows, "-o", tmp_path / "m.h5", "--algorithm", "sync",
                  "--allreduce", "mpi", "--steps", 40, "--record", record, "--probe")
    assert done.returncode == 0, done.stderr
    told, causes = found(record)
    text = causes.get("slow_rank", "")
    if told["per_rank"][1]["switches"] >= SWITCHES_PER_S * told["work_s"]:
        text = text or causes.get("oversubscribed", "")  # others want the cores here, and that comes first
    else:
        assert "took 1." in text and "--rebalance" in text
    assert f"rank 1 on {platform.node()} " in text, causes
    assert told["nodes"] == 1 and told["hosts"] == [platform.node()] * 2 and told["launcher"] in ("mpich", "openmpi")
    for own in told["per_rank"]:
        assert 0 < own["cpu_s"] < 4 * told["work_s"] and own["major_faults"] >= 0 and own["switches"] >= 0
    (pair,) = told["wire"]["pairs"]
    assert pair["ranks"] == [0, 1] and pair["same_node"] is True and pair["alpha_s"] > 0
    for points in told["trace"]:
        assert {"read", "compute", "communicate", "wait"} <= set(points[-1])
    assert not list(tmp_path.glob("*.live*")), "the live file goes when the record is written"


@pytest.mark.maths
@pytest.mark.job
def test_a_slow_disk_is_told_from_a_slow_rank(mpirun, rows, tmp_path):
    record = tmp_path / "runs.jsonl"
    shard = rows / "part-00000.h5"
    forget(shard)
    before = usage()
    shard.read_bytes()
    on_disk = (since(before)["disk_bytes"] or 0) > 0  # and not in a file system in memory
    done = mpirun(2, HANDICAPPED, "disk", 1, "train", rows, "-o", tmp_path / "m.h5", "--algorithm", "sync",
                  "--batch-size", "full", "--epochs", 4, "--allreduce", "mpi", "--memory-limit",
                  TAKEN_BYTES + (2 << 20), "--record", record)
    assert done.returncode == 0, done.stderr
    told, causes = found(record)
    assert {own["rows_are"] for own in told["per_rank"]} == {"streamed"}
    assert next(iter(causes)) == "slow_disk" and "slow_rank" not in causes
    text = causes["slow_disk"]
    assert f"the disk is slow for rank 1 on {platform.node()} alone" in text
    if on_disk:
        assert all(own["disk_bytes"] > 1 << 20 for own in told["per_rank"]) and "B/s a rank" in text


@pytest.mark.maths
@real
def test_a_narrow_link_is_named_by_its_host(rows, tmp_path):
    record = tmp_path / "runs.jsonl"
    process = start(4, "--rate", "50mbit", "--", sys.executable, HANDICAPPED, "link", 1, "train", rows, "-o",
                    tmp_path / "m.h5", "--algorithm", "sync", "--allreduce", "ring", "--steps", 30, "--record", record,
                    "--probe", OMP_NUM_THREADS="1")
    code, _, err = finish(process, 100)
    assert code == 0, err
    told, causes = found(record)
    host = f"host1-{process.pid}"
    assert told["hosts"][1] == host and told["nodes"] == 4
    pairs = told["wire"]["pairs"]
    assert [pair["ranks"] for pair in pairs] == [[0, 1], [1, 2], [2, 3], [3, 0]]
    assert f"{host} is at the end of all of them" in causes.get("narrow_link", ""), (causes, pairs)
