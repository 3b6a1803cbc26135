"""A run as a timeline that Chrome (chrome://tracing) and Perfetto (ui.perfetto.dev) draw: one track a rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.comm.clock import MOST_SPANS, PHASES
from dml_hpc.files import replaced_file
from dml_hpc.mpi import agreed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def write_timeline(comm: Intracomm, path: Path, spans: np.ndarray) -> None:
    """Collective: write every rank's ``spans`` (see `dml_hpc.comm.clock.Clock.spans`) to ``path``, on rank 0.

    The Trace Event Format's complete events ("X"), times in microseconds since the run began; ``pid`` is the rank.
    """
    everywhere = comm.gather(spans)
    with agreed(comm):
        if comm.rank == 0:
            events: list[dict[str, Any]] = []
            for rank, found in enumerate(everywhere or []):
                events.append({"name": "process_name", "ph": "M", "pid": rank, "args": {"name": f"rank {rank}"}})
                events += [{"name": PHASES[int(phase)], "ph": "X", "pid": rank, "tid": 0, "ts": round(start * 1e6, 3),
                            "dur": round(length * 1e6, 3)} for phase, start, length in found.tolist()]
            cut = any(len(found) >= MOST_SPANS for found in everywhere or [])
            table = {"traceEvents": events, "displayTimeUnit": "ms",
                     "otherData": {"ranks": comm.size, "cut_after_events_a_rank": MOST_SPANS if cut else None}}
            with replaced_file(path) as partial:
                partial.write_text(json.dumps(table), encoding="utf-8")
