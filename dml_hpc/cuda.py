"""The device that is a GPU of NVIDIA's, by way of CuPy: the only file that imports it."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from dml_hpc.device import Array, Device, Event
from dml_hpc.errors import UserError

SOURCES = Path(str(files("dml_hpc.kernels")))
BLOCK_THREADS = 256
DEFAULT_SHARED_BYTES = 48 << 10
"""What a kernel may have of dynamic shared memory without asking."""
STAGED_BYTES = 4 << 20
"""Up to here `Cuda.put` copies to pinned memory first and returns; what is larger it waits for."""
PAGE_BYTES = 2 << 20
"""An allocation of whole pages of this size shares its pages, and so its IPC handle, with no other."""


class Cuda(Device):
    """One GPU, through CuPy's default pool and a stream of its own, in whatever threads of the rank use it.

    Raises `UserError` where CuPy is missing, and where it finds no GPU or no driver.
    """

    def __init__(self, node_rank: int) -> None:
        self.xp = _cupy()
        runtime = self.xp.cuda.runtime
        self.number = node_rank % _count(runtime)
        try:
            self._open(runtime)
        except runtime.CUDARuntimeError as error:
            raise UserError(f"--device cuda: GPU {self.number} cannot be opened ({error}); where a process "
                            "has it for itself (`nvidia-smi -q -d COMPUTE`), start one rank a GPU") from None

    def _open(self, runtime: Any) -> None:
        self._device = self.xp.cuda.Device(self.number)
        self._device.use()
        about = runtime.getDeviceProperties(self.number)
        self.processors = int(about["multiProcessorCount"])
        self.block_threads = BLOCK_THREADS
        self.shared_bytes = int(about["sharedMemPerBlockOptin"])
        self.cache_bytes = int(about["l2CacheSize"])
        clock_khz = runtime.deviceGetAttribute(runtime.cudaDevAttrMemoryClockRate, self.number)
        width_bits = runtime.deviceGetAttribute(runtime.cudaDevAttrGlobalMemoryBusWidth, self.number)
        self.memory_bytes_per_s = 2e3 * clock_khz * width_bits / 8  # two transfers a tick
        self.identity = f"{runtime.deviceGetPCIBusId(self.number)} {bytes(about.get('uuid', b'')).hex()}"
        self.description = f"{about['name'].decode()} ({about['totalGlobalMem'] / 2**30:.0f} GiB)"
        self.stream = self.xp.cuda.Stream(non_blocking=True)
        self._uploads = self.xp.cuda.Stream(non_blocking=True)
        self._entered = threading.local()
        self._options = ("-std=c++17", f"-I{SOURCES}", f"-DDML_HEADERS={_headers_digest()}")
        self._kernels: dict[tuple[str, str], Any] = {}
        self._allowed_bytes: dict[tuple[str, str], int] = {}
        self._in_use: deque[tuple[Any, Any]] = deque()
        self._captured: list[Array] | None = None  # what is allocated while work is captured
        self._enter()

    def _enter(self) -> None:
        """Have CuPy use the device and its stream in this thread: it keeps both by thread."""
        if not hasattr(self._entered, "yes"):
            self._device.use()
            self.stream.use()
            self._entered.yes = True

    def empty(self, shape: int | Sequence[int], dtype: Any) -> Array:
        self._enter()
        return self._held(self.xp.empty(shape, dtype))

    def zeros(self, shape: int | Sequence[int], dtype: Any) -> Array:
        self._enter()
        return self._held(self.xp.zeros(shape, dtype))

    def _held(self, array: Array) -> Array:
        """Return ``array``, and keep its memory from others where a graph will use it."""
        if self._captured is not None:
            self._captured.append(array)
        return array

    def put(self, array: np.ndarray, out: Array | None = None) -> Array:
        self._enter()
        array = np.asarray(array)
        if out is None:
            out = self.empty(array.shape, array.dtype)
        _same(out, array)
        if not out.flags.c_contiguous:
            out[...] = self.put(array)
        elif array.nbytes > STAGED_BYTES:
            source = np.ascontiguousarray(array)
            out.data.copy_from_host_async(source.ctypes.data, source.nbytes, self.stream)
            self.stream.synchronize()
        elif array.nbytes:
            staged = self.pinned(array.shape, array.dtype)
            staged[...] = array
            out.data.copy_from_host_async(staged.ctypes.data, staged.nbytes, self.stream)
            self._end(self.stream, staged, out)
        return out

    def get(self, array: Array, out: np.ndarray | None = None) -> np.ndarray:
        self._enter()
        host = array.get(stream=self.stream)
        self.stream.synchronize()
        if out is None:
            return host
        _same(out, host)
        out[...] = host
        return out

    def launch(self, file: str, kernel: str, grid: int | tuple[int, ...], block: int | tuple[int, ...],
               *arguments: Any, shared_bytes: int = 0) -> None:
        self._enter()
        grid = grid if isinstance(grid, tuple) else (grid,)
        block = block if isinstance(block, tuple) else (block,)
        if min(grid) <= 0:
            return
        key = file, kernel
        if key not in self._kernels:
            self._kernels[key] = self._built(file, qualified(kernel))
        if shared_bytes > self._allowed_bytes.get(key, DEFAULT_SHARED_BYTES):
            self._kernels[key].max_dynamic_shared_size_bytes = shared_bytes
            self._allowed_bytes[key] = shared_bytes
        self._kernels[key](grid, block, tuple(map(_argument, arguments)), shared_mem=shared_bytes)

    def _built(self, file: str, name: str) -> Any:
        # CuPy knows a build by the file's text and the options, of which one stands for the headers.
        module = self.xp.RawModule(code=(SOURCES / file).read_text(), options=self._options, name_expressions=[name])
        return module.get_function(name)

    def zero(self, array: Array) -> None:
        self._enter()
        if array.nbytes:
            array.data.memset_async(0, array.nbytes, self.stream)

    def load(self, target: Array, source: np.ndarray) -> None:
        self._enter()
        _copyable(target, source)
        if source.nbytes:
            target.data.copy_from_host_async(source.ctypes.data, source.nbytes, self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self._enter()
        held: list[Array] = []
        self._captured = held
        # CuPy's pool may ask for memory on the way, which the mode that it captures in allows.
        self.stream.begin_capture()
        try:
            work()
        finally:
            self._captured = None
            graph = self.stream.end_capture()
        return _Replay(self, graph, work, held)

    def synchronize(self) -> None:
        self._enter()
        self.stream.synchronize()
        self._uploads.synchronize()

    def mark(self) -> Event:
        self._enter()
        return self._end(self.stream)

    def pinned(self, shape: int | Sequence[int], dtype: Any) -> np.ndarray:
        self._enter()
        size = int(np.prod(shape, dtype=np.int64))
        if size == 0:
            return np.empty(shape, dtype)
        memory = self.xp.cuda.alloc_pinned_memory(size * np.dtype(dtype).itemsize)
        return np.frombuffer(memory, dtype, size).reshape(shape)

    def upload(self, target: Array, source: np.ndarray, after: Event | None = None) -> Event:
        self._enter()
        _copyable(target, source)
        # The pool may have given the target memory that work in the stream still reads.
        self._uploads.wait_event((after or self.mark()).event)  # type: ignore[attr-defined]
        if source.nbytes:
            target.data.copy_from_host_async(source.ctypes.data, source.nbytes, self._uploads)
        return self._end(self._uploads, target, source)

    def download(self, target: np.ndarray, source: Array) -> Event:
        self._enter()
        _copyable(source, target)
        if target.nbytes:
            source.data.copy_to_host_async(target.ctypes.data, target.nbytes, self.stream)
        return self._end(self.stream, target, source)

    def follow(self, event: Event) -> None:
        self._enter()
        self.stream.wait_event(event.event)  # type: ignore[attr-defined]

    def _end(self, stream: Any, *used: Any) -> _CudaEvent:
        """Return the end of what is queued in ``stream``; until then what it uses is not given to anybody else."""
        event = self.xp.cuda.Event(disable_timing=True)
        event.record(stream)
        if used:
            while self._in_use and self._in_use[0][0].done:
                self._in_use.popleft()
            self._in_use.append((event, used))
        return _CudaEvent(event)

    def free_bytes(self) -> int:
        self._enter()
        return int(self.xp.cuda.runtime.memGetInfo()[0] + self.xp.get_default_memory_pool().free_bytes())

    def shareable(self, shape: int | Sequence[int], dtype: Any) -> Array:
        self._enter()
        n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        memory = self.xp.cuda.Memory(max(1, -(-n_bytes // PAGE_BYTES)) * PAGE_BYTES)
        array = self.xp.ndarray(shape, dtype, self.xp.cuda.MemoryPointer(memory, 0))
        array.fill(0)
        self.stream.synchronize()  # other processes do not know this one's stream
        return array

    def share(self, array: Array) -> bytes:
        self._enter()
        return bytes(self.xp.cuda.runtime.ipcGetMemHandle(array.data.ptr))

    def open_shared(self, handle: bytes, shape: int | Sequence[int], dtype: Any) -> Array:
        self._enter()
        n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        address = self.xp.cuda.runtime.ipcOpenMemHandle(handle)
        memory = self.xp.cuda.UnownedMemory(address, max(1, n_bytes), self, self.number)
        return self.xp.ndarray(shape, dtype, self.xp.cuda.MemoryPointer(memory, 0))

    def close_shared(self, array: Array) -> None:
        self._enter()
        self.stream.synchronize()
        self.xp.cuda.runtime.ipcCloseMemHandle(array.data.ptr)


class _Replay:
    """Queues a graph in its device's stream; ``held`` is what the graph uses."""

    def __init__(self, device: Cuda, graph: Any, *held: Any):
        self._device, self._graph, self._held = device, graph, held

    def __call__(self) -> None:
        self._device._enter()
        self._graph.launch(self._device.stream)


class _CudaEvent(Event):
    def __init__(self, event: Any) -> None:
        self.event = event

    @property
    def done(self) -> bool:
        return bool(self.event.done)

    def wait(self) -> None:
        self.event.synchronize()


def qualified(kernel: str) -> str:
    """Return a kernel's name, and those of the project's types in it, as they are called outside of namespace dml."""
    return "dml::" + re.sub(r"\b(half|bfloat16)\b", r"dml::\1", kernel)


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "cupy"
        reason = "is not installed" if missing else f"cannot be imported ({str(error).strip().splitlines()[0]})"
        raise UserError(f"--device cuda computes with CuPy, which {reason}: pip install 'dml-hpc[cuda12]', or cuda13, "
                        "as `nvidia-smi` names the driver's CUDA version") from None
    return cupy


def _count(runtime: Any) -> int:
    """Return how many GPUs there are, at least one."""
    try:
        count = int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        raise UserError(f"--device cuda: no GPU can be used here ({error}); `dml-hpc doctor` says more, and "
                        "--device cpu needs none") from None
    if count == 0:
        raise UserError("--device cuda: there is no GPU here (is CUDA_VISIBLE_DEVICES empty?); --device cpu needs none")
    return count


def _argument(value: Any) -> Any:
    if value is None:
        return np.uintp(0)  # of what CuPy makes of None, not all of its releases make a null pointer
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        return np.int64(value)
    return np.float64(value) if type(value) is float else value


def _headers_digest() -> str:
    texts = [path.read_bytes() for path in sorted(SOURCES.glob("*.cuh"))]
    return "0x" + hashlib.sha256(b"\0".join(texts)).hexdigest()[:15]


def _same(target: Any, source: Any) -> None:
    if target.shape != source.shape or target.dtype != source.dtype:
        raise ValueError(f"{source.dtype} {source.shape} does not fit {target.dtype} {target.shape}")


def _copyable(one: Any, other: Any) -> None:
    _same(one, other)
    if not (one.flags.c_contiguous and other.flags.c_contiguous):
        raise ValueError("only contiguous arrays are copied beside other work")
