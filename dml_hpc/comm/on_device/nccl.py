"""``nccl``: NVIDIA's all-reduce, through CuPy, for one rank a GPU."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from dml_hpc.comm.elements import storage
from dml_hpc.comm.on_device.places import OnDevice
from dml_hpc.comm.reducer import Reducer, Update
from dml_hpc.device import Array, Device
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.kernels.cuda.sums import address
from dml_hpc.mpi import agreed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class NcclReducer(Reducer):
    """NCCL's reduce-scatter and all-gather in place, in the device's stream; ``total`` is ``buffer``.

    All ranks own as many elements, the last ones fewer: vectors are padded. Raises `AgreedError` on every rank where
    there is no NCCL, or two ranks share a GPU, which NCCL refuses.
    """

    name = "nccl"

    def __init__(self, comm: Intracomm, size: int, dtype: str, device: Device, weights_dtype: str | None = None):
        with agreed(comm):
            self._nccl = load()
        gpus = comm.allgather(gpu(device))
        with agreed(comm):
            self._check(gpus, comm.rank)
        self._device, self._communicator = device, None
        self._share = -(-size // comm.size)
        super().__init__(comm, size, dtype, weights_dtype, OnDevice(device))
        self.bytes_sent = None
        self.owned = (min(size, self._share * comm.rank), min(size, self._share * (comm.rank + 1)))
        try:
            key = self.comm.bcast(self._nccl.get_unique_id() if comm.rank == 0 else None)
            with agreed(self.comm):
                self._communicator = self._nccl.NcclCommunicator(comm.size, key, comm.rank)
        except AgreedError:
            self.comm.Free()
            raise

    @staticmethod
    def _check(gpus: list[tuple[str, str]], rank: int) -> None:
        first = gpus.index(gpus[rank])
        if first != rank:
            raise UserError(f"ranks {first} and {rank} share a GPU, which NCCL refuses: start one rank a GPU, or use "
                            "--allreduce hierarchical")

    def _allocate(self, weights_dtype: str | None) -> None:
        padded = self._share * self.comm.size
        self._padded = [self.place.zeros(padded, storage(dtype)) for dtype in (self.dtype, weights_dtype)
                        if dtype is not None]
        self.buffer = self.total = self._padded[0][:self.size]
        if weights_dtype is not None:
            self.weights = self._padded[1][:self.size]
        names = [self.dtype, weights_dtype]
        self._kinds = [getattr(self._nccl, f"NCCL_{name.upper()}") for name in names if name is not None]

    def _reduce_scatter(self) -> None:
        whole, own = self._pointers(self._padded[0])
        self._call("reduceScatter", whole, own, self._share, self._kinds[0], self._nccl.NCCL_SUM)

    def _allgather(self) -> None:
        self._gather(0)

    def _reduce_update(self, update: Update) -> None:
        self._reduce_scatter()
        start, stop = self.owned
        if start < stop:
            update(self.total[start:stop], start, stop)
        self._gather(1)

    def _gather(self, vector: int) -> None:
        whole, own = self._pointers(self._padded[vector])
        self._call("allGather", own, whole, self._share, self._kinds[vector])

    def _allreduce(self) -> None:
        whole = address(self._padded[0])
        self._call("allReduce", whole, whole, self.size, self._kinds[0], self._nccl.NCCL_SUM)

    def _pointers(self, padded: Array) -> tuple[int, int]:
        """Return where a vector lies, and this rank's part of it."""
        whole = address(padded)
        return whole, whole + self._share * self.comm.rank * padded.itemsize

    def _call(self, operation: str, *arguments: Any) -> None:
        if self._share:
            self._device.mark()  # a thread that is new to the device has its stream from now on
            getattr(self._communicator, operation)(*arguments, stream(self._device))

    def _free(self) -> None:
        self.settle()
        if self._communicator is not None:
            self._communicator.destroy()


def load() -> Any:
    """Return CuPy's module of NCCL; raise `UserError` where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cupy.cuda import nccl
    if not nccl.available:
        raise UserError("CuPy finds no NCCL: pip install nvidia-nccl-cu12 (or -cu13, as your CuPy), or use "
                        "--allreduce hierarchical")
    return nccl


def gpu(device: Device) -> tuple[str, str]:
    """Return what tells a GPU from all others of the job: its machine's name and its identity there."""
    from mpi4py import MPI

    return MPI.Get_processor_name(), device.identity


def stream(device: Device) -> int:
    """Return the stream that the calling thread's work on ``device`` is queued in."""
    return device.xp.cuda.get_current_stream().ptr
