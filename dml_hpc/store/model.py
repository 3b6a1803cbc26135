"""A trained model in one HDF5 file that any HDF5 reader opens: no pickle, nothing to execute."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dml_hpc import __version__
from dml_hpc.data.links import own
from dml_hpc.errors import UserError
from dml_hpc.files import HDF5_ERRORS, first_line
from dml_hpc.store.whole import written_whole

FORMAT = 2
KIND = "dml-hpc model"
CLASSES: dict[str, tuple[int, float] | None] = {
    "linear": None, "huber": None, "poisson": None, "logistic": (2, 2), "hinge": (2, 2), "squared-hinge": (2, 2),
    "softmax": (2, math.inf), "mlp": (2, math.inf)}
"""How many classes a model has at least and at most, by its objective, None: none. An `mlp` may have none, too."""


@dataclass
class Model:
    """A network of fully connected layers for raw (not standardised) rows, often but one, and how to read its scores.

    ``settings`` are those of the ``objective`` beside its name. ``weights`` (size,), little endian, are all parameters:
    layer after layer, each a matrix (widths[l] + 1, widths[l + 1]) whose last row are the biases (0 when none were
    trained); ``widths`` are (features, …, outputs). A linear score has one layer of one output: (features + 1,).
    ``classes`` are the label's values (None for a real target), ``class_names`` the source's words for them;
    ``feature_names`` is None where features have numbers alone. ``training`` tells how it came about (options, data,
    loss).
    """

    objective: str
    settings: dict[str, Any]
    widths: tuple[int, ...]
    weights: np.ndarray
    feature_names: list[str] | None
    label: str
    classes: list[float] | None
    class_names: list[str] | None
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def features(self) -> int:
        """How many numbers a row has."""
        return self.widths[0]

    @property
    def digest(self) -> str:
        """The `weights_digest` of the weights."""
        return weights_digest(self.weights)


def weights_digest(weights: np.ndarray) -> str:
    """Return the SHA-256, in hexadecimal, of the weights' bytes (C order, little endian)."""
    little = np.ascontiguousarray(weights, weights.dtype.newbyteorder("<"))
    return hashlib.sha256(little.tobytes()).hexdigest()


def write_model(path: Path, model: Model) -> None:
    """Write the model file whole or not at all; what stood at ``path`` is replaced."""
    with written_whole(path) as file:
        file.attrs["format"] = FORMAT
        file.attrs["kind"] = KIND
        file.attrs["dml_hpc_version"] = __version__
        file.attrs["objective"] = model.objective
        file.attrs["settings"] = json.dumps(model.settings)
        file.attrs["widths"] = json.dumps(model.widths)
        file.attrs["label"] = model.label
        file.attrs["weights_digest"] = model.digest
        file.attrs["classes"] = json.dumps(model.classes)
        file.attrs["class_names"] = json.dumps(model.class_names)
        file.attrs["training"] = json.dumps(model.training)
        file["weights"] = model.weights.astype(model.weights.dtype.newbyteorder("<"))
        if model.feature_names is not None:
            file.create_dataset("feature_names", data=model.feature_names, dtype=h5py.string_dtype())


def read_model(path: Path) -> Model:
    """Return the model in a file.

    Raises `UserError` when there is none, or it is not as `write_model` writes it.
    """
    if not path.is_file():
        raise UserError(f"{path} is no model file; `dml-hpc train … -o {path}` makes one")
    try:
        with h5py.File(path, "r", locking=False) as file:
            if not isinstance(kind := file.attrs.get("kind"), str) or kind != KIND:
                raise UserError(f"{path} holds no dml-hpc model; `dml-hpc train` makes one")
            if file.attrs["format"] != FORMAT:
                raise UserError(f"{path} has format {file.attrs['format']}, this version reads {FORMAT}; train "
                                "the model again")
            weights = _vector(path, file, "weights")
            names = _vector(path, file, "feature_names") if file.get("feature_names", getlink=True) else None
            model = Model(
                objective=file.attrs["objective"],
                settings=json.loads(file.attrs["settings"]),
                widths=_widths(json.loads(file.attrs["widths"])),
                weights=weights.astype(weights.dtype.newbyteorder("=")),
                feature_names=None if names is None else [name.decode() for name in names],
                label=file.attrs["label"],
                classes=json.loads(file.attrs["classes"]),
                class_names=json.loads(file.attrs["class_names"]),
                training=json.loads(file.attrs["training"]),
            )
            digest = file.attrs["weights_digest"]
        damage = _damage(model, digest)
    except HDF5_ERRORS as error:
        raise UserError(f"{path} cannot be read as a model: {first_line(error)}") from None
    if damage:
        raise UserError(f"{path} is damaged: {damage}; train the model again")
    return model


def _vector(path: Path, file: h5py.File, name: str) -> np.ndarray:
    dataset = own(path, file, name)
    # What is not stored is not read: a claim of more than the file holds would only fill memory.
    if dataset.ndim != 1 or dataset.id.get_storage_size() < dataset.nbytes:
        raise ValueError(f"{name} is no whole vector")
    return dataset[()]


def _widths(found: object) -> tuple[int, ...]:
    if not (isinstance(found, list) and len(found) >= 2 and all(type(width) is int and width > 0 for width in found)):
        raise ValueError("widths are no numbers of units")
    return tuple(found)


def _damage(model: Model, digest: object) -> str | None:
    """Return what `write_model` would not have written, None for a whole model."""
    weights, words, widths = model.weights, model.class_names, model.widths
    size = sum((inputs + 1) * outputs for inputs, outputs in pairwise(widths))
    names = widths[0] if model.feature_names is None else len(model.feature_names)
    if weights.dtype not in (np.float32, np.float64) or size != len(weights) or names != widths[0]:
        return (f"{len(weights)} weights of {weights.dtype} for {widths[0]} features with {names} names and {size} "
                "parameters")
    if model.digest != digest:
        return "its weights are not those it was saved with"
    if not np.isfinite(weights).all():
        return f"its weights hold {'NaN' if np.isnan(weights).any() else 'infinity'}"
    if model.objective not in CLASSES:
        return f"its objective {model.objective!r} is not known"
    if not _classes_fit(model):
        return f"its classes do not fit the objective {model.objective}"
    if not _settings_fit(model):
        return f"its settings or widths do not fit the objective {model.objective}"
    if words is not None and not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        return "its class names are no words"
    if not isinstance(model.label, str) or not isinstance(model.training, dict):
        return "its label or training is not described as it should be"
    return None


def _classes_fit(model: Model) -> bool:
    """Return whether the classes are as the objective has them, with an output each where it has more than one."""
    classes, outputs, allowed = model.classes, model.widths[-1], CLASSES[model.objective]
    if classes is None:
        return outputs == 1 and (allowed is None or model.objective == "mlp")
    if allowed is None or not isinstance(classes, list) or not all(
            type(value) in (int, float) and math.isfinite(value) for value in classes):
        return False
    least, most = allowed
    return least <= len(classes) <= most and len(set(classes)) == len(classes) and \
        outputs == (len(classes) if most > 2 else 1)


def _settings_fit(model: Model) -> bool:
    """Return whether the settings are those of the objective, and the layers those that it has with them."""
    settings, hidden = model.settings, list(model.widths[1:-1])
    if not isinstance(settings, dict):
        return False
    if model.objective == "mlp":
        return bool(hidden) and settings == {"hidden": hidden, "activation": settings.get("activation")} and \
            settings["activation"] in ("relu", "tanh")
    if model.objective == "huber":
        delta = settings.get("delta")
        return not hidden and len(settings) == 1 and isinstance(delta, (int, float)) and 0 < delta < math.inf
    return not hidden and settings == {}
