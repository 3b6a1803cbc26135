"""Start MPI, guard it, agree over it: the only file that names COMM_WORLD."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.errors import EXIT_JOB, EXIT_USER, AgreedError, JobError, Stopped, UserError
from dml_hpc.files import first_line, replaced_folder
from dml_hpc.launch import launch, share_cores
from dml_hpc.supervise import last_word, supervised
from dml_hpc.watch import DEFAULT_DEADLINE_S, watching

if TYPE_CHECKING:
    import numpy as np
    from mpi4py.MPI import Intracomm


def guarded(body: Callable[[Intracomm], int], deadline_s: float = DEFAULT_DEADLINE_S,
            failure: tuple[str, int] | None = None) -> int:
    """Run ``body(comm)`` on every rank under the guard and return this rank's exit code.

    Whatever ends ``body`` on one rank (an exception, ``sys.exit``, a signal, a crash) ends the whole job within
    seconds with a non-zero status, and the rank and the cause are printed. A failure all ranks agreed on
    (`agreed`) ends every rank in order instead, and only the rank that failed speaks. A collective that takes
    longer than ``deadline_s`` seconds (0: no limit) ends the job too, and the ranks that are missing are named.
    A rank that cannot even begin brings a ``failure`` (message, exit code): then no rank runs ``body``.
    """
    place = launch()
    if place.size > 1:
        share_cores()
        return supervised(lambda: _run(body, deadline_s, failure), place)
    return _run(body, 0, failure)


def _run(body: Callable[[Intracomm], int], deadline_s: float, failure: tuple[str, int] | None) -> int:
    try:
        comm = world()
    except UserError as error:
        # Before MPI has started every rank finds the same fault, and only the launcher's rank 0 reports it.
        if launch().rank == 0:
            print(f"dml-hpc: {error}", file=sys.stderr, flush=True)
        return EXIT_USER
    def stalled(found: str) -> None:
        _complain(comm, found)
        _end(comm, EXIT_JOB)

    try:
        agree(comm, failure)
        with watching(comm, deadline_s, stalled):
            return body(comm)
    except AgreedError as error:
        if comm.rank == error.rank:
            _complain(comm, str(error))
        return error.exit_code
    except (UserError, JobError) as error:
        _complain(comm, str(error))
        return _end(comm, error.exit_code)
    except Stopped as error:
        _complain(comm, str(error))
        return _end(comm, error.exit_code)
    except MemoryError as error:
        _complain(comm, f"there is not enough memory: {error or 'an allocation failed'}")
        return _end(comm, EXIT_JOB)
    except SystemExit as error:
        _complain(comm, f"sys.exit({error.code!r}) was called in the middle of the work")
        return _end(comm, EXIT_JOB)
    except BaseException as error:
        if "no locator available" in str(error):  # Numba, when it imports a kernel that it is to keep
            _complain(comm, "Numba has nowhere to keep compiled kernels: export NUMBA_CACHE_DIR=/a/writable/folder")
            return _end(comm, EXIT_USER)
        traceback.print_exc()
        _complain(comm, f"{type(error).__name__}: {error}")
        return _end(comm, EXIT_JOB)


class Alone:
    """The communicator of a process that no launcher started: for work that needs MPI only when it is shared."""

    rank, size = 0, 1

    def allgather(self, item: Any) -> list[Any]:
        """Return ``[item]``."""
        return [item]

    def gather(self, item: Any) -> list[Any]:
        """Return ``[item]``."""
        return [item]

    def bcast(self, item: Any) -> Any:
        """Return ``item``."""
        return item

    def allreduce(self, item: Any) -> Any:
        """Return ``item``, the sum of one."""
        return item

    def Barrier(self) -> None:  # noqa: N802 -- as communicators call it
        """Wait for nobody."""


def _complain(comm: Intracomm, what: str) -> None:
    who = f"rank {comm.rank} of {comm.size}: " if comm.size > 1 else ""
    sys.stdout.flush()
    print(f"dml-hpc: {who}{what}", file=sys.stderr, flush=True)


def _end(comm: Intracomm, code: int) -> int:
    """End every rank: the others are, or soon will be, waiting in a collective that this one never enters."""
    if comm.size > 1:
        last_word()
        comm.Abort(code)
    return code


def world() -> Intracomm:
    """Start MPI and return the world; refuse an MPI library that is missing or does not belong to the launcher."""
    place = launch()
    try:
        import mpi4py

        mpi4py.rc.threads = True
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"MPI does not start ({str(error).splitlines()[0]}); install one (pip install 'dml-hpc[mpich]'), "
            "or load your site's MPI module; `dml-hpc doctor` says more"
        ) from None
    from dml_hpc.watched import WatchedComm

    comm = WatchedComm(MPI.COMM_WORLD)
    if place.size > 1 and comm.size == 1:
        library = MPI.Get_library_version().split("\n")[0].strip()
        raise UserError(
            f"{place.launcher} started {place.size} ranks, but this Python's MPI library ({library}) sees only one; "
            "use the mpirun of the same MPI (`dml-hpc doctor` names it)"
        )
    return comm


@contextmanager
def agreed(comm: Intracomm | Alone) -> Iterator[None]:
    """Check locally, fail together: a block that may fail on some ranks, and holds no collective of its own.

    Every rank must enter the block. When it raises on any of them, all of them raise `AgreedError` with the
    lowest failing rank's message; unexpected exceptions print their traceback where they happened first.
    """
    failure: tuple[str, int] | None = None
    try:
        yield
    except (UserError, JobError) as error:
        failure = (str(error), error.exit_code)
    except OSError as error:
        failure = (describe(error), EXIT_USER)
    except MemoryError as error:
        failure = (f"there is not enough memory: {first_line(error)}", EXIT_JOB)
    except Exception as error:
        traceback.print_exc()
        failure = (f"{type(error).__name__}: {error}", EXIT_JOB)
    agree(comm, failure)


def agree(comm: Intracomm | Alone, failure: tuple[str, int] | None) -> None:
    """Collective: raise `AgreedError` on every rank when any rank brings a failure ``(message, exit code)``."""
    failures = comm.allgather(failure)
    for rank, found in enumerate(failures):
        if found is not None:
            raise AgreedError(found[0], rank, found[1])


def describe(error: OSError) -> str:
    """Return an operating-system error as one line: what, and on which file."""
    if error.errno and error.filename:
        return f"{error.filename}: {os.strerror(error.errno)}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def on_root(comm: Intracomm | Alone, make: Callable[[], Any]) -> Any:
    """Collective: run ``make()`` on rank 0 and return its result (pickled) on every rank, failing together."""
    result = None
    with agreed(comm):
        if comm.rank == 0:
            result = make()
    return comm.bcast(result)


@contextmanager
def shared_folder(comm: Intracomm | Alone, path: Path) -> Iterator[Path]:
    """Collective: yield a new folder that all ranks may fill; it takes ``path``'s place when all have left the block.

    See `dml_hpc.files.replaced_folder`. What one rank alone raises inside ends the job; see `agreed`.
    """
    with ExitStack() as stack:
        folder = on_root(comm, lambda: stack.enter_context(replaced_folder(path)))
        try:
            yield folder
        except BaseException:
            # Whichever rank is still there tidies up: the others may be ended before they can.
            shutil.rmtree(folder, ignore_errors=True)
            raise
        comm.Barrier()
        with agreed(comm):
            stack.close()


def gather_rows(comm: Intracomm, rows: np.ndarray) -> np.ndarray:
    """Collective: return on rank 0 all ranks' ``rows`` (count,) one after the other; on others an empty array."""
    import numpy as np

    counts = comm.gather(len(rows)) or []
    if comm.rank > 0:
        comm.Send(rows, 0)
        return rows[:0]
    out = np.empty(sum(counts), rows.dtype)
    start = len(rows)
    out[:start] = rows
    for rank in range(1, comm.size):
        comm.Recv(out[start:start + counts[rank]], rank)
        start += counts[rank]
    return out


@contextmanager
def first_on_node(comm: Intracomm) -> Iterator[None]:
    """Run the block on one rank of each node, then on that node's other ranks, which find its caches filled.

    Collective over ``comm``.
    """
    node = comm.Split_type(_shared())
    try:
        if node.rank > 0:
            node.Barrier()
        yield
        if node.rank == 0:
            node.Barrier()
    finally:
        node.Free()


def ranks_on_node(comm: Intracomm) -> int:
    """Collective: return how many ranks share this rank's node."""
    node = comm.Split_type(_shared())
    try:
        return node.size
    finally:
        node.Free()


def _shared() -> int:
    from mpi4py import MPI

    return MPI.COMM_TYPE_SHARED
