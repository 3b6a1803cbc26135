"""Memory that the ranks of a node share: one anonymous file, of which every rank maps what it wants where it wants."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.errors import AgreedError, UserError
from dml_hpc.mpi import agreed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

PAGE_BYTES = mmap.PAGESIZE
_MAP_FIXED, _MAP_POPULATE = 0x10, 0x8000
_FAILED = ctypes.c_void_p(-1).value


def whole_pages(n_bytes: int) -> int:
    """Return ``n_bytes`` rounded up to whole pages."""
    return -(-n_bytes // PAGE_BYTES) * PAGE_BYTES


class SharedMemory:
    """``n_bytes`` of zeroed memory that all ranks of ``node``, which run on one node, can map.

    Collective over ``comm``, of whose ranks ``node`` holds some: when one node cannot, all raise `AgreedError`. The
    file has no name (Linux ``memfd_create``), so nothing of it is left behind however the job ends, and it does not
    depend on the size of /dev/shm. Each rank takes its ``own`` pieces (first byte, number of bytes) of the memory now,
    near its own core, so that a node with too little of it fails here and not in the middle of a sum. ``instead`` is
    what a user can do where there is none.
    """

    def __init__(self, comm: Intracomm, node: Intracomm, n_bytes: int, own: Sequence[tuple[int, int]],
                 instead: str = ""):
        self._file = self._made = -1
        self._instead = instead
        self._n_bytes = n_bytes
        path = ""
        try:
            with agreed(comm):
                if node.rank == 0:
                    path = self._make()
            path = node.bcast(path)
            with agreed(comm):
                self._take(path, own)
        except AgreedError:
            self.close()
            raise

    def _make(self) -> str:
        if not hasattr(os, "memfd_create"):
            raise UserError(f"memory that ranks share needs Linux{self._advice()}")
        self._made = os.memfd_create("dml-hpc", os.MFD_CLOEXEC)
        os.ftruncate(self._made, self._n_bytes)
        return f"/proc/{os.getpid()}/fd/{self._made}"

    def _take(self, path: str, own: Sequence[tuple[int, int]]) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise UserError(f"the ranks of this node cannot share memory ({path}: {why}); they run "
                            f"in containers or as users of their own{self._advice()}") from None
        try:
            for first, length in own:
                if length:
                    os.posix_fallocate(self._file, first, length)
        except OSError as error:
            raise self._too_little(error) from None

    def _too_little(self, error: OSError) -> UserError:
        return UserError(f"the node has not the {self._n_bytes / 1e9:.1f} GB of memory that its ranks share "
                         f"({os.strerror(error.errno or 0)}){self._advice('fewer ranks a node')}")

    def _advice(self, first: str = "") -> str:
        ways = [way for way in (first, self._instead) if way]
        return f"; use {', or '.join(ways)}" if ways else ""

    def map(self, *pieces: tuple[int, int]) -> np.ndarray:
        """Return bytes (n,) uint8 that show the file's ``pieces`` (first byte, number of bytes) one after the other.

        Pieces begin and end on pages. The mapping lives as long as the array and its views. Raises `UserError` when
        the process may map no more.
        """
        try:
            return self._map(pieces)
        except OSError as error:
            raise self._too_little(error) from None

    def _map(self, pieces: Sequence[tuple[int, int]]) -> np.ndarray:
        total = sum(length for _, length in pieces)
        if total == 0:
            return np.empty(0, np.uint8)
        # Room for all of them first; the pieces then replace it part by part.
        view = np.frombuffer(mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
        address = view.ctypes.data
        for first, length in pieces:
            if length:
                got = _libc().mmap(address, length, mmap.PROT_READ | mmap.PROT_WRITE,
                                   mmap.MAP_SHARED | _MAP_FIXED | _MAP_POPULATE, self._file, first)
                if got == _FAILED:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "shared memory")
            address += length
        return view

    def close(self) -> None:
        """Give the file back; what is mapped stays mapped. For use when all ranks have opened it."""
        for file in (self._file, self._made):
            if file >= 0:
                os.close(file)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    return libc
