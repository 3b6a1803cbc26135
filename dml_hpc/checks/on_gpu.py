"""Each thing that training asks of a GPU, done once: what `checks.gpu` runs in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from dml_hpc.device import Device, open_device

COUNT = 100_000


def run(operation: str) -> None:
    """Do one of `OPERATIONS` on the first GPU, and print what there is to say of it; raises where it fails."""
    device = open_device("cuda", 0)
    assert device is not None
    print(OPERATIONS[operation](device))


def allocation(device: Device) -> str:
    """Numbers go to the device's memory and come back."""
    numbers = np.arange(COUNT, dtype=np.float64)
    _expect(device.get(device.put(numbers)), numbers)
    return f"{device.description}, {device.free_bytes() / 2**30:.1f} GiB free"


def kernel(device: Device) -> str:
    """A kernel of the project's is built for this GPU, and adds, and one of CuPy's, which needs headers."""
    from dml_hpc.kernels.cuda.sums import add

    numbers = np.arange(COUNT, dtype=np.float32)
    out = device.zeros(COUNT, np.float32)
    add(device, device.put(numbers), device.put(3 * numbers), out)
    out += 1
    _expect(device.get(out), 4 * numbers + 1)
    return "built, and its sums are right"


def product(device: Device) -> str:
    """The vendor's matrix product, which networks and factorisations use."""
    numbers = np.arange(12, dtype=np.float32).reshape(3, 4)
    matrix = device.put(numbers)
    _expect(device.get(device.xp.matmul(matrix, matrix.T)), numbers @ numbers.T)
    return "cuBLAS multiplies matrices"


def copies(device: Device) -> str:
    """Page-locked memory is copied beside other work, there and back."""
    there, back = device.pinned(COUNT, np.float32), device.pinned(COUNT, np.float32)
    there[:] = np.arange(COUNT)
    target = device.empty(COUNT, np.float32)
    device.follow(device.upload(target, there))
    target += 1
    device.download(back, target).wait()
    _expect(back, there + 1)
    return "pinned memory is copied beside the work"


def graphs(device: Device) -> str:
    """Work is captured, and does again what it did on what its arrays hold by then, as steps of training do."""
    from dml_hpc.kernels.cuda.sums import add

    there, numbers, out = device.pinned(COUNT, np.float32), device.empty(COUNT, np.float32), device.zeros(COUNT, "f4")

    def work() -> None:
        device.load(numbers, there)
        twice = device.zeros(COUNT, np.float32)
        add(device, numbers, numbers, twice)
        add(device, twice, out, out)

    there[:] = 1
    work()
    replay = device.capture(work)
    for number in (2, 3):
        device.synchronize()  # what is loaded from has been read
        there[:] = number
        replay()
    _expect(device.get(out), np.full(COUNT, 2 * (1 + 2 + 3), np.float32))
    return "captured work is done again"


def ipc(device: Device, child: Sequence[str] = ()) -> str:
    """Another process opens this one's array, and writes to it; ``child`` is its command, but for the handle."""
    array = device.shareable(COUNT, np.float32)
    child = child or [sys.executable, "-c", "import sys; from dml_hpc.checks import on_gpu; on_gpu.visit(sys.argv[1])"]
    done = subprocess.run([*child, device.share(array).hex()], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"status {done.returncode}").splitlines()[-1])
    _expect(device.get(array), np.arange(COUNT, dtype=np.float32))
    return "two processes share an array"


def visit(handle: str, device: Device | None = None) -> None:
    """Be the other process: write to the array behind ``handle``, a hexadecimal number."""
    device = device or open_device("cuda", 0)
    assert device is not None
    array = device.open_shared(bytes.fromhex(handle), COUNT, np.float32)
    device.put(np.arange(COUNT, dtype=np.float32), array)
    device.synchronize()
    device.close_shared(array)


def nccl(device: Device) -> str:
    """NCCL starts, and sums over one rank."""
    from dml_hpc.comm.on_device.nccl import load, stream
    from dml_hpc.kernels.cuda.sums import address

    library = load()
    communicator = library.NcclCommunicator(1, library.get_unique_id(), 0)
    numbers = device.put(np.arange(COUNT, dtype=np.float32))
    communicator.allReduce(address(numbers), address(numbers), COUNT, library.NCCL_FLOAT32, library.NCCL_SUM,
                           stream(device))
    _expect(device.get(numbers), np.arange(COUNT, dtype=np.float32))
    communicator.destroy()
    return f"version {library.get_version()}"


OPERATIONS = {"gpu memory": allocation, "gpu kernels": kernel, "gpu products": product, "gpu copies": copies,
              "gpu graphs": graphs, "gpu ipc": ipc, "nccl": nccl}


def _expect(found: np.ndarray, wanted: np.ndarray) -> None:
    if not np.array_equal(found, wanted):
        raise ValueError(f"{int(np.sum(found != wanted))} of {wanted.size} numbers came out wrong")
