"""A report as one HTML page that needs no network and runs no script."""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib import resources
from itertools import count as counting
from string import Template
from typing import Any

from dml_hpc.reports.document import Document, Exhibit, Section, Table
from dml_hpc.reports.figures.canvas import page_svg
from dml_hpc.reports.quantities import Record, count

MOST_ROWS = 200
"""Of a table on the page; CSV has all."""
FEW_ROWS = 24
"""So short a table is printed too, though on the screen it is folded away."""
LONG_LIST = 12
"""Of a longer list in a record only the length is shown; the file to download has all."""
LONG_WORDS = 24
"""A column with longer cells gets more room."""


def html_page(report: Document, records: Sequence[Record]) -> str:
    """Return the report as one HTML page: figures inline, a table behind each, and the records it is made from.

    Nothing is fetched, no script runs, and all that comes from ``records`` is escaped. Raises `UserError`
    when there is something to draw and matplotlib is missing.
    """
    figure_names = (f"f{n}" for n in counting(1))
    body = [f"<h1>{escape(report.title)}</h1>", f'<p class="muted">{escape(report.subtitle)}</p>',
            *_contents(report.sections)]
    for i, section in enumerate(report.sections, 1):
        body += _section(section, f"s{i}", figure_names.__next__)
    body += _records(records)
    template = Template(resources.files("dml_hpc.reports").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(report.title), body="\n".join(body))


def _contents(sections: Sequence[Section]) -> list[str]:
    if len(sections) < 6:
        return []
    return ["<nav><ul>", *(f'<li><a href="#s{i}">{escape(section.title)}</a></li>'
                           for i, section in enumerate(sections, 1)), "</ul></nav>"]


def _section(section: Section, name: str, figure_name: Callable[[], str]) -> list[str]:
    body = [f'<section id="{name}">', f"<h2>{escape(section.title)}</h2>"]
    if section.lead:
        body.append(f'<p class="lead">{_words(section.lead)}</p>')
    body += [f"<p>{_words(line)}</p>" for line in section.lines]
    for exhibit in section.exhibits:
        body += _exhibit(exhibit, figure_name)
    return [*body, *(f'<p class="muted">{_words(line)}</p>' for line in section.notes), "</section>"]


def _exhibit(exhibit: Exhibit, figure_name: Callable[[], str]) -> list[str]:
    body = ['<div class="exhibit">', f"<h3>{escape(exhibit.title)}</h3>" if exhibit.title else ""]
    caption = _words(exhibit.caption)
    if exhibit.drawings:
        drawn = "\n".join(page_svg(drawing.draw(), drawing.alt, figure_name()) for drawing in exhibit.drawings)
        body.append(f'<figure><div class="panels">{drawn}</div><figcaption>{caption}</figcaption></figure>')
    elif caption:
        body.append(f'<p class="muted">{caption}</p>')
    for table in exhibit.tables:
        inner = _table(table) + _download(table)
        if exhibit.drawings:
            kind = "short" if len(table.values) <= FEW_ROWS else "long-table"
            body.append(f'<details class="{kind}"><summary>Table: {escape(table.name)}</summary>'
                        f"{inner}</details>")
        else:
            body.append(inner)
    return [*body, "</div>"]


def _table(table: Table) -> str:
    header, rows = table.header, table.rows[:MOST_ROWS]
    # The first column names its row; text stands left, numbers right; only long text may be broken.
    kinds = [_kind([row[i] for row in table.values[:MOST_ROWS]], i == 0)
             for i, column in enumerate(table.columns) if column.title]

    def row(tag: str, cells: Iterable[str]) -> str:
        titles = [f' data-title="{escape(title)}"' if words and tag == "td" else "" for title in header]
        scope = ' scope="col"' if tag == "th" else ""
        return "<tr>" + "".join(f"<{tag}{scope}{kind}{title}>{_words(cell)}</{tag}>"
                                for kind, title, cell in zip(kinds, titles, cells, strict=True)) + "</tr>"

    words = any("long" in kind for kind in kinds)
    look = "words" if words else "numbers"
    more = len(table.values) - len(rows)
    return (f'<div class="scroll"><table class="{look}"><thead>{row("th", header)}</thead><tbody>'
            + "\n".join(row("td", cells) for cells in rows) + "</tbody></table></div>"
            + (f'<p class="muted">{count(more, "more row")} in the CSV.</p>' if more > 0 else ""))


def _kind(values: Sequence[Any], first: bool) -> str:
    words = [value for value in values if isinstance(value, str)]
    if not words:
        return ' style="text-align: left"' if first else ""
    return ' class="text long"' if max(map(len, words)) > LONG_WORDS else ' class="text"'


def _words(text: str) -> str:
    """Return escaped text, in which options are not broken at their hyphens."""
    return re.sub(r"(?<![\w-])--[a-z][a-z-]*", lambda option: f"<code>{option[0]}</code>", escape(text))


def _download(table: Table) -> str:
    name, text = escape(table.name.replace(" ", "-")), b64encode(table.csv().encode()).decode()
    return (f'<p class="csv"><a download="{name}.csv" href="data:text/csv;charset=utf-8;base64,{text}">'
            "Download CSV</a></p>")


def _records(records: Sequence[Record]) -> list[str]:
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    packed = b64encode(gzip.compress(lines, mtime=0)).decode()
    return ['<section id="records">', "<h2>Records</h2>",
            '<p class="csv"><a download="records.jsonl.gz" '
            f'href="data:application/gzip;base64,{packed}">Download the records, whole</a> (JSON lines, gzip)</p>',
            f"<details><summary>{count(len(records), 'record')}, long lists cut</summary>",
            *(f"<pre>{escape(json.dumps(_shortened(record), ensure_ascii=False))}</pre>" for record in records),
            "</details>", "</section>"]


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(inner) for key, inner in value.items()}
    if isinstance(value, list):
        short = [_shortened(inner) for inner in value[:LONG_LIST]]
        return short if len(value) <= LONG_LIST else [*short[:2], f"… {len(value) - 2} more"]
    return value
