"""``dml-hpc report``: run records in, tables on the screen and a report in a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dml_hpc.console import Console
from dml_hpc.errors import UserError, did_you_mean
from dml_hpc.files import check_output, replaced_file
from dml_hpc.reports.page import Table, bench_table, csv_text, group_table, html_page, markdown
from dml_hpc.reports.plots import save_png, speedup_figure
from dml_hpc.reports.records import read_records
from dml_hpc.reports.scaling import Bench, Group, analyse

SUFFIXES = (".html", ".png", ".md", ".csv")


def run(console: Console, records: tuple[Path, ...], output: Path, overwrite: bool) -> dict[str, Any]:
    """Compare the runs in the files ``records`` and write ``output``, in the form its ending asks for.

    ``.html`` is the whole report, ``.png`` the speed-up figure, ``.md`` and ``.csv`` the tables. Returns
    ``records`` (how many were read), ``groups`` and ``benches`` (see `dml_hpc.reports.scaling`), ``left_out``
    and ``output``. Raises `UserError` for another ending, records that cannot be read or hold nothing to
    report, an output that exists, and a figure without matplotlib.
    """
    suffix = output.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"-o {output}: a report ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
                        + did_you_mean(suffix, SUFFIXES))
    check_output(output, overwrite)
    runs = read_records(records)
    analysis = analyse(runs)
    if not analysis.groups and not analysis.benches:
        raise UserError("; ".join(["nothing to report: give what --record wrote for train, svd, mf or bench",
                                   *analysis.left_out]))
    with replaced_file(output) as partial:
        if suffix == ".png":
            save_png(speedup_figure(analysis.groups), partial)
        elif suffix == ".html":
            partial.write_text(html_page(analysis, runs), encoding="utf-8")
        else:
            partial.write_text((markdown if suffix == ".md" else csv_text)(analysis), encoding="utf-8")

    sections: list[tuple[Group | Bench, Table]] = [
        *((group, group_table(group)) for group in analysis.groups),
        *((bench, bench_table(bench)) for bench in analysis.benches)]
    for section, table in sections:
        console.say(section.label)
        console.table(*table)
        console.say(section.verdict)
        console.say()
    for line in analysis.left_out:
        console.say(line)
    console.say(f"wrote {output}")
    return {"records": len(runs), **asdict(analysis), "output": str(output)}
