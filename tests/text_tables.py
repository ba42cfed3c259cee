"""Text tables for tests: a table that a controller could check, read into a frame or compared with one.

    quarter_start    | customer | uncached_input_tokens
    2026-03-01 00:00 | acme     | 1_000_000

The first line that is not blank names the columns. `-` is null, numbers may carry `_` or `,`, instants are
UTC, `yes` and `no` are booleans. A list is written a,b, an empty one all. A line of dashes is decoration.
"""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import polars as pl

from metering.frames.frame import Frame


def read(text: str, frame: Frame, **defaults: Any) -> pl.DataFrame:
    """A table as a frame: columns that it does not name take `defaults`, else null if nullable, else 0."""
    header, rows = _cells(text)
    unknown = [name for name in [*header, *defaults] if name not in frame.columns]
    assert not unknown, f"{frame.name} has no column {unknown[0]}"
    columns = {}
    for name, dtype in frame.columns.items():
        if name in header:
            at = header.index(name)
            values = [_value(row[at], dtype) for row in rows]
        else:
            values = [_default(name, dtype, frame, defaults)] * len(rows)
        columns[name] = pl.Series(name, values, dtype=dtype)
    return frame.conform(pl.DataFrame(columns))


def check(found: pl.DataFrame, text: str) -> None:
    """Assert that `found`, in the columns that the table names, holds exactly its rows, in any order."""
    header, rows = _cells(text)
    missing = [name for name in header if name not in found.columns]
    assert not missing, f"no column {missing[0]} in {found.columns}"
    wanted = [
        tuple(_value(cell, found.schema[name]) for cell, name in zip(row, header, strict=True))
        for row in rows
    ]
    seen = found.select(header).rows()
    assert sorted(seen, key=_order) == sorted(wanted, key=_order), "\n".join(
        [
            "expected:",
            *map(_show, sorted(wanted, key=_order)),
            "found:",
            *map(_show, sorted(seen, key=_order)),
        ]
    )


def instant(text: str) -> datetime:
    """`2026-03-01` or `2026-03-01 00:15`, UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _cells(text: str) -> tuple[list[str], list[list[str]]]:
    lines = [line.strip() for line in text.splitlines() if line.strip(" -|+\t")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    header, rows = cells[0], cells[1:]
    for row in rows:
        assert len(row) == len(header), f"{row} has {len(row)} cells, the header {len(header)}"
    return header, rows


def _value(cell: str, dtype: Any) -> Any:
    if cell == "-":
        return None
    if dtype == pl.String:
        return cell
    if dtype == pl.List(pl.String):
        return [] if cell == "all" else cell.split(",")
    if dtype == pl.Boolean:
        return {"yes": True, "no": False}[cell]
    if dtype == pl.Date:
        return date.fromisoformat(cell)
    if isinstance(dtype, pl.Datetime):
        return instant(cell)
    number = cell.replace("_", "").replace(",", "")
    return Decimal(number) if isinstance(dtype, pl.Decimal) else int(number)


def _default(name: str, dtype: Any, frame: Frame, defaults: dict[str, Any]) -> Any:
    if name in defaults:
        value = defaults[name]
        return _value(value, dtype) if isinstance(value, str) else value
    if name in frame.nullable:
        return None
    if isinstance(dtype, pl.List):
        return []
    assert dtype.is_numeric(), f"{frame.name}.{name} needs a value or a default"
    return 0


def _order(row: tuple[Any, ...]) -> list[tuple[bool, str]]:
    return [(cell is not None, str(cell)) for cell in row]


def _show(row: tuple[Any, ...]) -> str:
    return " | ".join("-" if cell is None else str(cell) for cell in row)
