"""What may be replaced: a folder that holds a data set and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dml_hpc.data.manifest import FILE as MANIFEST
from dml_hpc.data.ratings.ids import FILE as IDS
from dml_hpc.data.statistics import STATISTICS_FILE
from dml_hpc.errors import UserError

OWN = (MANIFEST, STATISTICS_FILE, IDS, "truth.h5")


def check_replaceable(folder: Path, inputs: Sequence[Path] = ()) -> None:
    """Raise `UserError` when replacing ``folder`` would delete what is no part of a data set, or one of ``inputs``."""
    for path in inputs:
        if folder.is_dir() and path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} is read, and would be deleted, as it lies in {folder}; choose another -o")
    for child in folder.iterdir() if folder.is_dir() else ():
        if child.is_dir() and child.name in ("train", "test"):
            check_replaceable(child)
        elif child.name not in OWN and not (child.name.startswith("part-") and child.suffix == ".h5"):
            raise UserError(f"{child} is no part of a data set and would be deleted; choose another -o")
