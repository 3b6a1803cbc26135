"""What all tests share: under mpirun, a failure on one rank ends the job, and its traceback is seen."""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from dml_hpc.launch import launch
from dml_hpc.supervise import wait_until_read

RANK, SIZE, _ = launch()
DEADLINE_S = 180
"""A test that takes longer hangs: its stacks are printed, and it ends. DML_HPC_TEST_DEADLINE_S overrides it."""

# Tests of one process make no sense on several.
collect_ignore = ["unit"] if SIZE > 1 else []


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keep hold of the real stderr, which pytest captures during tests; let only rank 0 report progress."""
    config.addinivalue_line("markers", "job: starts ranks of its own with mpirun; repeated with every MPI")
    config.addinivalue_line("markers", "maths: what is shown does not depend on the MPI library; run with one alone")
    with suppress(ImportError):  # how long an example takes says nothing: the first one may compile kernels
        from hypothesis import settings

        settings.register_profile("untimed", deadline=None, derandomize="CI" in os.environ)
        settings.load_profile("untimed")
    global _stderr
    _stderr = os.dup(2)  # during tests, 2 is pytest's
    if RANK > 0:
        # The reporter is replaced, not removed: other plugins ask for it.
        config.pluginmanager.unregister(name="terminalreporter")
        silent = pytest.TerminalReporter(config, open(os.devnull, "w"))  # noqa: SIM115 -- until the process ends
        config.pluginmanager.register(silent, "terminalreporter")


_stderr = 2


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """End the job when a test, its set-up or its tear-down fails on this rank: the others may wait for it."""
    report = yield
    if report.failed and SIZE > 1:
        _end_job(f"{report.nodeid} ({report.when})", report.longreprtext)
    return report


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """End the job when a test file cannot be imported on this rank."""
    if report.failed and SIZE > 1:
        _end_job(f"collecting {report.nodeid}", report.longreprtext)


def pytest_internalerror(excrepr: object) -> None:
    """End the job when pytest or a plugin breaks on this rank."""
    if SIZE > 1:
        _end_job("pytest itself", str(excrepr))


def _end_job(where: str, trace: str) -> NoReturn:
    sys.stdout.flush()
    os.write(_stderr, f"\nrank {RANK} of {SIZE} failed: {where}\n{trace}\n".encode())
    wait_until_read(_stderr)
    from dml_hpc.mpi import world

    world().Abort(1)
    os._exit(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """Give every test a deadline, which holds inside MPI and compiled code too: first its stacks, then an alarm."""
    deadline_s = float(os.environ.get("DML_HPC_TEST_DEADLINE_S", DEADLINE_S))
    if not item.config.getoption("usepdb"):
        faulthandler.dump_traceback_later(deadline_s, file=_stderr)
        signal.setitimer(signal.ITIMER_REAL, deadline_s + 1)  # time for every rank's stack; then the process ends
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)


Mpirun = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def start_mpirun() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return ``start(n, *command, **environment)``: starts ``python *command`` on n ranks and returns the process.

    ``launcher_options`` are the launcher's own. It takes the launcher beside this Python, else the one on PATH. After
    the test, what still runs is killed.
    """
    beside = Path(sys.executable).with_name("mpirun")
    launcher = str(beside) if beside.exists() else shutil.which("mpirun")
    if launcher is None:
        pytest.skip("there is no mpirun")
    started: list[subprocess.Popen[str]] = []

    def start(n: int, *command: object, launcher_options: Sequence[str] = (),
              **environment: str) -> subprocess.Popen[str]:
        line = [launcher, *launcher_options, "-n", str(n), sys.executable, *map(str, command)]
        started.append(subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **_SETTINGS, **environment}, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.communicate()


@pytest.fixture
def mpirun(start_mpirun: Callable[..., subprocess.Popen[str]]) -> Mpirun:
    """Return ``mpirun(n, *command, timeout_s=60, **environment)``: runs ``python *command`` on n ranks to its end.

    It returns the completed process with its output as text; when the time is up, ``TimeoutExpired`` is raised.
    """

    def run(n: int, *command: object, timeout_s: float = 60,
            **environment: Any) -> subprocess.CompletedProcess[str]:
        process = start_mpirun(n, *command, **environment)
        out, err = process.communicate(timeout=timeout_s)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


# More ranks than cores, and root in a container: MPI wants to be told.
_SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    **({"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.getuid() == 0 else {}),
}
