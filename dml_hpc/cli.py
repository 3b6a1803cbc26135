"""The verbs by name; what each accepts stands in `dml_hpc.verbs`."""

from __future__ import annotations

from typing import Any

import click

from dml_hpc import __version__
from dml_hpc.verb import Verb, Verbs, run
from dml_hpc.verbs.bench import bench
from dml_hpc.verbs.data import data
from dml_hpc.verbs.mf import mf, mf_evaluate, mf_export, mf_fold_in, mf_recommend, mf_similar
from dml_hpc.verbs.runs import report, supervise, top
from dml_hpc.verbs.slurm import slurm
from dml_hpc.verbs.svd import svd, svd_apply
from dml_hpc.verbs.training import compare, evaluate, predict, train


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dml-hpc")
def root() -> None:
    """Train and factorise over MPI: HDF5 shards in, a model and an honest scaling report out.

    Start verbs that use ranks under a launcher: mpirun -n 4 dml-hpc train …
    """


@root.command(cls=Verb)
def doctor(console: Any) -> Any:
    """What works here, what does not, and the line that mends it."""
    from dml_hpc.commands import doctor

    return doctor.run(console)


for verb in (data, train, compare, evaluate, predict, svd, svd_apply, mf, mf_evaluate, mf_recommend, mf_similar,
             mf_fold_in, mf_export, supervise, slurm, bench, report, top):
    root.add_command(verb)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run(root, arguments)
