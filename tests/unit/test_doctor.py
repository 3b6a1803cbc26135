"""`dml-hpc doctor`: it names what is wrong and how to mend it, and nothing makes it raise."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dml_hpc.checks import gpu, machine, mpi
from dml_hpc.checks.check import ABSENT, BROKEN, OK, Check, Outcome, call
from dml_hpc.checks.mpi import Library
from dml_hpc.commands import doctor
from dml_hpc.console import Console

MPICH = Library("4.1.2", "MPICH 5.0.2", "multiple", "/opt/mpich/lib/libmpi.so.12")
OPENMPI = Library("4.1.2", "Open MPI 5.0.11", "multiple", "/opt/openmpi/lib/libmpi.so.40")
NO_LIBRARY = Library(error="RuntimeError: cannot load MPI library")


@pytest.fixture
def quiet():
    console = Console()
    console.stream = io.StringIO()
    return console


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Return a function that puts a program made of shell lines first on PATH, and beside no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))  # a launcher or a Slurm of this machine is not to be found
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    (folder / "python").symlink_to(Path(os.path.realpath("/bin/sh")))

    def make(name, lines):
        (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / name).chmod(0o755)

    return make


@pytest.mark.job
def test_the_whole(monkeypatch):
    monkeypatch.setenv("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
    if os.getuid() == 0:
        monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
        monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    done = subprocess.run([sys.executable, "-c", """
import json, sys
from dml_hpc.commands import doctor
from dml_hpc.console import Console
result = doctor.run(Console(json=True))
assert "mpi4py.MPI" not in sys.modules, "doctor started MPI in its own process"
print(json.dumps(result))
"""], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    found = {check["name"]: check for check in result["checks"]}
    assert len(found) == len(result["checks"]) >= 14
    for check in found.values():
        assert {"name", "status", "detail", "fix"} <= set(check)
        assert check["status"] in ("ok", "absent", "broken")
        assert check["detail"]
        assert check["status"] == "ok" or check["fix"]
        if check["required"]:
            assert check["status"] == "ok", check
            assert f"ok      {check['name']}" in done.stderr
    assert result["exit_code"] == 0


def test_no_launcher(fake):
    check = mpi.check_launcher(MPICH)
    assert (check.status, check.required) == (ABSENT, True)
    assert "pip install" in check.fix
    assert mpi.check_two_ranks(MPICH).status == ABSENT


@pytest.mark.parametrize(("says", "library"), [
    ("mpirun (Open MPI) 4.1.4", OPENMPI),
    ("mpirun (Open MPI) 5.0.11", MPICH),
    ("HYDRA build details:", OPENMPI),
])
def test_the_launcher_of_another_library(fake, says, library):
    fake("mpirun", f"echo '{says}'")
    check = mpi.check_launcher(library)
    assert check.status == BROKEN
    assert library.name in check.detail
    assert check.fix


@pytest.mark.parametrize(("says", "library"), [
    ("mpirun (Open MPI) 5.0.3", OPENMPI),
    ("HYDRA build details:", MPICH),
    ("Intel(R) MPI Library for Linux* OS, Version 2021.11", MPICH),
    ("something new", MPICH),
])
def test_a_launcher_that_fits(fake, says, library):
    fake("mpirun", f"echo '{says}'")
    assert mpi.check_launcher(library).status == OK


@pytest.mark.parametrize(("lines", "detail", "fix"), [
    ("echo rank 0 1 1; echo rank 0 1 1", "alone", "mpich"),
    ("echo 'prterun detected an attempt to run as root' >&2; exit 1", "as root", "OMPI_ALLOW_RUN_AS_ROOT=1"),
    ("echo 'There are not enough slots available' >&2; exit 1", "not enough slots", "oversubscribe"),
    ("kill -SEGV $$", "SIGSEGV", "mpirun"),
    ("exit 3", "status 3", "mpirun"),
    ("/bin/sleep 60", "no answer", "hostname"),
])
def test_two_ranks_that_fail(fake, monkeypatch, lines, detail, fix):
    monkeypatch.setattr(mpi, "call", lambda command: call(command, timeout_s=2))
    fake("mpirun", lines)
    check = mpi.check_two_ranks(MPICH)
    assert (check.status, check.required) == (BROKEN, True)
    assert detail in check.detail
    assert fix in check.fix


def test_no_library(monkeypatch):
    monkeypatch.setattr(mpi, "python", lambda code: Outcome(1, "", NO_LIBRARY.error))
    library = mpi.probe_library()
    assert library == NO_LIBRARY
    assert mpi.check_mpi4py(library).status == BROKEN
    assert mpi.check_threads(library).status == ABSENT
    assert mpi.check_two_ranks(library).status == ABSENT


SMI = "echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'; echo '| CUDA Version: 13.0 |'"


@pytest.mark.parametrize(("lines", "status"), [("exit 9", BROKEN), (SMI, ABSENT)])
def test_gpu_without_driver_or_cupy(fake, monkeypatch, lines, status):
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    fake("nvidia-smi", lines)
    [check] = gpu.check_gpu(MPICH)
    assert check.status == status
    assert check.fix
    if status == ABSENT:
        assert "H200" in check.detail
        assert "cuda13" in check.fix


def test_no_gpu_is_one_line(fake):
    [check] = gpu.check_gpu(MPICH)
    assert (check.status, check.required) == (ABSENT, False)


def test_each_operation_of_a_gpu_is_a_line_of_its_own(fake, monkeypatch):
    tried = []

    def answer(command, timeout_s=0):
        operation = command[-1].split("run(")[-1].strip("')")
        tried.append(operation)
        if operation == "gpu ipc":
            return Outcome(-7, "", "")
        if operation == "nccl":
            return Outcome(1, "", "dml_hpc.errors.UserError: CuPy finds no NCCL: pip install nvidia-nccl-cu13")
        if "why_staged" in operation:
            return Outcome(0, "answer: this MPI does not take device buffers", "")
        return call(command) if "nvidia-smi" in command[0] else Outcome(0, "fine", "")

    fake("nvidia-smi", SMI)
    fake("mpirun", "exit 0")
    monkeypatch.setattr(gpu, "find_spec", lambda name: name)
    monkeypatch.setattr(gpu, "python", lambda code: Outcome(0, "14.0.0", ""))
    monkeypatch.setattr(gpu, "call", answer)
    found = {check.name: check for check in gpu.check_gpu(MPICH)}
    assert list(found) == ["gpu", "gpu memory", "gpu kernels", "gpu products", "gpu copies", "gpu graphs", "gpu ipc",
                           "nccl", "cuda-aware mpi"]
    assert {name: check.status for name, check in found.items() if check.status != OK} == {
        "gpu ipc": BROKEN, "nccl": ABSENT, "cuda-aware mpi": ABSENT}
    assert "SIGBUS" in found["gpu ipc"].detail
    assert "--ipc=host" in found["gpu ipc"].fix
    assert "pinned host memory" in found["cuda-aware mpi"].detail
    assert not any(check.required for check in found.values())


def test_environment(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    for threads, status in (("", OK), ("1", OK), ("64", BROKEN)):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert machine.check_cores().status == status
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "FALSE")
    assert machine.check_locking() == Check("file locking", OK, "HDF5_USE_FILE_LOCKING=FALSE")
    monkeypatch.setenv("NUMBA_CACHE_DIR", f"{__file__}/no-folder")
    check = machine.check_numba()
    assert (check.status, check.required) == (BROKEN, True)
    assert "NUMBA_CACHE_DIR" in check.fix


def test_locks_are_tried_by_hdf5_itself(monkeypatch, tmp_path):
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    monkeypatch.chdir(tmp_path)
    check = machine.check_locking()
    assert check.status == OK
    assert "reading takes no locks" in check.detail
    refusal = Outcome(1, "", "BlockingIOError: unable to lock file, errno = 37")
    monkeypatch.setattr(machine, "python", lambda code: refusal)
    check = machine.check_locking()
    assert (check.status, check.fix) == (BROKEN, "export HDF5_USE_FILE_LOCKING=FALSE")
    assert "unable to lock file" in check.detail
    assert list(tmp_path.iterdir()) == []


def test_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    check = machine.check_current_folder()
    assert check.status == OK
    assert list(tmp_path.iterdir()) == []

    def refuse(*paths):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "replace", refuse)
    check = machine.check_current_folder()
    assert check.status == BROKEN
    assert "Invalid cross-device link" in check.detail
    assert "-o" in check.fix


def test_a_check_that_raises_is_an_answer(quiet, monkeypatch):
    def check_something_odd():
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(doctor, "_OF_THE_LIBRARY", ())
    monkeypatch.setattr(doctor, "_OF_THE_REST", (check_something_odd,))
    monkeypatch.setattr(mpi, "probe_library", lambda: MPICH)
    result = doctor.run(quiet)
    assert result["checks"][-1]["name"] == "something odd"
    assert result["checks"][-1]["status"] == BROKEN
    assert "oops" in quiet.stream.getvalue()


def test_a_required_part_that_fails_is_exit_code_1(quiet, monkeypatch):
    monkeypatch.setattr(doctor, "_OF_THE_LIBRARY", (mpi.check_mpi4py,))
    monkeypatch.setattr(doctor, "_OF_THE_REST", ())
    monkeypatch.setattr(mpi, "probe_library", lambda: NO_LIBRARY)
    assert doctor.run(quiet)["exit_code"] == 1
    assert "-> pip install" in quiet.stream.getvalue()
    assert "until this does: mpi4py" in quiet.stream.getvalue()
