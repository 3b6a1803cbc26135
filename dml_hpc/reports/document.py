"""What a report is made of, whatever its form: sections of exhibits, which are figures and the tables behind them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTHING = "–"


class Column(NamedTuple):
    """A column of a `Table`: its ``title`` where people read, its ``key`` in CSV; empty where it is not in that form.

    ``text`` makes of a value what people read; None is a dash, in CSV an empty cell.
    """

    title: str
    key: str
    text: Callable[[Any], str] = str


@dataclass(frozen=True)
class Table:
    """Values under columns; ``name`` says of what, and is the CSV file's name; ``full`` is what CSV holds instead."""

    name: str
    columns: tuple[Column, ...]
    values: Sequence[Sequence[Any]]
    full: Table | None = None

    @property
    def header(self) -> tuple[str, ...]:
        """The titles that people read."""
        return tuple(column.title for column in self._shown())

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The cells that people read."""
        return [tuple(NOTHING if value is None else column.text(value)
                      for column, value in zip(self.columns, row, strict=True) if column.title) for row in self.values]

    def csv(self) -> str:
        """Return the values with a header line, numbers in full."""
        if self.full is not None:
            return self.full.csv()
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        kept = [i for i, column in enumerate(self.columns) if column.key]
        writer.writerow([self.columns[i].key for i in kept])
        writer.writerows([[plain(row[i]) for i in kept] for row in self.values])
        return buffer.getvalue()

    def _shown(self) -> list[Column]:
        return [column for column in self.columns if column.title]


def plain(value: Any) -> Any:
    """Return a cell for CSV: spreadsheets run text that begins like a formula, so that begins with an apostrophe."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value


def table(name: str, columns: Iterable[Column], values: Iterable[Sequence[Any]]) -> Table:
    """Return the table without the columns that no row fills."""
    columns, rows = tuple(columns), [tuple(row) for row in values]
    kept = [i for i in range(len(columns)) if not rows or any(row[i] is not None for row in rows)]
    return Table(name, tuple(columns[i] for i in kept), [tuple(row[i] for i in kept) for row in rows])


class Drawing(NamedTuple):
    """A figure that is drawn when it is asked for; ``alt`` says in words what it shows."""

    alt: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Exhibit:
    """Drawings side by side, what to know of them, and the tables behind them, which always exist."""

    title: str
    caption: str
    drawings: tuple[Drawing, ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Section:
    """A part of the report: ``lead`` in plain words, then ``lines``, exhibits, and ``notes`` in small letters."""

    title: str
    lead: str
    lines: tuple[str, ...] = ()
    exhibits: tuple[Exhibit, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """A whole report; ``subtitle`` says what it is made from."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
