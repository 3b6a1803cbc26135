"""What is done about runs: kept alive (``supervise``), watched (``top``), reported (``report``)."""

from __future__ import annotations

from typing import Any

import click

from dml_hpc.verb import Verb, option
from dml_hpc.verbs.shared import PATH, overwrite


@click.command(cls=Verb, context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
@option("--max-restarts", type=click.IntRange(min=0), default=3, metavar="N", help="Give up after so many.")
def supervise(console: Any, **arguments: Any) -> Any:
    """Run a COMMAND that trains with --checkpoint, and start it again, all ranks, when it dies.

    dml-hpc supervise --max-restarts 3 -- mpirun -n 4 dml-hpc train …
    """
    from dml_hpc.commands import supervise

    return supervise.run(console, **arguments)


@click.command(cls=Verb)
@click.argument("records", nargs=-1, type=PATH)
@option("-o", "--output", type=PATH, default=None, metavar="FILE", help="Where the report goes: .html, .md, .csv or "
        ".png (the speed-ups).  [default: tables on the screen]")
@overwrite
@option("--format", "form", type=click.Choice(["html", "markdown", "png", "csv"]), default=None,
        help="The form of the report.  [default: by the output's ending]")
@option("--compare", "compared", nargs=2, type=PATH, default=None, metavar="BEFORE AFTER",
        help="Instead of RECORDS, two files of them: what got slower or faster, beyond noise.")
@option("--fail-under", type=click.FloatRange(0, 2, min_open=True), default=None, metavar="EFFICIENCY",
        help="Exit code 1 where a job's efficiency at the most ranks measured is below this, such as 0.8.")
def report(console: Any, **arguments: Any) -> Any:
    """Say from run RECORDS (--record FILE) what more ranks brought, what limits a job and what to change."""
    from dml_hpc.commands import report

    return report.run(console, **arguments)


@click.command(cls=Verb)
@click.argument("watched", type=PATH, metavar="RECORD")
@option("--once", is_flag=True, help="Show it as it is now, and end.")
def top(console: Any, **arguments: Any) -> Any:
    """Watch the run that was started with --record RECORD: how far it is, its loss, what each rank does.

    Until the run ends; q leaves before. Where stdout is no terminal, it is shown once.
    """
    from dml_hpc.commands import top

    return top.run(console, **arguments)
