"""A communicator whose waiting is watched: see `dml_hpc.watch`."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

from dml_hpc.watch import waiting


class WatchedComm(MPI.Intracomm):
    """An `Intracomm` that tells the watch when it waits for other ranks, as do all communicators made from it."""

    def Barrier(self) -> None:  # noqa: N802 -- MPI's names
        """See `MPI.Comm.Barrier`."""
        with waiting("a barrier"):
            super().Barrier()

    def Bcast(self, *arguments: Any, **options: Any) -> None:  # noqa: N802
        """See `MPI.Comm.Bcast`."""
        with waiting("a broadcast"):
            super().Bcast(*arguments, **options)

    def Allreduce(self, *arguments: Any, **options: Any) -> None:  # noqa: N802
        """See `MPI.Comm.Allreduce`."""
        with waiting("an all-reduce"):
            super().Allreduce(*arguments, **options)

    def Allgatherv(self, *arguments: Any, **options: Any) -> None:  # noqa: N802
        """See `MPI.Comm.Allgatherv`."""
        with waiting("an all-gather"):
            super().Allgatherv(*arguments, **options)

    def bcast(self, *arguments: Any, **options: Any) -> Any:
        """See `MPI.Comm.bcast`."""
        with waiting("a broadcast"):
            return super().bcast(*arguments, **options)

    def gather(self, *arguments: Any, **options: Any) -> Any:
        """See `MPI.Comm.gather`."""
        with waiting("a gather"):
            return super().gather(*arguments, **options)

    def allgather(self, *arguments: Any, **options: Any) -> Any:
        """See `MPI.Comm.allgather`."""
        with waiting("an all-gather"):
            return super().allgather(*arguments, **options)

    def allreduce(self, *arguments: Any, **options: Any) -> Any:
        """See `MPI.Comm.allreduce`."""
        with waiting("an all-reduce"):
            return super().allreduce(*arguments, **options)

    def Send(self, *arguments: Any, **options: Any) -> None:  # noqa: N802
        """See `MPI.Comm.Send`."""
        with waiting("a message to be taken", counted=False):
            super().Send(*arguments, **options)

    def Recv(self, *arguments: Any, **options: Any) -> None:  # noqa: N802
        """See `MPI.Comm.Recv`."""
        with waiting("a message", counted=False):
            super().Recv(*arguments, **options)

    def Dup(self, *arguments: Any, **options: Any) -> Any:  # noqa: N802
        """See `MPI.Comm.Dup`."""
        with waiting("a duplication"):
            return super().Dup(*arguments, **options)

    def Free(self) -> None:  # noqa: N802
        """See `MPI.Comm.Free`."""
        with waiting("a release"):
            super().Free()
