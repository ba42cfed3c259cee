"""What must hold in price and cost books, and in the prices of a contract's own: tiers, counters, hours, percentages."""

from collections.abc import Collection, Hashable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import combinations
from typing import Final
from zoneinfo import ZoneInfo

from metering.catalog.documents import MISSING, Fault, KeyPath
from metering.catalog.fields import decimal_text, instant_text
from metering.catalog.placed import Placed, breakpoint_known, ends, overlaps, priced_meters, spans
from metering.catalog.prices import Hours, PriceBook, Priced, ProductPrice, priced_meters_of
from metering.catalog.quotas import REQUESTS
from metering.catalog.shapes import ANY
from metering.catalog.spans import OPEN
from metering.meters import METERS

#: What tiers and packages may count.
COUNTED_METERS: Final = (*METERS, REQUESTS)
_DAY: Final = 1440
_WEEK: Final = 7 * _DAY
_WEEKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def price_book(one: Placed, book: PriceBook) -> Iterator[Fault]:
    """Every fault of a price book that needs no other object to be seen."""
    yield from _hours(one, book.hours)
    yield from prices(one, book.prices, book.hours)
    yield from spans(one, ("percentages",), book.percentages, lambda row: (row.charge, row.product))


def prices(one: Placed, rows: Sequence[Priced], hours: Sequence[Hours]) -> Iterator[Fault]:
    """The rows of `prices`: each says one price, and of two that overlap only a rule may go before a unit price.

    `hours` are those that the rows may name; names that are not among them are not compared.
    """
    for index, row in enumerate(rows):
        path: KeyPath = ("prices", index)
        yield from breakpoint_known(one, path, row.above_input_tokens)
        for meter in row.per_million:
            if meter not in METERS:
                yield one.fault(
                    (*path, "per_million", meter), meter, f"is not a meter; meters are {', '.join(METERS)}"
                )
        if isinstance(row, ProductPrice):
            yield from _rule(one, path, row)
        yield from _all_meters(one, path, row, rows)
    yield from _overlaps(one, rows)
    ruled = [(index, row) for index, row in enumerate(rows) if _is_rule(row)]
    for (first, a), (second, b) in combinations(ruled, 2):
        assert isinstance(a, ProductPrice)
        assert isinstance(b, ProductPrice)
        yield from _two_rules(one, (first, a), (second, b), hours)


def hours_known(one: Placed, rows: Sequence[ProductPrice], book: PriceBook) -> Iterator[Fault]:
    """The hours that prices name are hours of their book."""
    names = sorted({row.hours for row in book.hours})
    for index, row in enumerate(rows):
        if row.hours is not None and row.hours not in names:
            yield one.fault(
                ("prices", index, "hours"),
                row.hours,
                f"book {book.book} has no such hours; known are {', '.join(names) or 'none'}",
            )


def meters_known(
    one: Placed, path: KeyPath, meters: Collection[str], among: Sequence[str] = COUNTED_METERS
) -> Iterator[Fault]:
    """Every meter of a list is one, and is named once."""
    seen: set[str] = set()
    for index, meter in enumerate(meters):
        if meter not in among:
            yield one.fault(
                (*path, index), meter, f"is not a meter; meters are {', '.join(METERS)} and {REQUESTS}"
            )
        elif meter in seen:
            yield one.fault((*path, index), meter, "is named twice; keep one of them")
        seen.add(meter)


def _is_rule(row: Priced) -> bool:
    """Whether a row becomes a rule: it counts, or it holds in some hours only."""
    return isinstance(row, ProductPrice) and (row.hours is not None or not row.per_million)


def _all_meters(one: Placed, path: KeyPath, row: Priced, rows: Sequence[Priced]) -> Iterator[Fault]:
    """Past a context breakpoint all tokens of a request take the prices there, so they name every meter."""

    def cell(priced: Priced) -> tuple[str, str, str, str | None]:
        return priced.item, priced.tier, priced.region, getattr(priced, "hours", None)

    for base in rows if row.above_input_tokens and row.per_million else ():
        lacking = priced_meters(base.per_million) - priced_meters(row.per_million)
        if cell(base) == cell(row) and base.above_input_tokens < row.above_input_tokens and lacking:
            yield one.fault(
                (*path, "per_million"),
                MISSING,
                f"has no price for {', '.join(sorted(lacking))}, which requests below "
                f"{row.above_input_tokens} tokens have; past the breakpoint all tokens of a request "
                "take these prices, so name them all",
            )
            break


# ---- one rule ------------------------------------------------------------------------------------------


def _rule(one: Placed, path: KeyPath, row: ProductPrice) -> Iterator[Fault]:
    """A row is of one model and says what that model needs, and nothing else."""
    needs = {"unit": "per_million", "graduated": "tiers", "volume": "tiers", "package": "package"}[row.model]
    given = {"per_million": row.per_million, "tiers": row.tiers, "package": row.package}
    for field, value in given.items():
        if value and field != needs:
            other = {"per_million": "unit", "tiers": "graduated` or `model: volume", "package": "package"}
            yield one.fault(
                (*path, field),
                MISSING if value is None else list(value) if isinstance(value, list) else {},
                f"does not go with model {row.model}; take it out, or say `model: {other[field]}`",
            )
    if not given[needs]:
        yield one.fault((*path, needs), MISSING, f"is required by model {row.model}; add it")
    if row.model == "unit":
        for field in ("meters", "free_units", "reset"):
            if field in row.model_fields_set and getattr(row, field):
                value = getattr(row, field)
                yield one.fault(
                    (*path, field),
                    value,
                    "only holds where units are counted; say `model: graduated`, volume or package",
                )
        return
    if not row.meters:
        yield one.fault(
            (*path, "meters"), MISSING, "is required: name the meters that are counted together; add it"
        )
    yield from meters_known(one, (*path, "meters"), row.meters)
    yield from _tiers(one, path, row)
    if row.package is not None and row.package.units == 0:
        yield one.fault((*path, "package", "units"), 0, "must be more than 0")


def _tiers(one: Placed, path: KeyPath, row: ProductPrice) -> Iterator[Fault]:
    """Tiers touch: each begins where the one before ended, the first at 0, and only the last one is open."""
    low = 0
    for index, tier in enumerate(row.tiers):
        here: KeyPath = (*path, "tiers", index)
        last = index == len(row.tiers) - 1
        if (tier.per_million is None) == (tier.each is None):
            yield one.fault(
                here,
                MISSING if tier.each is None else decimal_text(tier.each),
                "must have a price, either `per_million` or `each` (of one unit); write one of them",
            )
        if tier.up_to is None:
            if not last:
                yield one.fault(
                    (*here, "up_to"),
                    MISSING,
                    "is required: only the last tier is open, and this one leaves the next nothing; add it",
                )
            continue
        if tier.up_to == 0:
            yield one.fault(
                (*here, "up_to"),
                0,
                "must be more than 0: the first tier starts at 0; what is free is `free_units`",
            )
        elif tier.up_to <= low:
            yield one.fault(
                (*here, "up_to"),
                tier.up_to,
                f"must be larger than the up_to of the tier before ({low}), where this one starts: they "
                "would overlap; put the tiers in order",
            )
        if last:
            yield one.fault(
                (*here, "up_to"),
                tier.up_to,
                f"leaves units above {tier.up_to} without a price; leave it out, so that the last tier is open",
            )
        low = max(low, tier.up_to)


# ---- two rows ------------------------------------------------------------------------------------------


def _overlaps(one: Placed, rows: Sequence[Priced]) -> Iterator[Fault]:
    """Spans of rows that price the same: the unit prices of a cell, and the rules of a meter in the same hours."""
    grouped: list[tuple[Hashable, datetime, datetime | None, Placed, KeyPath]] = []
    for index, row in enumerate(rows):
        cell = (row.item, row.tier, row.region, row.above_input_tokens)
        groups: list[Hashable] = []
        if isinstance(row, ProductPrice) and not row.per_million:
            groups = [(*cell, row.hours, meter) for meter in dict.fromkeys(priced_meters_of(row))]
        elif isinstance(row, ProductPrice) and row.hours is not None:
            groups = [(*cell, row.hours, meter) for meter in sorted(priced_meters(row.per_million))]
            groups.append((*cell, row.hours))
        else:
            groups = [cell]
        grouped += [
            (group, row.effective_from, row.effective_until, one, ("prices", index)) for group in groups
        ]
        yield from ends(one, ("prices", index), row.effective_from, row.effective_until)
    yield from dict.fromkeys(overlaps(grouped))


def _two_rules(
    one: Placed, first: tuple[int, ProductPrice], second: tuple[int, ProductPrice], hours: Sequence[Hours]
) -> Iterator[Fault]:
    """Two rules of a product that hold at once agree on what they count, or do not meet in any hour."""
    (before, a), (index, b) = first, second
    if a.item != b.item or not (
        a.effective_from < (b.effective_until or OPEN) and b.effective_from < (a.effective_until or OPEN)
    ):
        return
    path: KeyPath = ("prices", index)
    place = f"{one.document.file}:{one.document.line((*one.path, 'prices', before))}"
    counts, other = ({*priced_meters_of(row)} for row in (b, a))
    if counts and counts == other and a.reset != b.reset:
        yield one.fault(
            (*path, "reset"),
            b.reset,
            f"the price at {place} counts the same units and begins again with the {a.reset}; say the same",
        )
    if (a.tier, a.region) != (b.tier, b.region):
        return
    mine = counts or priced_meters(b.per_million)
    theirs = other or priced_meters(a.per_million)
    if a.above_input_tokens != b.above_input_tokens:
        if a.hours == b.hours and mine & theirs and counts != other:
            yield one.fault(
                (*path, "meters"),
                b.meters or MISSING,
                f"prices {', '.join(sorted(mine & theirs))} together with other meters than the price at {place} "
                "for another context; name the same ones",
            )
    elif None not in (a.hours, b.hours) and a.hours != b.hours and mine & theirs and _meet(a, b, hours):
        yield one.fault(
            (*path, "hours"),
            b.hours,
            f"has hours in common with {a.hours}, for which {place} has a price too; "
            "one hour has one price: change the hours",
        )


# ---- hours ---------------------------------------------------------------------------------------------


def _hours(one: Placed, given: Sequence[Hours]) -> Iterator[Fault]:
    """Hours of one name are in one zone, do not overlap, and begin within the day."""
    first: dict[str, tuple[int, Hours]] = {}
    taken: dict[str, dict[int, int]] = {}
    for index, row in enumerate(given):
        path: KeyPath = ("hours", index)
        if row.from_ == _DAY:
            yield one.fault((*path, "from"), "24:00", 'is the end of the day; write "00:00" of the day after')
            continue
        if row.hours == ANY:
            yield one.fault((*path, "hours"), ANY, "is what `always` is called; choose another name")
        for position, day in enumerate(row.days):
            if day in row.days[:position]:
                yield one.fault((*path, "days", position), day, "is named twice; keep one of them")
        place, named = first.setdefault(row.hours, (index, row))
        where = f"{one.document.file}:{one.document.line((*one.path, 'hours', place))}"
        if named.zone != row.zone:
            yield one.fault(
                (*path, "zone"),
                row.zone,
                f"hours {row.hours} are in {named.zone} at {where}; give these another name, or the same zone",
            )
            continue
        held = taken.setdefault(row.hours, {})
        both = [minute for minute in sorted(_minutes([row])) if held.setdefault(minute, index) != index]
        if both:
            line = one.document.line((*one.path, "hours", held[both[0]]))
            weekday, minute = divmod(both[0], _DAY)
            yield one.fault(
                (*path, "from"),
                f"{row.from_ // 60:02}:{row.from_ % 60:02}",
                f"hours {row.hours} already hold on {_WEEKDAYS[weekday]} at {minute // 60:02}:{minute % 60:02} by "
                f"{one.document.file}:{line}; an hour is in them once",
            )


def _minutes(rows: Sequence[Hours]) -> set[int]:
    """The quarter hours of a week that rows cover, as minutes since Monday's midnight."""
    covered: set[int] = set()
    for row in rows:
        length = (row.until - row.from_) if row.until > row.from_ else row.until - row.from_ + _DAY
        for day in {*row.days}:
            start = _WEEKDAYS.index(day) * _DAY + row.from_
            covered |= {minute % _WEEK for minute in range(start, start + length, 15)}
    return covered


def _meet(a: ProductPrice, b: ProductPrice, hours: Sequence[Hours]) -> bool:
    """Whether two named sets of hours share a quarter hour on any day, by the clocks of their zones."""
    one, other = ([row for row in hours if row.hours == name] for name in (a.hours, b.hours))
    if not one or not other:
        return False
    mine, theirs = _minutes(one), _minutes(other)
    return any(
        mine & {(minute + apart) % _WEEK for minute in theirs}
        for apart in _apart(one[0].zone, other[0].zone, max(a.effective_from, b.effective_from).year)
    )


@cache
def _apart(zone: str, other: str, year: int) -> frozenset[int]:
    """By how many minutes the clocks of one zone are ahead of another's, on the days of a year."""
    noons = [datetime(year, 1, 1, 12, tzinfo=UTC) + timedelta(days=day) for day in range(366)]
    return frozenset(int((offset(noon, zone) - offset(noon, other)) / timedelta(minutes=1)) for noon in noons)


def offset(at: datetime, zone: str) -> timedelta:
    """How far the clocks of a zone are ahead of UTC."""
    ahead = at.astimezone(ZoneInfo(zone)).utcoffset()
    assert ahead is not None
    return ahead


def quarter_hours(one: Placed, path: KeyPath, zone: str, since: datetime) -> Iterator[Fault]:
    """From `since` on the clocks of a zone are whole quarter hours from UTC, so that its days begin on one."""
    off = _off_quarter(zone, since.year, since.month)
    if off is not None:
        yield one.fault(
            path,
            zone,
            f"its days do not begin on a quarter hour of UTC in {off:%Y-%m} (as from "
            f"{instant_text(since)} on they must); begin later, or name another zone",
        )


@cache
def _off_quarter(zone: str, year: int, month: int) -> date | None:
    """The first month from one on, over the years that zones are known for, whose clocks are off a quarter hour."""
    for months in range(year * 12 + month - 1, max(year, 2037) * 12 + 12):
        first = datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)
        if offset(first, zone) % timedelta(minutes=15):
            return first.date()
    return None
