"""``hanging.py FOLDER RANKS ARGUMENTS``: ``dml-hpc ARGUMENTS``, but what these RANKS flush to the disk hangs for ever.

A file FOLDER/RANK then holds the process to which signals for the rank are sent; FOLDER/fifo is a FIFO.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dml_hpc.cli import main
from dml_hpc.launch import launch

folder, ranks = Path(sys.argv[1]), sys.argv[2].split(",")
rank = str(launch().rank)


def hang(handle: int) -> None:
    """Do what ``fsync`` does when a network file system's server is gone."""
    unnamed = folder / f".{rank}"
    unnamed.write_text(str(os.getppid() if launch().size > 1 else os.getpid()))
    unnamed.rename(folder / rank)
    os.open(folder / "fifo", os.O_RDONLY)  # nobody ever writes there


if rank in ranks:
    os.fsync = hang
sys.exit(main(sys.argv[3:]))
