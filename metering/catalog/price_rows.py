"""From price and cost books to the frames that rating reads: unit prices, rules with tiers, hours, percentages."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from metering.catalog.prices import (
    CostBook,
    Hours,
    ModelPrice,
    Percentage,
    PriceBook,
    ProductPrice,
    priced_meters_of,
)
from metering.catalog.shapes import ANY
from metering.catalog.spans import OPEN, Interval, interval, minus, span_columns
from metering.catalog.supply_books import CONTEXTS, in_force
from metering.money import PRICE_UNITS

Row = dict[str, Any]
_WEEKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES: Final = 1440
_CELL: Final = ("item", "tier", "region", "context_breakpoint")


@dataclass(frozen=True)
class PriceRows:
    """Rows of the frames PRICES, PRICE_RULES, PRICE_TIERS, PRICE_HOURS and PERCENTAGES."""

    prices: list[Row] = field(default_factory=list)
    rules: list[Row] = field(default_factory=list)
    tiers: list[Row] = field(default_factory=list)
    hours: list[Row] = field(default_factory=list)
    percentages: list[Row] = field(default_factory=list)

    def extend(self, more: "PriceRows") -> None:
        """Add the rows of another book."""
        for name in ("prices", "rules", "tiers", "hours", "percentages"):
            getattr(self, name).extend(getattr(more, name))


def book_rows(book: PriceBook, ended_at: datetime | None) -> PriceRows:
    """Every row of a price book. What ended keeps its rows, cut at its end."""
    rows = _rows(book.book, book.prices, book.currency, ended_at)
    rows.hours.extend(_hours(book.book, book.hours))
    rows.percentages.extend(_percentages(book.book, book.percentages, book.currency, ended_at))
    return rows


def cost_rows(book: CostBook, ended_at: datetime | None) -> list[Row]:
    """Every row of a cost book, of the frame PRICES."""
    return _rows(book.book, book.prices, book.currency, ended_at).prices


def overridden(
    name: str, of: PriceRows, prices: Sequence[ProductPrice], currency: str, span: Interval
) -> PriceRows:
    """The rows of a book of a contract's own: its prices over `span` and, cell by cell, else those of the book.

    A cell is item, tier, region, context, meter and hours; a price of the contract without hours goes before
    all hours of the book.
    """
    own = _rows(name, prices, currency, span[1], since=span[0])
    taken: dict[tuple[object, ...], list[Interval]] = {}
    for row in own.prices:
        taken.setdefault((*_cell(row), ANY, row["meter"]), []).append(_span(row))
    for row in own.rules:
        for meter in row["meters"].split(","):
            taken.setdefault((*_cell(row), row["hours"], meter), []).append(_span(row))

    def left(row: Row, hours: str, meters: Iterable[str]) -> list[Interval]:
        gone = [
            each
            for meter in meters
            for of_hours in {ANY, hours}
            for each in taken.get((*_cell(row), of_hours, meter), [])
        ]
        return minus([_span(row)], gone)

    rows = PriceRows()
    rows.prices.extend(own.prices)
    rows.rules.extend(own.rules)
    rows.tiers.extend(own.tiers)
    rows.hours.extend({**row, "book": name} for row in of.hours)
    rows.percentages.extend({**row, "book": name} for row in of.percentages)
    for row in of.prices:
        rows.prices.extend(
            {**row, "book": name, **span_columns(each)} for each in left(row, ANY, [row["meter"]])
        )
    for row in of.rules:
        rows.rules.extend(
            {**row, "book": name, **span_columns(each)}
            for each in left(row, row["hours"], row["meters"].split(","))
        )
    return rows


def _cell(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in _CELL)


def _span(row: Row) -> Interval:
    return row["effective_from"], row["effective_until"] or OPEN


def _rows(
    book: str,
    prices: Sequence[ProductPrice] | Sequence[ModelPrice],
    currency: str,
    ended_at: datetime | None,
    since: datetime | None = None,
) -> PriceRows:
    variants: dict[tuple[str, ...], list[Any]] = {}
    for priced in prices:
        ruled = () if priced.unit_prices else _ruled(priced)
        variants.setdefault((priced.item, priced.tier, priced.region, *ruled), []).append(priced)
    rows = PriceRows()
    for priced_rows in variants.values():
        highest_first = sorted(priced_rows, key=lambda row: -row.above_input_tokens)
        for context in CONTEXTS:
            for row, (start, until) in in_force(highest_first, context, ended_at):
                for span in interval(max(start, since or start), until):
                    said = {
                        "book": book,
                        "item": row.item,
                        "tier": row.tier,
                        "region": row.region,
                        "context_breakpoint": context,
                        "currency": currency,
                        **span_columns(span),
                    }
                    rows.prices.extend(
                        {**said, "meter": meter, "unit_price": price / PRICE_UNITS}
                        for meter, price in with_reasoning(row.unit_prices).items()
                    )
                    if isinstance(row, ProductPrice) and not row.unit_prices:
                        rows.rules.extend({**said, **rule} for rule in _rules(book, row))
    ruled_rows = [row for row in prices if isinstance(row, ProductPrice) and not row.unit_prices]
    rows.tiers.extend(tier for row in ruled_rows for tier in _tiers(book, row))
    return rows


def with_reasoning(prices: dict[str, Decimal]) -> dict[str, Decimal]:
    """The prices with that of reasoning, which is output where it is not named."""
    if "output_tokens" in prices:
        return {"reasoning_tokens": prices["output_tokens"], **prices}
    return dict(prices)


def _ruled(row: Any) -> tuple[str, str]:
    return row.hours or ANY, _meters(priced_meters_of(row)) if row.meters else "*"


def _meters(meters: Iterable[str]) -> str:
    return ",".join(sorted(meters))


def _named(book: str, row: ProductPrice, meters: str) -> str:
    """The name of a rule: all that tells its row of the book from the others."""
    place = (book, row.item, row.tier, row.region, row.hours or ANY, meters, row.above_input_tokens)
    return "/".join(map(str, place)) + f"/{row.effective_from:%Y-%m-%dT%H:%MZ}"


def _rules(book: str, row: ProductPrice) -> list[Row]:
    said = {
        "hours": row.hours or ANY,
        "free_units": row.free_units,
        "reset": row.reset,
    }
    if row.per_million:
        return [
            {**said, "meters": meter, "rule": _named(book, row, meter), "model": "unit"}
            for meter in with_reasoning(row.per_million)
        ]
    meters = _meters(priced_meters_of(row))
    counted = row.package.counts if row.package is not None else ""
    model = f"package_{counted}" if row.model == "package" else row.model
    return [{**said, "meters": meters, "rule": _named(book, row, meters), "model": model}]


def _tiers(book: str, row: ProductPrice) -> list[Row]:
    plain = {"tier": 1, "from_units": 0, "up_to": None, "flat_amount": Decimal(0), "package_units": None}
    if row.per_million:
        return [
            {**plain, "rule": _named(book, row, meter), "unit_price": price / PRICE_UNITS}
            for meter, price in with_reasoning(row.per_million).items()
        ]
    rule = _named(book, row, _meters(priced_meters_of(row)))
    if row.package is not None:
        packed = {"flat_amount": row.package.amount, "package_units": row.package.units}
        return [{**plain, "rule": rule, "unit_price": Decimal(0), **packed}]
    rows = []
    low = 0
    for number, tier in enumerate(row.tiers, 1):
        each = tier.each if tier.each is not None else (tier.per_million or Decimal(0)) / PRICE_UNITS
        rows.append(
            {
                "rule": rule,
                "tier": number,
                "from_units": low,
                "up_to": tier.up_to,
                "unit_price": each,
                "flat_amount": tier.flat_amount,
                "package_units": None,
            }
        )
        low = tier.up_to or low
    return rows


def _hours(book: str, given: Sequence[Hours]) -> list[Row]:
    rows = []
    for named in given:
        overnight = named.until <= named.from_
        for day in named.days:
            weekday = _WEEKDAYS.index(day) + 1
            said = {"book": book, "hours": named.hours, "zone": named.zone}
            first = {**said, "weekday": weekday, "from_minute": named.from_}
            rows.append({**first, "until_minute": _DAY_MINUTES if overnight else named.until})
            if overnight and named.until:
                rest = {"weekday": weekday % 7 + 1, "from_minute": 0, "until_minute": named.until}
                rows.append({**said, **rest})
    return rows


def _percentages(
    book: str, given: Sequence[Percentage], currency: str, ended_at: datetime | None
) -> list[Row]:
    return [
        {
            "book": book,
            "charge": row.charge,
            "of": row.of,
            "item": row.product,
            "ratio": row.ratio,
            "currency": currency,
            **span_columns(span),
        }
        for row in given
        for span in interval(row.effective_from, row.effective_until, ended_at)
    ]
