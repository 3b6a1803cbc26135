"""Reducers that send less than the vector: one file a method, each around any other reducer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.comm.compression.compressed import Opener
    from dml_hpc.comm.reducer import Reducer
    from dml_hpc.device import Device

METHODS = ("float16", "bfloat16", "topk", "powersgd")


@dataclass(frozen=True)
class Compression:
    """How a vector is made small. Its last ``exact`` elements are not: they are summed as float32.

    ``ratio`` is the part of the elements that ``topk`` sends, ``rank`` the number of factors of ``powersgd``. Raises
    `ValueError` for a method not in `METHODS`, a ratio outside (0, 1], and a rank below 1.
    """

    method: str
    ratio: float = 0.01
    rank: int = 4
    exact: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown compression {self.method!r}; there are {', '.join(METHODS)}")
        if not 0 < self.ratio <= 1:
            raise ValueError(f"the ratio of elements that are sent lies in (0, 1], unlike {self.ratio}")
        if self.rank < 1:
            raise ValueError(f"the rank of a compression is at least 1, not {self.rank}")


def open_compressed(compression: Compression, open_inner: Opener, comm: Intracomm, size: int, dtype: str = "float32",
                    weights: str | None = None, device: Device | None = None) -> Reducer:
    """Collective: return a reducer for vectors of ``size`` elements that sends them compressed.

    With a ``device`` they lie there: then `AgreedError` is raised on every rank for a method that does not work there.

    ``open_inner(comm, size, dtype, weights=None)`` (collective) opens the reducers that sum what is sent; ``topk``
    needs none. With ``powersgd``, a vector that is no larger than its factors is not compressed: the reducer is an
    inner one then. Raises `ValueError` for a ``dtype`` other than float32, and for more exact elements than there are.
    """
    method, exact = compression.method, compression.exact
    if dtype != "float32":
        raise ValueError(f"compression sums float32, not {dtype}")
    if not 0 <= exact <= size:
        raise ValueError(f"of {size} elements {exact} cannot be exact")
    if device is not None:
        return _open_on_device(compression, open_inner, comm, size, weights, device)
    if method == "topk":
        from dml_hpc.comm.compression.topk import TopKReducer

        return TopKReducer(comm, size, exact, weights, compression.ratio)
    if method == "powersgd":
        from dml_hpc.comm.compression.powersgd import PowerReducer, shape

        if compression.rank * sum(shape(size - exact)) >= size - exact:
            return open_inner(comm, size, dtype, weights=weights)
        return PowerReducer(open_inner, comm, size, exact, weights, compression.rank)
    from dml_hpc.comm.compression.half import BFloat16Reducer, Float16Reducer

    half = Float16Reducer if method == "float16" else BFloat16Reducer
    return half(open_inner, comm, size, exact, weights)


def _open_on_device(compression: Compression, open_inner: Opener, comm: Intracomm, size: int, weights: str | None,
                    device: Device) -> Reducer:
    from dml_hpc.errors import UserError
    from dml_hpc.mpi import agreed

    method = compression.method
    with agreed(comm):
        if method not in ("float16", "bfloat16"):
            raise UserError(f"--compression {method} works in the host's memory only: use float16 or bfloat16 with "
                            "--device cuda, or --device cpu")
    from dml_hpc.comm.on_device.wire import DeviceHalf

    return DeviceHalf(open_inner, comm, size, compression.exact, weights, method, device)
