"""Start MPI, guard it, agree over it: the only file that names COMM_WORLD."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.errors import EXIT_INTERRUPTED, EXIT_JOB, EXIT_USER, AgreedError, JobError, Stopped, UserError
from dml_hpc.files import first_line, replaced_folder
from dml_hpc.launch import launch, share_cores
from dml_hpc.launchers import check_library, refused
from dml_hpc.segments import drop_left, drop_names
from dml_hpc.signals import hold_signals, release_signals
from dml_hpc.supervise import joined, last_word, supervised
from dml_hpc.survival import revoke, survivors, unable_to_survive
from dml_hpc.watch import DEFAULT_DEADLINE_S, at_work, watching

if TYPE_CHECKING:
    import numpy as np
    from mpi4py.MPI import Intracomm

INTERRUPTED_S = 3.0
"""How long a rank leaves it to rank 0 to say what has ended all of them."""


def guarded(body: Callable[[Intracomm], int], deadline_s: float = DEFAULT_DEADLINE_S,
            failure: tuple[str, int] | None = None, least_ranks: int | None = None) -> int:
    """Run ``body(comm)`` on every rank under the guard and return this rank's exit code.

    Whatever ends ``body`` on one rank (an exception, ``sys.exit``, a signal, a crash) ends the whole job within
    seconds with a non-zero status, and the rank and the cause are printed. A failure all ranks agreed on
    (`agreed`) ends every rank in order instead, and only the rank that failed speaks. A collective that takes
    longer than ``deadline_s`` seconds (0: no limit) ends the job too, and the ranks that are missing are named.
    A rank that cannot even begin brings a ``failure`` (message, exit code): then no rank runs ``body``.

    With ``least_ranks`` the death of a rank ends that rank alone: while so many are left, the others run ``body`` again
    from its beginning, on a communicator of theirs: see `dml_hpc.survival`. Where rank 0 has come to the end of
    ``body``, and outlives the death, all end as it did.
    """
    place = launch()
    if place.size > 1:
        share_cores()
        return supervised(lambda: _run(body, deadline_s, failure, least_ranks), place, least_ranks is not None,
                          deadline_s)
    return _run(body, 0, failure or (None if least_ranks is None else unable_to_survive()), None)


def _run(body: Callable[[Intracomm], int], deadline_s: float, failure: tuple[str, int] | None,
         least_ranks: int | None) -> int:
    hold_signals()  # none interrupts MPI's start, or is taken by a thread of MPI's
    try:
        comm = world()
    except UserError as error:
        release_signals()
        return _found_by_all(error)
    joined()
    if least_ranks is not None and failure is None:
        failure = unable_to_survive()

    def stalled(found: str) -> None:
        _complain(comm, found)
        _end(comm, EXIT_JOB)

    finished: int | None = None  # what rank 0 has come to its end with: then all is written, and its record given
    while True:
        code: int | None = None
        fault: BaseException | None = None
        try:
            release_signals()
            if least_ranks is not None:
                finished = comm.bcast(finished)
            agree(comm, failure if finished is None else None)
            with watching(comm, deadline_s, stalled, None if least_ranks is None else partial(revoke, comm)):
                code = body(comm) if finished is None else finished
        except BaseException as raised:
            fault = raised
        unable = failure is not None and isinstance(fault, AgreedError)
        alive = None if least_ranks is None or unable else survivors(comm, fault, code is not None)
        if alive is None:
            if code is not None and (fault is None or least_ranks is not None):
                return code if least_ranks is None else _leave(code)
            assert fault is not None
            code = _told(comm, fault, _end if least_ranks is None else _end_alone)
            # Where none survives another none is left behind either, and MPICH's launcher kills who has not finalized.
            return code if least_ranks is None or unable else _leave(code)
        if comm.rank == 0 and code is not None:
            finished = code
        comm = alive
        if least_ranks is not None and comm.size < least_ranks:
            left = "one rank is" if comm.size == 1 else f"{comm.size} ranks are"
            failure = f"only {left} left, --min-ranks is {least_ranks}", EXIT_JOB


def _found_by_all(error: UserError) -> int:
    """Say once what every rank has found by itself before MPI has started: the launcher's rank 0 does.

    No other ends before it has, as a launcher may end all of them with the first.
    """
    if launch().rank == 0:
        print(f"dml-hpc: {error}", file=sys.stderr, flush=True)
    else:
        with suppress(Stopped):
            threading.Event().wait(INTERRUPTED_S)
    return EXIT_USER


def _leave(code: int) -> int:
    """End this rank, which has agreed with all that are left that there is no more to do.

    MPI_Finalize is left out: after a loss it may wait for the dead for ever.
    """
    last_word()
    os._exit(code)


def _told(comm: Intracomm, error: BaseException, end: Callable[[Intracomm, int], int]) -> int:
    """Say what ended the body on this rank; return the exit code, once ``end`` has done with the others."""
    if isinstance(error, AgreedError):
        if comm.rank == error.rank:
            _complain(comm, str(error))
        return error.exit_code
    if isinstance(error, (UserError, JobError, Stopped)):
        if error.exit_code == EXIT_INTERRUPTED and comm.rank > 0:
            # A terminal interrupts all ranks: rank 0 says so, and ends this one, unless it was not told, or does not
            # hear it, as it waits inside MPI for one that has. Then another does, and not all at the same time.
            threading.Event().wait(INTERRUPTED_S * (1 + comm.rank / comm.size))
        _complain(comm, str(error))
        return (_end if getattr(error, "all_stop", False) else end)(comm, error.exit_code)
    if isinstance(error, MemoryError):
        _complain(comm, f"there is not enough memory: {error or 'an allocation failed'}")
        return end(comm, EXIT_JOB)
    if isinstance(error, SystemExit):
        _complain(comm, f"sys.exit({error.code!r}) was called in the middle of the work")
        return end(comm, EXIT_JOB)
    if "no locator available" in str(error):  # Numba, when it imports a kernel that it is to keep
        _complain(comm, "Numba has nowhere to keep compiled kernels: export NUMBA_CACHE_DIR=/a/writable/folder")
        return end(comm, EXIT_USER)
    traceback.print_exception(error)
    _complain(comm, f"{type(error).__name__}: {error}")
    return end(comm, EXIT_JOB)


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


def _end_alone(comm: Intracomm, code: int) -> int:
    """End this rank, and leave the others to find out: of a rank that is killed the launcher tells them."""
    last_word()
    os.kill(os.getpid(), signal.SIGKILL)
    return code


def world() -> Intracomm:
    """Start MPI and return the world; refuse an MPI library that is missing or does not belong to the launcher."""
    place = launch()
    try:
        import mpi4py

        mpi4py.rc.threads = True
        if place.size > 1:
            # Where the library does not know the launcher, MPI's start may end the process: ask it who it is first.
            mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"MPI does not start ({str(error).splitlines()[0]}); install one (pip install 'dml-hpc[mpich]'), "
            "or load your site's MPI module; `dml-hpc doctor` says more"
        ) from None
    from dml_hpc.watched import watched

    if not MPI.Is_initialized():
        check_library(place, MPI.Get_library_version())
        if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
            drop_left()
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
        drop_names()
    comm = watched(MPI.COMM_WORLD)
    if place.size > 1 and comm.size == 1:
        raise refused(place, MPI.Get_library_version())
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
    return first_line(error)


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
        with at_work():  # a kernel may take longer to compile than a rank is waited for
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
