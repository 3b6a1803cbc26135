"""Write one HDF5 file of ratings."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from dml_hpc.data.writer import IN_MEMORY_BYTES, ShardWriter

COPY_BYTES = 8 << 20


class StripesWriter(ShardWriter):
    """``user``, ``item`` int32 and ``rating`` float32, with ``weight`` float32 and ``time`` int64 where there are any.

    How many ratings there will be shows at the end; until then they wait in memory, or on disk when they are many.
    """

    def __init__(self, path: Path, compression: str | None):
        super().__init__(path, 0, compression)
        self._spools: dict[str, tuple[np.dtype, IO[bytes]]] = {}

    def add(self, columns: dict[str, np.ndarray | None]) -> None:
        """Write the next ratings: arrays (n,) by name, the same names every time; None is left out."""
        rows = 0
        for name, values in columns.items():
            if values is None:
                continue
            if name not in self._spools:
                spool = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, dir=str(self.path.parent))  # noqa: SIM115
                self._spools[name] = values.dtype, spool
            self._spools[name][1].write(np.ascontiguousarray(values).data)
            rows = len(values)
        self._filled += rows
        self.nonzeros += rows

    def _complete(self) -> None:
        self._open(self._filled * sum(kind.itemsize for kind, _ in self._spools.values()))
        for name, (kind, spool) in self._spools.items():
            dataset: Any = self._create(name, (self._filled,), kind)
            spool.seek(0)
            start = 0
            while start < self._filled:
                part = np.frombuffer(spool.read(COPY_BYTES), kind)
                dataset[start:start + len(part)] = part
                start += len(part)
            spool.close()

    def __exit__(self, *error: Any) -> None:
        for _, spool in self._spools.values():
            spool.close()
        super().__exit__(*error)
