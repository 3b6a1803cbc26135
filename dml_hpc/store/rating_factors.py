"""The factors of users and items in one HDF5 file that any HDF5 reader opens."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np

from dml_hpc import __version__
from dml_hpc.data.links import own
from dml_hpc.data.ratings.ids import Ids
from dml_hpc.errors import UserError
from dml_hpc.files import HDF5_ERRORS, first_line, replaced_file
from dml_hpc.mpi import agreed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

FORMAT = 1
KIND = "dml-hpc rating factors"
ARRAYS = ("user_factors", "item_factors", "user_biases", "item_biases")
IDS = ("users", "items")
_CHUNK_BYTES = 1 << 25
_SPARE_BYTES = 1 << 20


class Piece(NamedTuple):
    """Rows ``first`` … of one of `ARRAYS`: ``array`` (count, k) or (count,), multiplied by ``factor`` when written."""

    name: str
    first: int
    array: np.ndarray
    factor: float = 1.0


def write_rating_factors(comm: Intracomm, path: Path, pieces: Sequence[Piece], users: Ids, items: Ids, mean: float,
                         settings: dict[str, Any]) -> str:
    """Collective: write ``path`` whole or not at all; what stood there is replaced. Returns the factors' digest.

    The ``pieces`` of all ranks hold every row of each array once; a lower rank has lower rows, and its pieces are in
    order. Rank 0 writes them as they come, without having all of them at any time. The file has `ARRAYS` (biases where
    there are any) as contiguous datasets, little endian; ``users`` and ``items``, the ids, UTF-8 or int64; as
    attributes ``mean``, ``settings`` (JSON), ``digest``, ``format``, ``kind`` and ``dml_hpc_version``. Raises
    `AgreedError`.
    """
    heads = comm.allgather([(piece.name, piece.array.shape, piece.array.dtype.str) for piece in pieces])
    names = [name for name in ARRAYS if any(name == one for own in heads for one, *_ in own)]
    chunks = ((piece.name, chunk) for name in names for piece in pieces if piece.name == name
              for chunk in _chunks(piece))
    if comm.rank > 0:
        for _, chunk in chunks:
            comm.Send(chunk.view(np.uint8), 0)
        with agreed(comm):
            pass
        return comm.bcast(None)
    digest = hashlib.sha256()
    with agreed(comm):
        failure: Exception | None = None
        with ExitStack() as stack:
            try:
                shapes = {name: _whole_shape(heads, name) for name in names}
                partial = stack.enter_context(replaced_file(path))
                offsets = _skeleton(partial, path, shapes, users, items, mean, settings)
                file = stack.enter_context(partial.open("r+b", buffering=0))
            except Exception as error:
                failure = error
            for name in names:  # others send in any case
                if failure is None:
                    file.seek(offsets[name])
                for data in _received(comm, heads, name, pieces):
                    digest.update(data)
                    try:
                        if failure is None:
                            _write(file, data)
                    except OSError as error:
                        failure = error
            if failure is not None:
                raise failure
            file.flush()
            with h5py.File(partial, "r+", locking=False) as finished:
                finished.attrs.modify("digest", np.bytes_(digest.hexdigest()))
    return comm.bcast(digest.hexdigest())


def _chunks(piece: Piece) -> Iterator[np.ndarray]:
    """Yield a piece's elements (n,) as they are stored, some at a time."""
    if not len(piece.array):  # of a rank with nothing to do
        return
    array = piece.array.reshape(len(piece.array), -1)
    rows = max(1, _CHUNK_BYTES // max(array.shape[1] * array.itemsize, 1))
    for first in range(0, len(array), rows):
        part = array[first:first + rows].astype(np.float32) * np.float32(piece.factor)
        yield np.ascontiguousarray(part, array.dtype.newbyteorder("<")).reshape(-1)


def _received(comm: Intracomm, heads: list[Any], name: str, own: Sequence[Piece]) -> Iterator[memoryview]:
    """Yield the bytes of an array, in order; on rank 0."""
    room = np.empty(0, np.uint8)
    for piece in own:
        if piece.name == name:
            for chunk in _chunks(piece):
                yield memoryview(chunk.view(np.uint8))  # type: ignore[arg-type]
    for rank in range(1, comm.size):
        for other, shape, dtype in heads[rank]:
            if other != name:
                continue
            row_bytes = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
            rows = max(1, _CHUNK_BYTES // max(row_bytes, 1))
            for first in range(0, shape[0], rows):
                size = min(rows, shape[0] - first) * row_bytes
                if len(room) < size:
                    room = np.empty(size, np.uint8)
                comm.Recv(room[:size], rank)
                yield memoryview(room[:size])  # type: ignore[arg-type]


def _whole_shape(heads: list[Any], name: str) -> tuple[tuple[int, ...], np.dtype]:
    found = [(shape, dtype) for own in heads for one, shape, dtype in own if one == name]
    return (sum(shape[0] for shape, _ in found), *found[0][0][1:]), np.dtype(found[0][1]).newbyteorder("<")


def _skeleton(partial: Path, path: Path, shapes: dict[str, tuple[tuple[int, ...], np.dtype]], users: Ids, items: Ids,
              mean: float, settings: dict[str, Any]) -> dict[str, int]:
    """Write all but the arrays' numbers; return where these go.

    HDF5 that finds the disk full when it closes a file may crash the process: what is large is left to `write`.
    """
    needed = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in shapes.values()) + sum(
        int(ids.file_bytes.sum()) for ids in (users, items)) + _SPARE_BYTES
    if (free := shutil.disk_usage(partial.parent).free) < needed:
        raise UserError(f"cannot write {path}: it takes {needed >> 20:,} MiB, and {free >> 20:,} MiB are free; choose "
                        "another -o")
    with h5py.File(partial, "w", locking=False) as file:
        file.attrs.update(format=FORMAT, kind=KIND, dml_hpc_version=__version__, mean=float(mean),
                          settings=json.dumps(settings), digest=np.bytes_("0" * 64))
        for name, ids in zip(IDS, (users, items), strict=True):
            file.create_dataset(name, data=ids.values, dtype=h5py.string_dtype() if ids.is_text else "<i8")
        offsets = {}
        for name, (shape, dtype) in shapes.items():
            how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            how.set_obj_track_times(False)  # the same file each time
            space = h5py.h5s.create_simple(shape)
            made = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype), space, how)
            offsets[name] = made.get_offset() or 0
    return offsets


def _write(file: Any, data: memoryview) -> None:
    while len(data):
        data = data[file.write(data):]


@dataclass(frozen=True, eq=False)
class RatingFactors:
    """What `write_rating_factors` has written: a rating is predicted as mean + b_u + c_i + p_u·q_i.

    ``user_factors`` (users, k) and ``item_factors`` (items, k) are float32 or float16 and mapped: only what is read of
    them takes memory. Biases are (users,) and (items,) float32, None where none were learnt.
    """

    path: Path
    user_factors: np.ndarray
    item_factors: np.ndarray
    user_biases: np.ndarray | None
    item_biases: np.ndarray | None
    users: Ids
    items: Ids
    mean: float
    settings: dict[str, Any]
    digest: str

    @property
    def k(self) -> int:
        """How many factors there are."""
        return self.user_factors.shape[1]

    @cached_property
    def is_whole(self) -> bool:
        """Whether the numbers are those that were written; reads all of them."""
        digest = hashlib.sha256()
        for array in (self.user_factors, self.item_factors, self.user_biases, self.item_biases):
            if array is not None:
                rows = max(1, _CHUNK_BYTES // max(array[:1].nbytes, 1))
                for first in range(0, len(array), rows):
                    digest.update(np.ascontiguousarray(array[first:first + rows]).view(np.uint8).data)
        return digest.hexdigest() == self.digest


def read_rating_factors(path: Path) -> RatingFactors:
    """Return the factors in a file. Raises `UserError` when there are none, or they are not as they are written."""
    if not path.is_file():
        raise UserError(f"{path} is no file; `dml-hpc mf … -o {path}` makes one")
    try:
        with h5py.File(path, "r", locking=False) as file:
            kind = file.attrs.get("kind")
            if not isinstance(kind, str) or kind != KIND:
                raise UserError(f"{path} holds no factors of users and items; `dml-hpc mf` writes them")
            if file.attrs["format"] != FORMAT:
                raise UserError(f"{path} has format {file.attrs['format']}, this version reads {FORMAT}; run mf again")
            arrays = {name: _mapped(path, file, name) if file.get(name, getlink=True) else None for name in ARRAYS}
            users, items = (_ids(own(path, file, name)) for name in IDS)
            settings, digest = json.loads(file.attrs["settings"]), file.attrs["digest"].decode()
            user_factors, item_factors = arrays["user_factors"], arrays["item_factors"]
            if user_factors is None or item_factors is None:
                raise ValueError("its factors are missing")
            found = RatingFactors(path, user_factors, item_factors, arrays["user_biases"], arrays["item_biases"], users,
                                  items, float(file.attrs["mean"]), settings, digest)
        damage = _damage(found)
    except HDF5_ERRORS as error:
        raise UserError(f"{path} cannot be read as factors: {first_line(error)}") from None
    if damage:
        raise UserError(f"{path} is damaged: {damage}; run mf again")
    return found


def _mapped(path: Path, file: h5py.File, name: str) -> np.ndarray:
    dataset = own(path, file, name)
    if dataset.chunks is not None or dataset.dtype.newbyteorder("=") not in (np.float16, np.float32) or (
            dataset.id.get_storage_size() < dataset.nbytes):
        raise ValueError(f"{name} is not as it is written")
    if not dataset.size:
        return np.empty(dataset.shape, dataset.dtype)
    offset = dataset.id.get_offset()
    if offset is None or offset + dataset.nbytes > os.path.getsize(path):
        raise ValueError(f"{name} is not whole")
    return np.memmap(path, dataset.dtype, "r", offset, dataset.shape).view(np.ndarray)


def _ids(dataset: h5py.Dataset) -> Ids:
    return Ids(dataset[()] if dataset.dtype == np.int64 else dataset.asstr()[()])


def _damage(found: RatingFactors) -> str | None:
    """Return what is never written, None: all is well."""
    for side, factors, biases, ids in (("users", found.user_factors, found.user_biases, found.users),
                                       ("items", found.item_factors, found.item_biases, found.items)):
        if factors is None or factors.ndim != 2 or factors.shape != (len(ids), found.item_factors.shape[1]):
            return f"the factors of its {side} are no matrix of {len(ids)} rows"
        if biases is not None and (biases.shape != (len(ids),) or biases.dtype != np.float32):
            return f"its {side} have {biases.shape} biases"
    if (found.user_biases is None) != (found.item_biases is None):
        return "only one side has biases"
    return None if np.isfinite(found.mean) and isinstance(found.settings, dict) else "its mean is no number"
