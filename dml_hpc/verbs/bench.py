"""``dml-hpc bench …``: what this machine and this MPI can do."""

from __future__ import annotations

from typing import Any

import click

from dml_hpc.comm import ALLREDUCES, COMPRESSIONS, REDUCERS
from dml_hpc.inner import arguments_of
from dml_hpc.parameters import Counts, Names, Sizes
from dml_hpc.verb import RanksVerb, RunsVerb, option
from dml_hpc.verbs.shared import JOB_SETTINGS, PATH, POSITIVE, fan_in, overwrite


@click.group()
def bench() -> None:
    """Measure this machine and this MPI."""


@bench.command("allreduce", cls=RanksVerb)
@option("--sizes", type=Sizes(), default="1K,4K,16K,64K,256K,1M,4M,16M,64M",
        help="Bytes of the vectors; K, M, G and T are powers of 1024.")
@option("--reducers", type=Names(ALLREDUCES), default=REDUCERS, help="Which to measure; also auto and horovod.",
        show_default=", ".join(REDUCERS))
@option("--dtypes", type=Names(("float32", "float64", "int64", "float16", "bfloat16")), default="float32",
        help="Types of element; also float64, int64, float16, bfloat16.")
@option("--compressions", type=Names(COMPRESSIONS), default="none",
        help=f"How the vector is compressed: {', '.join(COMPRESSIONS)}.")
@option("--peers", "with_peers", is_flag=True, help="Also measure the raw MPI_Allreduce, Horovod and torch's gloo.")
@option("--repeats", type=POSITIVE, default=11, help="Timed repeats; the median is reported.")
@fan_in
@option("-o", "--plot", type=PATH, default=None, metavar="FILE", help="Draw time and bandwidth into FILE.png or .svg.")
@overwrite
def bench_allreduce(comm: Any, console: Any, **arguments: Any) -> Any:
    """Time every all-reduce against the MPI library's own, and check every sum."""
    from dml_hpc.commands import bench_allreduce

    return bench_allreduce.run(comm, console, **arguments)


MEASURED = ("train", "svd", "mf", "evaluate", "predict", "allreduce")
"""Verbs that can be measured on several numbers of ranks; the last one is ``bench allreduce``."""


@bench.command("scaling", cls=RunsVerb, context_settings=JOB_SETTINGS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, required=True,
                callback=arguments_of(*MEASURED, needs_output=False))
@option("--ranks", type=Counts(), default=None, help="Numbers of ranks.  [default, in a Slurm job: those of 1, 2, 4 … "
        "all nodes]")
@option("--repeats", type=POSITIVE, default=5, envvar="DML_HPC_SCALING_REPEATS", help="Runs on each number of ranks, "
        "in turns, after one that does not count.")
@option("--weak", is_flag=True, help="The work grows with the ranks: each has the same number of shards; of ratings, "
        "of stripes of users.")
@option("--launcher", default="auto", metavar="auto|mpirun|srun|TEMPLATE", help="What starts the ranks; or a line such "
        "as 'mpiexec -n {ranks}'.")
@option("--ranks-per-node", type=POSITIVE, default=None, metavar="R", help="Ranks of a node of a Slurm job.  "
        "[default: --ntasks-per-node]")
@option("--emulate-hosts", is_flag=True, help="Run on emulated hosts of this machine, with a network between them "
        "(needs root).")
@option("--rate", default=None, metavar="RATE", help="Their links: 1gbit, 100mbit …  [default: 1gbit]")
@option("--delay", default=None, metavar="TIME", help="What a message between them takes more: 1ms, 50us …")
@option("--ranks-per-host", type=POSITIVE, default=None, metavar="R", help="Ranks of such a host.  [default: 1]")
def bench_scaling(console: Any, **arguments: Any) -> Any:
    """Run the same job on several numbers of ranks, in turns: after -- comes train, svd … and its ARGUMENTS.

    dml-hpc bench scaling --ranks 1,2,4 -- train DATA --epochs 20
    """
    from dml_hpc.commands import bench_scaling

    words, parsed = arguments.pop("arguments")
    return bench_scaling.run(console, words, parsed, **arguments)
