"""The demand side again, in Python integers and Fractions: counters, tiers, and the waterfall of charges.

Everything comes in as lists of dicts (`frame.to_dicts()`) and goes out as dicts by key. One quarter hour at a
time, one period of a contract at a time. Nothing is shared with the core but words and the meters' order.
"""

from calendar import monthrange
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from fractions import Fraction
from math import floor
from typing import Any
from zoneinfo import ZoneInfo

from tests.oracle.supply import METERS, QUARTER, SERIES, Book, Key, Row, holds, quanta, quarters

CHARGED = ("charge_and_cost", "charge")
DISCOUNTS = ("line_discount", "contract_discount", "fixed_discount", "capped")
#: Amounts of the waterfall; a charge's `net` is gross less the discounts.
AMOUNTS = (
    *("gross", *DISCOUNTS, "net", "top_up", "drawdown", "promotional_credit", "prepaid_credit"),
    *("overage_premium", "shortfall", "breakage"),
)

#: A quarter hour and a series (its dimensions); and with a meter.
Line = tuple[datetime, Key]
Span = tuple[datetime, datetime]


@dataclass
class Charges:
    """gross by (quarter hour, series, meter); amounts by line and name; `shortfall` and such by quarter hour."""

    gross: dict[tuple[datetime, Key, str], int] = field(default_factory=dict)
    unpriced: list[tuple[datetime, Key, str]] = field(default_factory=list)
    amounts: dict[str, dict[Line, int]] = field(default_factory=lambda: {name: {} for name in AMOUNTS})
    #: What is of no series: top-ups without usage, shortfall, breakage.
    alone: dict[str, dict[datetime, int]] = field(default_factory=lambda: {name: {} for name in AMOUNTS})

    def by_quarter(self) -> dict[datetime, Row]:
        """Every amount per quarter hour."""
        found: dict[datetime, Row] = defaultdict(lambda: dict.fromkeys(AMOUNTS, 0))
        for name in AMOUNTS:
            for (at, _), amount in self.amounts[name].items():
                found[at][name] += amount
            for at, amount in self.alone[name].items():
                found[at][name] += amount
        return {at: row for at, row in found.items() if any(row.values())}


def charges(usage: list[Row], book: Book, contract: Row, until: datetime) -> Charges:
    """What a contract is charged for the usage of its customer that is known until a quarter hour."""
    found = Charges()
    rows = _rows(usage, contract, until)
    _price(found, rows, book, contract, until)
    _percentages(found, book, contract)
    lines: dict[Line, int] = defaultdict(int)
    for (at, series, _), amount in found.gross.items():
        lines[at, series] += amount
    found.amounts["gross"] = dict(lines)
    left = _discounted(found, dict(lines), book, contract)
    left = _by_period(found, left, book, contract, until)
    found.amounts["net"] = left
    _drawn(found, rows, book, contract, until)
    return found


def _rows(usage: list[Row], contract: Row, until: datetime) -> dict[tuple[datetime, Key, str], int]:
    rows: dict[tuple[datetime, Key, str], int] = defaultdict(int)
    for row in usage:
        at = row["quarter_start"]
        own = row["customer"] == contract["customer"] and row["counts_for"] in CHARGED
        if own and at < until and holds(contract, at):
            for meter in ("requests", *METERS):
                rows[at, tuple(row[name] for name in SERIES), meter] += row[meter]
    return {key: quantity for key, quantity in rows.items() if quantity}


def _said(series: Key, name: str) -> Any:
    return series[SERIES.index(name)]


# ---- periods -------------------------------------------------------------------------------------------


def midnight(day: date, zone: str) -> datetime:
    """The first quarter hour of a local day."""
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).astimezone(ZoneInfo("UTC"))


def anchored(year: int, month: int, anchor_day: int) -> date:
    """The anchor day of a month, its last day in one that is shorter."""
    year, month = year + (month - 1) // 12, (month - 1) % 12 + 1
    return date(year, month, min(anchor_day, monthrange(year, month)[1]))


def period_of(at: datetime, terms: Row, begins: datetime) -> Span:
    """The period of the contract that holds an instant: whole months from the anchor day on or before its start."""
    zone, months = terms["zone"], terms["period_months"]
    first = begins.astimezone(ZoneInfo(zone)).date()
    place = first.year * 12 + first.month - 1
    if anchored(place // 12, place % 12 + 1, terms["anchor_day"]) > first:
        place -= 1
    while True:
        start = midnight(anchored(place // 12, place % 12 + 1, terms["anchor_day"]), zone)
        after = place + months
        until = midnight(anchored(after // 12, after % 12 + 1, terms["anchor_day"]), zone)
        if start <= at < until:
            return start, until
        place = after


def counter_of(at: datetime, reset: str, terms: Row, contract: Row) -> datetime:
    """When the counter that an instant counts on began."""
    local = at.astimezone(ZoneInfo(terms["zone"])).date()
    begins: datetime = contract["effective_from"]
    starts = {
        "period": period_of(at, terms, begins)[0],
        "day": midnight(local, terms["zone"]),
        "month": midnight(local.replace(day=1), terms["zone"]),
        "year": midnight(local.replace(month=1, day=1), terms["zone"]),
        "never": begins,
    }
    return max(starts[reset], begins)


def prorated(amount: int, span: Span, row: Row, until: datetime, zone: str) -> int:
    """What of an amount per period falls to the part that a row covers so far: a difference of two floors."""
    since = max(span[0], row["effective_from"])
    to = max(since, min(span[1], until, row["effective_until"] or span[1]))
    return floor(amount * _place(span, to, zone)) - floor(amount * _place(span, since, zone))


def _place(span: Span, at: datetime, zone: str) -> Fraction:
    """The part of a period that lies before: by day, and within a day by quarter hour."""
    first, last = (edge.astimezone(ZoneInfo(zone)).date() for edge in span)
    days = (last - first).days
    before = Fraction(0)
    for number in range(days):
        begins = midnight(first + timedelta(days=number), zone)
        ends = midnight(first + timedelta(days=number + 1), zone)
        passed = max(timedelta(0), min(ends, at) - begins)
        before += Fraction(int(passed / QUARTER), int((ends - begins) / QUARTER))
    return before / days


# ---- prices --------------------------------------------------------------------------------------------


def _hours(book: Book, name: str, at: datetime) -> str:
    for row in book.of("price_hours", book=name):
        local = at.astimezone(ZoneInfo(row["zone"]))
        minute = local.hour * 60 + local.minute
        if local.isoweekday() == row["weekday"] and row["from_minute"] <= minute < row["until_minute"]:
            return str(row["hours"])
    return "*"


def _rule(book: Book, name: str, at: datetime, series: Key, meter: str) -> Row | None:
    here = [_hours(book, name, at), "*"]
    regions = [_said(series, "region"), "*"]
    asked = {
        "book": name,
        "item": _said(series, "product"),
        "tier": _said(series, "tier_sold"),
        "context_breakpoint": _said(series, "context_breakpoint"),
    }
    for region in regions:
        for hours in here:
            for row in book.of("price_rules", **asked, region=region, hours=hours):
                if meter in row["meters"].split(",") and holds(row, at):
                    return row
        if any(holds(row, at) for row in book.of("price_books", **asked, region=region, meter=meter)):
            return None
    return None


def _price(
    found: Charges,
    rows: dict[tuple[datetime, Key, str], int],
    book: Book,
    contract: Row,
    until: datetime,
) -> None:
    name = contract["price_book"]
    ruled: dict[tuple[str, str], dict[datetime, dict[str, dict[tuple[Key, str], int]]]] = {}
    rules: dict[str, Row] = {}
    for (at, series, meter), quantity in sorted(rows.items(), key=str):
        if book.in_force("customers", at, customer=contract["customer"]) is None:
            if meter != "requests":
                found.unpriced.append((at, series, meter))
            continue
        rule = _rule(book, name, at, series, meter)
        if rule is not None:
            rules[rule["rule"]] = rule
            counter = ruled.setdefault((_said(series, "product"), rule["meters"]), {})
            counter.setdefault(at, {}).setdefault(rule["rule"], {})[series, meter] = quantity
            continue
        price = book.price(
            "price_books",
            at,
            book=name,
            item=_said(series, "product"),
            tier=_said(series, "tier_sold"),
            region=_said(series, "region"),
            context_breakpoint=_said(series, "context_breakpoint"),
            meter=meter,
        )
        if price is not None:
            found.gross[at, series, meter] = quantity * quanta(price["unit_price"])
        elif meter != "requests":
            found.unpriced.append((at, series, meter))
    terms = terms_of(book, contract)
    for (item, meters), counted in ruled.items():
        units: dict[datetime, int] = defaultdict(int)
        for (at, series, meter), quantity in rows.items():
            if _said(series, "product") == item and meter in meters.split(","):
                units[at] += quantity
        _count(found, counted, units, rules, book, contract, terms)


def _percentages(found: Charges, book: Book, contract: Row) -> None:
    """Charges that are a ratio of the others of their line: of its product, or if there is none of all."""
    lines: dict[Line, int] = defaultdict(int)
    for (at, series, _), amount in found.gross.items():
        lines[at, series] += amount
    for (at, series), amount in lines.items():
        for item in (None, _said(series, "product")):
            for row in book.of("percentages", book=contract["price_book"], of="charge", item=item):
                if not holds(row, at):
                    continue
                part = floor(abs(amount) * Fraction(row["ratio"])) * (1 if amount > 0 else -1)
                found.gross[at, series, f"% {row['charge']}"] = part


def terms_of(book: Book, contract: Row) -> Row:
    """The terms in force with a contract, or those of one that says nothing."""
    for row in book.of("contract_terms", customer=contract["customer"]):
        if row["effective_from"] == contract["effective_from"]:
            return row
    return {"anchor_day": 1, "zone": "UTC", "period_months": 1, "minimum": None, "maximum": None}


def _count(
    found: Charges,
    counted: dict[datetime, dict[str, dict[tuple[Key, str], int]]],
    units: dict[datetime, int],
    rules: dict[str, Row],
    book: Book,
    contract: Row,
    terms: Row,
) -> None:
    """One counter through all its quarter hours: the position, and what each rule charges from there.

    `units` of the product's meters count whatever prices them, rule or unit price.
    """
    for at, by_rule in sorted(counted.items()):
        whole = units[at]
        for name, priced in by_rule.items():
            rule = rules[name]
            if rule["model"] == "unit" and not rule["free_units"]:  # wherever the counter is
                price = quanta(book.of("price_tiers", rule=name)[0]["unit_price"])
                for (series, meter), quantity in priced.items():
                    found.gross[at, series, meter] = quantity * price
                continue
            start = counter_of(at, rule["reset"], terms, contract)
            span = {
                each: quantity
                for each, quantity in units.items()
                if counter_of(each, rule["reset"], terms, contract) == start
            }
            before = sum(quantity for earlier, quantity in span.items() if earlier < at)
            total = sum(span.values())
            amount = _charged(rule, book, before, before + whole, total)
            own = sum(priced.values())
            share = floor(Fraction(amount * own, whole)) if whole else 0
            for (series, meter), part in _split(share, priced).items():
                found.gross[at, series, meter] = part


def _charged(rule: Row, book: Book, before: int, after: int, total: int) -> int:
    """What a rule charges, were all that is counted its own, from one position to another."""
    tiers = sorted(book.of("price_tiers", rule=rule["rule"]), key=lambda row: row["tier"])
    free: int = rule["free_units"]
    start, end = max(0, before - free), max(0, after - free)
    if rule["model"] == "volume":
        paid = max(0, total - free)
        tier = next((row for row in tiers if row["up_to"] is None or paid <= row["up_to"]), tiers[-1])
        flat = quanta(tier["flat_amount"])
        flats = floor(Fraction(flat * end, paid)) - floor(Fraction(flat * start, paid)) if paid else 0
        return (end - start) * quanta(tier["unit_price"]) + flats
    return _upto(rule["model"], tiers, end) - _upto(rule["model"], tiers, start)


def _upto(model: str, tiers: list[Row], paid: int) -> int:
    if model.startswith("package"):
        (tier,) = tiers
        size: int = tier["package_units"]
        packages = -(-paid // size) if model == "package_started" else paid // size
        return packages * quanta(tier["flat_amount"])
    amount = 0
    for tier in tiers:
        if paid > tier["from_units"]:
            within = min(paid, tier["up_to"]) if tier["up_to"] is not None else paid
            amount += (within - tier["from_units"]) * quanta(tier["unit_price"]) + quanta(tier["flat_amount"])
    return amount


def _order(key: Any) -> Any:
    """Lines by quarter hour and series, series by their dimensions; null comes first."""
    if isinstance(key, tuple):
        return tuple(_order(part) for part in key)
    return (key is not None, key)


def _split(total: int, weights: dict[Any, int], order: Callable[[Any], Any] = _order) -> dict[Any, int]:
    """Floors of total x weight / whole, then one more each to the largest remainders, ties in order."""
    whole = sum(weights.values())
    if whole == 0:
        return dict.fromkeys(weights, 0)
    exact = {key: Fraction(total * weight, whole) for key, weight in weights.items()}
    parts = {key: floor(share) for key, share in exact.items()}
    ranked = sorted(weights, key=lambda key: (parts[key] - exact[key], order(key)))
    for key in ranked[: total - sum(parts.values())]:
        parts[key] += 1
    return parts


# ---- discounts, minimum, maximum ------------------------------------------------------------------------


def _discounted(found: Charges, lines: dict[Line, int], book: Book, contract: Row) -> dict[Line, int]:
    """Less the discount of the item, then of the contract, line by line."""
    agreed = book.of("discounts", contract=contract["contract"])
    for name, kind in (("line_discount", "line"), ("contract_discount", "contract")):
        for (at, series), amount in list(lines.items()):
            for row in agreed:
                of_item = kind == "contract" or row["item"] == _said(series, "product")
                if row["kind"] == kind and of_item and holds(row, at):
                    off = floor(abs(amount) * Fraction(row["ratio"])) * (1 if amount > 0 else -1)
                    found.amounts[name][at, series] = off
                    lines[at, series] = amount - off
    return lines


def _by_period(
    found: Charges, lines: dict[Line, int], book: Book, contract: Row, until: datetime
) -> dict[Line, int]:
    """Less fixed discounts and what is above the maximum; and the top-up to the minimum, period by period."""
    terms = terms_of(book, contract)
    fixed = [row for row in book.of("discounts", contract=contract["contract"]) if row["kind"] == "fixed"]
    for span in periods(contract, terms, until):
        own = {line: amount for line, amount in lines.items() if span[0] <= line[0] < span[1]}
        off = sum(
            prorated(quanta(row["amount"]), span, _within(row, contract), until, terms["zone"])
            for row in fixed
        )
        off = min(off, max(0, sum(own.values())))
        own = _take(found, "fixed_discount", own, off)
        if terms["maximum"] is not None:
            most = prorated(quanta(terms["maximum"]), span, contract, until, terms["zone"])
            own = _take(found, "capped", own, max(0, sum(own.values()) - most))
        lines.update(own)
        if terms["minimum"] is not None:
            least = prorated(quanta(terms["minimum"]), span, contract, until, terms["zone"])
            lacking = max(0, least - sum(own.values()))
            above = {line: amount for line, amount in own.items() if amount > 0}
            if above:
                found.amounts["top_up"].update(_split(lacking, above))
            elif lacking:
                since = max(span[0], contract["effective_from"])
                to = min(span[1], until, contract["effective_until"] or until)
                each = quarters(since, to)
                for number, at in enumerate(each):
                    amount = lacking * (number + 1) // len(each) - lacking * number // len(each)
                    found.alone["top_up"][at] = amount
    return lines


def _within(row: Row, contract: Row) -> Row:
    """The span of a row of a contract within the contract's."""
    ends = [end for end in (row["effective_until"], contract["effective_until"]) if end is not None]
    return {
        "effective_from": max(row["effective_from"], contract["effective_from"]),
        "effective_until": min(ends, default=None),
    }


def _take(found: Charges, name: str, own: dict[Line, int], total: int) -> dict[Line, int]:
    if not total:
        return own
    parts = _split(total, {line: amount for line, amount in own.items() if amount > 0})
    found.amounts[name].update(parts)
    return {line: amount - parts.get(line, 0) for line, amount in own.items()}


def periods(contract: Row, terms: Row, until: datetime) -> Iterable[Span]:
    """The periods of a contract that have begun by a quarter hour."""
    at = contract["effective_from"]
    end = min(until, contract["effective_until"] or until)
    while at < end:
        span = period_of(at, terms, contract["effective_from"])
        yield span
        at = span[1]


# ---- commitments and credits ----------------------------------------------------------------------------


@dataclass
class _Purse:
    """What can still be drawn, in the order of its end, its start, its name."""

    order: tuple[Any, ...]
    span: Span
    items: list[str]
    most: int
    name: str
    row: Row
    seen: int = 0

    @property
    def left(self) -> int:
        return self.most - min(self.seen, self.most)


def _drawn(
    found: Charges,
    rows: dict[tuple[datetime, Key, str], int],
    book: Book,
    contract: Row,
    until: datetime,
) -> None:
    """Commitments in units, then in money, then promotional and prepaid credits, quarter hour by quarter hour."""
    net, top_up = found.amounts["net"], found.amounts["top_up"]
    far = datetime.max.replace(tzinfo=ZoneInfo("UTC"))

    def purses(frame: str, name: str, **wanted: Any) -> list[_Purse]:
        return [
            _Purse(
                (row["effective_until"] or far, row["effective_from"], row[name]),
                (row["effective_from"], row["effective_until"] or far),
                row["items"],
                quanta(row["amount"]) if row["amount"] is not None else row["units"],
                row[name],
                row,
            )
            for row in book.of(frame, contract=contract["contract"], **wanted)
        ]

    commitments = purses("commitments", "commitment")
    ends = {purse.name: max(p.span[1] for p in commitments if p.name == purse.name) for purse in commitments}
    rolled: list[_Purse] = []
    granted = {kind: purses("credit_grants", "credit", kind=kind) for kind in ("promotional", "prepaid")}
    edges = [
        *(at for at, _ in net),
        *found.alone["top_up"],
        *(purse.span[1] for purse in commitments),
        *ends.values(),
        *(purse.row["roll_over_until"] for purse in commitments if purse.row["roll_over_until"]),
        *(purse.span[1] for purse in granted["prepaid"]),
    ]
    for at in sorted({edge for edge in edges if edge <= until}):
        for purse in [*commitments, *rolled]:
            if purse.span[1] == at:
                _settle(found, purse, rolled, ends, at)
        for purse in granted["prepaid"]:
            if purse.span[1] == at:
                _add(found.alone["breakage"], at - QUARTER, purse.left)
        if at == until:
            break
        lines = {line: amount for line, amount in net.items() if line[0] == at}
        paid = _committed(found, lines, rows, book, [*commitments, *rolled])
        owed = {line: amount + top_up.get(line, 0) - paid.get(line, 0) for line, amount in lines.items()}
        for line, amount in paid.items():
            _add(found.amounts["drawdown"], line, amount)
        alone = found.alone["top_up"].get(at, 0)
        for kind, name in (("promotional", "promotional_credit"), ("prepaid", "prepaid_credit")):
            for purse in sorted(granted[kind], key=lambda purse: purse.order):
                if purse.span[0] <= at < purse.span[1]:
                    if not purse.items:
                        before = min(purse.seen, purse.most)
                        purse.seen += alone
                        amount = min(purse.seen, purse.most) - before
                        alone -= amount
                        _add(found.alone[name], at, amount)
                    for line, amount in _draw(purse, owed).items():
                        _add(found.amounts[name], line, amount)


def _committed(
    found: Charges,
    lines: dict[Line, int],
    rows: dict[tuple[datetime, Key, str], int],
    book: Book,
    purses: list[_Purse],
) -> dict[Line, int]:
    """What of the lines of one quarter hour was paid ahead, and what their overage costs above their net."""
    paid: dict[Line, int] = {}
    repriced: dict[Line, int] = {}
    measures = sorted({purse.row["meters"] for purse in purses if purse.row["amount"] is None})
    for meters in measures:
        counts, shares = {}, {}
        for line, amount in lines.items():
            named = [meter for meter in meters.split(",") if (*line, meter) in found.gross]
            if named:
                counts[line] = sum(rows[*line, meter] for meter in named)
                own = sum(found.gross[*line, meter] for meter in named)
                shares[line] = _part(amount, own, found.amounts["gross"][line])
        left = dict(counts)
        ahead = _in_turn(purses, left, lambda row, own=meters: row["meters"] == own and row["amount"] is None)
        for line, units in ahead.items():
            _add(paid, line, _part(shares[line], units, counts[line]))
        for line, units in left.items():
            name = _overage_book(purses, line, lambda row, own=meters: row["meters"] == own)
            there = _at(book, name, line, rows, meters.split(",")) if name and units else None
            if there is not None:
                own = _part(shares[line], units, counts[line])
                _add(found.amounts["overage_premium"], line, _part(there, units, counts[line]) - own)
                _add(repriced, line, abs(own))
    left = {line: amount - paid.get(line, 0) for line, amount in lines.items()}
    for line, amount in _in_turn(purses, left, lambda row: row["amount"] is not None).items():
        _add(paid, line, amount)
    for line, all_over in left.items():
        # what its overage in units costs was said before
        amount = max(0, abs(all_over) - repriced.get(line, 0)) * (1 if all_over > 0 else -1)
        name = _overage_book(purses, line, lambda row: row["amount"] is not None)
        there = _at(book, name, line, rows, None) if name and amount else None
        if there is not None:
            own = _part(lines[line], amount, lines[line])
            _add(found.amounts["overage_premium"], line, _part(there, amount, lines[line]) - own)
    return paid


def _in_turn(purses: list[_Purse], left: dict[Line, int], wanted: Callable[[Row], bool]) -> dict[Line, int]:
    """Draw the purses in force one after the other from what is left; what those that were paid ahead took."""
    ahead: dict[Line, int] = {}
    for purse in sorted(purses, key=lambda purse: purse.order):
        at = next(iter(left), (None,))[0]
        if wanted(purse.row) and at is not None and purse.span[0] <= at < purse.span[1]:
            for line, amount in _draw(purse, left).items():
                if purse.row["paid"] == "ahead":
                    _add(ahead, line, amount)
    return ahead


def _overage_book(purses: list[_Purse], line: Line, wanted: Callable[[Row], bool]) -> str | None:
    """The overage book of the tranche in force that ends last, of those that the product draws."""
    held = [
        purse
        for purse in purses
        if wanted(purse.row)
        and purse.span[0] <= line[0] < purse.span[1]
        and purse.row["effective_from"] == purse.span[0]
        and (not purse.items or _said(line[1], "product") in purse.items)
    ]
    return max(held, key=lambda purse: purse.order).row["overage_book"] if held else None


def _at(
    book: Book,
    name: str,
    line: Line,
    rows: dict[tuple[datetime, Key, str], int],
    meters: list[str] | None,
) -> int | None:
    """What a line costs at the unit prices of a book; None where one is missing."""
    at, series = line
    total = 0
    for meter in meters or ("requests", *METERS):
        quantity = rows.get((at, series, meter), 0)
        if not quantity or (meter == "requests" and meters is None):
            continue
        price = book.price(
            "price_books",
            at,
            book=name,
            item=_said(series, "product"),
            tier=_said(series, "tier_sold"),
            region=_said(series, "region"),
            context_breakpoint=_said(series, "context_breakpoint"),
            meter=meter,
        )
        if price is None:
            return None
        total += quantity * quanta(price["unit_price"])
    return total


def _part(amount: int, some: int, whole: int) -> int:
    """The part of an amount that some of a whole has, rounded toward 0."""
    if whole == 0:
        return 0
    part = abs(amount) * min(abs(some), abs(whole)) // abs(whole)
    return part if amount > 0 else -part


def _add(into: dict[Any, int], key: Any, amount: int) -> None:
    if amount:
        into[key] = into.get(key, 0) + amount


def _draw(purse: _Purse, lines: dict[Line, int]) -> dict[Line, int]:
    """What the purse pays of the lines, product by product: drawn so far = min(eligible so far, committed)."""
    took = {}
    for line in sorted(lines, key=lambda line: (_said(line[1], "product"), _order(line[1]))):
        if not purse.items or _said(line[1], "product") in purse.items:
            before = min(purse.seen, purse.most)
            purse.seen += lines[line]
            took[line] = min(purse.seen, purse.most) - before
            lines[line] -= took[line]
    return took


def _settle(
    found: Charges, purse: _Purse, rolled: list[_Purse], ends: dict[str, datetime], at: datetime
) -> None:
    """At its end what is unmet rolls over as far as it may; the rest is shortfall, due at its ratio."""
    row = purse.row
    expires = row["roll_over_until"] or ends[purse.name]
    unmet = purse.left
    on = 0
    if row["shortfall_rule"] == "roll_over" and purse not in rolled and expires > at:
        most = unmet
        if row["roll_over_cap_ratio"] is not None:
            most = floor(purse.most * Fraction(row["roll_over_cap_ratio"]))
        on = min(unmet, most)
        if on:
            rolled.append(_Purse((expires, at, purse.name), (at, expires), purse.items, on, purse.name, row))
    due = floor((unmet - on) * Fraction(row["shortfall_ratio"]))
    if row["amount"] is None:
        return  # units have no amount
    if row["paid"] == "ahead":  # it was paid and is not given back
        _add(found.alone["breakage"], at - QUARTER, due)
    elif row["shortfall_rule"] != "forfeit":
        _add(found.alone["shortfall"], at - QUARTER, due)
