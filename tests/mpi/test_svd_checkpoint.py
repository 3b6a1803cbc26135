"""A factorisation that was stopped after any pass goes on from there, on any number of ranks, to the same factors."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import data_support
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
from host_device import COMPILER, HostCuda

from dml_hpc.comm import open_reducer
from dml_hpc.comm.clock import Clock
from dml_hpc.commands import svd
from dml_hpc.console import Console
from dml_hpc.data.csr import sparse
from dml_hpc.data.dataset import open_dataset
from dml_hpc.decomposition import matrix as matrix_module
from dml_hpc.decomposition.grid import Grid
from dml_hpc.decomposition.matrix import Matrix
from dml_hpc.decomposition.svd.choice import choose
from dml_hpc.decomposition.svd.course import PART, Course
from dml_hpc.decomposition.svd.truncated import Wanted, truncated_svd
from dml_hpc.errors import EXIT_AGAIN, AgreedError
from dml_hpc.store import checkpoint
from dml_hpc.store.checkpoint_writer import Writer
from dml_hpc.store.every import Every
from dml_hpc.store.saving import Memory, Saving

pytestmark = pytest.mark.mpi
maths = pytest.mark.maths


@pytest.fixture(autouse=True)
def many_chunks(monkeypatch):
    """Matrices of some hundred rows are to be dealt to several ranks."""
    monkeypatch.setattr(matrix_module, "LEAST_ROWS", 16)
    monkeypatch.setattr(matrix_module, "SQUARE_ROWS", 40)


def write_dataset(comm, path: Path, X: np.ndarray, csr: bool = False) -> Path:
    """Rank 0 writes X in shards."""
    if comm.rank == 0:
        data_support.write_dataset(path, sparse(X) if csr else X, np.zeros(len(X)), [len(X) // 3, len(X) - len(X) // 3],
                                   str(X.dtype))
    comm.Barrier()
    return path


def matrix(rows: int, spectrum: np.ndarray, dtype: str = "float64") -> np.ndarray:
    """A matrix (rows, len(spectrum)) with these singular values and random singular vectors."""
    rng = np.random.default_rng(0)
    U = np.linalg.qr(rng.standard_normal((rows, len(spectrum))))[0]
    V = np.linalg.qr(rng.standard_normal((len(spectrum), len(spectrum))))[0]
    return (U * spectrum @ V.T).astype(dtype)


CASES = {
    "restarts": (matrix(120, 0.97**np.arange(80)), {"k": 3, "method": "randomized", "accuracy": 1e-7}),
    "two precisions": (matrix(120, 0.8**np.arange(60), "float32"),
                       {"k": 4, "method": "randomized", "accuracy": 1e-9}),
    "a start that spans too little": (matrix(90, np.r_[3.0, 2, 1, np.zeros(47)]),
                                      {"k": 30, "method": "randomized", "accuracy": 1e-9}),
    "ever more": (matrix(100, 0.97**np.arange(50)),
                  {"k": 40, "method": "randomized", "accuracy": 1e-6, "energy": 0.8}),
    "sparse": (np.where(matrix(120, 0.9**np.arange(50)) > 0.02, 1.0, 0.0).astype("float32"),
               {"k": 3, "method": "randomized", "accuracy": 1e-5, "csr": True, "standardised": True}),
    "gram": (matrix(120, np.r_[0.5**np.arange(12), 1e-9 * 0.5**np.arange(8)], "float32"),
             {"k": 9, "method": "gram", "accuracy": 1e-11}),
    "lost by squaring": (matrix(120, 10.0**-np.arange(14)), {"k": 12, "method": "gram", "accuracy": 1e-3,
                                                             "ratio": 3e-12}),
    "wide": (matrix(120, 0.7**np.arange(40), "float32").T, {"k": 6, "method": "gram", "accuracy": 1e-9, "wide": True}),
    "tsqr": (matrix(120, 0.7**np.arange(20)), {"k": 4, "method": "tsqr", "accuracy": 1e-12}),
    "incremental": (matrix(120, 0.7**np.arange(20)), {"k": 4, "method": "incremental", "accuracy": 1e-3}),
}

PLACES = {
    "restarts": {"krylov", "after"}, "two precisions": {"krylov", "before", "after"},
    "a start that spans too little": {"krylov", "after"},
    "ever more": {"krylov", "before", "after"}, "sparse": {"krylov", "after"},
    "gram": {"before", "after"}, "lost by squaring": {"before", "refined", "after"},
    "wide": {"before", "after"}, "tsqr": {"after"}, "incremental": set(),
}
"""Where there is something to keep."""


def factorise(comm, path: Path, folder: Path | None = None, k: int = 1, method: str = "gram", accuracy: float = 1e-6,
              stop: int | None = None, resume: bool = False, grid: tuple[int, int] | None = None, wide: bool = False,
              reproducible: bool = False, csr: bool = False, standardised: bool = False,
              places: dict[str, list[int]] | None = None, device: bool = False, **tolerance: float):
    """Return σ, residuals, all of V, what is said of the rest, and how many passes were made.

    A signal comes in pass ``stop``. After which passes the course was told of which place is added to ``places``.
    """
    dataset = open_dataset(path)
    shift, scale = (np.linspace(0, 1, dataset.features), np.linspace(1, 2, dataset.features)) if standardised else (
        None, None)
    grid = grid or ((1, comm.size) if wide else (comm.size, 1))
    kept = checkpoint.newest(comm, folder, pytest.fail) if resume else None
    with Grid(comm, grid) as ranks, Matrix(ranks, dataset, partial(open_reducer, "ring"), Clock(), Console(rank=1),
                                           shift, scale, None, reproducible, HostCuda() if device else None,
                                           comm.size) as one:
        asked = lambda: signal.SIGTERM if stop is not None and one.passes >= stop else 0  # noqa: E731
        writer = None if folder is None or resume else Writer(comm, folder, 2, {})
        saving = Saving(comm, pytest.fail, writer, Every(), None, asked, kept)
        course = Course(one, saving)
        if places is not None:
            tell = course.after_pass
            course.after_pass = lambda place, state: (  # type: ignore[method-assign]
                places.setdefault(place, []).append(one.passes), tell(place, state))
        try:
            found = truncated_svd(one, method, wide, Wanted(k, accuracy, **tolerance), 0, course)
        finally:
            saving.close()
        triplets = found.triplets
        return (triplets.singular_values, triplets.relative_residuals, one.gathered(triplets.V),
                (found.norm, found.error_bound, found.remainder, found.met), one.passes)


@contextmanager
def fewer(comm):
    """Yield all ranks but the last as one communicator, and the last one alone as another."""
    some = comm.Split(int(comm.size > 1 and comm.rank == comm.size - 1), comm.rank)
    yield some
    some.Free()


def stopped(comm, path: Path, folder: Path, stop: int, **case) -> str | None:
    """Stop in a pass; return the place that was kept, "end": the run came to its end all the same."""
    if comm.rank == 0:
        folder.mkdir()
    comm.Barrier()
    try:
        factorise(comm, path, folder, stop=stop, **case)
    except AgreedError as error:
        assert error.exit_code == EXIT_AGAIN
        return checkpoint.newest(comm, folder, pytest.fail).values[PART]["place"]
    return "end"


def same_but_for_rounding(got, expected) -> None:
    """Compare two runs' values, vectors and what is said of the rest; vectors without a value are any."""
    (sigma, _, V, said), (sigma_, _, V_, said_) = got, expected
    np.testing.assert_allclose(sigma, sigma_, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(V * (sigma > 1e-12), V_ * (sigma_ > 1e-12), atol=1e-5)
    np.testing.assert_allclose(said, said_, rtol=1e-6, atol=1e-5)


@maths
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reproducible", [False, True])
def test_it_goes_on_after_any_pass_on_any_number_of_ranks(comm, folder, name, reproducible):
    X, case = CASES[name]
    if reproducible and case.get("wide"):
        pytest.skip("--reproducible takes no Gram matrix of rows")
    path, case = write_dataset(comm, folder / "m", X, case.get("csr", False)), {**case, "reproducible": reproducible}
    told: dict[str, list[int]] = {}
    *expected, passes = factorise(comm, path, places=told, **case)
    assert set(told) == PLACES[name] - ({"refined"} if reproducible else set())
    ends = {(place, stop) for place, stops in told.items() for stop in (stops[0], stops[-1])}
    for place, stop in sorted({*ends, ("end", passes)}):
        kept = folder / f"after-{stop}"
        assert stopped(comm, path, kept, stop, **case) == place
        with fewer(comm) as some:
            *got, all_passes = factorise(some, path, kept, resume=True, **case)
        if reproducible:
            assert all_passes == passes
            for one, other in zip(got, expected, strict=True):
                np.testing.assert_array_equal(one, other)
        else:
            same_but_for_rounding(got, expected)
            assert all_passes == passes or case["method"] == "randomized"
        comm.Barrier()


@maths
def test_few_ranks_leave_off_and_more_go_on_in_another_grid(comm, folder):
    X, case = CASES["restarts"]
    path, kept = write_dataset(comm, folder / "m", X), folder / "kept"
    *expected, _ = factorise(comm, path, **case)
    alone = comm.Split(comm.rank)
    if comm.rank == 0:
        stopped(alone, path, kept, 3, **case)
    alone.Free()
    comm.Barrier()
    for grid in ((comm.size, 1), (1, comm.size), *([(2, 2)] if comm.size == 4 else [])):
        got = factorise(comm, path, kept, resume=True, grid=grid, **case)
        same_but_for_rounding(got[:-1], expected)


@maths
@pytest.mark.skipif(COMPILER is None, reason="there is no g++ to compile the CUDA kernels for the CPU")
@pytest.mark.parametrize("csr", [False, True])
def test_a_device_goes_on_too(comm, folder, csr):
    X, case = CASES["two precisions"]
    path = write_dataset(comm, folder / "m", np.where(np.abs(X) < 0.01, 0, X), csr)
    case, told = {**case, "reproducible": True, "device": True}, {}
    *expected, passes = factorise(comm, path, places=told, **case)
    for stop in (3, told["before"][0]):  # of which one is before products are computed in float64
        kept = folder / f"after-{stop}"
        stopped(comm, path, kept, stop, **case)
        with fewer(comm) as some:
            *got, all_passes = factorise(some, path, kept, resume=True, **case)
        assert all_passes == passes
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        comm.Barrier()


def run(comm, path: Path, output: Path, **given) -> dict:
    options = {"k": 3, "tolerance": None, "accuracy": 1e-7, "method": "auto", "grid": None, "center": False,
               "scale": False, "left": None, "plot": None, "memory_limit": None, "reproducible": True, "seed": 0,
               "allreduce": None, "tuning": None, "overwrite": True, **given}
    return svd.run(comm, Console(rank=comm.rank), [path], None, output, **options)


@pytest.fixture
def handlers():
    """Return what puts the handlers of signals back: a new process has not been told to stop."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}

    def put_back():
        for number, handler in before.items():
            signal.signal(number, handler)

    return put_back


def test_the_command_stops_for_a_signal_and_goes_on(comm, folder, handlers, monkeypatch, capsys):
    path, kept = write_dataset(comm, folder / "m", CASES["restarts"][0]), folder / "kept"
    whole = run(comm, path, folder / "whole.h5", method="randomized")
    assert whole["resumed_from"] is None and whole["checkpoints"] == 0
    pieces = Matrix.pieces

    def told(self):
        yield from pieces(self)
        if self.passes == 4 and comm.rank == comm.size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patched:
        patched.setattr(Matrix, "pieces", told)
        with pytest.raises(AgreedError, match=r"SIGUSR1 after step 4.*--resume") as end:
            run(comm, path, folder / "svd.h5", method="randomized", checkpoint=kept)
    assert end.value.exit_code == EXIT_AGAIN
    assert not (folder / "svd.h5").exists()
    handlers()
    with pytest.raises(AgreedError, match="holds checkpoints of a run"):
        run(comm, path, folder / "svd.h5", checkpoint=kept)

    with fewer(comm) as some:  # without --method, which would be gram
        output = folder / f"svd-{int(some.size == 1 < comm.size)}.h5"
        resumed = run(some, path, output, checkpoint=kept, resume=True) if comm.rank < max(comm.size - 1, 1) else None
    if resumed is not None:
        assert resumed["digest"] == whole["digest"]
        assert (resumed["method"], resumed["why"], resumed["resumed_from"]) == ("randomized", "as before", 4)
        assert resumed["passes_over_data"] == whole["passes_over_data"]
    comm.Barrier()
    capsys.readouterr()
    again = run(comm, path, folder / "again.h5", checkpoint=kept, resume=True)  # all has been done
    assert again["digest"] == whole["digest"]
    assert again["resumed_from"] == again["passes_over_data"] == whole["passes_over_data"]
    assert ("step" in capsys.readouterr().out) == (comm.rank == 0)


@pytest.mark.parametrize(("given", "message"), [
    ({"k": 2}, "was written with --k 3, and this run has --k 2"),
    ({"method": "tsqr"}, "the checkpoint is of --method gram"),
    ({"center": True}, "another data set|no --center"),
    ({"reproducible": False}, "was written with --reproducible"),
])
def test_a_checkpoint_of_something_else_is_refused(comm, folder, handlers, given, message):
    path = write_dataset(comm, folder / "m", matrix(60, 0.5**np.arange(8)))
    how = {"checkpoint": folder / "kept", "checkpoint_every": Every(steps=1)}
    assert run(comm, path, folder / "svd.h5", **how)["checkpoints"] > 0
    with pytest.raises(AgreedError, match=message) as refusal:
        run(comm, path, folder / "svd.h5", resume=True, **how, **given)
    assert refusal.value.exit_code == 2


def test_a_checkpoint_of_other_rows_is_refused(comm, folder, handlers):
    X = matrix(60, 0.5**np.arange(8))
    if comm.rank == 0:
        for name, rows in (("m", X), ("other", X + np.outer(np.arange(60) >= 40, np.ones(8)))):
            data_support.write_dataset(folder / name, rows, np.zeros(60), [20, 20, 20], "float64")
            (folder / name / "part-00001.h5").rename(folder / name / "away")
    comm.Barrier()
    how = {"checkpoint": folder / "kept", "skip_bad_shards": True}
    first = run(comm, folder / "m", folder / "svd.h5", **how)
    assert first["skipped_rows"] == 20
    assert run(comm, folder / "m", folder / "svd.h5", resume=True, **how)["digest"] == first["digest"]
    with pytest.raises(AgreedError, match="is of another data set"):
        run(comm, folder / "other", folder / "svd.h5", resume=True, **how)
    if comm.rank == 0:
        (folder / "m" / "away").rename(folder / "m" / "part-00001.h5")
    comm.Barrier()
    with pytest.raises(AgreedError, match=r"other rows of this data set: then part-00001\.h5 is left out") as end:
        run(comm, folder / "m", folder / "svd.h5", resume=True, **how)
    assert end.value.exit_code == 2


def test_a_choice_is_kept_where_another_would_be_made(comm, folder):
    wide = open_dataset(write_dataset(comm, folder / "m", np.ones((60, 90))))
    assert choose(wide, 3, 4, 1e-3, None, "gram")[:3] == ("gram", (1, 4), True)
    assert choose(wide, 3, 4, 1e-3, None, "gram", wide=False)[:3] == ("gram", (4, 1), False)
    assert choose(wide, 3, 1, 1e-3, None, "gram", (1, 1), wide=False)[:3] == ("gram", (1, 1), False)


def test_survivors_may_replace_what_the_run_has_written_itself(comm, folder):
    path, memory = write_dataset(comm, folder / "m", matrix(60, 0.5**np.arange(8))), Memory()
    how = {"memory": memory, "overwrite": False, "left": folder / "left"}
    first = run(comm, path, folder / "svd.h5", **how)
    comm.Barrier()
    assert run(comm, path, folder / "svd.h5", **how)["digest"] == first["digest"]
    assert memory.ranks == [comm.size] * 2
