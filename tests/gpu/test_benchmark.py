"""The benchmark for GPUs runs, and what it measures is right; its times mean nothing here."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
gpu = pytest.importorskip("gpu")


def test_every_case_is_measured(quick_device, monkeypatch):
    if shutil.which("mpirun", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("there is no mpirun beside this Python")
    monkeypatch.setattr("dml_hpc.cuda.Cuda", lambda node_rank: quick_device)
    cases = gpu.cases(quick_device, gpu.TINY, 1, 1e-4)
    assert [case["case"] for case in cases] == ["gradient", *["reduce and update"] * 2, "svd pass", "step",
                                             *["rating sgd"] * 4, *["als"] * 2]
    assert all(case["rmse_last"] < case["rmse_first"] for case in cases if case["case"] == "rating sgd")
    assert all(case["loss_last"] < case["loss_first"] for case in cases if case["case"] == "als")
    assert max(case.get("relative_difference", 0) for case in cases) < 1e-5
