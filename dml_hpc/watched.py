"""A communicator whose waiting is watched (see `dml_hpc.watch`), and that knows all that were made from it."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

from dml_hpc.watch import waiting


class WatchedComm(MPI.Intracomm):
    """An `Intracomm` that tells the watch when it waits for other ranks, as do all communicators made from it.

    ``family`` are it and those, so that all can be revoked when a rank has died: whoever waits in one of them is woken.
    """

    family: list[MPI.Comm]
    counted = True
    """Whether every rank of the world is in it, and so in each of its collectives."""

    def Barrier(self) -> None:  # noqa: N802 -- MPI's names
        """See `MPI.Comm.Barrier`."""
        with waiting("a barrier", self.counted):
            super().Barrier()

    def Bcast(self, *arguments: Any, **options: Any) -> None:  # noqa: N802
        """See `MPI.Comm.Bcast`."""
        with waiting("a broadcast", self.counted):
            super().Bcast(*arguments, **options)

    def Allreduce(self, *arguments: Any, **options: Any) -> None:  # noqa: N802
        """See `MPI.Comm.Allreduce`."""
        with waiting("an all-reduce", self.counted):
            super().Allreduce(*arguments, **options)

    def Allgather(self, *arguments: Any, **options: Any) -> None:  # noqa: N802
        """See `MPI.Comm.Allgather`."""
        with waiting("an all-gather", self.counted):
            super().Allgather(*arguments, **options)

    def Allgatherv(self, *arguments: Any, **options: Any) -> None:  # noqa: N802
        """See `MPI.Comm.Allgatherv`."""
        with waiting("an all-gather", self.counted):
            super().Allgatherv(*arguments, **options)

    def bcast(self, *arguments: Any, **options: Any) -> Any:
        """See `MPI.Comm.bcast`."""
        with waiting("a broadcast", self.counted):
            return super().bcast(*arguments, **options)

    def gather(self, *arguments: Any, **options: Any) -> Any:
        """See `MPI.Comm.gather`."""
        with waiting("a gather", self.counted):
            return super().gather(*arguments, **options)

    def allgather(self, *arguments: Any, **options: Any) -> Any:
        """See `MPI.Comm.allgather`."""
        with waiting("an all-gather", self.counted):
            return super().allgather(*arguments, **options)

    def allreduce(self, *arguments: Any, **options: Any) -> Any:
        """See `MPI.Comm.allreduce`."""
        with waiting("an all-reduce", self.counted):
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
        with waiting("a duplication", self.counted):
            return self._related(super().Dup(*arguments, **options), self.counted)

    def Split(self, *arguments: Any, **options: Any) -> Any:  # noqa: N802
        """See `MPI.Comm.Split`."""
        with waiting("a split", self.counted):
            return self._related(super().Split(*arguments, **options))

    def Split_type(self, *arguments: Any, **options: Any) -> Any:  # noqa: N802
        """See `MPI.Comm.Split_type`."""
        with waiting("a split", self.counted):
            return self._related(super().Split_type(*arguments, **options))

    def Free(self) -> None:  # noqa: N802
        """See `MPI.Comm.Free`."""
        if (family := getattr(self, "family", None)) is not None:
            family[:] = [member for member in family if member is not self]
        with waiting("a release", self.counted):
            super().Free()

    def _related(self, made: Any, counted: bool = False) -> Any:
        """Return ``made`` as one of the family; of most kinds mpi4py itself makes plain communicators."""
        if made == MPI.COMM_NULL:
            return made
        relative = WatchedComm(made)
        relative.counted = counted
        if (family := getattr(self, "family", None)) is not None:
            relative.family = family
            family.append(relative)
        return relative


def watched(comm: MPI.Intracomm) -> WatchedComm:
    """Return ``comm`` as the first of a family."""
    first = WatchedComm(comm)
    first.family = [first]
    return first
