"""Model files: what is written is what is read, and a damaged one is one clear line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from dml_hpc.errors import UserError
from dml_hpc.objectives import OBJECTIVES, open_objective
from dml_hpc.store.model import CLASSES, Model, read_model, weights_digest, write_model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_model(tmp_path / "m.h5", Model("logistic", {}, (2, 1), np.array([1, -2, 0.5], np.float32), ["a", "ü=b"],
                                         "late", [0.0, 1.0], ["no", "yes"], {"epochs": 3}))
    return tmp_path / "m.h5"


def test_a_model_comes_back_as_it_was(path: Path) -> None:
    model = read_model(path)
    np.testing.assert_array_equal(model.weights, np.array([1, -2, 0.5], np.float32), strict=True)
    assert (model.objective, model.feature_names, model.label) == ("logistic", ["a", "ü=b"], "late")
    assert (model.classes, model.class_names, model.training) == ([0, 1], ["no", "yes"], {"epochs": 3})
    assert (model.settings, model.widths, model.features) == ({}, (2, 1), 2)
    write_model(path, Model("linear", {}, (1, 1), np.ones(2), ["a"], "y", None, None))
    assert read_model(path).classes is None and read_model(path).weights.dtype == np.float64


def model_of(name: str, settings: dict[str, object], classes: list[float] | None) -> Model:
    objective = open_objective(name, **settings)
    layers = objective.layers(3, classes)
    return Model(name, objective.settings, layers.widths, np.arange(layers.size) / 2, None, "y", classes, None)


@pytest.mark.parametrize(("name", "settings", "classes"), [
    *((name, {}, None) for name in ("linear", "huber", "poisson", "mlp")),
    *((name, {}, [3.0, 5.0]) for name in ("logistic", "hinge", "squared-hinge", "softmax", "mlp")),
    ("huber", {"delta": 2.5}, None), ("softmax", {}, [1.0, 2.0, 4.0]),
    ("mlp", {"hidden": (4, 2), "activation": "tanh"}, [1.0, 2.0, 4.0])])
def test_models_of_every_objective_come_back(path: Path, name: str, settings: dict[str, object],
                                             classes: list[float] | None) -> None:
    model = model_of(name, settings, classes)
    write_model(path, model)
    found = read_model(path)
    assert (found.objective, found.settings, found.widths, found.classes) == \
        (name, model.settings, model.widths, classes)
    np.testing.assert_array_equal(found.weights, model.weights, strict=True)
    opened = open_objective(found.objective, **found.settings)
    assert opened.settings == model.settings and opened.layers(3, classes).widths == found.widths


def test_models_of_every_objective_are_known() -> None:
    assert set(CLASSES) == set(OBJECTIVES)


@pytest.mark.parametrize(("name", "changes"), [
    ("mlp", {"settings": {"hidden": [4], "activation": "step"}}),
    ("mlp", {"settings": {"hidden": [5], "activation": "relu"}}),
    ("mlp", {"settings": {"hidden": [4]}}),
    ("mlp", {"settings": {"hidden": [4], "activation": "relu", "delta": 1.0}}),
    ("mlp", {"settings": [4]}),
    ("mlp", {"widths": [3, 3], "weights": np.ones(12), "settings": {"hidden": [], "activation": "relu"}}),
    ("mlp", {"widths": [3, 4, 1], "weights": np.ones(21)}),
    ("mlp", {"classes": [1.0, 2.0]}),
    ("mlp", {"classes": None}),
    ("softmax", {"classes": [1.0]}),
    ("softmax", {"classes": None}),
    ("softmax", {"classes": [1.0, 2.0]}),
    ("softmax", {"classes": [1.0, 2.0, 2.0]}),
    ("softmax", {"settings": {"hidden": []}}),
    ("softmax", {"widths": [3, 1], "weights": np.ones(4)}),
    ("huber", {"settings": {}}),
    ("huber", {"settings": {"delta": 0}}),
    ("huber", {"settings": {"delta": "1"}}),
    ("huber", {"settings": {"delta": float("nan")}}),
    ("huber", {"widths": [3, 3, 1], "weights": np.ones(16)}),
    ("linear", {"classes": [0.0, 1.0]}),
    ("logistic", {"widths": [3, 2], "weights": np.ones(8)}),
])
def test_a_model_whose_parts_do_not_fit_is_refused(path: Path, name: str, changes: dict[str, object]) -> None:
    classes = {"mlp": [1.0, 2.0, 3.0], "softmax": [1.0, 2.0, 3.0], "logistic": [0.0, 1.0]}.get(name)
    model = model_of(name, {"hidden": (4,)} if name == "mlp" else {}, classes)
    write_model(path, model)
    assert read_model(path).objective == name
    with h5py.File(path, "r+") as file:
        for key, value in changes.items():
            if isinstance(value, np.ndarray):
                replace_weights(file, value)
            else:
                file.attrs[key] = json.dumps(value)
    says = f"is damaged: its (settings or widths|classes) do not fit the objective {name}"
    with pytest.raises(UserError, match=says):
        read_model(path)


def replace_weights(file: h5py.File, weights: np.ndarray) -> None:
    """Replace the weights and their digest too, so that nothing but the values is amiss."""
    del file["weights"]
    file["weights"] = weights
    file.attrs["weights_digest"] = weights_digest(weights)


def set_attr(name: str, value: object) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        file.attrs[name] = value
    return damage


def swap(name: str, make: Callable[[h5py.File], object]) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        del file[name]
        make(file)
    return damage


DAMAGES: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "a NaN": (lambda file: replace_weights(file, np.array([1, np.nan, 2], np.float32)), "is damaged.*hold NaN"),
    "an infinity": (lambda file: replace_weights(file, np.array([1, np.inf, 2])), "is damaged.*hold infinity"),
    "whole numbers": (lambda file: replace_weights(file, np.array([1, 2, 3])), "is damaged.*int64"),
    "too few": (lambda file: replace_weights(file, np.ones(2)), "is damaged.*2 weights.*2 features"),
    "a matrix": (lambda file: replace_weights(file, np.ones((3, 1))), "cannot be read as a model"),
    "a scalar": (lambda file: replace_weights(file, np.float64(3)), "cannot be read as a model"),
    "a group": (swap("weights", lambda file: file.create_group("weights")), "cannot be read as a model"),
    "a hostile size": (swap("weights", lambda file: file.create_dataset("weights", (10**12,), "f8")),
                       "cannot be read as a model"),
    "no weights": (swap("weights", lambda file: None), "cannot be read as a model"),
    "other widths": (set_attr("widths", "[3, 1]"), "is damaged.*3 weights.*3 features with 2 names"),
    "a wider output": (set_attr("widths", "[2, 2]"), "is damaged.*3 weights.* 6 parameters"),
    "hostile widths": (set_attr("widths", "[2, 1e400]"), "cannot be read as a model"),
    "huge widths": (set_attr("widths", f"[2, {10**30}]"), "is damaged.*3 weights"),
    "widths below 1": (set_attr("widths", "[2, 0, 1]"), "cannot be read as a model"),
    "a single width": (set_attr("widths", "[2]"), "cannot be read as a model"),
    "widths of booleans": (set_attr("widths", "[2, true]"), "cannot be read as a model"),
    "widths that are no list": (set_attr("widths", "2"), "cannot be read as a model"),
    "no widths": (lambda file: file.attrs.__delitem__("widths"), "cannot be read as a model"),
    "settings that are none": (set_attr("settings", "null"), "is damaged.*settings"),
    "settings nobody has": (set_attr("settings", '{"delta": 1}'), "is damaged.*settings"),
    "names that are numbers": (swap("feature_names", lambda file: file.create_dataset("feature_names", data=[1, 2])),
                               "cannot be read as a model"),
    "another objective": (set_attr("objective", "ranking"), "is damaged.*'ranking'"),
    "an objective of no word": (set_attr("objective", np.arange(3)), "is damaged|cannot be read as a model"),
    "one class": (set_attr("classes", "[1]"), "is damaged.*classes"),
    "a NaN class": (set_attr("classes", "[0, NaN]"), "is damaged.*classes"),
    "no classes": (set_attr("classes", "null"), "is damaged.*classes"),
    "classes of booleans": (set_attr("classes", "[false, true]"), "is damaged.*classes"),
    "classes that are no JSON": (set_attr("classes", "[0, "), "cannot be read as a model"),
    "classes nested too deep": (set_attr("classes", "[" * 30_000), "cannot be read as a model"),
    "three classes": (set_attr("classes", "[0, 1, 2]"), "is damaged.*classes"),
    "class names of numbers": (set_attr("class_names", "[1, 2]"), "is damaged.*class names"),
    "a label of numbers": (set_attr("label", 3), "is damaged.*label"),
    "training that is no table": (set_attr("training", json.dumps([1])), "is damaged.*training"),
    "another kind": (set_attr("kind", np.arange(2)), "holds no dml-hpc model"),
    "an older format": (set_attr("format", 1), "has format 1, this version reads 2; train the model again"),
    "a format of several": (set_attr("format", [1, 1]), "cannot be read as a model"),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_model_is_one_line(path: Path, how: str) -> None:
    damage, message = DAMAGES[how]
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(UserError, match=message) as raised:
        read_model(path)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_a_model_cut_short_is_one_line(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(0, len(whole), 101):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cannot be read as a model|is damaged") as raised:
            read_model(path)
        assert "\n" not in str(raised.value)


def test_a_model_that_cannot_be_written_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: object) -> int:
        with io.FileIO(self, "w") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write .*m\.h5: No space left on device"):
        write_model(path, Model("linear", {}, (1, 1), np.ones(2), ["a"], "y", None, None))
    assert path.read_bytes() == before and [child.name for child in path.parent.iterdir()] == ["m.h5"]
