"""A trained model in one HDF5 file that any HDF5 reader opens: no pickle, nothing to execute."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dml_hpc import __version__
from dml_hpc.errors import UserError
from dml_hpc.files import HDF5_ERRORS, first_line
from dml_hpc.store.whole import written_whole

FORMAT = 1
KIND = "dml-hpc model"
CLASSES = {"linear": None, "logistic": 2}
"""How many classes a model has, by its objective."""


@dataclass
class LinearModel:
    """A linear score x·w + b for raw (not standardised) rows, and how to read it.

    ``weights`` is (features + 1,), little endian, the intercept b last (0 when none was trained). ``classes`` are
    the label's two values (None for a real target), ``class_names`` the source's words for them; ``feature_names`` is
    None where features have numbers alone. ``training``
    tells how it came about (options, data, loss).
    """

    objective: str
    weights: np.ndarray
    feature_names: list[str] | None
    label: str
    classes: list[float] | None
    class_names: list[str] | None
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The `weights_digest` of the weights."""
        return weights_digest(self.weights)


def weights_digest(weights: np.ndarray) -> str:
    """Return the SHA-256, in hexadecimal, of the weights' bytes (C order, little endian)."""
    little = np.ascontiguousarray(weights, weights.dtype.newbyteorder("<"))
    return hashlib.sha256(little.tobytes()).hexdigest()


def write_model(path: Path, model: LinearModel) -> None:
    """Write the model file whole or not at all; what stood at ``path`` is replaced."""
    with written_whole(path) as file:
        file.attrs["format"] = FORMAT
        file.attrs["kind"] = KIND
        file.attrs["dml_hpc_version"] = __version__
        file.attrs["objective"] = model.objective
        file.attrs["label"] = model.label
        file.attrs["weights_digest"] = model.digest
        file.attrs["classes"] = json.dumps(model.classes)
        file.attrs["class_names"] = json.dumps(model.class_names)
        file.attrs["training"] = json.dumps(model.training)
        file["weights"] = model.weights.astype(model.weights.dtype.newbyteorder("<"))
        if model.feature_names is not None:
            file.create_dataset("feature_names", data=model.feature_names, dtype=h5py.string_dtype())


def read_model(path: Path) -> LinearModel:
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
                raise UserError(f"{path} has format {file.attrs['format']}, this version reads {FORMAT}")
            weights = _vector(file, "weights")
            names = _vector(file, "feature_names") if "feature_names" in file else None
            model = LinearModel(
                objective=file.attrs["objective"],
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


def _vector(file: h5py.File, name: str) -> np.ndarray:
    dataset = file[name]
    # What is not stored is not read: a claim of more than the file holds would only fill memory.
    if dataset.ndim != 1 or dataset.id.get_storage_size() < dataset.nbytes:
        raise ValueError(f"{name} is no whole vector")
    return dataset[()]


def _damage(model: LinearModel, digest: object) -> str | None:
    """Return what `write_model` would not have written, None for a whole model."""
    weights, classes, words = model.weights, model.classes, model.class_names
    features = len(weights) - 1 if model.feature_names is None else len(model.feature_names)
    if weights.dtype not in (np.float32, np.float64) or features + 1 != len(weights) or not features:
        return f"{len(weights)} weights of {weights.dtype} for {features} features"
    if model.digest != digest:
        return "its weights are not those it was saved with"
    if not np.isfinite(weights).all():
        return f"its weights hold {'NaN' if np.isnan(weights).any() else 'infinity'}"
    if model.objective not in CLASSES:
        return f"its objective {model.objective!r} is not known"
    finite = isinstance(classes, list) and all(
        type(value) in (int, float) and math.isfinite(value) for value in classes)
    count = len(classes) if finite and classes is not None else None
    if count != CLASSES[model.objective] or (classes is not None and not finite):
        return f"its classes do not fit the objective {model.objective}"
    if words is not None and not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        return "its class names are no words"
    if not isinstance(model.label, str) or not isinstance(model.training, dict):
        return "its label or training is not described as it should be"
    return None
