"""Places in memory for blocks of rows that are streamed: one large array, so that a step's rows are rows of it."""

from __future__ import annotations

import numpy as np

from dml_hpc.data.batches import Batches
from dml_hpc.data.csr import Csr, index_dtype
from dml_hpc.data.dataset import Dataset
from dml_hpc.data.shard import CsrShard, DenseShard, Shard


class _Slots:
    """What places have beside X: targets ``y`` (rows,) and, where rows are ``weighted``, ``weight`` (rows,)."""

    stride: int

    def __init__(self, rows: int, dtype: np.dtype, weighted: bool):
        self.y = np.empty(rows, dtype)
        self.weight = np.empty(rows, dtype) if weighted else None
        self._label_bytes = dtype.itemsize * (1 + weighted)

    def label(self, place: int, y: np.ndarray, weight: np.ndarray | None) -> None:
        """Set the targets of the rows in a place, and what they count."""
        at = place * self.stride
        self.y[at:at + len(y)] = y
        if self.weight is not None:
            self.weight[at:at + len(y)] = weight


class DenseSlots(_Slots):
    """Places for blocks of dense rows: ``X`` (places · stride, features)."""

    def __init__(self, dataset: Dataset, batches: Batches, places: int, kind: np.dtype, dtype: np.dtype,
                 weighted: bool):
        self.stride = batches.block
        super().__init__(places * self.stride, dtype, weighted)
        self.row_bytes = dataset.features * kind.itemsize + self._label_bytes
        self.bytes = places * self.stride * self.row_bytes
        self.X = np.empty((places * self.stride, dataset.features), kind)

    def read(self, place: int, shard: Shard, first: int, size: int) -> None:
        """Read ``size`` rows of a shard from ``first`` on into a place."""
        assert isinstance(shard, DenseShard)
        at = place * self.stride
        shard.stored.read_into(first, first + size, self.X[at:at + size])


class SparseSlots(_Slots):
    """Places for blocks of sparse rows, each with room for the most entries that a block of this rank has.

    A place has one row more than a block, which is none: as rows end where the next one begins, it ends the last.
    """

    def __init__(self, dataset: Dataset, batches: Batches, places: int, kind: np.dtype, dtype: np.dtype,
                 weighted: bool):
        self.stride = batches.block + 1
        rows = places * self.stride
        super().__init__(rows, dtype, weighted)
        self._room = self._most_entries(dataset, batches) if places else 0
        entry_bytes = kind.itemsize + index_dtype(dataset.features).itemsize
        self.row_bytes = entry_bytes * (dataset.manifest.nonzeros // max(dataset.rows, 1) + 1) + 8 + self._label_bytes
        pointers = 8 * (batches.range[1] - batches.range[0])  # the shards' own, in memory or mapped
        self.bytes = places * self._room * entry_bytes + rows * (8 + self._label_bytes) + pointers
        self.X = Csr(np.empty(places * self._room, kind), np.empty(places * self._room, index_dtype(dataset.features)),
                     np.zeros(rows + 1, np.int64), dataset.features)

    @staticmethod
    def _most_entries(dataset: Dataset, batches: Batches) -> int:
        most = 0
        for stripe in range(*batches.mine.tolist()):
            shard, first = dataset.shard(int(batches.shard[stripe])), int(batches.first[stripe])
            assert isinstance(shard, CsrShard)
            ends = np.append(np.arange(0, batches.length[stripe], batches.block), batches.length[stripe]) + first
            most = max(most, int(np.diff(shard.indptr[ends]).max(initial=0)))
        return most

    def read(self, place: int, shard: Shard, first: int, size: int) -> None:
        """Read ``size`` rows of a shard from ``first`` on into a place."""
        assert isinstance(shard, CsrShard)
        rows = shard.block(first, first + size, mapped=False).packed()
        at, entries = place * self.stride, place * self._room
        self.X.data[entries:entries + rows.nonzeros] = rows.data
        self.X.indices[entries:entries + rows.nonzeros] = rows.indices
        np.add(rows.indptr, entries, out=self.X.indptr[at:at + size + 1])
