"""``dml-hpc slurm …``: batch scripts."""

from __future__ import annotations

from typing import Any

import click

from dml_hpc.inner import arguments_of
from dml_hpc.parameters import Gpus, Size, WallTime
from dml_hpc.verb import Verb, option
from dml_hpc.verbs.shared import JOB_SETTINGS, PATH, POSITIVE, options

SLURM_OPTIONS = (
    option("--nodes", type=POSITIVE, default=None, metavar="N", help="Nodes.  [default: 1; scaling: 2]"),
    option("--ranks-per-node", type=POSITIVE, default=None, metavar="R", help="Ranks of a node.  [default: 2; with "
           "GPUs one each]"),
    option("--cpus-per-rank", type=POSITIVE, default=None, metavar="C", help="CPUs of a rank.  [default: 1]"),
    option("--gpus-per-node", type=Gpus(), default=None, help="Compute on so many GPUs of a node (--device cuda)."),
    option("--time", type=WallTime(), default=None, metavar="TIME", help="How long it may take, such as 2:00:00, 90m, "
           "1-12:00:00; then it is saved, and goes on when its turn comes again.  [default: 1:00:00]"),
    option("--partition", metavar="NAME", default=None, help="Where.  [default: that of slurm/site.sh, else the "
           "cluster's]"),
    option("--account", metavar="NAME", default=None, help="Who pays.  [default: that of slurm/site.sh]"),
    option("--qos", metavar="NAME", default=None, help="Quality of service."),
    option("--mem", type=Size(), default=None, help="Memory of a node, such as 64G.  [default: the partition's]"),
    option("--name", metavar="NAME", default=None, help="The job's name, and its log's.  [default: dml-hpc-train …]"),
    option("--constraint", metavar="FEATURES", default=None, help="Features that nodes are to have."),
    option("--exclusive", is_flag=True, help="Share nodes with nobody."),
    option("--stage", is_flag=True, help="Copy the data to every node's own scratch first."),
    option("-o", "--output", type=PATH, default=None, metavar="FILE", envvar="DML_HPC_SCRIPT",
           help="Where the script goes.  [default: NAME.sbatch]"),
    option("--overwrite", is_flag=True, envvar="DML_HPC_OVERWRITE_SCRIPT", help="Replace what is there."),
    option("--submit", is_flag=True, help="Submit it, and print the job's number."),
    option("--watch", is_flag=True, help="Follow the job, show its log, end with its exit code; Ctrl-C stops watching, "
           "not the job."),
)


@click.group()
def slurm() -> None:
    """Write batch scripts for Slurm, check them against the cluster, submit and follow them.

    dml-hpc slurm train --nodes 4 --time 2:00:00 --submit -- DATA -o model.h5 …
    """


@slurm.command("train", cls=Verb, context_settings=JOB_SETTINGS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, required=True, callback=arguments_of("train"))
@options(SLURM_OPTIONS)
def slurm_train(console: Any, **arguments: Any) -> Any:
    """A batch script that trains: after -- come the ARGUMENTS of dml-hpc train."""
    return _slurm(console, "train", arguments)


@slurm.command("svd", cls=Verb, context_settings=JOB_SETTINGS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, required=True, callback=arguments_of("svd"))
@options(SLURM_OPTIONS)
def slurm_svd(console: Any, **arguments: Any) -> Any:
    """A batch script that factorises: after -- come the ARGUMENTS of dml-hpc svd."""
    return _slurm(console, "svd", arguments)


@slurm.command("mf", cls=Verb, context_settings=JOB_SETTINGS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, required=True, callback=arguments_of("mf"))
@options(SLURM_OPTIONS)
def slurm_mf(console: Any, **arguments: Any) -> Any:
    """A batch script that factorises ratings: after -- come the ARGUMENTS of dml-hpc mf."""
    return _slurm(console, "mf", arguments)


@slurm.command("scaling", cls=Verb, context_settings=JOB_SETTINGS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, required=True,
                callback=arguments_of("train", "svd", "mf", "allreduce", needs_output=False))
@options(SLURM_OPTIONS)
def slurm_scaling(console: Any, **arguments: Any) -> Any:
    """A batch script that measures 1, 2, 4 … N nodes: after -- come train, svd, mf or allreduce, and ARGUMENTS."""
    return _slurm(console, "scaling", arguments)


def _slurm(console: Any, job: str, arguments: dict[str, Any]) -> Any:
    from dml_hpc.commands import slurm

    words, parsed = arguments.pop("arguments")
    return slurm.run(console, job, words, parsed, **arguments)


@slurm.command("watch", cls=Verb)
@click.argument("job_id", type=POSITIVE, metavar="JOB")
def slurm_watch(console: Any, **arguments: Any) -> Any:
    """Follow a JOB by its number: its states, its log as it grows; ends with its exit code. Ctrl-C stops watching."""
    from dml_hpc.commands import slurm

    return slurm.watch(console, **arguments)
