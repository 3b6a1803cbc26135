"""Where arrays lie and kernels run when a rank computes on a GPU: one `Device` a rank, opened once and handed on.

Nothing here needs a GPU or CuPy; `dml_hpc.cuda` does, and is imported when a device is opened.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dml_hpc.errors import UserError

if TYPE_CHECKING:
    import numpy as np

DEVICES = ("cpu", "cuda")
Array = Any
"""An array in a device's memory; it has NumPy's methods and operators, through the functions of ``device.xp``."""

_CPP_NAMES = {"float16": "half", "bfloat16": "bfloat16", "float32": "float", "float64": "double", "int8": "signed char",
              "int32": "int", "int64": "long long", "uint8": "unsigned char", "uint16": "unsigned short",
              "uint32": "unsigned int", "uint64": "unsigned long long", "bool": "bool"}


def cpp_name(dtype: Any) -> str:
    """Return what elements of ``dtype`` are called in the kernels' C++; "bfloat16" is a name NumPy lacks."""
    import numpy as np

    return _CPP_NAMES[dtype if isinstance(dtype, str) else np.dtype(dtype).name]


class Event(ABC):
    """A place in a stream of a device's work."""

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether all the work before it is done."""

    @abstractmethod
    def wait(self) -> None:
        """Return when all the work before it is done."""


class Device(ABC):
    """One GPU as one rank uses it: its arrays, its kernels, and one stream in which all of its work is done in turn.

    Calls return when the work is queued, unless they say that they wait. ``xp`` is the module with NumPy's functions
    for the device's arrays, whose matrix products are the vendor's. Several ranks may use one GPU.

    - ``number``: which of the GPUs this process sees; ``identity``: what tells it from all others of its machine
    - ``processors``: multiprocessors; a grid needs a few blocks for each of them
    - ``block_threads``: how many threads a block should have where a kernel leaves that open, a multiple of 32
    - ``shared_bytes``: the most shared memory that a block can have; ``cache_bytes``: the second-level cache
    - ``memory_bytes_per_s``: what its memory delivers at most, by clock and width; 0: unknown
    """

    name = "cuda"
    xp: Any
    number: int
    identity: str
    description: str
    processors: int
    block_threads: int
    shared_bytes: int
    cache_bytes: int
    memory_bytes_per_s: float

    @abstractmethod
    def empty(self, shape: int | Sequence[int], dtype: Any) -> Array:
        """Return an array with any content."""

    @abstractmethod
    def zeros(self, shape: int | Sequence[int], dtype: Any) -> Array:
        """Return an array of zeros."""

    @abstractmethod
    def put(self, array: np.ndarray, out: Array | None = None) -> Array:
        """Copy an array of the host to the device, to ``out`` where it is given; ``array`` may change afterwards."""

    @abstractmethod
    def get(self, array: Array, out: np.ndarray | None = None) -> np.ndarray:
        """Wait for the work queued so far, and return a copy of ``array`` on the host, in ``out`` where it is given."""

    @abstractmethod
    def launch(self, file: str, kernel: str, grid: int | tuple[int, ...], block: int | tuple[int, ...],
               *arguments: Any, shared_bytes: int = 0) -> None:
        """Run a kernel of ``kernels/<file>``: ``kernel`` is its name in namespace dml with its template arguments.

        Arrays (C-contiguous, or views of which the kernel knows the strides) become pointers, None a null pointer,
        int long long, float double, bool bool; NumPy's scalars are what they are. ``shared_bytes`` is the dynamic
        shared memory. A grid without blocks does nothing. The kernel is built at its first use and kept on disk.
        """

    @abstractmethod
    def zero(self, array: Array) -> None:
        """Make all elements of a C-contiguous array 0."""

    @abstractmethod
    def load(self, target: Array, source: np.ndarray) -> None:
        """Queue a copy from `pinned` memory in the stream of work; ``source`` may change once that has been done."""

    @abstractmethod
    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what queues all that ``work`` queues, each time it is called, at the cost of about one launch.

        ``work`` is called, but nothing of it is done yet. It may call `launch`, `zero`, `load`, `empty` and `zeros` and
        take views of arrays, no more, and must have run before as it is, so that its kernels are there. Arguments of
        launches are those of now: what changes from call to call lies in arrays. ``work``, with what it holds, and
        what is allocated on its way, live as long as what is returned.
        """

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for all work queued so far, copies included."""

    @abstractmethod
    def mark(self) -> Event:
        """Return the end of what is queued so far."""

    @abstractmethod
    def pinned(self, shape: int | Sequence[int], dtype: Any) -> np.ndarray:
        """Return an array of the host in page-locked memory, which the device copies from and to by itself."""

    @abstractmethod
    def upload(self, target: Array, source: np.ndarray, after: Event | None = None) -> Event:
        """Queue a copy from `pinned` memory beside the stream of work, behind ``after``; return its end.

        ``source`` stays as it is until that has come; work that reads ``target`` is queued after `follow` of it.
        """

    @abstractmethod
    def download(self, target: np.ndarray, source: Array) -> Event:
        """Queue a copy to `pinned` memory behind the work queued so far, in the stream of work; return its end."""

    @abstractmethod
    def follow(self, event: Event) -> None:
        """Have the work that is queued from now on begin after ``event``."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Return how much of the device's memory an array could still take."""

    @abstractmethod
    def shareable(self, shape: int | Sequence[int], dtype: Any) -> Array:
        """Return an array of zeros that processes of this node can open, in memory of its own."""

    @abstractmethod
    def share(self, array: Array) -> bytes:
        """Return by what other processes of this node, on the same GPU or a peer of it, `open_shared` an array."""

    @abstractmethod
    def open_shared(self, handle: bytes, shape: int | Sequence[int], dtype: Any) -> Array:
        """Return the other process's array itself, not a copy. It must stay there until `close_shared`."""

    @abstractmethod
    def close_shared(self, array: Array) -> None:
        """Let go of what `open_shared` returned."""


def open_device(name: str, node_rank: int) -> Device | None:
    """Return the device called ``name`` for rank ``node_rank`` of its node, None for "cpu".

    Where there are fewer GPUs than ranks, ranks share them in turn. Raises `UserError` where there is no GPU, or CuPy
    is missing or cannot use it.
    """
    if name == "cpu":
        return None
    if name not in DEVICES:
        raise UserError(f"unknown --device {name!r}; there are {', '.join(DEVICES)}")
    from dml_hpc.cuda import Cuda

    return Cuda(node_rank)
