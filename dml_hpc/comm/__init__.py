"""How vectors are summed: one file a reducer, one small protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.comm.compression import Compression
    from dml_hpc.comm.place import Place
    from dml_hpc.comm.reducer import Reducer
    from dml_hpc.device import Device

REDUCERS = ("mpi", "ring", "tree", "hierarchical")
"""The reducers that work wherever MPI does; the last between ranks of Linux nodes."""
ALLREDUCES = ("auto", *REDUCERS, "horovod", "nccl")
"""What a user may ask for: the fastest here, one of them, Horovod's, where it is installed, or NCCL's, on GPUs."""
COMPRESSIONS = ("none", "float16", "bfloat16", "topk", "powersgd")


def open_reducer(name: str, comm: Intracomm, size: int, dtype: str = "float32", device: Device | None = None,
                 fan_in: int = 2, weights: str | None = None, tuning: Path | None = None,
                 compression: Compression | None = None) -> Reducer:
    """Collective: return the reducer called ``name`` for vectors of ``size`` elements of ``dtype``.

    The reducer owns a duplicate of ``comm`` and its buffer; use it as a context manager. With a ``device`` its vectors
    lie there (see `comm.on_device`), else in the host's memory. ``fan_in`` is the number of children a rank adds up in
    the ``tree``. With ``weights``, a dtype, it also owns weights for fused updates. ``auto`` keeps what it measures in
    the file ``tuning``, if one is named. ``compression`` wraps the reducer, for float32. Raises `ValueError` for an
    unknown name, and `AgreedError` on every rank for what the user can mend.
    """
    if name not in ALLREDUCES:
        raise ValueError(f"unknown reducer {name!r}")
    if compression is not None:
        from dml_hpc.comm.compression import open_compressed

        def open_inner(comm: Intracomm, size: int, dtype: str, weights: str | None = None) -> Reducer:
            return open_reducer(name, comm, size, dtype, device, fan_in, weights, tuning)

        return open_compressed(compression, open_inner, comm, size, dtype, weights, device)
    if device is not None:
        from dml_hpc.comm.on_device import open_on_device

        return open_on_device(name, comm, size, dtype, device, fan_in, weights, tuning)
    if name == "auto":
        from dml_hpc.comm.auto import open_auto

        return open_auto(comm, size, dtype, weights is not None, tuning,
                         lambda one: open_plain(one, comm, size, dtype, fan_in, weights))
    return open_plain(name, comm, size, dtype, fan_in, weights)


def open_plain(name: str, comm: Intracomm, size: int, dtype: str, fan_in: int = 2, weights: str | None = None,
               place: Place | None = None) -> Reducer:
    """Collective: return one of `REDUCERS`, or Horovod's, with vectors at ``place`` (None: in the host's memory).

    See `open_reducer`. ``hierarchical`` has memory of its own.
    """
    from dml_hpc.comm.place import HOST

    place = place or HOST
    if name == "mpi":
        from dml_hpc.comm.mpi_library import LibraryReducer

        return LibraryReducer(comm, size, dtype, weights, place)
    if name == "ring":
        from dml_hpc.comm.ring import RingReducer

        return RingReducer(comm, size, dtype, weights, place)
    if name == "tree":
        from dml_hpc.comm.tree import TreeReducer

        return TreeReducer(comm, size, dtype, weights, fan_in, place)
    if name == "hierarchical":
        from dml_hpc.comm.hierarchical import HierarchicalReducer

        return HierarchicalReducer(comm, size, dtype, weights)
    if name == "horovod":
        from dml_hpc.comm.horovod import HorovodReducer

        return HorovodReducer(comm, size, dtype, weights, place)
    from dml_hpc.errors import UserError
    from dml_hpc.mpi import agreed

    with agreed(comm):
        raise UserError(f"{name} sums vectors on GPUs: give --device cuda as well, or another --allreduce")
    raise AssertionError("all ranks agreed")
