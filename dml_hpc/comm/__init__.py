"""How vectors are summed: one file a reducer, one small protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.comm.reducer import Reducer

REDUCERS = ("mpi", "ring", "tree", "hierarchical")


def open_reducer(name: str, comm: Intracomm, size: int, dtype: str = "float32", device: str = "cpu",
                 fan_in: int = 2, weights: str | None = None) -> Reducer:
    """Collective: return the reducer called ``name`` for vectors of ``size`` elements of ``dtype``.

    The reducer owns a duplicate of ``comm`` and its buffer; use it as a context manager. ``fan_in`` is the number
    of children a rank adds up in the ``tree``. With ``weights``, a dtype, it also owns weights for fused updates.
    Raises `ValueError` for an unknown name, or a device other than "cpu".
    """
    if device != "cpu":
        raise ValueError(f"no reducer sums on device {device!r}")
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
    raise ValueError(f"unknown reducer {name!r}")
