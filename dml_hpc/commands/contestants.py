"""Who takes part in ``bench allreduce``: reducers, reducers that send less, and other people's all-reduces."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from dml_hpc.comm import open_reducer
from dml_hpc.comm.compression import Compression
from dml_hpc.comm.elements import DTYPES
from dml_hpc.comm.horovod import DTYPES as HOROVOD_DTYPES
from dml_hpc.comm.peers import Gloo, GlooGroup, RawLibrary, gloo_absent, horovod_absent
from dml_hpc.errors import AgreedError

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Contestant(NamedTuple):
    """An all-reduce (one of `ALLREDUCES`, or a peer's) and how it compresses the vector."""

    name: str
    allreduce: str
    compression: str = "none"

    @property
    def exact(self) -> bool:
        """Whether its sums of small whole numbers must be right to the bit."""
        return self.compression == "none"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The types of element it sums."""
        if not self.exact:
            return ("float32",)
        return {RawLibrary.name: RawLibrary.DTYPES, Gloo.name: Gloo.DTYPES,
                "horovod": HOROVOD_DTYPES}.get(self.allreduce, DTYPES)

    @property
    def vectors(self) -> int:
        """How many vectors it may hold at a time, the libraries' own copies included."""
        return 2 if self.exact and self.allreduce not in ("auto", RawLibrary.name, Gloo.name) else 4

    @property
    def restless(self) -> bool:
        """Whether it takes cores from the others while it is open: Horovod's thread never stops asking."""
        return self.allreduce == "horovod"

    def open(self, comm: Intracomm, size: int, dtype: str, fan_in: int) -> Any:
        """Collective: return what has ``buffer``, ``total`` and ``allreduce()``, and is closed by a ``with`` block."""
        if self.allreduce == RawLibrary.name:
            return RawLibrary(comm, size, dtype)
        if self.allreduce == Gloo.name:
            return Gloo(comm, size, dtype)
        compression = None if self.exact else Compression(self.compression)
        return open_reducer(self.allreduce, comm, size, dtype, fan_in=fan_in, compression=compression)


def own(reducers: Sequence[str], compressions: Sequence[str]) -> list[Contestant]:
    """Return every reducer with every compression; ``topk`` once, as it gathers by itself whatever sums elsewhere."""
    found = [Contestant(name, name) for name in reducers if "none" in compressions]
    for method in compressions:
        if method == "topk":
            found.append(Contestant(method, reducers[0], method))
        elif method != "none":
            found += [Contestant(f"{name}+{method}", name, method) for name in reducers]
    return found


def peers(comm: Intracomm, nodes: int, opened: ExitStack) -> tuple[list[Contestant], list[str]]:
    """Collective: return the peers that can be measured here, and who cannot and why.

    What they need beyond a vector is left with ``opened``.
    """
    found, absent = [Contestant(RawLibrary.name, RawLibrary.name)], []
    why = horovod_absent(comm)
    if why is None:
        try:
            open_reducer("horovod", comm, 1).close()
            found.append(Contestant("horovod", "horovod"))
        except AgreedError as error:
            why = f"Horovod ({error})"
    absent += [why] if why is not None else []
    why = gloo_absent(comm, nodes)
    if why is None:
        opened.enter_context(GlooGroup(comm))
        found.append(Contestant(Gloo.name, Gloo.name))
    absent += [why] if why is not None else []
    return found, absent
