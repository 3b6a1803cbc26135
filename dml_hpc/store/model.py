"""A trained model in one HDF5 file that any HDF5 reader opens: no pickle, nothing to execute."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dml_hpc import __version__
from dml_hpc.errors import UserError
from dml_hpc.files import replaced_file

FORMAT = 1


@dataclass
class LinearModel:
    """A linear score x·w + b for raw (not standardised) rows, and how to read it.

    ``weights`` is (features + 1,), little endian, the intercept b last (0 when none was trained). ``classes`` are
    the label's two values (None for a real target), ``class_names`` the source's words for them. ``training``
    tells how it came about (options, data, loss).
    """

    objective: str
    weights: np.ndarray
    feature_names: list[str]
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
    with replaced_file(path) as partial, h5py.File(partial, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["kind"] = "dml-hpc model"
        file.attrs["dml_hpc_version"] = __version__
        file.attrs["objective"] = model.objective
        file.attrs["label"] = model.label
        file.attrs["weights_digest"] = model.digest
        file.attrs["classes"] = json.dumps(model.classes)
        file.attrs["class_names"] = json.dumps(model.class_names)
        file.attrs["training"] = json.dumps(model.training)
        file["weights"] = model.weights.astype(model.weights.dtype.newbyteorder("<"))
        file.create_dataset("feature_names", data=model.feature_names, dtype=h5py.string_dtype())


def read_model(path: Path) -> LinearModel:
    """Return the model in a file.

    Raises `UserError` when there is none, or its weights are not those it was saved with.
    """
    if not path.is_file():
        raise UserError(f"{path} is no model file; `dml-hpc train … -o {path}` makes one")
    try:
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs.get("kind") != "dml-hpc model":
                raise UserError(f"{path} holds no dml-hpc model; `dml-hpc train` makes one")
            if file.attrs["format"] != FORMAT:
                raise UserError(f"{path} has format {file.attrs['format']}, this version reads {FORMAT}")
            model = LinearModel(
                objective=str(file.attrs["objective"]),
                weights=file["weights"][()].astype(file["weights"].dtype.newbyteorder("=")),
                feature_names=[name.decode() for name in file["feature_names"][()]],
                label=str(file.attrs["label"]),
                classes=json.loads(file.attrs["classes"]),
                class_names=json.loads(file.attrs["class_names"]),
                training=json.loads(file.attrs["training"]),
            )
            digest = file.attrs["weights_digest"]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a model: {str(error).splitlines()[0]}") from None
    if model.digest != digest or len(model.feature_names) + 1 != len(model.weights):
        raise UserError(f"{path} is damaged: its weights are not those it was saved with; train the model again")
    return model
