"""Where and how a rank is struck."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Strike:
    """``how`` befalls launcher's rank ``rank`` in its ``call``-th call of ``place``, ``delay_s`` seconds later.

    ``place`` is "module:name", or "clock": so long after the rank has started. ``path`` is the file that is meant,
    where there is one. No two strikes of a job have the same ``name``.
    """

    name: str
    rank: int
    place: str
    how: str
    call: int = 1
    delay_s: float = 0.0
    path: str = ""


HOWS = ("kill", "stop", "raise", "memory", "supervisor")
"""kill -9 of a rank; SIGSTOP; an exception; memory that is refused; kill -9 of the process that watches over a rank."""

_LOOP = "dml_hpc.trainers.loop:"
_WRITER = "dml_hpc.store.checkpoint_writer:"
_CHECKPOINT = "dml_hpc.store.checkpoint:"
MOMENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "start-up": dict.fromkeys(("sync", "lbfgs"), (
        "dml_hpc.mpi:world", "dml_hpc.commands.fitting:open_data", "dml_hpc.commands.fitting:compile_kernels",
        "dml_hpc.commands.fitting:open_algorithm", "dml_hpc.commands.fitting:train")),
    "reading": {"sync": ("dml_hpc.data.reading:Resident.take", "dml_hpc.data.reading:Loaded.__init__"),
                "lbfgs": ("dml_hpc.data.reading:Resident.everything", "dml_hpc.data.reading:Loaded.__init__")},
    "training": dict.fromkeys(("sync", "lbfgs"), (
        "dml_hpc.trainers.gradient:FixedPointGradient.fill", _LOOP + "at_step")),
    "all-reduce": {"sync": ("dml_hpc.comm.reducer:Reducer.reduce_update",),
                   "lbfgs": ("dml_hpc.trainers.lbfgs:Lbfgs._dots", "dml_hpc.trainers.lbfgs:Lbfgs._evaluate")},
    "checkpoint": dict.fromkeys(("sync", "lbfgs"), (
        _WRITER + "Writer.begin", _WRITER + "Writer.settle", _WRITER + "_write", _CHECKPOINT + "commit",
        _CHECKPOINT + "flush_folder")),
    "any": dict.fromkeys(("sync", "lbfgs"), ("clock",)),
}
"""Where the moments of a run are, by algorithm."""
_EVERY_STEP = ("Resident.take", "FixedPointGradient.fill", "at_step", "Reducer.reduce_update", "Lbfgs._dots",
               "Lbfgs._evaluate")
_ON_ROOT = ("commit", "flush_folder")
_IN_THREAD = ("_write", "commit", "flush_folder", "clock")
"""An exception there is no rank's end."""
_MOST_DELAY_S = 0.02
_MOST_CLOCK_S = 4.0


def drawn(rng: Random, title: str, moment: str, algorithm: str, how: str, ranks: int, steps: int) -> Strike:
    """Return a strike at a random moment of a run of ``steps`` steps."""
    places = MOMENTS[moment][algorithm]
    if how in ("raise", "memory"):
        places = tuple(place for place in places if place.split(":")[-1] not in _IN_THREAD)
    place = rng.choice(places)
    function = place.split(":")[-1]
    rank = 0 if function in _ON_ROOT else rng.randrange(ranks)
    if function == "clock":
        return Strike(title, rank, place, how, delay_s=rng.uniform(0.02, _MOST_CLOCK_S))
    call = 1
    if function in _EVERY_STEP:
        call = rng.randint(1, int(0.9 * steps))
    elif moment == "checkpoint":
        call = rng.randint(1, 5)
    late = how not in ("raise", "memory") and rng.random() < 0.5
    return Strike(title, rank, place, how, call, rng.uniform(0, _MOST_DELAY_S) if late else 0.0)
