"""Rows of a file as text, each with its line: what every format of a bill is read from."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import polars as pl

from metering.catalog.documents import Fault

#: Largest file that is read.
FILE_BYTES_MAX: Final = 256 * 1024 * 1024


@dataclass(frozen=True)
class Table:
    """The header of a file and its rows, each with its line (of Parquet: its row, from 1); or what is wrong."""

    header: tuple[str, ...] = ()
    rows: Sequence[tuple[int, Mapping[str, str]]] = ()
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Draft:
    """A line of a bill as text, before anything of it is believed; `columns`: how the file calls a field."""

    line: int
    cells: Mapping[str, str]
    columns: Mapping[str, str] = field(default_factory=dict)

    def fault(self, file: str, name: str, value: str, problem: str) -> Fault:
        """A fault in a field of this line."""
        return Fault(
            file, self.line, self.columns.get(name, name), repr(value[:64]) if value else "", problem
        )


def read_csv(file: str, content: bytes) -> Table:
    """A CSV file in UTF-8 with a header; cells are stripped, empty ones left out."""

    def broken(line: int, problem: str) -> Table:
        return Table(faults=(Fault(file, line, "", "", problem),))

    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return broken(
            content[: error.start].count(b"\n") + 1, "this is not UTF-8; save the file as CSV in UTF-8"
        )
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        return broken(reader.line_num, f"this is not CSV: {error}")
    if not rows:
        return broken(0, "the file is empty; its first line names the columns")
    header = tuple(name.strip() for name in rows[0][1])
    twice = next((name for at, name in enumerate(header) if name in header[:at]), None)
    if twice is not None:
        return Table(faults=(Fault(file, rows[0][0], twice, "", "stands twice in the header; keep one"),))
    faults = [
        Fault(file, line, "", "", f"has {len(row)} cells, the header has {len(header)}")
        for line, row in rows[1:]
        if len(row) != len(header)
    ]
    if faults:
        return Table(faults=tuple(faults))
    table = [
        (line, {name: cell.strip() for name, cell in zip(header, row, strict=True) if cell.strip()})
        for line, row in rows[1:]
    ]
    return Table(header, table)


def read_parquet(file: str, content: bytes) -> Table:
    """A Parquet file; a number in binary fractions is read as the shortest decimal that is the same number."""
    try:
        frame = pl.read_parquet(io.BytesIO(content))
    except (pl.exceptions.PolarsError, OSError) as error:
        return Table(faults=(Fault(file, 0, "", "", f"is not Parquet: {str(error).splitlines()[0]}"),))
    # maps and lists (tags) are about resources, not about money
    plain = [name for name, dtype in frame.schema.items() if not dtype.is_nested()]
    rows = []
    for number, row in enumerate(frame.select(plain).iter_rows(named=True), 1):
        rows.append((number, {name: _text(value) for name, value in row.items() if value is not None}))
    return Table(tuple(frame.columns), rows)


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat() if value.tzinfo is None else value.astimezone(UTC).isoformat()
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, float):
        # the shortest text that is this number, as a person would have written it
        return format(Decimal(repr(value)), "f")
    return str(value).strip()
