"""A report as Markdown: its sentences and tables."""

from __future__ import annotations

import re
from html import escape

from dml_hpc.reports.document import Document, Table

MOST_ROWS = 64
"""Of a table; CSV has all."""


def markdown(report: Document) -> str:
    """Return the report's sentences and tables as Markdown; what comes from records is escaped."""
    lines = [f"# {report.title}", "", _text(report.subtitle), ""]
    for section in report.sections:
        lines += [f"## {_text(section.title)}", ""]
        lines += [line for text in (section.lead,) if text for line in (_text(text), "")]
        lines += [f"- {_text(line)}" for line in section.lines] + [""] * bool(section.lines)
        for exhibit in section.exhibits:
            lines += [f"### {_text(exhibit.title)}", ""] if exhibit.title else []
            lines += [line for text in (exhibit.caption,) if text for line in (_text(text), "")]
            for table in exhibit.tables:
                lines += [*_table(table), ""]
        lines += [line for text in section.notes for line in (_text(text), "")]
    return "\n".join(lines).rstrip() + "\n"


def _table(table: Table) -> list[str]:
    words = {i for i in range(len(table.columns)) if any(isinstance(row[i], str) for row in table.values)}
    rules = [":---" if i in words or not i else "---:" for i, column in enumerate(table.columns) if column.title]
    more = len(table.values) - MOST_ROWS
    return [_row([_text(cell) for cell in table.header]), _row(rules),
            *(_row([_text(cell) for cell in row]) for row in table.rows[:MOST_ROWS]),
            *(["", f"{more} more rows are left out."] if more > 0 else [])]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(text: str) -> str:
    # No link, no image, no code can come from a record; the options that a sentence names are code.
    safe = re.sub(r"([\\`*\[\]|])", r"\\\1", escape(" ".join(text.split()), quote=False))
    return re.sub(r"(?<![\w-])--[a-z][a-z-]*", r"`\g<0>`", safe)
