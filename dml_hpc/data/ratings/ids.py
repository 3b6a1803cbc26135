"""What users and items are called: the numbers inside, and the ids that people know them by (``ids.h5``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dml_hpc.errors import UserError
from dml_hpc.files import HDF5_ERRORS, first_line

FILE = "ids.h5"
HEAP_BYTES = 48
"""What HDF5 takes for a string of any length besides its bytes, at most."""


class Ids:
    """The ids of users (or items) by number: ``values`` (n,) int64, or str in an object array. No id comes twice."""

    def __init__(self, values: np.ndarray):
        self.values = values
        self._order: np.ndarray | None = None
        self._number: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_text(self) -> bool:
        """Whether ids are text, not whole numbers."""
        return self.values.dtype.kind == "O"

    @property
    def file_bytes(self) -> np.ndarray:
        """How many bytes each id takes in an HDF5 file, about, (n,) int64."""
        if not self.is_text:
            return np.full(len(self.values), 8)
        return np.fromiter((len(name.encode()) for name in self.values), np.int64, len(self.values)) + HEAP_BYTES

    def numbers(self, ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Return the number (n,) int64 of each id, −1 for one that there is not.

        Text stands for whole numbers where ids are such, and the other way round, as on a command line.
        """
        if self.is_text:
            if self._number is None:
                self._number = {name: number for number, name in enumerate(self.values)}
            return np.array([self._number.get(str(name), -1) for name in ids], np.int64)
        wanted = np.empty(len(ids), np.int64)
        known = np.ones(len(ids), bool)
        if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu":
            wanted[:] = ids
        else:
            for place, name in enumerate(ids):
                try:
                    wanted[place] = int(name)
                    # A data set may have both 7 and 007; whoever types 007 may mean what was imported as a number.
                    known[place] = not isinstance(ids, np.ndarray) or str(wanted[place]) == name
                except (ValueError, OverflowError):
                    known[place] = False
        if not len(self.values):
            return np.full(len(ids), -1)
        if self._order is None:
            self._order = np.argsort(self.values)
        found = np.searchsorted(self.values, wanted, sorter=self._order)
        number = self._order[np.minimum(found, len(self.values) - 1)]
        return np.where(known & (self.values[number] == wanted), number, -1).astype(np.int64)


def write_ids(folder: Path, users: np.ndarray, items: np.ndarray) -> None:
    """Write ``ids.h5`` into ``folder``: the id of each number."""
    with h5py.File(folder / FILE, "w") as file:
        for name, values in (("users", users), ("items", items)):
            kind = h5py.string_dtype() if values.dtype.kind == "O" else np.int64
            file.create_dataset(name, data=values, dtype=kind)


def read_ids(folder: Path, users: int, items: int) -> tuple[Ids, Ids]:
    """Return the ids of users and of items; raises `UserError` when there are not so many, or none."""
    path = folder / FILE
    found = []
    try:
        with h5py.File(path, "r", locking=False) as file:
            for name, count in (("users", users), ("items", items)):
                dataset = file[name]
                if dataset.shape != (count,):
                    raise UserError(f"{path} has {name} of the shape {dataset.shape}, not ({count},); import the "
                                    "ratings again")
                text = h5py.check_string_dtype(dataset.dtype) is not None
                if not text and dataset.dtype != np.int64:
                    raise UserError(f"{path} has {name} of {dataset.dtype}, not text or int64; import the ratings "
                                    "again")
                found.append(Ids(dataset.asstr()[()] if text else dataset[()]))
    except HDF5_ERRORS as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}; import the ratings again") from None
    return found[0], found[1]
