"""A supplier's usage export: CSV by day or hour, model and unit, read strictly, with its zone known."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import polars as pl

from metering.errors import BadInput
from metering.frames.frame import INSTANT, SUM, Frame
from metering.meters import INPUT_METERS, METERS, OUTPUT_METERS
from metering.money import AMOUNT_MAX, MONEY
from metering.periods import floor_to_quarter

#: What a supplier may count, and the meters of ours that add up to it. `requests` are attempts.
UNITS: Final[Mapping[str, tuple[str, ...]]] = {
    "requests": ("requests",),
    **{meter: (meter,) for meter in METERS},
    "total_input_tokens": INPUT_METERS,
    "total_output_tokens": OUTPUT_METERS,
}
#: What the supplier says, by bucket of time (an hour, or a day of its zone).
THEIRS: Final = Frame(
    "THEIRS",
    {
        "starts": INSTANT,
        "model": pl.String,
        "unit": pl.String,  # of UNITS
        "quantity": SUM,
        "amount": MONEY,  # null: it says none
        "currency": pl.String,
    },
    key=("starts", "model", "unit"),
    nullable=frozenset({"amount", "currency"}),
)
BUCKETS: Final = Frame(
    "BUCKETS",
    {"starts": INSTANT, "ends": INSTANT, "time": pl.String},
    key=("starts",),
)


@dataclass(frozen=True)
class Precision:
    """The smallest step that the supplier's file writes: of the quantities of a unit, and of amounts in quanta."""

    quantities: Mapping[str, int] = field(default_factory=dict)  # a unit that is not there: 1
    quanta: int = 1


#: Columns of the file: a time, and either unit and quantity or a column for each unit.
TIMES: Final = ("day", "hour")
COLUMNS: Final = (*TIMES, "model", "unit", "quantity", "amount", "currency", *UNITS)
#: Largest quantity of a line, in single units.
QUANTITY_MAX: Final = 10**18
_HOUR: Final = timedelta(hours=1)
_NUMBER: Final = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,12})?")
_CURRENCY: Final = re.compile(r"[A-Z]{3}")
#: Quantities that are all multiples of a power of ten are rounded to it, if they are this many.
_ROUND_MIN: Final = 3


@dataclass(frozen=True)
class Reading:
    """How a file is to be read: what its columns, units and models are called, its zone, its currency.

    `columns`: our name -> the file's; `units` and `models`: the file's name -> ours. `per`: the quantities are
    in so many units (1000: thousands of tokens). `zone`: of times without an offset, and of days (else UTC).
    """

    columns: Mapping[str, str]
    units: Mapping[str, str]
    models: Mapping[str, str]
    per: int = 1
    zone: str | None = None
    currency: str = "USD"


@dataclass(frozen=True)
class UsageExport:
    """theirs: THEIRS, lines of one time, model and unit added up. buckets: BUCKETS, without a gap."""

    theirs: pl.DataFrame
    buckets: pl.DataFrame
    precision: Precision
    lines: int


def read_usage_export(name: str, content: bytes, reading: Reading) -> UsageExport:
    """Read a supplier's usage file. BadInput names file, line, column, value and remedy; nothing is guessed.

    A time without an offset is refused unless `reading.zone` says whose it is; a day is a day of that zone, or
    of UTC. Other columns than those that are asked for are ignored.
    """
    zone = _zone(reading.zone)
    table = _Table(name, content, reading)
    rows: dict[tuple[datetime, str, str], tuple[int, Decimal | None, str | None]] = {}
    quantities: dict[str, list[int]] = defaultdict(list)
    decimals: dict[str, int] = defaultdict(int)
    places = 0
    for line in table.lines():
        starts = line.starts(zone)
        model = line.text("model")
        model = reading.models.get(model, model)
        amount = line.amount()
        for unit, told in line.quantities():
            quantity, written = told
            quantities[unit].append(quantity)
            decimals[unit] = max(decimals[unit], written)
            if amount is not None:
                places = max(places, -int(amount.as_tuple().exponent))
            key = (starts, model, unit)
            rows[key] = line.added(rows.get(key), quantity, amount)
    if not rows:
        raise BadInput(f"{name}: holds no line of usage; give a file with at least one")
    theirs = THEIRS.conform(
        pl.DataFrame([(*key, *row) for key, row in rows.items()], schema=dict(THEIRS.columns), orient="row")
    )
    steps = {unit: _step(told, reading.per, decimals[unit]) for unit, told in quantities.items()}
    precision = Precision(steps, int(10 ** (12 - places)))
    return UsageExport(theirs, _buckets(name, table.time, theirs, zone), precision, table.count)


def pairs(option: str, text: str | None) -> dict[str, str]:
    """Read `a=b,c=d`. BadInput names the option and the word."""
    found: dict[str, str] = {}
    for word in text.split(",") if text else ():
        left, equals, right = (part.strip() for part in word.partition("="))
        if not (left and equals and right):
            raise BadInput(f"{option} '{word}' is not NAME=NAME; give pairs like day=date,model=model_id")
        if left in found:
            raise BadInput(f"{option} names '{left}' twice; give each once")
        found[left] = right
    return found


def _zone(name: str | None) -> ZoneInfo | None:
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise BadInput(f"--zone '{name}' is not a time zone; give an IANA name like Europe/Berlin") from None


class _Table:
    """The lines of the file under the names that are ours."""

    def __init__(self, name: str, content: bytes, reading: Reading) -> None:
        self.name, self.reading, self.count = name, reading, 0
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadInput(f"{name}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
        if "\0" in text:
            raise BadInput(f"{name}: holds a NUL character; it is not a CSV file")
        self._rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(self._read(), (0, []))[1]
        self.places = self._placed([cell.strip() for cell in header])
        self.time = "day" if "day" in self.places else "hour"
        self.wide = tuple(unit for unit in UNITS if unit in self.places)
        self._width = len(header)
        self._check()

    def _read(self) -> Iterator[tuple[int, list[str]]]:
        try:
            for row in self._rows:
                if any(cell.strip() for cell in row):
                    yield self._rows.line_num, row
        except csv.Error as error:
            raise BadInput(f"{self.name}, line {self._rows.line_num}: {error}; write it as CSV") from None

    def _placed(self, header: list[str]) -> dict[str, int]:
        if not header:
            raise BadInput(f"{self.name}: is empty; give a CSV file with a header")
        twice = sorted({cell for cell in header if cell and header.count(cell) > 1})
        for ours, theirs in self.reading.columns.items():
            if ours not in COLUMNS:
                raise BadInput(f"--columns: '{ours}' is not a column; name any of {', '.join(COLUMNS)}")
            if theirs not in header:
                raise BadInput(
                    f"{self.name}: has no column '{theirs}' (--columns {ours}={theirs}); it has {', '.join(header)}"
                )
        places = {}
        for ours in COLUMNS:
            theirs = self.reading.columns.get(ours, ours)
            if theirs in twice:
                raise BadInput(f"{self.name}: has two columns '{theirs}'; rename one")
            if theirs in header:
                places[ours] = header.index(theirs)
        # a column may serve once: what is mapped away is not also taken under its own name
        taken = {header.index(theirs) for theirs in self.reading.columns.values()}
        return {
            ours: place
            for ours, place in places.items()
            if ours in self.reading.columns or place not in taken
        }

    def _check(self) -> None:
        found = "map its columns with --columns day=...,model=...,unit=...,quantity=..."
        times = [time for time in TIMES if time in self.places]
        if len(times) != 1:
            said = "both a column 'day' and a column 'hour'" if times else "no column 'day' or 'hour'"
            raise BadInput(f"{self.name}: has {said}; {found}, one of day and hour")
        if "model" not in self.places:
            raise BadInput(f"{self.name}: has no column 'model'; {found}")
        long = [column for column in ("unit", "quantity") if column in self.places]
        if len(long) == 1 or not (long or self.wide):
            lacks = "unit" if "unit" not in self.places else "quantity"
            raise BadInput(
                f"{self.name}: has no column '{lacks}', nor a column for each unit ({', '.join(UNITS)}); {found}"
            )
        if long and self.wide:
            self.wide = ()
        if self.wide and "amount" in self.places:
            raise BadInput(
                f"{self.name}: an amount belongs to one unit, and this file has a column for each; "
                "leave the amount out, or give the file with unit and quantity"
            )

    def lines(self) -> Iterator["_Line"]:
        """Every line with content; a line of another width than the header is refused."""
        for number, cells in self._read():
            if len(cells) != self._width:
                raise BadInput(
                    f"{self.name}, line {number}: has {len(cells)} columns, the header {self._width}; correct the line"
                )
            self.count += 1
            yield _Line(self, number, cells)


@dataclass(frozen=True)
class _Line:
    table: _Table
    number: int
    cells: list[str]

    def _cell(self, column: str) -> str:
        return self.cells[self.table.places[column]].strip()

    def _bad(self, column: str, value: str, remedy: str) -> BadInput:
        theirs = self.table.reading.columns.get(column, column)
        return BadInput(f"{self.table.name}, line {self.number}, column {theirs}: '{value}' {remedy}")

    def text(self, column: str) -> str:
        value = self._cell(column)
        if not value or not value.isprintable():
            raise self._bad(column, value, "is empty or not printable; name it")
        return value

    def starts(self, zone: ZoneInfo | None) -> datetime:
        column = self.table.time
        value = self._cell(column)
        if column == "day":
            try:
                day = date.fromisoformat(value)
            except ValueError:
                raise self._bad(column, value, "is not a day; write 2026-10-31") from None
            self._refuse_year(column, value, day)
            return _midnight(day, zone)
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            raise self._bad(column, value, "is not a time; write 2026-10-31T14:00Z") from None
        self._refuse_year(column, value, at)
        if at.tzinfo is None:
            if zone is None:
                raise self._bad(
                    column,
                    value,
                    "is a local time without a zone; say whose it is with --zone, UTC if it is UTC",
                )
            at = self._local(column, value, at, zone)
        at = at.astimezone(UTC)
        if at != floor_to_quarter(at):
            raise self._bad(column, value, "does not begin on a quarter hour; write the start of an hour")
        return at

    def _refuse_year(self, column: str, value: str, at: date) -> None:
        if not 1970 < at.year < 9998:
            raise self._bad(column, value, "lies outside the years 1971 to 9997; correct it")

    def _local(self, column: str, value: str, at: datetime, zone: ZoneInfo) -> datetime:
        first, second = (at.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
        if first.utcoffset() != second.utcoffset():
            back = first.astimezone(UTC).astimezone(zone).replace(tzinfo=None)
            said = "occurs twice" if back == at else "does not exist"
            raise self._bad(column, value, f"{said} in {zone.key}, where the clock changes; write its offset")
        return first

    def quantities(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Unit, and quantity in single units with the decimals that it was written with."""
        if self.table.wide:
            for unit in self.table.wide:
                if self._cell(unit):
                    yield unit, self._quantity(unit)
            return
        said = self.text("unit")
        unit = self.table.reading.units.get(said, said)
        if unit not in UNITS:
            raise self._bad(
                "unit",
                said,
                f"is not a unit; say which it is with --units {said}=..., any of {', '.join(UNITS)}",
            )
        yield unit, self._quantity("quantity")

    def _quantity(self, column: str) -> tuple[int, int]:
        value = self._cell(column)
        if not _NUMBER.fullmatch(value):
            raise self._bad(column, value, "is not a number; write digits, like 1234567")
        told = Decimal(value) * self.table.reading.per
        if told != int(told):
            raise self._bad(
                column, value, "is not a whole number of units; with --per 1000 quantities are in thousands"
            )
        if abs(told) > QUANTITY_MAX:
            raise self._bad(column, value, f"is beyond {QUANTITY_MAX:,}; correct it")
        return int(told), len(value.partition(".")[2])

    def amount(self) -> Decimal | None:
        if "amount" not in self.table.places or not self._cell("amount"):
            return None
        value = self._cell("amount")
        if not _NUMBER.fullmatch(value):
            raise self._bad("amount", value, "is not an amount; write digits, like 12.50")
        told = Decimal(value)
        if abs(told) >= AMOUNT_MAX:
            raise self._bad("amount", value, f"is beyond {AMOUNT_MAX:,}; correct it")
        return told

    def added(
        self, before: tuple[int, Decimal | None, str | None] | None, quantity: int, amount: Decimal | None
    ) -> tuple[int, Decimal | None, str | None]:
        """The sum with the lines of the same time, model and unit before this one."""
        currency = None
        if amount is not None:
            currency = self.table.reading.currency
            if "currency" in self.table.places and self._cell("currency"):
                currency = self._cell("currency")
                if not _CURRENCY.fullmatch(currency):
                    raise self._bad("currency", currency, "is not a currency; write three letters, like USD")
        if before is None:
            return quantity, amount, currency
        if (before[1] is None) != (amount is None) or before[2] != currency:
            raise self._bad(
                "amount",
                "" if amount is None else str(amount),
                "is in another currency than an earlier line of the same time, model and unit, or one of the two "
                "has none; give all of them in one",
            )
        return before[0] + quantity, None if amount is None else (before[1] or Decimal(0)) + amount, currency


def _midnight(day: date, zone: ZoneInfo | None) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=zone or UTC).astimezone(UTC)


def _step(quantities: list[int], per: int, decimals: int) -> int:
    """The smallest step that the quantities are written in: what `per` and decimals say, or round numbers."""
    told = [abs(quantity) for quantity in quantities if quantity]
    step = int(max(1, per // 10**decimals))
    if len(told) < _ROUND_MIN:
        return step
    while step < QUANTITY_MAX and all(quantity % (step * 10) == 0 for quantity in told):
        step *= 10
    return step


def _buckets(name: str, time: str, theirs: pl.DataFrame, zone: ZoneInfo | None) -> pl.DataFrame:
    """Every hour or day from the first to the last of the file, under the name that its zone gives it."""
    seen = sorted(set(theirs["starts"]))
    rows: list[tuple[datetime, datetime, str]] = []
    if time == "hour":
        at = seen[0]
        while at <= seen[-1]:
            local = at.astimezone(zone or UTC)
            rows.append((at, at + _HOUR, local.strftime("%Y-%m-%dT%H:%MZ") if zone is None else local.isoformat(
                timespec="minutes")))  # fmt: skip
            at += _HOUR
        if odd := set(seen) - {row[0] for row in rows}:
            raise BadInput(
                f"{name}: {min(odd):%Y-%m-%dT%H:%MZ} does not lie whole hours after {seen[0]:%Y-%m-%dT%H:%MZ}, "
                "and the hours of a file may not overlap; give all of them with one offset"
            )
    else:
        day = seen[0].astimezone(zone or UTC).date()
        while _midnight(day, zone) <= seen[-1]:
            rows.append((_midnight(day, zone), _midnight(day + timedelta(days=1), zone), day.isoformat()))
            day += timedelta(days=1)
    return BUCKETS.conform(pl.DataFrame(rows, schema=dict(BUCKETS.columns), orient="row"))
