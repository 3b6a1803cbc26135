"""``dml-hpc svd``: the truncated SVD, or the principal components, of a data set's X, into an HDF5 file."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.commands import reducing
from dml_hpc.commands.devices import open_gpu
from dml_hpc.commands.keeping import Keeping, about_run
from dml_hpc.commands.opening import named, open_data
from dml_hpc.commands.projecting import check_folder, write_left
from dml_hpc.commands.whereabouts import whereabouts
from dml_hpc.data.dataset import Dataset
from dml_hpc.decomposition.grid import Grid
from dml_hpc.decomposition.matrix import Matrix
from dml_hpc.decomposition.svd.choice import Choice, choose
from dml_hpc.decomposition.svd.course import PART, Course
from dml_hpc.decomposition.svd.truncated import Found, Wanted, truncated_svd
from dml_hpc.errors import UserError
from dml_hpc.files import check_output
from dml_hpc.kernels import start_compiler
from dml_hpc.memory import free_bytes, peak_bytes, resident_bytes
from dml_hpc.mpi import agreed, ranks_on_node
from dml_hpc.store.every import Every
from dml_hpc.store.factors import Factors, write_factors
from dml_hpc.store.live import Live
from dml_hpc.store.saving import Memory
from dml_hpc.store.state import Kept
from dml_hpc.trainers.trace import Trace
from dml_hpc.usage import since, usage

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.console import Console

ROWS_SHOWN = 20


def run(comm: Intracomm, console: Console, data: Sequence[Path], x_key: str | None, output: Path, k: int | None,
        tolerance: tuple[str, float] | None, accuracy: float, method: str, grid: tuple[int, int] | None, center: bool,
        scale: bool, left: Path | None, plot: Path | None, memory_limit: int | None, reproducible: bool, seed: int,
        allreduce: str | None, tuning: Path | None, overwrite: bool, device: str = "cpu",
        checkpoint: Path | None = None, checkpoint_every: Every | None = None, keep: int | None = None,
        resume: bool = False, memory: Memory | None = None, skip_bad_shards: bool = False, live: Live | None = None,
        probe: bool = False) -> dict[str, Any]:
    """Collective: factorise ``data``, write the triplets to ``output``, U to ``left`` and a scree plot to ``plot``.

    With ``device`` "cuda" products with rows are computed on a GPU; U is projected by the CPU, as `svd-apply` does.
    ``checkpoint``, ``checkpoint_every``, ``keep``, ``resume``, ``memory`` and ``live`` are those of `Keeping`; a step
    is a pass over the data. With ``probe`` the wire between ranks is measured at the end.

    Returns the ``--json`` keys. Times are in seconds, each the largest over the ranks. Residuals hold None where σ is
    zero to rounding. Raises `AgreedError` on every rank for what the user can mend, before anything is written.
    """
    started, taken = time.perf_counter(), usage()
    keeping = Keeping(checkpoint, checkpoint_every, keep, resume, memory, live)
    # When survivors begin anew, what stands at the outputs is this run's own.
    overwrite = overwrite or (memory is not None and bool(memory.ranks))
    with agreed(comm):
        keeping.check(comm.rank, data)
        if allreduce == "nccl":
            raise UserError("--allreduce nccl sums vectors that lie on GPUs, and what svd sums lies on the host; leave "
                            "it out, or choose another")
        if allreduce is not None:
            reducing.check(allreduce, tuning, output, comm.rank)
        elif tuning is not None:
            raise UserError("--tuning keeps what --allreduce auto measures: give that as well")
        if k is None and tolerance is None:
            raise UserError("how many triplets? give -k N, or --tolerance energy=0.95, or both")
        if comm.rank == 0:
            check_output(output, overwrite, inputs=data)
            _check_plot(plot, overwrite, [*data, output])
    if left is not None:
        with agreed(comm):
            if left.absolute() in (output.absolute(), *output.absolute().parents):
                raise UserError(f"--left {left} is where -o is written; choose another folder")
        check_folder(comm, left, overwrite, data, "--left")
    dataset = open_data(comm, data, x_key, None, labels=False, statistics=center or scale,
                        skip_bad_shards=skip_bad_shards)
    shift, divisor = _standardising(comm, dataset, center, scale)
    about = about_run(comm, "svd", dataset, {
        "x_key": x_key, "k": k, "accuracy": accuracy,
        "tolerance": None if tolerance is None else f"{tolerance[0]}={tolerance[1]}",
        "center": center, "scale": scale, "reproducible": reproducible, "seed": seed})
    kept = keeping.kept(comm, console, about)
    with agreed(comm):
        limit = _most_triplets(dataset, k)
        wanted = Wanted(limit, accuracy, **({} if tolerance is None else {tolerance[0]: tolerance[1]}))
        most_bytes = _most_bytes(memory_limit, ranks_on_node(comm))
        method, wide = _as_before(kept, method)
        choice = choose(dataset, limit, comm.size, wanted.accuracy, most_bytes, method, grid, reproducible,
                        device, wide)
    choice = comm.bcast(choice)
    # Without a limit mapped rows cost nothing, as the system takes their pages back when it needs them.
    free = memory_limit is None and choice.grid[1] == 1 and dataset.mappable(0, dataset.rows)
    gpu, sharers = open_gpu(comm, console, device)
    console.say(f"svd      {choice.method} on {choice.grid[0]} × {choice.grid[1]} ranks: {choice.why}")
    # Sums of dense products are small, and the library's all-reduce is there at once.
    allreduce = allreduce or ("hierarchical" if dataset.kind == "csr" or reproducible else "mpi")
    # Dense products are BLAS's, and need no kernel, nor do those of a GPU.
    if gpu is None and (dataset.kind == "csr" or reproducible):
        start_compiler()
    clock = Clock()
    trace = Trace(clock, bytes_sent=lambda: None)
    with keeping.saving(comm, console, about, kept) as saving, Grid(comm, choice.grid) as ranks, Matrix(
            ranks, dataset, reducing.opener(console, allreduce, tuning=tuning), clock, console, shift, divisor,
            None if free else most_bytes, reproducible, gpu, sharers) as matrix:
        saving.gauges.append(_Tracing(trace, matrix.rows[1] - matrix.rows[0]))
        saving.watch(0 if kept is None else kept.part("loop").values["step"], None, dict, clock.so_far)
        course = Course(matrix, saving, {"method": choice.method, "wide": choice.wide})
        found = truncated_svd(matrix, choice.method, choice.wide, wanted, seed, course)
        V = matrix.gathered(found.triplets.V)
        trace.point()
    factors = _factors(dataset, found, V, choice, shift, divisor, wanted.accuracy, center)
    with agreed(comm):
        if comm.rank == 0:
            write_factors(output, factors)
            if plot is not None:
                _draw(factors, plot)
    work_s, used = time.perf_counter() - started, since(taken)
    if left is not None:
        write_left(comm, console, dataset, factors, left, overwrite)
    own = {**clock.seconds, "rows": matrix.rows[1] - matrix.rows[0], "work_s": work_s, **used,
           "peak_bytes": peak_bytes(), "checkpoint_s": saving.lost_s}
    per_rank, traces = comm.allgather(own), comm.allgather(trace.points)
    work_s, whole_s = max(one["work_s"] for one in per_rank), max(comm.allgather(time.perf_counter() - started))
    _show(console, factors, found, matrix, output, work_s, comm.size, wanted)
    return {
        "k": factors.k, "method": choice.method, "device": device, "why": choice.why, "grid": list(choice.grid),
        "singular_values": factors.singular_values.tolist(),
        "relative_residuals": _numbers(factors.relative_residuals),
        "left_residuals": _numbers(factors.left_residuals),
        "accuracy": wanted.accuracy, "accuracy_met": found.met,
        "norm": factors.norm, "energy": _numbers(factors.energy), "error_bound": factors.error_bound,
        "frobenius_error": found.remainder / found.norm if found.norm else 0.0,
        "explained_variance": _numbers(factors.explained_variance),
        "explained_variance_ratio": _numbers(factors.explained_variance_ratio),
        "passes_over_data": matrix.passes, "precision": str(matrix.precision), "reproducible": reproducible,
        "allreduce": allreduce, "allreduce_used": matrix.summed_by, "digest": factors.digest, "data": named(data),
        "rows": dataset.rows, "features": dataset.features, "output": str(output),
        "left": None if left is None else str(left), "work_s": round(work_s, 6), "with_left_s": round(whole_s, 6),
        "peak_bytes": max(one["peak_bytes"] for one in per_rank), "checkpoints": saving.count,
        "checkpoints_failed": saving.failures,
        "resumed_from": None if kept is None else kept.part("loop").values["step"],
        "skipped_shards": [one._asdict() for one in dataset.left_out],
        "skipped_rows": sum(one.rows or 0 for one in dataset.left_out),
        "ranks_at_starts": [comm.size] if memory is None else memory.ranks,
        "time_split": {name: round(max(one[name] for one in per_rank), 6) for name in clock.seconds},
        "per_rank": per_rank, "trace": traces, **whereabouts(comm, probe),
    }


class _Tracing:
    """Has a point of the trace written down when ranks meet (`dml_hpc.store.saving.Gauge`): after passes."""

    def __init__(self, trace: Trace, rows: int):
        self._trace, self._rows = trace, rows

    def own(self) -> list[float]:
        """Return nothing: the others need not know."""
        return []

    def met(self, step: int, table: np.ndarray) -> None:
        """Write down that this rank has gone ``step`` times through its rows."""
        self._trace.examples = step * self._rows
        self._trace.point()


def _as_before(kept: Kept | None, method: str) -> tuple[str, bool | None]:
    """Return the method, and whether it is for a wide matrix (None: not known), of a run that goes on from ``kept``.

    Raises `UserError` where another method is asked for.
    """
    if kept is None:
        return method, None
    before = kept.part(PART).values
    if method not in ("auto", before["method"]):
        raise UserError(f"--method {method}: the checkpoint is of --method {before['method']}; leave it out, or give "
                        "another --checkpoint folder")
    return before["method"], before["wide"]


def _check_plot(plot: Path | None, overwrite: bool, inputs: Sequence[Path]) -> None:
    if plot is None:
        return
    from dml_hpc.reports.plots import check_matplotlib

    if plot.suffix not in (".png", ".svg"):
        raise UserError(f"--plot {plot}: the name has to end in .png or .svg")
    check_output(plot, overwrite, option="--plot", inputs=inputs)
    check_matplotlib()


def _most_triplets(dataset: Dataset, k: int | None) -> int:
    """Return how many triplets there may be; `UserError` where there are none, or fewer than asked for."""
    rows, features = dataset.rows, dataset.features
    if rows == 0:
        raise UserError(f"{dataset.path} has no rows; there is nothing to factorise")
    if k is not None and k > min(rows, features):
        raise UserError(f"-k {k} is outside 1 … {min(rows, features)}, the smaller side of {dataset.path} "
                        f"({rows} × {features}); choose another")
    return k or min(rows, features)


def _standardising(comm: Intracomm, dataset: Dataset, center: bool,
                   scale: bool) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return what is taken off every column and what it is then divided by, (features,) each, or None."""
    if not (center or scale):
        return None, None
    with agreed(comm):
        statistics = dataset.manifest.statistics
        if statistics is None:
            raise UserError(f"{dataset.path} has {dataset.features:,} features, too many for --center and --scale")
    assert statistics is not None
    deviation = np.asarray(statistics.deviation, np.float64)
    # A constant column is left as it is: nothing is known of its scale.
    divisor = np.where(deviation > 0, deviation, 1.0)
    return np.asarray(statistics.mean, np.float64) if center else None, divisor if scale else None


def _most_bytes(memory_limit: int | None, node_ranks: int) -> int | None:
    """Return how much memory this rank's rows and sums may take, None: nothing is known."""
    if memory_limit is None:
        free = free_bytes()
        return None if free is None else free // 2 // node_ranks
    left = memory_limit - resident_bytes()
    if left <= 0:
        raise UserError(f"--memory-limit is below the {resident_bytes() >> 20:,} MiB that a rank takes before it has "
                        "read a row; give more")
    return left


def _factors(dataset: Dataset, found: Found, V: np.ndarray, choice: Choice, shift: np.ndarray | None,
             scale: np.ndarray | None, accuracy: float, center: bool) -> Factors:
    sigma = found.triplets.singular_values
    whole = found.norm**2
    energy = np.minimum(np.cumsum(np.square(sigma)) / whole if whole else np.ones(len(sigma)), 1.0)
    variance = np.square(sigma) / max(dataset.rows - 1, 1) if center else None
    ratio = np.square(sigma) / whole if center and whole else None if not center else np.zeros(len(sigma))
    return Factors(sigma, np.ascontiguousarray(V), found.triplets.relative_residuals, dataset.manifest.feature_names,
                   choice.method, dataset.rows, found.triplets.left_residuals, shift, scale, found.norm,
                   found.error_bound, energy, variance, ratio, accuracy, found.met)


def _draw(factors: Factors, plot: Path) -> None:
    from dml_hpc.reports.plots import as_svg, save_png, scree_figure

    assert factors.energy is not None
    figure = scree_figure(factors.singular_values, factors.energy, factors.relative_residuals)
    if plot.suffix == ".png":
        save_png(figure, plot)
    else:
        plot.write_text(as_svg(figure, "singular values"))


def _advice(method: str) -> str:
    return "ask for less" if method == "tsqr" else "try --method tsqr, or ask for less"


def _numbers(values: np.ndarray | None) -> list[float | None] | None:
    return None if values is None else [None if math.isnan(value) else value for value in values.tolist()]


def _show(console: Console, factors: Factors, found: Found, matrix: Matrix, output: Path,
          work_s: float, ranks: int, wanted: Wanted) -> None:
    def cell(residual: float) -> str:
        return "-" if math.isnan(residual) else f"{residual:.1e}"

    assert factors.energy is not None
    triplets = list(zip(factors.singular_values, factors.relative_residuals, factors.energy, strict=True))
    console.table(("", "singular value", "residual/σ₁", "energy"),
                  [(i, f"{sigma:.6g}", cell(residual), f"{energy:.4%}") for i, (sigma, residual, energy) in
                   enumerate(triplets[:ROWS_SHOWN], 1)])
    if len(triplets) > ROWS_SHOWN:
        console.say(f"… and {len(triplets) - ROWS_SHOWN} more")
    console.say(f"         ‖A − UΣVᵀ‖₂ ≤ {factors.error_bound:.3g}, of ‖A‖_F = {factors.norm:.6g}")
    if found.triplets.worst > wanted.accuracy:
        console.say(f"         the accuracy asked for, {wanted.accuracy:g}, was not met: the largest residual is "
                    f"{found.triplets.worst:.1e} ({_advice(factors.method)})")
    elif not found.met:
        console.say(f"         {factors.k} triplets do not reach the tolerance asked for; give a larger -k")
    console.say(f"{output}: {factors.k} triplets ({factors.method}, {matrix.passes} passes, {matrix.precision} "
                f"products, {ranks} rank{'s' if ranks > 1 else ''}, {work_s:.2f} s)")
