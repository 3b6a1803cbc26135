"""The command line: options from everywhere, one JSON object, one clear line and exit code 2 for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from data_support import write_dataset

from dml_hpc.commands.algorithms import OPENERS
from dml_hpc.commands.train_options import DEFAULTS
from dml_hpc.trainers import ALGORITHMS


def dml_hpc(*arguments, **environment):
    return subprocess.run([sys.executable, "-m", "dml_hpc", *map(str, arguments)], capture_output=True, text=True,
                          env={**os.environ, **environment}, timeout=120)


@pytest.fixture(scope="module")
def trained(two_classes, tmp_path_factory):
    model = tmp_path_factory.mktemp("trained") / "model.h5"
    done = dml_hpc("train", two_classes, "-o", model)
    assert done.returncode == 0, done.stderr
    return model


@pytest.fixture
def three_classes(tmp_path):
    return write_dataset(tmp_path / "three", np.ones((6, 2)), [0, 1, 2, 0, 1, 2], [6])


BAD = {
    "missing data": (["train", "nowhere", "-o", "out"], "nowhere does not exist"),
    "a folder that is no data set": (["train", "{tmp}/empty", "-o", "out"], "it holds no manifest.json"),
    "the parent of data sets": (["train", "{parent}", "-o", "out"], "did you mean"),
    "three classes": (["train", "{three}", "-o", "out"], "has 3 classes (0, 1, 2); logistic needs exactly two"),
    "unknown reducer": (["train", "{data}", "-o", "out", "--allreduce", "rnig"], "'rnig' is not one of"),
    "unknown option": (["train", "{data}", "-o", "out", "--epoch", "3"], "--epochs"),
    "no output folder": (["train", "{data}", "-o", "no/such/out"], "does not exist; make it first"),
    "output exists": (["train", "{data}", "-o", "{model}"], "give --overwrite to replace it"),
    "output is a folder": (["train", "{data}", "-o", "{tmp}/empty", "--overwrite"], "is a folder"),
    "other features": (["evaluate", "{model}", "{three}"], "was trained on other features"),
    "no model": (["evaluate", "{data}", "{data}"], "is no model file"),
    "something else than a model": (["evaluate", "{data}/part-00000.h5", "{data}"], "holds no dml-hpc model"),
    "no HDF5 at all": (["evaluate", "{data}/manifest.json", "{data}"], "cannot be read as a model"),
    "prediction over its model": (["predict", "{model}", "{data}", "-o", "{model}"], "is what this run reads"),
    "missing table": (["data", "import", "nowhere.csv", "-o", "out", "--label", "y"], "nowhere.csv"),
    "unreadable config": (["train", "{data}", "-o", "out", "--config", "nowhere.toml"], "nowhere.toml"),
    "config key": (["train", "{data}", "-o", "out", "--config", "{tmp}/key.toml"],
                   "has no option 'bach-size' (did you mean 'batch-size'?)"),
    "config table": (["train", "{data}", "-o", "out", "--config", "{tmp}/table.toml"],
                     "no command is called 'tarin' (did you mean 'train'?)"),
    "no TOML": (["train", "{data}", "-o", "out", "--config", "{data}/manifest.json"], "is not valid TOML"),
    "config value": (["train", "{data}", "-o", "out", "--config", "{tmp}/value.toml"], "'--batch-size'"),
    "record nowhere": (["train", "{data}", "-o", "out", "--record", "no/such/runs.jsonl"], "--record"),
    "too small a data set for k": (["svd", "{data}", "-o", "out", "-k", "7"], "-k 7"),
    "no number of triplets": (["svd", "{data}", "-o", "out"], "how many triplets"),
    "more energy than there is": (["svd", "{data}", "-o", "out", "--tolerance", "energy=2"], "energy=SHARE"),
    "another number of ranks": (["svd", "{data}", "-o", "out", "-k", "1", "--grid", "3x3"], "is for 9 ranks"),
    "no grid": (["svd", "{data}", "-o", "out", "-k", "1", "--grid", "3"], "is no grid of ranks"),
    "no such method": (["svd", "{data}", "-o", "out", "-k", "1", "--method", "lanczos"], "lanczos"),
    "a plot that is no picture": (["svd", "{data}", "-o", "out", "-k", "1", "--plot", "scree.pdf"], ".png or .svg"),
    "left vectors over the data": (["svd", "{data}", "-o", "out", "-k", "1", "--left", "{data}", "--overwrite"],
                                   "is what this run reads"),
    "a model as factors": (["svd-apply", "{model}", "{data}", "-o", "out"], "holds no factors"),
    "nothing to report": (["report", "{data}/manifest.json", "-o", "out.html"], "is no run record"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_half_written(case, two_classes, three_classes, trained,
                                                                         tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "key.toml").write_text("bach-size = 10\n")
    (tmp_path / "table.toml").write_text("[tarin]\nepochs = 1\n")
    (tmp_path / "value.toml").write_text("batch-size = 'many'\n")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    before = trained.read_bytes()
    arguments, says = BAD[case]
    places = {"tmp": tmp_path, "data": two_classes, "parent": two_classes.parent, "three": three_classes,
              "model": trained}
    done = dml_hpc(*[argument.format(**places) for argument in arguments])
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert says in done.stderr
    assert done.stdout == ""
    assert os.listdir(work) == []
    assert os.listdir(tmp_path / "empty") == []
    assert trained.read_bytes() == before


def test_json_is_the_only_thing_on_stdout_and_holds_the_contract(two_classes, tmp_path):
    record = tmp_path / "runs.jsonl"
    done = dml_hpc("train", two_classes, "-o", tmp_path / "m.h5", "--json", "--record", record, "--progress")
    result = json.loads(done.stdout)
    assert {"command", "version", "ranks", "seconds", "objective", "algorithm", "allreduce", "device", "steps",
            "epochs", "examples", "examples_per_s", "loss", "weights_digest", "time_split"} <= result.keys()
    assert result["time_split"].keys() == {"read", "compute", "communicate", "wait"}
    assert "training" in done.stderr, "the progress bar"
    again = dml_hpc("train", two_classes, "-o", tmp_path / "m.h5", "--overwrite", "--record", record)
    assert again.returncode == 0
    entries = [json.loads(line) for line in record.read_text().splitlines()]
    assert [entry["weights_digest"] for entry in entries] == [result["weights_digest"]] * 2
    assert entries[0]["environment"]["versions"]["numpy"] == np.__version__
    assert entries[0]["environment"]["mpi"]


def test_options_come_from_the_command_line_then_the_environment_then_the_config(two_classes, tmp_path):
    config = tmp_path / "settings.toml"
    config.write_text('epochs = 2\nseed = 4\nl2 = 0.5\n[train]\nseed = 5\nshuffle = false\n[evaluate]\nrecord = "x"\n')
    done = dml_hpc("train", two_classes, "-o", tmp_path / "m.h5", "--config", config, "--l2", 0.25, "--json",
                   DML_HPC_EPOCHS="3")
    result = json.loads(done.stdout)
    assert [result[key] for key in ("epochs", "seed", "l2", "shuffle")] == [3, 5, 0.25, False]


def test_help_lists_every_verb_and_needs_nothing():
    done = dml_hpc("--help")
    assert done.returncode == 0
    for verb in ("doctor", "data", "train", "evaluate", "predict", "svd", "bench", "report"):
        assert verb in done.stdout


def test_a_damaged_model_is_refused(trained, two_classes, tmp_path):
    import h5py

    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(trained.read_bytes())
    with h5py.File(damaged, "r+") as file:
        file["weights"][0] += 1
    done = dml_hpc("evaluate", damaged, two_classes)
    assert done.returncode == 2
    assert "is damaged" in done.stderr


def test_every_algorithm_has_its_defaults():
    assert set(DEFAULTS) == set(OPENERS) == set(ALGORITHMS)


@pytest.mark.parametrize(("line", "says"), [
    ("epochs = [1, 2]", "a whole number"), ("epochs = 2.5", "a whole number"), ("epochs = true", "a whole number"),
    ("seed = 2024-01-01", "a whole number"), ("l2 = [1]", "a number"), ("l2 = nan", "not a finite number"),
    ("overwrite = [1]", "true or false"), ("record = 5", "a string"), ("no-scale = 1", "true or false"),
])
def test_a_config_value_of_another_type_is_refused(line, says, two_classes, tmp_path):
    (tmp_path / "c.toml").write_text(line + "\n")
    done = dml_hpc("train", two_classes, "-o", tmp_path / "m.h5", "--config", tmp_path / "c.toml")
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_negated_flag_works_from_the_config(two_classes, tmp_path):
    (tmp_path / "c.toml").write_text("no-scale = true\nno-shuffle = false\n")
    done = dml_hpc("train", two_classes, "-o", tmp_path / "m.h5", "--config", tmp_path / "c.toml", "--json",
                   "--step-size", "1e-5")
    result = json.loads(done.stdout)
    assert (result["scale"], result["shuffle"]) == (False, True)


def test_an_environment_variable_that_is_no_option_is_refused(two_classes, tmp_path):
    done = dml_hpc("train", two_classes, "-o", tmp_path / "m.h5", DML_HPC_EPOCH="3")
    assert done.returncode == 2
    assert "DML_HPC_EPOCH is no option (did you mean 'DML_HPC_EPOCHS'?)" in done.stderr


@pytest.mark.parametrize("step_size", ["nan", "inf"])
def test_numbers_that_are_not_finite_are_refused(step_size, two_classes, tmp_path):
    done = dml_hpc("train", two_classes, "-o", tmp_path / "m.h5", "--step-size", step_size)
    assert done.returncode == 2
    assert "is not a finite number" in done.stderr


def test_a_terminal_that_knows_few_characters_is_no_reason_to_fail(trained, two_classes, tmp_path):
    done = dml_hpc("predict", trained, two_classes, "-o", tmp_path / "p.h5", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


NO_CACHE = """
import sys
from dml_hpc.cli import main
from dml_hpc.commands import evaluate
def run(*_, **__):  # what Numba raises when neither the installation nor the home folder is writable
    raise RuntimeError("cannot cache function 'scores': no locator available for file 'glm.py'")
evaluate.run = run
sys.exit(main(sys.argv[1:]))
"""


def test_nowhere_to_keep_kernels_is_one_line(trained, two_classes):
    done = subprocess.run([sys.executable, "-c", NO_CACHE, "evaluate", trained, two_classes], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 2
    assert "export NUMBA_CACHE_DIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_early_does_not_end_the_work(two_classes, tmp_path):
    line = [sys.executable, "-m", "dml_hpc", "train", str(two_classes), "-o", str(tmp_path / "m.h5"), "--epochs", "1"]
    job = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    job.stdout.close()
    assert job.wait(timeout=60) == 0
    assert job.stderr.read() == ""
    assert (tmp_path / "m.h5").exists()


def test_a_record_is_appended_to_records_alone(two_classes, tmp_path):
    other, model = tmp_path / "notes.txt", tmp_path / "m.h5"
    other.write_text("mine\n")
    done = dml_hpc("train", two_classes, "-o", model, "--record", other)
    assert (done.returncode, other.read_text()) == (2, "mine\n") and "something else than run records" in done.stderr
    for _ in range(2):
        done = dml_hpc("train", two_classes, "-o", model, "--overwrite", "--record", tmp_path / "runs.jsonl")
        assert done.returncode == 0, done.stderr
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2
