"""A report: rows with declared columns, a total, what they stand on; tables and files are made from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

import polars as pl

from metering.delivery.pictures import Picture
from metering.errors import BadInput, FrameBroken
from metering.periods import MINUTE, Period

#: How a column is shown and written: see `exports` for its type in each format, `tables` for its look.
Kind = Literal["text", "day", "instant", "count", "quantity", "burn", "money", "ratio", "flag"]


@dataclass(frozen=True)
class Column:
    """A column of a report: its name in files, its heading and unit in tables.

    `rank` says what a narrow terminal leaves out first: the largest; 0 is never left out, 9 never shown. Columns of
    one `group` are shown or left out together: a figure before without the one after misleads.
    """

    name: str
    kind: Kind
    heading: str
    unit: str = ""
    rank: int = 0
    group: str = ""


@dataclass(frozen=True)
class Provenance:
    """What a report stands on: the period asked for, the part that is complete, and the point of knowledge.

    `watermark_id` None: live, read in one snapshot with the open interval included.
    """

    period: Period
    cut: Period
    watermark_id: int | None
    catalog_revision: int
    complete_until: datetime | None
    program_version: str

    @property
    def whole(self) -> bool:
        """The input of the whole period is complete."""
        return self.cut.until == self.period.until

    def knowledge(self) -> str:
        """Watermark and catalog revision, for people."""
        revision = (
            f"catalog revision {self.catalog_revision}" if self.catalog_revision else "no catalog applied"
        )
        if self.watermark_id is None:
            return f"live, {revision}"
        return f"as of watermark {self.watermark_id}, {revision}"

    def extent(self) -> str:
        """How much of the period the figures cover and, where not all, why."""
        if self.whole:
            return "complete"
        if self.cut.minutes:
            covered, asked = (duration(span.until - span.start) for span in (self.cut, self.period))
            return f"cut at {instant(self.cut.until)}: {covered} of {asked} are complete"
        if self.complete_until is None:
            return (
                "nothing of it is complete yet: at least one partition was never read to its end and folded; "
                "`metering report now` shows which"
            )
        return (
            f"nothing of it is complete yet: input is complete until {instant(self.complete_until)}; "
            "`metering report now` shows what holds it back"
        )

    def caption(self) -> str:
        """One line for the foot of a table and for stderr."""
        return f"{self.period.name} · {self.extent()} · {self.knowledge()}"


@dataclass(frozen=True)
class Report:
    """Rows in the order of their key, zero or one total row of the same columns, and notes for the reader.

    Tables alone show `shown`, the same rows in another order, where it is given, `null_texts` in place of a
    null, and `pictures` below the rows.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: pl.DataFrame
    total: pl.DataFrame
    provenance: Provenance
    notes: tuple[str, ...] = ()
    empty: str = "no rows"
    shown: pl.DataFrame | None = None
    null_texts: Mapping[str, str] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        for part, frame in (("rows", self.rows), ("total", self.total)):
            if frame.columns != names:
                raise FrameBroken(
                    f"report {self.name}, {part}: has the columns {frame.columns}, declared {names}"
                )


def select(catalogue: Sequence[Column], names: Sequence[str]) -> tuple[Column, ...]:
    """The columns of `names`, in that order, from a catalogue of columns."""
    known = {column.name: column for column in catalogue}
    return tuple(known[name] for name in names)


def as_total(total: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The total as one row of the columns of `rows`, null where a sum has no meaning; none without rows."""
    if not rows.height:
        return rows.clear()
    return total.select(
        pl.col(name) if name in total.columns else pl.lit(None, dtype=dtype).alias(name)
        for name, dtype in rows.schema.items()
    )


def choose_by(
    text: str | None, allowed: Sequence[str], default: Sequence[str], report: str
) -> tuple[str, ...]:
    """Read `--by customer,day`. Raises BadInput that names the word and lists what is allowed."""
    if text is None:
        return tuple(default)
    words = tuple(word.strip() for word in text.split(","))
    for word in words:
        if word not in allowed:
            raise BadInput(
                f"--by '{word}' is not what {report} can be grouped by; give any of {', '.join(allowed)}"
            )
        if words.count(word) > 1:
            raise BadInput(f"--by names '{word}' twice; give each once")
    return words


def counted(number: int, what: str) -> str:
    """1 window, 1,234 windows."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def instant(at: datetime) -> str:
    """ISO 8601 with Z, as short as it is exact: 2026-11-22T16:45Z, 2026-11-22T16:45:10.250000Z."""
    form = "%Y-%m-%dT%H:%M"
    if at.microsecond:
        return at.strftime(f"{form}:%S.%fZ")
    return at.strftime(f"{form}:%SZ" if at.second else f"{form}Z")


def duration(span: timedelta) -> str:
    """Whole minutes as days, hours and minutes: 21 d 16 h 45 min."""
    minutes = int(span / MINUTE)
    parts = ((minutes // 1440, "d"), (minutes % 1440 // 60, "h"), (minutes % 60, "min"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 min"
