"""Import: the same table in any form becomes the same bytes, and what does not fit leaves no trace."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables_support import Table, contents, filled, import_table, one_hot, read_all, write_all_forms, write_csv

from dml_hpc.cli import main
from dml_hpc.data.dataset import open_dataset
from dml_hpc.data.sources.survey import ordered
from dml_hpc.errors import AgreedError, UserError

CITIES = ["Aachen", "Zell, Mosel", "Ürzig"]


def make_table(rows: int, seed: int = 1) -> Table:
    """Numbers, words, integers that are categories, a 0/1 label; about one value in ten is missing."""
    random = np.random.default_rng(seed)

    def gaps(values: list[Any]) -> list[Any]:
        return [None if gone else value for value, gone in zip(values, random.random(rows) < 0.1, strict=True)]

    words = ["low", "mid", "high", "top"]
    return {
        "size": gaps(random.normal(1e6, 3, rows).round(3).tolist()),
        "level": gaps([words[i] for i in random.integers(0, 4, rows)]),
        "hour": gaps(random.integers(1, 13, rows).tolist()),
        "count": random.integers(0, 5, rows).tolist(),
        "late": gaps(random.integers(0, 2, rows).tolist()),
    }


def expected(table: Table, rows: np.ndarray, training: np.ndarray) -> np.ndarray:
    """The features of the table with ``hour`` and ``level`` as categories, row by row."""
    return np.column_stack([
        filled(table["size"], training), one_hot(table["level"], ["high", "low", "mid", "top"]),
        one_hot(table["hour"], [str(hour) for hour in range(1, 13)]), filled(table["count"], training)])[rows]


def labelled(table: Table) -> np.ndarray:
    return np.array([i for i, value in enumerate(table["late"]) if value is not None])


CHOICE: dict[str, Any] = {"label": "late", "categorical": ["level", "hour"], "numeric": ["count", "size"]}


def test_features_and_statistics_are_those_of_the_slow_way(tmp_path: Path) -> None:
    table = make_table(2000)
    result = import_table([write_csv(tmp_path / "t.csv", table)], tmp_path / "out", **CHOICE, dtype="float64", shards=3)
    rows = labelled(table)
    X, y = read_all(tmp_path / "out")
    want = expected(table, rows, rows)
    np.testing.assert_allclose(X, want, rtol=1e-14)
    np.testing.assert_array_equal(y, [table["late"][i] for i in rows])
    manifest = open_dataset(tmp_path / "out").manifest
    assert manifest.feature_names == [
        "size", "level=high", "level=low", "level=mid", "level=top", *(f"hour={h}" for h in range(1, 13)), "count"]
    assert manifest.statistics.numeric.tolist() == [True] + [False] * 16 + [True]
    np.testing.assert_allclose(manifest.statistics.mean, want.mean(0), rtol=1e-13)
    # A deviation of 3 at a mean of a million: what a sum of squares would lose.
    np.testing.assert_allclose(manifest.statistics.deviation, want.std(0), rtol=1e-9)
    np.testing.assert_array_equal(manifest.statistics.minimum, X.min(0))
    np.testing.assert_array_equal(manifest.statistics.maximum, X.max(0))
    assert manifest.nonzeros == np.count_nonzero(X)
    gone = {name: sum(table[name][i] is None for i in rows) for name in table}
    assert {column.name: column.missing for column in manifest.columns} == {
        name: gone[name] for name in ("size", "level", "hour", "count")}
    assert manifest.statistics.missing.tolist() == [gone["size"], *[gone["level"]] * 4, *[gone["hour"]] * 12, 0]
    assert (manifest.label.name, manifest.label.values, manifest.label.names) == ("late", [0, 1], None)
    assert manifest.label.missing == 2000 - len(rows) == result["rows_without_label"]
    edges = [len(rows) * i // 3 for i in range(4)]
    assert [shard.rows for shard in manifest.shards] == np.diff(edges).tolist()
    assert result["rows_read"] == 2000 and result["features"] == 18 and result["train_rows"] is None
    assert result["missing_values"] == gone["size"] + gone["level"] + gone["hour"]


@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_every_form_gives_the_same_bytes(tmp_path: Path, holdout: float) -> None:
    # More rows than a chunk, so that forms differ in where their batches end.
    forms = write_all_forms(tmp_path, make_table(70_000))
    found = {}
    for form, paths in forms.items():
        import_table(paths, tmp_path / form, **CHOICE, holdout=holdout, seed=3, shards=2)
        found[form] = contents(tmp_path / form)
    assert len(found["csv"]) == (4 if holdout else 2)
    assert all(files == found["csv"] for files in found.values())


def test_without_choice_text_is_categorical_and_numbers_and_booleans_are_numeric(tmp_path: Path) -> None:
    table = {"city": [*CITIES, None], "on": [True, False, None, True], "n": [1, 2, 3, 4], "id": list("abcd"),
             "y": [0.5, 1.5, 2.5, 3.5]}
    (tmp_path / "t.csv").write_text(
        'city,on,n,id,y\nAachen,true,1,a,0.5\n"Zell, Mosel",false,2,b,1.5\nÜrzig,NA,3,c,2.5\n,true,4,d,3.5\n')
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        out = tmp_path / f"{name}.out"
        import_table([tmp_path / name], out, label="y", drop=["id"], dtype="float64")
        X, y = read_all(out)
        assert open_dataset(out).manifest.feature_names == [*(f"city={city}" for city in CITIES), "on", "n"]
        np.testing.assert_array_equal(X, [[1, 0, 0, 1, 1], [0, 1, 0, 0, 2], [0, 0, 1, 2 / 3, 3], [0, 0, 0, 1, 4]])
        np.testing.assert_array_equal(y, table["y"])


@pytest.mark.parametrize(("words", "names", "y"), [
    (["no", "yes", "", "maybe", "no"], ["maybe", "no", "yes"], [1, 2, 0, 1]),
    (["true", "false", "", "true", "true"], ["false", "true"], [1, 0, 1, 1]),
    (["3", "-1.5", "NA", "3", "7"], None, [3, -1.5, 3, 7]),
])
def test_labels_of_words_booleans_and_numbers(tmp_path: Path, words: list[str], names: list[str] | None,
                                              y: list[float]) -> None:
    path = write_csv(tmp_path / "t.csv", {"x": [1, 2, 3, 4, 5], "y": words})
    import_table([path], tmp_path / "out", label="y")
    label = open_dataset(tmp_path / "out").manifest.label
    assert (label.names, label.values, label.missing) == (names, sorted(set(y)), 1)
    np.testing.assert_array_equal(read_all(tmp_path / "out")[1], y)


def test_a_label_of_many_values_has_none_listed(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", {"x": list(range(101)), "y": list(range(101))})
    import_table([path], tmp_path / "out", label="y")
    assert open_dataset(tmp_path / "out").manifest.label.values is None


def test_holdout_is_reproducible_disjoint_complete_and_filled_from_training(tmp_path: Path) -> None:
    table = make_table(3000)
    path, rows = write_csv(tmp_path / "t.csv", table), labelled(table)
    result = import_table([path], tmp_path / "out", **CHOICE, holdout=0.25, seed=5, dtype="float64", shards=2)
    held = np.random.Generator(np.random.PCG64(5)).random(len(rows)) < 0.25
    assert (result["train_rows"], result["test_rows"]) == (np.sum(~held), np.sum(held))
    for part, of_part in (("train", rows[~held]), ("test", rows[held])):
        X, y = read_all(tmp_path / "out" / part)
        manifest = open_dataset(tmp_path / "out" / part).manifest
        np.testing.assert_allclose(X, expected(table, of_part, rows[~held]), rtol=1e-14)
        np.testing.assert_array_equal(y, [table["late"][i] for i in of_part])
        np.testing.assert_allclose(manifest.statistics.mean, X.mean(0), rtol=1e-12)
        np.testing.assert_allclose(manifest.statistics.deviation, X.std(0), rtol=1e-9)
        assert manifest.source["part"] == part and "training" in manifest.source["fill_from"]
        assert manifest.source["fill"]["count"] == pytest.approx(np.mean([table["count"][i] for i in rows[~held]]))
    import_table([path], tmp_path / "again", **CHOICE, holdout=0.25, seed=5, dtype="float64", shards=2)
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
    import_table([path], tmp_path / "other", **CHOICE, holdout=0.25, seed=6, dtype="float64", shards=2)
    assert contents(tmp_path / "other") != contents(tmp_path / "out")


def test_more_shards_than_rows_and_an_empty_held_out_part(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", {"x": [1, 2, 3], "y": [0, 1, 0]})
    result = import_table([path], tmp_path / "out", label="y", shards=5, holdout=1e-9)
    assert (result["train_rows"], result["test_rows"]) == (3, 0)
    np.testing.assert_array_equal(read_all(tmp_path / "out" / "train")[0], [[1], [2], [3]])
    test = open_dataset(tmp_path / "out" / "test")
    assert test.rows == 0 and len(test.manifest.shards) == 5 and test.manifest.label.values == [0, 1]


def test_like_gives_new_data_the_same_features(tmp_path: Path) -> None:
    old = write_csv(tmp_path / "old.csv", {
        "colour": ["red", "blue", "red"], "x": [1, 2, 9], "same": [4, 4, 4], "y": ["no", "yes", "no"]})
    import_table([old], tmp_path / "old", label="y")
    new = write_csv(tmp_path / "new.csv", {
        "y": ["yes", "yes", None], "more": [0, 0, 0], "same": [None, 5, 6], "x": [None, 7, 8],
        "colour": ["green", "blue", "red"]})
    result = import_table([new], tmp_path / "new", label="y", like=tmp_path / "old")
    X, y = read_all(tmp_path / "new")
    np.testing.assert_array_equal(X, [[0, 0, 4, 4], [1, 0, 7, 5]])
    np.testing.assert_array_equal(y, [1, 1])
    before, after = open_dataset(tmp_path / "old").manifest, open_dataset(tmp_path / "new").manifest
    assert after.feature_names == before.feature_names == ["colour=blue", "colour=red", "x", "same"]
    assert after.label.names == ["no", "yes"] and after.label.values == [1]
    assert after.source["fill"] == before.source["fill"] and after.source["unseen"] == {"colour": 1}
    assert result["unseen_categories"] == 1 and result["missing_values"] == 2
    for rows, mistake in (({"y": ["perhaps"], "same": [1], "x": [1], "colour": ["red"]}, "'perhaps'"),
                          ({"y": ["no"], "same": [1], "x": [1], "color": ["red"]}, "did you mean 'color'")):
        with pytest.raises(AgreedError, match=mistake):
            import_table([write_csv(tmp_path / "bad.csv", rows)], tmp_path / "bad", label="y", like=tmp_path / "old")
    with pytest.raises(AgreedError, match="--like takes the columns"):
        import_table([new], tmp_path / "bad", label="y", like=tmp_path / "old", drop=["more"])


def test_float_categories_of_parquet_are_written_as_in_csv(tmp_path: Path) -> None:
    pq.write_table(pa.table({"c": [10.0, None, 2.0, 2.5, float("nan")], "y": [1, 2, 3, 4, 5]}),
                           tmp_path / "t.parquet")
    import_table([tmp_path / "t.parquet"], tmp_path / "out", label="y", categorical=["c"])
    manifest = open_dataset(tmp_path / "out").manifest
    assert manifest.feature_names == ["c=2", "c=10", "c=2.5"] and manifest.columns[0].missing == 2


def test_words_are_ordered_by_value_then_as_text() -> None:
    assert ordered(["10", "b", "2", "1", "a", "-3"]) == ["-3", "1", "2", "10", "a", "b"]


LATE_TEXT = "n,y\n" + "1,0\n" * 500_000 + "many,1\n"
GOOD = "n,word,y\n1,a,0\n2,b,1\n3,a,1\n"

MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "missing label column": (GOOD.replace("y", "late"), {"label": "latt"}, "no column 'latt' .did you mean 'late'"),
    "missing feature column": (GOOD, {"numeric": ["n"], "categorical": ["wrod"]}, "did you mean 'word'"),
    "missing dropped column": (GOOD, {"drop": ["wrod"]}, "did you mean 'word'"),
    "text where a number was promised": (GOOD, {"numeric": ["word"]}, "'word' was promised numeric.*'a', row 2 of"),
    "text after the first million bytes": (LATE_TEXT, {}, "'n' looked numeric in .*'many', row 500,002 of.*later"),
    "text in a label that began as numbers": ("y,n\n" + "1,0\n" * 500_000 + "many,1\n", {},
                                              "'y' looked numeric in .*'many', row 500,002 of.*label is all numbers"),
    "text in a column that began empty": ("n,y\n" + ",0\n" * 700_000 + "many,1\n", {}, "'n' looked empty in .*'many'"),
    "named twice": (GOOD, {"numeric": ["n"], "categorical": ["n"]}, "named twice"),
    "label among features": (GOOD, {"numeric": ["n", "y"]}, "'y' is the label"),
    "no features": (GOOD, {"drop": ["n", "word"]}, "no features"),
    "empty file": ("", {}, "cannot be read: Empty CSV"),
    "only a header": ("n,y\n", {}, "holds no rows"),
    "no row with a label": ("n,y\n1,\n2,NA\n", {}, "none of the 2 rows has a value in the label column 'y'"),
    "a column without values": ("n,m,y\n,1,1\nNA,2,0\n", {}, "'n' has no value .*--drop n"),
    "a timestamp": ("t,n,y\n2013-01-01T10:00:00Z,1,0\n", {}, r"'t' \(timestamp.*--drop t"),
    "too many categories": ("c,y\n" + "".join(f"c{i},1\n" for i in range(10_001)), {}, "'c' has more than 10,000"),
    "ragged rows": ("n,y\n1,0\n2\n", {}, "Expected 2 columns, got 1"),
    "twice the same column": ("n,n,y\n1,2,0\n", {}, "two columns called 'n'"),
    "an infinite value": ("n,y\n1,0\ninf,0\n", {}, "'n' .* infinite"),
    "too large for the dtype": ("n,y\n1,0\n70000,1\n", {"dtype": "float16"}, "'n' holds 70000, too large for float16"),
    "everything held out": (GOOD, {"holdout": 0.999999}, "leaves no row to train on"),
    "a share above one": (GOOD, {"holdout": 1.5}, "--holdout is a share"),
    "like no data set": (GOOD, {"like": Path("/nonexistent")}, "does not exist"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_leave_no_trace(tmp_path: Path, mistake: str) -> None:
    text, options, message = MISTAKES[mistake]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(AgreedError, match=message) as raised:
        import_table([tmp_path / "t.csv"], tmp_path / "out", **{"label": "y", **options})
    assert "\n" not in str(raised.value)
    assert os.listdir(tmp_path) == ["t.csv"]


def test_text_in_a_second_file_was_not_promised_either(tmp_path: Path) -> None:
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path, word in zip(paths, ("1", "many"), strict=True):
        path.write_text(f"n,y\n{word},0\n")
    with pytest.raises(AgreedError, match=r"'n' looked numeric in .*'many', row 2 of .*b\.csv"):
        import_table(paths, tmp_path / "out", label="y")


@pytest.mark.parametrize(("name", "data", "message"), [
    ("absent.csv", None, "absent.csv does not exist"),
    ("t.xlsx", b"x", "is neither .csv"),
    ("t.parquet", b"no parquet at all", "t.parquet cannot be read"),
    ("t.csv.gz", b"no gzip", "t.csv.gz cannot be read"),
    ("t.csv.zip", b"no zip", "t.csv.zip cannot be read"),
    ("latin.csv", "n,y\né,1\n".encode("latin-1"), "UTF-8"),
])
def test_unreadable_files_are_named(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    before = os.listdir(tmp_path)
    with pytest.raises(AgreedError, match=message):
        import_table([tmp_path / name], tmp_path / "out", label="y")
    assert os.listdir(tmp_path) == before


@pytest.mark.parametrize(("values", "message"), [
    (["1", "2", "UA"], "'v' was promised numeric but holds text .'UA', row 3 of"),
    ([[1], [2], [3]], "'v' .list"),
    ([datetime.datetime(2013, 1, 1)] * 3, "'v' .timestamp"),
])
def test_parquet_columns_that_are_no_numbers(tmp_path: Path, values: list[Any], message: str) -> None:
    pq.write_table(pa.table({"v": values, "y": [1, 2, 3]}), tmp_path / "t.parquet")
    with pytest.raises(AgreedError, match=message):
        import_table([tmp_path / "t.parquet"], tmp_path / "out", label="y", numeric=["v"])


def test_without_pyarrow_the_line_that_installs_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(AgreedError, match=r"pip install 'dml-hpc\[data\]'"):
        import_table([write_csv(tmp_path / "t.csv", {"n": [1], "y": [0]})], tmp_path / "out", label="y")


def import_command(source: Path, output: Path, overwrite: bool) -> int:
    return main(["data", "import", str(source), "-o", str(output), "--label", "y", "--shards", "1",
                 *(["--overwrite"] if overwrite else [])])


def test_an_output_that_exists_is_replaced_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_csv(tmp_path / "t.csv", {"n": [1, 2], "y": [0, 1]})
    assert import_command(source, tmp_path / "out", False) == 0
    assert "read 2 rows, dropped 0 without 'y', wrote 2" in capsys.readouterr().out
    before = contents(tmp_path / "out")
    write_csv(source, {"n": [7, 8, 9], "y": [0, 1, 1]})
    assert import_command(source, tmp_path / "out", False) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before
    (tmp_path / "bad.csv").write_text("n,y\nx,\n")
    assert import_command(tmp_path / "bad.csv", tmp_path / "out", True) == 2
    assert contents(tmp_path / "out") == before
    assert import_command(source, tmp_path / "out", True) == 0
    assert open_dataset(tmp_path / "out").rows == 3
    assert sorted(os.listdir(tmp_path)) == ["bad.csv", "out", "t.csv"]


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    source = write_csv(tmp_path / "data" / "t.csv", {"n": [1, 2], "y": [0, 1]})
    assert import_command(source, tmp_path / "data", True) == 2
    assert "would be deleted" in capsys.readouterr().err and source.exists()


KILLED = """
import sys
from pathlib import Path
from dml_hpc.data import importing, writer
from dml_hpc.data.sources import spool
from dml_hpc.mpi import Alone

def halting(does):
    def halts(*arguments):
        done = does(*arguments)
        print("half-way", flush=True)
        sys.stdin.read()
        return done
    return halts

if sys.argv[3] == "writing":
    writer.DenseWriter._write = halting(writer.DenseWriter._write)
else:
    spool._write = halting(spool._write)
importing.import_data(Alone(), [sys.argv[1]], Path(sys.argv[2]), label="y", holdout=0.5, form=importing.Form(3))
"""


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("stage", ["reading", "writing"])
def test_an_import_killed_half_way_leaves_no_data_set(tmp_path: Path, signal_: signal.Signals, stage: str) -> None:
    source = write_csv(tmp_path / "t.csv", {"n": list(range(1000)), "y": [0, 1] * 500})
    process = subprocess.Popen([sys.executable, "-c", KILLED, source, tmp_path / "out", stage], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None and process.stdout.readline() == "half-way\n"
    assert any(path.suffix == (".h5" if stage == "writing" else ".arrow") for path in tmp_path.rglob("*"))
    process.send_signal(signal_)
    process.communicate()
    assert process.returncode != 0
    assert not (tmp_path / "out").exists()
    for folder in [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]:
        with pytest.raises(UserError):
            open_dataset(folder)
    if signal_ == signal.SIGINT:
        assert os.listdir(tmp_path) == ["t.csv"]
