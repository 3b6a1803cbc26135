"""``mf`` and ``mf evaluate`` on the command line: a verb of two words beside one, keys of the JSON object, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ratings_support import import_ratings, low_rank


@pytest.fixture(scope="module")
def ratings(tmp_path_factory) -> Path:
    return import_ratings(tmp_path_factory.mktemp("ratings"), "all", low_rank(), (3, 4))


def dml_hpc(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dml_hpc", *map(str, words)], capture_output=True, text=True)


def test_factors_are_learnt_and_evaluated(ratings, tmp_path):
    done = dml_hpc("mf", ratings, "-k", 3, "--epochs", 2, "--test", ratings, "-o", tmp_path / "f.h5", "--json",
                   "--record", tmp_path / "runs.jsonl", "--trace", tmp_path / "trace.json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["command"] == "mf" and (told["k"], told["epochs"], told["algorithm"]) == (3, 2, "sgd")
    assert told["updates_per_s"] > 0 and len(told["trace"][0]) == len(told["rmses_train"]) == 2
    assert json.loads((tmp_path / "runs.jsonl").read_text())["weights_digest"] == told["weights_digest"]
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    done = dml_hpc("mf", "evaluate", tmp_path / "f.h5", ratings, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["command"] == "mf evaluate" and found["ratings"] == 2500
    assert found["rmse"] == pytest.approx(told["rmse_test"], rel=1e-5)


@pytest.mark.parametrize("options", [["--threads", 2], ["--implicit", "--alpha", 5, "--l2", 1]])
def test_factors_are_learnt_by_least_squares(ratings, tmp_path, options):
    if "--implicit" in options:
        users, items, given = low_rank()
        ratings = import_ratings(tmp_path, "counts", (users, items, abs(given)))
    else:
        options = [*options, "--test", ratings]
    done = dml_hpc("mf", ratings, "-k", 3, "--algorithm", "als", "--epochs", 2, "-o", tmp_path / "f.h5", "--json",
                   "--trace", tmp_path / "trace.json", "--record", tmp_path / "runs.jsonl", *options)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["algorithm"], told["epochs"]) == ("als", 2) and told["updates_per_s"] > 0
    if "--implicit" in options:
        assert told["losses"][1] < told["losses"][0] and told["noise"] is None
    else:
        assert told["losses"] == [] and told["l2"] == "auto" and told["noise"] > 0
    assert told["implicit"] == ("--implicit" in options) == (told["rmse_train"] is None)
    assert told["schedule"] is None and told["step_sizes"] == []
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert json.loads((tmp_path / "runs.jsonl").read_text())["weights_digest"] == told["weights_digest"]


@pytest.mark.parametrize(("words", "says"), [
    (["mf", "RATINGS", "--algorithm", "als", "--step-size", "1", "-o", "f.h5"], "--step-size is for --algorithm sgd"),
    (["mf", "RATINGS", "--solver", "cg", "-o", "f.h5"], "--solver is for --algorithm als"),
    (["mf", "RATINGS", "--algorithm", "als", "--implicit", "-o", "f.h5"], "holds negative ratings"),
    (["mf", "RATINGS", "-k", "0", "-o", "f.h5"], "-k"),
    (["mf", "RATINGS", "--l2", "auto", "-o", "f.h5"], "--l2 auto is for --algorithm als"),
    (["mf", "RATINGS", "--l2", "-1", "-o", "f.h5"], "--l2"),
    (["mf", "RATINGS", "--resume", "-o", "f.h5"], "--checkpoint DIR"),
    (["mf", "RATINGS", "-o", "RATINGS/f.h5"], "choose another -o"),
    (["mf", "nowhere", "-o", "f.h5"], "nowhere"),
    (["mf", "evaluate", "RATINGS", "RATINGS"], "`dml-hpc mf … -o"),
])
def test_what_cannot_be_is_one_line_and_exit_code_2(ratings, tmp_path, words, says, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = dml_hpc(*(word.replace("RATINGS", str(ratings)) for word in words))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and says in done.stderr
    assert not list(tmp_path.iterdir())
