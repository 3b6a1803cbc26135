"""A report as a document: its tables, and from them Markdown, CSV and one HTML page that needs no network."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from dml_hpc.reports.plots import as_svg, speedup_figure, split_figure
from dml_hpc.reports.scaling import PHASES, Analysis, Bench, Cell, Group, Point, Record, count, duration, size

TITLE = "Scaling report"
CSV_COLUMNS = ("job", "case", "bytes", "ranks", "repeats", "seconds", "seconds_min", "seconds_max", "speedup",
               "efficiency", "serial_fraction", *(f"{phase}_s" for phase in PHASES),
               "bus_bandwidth_bytes_per_s", "errors")

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1c1c1c; --muted: #5a5a5a; --paper: #fff; --line: #d8d8d8; --tint: #f4f5f7 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --muted: #a8a8a8; --paper: #15171a; --line: #3a3d42; --tint: #1f2226 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.6rem }
h2 { font-size: 1.15rem; margin-top: 2.5rem }
.muted, figcaption { color: var(--muted); font-size: .875rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .8rem }
th, td { padding: .3rem .45rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th { vertical-align: bottom; white-space: normal; overflow-wrap: normal }
.words th, .words td, th:first-child, td:first-child { text-align: left }
.words td { white-space: normal }
figure { margin: 1rem 0 }
figure svg { display: block; width: 100%; max-width: 40rem; height: auto; padding: .75rem;
  background: #fff; border: 1px solid var(--line); border-radius: .5rem }
pre { background: var(--tint); padding: .75rem; border-radius: .5rem; font-size: .8rem;
  white-space: pre-wrap }
summary { cursor: pointer }
@media print {
  :root { --ink: #000; --muted: #444; --paper: #fff; --line: #bbb; --tint: #fff }
  body { max-width: none; padding: 0; font-size: 11pt }
  table { font-size: 7.5pt } th, td { padding: .15rem .25rem }
  figure svg { max-width: 26rem }
  figure, tr { break-inside: avoid } h2 { break-after: avoid } .scroll { overflow: visible } }
"""

_NOTES = (
    "Times are medians over the runs, with the shortest and longest beside them. Speed-up is the time at the "
    "fewest ranks measured over the time at p ranks, efficiency the speed-up over the ideal. The serial "
    "fraction is Karp and Flatt's e = (1/S − 1/p)/(1 − 1/p) (CACM 33(5), 1990): level means a serial part, "
    "growing means overhead. Read, compute, communicate and wait are maxima over ranks; other is what they "
    "leave of the time.")


class Table(NamedTuple):
    """A header and rows of cells ready to print."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def group_table(group: Group) -> Table:
    """Return a row for every number of ranks; columns that no record fills are left out."""
    phases = [phase for phase in PHASES if any(phase in point.split for point in group.points)]
    header = ("ranks", "runs", "time", "min…max", "speed-up", "ideal", "efficiency", "serial fraction",
              *phases, *(["other"] if phases else []))

    def row(point: Point) -> tuple[str, ...]:
        spread = f"{duration(point.seconds_min)}…{duration(point.seconds_max)}"
        split = [duration(point.split[phase]) if phase in point.split else "–" for phase in phases]
        other = [duration(max(point.other_s, 0.0)) if point.split else "–"] if phases else []
        return (str(point.ranks), str(point.repeats), duration(point.seconds),
                spread if point.repeats > 1 else "–", f"{point.speedup:.2f}",
                f"{point.ranks / group.base:g}", f"{point.efficiency:.0%}",
                "–" if point.serial_fraction is None else f"{point.serial_fraction:.3f}", *split, *other)

    return Table(header, [row(point) for point in group.points])


def bench_table(bench: Bench) -> Table:
    """Return sizes against cases, in each cell the median time and, where recorded, the bus bandwidth."""
    cases = list(dict.fromkeys(cell.case for cell in bench.cells))
    at = {(cell.bytes, cell.case): cell for cell in bench.cells}

    def text(cell: Cell | None) -> str:
        if cell is None:
            return "–"
        bandwidth = "" if cell.bandwidth is None else f" ({cell.bandwidth / 1e9:.3g} GB/s)"
        return duration(cell.seconds) + bandwidth + (f", {cell.errors} WRONG" if cell.errors else "")

    sizes = dict.fromkeys(cell.bytes for cell in bench.cells)
    rows = [(size(n_bytes), *(text(at.get((n_bytes, case))) for case in cases)) for n_bytes in sizes]
    return Table(("size", *cases), rows)


def clock_note(group: Group) -> str:
    """Say what was timed and against which run the speed-ups stand."""
    what = "the work itself, without" if group.clock == "work_s" else "the whole command, with"
    return f"Timed: {what} start-up. Base: {count(group.base, 'rank')}" + (
        "." if group.base == 1 else f", the fewest measured; ideal at p ranks is p/{group.base}.")


def markdown(analysis: Analysis) -> str:
    """Return the report's tables and sentences as Markdown."""
    lines = [f"# {TITLE}", ""]
    for group in analysis.groups:
        lines += [f"## {_md(group.label)}", "", _md(group.verdict), "", *_md_table(group_table(group)), "",
                  clock_note(group), ""]
    for bench in analysis.benches:
        lines += [f"## {_md(bench.label)}", "", _md(bench.verdict), "", *_md_table(bench_table(bench)), ""]
    lines += [*(f"- {_md(line)}" for line in analysis.left_out), *([""] if analysis.left_out else []), _NOTES]
    return "\n".join(lines) + "\n"


def csv_text(analysis: Analysis) -> str:
    """Return a row for every job or benchmark case and number of ranks, columns `CSV_COLUMNS`."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for group in analysis.groups:
        for point in group.points:
            writer.writerow({
                "job": group.label, "ranks": point.ranks, "repeats": point.repeats, "seconds": point.seconds,
                "seconds_min": point.seconds_min, "seconds_max": point.seconds_max,
                "speedup": point.speedup, "efficiency": point.efficiency,
                "serial_fraction": point.serial_fraction,
                **{f"{phase}_s": value for phase, value in point.split.items()}})
    for bench in analysis.benches:
        for cell in bench.cells:
            writer.writerow({
                "job": bench.label, "case": cell.case, "bytes": cell.bytes, "ranks": bench.ranks,
                "seconds": cell.seconds, "bus_bandwidth_bytes_per_s": cell.bandwidth, "errors": cell.errors})
    return buffer.getvalue()


def html_page(analysis: Analysis, records: Sequence[Record]) -> str:
    """Return the report as one HTML page: figures inline, a table behind each, commands, machines, records.

    Nothing is fetched, no script runs, and all that comes from ``records`` is escaped. Raises `UserError`
    when there is something to draw and matplotlib is missing.
    """
    body = [f"<h1>{TITLE}</h1>", f'<p class="muted">From {count(len(records), "run record")}.</p>']
    if any(len(group.points) > 1 for group in analysis.groups):
        body.append(_figure(as_svg(speedup_figure(analysis.groups), "Speed-up against ranks"),
                            "Speed-up against ranks; the bars reach from the slowest to the fastest run. The "
                            "numbers are in the tables below."))
    for group in analysis.groups:
        body += [f"<h2>{escape(group.label)}</h2>", f"<p>{escape(group.verdict)}</p>"]
        if any(point.split for point in group.points):
            body.append(_figure(as_svg(split_figure(group), "Where the time went"),
                                "Ranks × time: what stands above the ideal line is what more ranks cost."))
        body += [_html_table(group_table(group)), f'<p class="muted">{escape(clock_note(group))}</p>']
    for bench in analysis.benches:
        body += [f"<h2>{escape(bench.label)}</h2>", f"<p>{escape(bench.verdict)}</p>",
                 _html_table(bench_table(bench))]
    if analysis.groups:
        body.append(f'<p class="muted">{escape(_NOTES)}</p>')
    body += [f'<p class="muted">{escape(line)}</p>' for line in analysis.left_out]
    body += ["<h2>Commands</h2>", _html_table(_commands(records), "words"),
             "<h2>Machines and versions</h2>", _html_table(_machines(records), "words"),
             "<h2>Records</h2>", f"<details><summary>{count(len(records), 'record')}</summary>",
             *(f"<pre>{escape(json.dumps(record, ensure_ascii=False))}</pre>" for record in records),
             "</details>"]
    return ('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{TITLE}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            + "\n".join(body) + "\n</body>\n</html>\n")


def _commands(records: Iterable[Record]) -> Table:
    runs: Counter[tuple[str, str]] = Counter()
    for record in records:
        arguments = record.get("arguments")
        line = f"{record['command']} (its options were not recorded)"
        if isinstance(arguments, list):
            line = shlex.join(map(str, arguments))
        runs[str(record["ranks"]), f"dml-hpc {line}"] += 1
    rows = [(ranks, str(n), line) for (ranks, line), n in runs.items()]
    return Table(("ranks", "runs", "command"), rows)


def _machines(records: Iterable[Record]) -> Table:
    """Return a row for every distinct environment: speeds from different ones do not compare."""
    def words(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key} {words(inner)}" for key, inner in value.items() if inner is not None)
        return str(value)

    runs: Counter[tuple[str, str]] = Counter()
    for record in records:
        environment = record.get("environment")
        known = environment if isinstance(environment, dict) else {"machine": "not recorded"}
        machine = words({key: value for key, value in known.items() if key != "slurm_job"})
        runs[str(record.get("version", "–")), machine] += 1
    rows = [(version, str(n), machine) for (version, machine), n in runs.items()]
    return Table(("dml-hpc", "runs", "machine"), rows)


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _html_table(table: Table, kind: str = "numbers") -> str:
    def row(tag: str, cells: Iterable[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return (f'<div class="scroll"><table class="{kind}"><thead>{row("th", table.header)}</thead><tbody>'
            + "\n".join(row("td", cells) for cells in table.rows) + "</tbody></table></div>")


def _md(text: str) -> str:
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _md_table(table: Table) -> list[str]:
    lines = [table.header, ("---:",) * len(table.header)]
    return ["| " + " | ".join(cells) + " |" for cells in
            (tuple(map(_md, lines[0])), lines[1], *(tuple(map(_md, row)) for row in table.rows))]
