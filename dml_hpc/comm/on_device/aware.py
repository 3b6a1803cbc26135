"""Whether this MPI library sends vectors from and to a device's memory itself: it is asked, and then tried."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.on_device.places import OnDevice
from dml_hpc.comm.ring import RingReducer
from dml_hpc.device import Device
from dml_hpc.files import first_line

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

PROBED = (1000, 1 << 20)
"""Elements of float32 that are summed for a trial: messages that a library sends at once, and such that it does not."""
QUERY, LATER_QUERY = "MPIX_Query_cuda_support", "MPIX_GPU_query_support"
"""By which Open MPI and MPICH say whether they were built for it, MPICH lately by the second."""
CUDA = 0
"""What the second is asked for: `MPIX_GPU_SUPPORT_CUDA` of MPICH's mpi.h."""
SETTING = "MPICH_GPU_SUPPORT_ENABLED"
"""By which Cray's MPICH is told to; it is 1 then."""


def why_staged(comm: Intracomm, device: Device) -> str | None:
    """Collective: return why vectors on a device cannot be handed to MPI, None where they can.

    A library that says so of itself is tried on sums whose result is known: a small ring and a large one.
    """
    if not min(comm.allgather(library_says())):
        return "this MPI does not take device buffers"
    for count in PROBED:
        wrong = [found for found in comm.allgather(_try(comm, device, count)) if found is not None]
        if wrong:
            return f"this MPI says that it takes device buffers, but {wrong[0]}"
    return None


def library_says() -> bool:
    """Return whether the MPI library of this process says that it takes buffers in a GPU's memory."""
    if os.environ.get(SETTING) == "1":
        return True
    libraries = set(re.findall(r"/\S*/libmpi(?:ch)?\.so\S*", Path("/proc/self/maps").read_text()))
    return any(_answer(path) for path in libraries)


def _answer(path: str) -> bool:
    try:
        library = ctypes.CDLL(path)
    except OSError:
        return False
    supported = ctypes.c_int(0)
    if hasattr(library, LATER_QUERY) and getattr(library, LATER_QUERY)(CUDA, ctypes.byref(supported)) == 0:
        return bool(supported.value)
    return hasattr(library, QUERY) and bool(getattr(library, QUERY)())


def _try(comm: Intracomm, device: Device, count: int) -> str | None:
    """Collective: sum ``count`` whole numbers around a ring twice; return what went wrong on this rank, if anything."""
    wanted = sum(_numbers(rank, count) for rank in range(comm.size))
    right = True
    try:
        with RingReducer(comm, count, "float32", place=OnDevice(device)) as ring:
            for _ in range(2):
                device.put(_numbers(comm.rank, count), ring.buffer)
                ring.allreduce()
                right &= np.array_equal(device.get(ring.total), wanted)
    except Exception as error:  # what a library raises, it raises on all ranks
        return f"a ring of them failed ({first_line(error)})"
    return None if right else "a sum came out wrong"


def _numbers(rank: int, count: int) -> np.ndarray:
    return ((np.arange(count) + 7 * rank) % 101).astype(np.float32)
