"""Is there a GPU, and does all work that training asks of it? Each operation is tried once, in a process of its own."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

from dml_hpc.checks.check import ABSENT, BROKEN, OK, Check, call, python
from dml_hpc.checks.mpi import Library, find_launcher

OPERATION_TIMEOUT_S = 120.0
"""The first use of a GPU may build kernels, and wake a driver."""


def check_gpu(library: Library) -> list[Check]:
    """An NVIDIA GPU, CuPy to use it, and each operation of theirs; one line where there is no GPU."""
    listed = call(["nvidia-smi", "-L"])
    if listed.code == 127:
        return [Check("gpu", ABSENT, "no nvidia-smi, so no NVIDIA driver", "none needed where there is no GPU")]
    if listed.code != 0 or not listed.out:
        return [Check("gpu", BROKEN, f"nvidia-smi: {listed.reason}",
                      "ask for a GPU (Slurm: --gres=gpu:1), or mend the driver")]
    gpus = re.sub(r" \(UUID: [^)]*\)", "", ", ".join(re.findall(r"^GPU \d+: .*", listed.out, re.M)))
    version = re.search(r"CUDA Version: (\d+)", call(["nvidia-smi"]).out)
    cuda = "13" if version and int(version[1]) >= 13 else "12"
    install = f"pip install 'dml-hpc[cuda{cuda}]'"
    if find_spec("cupy") is None:
        return [Check("gpu", ABSENT, f"{gpus}; CuPy is not installed", install)]
    done = python("import cupy; assert int(cupy.arange(5).sum()) == 10; print(cupy.__version__)")
    if done.code != 0:
        return [Check("gpu", BROKEN, f"{gpus}; CuPy: {done.reason}", install)]
    mends = {  # by `on_gpu.OPERATIONS`, which is for other processes to import
        "gpu memory": "nvidia-smi shows who holds the memory",
        "gpu kernels": f"{install}, which brings the compiler and its headers; is ~/.cupy writable?",
        "gpu products": f"{install}, which brings cuBLAS",
        "gpu copies": "ulimit -l unlimited  # page-locked memory",
        "gpu graphs": "a newer driver and CuPy; until then `train --device cpu`, or --algorithm local or lbfgs",
        "gpu ipc": "docker run --ipc=host; until then --allreduce mpi, or nccl, but not hierarchical",
        "nccl": f"pip install nvidia-nccl-cu{cuda}; until then --allreduce hierarchical or ring",
    }
    with ThreadPoolExecutor(2) as pool:  # they share one GPU
        tried = list(pool.map(lambda name: _tried(name, mends[name]), mends))
    return [Check("gpu", OK, f"{gpus}; CuPy {done.out}"), *tried, check_aware(library)]


def _tried(name: str, fix: str) -> Check:
    done = call([sys.executable, "-c", f"from dml_hpc.checks import on_gpu; on_gpu.run({name!r})"],
                OPERATION_TIMEOUT_S)
    if done.code != 0:
        return Check(name, ABSENT if name == "nccl" and "finds no NCCL" in done.err else BROKEN, done.reason, fix)
    return Check(name, OK, done.out.splitlines()[-1])


def check_aware(library: Library) -> Check:
    """Whether the MPI library sends and sums vectors from a GPU's memory itself: asked, then tried on two ranks."""
    name, staged = "cuda-aware mpi", "vectors go through pinned host memory"
    launcher = find_launcher()
    if library.error or launcher is None:
        return Check(name, ABSENT, "not tried: no MPI library, or no launcher", "mend the lines above first")
    done = call([launcher, "-n", "2", sys.executable, "-c", """
from dml_hpc.mpi import world
from dml_hpc.comm.on_device.aware import why_staged
from dml_hpc.device import open_device
comm = world()
why = why_staged(comm, open_device("cuda", comm.rank))
if comm.rank == 0:
    print("answer:", why or "")
"""], OPERATION_TIMEOUT_S)
    answer = re.search(r"^answer: ?(.*)", done.out, re.M)
    fix = "load an MPI that is built with CUDA, or leave it: --allreduce hierarchical needs none inside a node"
    if done.code != 0 or answer is None:
        return Check(name, BROKEN, f"{done.reason}; {staged}", fix)
    if answer[1]:
        return Check(name, ABSENT, f"{answer[1]}; {staged}", fix)
    return Check(name, OK, f"{library.name} sums vectors in a GPU's memory")
