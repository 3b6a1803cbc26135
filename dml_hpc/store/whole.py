"""HDF5 files that are written whole or not at all, even when the disk is full."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from dml_hpc.files import replaced_file


@contextmanager
def written_whole(path: Path) -> Iterator[h5py.File]:
    """Yield an HDF5 file in memory; at the end of the block it takes the place of ``path`` at once.

    In memory first, as HDF5 that cannot write out what it holds when it closes a file may crash the process. Raises
    `UserError` when ``path`` cannot be written.
    """
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        yield file
    with replaced_file(path) as partial:
        partial.write_bytes(image.getbuffer())
