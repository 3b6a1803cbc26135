"""``dml-hpc doctor``: what works here, what does not, and the line that mends it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dml_hpc.checks import gpu, machine, mpi
from dml_hpc.checks.check import BROKEN, OK, Check
from dml_hpc.console import Console
from dml_hpc.errors import EXIT_JOB, EXIT_OK

_OF_THE_LIBRARY = (mpi.check_mpi4py, mpi.check_launcher, mpi.check_two_ranks, mpi.check_threads, gpu.check_gpu)
_OF_THE_REST = (machine.check_hdf5, machine.check_current_folder, machine.check_locking, machine.check_numba,
                machine.check_pyarrow, machine.check_matplotlib, machine.check_horovod, machine.check_shared_memory,
                machine.check_cores, machine.check_slurm)


def run(console: Console) -> dict[str, Any]:
    """Check all parts of the machine, print a table, and return ``checks`` and ``exit_code``.

    ``checks`` is a list of ``{name, status, detail, fix, required}``; ``exit_code`` is 1 when a required part
    is absent or broken, else 0. Never starts MPI in this process, and never raises for what a check does.
    """
    found = _all_checks()
    width = max(len(check.name) for check in found)
    for check in found:
        console.say(f"{check.status:6}  {check.name:{width}}  {check.detail}")
        if check.status != OK and check.fix:
            console.say(f"{'':6}  {'':{width}}  -> {check.fix}")
    failing = [check.name for check in found if check.required and check.status != OK]
    console.say()
    console.say(f"Training does not work here until this does: {', '.join(failing)}." if failing else
                "Everything that training needs works.")
    return {"checks": [check._asdict() for check in found], "exit_code": EXIT_JOB if failing else EXIT_OK}


def _all_checks() -> list[Check]:
    # Most of the time goes into other processes' imports, so a few run at once.
    with ThreadPoolExecutor(4) as pool:
        rest = [pool.submit(_sheltered, check) for check in _OF_THE_REST]
        library = pool.submit(mpi.probe_library).result()
        of_mpi = [pool.submit(_sheltered, check, library) for check in _OF_THE_LIBRARY]
        found = [_sheltered(machine.check_python), *(each.result() for each in [*of_mpi, *rest])]
        return [check for checks in found for check in checks]


def _sheltered(check: Callable[..., Check | list[Check]], *arguments: Any) -> list[Check]:
    """Return the check's answers; an exception inside it is an answer too."""
    try:
        found = check(*arguments)
        return found if isinstance(found, list) else [found]
    except Exception as error:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        return [Check(name, BROKEN, f"the check itself failed: {type(error).__name__}: {error}", None)]
