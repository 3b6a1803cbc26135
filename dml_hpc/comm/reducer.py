"""What every reducer is: the owner of a buffer, and of the sum of all ranks' buffers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from dml_hpc.comm.background import Background
from dml_hpc.comm.elements import storage
from dml_hpc.comm.place import HOST, Place
from dml_hpc.device import Array
from dml_hpc.watch import waiting

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

Update = Callable[[Array, int, int], None]
"""``update(summed, start, stop)`` is given elements ``start`` … ``stop − 1`` of the sum, while they are in cache, and
writes those of ``reducer.weights``; it may be called several times, for parts of ``reducer.owned``. Where vectors lie
on a device, all it does is queued there."""


Function = TypeVar("Function", bound=Callable[..., None])


def takes_lazy_sums(update: Function) -> Function:
    """Say of an `Update` of vectors on a device that ``summed`` may be a `dml_hpc.kernels.cuda.sums.LazySum`.

    A reducer that has all addends at hand then leaves their sum to it: one pass over memory is saved. For functions,
    and as a decorator for methods.
    """
    update.takes_lazy_sums = True  # type: ignore[attr-defined]
    return update


class Reducer(ABC):
    """Sums one vector of ``size`` elements over the ranks of a communicator.

    - ``buffer`` (size,): the caller writes this rank's addend there, all of it, before each call. Ask for it anew
      after each call: it may have moved.
    - ``total`` (size,): after `allreduce` the sum, the same to the bit on every rank, to be read until the next call
      begins. It may lie where ``buffer`` lies, and in memory that other ranks read too: write to neither between a
      call and the last use of its sum.
    - ``weights`` (size,), when asked for: what `reduce_update` gathers. It keeps its content between calls. On a device
      it is this rank's own, which may change it between calls, once all ranks have come back from the last.
    - ``place``: where these lie. On a device, work on them is queued, here as by the caller, and `settle` waits for it.
    - ``owned``: the range of elements whose sum this rank has after `reduce_scatter`, and updates in `reduce_update`.
      Every element is some rank's; with some algorithms every rank's.

    ``float16`` is NumPy's; ``bfloat16``, which NumPy lacks, is held as its bits in uint16 (see `elements`). Nothing is
    allocated or copied per call beyond what the algorithm sends. ``bytes_sent`` counts what this rank has sent to other
    ranks in messages so far (None: the library underneath does not say).
    """

    name: str
    compression: str | None = None
    """How it makes the vector small before it sends it."""
    choice: str | None = None
    """Why it was chosen, when that was left to ``auto``."""
    buffer: Array
    total: Array
    owned: tuple[int, int]

    def __init__(self, comm: Intracomm, size: int, dtype: str, weights_dtype: str | None = None, place: Place = HOST):
        self.comm = comm.Dup()  # our messages can never meet the caller's
        self.place = place
        self.size = size
        self.dtype = dtype
        self.bytes_sent: int | None = 0
        self.weights: Array | None = None
        self._background: Background | None = None
        self._allocate(weights_dtype)

    def _allocate(self, weights_dtype: str | None) -> None:
        """Make ``buffer``, ``total`` and, if there is a dtype for them, ``weights``; all of them zero."""
        self.buffer = self.total = self.place.zeros(self.size, storage(self.dtype))
        if weights_dtype is not None:
            self.weights = self.place.zeros(self.size, storage(weights_dtype))

    def allreduce(self) -> None:
        """Collective: make ``total`` the sum of every rank's ``buffer``."""
        with waiting(f"the {self.name} all-reduce"):
            self._allreduce()

    def reduce_scatter(self) -> None:
        """Collective: the first half of `allreduce`: each rank's ``total`` holds the sum in its ``owned`` range."""
        with waiting(f"the {self.name} reduce-scatter"):
            self._reduce_scatter()

    def allgather(self) -> None:
        """Collective: the second half: what each rank's ``total`` holds in its ``owned`` range, every rank's holds."""
        with waiting(f"the {self.name} all-gather"):
            self._allgather()

    def reduce_update(self, update: Update) -> None:
        """Collective: sum the buffers, ``update`` each rank's ``owned`` part of the ``weights``, gather the weights.

        The optimiser's state is needed where its part is only, and weights are gathered instead of the sum. Raises
        `ValueError` when the reducer was opened without ``weights``.
        """
        if self.weights is None:
            raise ValueError("a fused update needs a reducer opened with weights")
        with waiting(f"the {self.name} all-reduce"):
            self._reduce_update(update)

    def start(self, update: Update | None = None) -> None:
        """Collective: begin `allreduce` (or `reduce_update`) and return; a thread of this rank carries it on.

        Until `wait` nothing of this reducer may be touched. Several reducers may be under way at a time, and may be
        started and waited for in any order.
        """
        if self._background is None:
            self._background = Background(f"dml-hpc {self.name}")
        self._background.start(self._allreduce if update is None else lambda: self._reduce_update(update))

    def wait(self) -> None:
        """Collective: return when what `start` began has ended, as `allreduce` would have done."""
        if self._background is None:
            raise ValueError("nothing was started")
        with waiting(f"the {self.name} all-reduce"):
            self._background.wait()

    def settle(self) -> None:
        """Return when what calls have queued on a device is done."""
        self.place.settle()

    def _allreduce(self) -> None:
        self._reduce_scatter()
        self._allgather()

    @abstractmethod
    def _reduce_scatter(self) -> None: ...

    @abstractmethod
    def _allgather(self) -> None: ...

    @abstractmethod
    def _reduce_update(self, update: Update) -> None: ...

    def _sent(self, n_bytes: int) -> None:
        """Count bytes that this rank has sent."""
        assert self.bytes_sent is not None
        self.bytes_sent += n_bytes

    def close(self) -> None:
        """Collective: give the communicator back. ``total`` and ``weights`` stay readable."""
        if self._background is not None:
            self._background.close()
        self._free()
        self.comm.Free()

    def _free(self) -> None:  # noqa: B027 -- most have nothing
        """Collective: give back what MPI holds for this reducer beside the communicator."""

    def __enter__(self) -> Reducer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        # Freeing is collective: after a failure on this rank alone it would wait for ranks that never come.
        if kind is None:
            self.close()
