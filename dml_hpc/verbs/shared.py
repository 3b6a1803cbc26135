"""Options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dml_hpc.device import DEVICES
from dml_hpc.parameters import Finite, Interval
from dml_hpc.verb import option

PATH = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)
NOT_NEGATIVE = Finite(min=0)
output = option("-o", "--output", type=PATH, required=True, metavar="PATH", help="Where the result goes.")
overwrite = option("--overwrite", is_flag=True, help="Replace what is at the output.")
data_argument = click.argument("data", nargs=-1, required=True, type=PATH)
x_key = option("--x-key", metavar="NAME", default=None, help="The matrix's name in HDF5 files that were not imported.  "
               "[default: X]")
y_key = option("--y-key", metavar="NAME", default=None, help="The labels' name in such files.  [default: y]")
weight_key = option("--weight-key", metavar="NAME", default=None, help="The name of the rows' weights in such files.  "
                    "[default: 1 each]")
tuning = option("--tuning", type=PATH, default=None, metavar="FILE",
                help="Keep what auto measured in FILE, and take it from there next time.")
fan_in = option("--fan-in", type=POSITIVE, default=2, help="Children of a rank in the tree all-reduce.")
device = option("--device", type=click.Choice(DEVICES), default="cpu",
                help="Where ranks compute: on the CPU, or each on a GPU of its node, which several may share.")
skip_bad_shards = option("--skip-bad-shards", is_flag=True, help="Leave out shards that are missing or damaged at the "
                         "start, and in train those that turn unreadable, and count their rows, instead of ending.")
seed = option("--seed", type=click.IntRange(min=0), default=0, help="Seed of everything random.")

JOB_SETTINGS = {"allow_interspersed_args": False}
"""Of verbs that take a job to run: what comes after the first argument is the job's, with or without a -- before it."""

KEEPING_OPTIONS = (
    option("--checkpoint", type=PATH, default=None, metavar="DIR", help="Write checkpoints to the folder DIR."),
    option("--checkpoint-every", type=Interval(), default=None, metavar="60s|10m|500steps",
           help="How often.  [default: 60s]"),
    option("--keep", type=POSITIVE, default=None, metavar="N", help="How many checkpoints stay, the newest.  "
           "[default: 3]"),
    option("--resume", is_flag=True, help="Go on from the newest checkpoint that is whole, if there is one; with any "
           "number of ranks."),
)
SURVIVAL_OPTIONS = (
    option("--elastic", is_flag=True, help="When ranks die, the others go on: under Open MPI's mpirun --with-ft ulfm."),
    option("--min-ranks", type=POSITIVE, default=None, metavar="N", help="elastic: give up when fewer are left.  "
           "[default: 1]"),
)


def options(*groups: tuple[Any, ...]) -> Any:
    """Return a decorator that adds options in their order."""
    def add(function: Any) -> Any:
        for one in reversed([one for group in groups for one in group]):
            function = one(function)
        return function

    return add
