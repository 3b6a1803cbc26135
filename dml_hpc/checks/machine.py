"""Do the Python packages and this machine's parts work? One function a part."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from dml_hpc.checks.check import ABSENT, BROKEN, OK, Check, call, python
from dml_hpc.errors import UserError
from dml_hpc.files import PREFIX, replaced_file, replaced_folder


def check_python() -> Check:
    """Python itself."""
    return Check("python", OK, f"{sys.version.split()[0]} in {sys.prefix}", required=True)


def check_hdf5() -> Check:
    """h5py writes an array and reads it back."""
    with tempfile.TemporaryDirectory() as folder:
        done = python(f"""
import h5py, numpy
path = {str(Path(folder, "doctor.h5"))!r}
with h5py.File(path, "w") as file:
    file["x"] = numpy.arange(1000.0)
with h5py.File(path, "r") as file:
    assert file["x"][:].sum() == 499500
print(h5py.__version__, "with HDF5", h5py.version.hdf5_version)
""")
    if done.code != 0:
        return Check("h5py", BROKEN, done.reason, "pip install --force-reinstall h5py", required=True)
    return Check("h5py", OK, done.out, required=True)


def check_locking() -> Check:
    """Whether HDF5 can lock a file that it writes in the current folder; files are read without locks anywhere."""
    setting = os.environ.get("HDF5_USE_FILE_LOCKING")
    if setting is not None and setting.upper() in ("FALSE", "0", "BEST_EFFORT"):
        return Check("file locking", OK, f"HDF5_USE_FILE_LOCKING={setting}")
    folder = os.getcwd() if os.access(".", os.W_OK) else tempfile.gettempdir()
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder) as place:
        done = python(f"import h5py; h5py.File({str(Path(place, 'doctor.h5'))!r}, 'w', locking=True).close()")
    if done.code != 0:
        return Check("file locking", BROKEN, f"{folder}: {done.reason}; reading takes no locks, writing does",
                     "export HDF5_USE_FILE_LOCKING=FALSE")
    return Check("file locking", OK, f"HDF5 locks what it writes in {folder}; reading takes no locks")


def check_current_folder() -> Check:
    """Whether a file or folder can be made in the current folder and take the place of another at once."""
    folder = Path.cwd()
    try:
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder) as scratch:
            for _ in range(2):  # first nothing is there, then something is
                with replaced_file(Path(scratch, "file")) as partial:
                    partial.write_bytes(b"whole")
                with replaced_folder(Path(scratch, "folder")) as partial:
                    (partial / "file").write_bytes(b"whole")
            for path in (Path(scratch, "file"), Path(scratch, "folder", "file")):
                if path.read_bytes() != b"whole":
                    return Check("current folder", BROKEN, f"{path} lost what was written", ELSEWHERE)
    except (OSError, UserError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Check("current folder", BROKEN, f"outputs cannot be written in {folder}: {reason}", ELSEWHERE)
    return Check("current folder", OK, f"outputs appear whole in {folder}")


ELSEWHERE = "cd to a folder that you can write, or name one with -o"


def check_numba() -> Check:
    """Numba compiles, and the kernels have a place where the next run finds them compiled."""
    done = python("""
import numba
assert numba.njit(lambda x: x + 1)(1) == 2
print(numba.__version__)
""")
    if done.code != 0:
        return Check("numba", BROKEN, done.reason, "pip install --upgrade numba", required=True)
    kernels = find_spec("dml_hpc.kernels")
    source = Path(kernels.origin).parent if kernels and kernels.origin else Path(__file__).parents[1]
    # The order in which Numba looks for a place.
    own = os.environ.get("NUMBA_CACHE_DIR")
    places = [Path(own)] if own else [source / "__pycache__", Path.home() / ".cache" / "numba"]
    for place in places:
        if _can_write(place):
            return Check("numba", OK, f"{done.out}, compiled kernels are kept in {place}", required=True)
    return Check("numba", BROKEN, f"{done.out}, but no place for compiled kernels is writable ({places[0]})",
                 "export NUMBA_CACHE_DIR=$HOME/numba-cache  # any folder you can write", required=True)


def _can_write(folder: Path) -> bool:
    """Return whether ``folder`` is writable, or could be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _check_extra(name: str, code: str, purpose: str, fix: str) -> Check:
    if find_spec(name) is None:
        return Check(name, ABSENT, f"not installed; {purpose}", fix)
    done = python(code)
    if done.code != 0:
        return Check(name, BROKEN, done.reason, fix.replace("install ", "install --force-reinstall ", 1))
    return Check(name, OK, done.out.splitlines()[-1] if done.out else "")


def check_pyarrow() -> Check:
    """pyarrow, for importing tables."""
    return _check_extra("pyarrow", "import pyarrow.csv, pyarrow.parquet; print(pyarrow.__version__)",
                        "reads CSV and Parquet for `data import`", "pip install 'dml-hpc[data]'")


def check_matplotlib() -> Check:
    """Matplotlib, for reports."""
    return _check_extra("matplotlib", "import matplotlib.figure; print(matplotlib.__version__)",
                        "draws the plots of `report`", "pip install 'dml-hpc[report]'")


def check_horovod() -> Check:
    """Horovod, for those who run it already."""
    return _check_extra("horovod", "import horovod, horovod.torch as t\n"
                        "assert t.mpi_built(), 'built without MPI'\nprint(horovod.__version__)",
                        "for --allreduce horovod", "scripts/install_horovod.sh")


def check_shared_memory() -> Check:
    """Room in /dev/shm, where ranks of one node share their buffers."""
    try:
        free_bytes = shutil.disk_usage("/dev/shm").free
    except OSError as error:
        return Check("shared memory", BROKEN, f"/dev/shm: {error.strerror}", "mount -t tmpfs tmpfs /dev/shm")
    detail = f"{free_bytes / 2**20:.0f} MiB free in /dev/shm"
    if free_bytes < 256 * 2**20:
        return Check("shared memory", BROKEN, f"{detail}: ranks of one node may die of SIGBUS",
                     "free some; in a container: docker run --shm-size=2g")
    return Check("shared memory", OK, detail)


def check_cores() -> Check:
    """Cores this process may use, and the threads that every rank will start on them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if not threads:
        return Check("cores", OK, f"{cores} to use, shared by the ranks of this node")
    if threads.isdigit() and int(threads) > cores:
        return Check("cores", BROKEN, f"{cores} to use, but OMP_NUM_THREADS={threads}: more threads than cores",
                     "unset OMP_NUM_THREADS  # every rank then takes its share")
    return Check("cores", OK, f"{cores} to use; OMP_NUM_THREADS={threads}, in every rank")


def check_slurm() -> Check:
    """Slurm, and whether this shell is inside an allocation."""
    if shutil.which("srun") is None:
        return Check("slurm", ABSENT, "no srun on PATH", "none needed on one machine; else load its module")
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        return Check("slurm", OK, f"inside job {job}: {os.environ.get('SLURM_JOB_NUM_NODES', '?')} nodes, "
                     f"{os.environ.get('SLURM_NTASKS', '?')} tasks")
    answer = call(["sinfo", "--noheader", "--format=%P %D"], timeout_s=15)
    if answer.code != 0:
        return Check("slurm", BROKEN, f"sinfo: {answer.reason}",
                     "ask your site: srun is here, but Slurm does not answer")
    return Check("slurm", OK, f"no job yet; partitions and their nodes: {', '.join(answer.out.splitlines())}")
