"""The verbs that serve factors, on the command line: what they print, write and refuse; nothing is left over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ratings_support import import_ratings, low_rank

from dml_hpc.store.rating_factors import read_rating_factors


def dml_hpc(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dml_hpc", *map(str, words)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> Path:
    """A folder with ratings ``r``, and ``f.h5``, learnt of them."""
    folder = tmp_path_factory.mktemp("learnt")
    import_ratings(folder, "r", low_rank(), (3, 4))
    done = dml_hpc("mf", folder / "r", "-k", 3, "--epochs", 2, "--factors", "float16", "-o", folder / "f.h5")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_few_are_printed_and_all_are_written(learnt, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text('["mf recommend"]\nusers = "u3,u4"\nn = 2\n')
    done = dml_hpc("mf", "recommend", learnt / "f.h5", "--users", "u3", "--users", "u4", "-n", 2, "--seen",
                   learnt / "r", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["command"] == "mf recommend" and [one["user"] for one in told["recommendations"]] == ["u3"] * 2 + [
        "u4"] * 2
    assert done.stderr.splitlines()[0].split() == ["user", "item", "rank", "score"] and len(
        done.stderr.splitlines()) == 5
    again = dml_hpc("mf", "recommend", learnt / "f.h5", "--config", config, "--seen", learnt / "r", "--json")
    assert json.loads(again.stdout)["recommendations"] == told["recommendations"], again.stderr
    done = dml_hpc("mf", "recommend", learnt / "f.h5", "--seen", learnt / "r", "-o", tmp_path / "all.csv")
    assert done.returncode == 0 and "recommendations to 90 users" in done.stdout
    lines = (tmp_path / "all.csv").read_text().splitlines()
    assert lines[0] == "user,item,rank,score" and len(lines) > 800
    wanted = [(one["user"], str(one["item"])) for one in told["recommendations"]]
    assert [tuple(line.split(",")[:2]) for line in lines if line.split(",")[0] in ("u3", "u4")
            and int(line.split(",")[2]) < 3] in (wanted, wanted[2:] + wanted[:2])


def test_exports_are_read_by_other_programs(learnt, tmp_path):
    import pyarrow.parquet

    found = read_rating_factors(learnt / "f.h5")
    for form in ("npy", "parquet"):
        done = dml_hpc("mf", "export", learnt / "f.h5", "-o", tmp_path / form, "--format", form, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["files"] == sorted(path.name for path in (tmp_path / form).iterdir())
        assert json.loads((tmp_path / form / "about.json").read_text())["mean"] == found.mean
    for name in ("user_factors", "item_factors", "user_biases", "item_biases"):
        array = np.load(tmp_path / "npy" / f"{name}.npy")
        np.testing.assert_array_equal(array, getattr(found, name))
        assert array.dtype == getattr(found, name).dtype
    assert json.loads((tmp_path / "npy" / "users.json").read_text()) == found.users.values.tolist()
    np.testing.assert_array_equal(np.load(tmp_path / "npy" / "items.npy"), found.items.values)
    table = pyarrow.parquet.read_table(tmp_path / "parquet" / "users.parquet")
    assert table["id"].to_pylist() == found.users.values.tolist()
    np.testing.assert_array_equal(np.array(table["factors"].to_pylist()), found.user_factors)
    assert str(table.schema.field("factors").type).startswith("fixed_size_list") and table["bias"].to_pylist() == \
        found.user_biases.tolist()


@pytest.mark.parametrize(("words", "says"), [
    (["recommend", "F"], "give -o FILE.csv"),
    (["recommend", "F", "--users", "", "-o", "all.csv"], "it names nothing"),
    (["similar", "F"], "no id given"),
    (["export", "F", "-o", "no/where"], "mkdir -p"),
    (["fold-in", "F", "R", "-o", "g.h5"], "give --update"),
])
def test_what_cannot_be_is_one_line_and_exit_code_2(learnt, tmp_path, words, says, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = {"F": str(learnt / "f.h5"), "R": str(learnt / "r")}
    done = dml_hpc("mf", *(named.get(word, word) for word in words))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and says in done.stderr
    assert not list(tmp_path.iterdir())
