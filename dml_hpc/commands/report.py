"""``dml-hpc report``: run records in, tables on the screen and a report in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dml_hpc.console import Console
from dml_hpc.errors import EXIT_JOB, UserError, did_you_mean
from dml_hpc.files import check_output, replaced_file
from dml_hpc.reports.comparing import Change, compare
from dml_hpc.reports.csv_form import csv_text
from dml_hpc.reports.document import Table
from dml_hpc.reports.figures.canvas import save_png
from dml_hpc.reports.figures.speedup import speedup_figure
from dml_hpc.reports.markdown import markdown
from dml_hpc.reports.page import html_page
from dml_hpc.reports.records import read_records
from dml_hpc.reports.scaling import Analysis, Record, analyse
from dml_hpc.reports.sections import comparison, document
from dml_hpc.reports.tables import bench_table, changes_table, group_table
from dml_hpc.reports.verdicts import judged, shortfalls

FORMS = {".html": "html", ".png": "png", ".md": "markdown", ".csv": "csv"}
"""What a report's ending stands for."""
SUFFIXES = tuple(FORMS)


def run(console: Console, records: tuple[Path, ...], output: Path | None, overwrite: bool, form: str | None = None,
        compared: tuple[Path, Path] | None = None, fail_under: float | None = None) -> dict[str, Any]:
    """Compare the runs in the files ``records`` and write ``output``, in the form its ending or ``form`` asks for.

    ``html`` is the whole report, ``png`` the speed-up figure, ``markdown`` and ``csv`` the tables. ``compared`` are
    two files of records, before and after: the report is on the later one, and says first what got slower.
    ``fail_under``: exit code 1 where a job's efficiency at the most ranks measured is below it. Returns ``records``
    (how many were read), ``groups``, ``benches`` and ``bench_predictions`` (see `dml_hpc.reports.scaling`),
    ``changes``, ``below``, ``left_out`` and ``output``. Raises `UserError` for another ending, records that cannot be
    read or hold nothing to report, an output that exists, and a figure without matplotlib.
    """
    form = _form(output, form)
    if output is not None:
        check_output(output, overwrite, inputs=[*records, *(compared or ())])
    if compared is not None and records:
        raise UserError("give either the RECORDS of one report or two files to --compare, not both")
    runs = read_records(records if compared is None else compared[1:])
    analysis = _analysed(runs)
    changes = None if compared is None else compare(_analysed(read_records(compared[:1])), analysis)
    if output is not None:
        _write(output, form, analysis, runs, changes)
    below = () if fail_under is None else shortfalls(analysis.groups, fail_under)
    if fail_under is not None and not judged(analysis.groups):
        raise UserError("--fail-under judges efficiencies, and no job here was measured at two numbers of ranks")
    _show(console, analysis, changes)
    for line in below:
        console.say(line)
    if output is not None:
        console.say(f"wrote {output}")
    plain = replace(analysis, groups=tuple(replace(group, trace=None) for group in analysis.groups))
    return {"records": len(runs), **asdict(plain), "changes": None if changes is None else list(map(asdict, changes)),
            "below": list(below), "output": None if output is None else str(output),
            **({"exit_code": EXIT_JOB} if below else {})}


def _form(output: Path | None, form: str | None) -> str | None:
    if output is None:
        if form is not None:
            raise UserError(f"--format {form} is the form of a file: say which with -o FILE")
        return None
    suffix = output.suffix.lower()
    if form is None and suffix not in FORMS:
        raise UserError(f"-o {output}: a report ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
                        + (did_you_mean(suffix, SUFFIXES) or "; or give --format"))
    return form or FORMS[suffix]


def _analysed(runs: Sequence[Record]) -> Analysis:
    analysis = analyse(runs)
    if not analysis.groups and not analysis.benches:
        raise UserError("; ".join(["nothing to report: give what --record wrote for train, svd, mf or bench",
                                   *analysis.left_out]))
    return analysis


def _write(output: Path, form: str | None, analysis: Analysis, runs: Sequence[Record],
           changes: Sequence[Change] | None) -> None:
    with replaced_file(output) as partial:
        if form == "png":
            save_png(speedup_figure(analysis.groups), partial)
        elif form == "csv":
            text = csv_text(analysis) if changes is None else changes_table(changes).csv()
            partial.write_text(text, encoding="utf-8")
        else:
            report = document(analysis, runs, changes)
            text = html_page(report, runs) if form == "html" else markdown(report)
            partial.write_text(text, encoding="utf-8")


def _show(console: Console, analysis: Analysis, changes: Sequence[Change] | None) -> None:
    def table(found: Table) -> None:
        console.table(found.header, found.rows)

    if changes is not None:
        said = comparison(changes)
        console.say(said.lead)
        for line in said.lines:
            console.say(line)
        if changes:
            table(changes_table(changes))
        console.say()
    for group in analysis.groups:
        console.say(group.label)
        if group.explanation is not None:
            console.say(group.explanation.paragraph)
        table(group_table(group))
        for line in (group.verdict, *group.stragglers, *([group.cost] if group.cost else [])):
            console.say(line)
        console.say()
    for bench in analysis.benches:
        console.say(bench.label)
        table(bench_table(bench))
        console.say(bench.verdict)
        console.say()
    for line in analysis.left_out:
        console.say(line)
