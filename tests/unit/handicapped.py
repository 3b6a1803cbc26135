"""``handicapped.py FAULT RANK ARGUMENTS``: ``dml-hpc ARGUMENTS``, with a fault at one rank.

``slow``: a gradient takes every rank 30 ms more, and this one 42. ``disk``: the rows are read from storage each time,
and this rank's disk needs 20 ms more for a piece. ``link``: this emulated host sends at a quarter of the others' rate.
``none``: none.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dml_hpc.cli import main
from dml_hpc.launch import launch

TAKEN_BYTES = 1 << 30
"""What each rank is said to take before it has read a row, so that a memory limit leaves what it is meant to."""


def slow_rank(own: bool) -> None:
    from dml_hpc.objectives.linear_score import LinearScore

    honest = LinearScore.loss_and_gradient

    def slow(self: LinearScore, *arguments: object) -> float:
        time.sleep(0.042 if own else 0.030)
        return honest(self, *arguments)  # type: ignore[arg-type]

    LinearScore.loss_and_gradient = slow  # type: ignore[method-assign,assignment]


def slow_disk(own: bool, shards: list[Path]) -> None:
    from dml_hpc.commands import opening
    from dml_hpc.data.streaming import Streamed

    honest = Streamed._pieces
    opening.resident_bytes = lambda: TAKEN_BYTES  # type: ignore[attr-defined]

    def slow(self: Streamed) -> Iterator[object]:
        for shard in shards:
            forget(shard)
        for piece in honest(self):
            if own:
                time.sleep(0.02)
            yield piece

    Streamed._pieces = slow  # type: ignore[method-assign,assignment]


def forget(path: Path) -> None:
    """Have the system forget the pages of a file, so that reading it takes the disk."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def narrow_link() -> None:
    subprocess.run(["tc", "qdisc", "change", "dev", "eth0", "root", "handle", "1:", "tbf", "rate", "12mbit", "burst",
                    "6250", "latency", "50ms"], check=True)


if __name__ == "__main__":
    fault, rank, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    own = launch().rank == rank
    if fault == "slow":
        slow_rank(own)
    elif fault == "disk":
        slow_disk(own, sorted(Path(arguments[1]).glob("part-*.h5")))
    elif fault == "link" and own:
        narrow_link()
    sys.exit(main(arguments))
