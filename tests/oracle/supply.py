"""The supply side again, in Python integers and Fractions: burn, capacity, recognised cost and who carries it.

Everything comes in as lists of dicts (`frame.to_dicts()`) and goes out as dicts by key, so that a difference
to the core names the row. Nothing is shared but words: column names, reasons and the meters' order. One minute
at a time, one quarter hour at a time, no shortcut that has to be believed.
"""

from calendar import monthrange
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from decimal import Context, Decimal
from fractions import Fraction
from functools import partial
from typing import Any

Row = dict[str, Any]
Key = tuple[Any, ...]
Spans = dict[str, tuple[Fraction, Fraction]]

_TEXT = (
    *("uncached_input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens"),
    *("output_tokens", "reasoning_tokens"),
)
_AUDIO_AND_IMAGES = (
    *("audio_input_tokens", "audio_output_tokens", "image_input_tokens", "image_output_tokens"),
)
TOKENS = (*_TEXT, *_AUDIO_AND_IMAGES)
METERS = (*_TEXT, "accelerator_ms", *_AUDIO_AND_IMAGES, "tool_calls")
SERIES = (
    *("customer", "product", "tier_sold", "provider", "model_served", "tier_served", "region", "pool"),
    *("ran_on", "counts_for", "context_breakpoint"),
)
#: The parts of what is contracted, in the order in which ties are broken.
PARTS = ("undelivered", "carved_out", "served", "idle")
EXACT = Context(prec=200)
MINUTE = timedelta(minutes=1)
QUARTER = timedelta(minutes=15)


class Book:
    """The frames of Books as lists of dicts, and lookups that scan them."""

    def __init__(self, **frames: list[Row]) -> None:
        self.frames = frames
        self._by: dict[Key, list[Row]] = {}

    def __getitem__(self, frame: str) -> list[Row]:
        return self.frames.get(frame, [])

    def in_force(self, frame: str, at: datetime, **wanted: Any) -> Row | None:
        return next((row for row in self.of(frame, **wanted) if holds(row, at)), None)

    def price(self, frame: str, at: datetime, **wanted: Any) -> Row | None:
        region = wanted.pop("region")
        own = self.in_force(frame, at, **wanted, region=region)
        return own or self.in_force(frame, at, **wanted, region="*")

    def pool(self, pool: str) -> Row:
        return next(row for row in self["pools"] if row["pool"] == pool)

    def of(self, frame: str, **wanted: Any) -> list[Row]:
        asked = (frame, *wanted.items())
        if asked not in self._by:
            self._by[asked] = [
                row for row in self[frame] if all(row[name] == value for name, value in wanted.items())
            ]
        return list(self._by[asked])


def holds(row: Row, at: datetime) -> bool:
    """Whether a dated row is in force: from its start on, no longer at its end."""
    end = row["effective_until"]
    return bool(row["effective_from"] <= at and (end is None or at < end))


def quanta(amount: Decimal) -> int:
    whole = EXACT.multiply(amount, Decimal(10) ** 12)
    assert whole == int(whole), amount
    return int(whole)


def quarters(start: datetime, until: datetime) -> list[datetime]:
    return [start + QUARTER * i for i in range(max(0, int((until - start) / QUARTER)))]


def month_of(at: datetime) -> datetime:
    return at.replace(day=1, hour=0, minute=0)


def month_after(at: datetime) -> datetime:
    month = month_of(at)
    return month + timedelta(days=monthrange(month.year, month.month)[1])


def minutes_between(start: datetime, until: datetime) -> int:
    return max(0, int((until - start) / MINUTE))


def split(
    total: int, weights: dict[Any, int], order: Callable[[Any], Any] = lambda key: key
) -> dict[Any, int]:
    """`total` by weight: floors, then one more each to the largest remainders, ties in the order given.

    A negative total is split as its opposite, and negated. Weights sum to more than 0.
    """
    if total < 0:
        return {key: -part for key, part in split(-total, weights, order).items()}
    whole = sum(weights.values())
    parts = {key: Fraction(total) * weight / whole for key, weight in weights.items()}
    floors = {key: int(part) for key, part in parts.items()}
    ranked = sorted(weights, key=lambda key: (floors[key] - parts[key], order(key)))
    for key in ranked[: total - sum(floors.values())]:
        floors[key] += 1
    return floors


# ---- burn and capacity --------------------------------------------------------------------------------


def denominator(books: Book, pool: str, dimension: str) -> int:
    """Burndown denominator x the denominators of each `by` that has multipliers."""
    found = [row["denominator"] for row in books.of("burndown", pool=pool, dimension=dimension)][:1] or [1]
    for by in ("region", "tier"):
        found += [
            row["denominator"] for row in books.of("multipliers", pool=pool, dimension=dimension, by=by)
        ][:1]
    product: int = 1
    for one in found:
        product *= one
    return product


def carve_outs(books: Book) -> set[str]:
    return {row["name"] for row in books.of("set_aside", kind="carve_out")}


def steps_at(books: Book, pool: str, at: datetime) -> list[Row]:
    return [row for row in books.of("capacity_steps", pool=pool) if holds(row, at)]


def burn_of(row: Row, at: datetime, books: Book) -> tuple[dict[str, int], list[str], bool]:
    """Burn by dimension, the meters that nothing weighs, and whether the pool has capacity at all.

    What ran on a carve-out burns nothing of the pool, and nothing of it is missing.
    """
    if row["pool"] in carve_outs(books):
        return {}, [], True
    used = [meter for meter in METERS if row[meter]]
    steps = steps_at(books, row["pool"], at)
    if not steps:
        return {}, used, False
    weights: dict[str, dict[str, int]] = {}
    for step in steps:
        named = {"pool": row["pool"], "dimension": step["dimension"]}
        table = [
            weight
            for weight in books.of(
                "burndown", **named, model=row["model_served"], context_breakpoint=row["context_breakpoint"]
            )
            if holds(weight, at)
        ]
        weights[step["dimension"]] = {weight["meter"]: weight["weight"] for weight in table}
    said = {meter for table in weights.values() for meter in table}
    missing = [
        meter for meter in used if not said or (meter in TOKENS and meter not in said and said & set(TOKENS))
    ]
    burn: dict[str, int] = {}
    for dimension, table in weights.items():
        numerator = sum(row[meter] * weight for meter, weight in table.items())
        for by, value in (("region", row["region"]), ("tier", row["tier_served"])):
            stacked = books.of("multipliers", pool=row["pool"], dimension=dimension, by=by)
            own = [m for m in stacked if m["value"] == value and holds(m, at)]
            if stacked:
                numerator *= own[0]["numerator"] if own else stacked[0]["denominator"]
        burn[dimension] = numerator
    return burn, missing, True


def utilization(pool_usage: list[Row], books: Book, start: datetime, until: datetime) -> dict[Key, Row]:
    """(pool, dimension, minute) -> numerators, for every contracted minute."""
    minutes: dict[Key, Row] = {}
    for step in books["capacity_steps"]:
        named = {"pool": step["pool"], "dimension": step["dimension"]}
        whole = denominator(books, **named)
        a_unit = step["unit_burn_per_minute"] * whole
        aside = books.of("set_aside", **named)
        at = max(start, step["effective_from"])
        while at < until and (step["effective_until"] is None or at < step["effective_until"]):
            out = {"carve_out": 0, "undelivered": 0}
            for row in aside:
                if holds(row, at):
                    out[row["kind"]] += row["units"] * a_unit
            minutes[step["pool"], step["dimension"], at] = {
                "denominator": whole,
                "contracted": step["units"] * a_unit,
                "undelivered": out["undelivered"],
                "carved_out": out["carve_out"],
                "burn": 0,
                "spill": 0,
            }
            at += MINUTE
    for row in pool_usage:
        if start <= row["minute"] < until and row["ran_on"] in ("pool", "overflow"):
            burn, _, _ = burn_of(row, row["minute"], books)
            side = "burn" if row["ran_on"] == "pool" else "spill"
            for dimension, amount in burn.items():
                minutes[row["pool"], dimension, row["minute"]][side] += amount
    for minute in minutes.values():
        minute["available"] = minute["contracted"] - minute["undelivered"] - minute["carved_out"]
        minute["served"] = min(minute["burn"], minute["available"])
        minute["idle"] = minute["available"] - minute["served"]
        minute["overrun"] = minute["burn"] - minute["served"]
    return minutes


def summary(used: dict[Key, Row], pool: str, dimension: str) -> Row:
    """Ratios and counts of one pool and dimension over its minutes; ratios as Fractions."""
    mine = {key[2]: row for key, row in used.items() if key[:2] == (pool, dimension)}
    ratios = sorted(
        micro(Fraction(row["burn"], row["available"])) for row in mine.values() if row["available"]
    )

    def rank(percent: int) -> int | None:
        return ratios[-(-percent * len(ratios) // 100) - 1] if ratios else None

    def full(rows: Iterable[Row]) -> bool:
        burn, available = (sum(row[name] for row in rows) for name in ("burn", "available"))
        return burn >= available and (burn, available) != (0, 0)

    limited = {
        length: sum(len(window) for window in _windows(mine, length) if full([mine[at] for at in window]))
        for length in (1, 5, 15)
    }
    longest = run = 0
    for at in sorted(mine):
        run = (run if at - MINUTE in mine else 0) + 1 if full([mine[at]]) else 0
        longest = max(longest, run)
    sums = {name: sum(row[name] for row in mine.values()) for name in (*PARTS, "contracted", "available")}
    return {
        "minutes": len(mine),
        "mean_ratio": half_even(Fraction(sum(ratios), len(ratios))) if ratios else None,
        **{f"p{percent}_ratio": rank(percent) for percent in (50, 95, 99)},
        "max_ratio": max(ratios, default=None),
        "served_of_contracted_ratio": _micro_of(sums["served"], sums["contracted"]),
        "served_of_available_ratio": _micro_of(sums["served"], sums["available"]),
        "minutes_at_limit": limited[1],
        "minutes_at_limit_5m": limited[5],
        "minutes_at_limit_15m": limited[15],
        "longest_run_at_limit_minutes": longest,
        "pool_minutes_at_limit": len({at for (p, _, at), row in used.items() if p == pool and full([row])}),
    }


def _windows(minutes: Iterable[datetime], length: int) -> list[list[datetime]]:
    found: dict[datetime, list[datetime]] = defaultdict(list)
    for at in minutes:
        found[at.replace(minute=at.minute // length * length)].append(at)
    return list(found.values())


def half_even(number: Fraction) -> int:
    return round(number)  # Python rounds a Fraction half to even


def micro(ratio: Fraction) -> int:
    """A ratio with 6 places, as a count of millionths."""
    return half_even(ratio * 10**6)


def _micro_of(part: int, whole: int) -> int | None:
    return micro(Fraction(part, whole)) if whole else None


# ---- recognised cost ----------------------------------------------------------------------------------


def shares(books: Book, pool: str) -> dict[str, tuple[Fraction, Fraction]]:
    """Each dimension's part of a fee, as the span between its cumulated shares: (lower, upper)."""
    given = {step["dimension"]: step["fee_share_ratio"] for step in books.of("capacity_steps", pool=pool)}
    spans, lower = {}, Fraction(0)
    for dimension in sorted(given):
        upper = lower + Fraction(given[dimension])
        spans[dimension] = (lower, upper)
        lower = upper
    return spans


def part_of(amount: int, span: tuple[Fraction, Fraction]) -> int:
    return floor(amount * span[1]) - floor(amount * span[0])


def floor(number: Fraction | int) -> int:
    return int(Fraction(number) // 1)


def unit_minutes(books: Book, pool: str, dimension: str, start: datetime, until: datetime) -> int:
    """Units in force x minutes within [start, until)."""
    total = 0
    for step in books.of("capacity_steps", pool=pool, dimension=dimension):
        end = until if step["effective_until"] is None else min(until, step["effective_until"])
        total += step["units"] * minutes_between(max(start, step["effective_from"]), end)
    return total


def months(start: datetime, until: datetime) -> list[tuple[datetime, datetime]]:
    """[start, until) cut at the edges of calendar months."""
    spans = []
    while start < until:
        end = min(until, month_after(start))
        spans.append((start, end))
        start = end
    return spans


def billed(fee: Row, until: datetime) -> int:
    """What a month or span fee bills from its start until `until`, in quanta, by time (as billed)."""
    amount, start, end = quanta(fee["amount"]), fee["effective_from"], fee["effective_until"]
    until = until if end is None else min(until, end)
    if fee["per"] == "span":
        first = min(end, month_after(start))
        return amount * minutes_between(start, min(until, first)) // minutes_between(start, first)
    total = 0
    for since, to in months(start, until):
        month = month_of(since)
        length = minutes_between(month, month_after(month))
        total += amount * minutes_between(month, to) // length
        total -= amount * minutes_between(month, since) // length
    return total


def metered(fee: Row, amount: int, dimension: str, books: Book, until: datetime) -> int:
    """What a fee per unit and hour, day or month has come to from its start until `until`, in quanta."""
    end = fee["effective_until"]
    until = until if end is None else min(until, end)
    total = Fraction(0)
    for since, to in months(fee["effective_from"], until):
        length = {"unit_hour": 60, "unit_day": 1440}.get(fee["per"])
        length = length or minutes_between(month_of(since), month_after(since))
        total += Fraction(amount * unit_minutes(books, fee["pool"], dimension, since, to), length)
    return floor(total)


def accruals(fee: Row, books: Book, schedule: str) -> list[tuple[Spans, Callable[[datetime], int]]]:
    """What a fee has come to from its start until an instant, in quanta, and over which dimensions it goes."""
    start, end, pool = fee["effective_from"], fee["effective_until"], fee["pool"]
    spans = shares(books, pool)
    if fee["dimension"] is not None:
        spans = {fee["dimension"]: (Fraction(0), Fraction(1))}
    if fee["per"].startswith("unit_"):
        return [
            (_alone(d), partial(metered, fee, part_of(quanta(fee["amount"]), span), d, books))
            for d, span in spans.items()
        ]
    if end is None or schedule == "as_billed":
        return [(spans, partial(billed, fee))]
    total, term = billed(fee, end), minutes_between(start, end)

    def by_time(amount: int, at: datetime) -> int:
        return amount * minutes_between(start, at) // term

    if schedule == "straight_line_days":
        return [(spans, partial(by_time, total))]
    assert schedule == "capacity_hours", schedule
    found: list[tuple[Spans, Callable[[datetime], int]]] = []
    for d, span in spans.items():
        own, units = part_of(total, span), unit_minutes(books, pool, d, start, end)

        def by_units(at: datetime, d: str = d, own: int = own, units: int = units) -> int:
            return own * unit_minutes(books, pool, d, start, at) // units

        found.append((_alone(d), by_units if units else partial(by_time, own)))
    return found


def _alone(dimension: str) -> Spans:
    return {dimension: (Fraction(0), Fraction(1))}


def due(fees: list[Row], spans: list[datetime], books: Book) -> int:
    """What the contract bills in these quarter hours: a fee for a span wholly in its first one."""
    total = 0
    for fee in fees:
        if fee["per"] == "span":
            total += quanta(fee["amount"]) if fee["effective_from"] in spans else 0
            continue
        for _, came_to in accruals(fee, books, "as_billed"):
            for at in spans:
                if holds(fee, at):
                    total += came_to(at + QUARTER) - came_to(at)
    return total


def recognised(books: Book, start: datetime, until: datetime) -> dict[Key, tuple[int, bool]]:
    """(pool, dimension, quarter hour, currency) -> (quanta, estimated)."""
    cost: dict[Key, int] = defaultdict(int)
    closed: dict[Key, bool] = {}
    for pool_row in books["pools"]:
        pool, schedule = pool_row["pool"], pool_row["recognition"]
        fees = books.of("capacity_fees", pool=pool)
        for fee in fees:
            for spans, came_to in accruals(fee, books, schedule):
                for at in quarters(start, until):
                    if holds(fee, at):
                        whole = came_to(at + QUARTER) - came_to(at)
                        for dimension, span in spans.items():
                            cost[pool, dimension, at, fee["currency"]] += part_of(whole, span)
        lines = books.of("bill_lines", object_kind="pool", object=pool)
        lines.sort(
            key=lambda row: tuple(row[name] for name in ("service_from", "supplier", "document", "line"))
        )
        for currency in {line["currency"] for line in lines}:
            covered: set[datetime] = set()
            for line in lines:
                if line["currency"] != currency:
                    continue
                since, to = line["service_from"], line["service_until"]
                amount = quanta(line["amount"])
                if line["category"] == "charge":
                    new = [at for at in quarters(since, to) if at not in covered]
                    amount -= due([fee for fee in fees if fee["currency"] == currency], new, books)
                    covered.update(new)
                length = minutes_between(since, to)
                for at in quarters(max(since, start), min(to, until)):
                    before = amount * minutes_between(since, at) // length
                    after = amount * minutes_between(since, at + QUARTER) // length
                    for dimension, span in shares(books, pool).items():
                        cost[pool, dimension, at, currency] += part_of(after - before, span)
            for at in covered:
                closed[pool, at, currency] = True
    return {key: (amount, (key[0], key[2], key[3]) not in closed) for key, amount in cost.items()}


# ---- who carries it -----------------------------------------------------------------------------------


def by_part(cost: int, minutes: list[Row]) -> dict[str, int]:
    """The cost of a quarter hour over undelivered, carved out, served and idle."""
    sums = {name: sum(row[name] for row in minutes) for name in PARTS}
    if not sum(sums.values()):
        return {**dict.fromkeys(PARTS, 0), "idle": cost}
    return split(cost, sums, PARTS.index)


def entitlement(books: Book, customer: str, pool: str, dimension: str, at: datetime) -> int:
    """Burn a minute promised to a customer, in numerators."""
    step = next((s for s in steps_at(books, pool, at) if s["dimension"] == dimension), None)
    if step is None:
        return 0
    a_unit = step["unit_burn_per_minute"] * denominator(books, pool, dimension)
    rows = books.of("entitlements", customer=customer, pool=pool, dimension=dimension)
    return sum(floor(Fraction(row["units"]) * a_unit) for row in rows if holds(row, at))


def customers_burn(usage: list[Row], books: Book, ran_on: str) -> dict[Key, int]:
    """(pool, dimension, minute, customer) -> numerators, from usage by customer."""
    found: dict[Key, int] = defaultdict(int)
    for row in usage:
        if row["ran_on"] == ran_on:
            for dimension, amount in burn_of(row, row["minute"], books)[0].items():
                found[row["pool"], dimension, row["minute"], row["customer"]] += amount
    return found


def customer_shares(usage: list[Row], used: dict[Key, Row], books: Book) -> dict[Key, Row]:
    """(pool, dimension, customer) -> burn, spill, its part of the highest minute, and of what it was promised."""
    burned, spilt = (customers_burn(usage, books, ran_on) for ran_on in ("pool", "overflow"))
    found: dict[Key, Row] = {}
    for pool, dimension in sorted({key[:2] for key in used}):
        minutes = {key[2]: row for key, row in used.items() if key[:2] == (pool, dimension)}
        promised = books.of("entitlements", pool=pool, dimension=dimension)
        mine = (pool, dimension)
        names = {key[3] for key in (*burned, *spilt) if key[:2] == mine} | {e["customer"] for e in promised}
        peak = max(sorted(minutes), key=lambda at, rows=minutes: rows[at]["burn"] + rows[at]["spill"])
        whole = minutes[peak]["burn"] + minutes[peak]["spill"]
        for customer in names:
            own = {at: [side.get((*mine, at, customer), 0) for side in (burned, spilt)] for at in minutes}
            entitled = {at: entitlement(books, customer, *mine, at) for at in minutes}
            highest = max(sorted(own), key=lambda at, rows=own: sum(rows[at]))
            row = {
                "burn": sum(burn for burn, _ in own.values()),
                "spill": sum(spill for _, spill in own.values()),
                "peak_demand": sum(own[peak]) if whole else 0,
                "peak_ratio": _micro_of(sum(own[peak]), whole),
                "own_peak_minute": highest if sum(own[highest]) else None,
                "own_peak_demand": sum(own[highest]),
                "entitlement": sum(entitled.values()),
                "entitlement_used": sum(min(entitled[at], own[at][0]) for at in minutes),
            }
            if any(row[name] for name in ("burn", "spill", "entitlement")):
                found[pool, dimension, customer] = row
    return found


def held_by(
    cost: int, minutes: dict[datetime, Row], entitled: dict[datetime, dict[str, int]], burned: dict[Key, int]
) -> dict[str, int]:
    """Idle cost of one quarter hour carried by those whose entitlement stood idle: customer -> quanta.

    minutes: the quarter hour's. entitled: minute -> customer -> numerator. burned: (minute, customer).
    """
    held = 0
    weights: dict[str, int] = defaultdict(int)
    for at, minute in minutes.items():
        unused = {c: max(0, promised - burned.get((at, c), 0)) for c, promised in entitled[at].items()}
        total = sum(unused.values())
        if total:
            here = min(minute["idle"], total)
            held += here
            for customer, own in unused.items():
                weights[customer] += here * 2**40 // total * own
    idle = sum(minute["idle"] for minute in minutes.values())
    if not held or not sum(weights.values()):
        return {}
    carried = abs(cost) * held // idle
    return split(carried if cost >= 0 else -carried, dict(weights))


def shift(
    worth: dict[str, Fraction],
    entitled: dict[Key, int],
    burned: dict[Key, int],
    spilt: dict[Key, int],
    overflow: dict[str, int | None],
) -> dict[str, int]:
    """The spill premium of one minute, to those who took more than was theirs: customer -> quanta.

    worth: dimension -> cost of one numerator. entitled, burned, spilt: (dimension, customer) -> numerator.
    overflow: customer -> quanta, None where a part has no price. Sums to 0.
    """

    def value(dimension: str, burn: int) -> int:
        return floor(worth[dimension] * burn)

    customers = {c for _, c in (*entitled, *burned, *spilt)} | set(overflow)
    excess = {
        c: sum(
            value(d, max(0, burned.get((d, c), 0) + spilt.get((d, c), 0) - entitled.get((d, c), 0)))
            for d in worth
        )
        for c in customers
    }
    premium = {
        c: amount - sum(value(d, spilt.get((d, c), 0)) for d in worth)
        for c, amount in overflow.items()
        if amount is not None
    }
    if not sum(excess.values()) or not premium:
        return {}
    gained = split(sum(premium.values()), excess)
    return {c: gained[c] - premium.get(c, 0) for c in customers}


def price_of(row: Row, at: datetime, book: str | None, books: Book) -> tuple[dict[str, int], bool]:
    """What usage costs by a cost book, currency -> quanta, and whether each of its meters has a price."""
    amounts: dict[str, int] = defaultdict(int)
    complete = True
    for meter in METERS:
        if not row[meter]:
            continue
        found = book and books.price(
            "cost_books",
            at,
            book=book,
            item=row["model_served"],
            tier=row["tier_served"],
            region=row["region"],
            context_breakpoint=row["context_breakpoint"],
            meter=meter,
        )
        if found:
            amounts[found["currency"]] += quanta(EXACT.multiply(Decimal(row[meter]), found["unit_price"]))
        elif not (book and measured_in_tokens(books, book, row, meter)):
            complete = False
    return dict(amounts), complete


def measured_in_tokens(books: Book, book: str, row: Row, meter: str) -> bool:
    """Time on the accelerator needs no price where the book prices the model by tokens."""
    same = books.of("cost_books", book=book, item=row["model_served"], tier=row["tier_served"])
    return meter == "accelerator_ms" and bool(same) and all(price["meter"] != meter for price in same)


def cost_book(row: Row, books: Book) -> str | None:
    found = books.of("models", provider=row["provider"], model=row["model_served"])
    return found[0]["cost_book"] if found else None


#: on_demand_price is None where a part has no price.
AMOUNTS = ("cost_pool", "cost_on_demand", "idle_share", "cause_shift", "on_demand_price")
COSTS_KEY = (
    *("day", "line", "supplier", "currency", "customer", "kind", "segment", "product", "tier_sold"),
    *("provider", "model_served", "pool", "ran_on"),
)


def series_order(row: Row) -> Key:
    """Series in the order of their columns, what is absent first."""
    return tuple(
        (row[name] is not None, row[name] or ("" if name != "context_breakpoint" else 0)) for name in SERIES
    )


def costs(
    usage: list[Row],
    pool_usage: list[Row],
    customer_usage: list[Row],
    books: Book,
    start: datetime,
    until: datetime,
    complete_until: datetime | None = None,
) -> dict[Key, Row]:
    """Where every unit of recognised and rated cost of [start, until) went: COSTS_KEY -> AMOUNTS in quanta.

    usage of the whole months up to `complete_until` (by default the end of the period): idle by `burn` is
    that of the month. Rows of which every amount is 0 are not there.
    """
    complete_until = complete_until or until
    first = month_of(start)
    complete_until = complete_until.replace(minute=complete_until.minute // 15 * 15)
    last = min(complete_until, month_after(until - QUARTER))
    used = utilization(pool_usage, books, first, last)
    paid = recognised(books, first, last)
    found: dict[Key, Row] = defaultdict(lambda: dict.fromkeys(AMOUNTS, 0))

    def who(customer: str | None, at: datetime) -> tuple[str | None, str | None]:
        if customer is None:
            return None, None
        known = books.in_force("customers", at, customer=customer)
        return (known["kind"], known["segment"]) if known else ("unknown", "unknown")

    def add(
        column: str, amount: int | None, at: datetime, line: str, supplier: str, currency: str, row: Row
    ) -> None:
        if start <= at < until and amount != 0:
            names = ("product", "tier_sold", "provider", "model_served", "pool", "ran_on")
            customer = row.get("customer")
            key = (at.date(), line, supplier, currency, customer, *who(customer, at))
            cells = found[*key, *(row.get(name) for name in names)]
            cells[column] = None if amount is None or cells[column] is None else cells[column] + amount

    # every series of a quarter hour once
    merged: dict[Key, Row] = {}
    for row in usage:
        at = row["quarter_start"]
        if first <= at < last and row["counts_for"] != "charge":
            into = merged.setdefault((at, series_order(row)), {**row, **dict.fromkeys(METERS, 0)})
            for name in METERS:
                into[name] += row[name]
    burns: dict[Key, dict[Key, int]] = defaultdict(dict)
    for (at, order), row in merged.items():
        if row["ran_on"] == "pool":
            for dimension, amount in burn_of(row, at, books)[0].items():
                if amount:
                    burns[row["pool"], dimension, at][order] = amount
            for terms in books.of("pools", pool=row["pool"]):
                book = terms["on_demand_book"] or cost_book(row, books)
                prices, complete = price_of(row, at, book, books)
                for currency, amount in prices.items():
                    add("on_demand_price", amount, at, "usage", terms["supplier"], currency, row)
                if not complete:
                    add("on_demand_price", None, at, "usage", terms["supplier"], terms["currency"], row)
        else:
            for currency, amount in price_of(row, at, cost_book(row, books), books)[0].items():
                for column in ("cost_on_demand", "on_demand_price"):
                    add(column, amount, at, "usage", row["provider"], currency, row)

    burned, spilt = (customers_burn(customer_usage, books, ran_on) for ran_on in ("pool", "overflow"))
    idle_of_month: dict[Key, int] = defaultdict(int)
    for (pool, dimension, at, currency), (cost, _) in sorted(paid.items()):
        terms = books.pool(pool)
        supplier = terms["supplier"]
        minutes = {
            at + MINUTE * i: used[pool, dimension, at + MINUTE * i]
            for i in range(15)
            if (pool, dimension, at + MINUTE * i) in used
        }
        parts = by_part(cost, list(minutes.values()))
        for name in ("undelivered", "carved_out", "idle"):
            add("cost_pool", parts[name], at, name, supplier, currency, {"pool": pool})
        own = burns[pool, dimension, at]
        if parts["served"]:
            for order, amount in split(parts["served"], own).items():
                add("cost_pool", amount, at, "usage", supplier, currency, merged[at, order])
        if terms["idle_policy"] == "burn":
            idle_of_month[pool, dimension, currency, month_of(at)] += parts["idle"]
        if terms["idle_policy"] == "entitlement":
            holders = {e["customer"] for e in books.of("entitlements", pool=pool, dimension=dimension)}
            promised = {m: {c: entitlement(books, c, pool, dimension, m) for c in holders} for m in minutes}
            mine = {(m, c): burned.get((pool, dimension, m, c), 0) for m in minutes for c in holders}
            for customer, amount in held_by(parts["idle"], minutes, promised, mine).items():
                whose = {"customer": customer, "pool": pool}
                add("idle_share", amount, at, "idle", supplier, currency, whose)
                add("idle_share", -amount, at, "idle", supplier, currency, {"pool": pool})

    for (pool, dimension, currency, month), idle in idle_of_month.items():
        weights = {
            (at, order): amount
            for (p, d, at), own in burns.items()
            if (p, d, month_of(at)) == (pool, dimension, month)
            for order, amount in own.items()
        }
        if weights and idle:
            supplier = books.pool(pool)["supplier"]
            for (at, order), amount in split(idle, weights).items():
                add("idle_share", amount, at, "usage", supplier, currency, merged[at, order])
                add("idle_share", -amount, at, "idle", supplier, currency, {"pool": pool})

    for pool in sorted({row["pool"] for row in books["entitlements"]}):
        terms = books.pool(pool)
        overflow: dict[Key, int | None] = {}
        for row in customer_usage:
            if row["pool"] == pool and row["ran_on"] == "overflow":
                key = row["minute"], row["customer"]
                amounts, complete = price_of(row, row["minute"], cost_book(row, books), books)
                before = overflow.get(key, 0)
                if not complete or before is None or set(amounts) - {terms["currency"]}:
                    overflow[key] = None
                else:
                    overflow[key] = before + amounts.get(terms["currency"], 0)
        for m in sorted({minute for minute, _ in overflow}):
            at = m.replace(minute=m.minute // 15 * 15)
            worth = {}
            for dimension in shares(books, pool):
                cost, _ = paid.get((pool, dimension, at, terms["currency"]), (0, False))
                whole = sum(
                    used.get((pool, dimension, at + MINUTE * i), {"contracted": 0})["contracted"]
                    for i in range(15)
                )
                worth[dimension] = Fraction(cost, whole) if whole and cost > 0 else Fraction(0)
            holders = {e["customer"] for e in books.of("entitlements", pool=pool)}
            promised = {(d, c): entitlement(books, c, pool, d, m) for d in worth for c in holders}
            took = {(d, c): n for (p, d, t, c), n in burned.items() if (p, t) == (pool, m)}
            spill = {(d, c): n for (p, d, t, c), n in spilt.items() if (p, t) == (pool, m)}
            cost_of = {c: amount for (t, c), amount in overflow.items() if t == m}
            for customer, amount in shift(worth, promised, took, spill, cost_of).items():
                whose = {"customer": customer, "pool": pool}
                add("cause_shift", amount, m, "usage", terms["supplier"], terms["currency"], whose)
    return {key: row for key, row in found.items() if any(amount != 0 for amount in row.values())}
