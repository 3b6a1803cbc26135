"""Which files paths and patterns on a command line name."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from dml_hpc.errors import UserError


def matching(sources: Sequence[Path | str]) -> list[Path]:
    """Return the files that paths and patterns name, those of a pattern sorted; raises `UserError` for none."""
    paths: list[Path] = []
    for source in sources:
        if Path(source).is_dir():
            raise UserError(f"{source} is a folder; name the files in it, such as '{source}/*.csv'")
        if Path(source).exists() or not glob.has_magic(str(source)):
            if not Path(source).exists():
                raise UserError(f"{source} does not exist")
            paths.append(Path(source))
            continue
        found = sorted(path for path in map(Path, glob.glob(str(source), recursive=True)) if path.is_file())
        if not found:
            raise UserError(f"no file matches '{source}'")
        paths += found
    if not paths:
        raise UserError("there is no file to import; name at least one")
    return paths
