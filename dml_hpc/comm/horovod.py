"""``horovod``: Horovod's all-reduce on MPI, for people who run Horovod already and for comparison."""

from __future__ import annotations

import itertools
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dml_hpc.comm.background import NAP_S, in_background
from dml_hpc.comm.place import HOST, Place
from dml_hpc.comm.reducer import Reducer, Update
from dml_hpc.errors import UserError
from dml_hpc.mpi import agreed, world

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

MOST_ELEMENTS = 1 << 30
"""In one call: Horovod hands MPI a C int."""
DTYPES = ("float32", "float64", "int64", "float16")
INSTALL = "scripts/install_horovod.sh builds it (docs/horovod.md)"


class HorovodReducer(Reducer):
    """Horovod's `allreduce_` in place; every rank owns the whole sum, and updates all weights.

    Horovod runs from the first of these reducers to the last one's end: a thread of its own on every rank keeps
    asking the others what is to be summed.
    """

    name = "horovod"
    _numbers = itertools.count()
    _open: ClassVar[int] = 0

    def __init__(self, comm: Intracomm, size: int, dtype: str, weights_dtype: str | None = None,
                 place: Place = HOST):
        """Raises `AgreedError` on every rank when Horovod is missing, or cannot sum ``dtype`` or over ``comm``."""
        with agreed(comm):
            self._horovod = _load(comm, dtype)
        super().__init__(comm, size, dtype, weights_dtype, place)
        self.bytes_sent = None
        self.owned = (0, size)
        import torch

        # Ranks tell each other by name what they are ready to sum.
        number = next(self._numbers)
        self._parts = [(torch.from_numpy(self.buffer[start:start + MOST_ELEMENTS]), f"dml-hpc.{number}.{start}")
                       for start in range(0, size, MOST_ELEMENTS)]
        if not HorovodReducer._open:
            self._initialise(comm)
        HorovodReducer._open += 1

    def _initialise(self, comm: Intracomm) -> None:
        # How long the thread sleeps between two questions: 1 ms, unless told otherwise, is longer than most sums take.
        os.environ.setdefault("HOROVOD_CYCLE_TIME", "0")
        self._horovod.init()
        with agreed(comm):
            if self._horovod.size() != comm.size:
                raise UserError(f"Horovod sees {self._horovod.size()} of {comm.size} ranks; {INSTALL}")

    def _allreduce(self) -> None:
        horovod = self._horovod
        handles = [horovod.allreduce_async_(part, op=horovod.Sum, name=name) for part, name in self._parts]
        for handle in handles:
            # `synchronize` alone would wait as long, but deaf to signals.
            while not horovod.poll(handle):
                if in_background():
                    time.sleep(NAP_S)
                else:
                    os.sched_yield()
            horovod.synchronize(handle)

    _reduce_scatter = _allreduce

    def _allgather(self) -> None:
        """Every rank has all of it."""

    def _reduce_update(self, update: Update) -> None:
        self._allreduce()
        update(self.buffer, 0, self.size)

    def close(self) -> None:
        """Collective: see `Reducer.close`; the last of these reducers ends Horovod."""
        super().close()
        HorovodReducer._open -= 1
        if not HorovodReducer._open:
            self._horovod.shutdown()


def _load(comm: Intracomm, dtype: str) -> Any:
    """Return the module ``horovod.torch``; raise `UserError` when it cannot sum ``dtype`` over ``comm``."""
    from mpi4py import MPI

    if dtype not in DTYPES:
        raise UserError(f"Horovod does not sum {dtype} over MPI; it sums {', '.join(DTYPES)}")
    if MPI.Comm.Compare(comm, world()) == MPI.UNEQUAL:
        raise UserError("Horovod sums over all ranks of the job, not over some of them")
    try:
        import horovod.torch
    except Exception as error:  # it is not there, or was built for another torch, or …
        raise UserError(f"Horovod cannot be imported ({str(error).splitlines()[0]}); {INSTALL}") from None
    if not (hasattr(horovod.torch, "init") and horovod.torch.mpi_built()):
        raise UserError(f"this Horovod was built without PyTorch or MPI; {INSTALL}")
    libraries = set(re.findall(r"/\S*/libmpi(?:ch)?\.so\S*", Path("/proc/self/maps").read_text()))
    if len(libraries) > 1:
        raise UserError(f"Horovod was built on another MPI library than mpi4py uses ({', '.join(sorted(libraries))}); "
                        f"{INSTALL}")
    return horovod.torch
