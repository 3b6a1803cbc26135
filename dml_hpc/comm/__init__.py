"""How vectors are summed: one file a reducer, one small protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.comm.compression import Compression
    from dml_hpc.comm.reducer import Reducer

REDUCERS = ("mpi", "ring", "tree", "hierarchical")
"""The reducers that work wherever MPI does; the last between ranks of Linux nodes."""
ALLREDUCES = ("auto", *REDUCERS, "horovod")
"""What a user may ask for: the fastest here, one of them, or Horovod's, where it is installed."""
COMPRESSIONS = ("none", "float16", "bfloat16", "topk", "powersgd")


def open_reducer(name: str, comm: Intracomm, size: int, dtype: str = "float32", device: str = "cpu",
                 fan_in: int = 2, weights: str | None = None, tuning: Path | None = None,
                 compression: Compression | None = None) -> Reducer:
    """Collective: return the reducer called ``name`` for vectors of ``size`` elements of ``dtype``.

    The reducer owns a duplicate of ``comm`` and its buffer; use it as a context manager. ``fan_in`` is the number
    of children a rank adds up in the ``tree``. With ``weights``, a dtype, it also owns weights for fused updates.
    ``auto`` keeps what it measures in the file ``tuning``, if one is named. ``compression`` wraps the reducer, for
    float32. Raises `ValueError` for an unknown name or a device other than "cpu", and `AgreedError` on every rank for
    what the user can mend.
    """
    if device != "cpu":
        raise ValueError(f"no reducer sums on device {device!r}")
    if compression is not None:
        from dml_hpc.comm.compression import open_compressed

        def open_inner(comm: Intracomm, size: int, dtype: str, weights: str | None = None) -> Reducer:
            return open_reducer(name, comm, size, dtype, device, fan_in, weights, tuning)

        return open_compressed(compression, open_inner, comm, size, dtype, weights)
    if name == "auto":
        from dml_hpc.comm.auto import open_auto

        return open_auto(comm, size, dtype, weights is not None, tuning,
                         lambda one: open_reducer(one, comm, size, dtype, device, fan_in, weights))
    if name == "mpi":
        from dml_hpc.comm.mpi_library import LibraryReducer

        return LibraryReducer(comm, size, dtype, weights)
    if name == "ring":
        from dml_hpc.comm.ring import RingReducer

        return RingReducer(comm, size, dtype, weights)
    if name == "tree":
        from dml_hpc.comm.tree import TreeReducer

        return TreeReducer(comm, size, dtype, weights, fan_in)
    if name == "hierarchical":
        from dml_hpc.comm.hierarchical import HierarchicalReducer

        return HierarchicalReducer(comm, size, dtype, weights)
    if name == "horovod":
        from dml_hpc.comm.horovod import HorovodReducer

        return HorovodReducer(comm, size, dtype, weights)
    raise ValueError(f"unknown reducer {name!r}")
