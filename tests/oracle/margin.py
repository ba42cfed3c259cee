"""Margin and utilization again, in Python integers and Decimals, one quarter hour and one minute at a time.

Everything comes in as lists of dicts (`frame.to_dicts()`) and goes out as dicts by key, so that a difference
to the core names the row. Only the words are shared: column names, reasons and the meters' order.
"""

from calendar import monthrange
from collections import defaultdict
from datetime import datetime, timedelta
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

Row = dict[str, Any]

TOKENS = (
    *("uncached_input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens"),
    *("output_tokens", "reasoning_tokens"),
)
METERS = (*TOKENS, "accelerator_ms")
DIMENSIONS = (
    *("customer", "product", "tier_sold", "provider", "model_served", "tier_served", "region", "pool"),
    *("ran_on", "counts_for", "context_breakpoint"),
)
EXACT = Context(prec=200)


class Book:
    """The frames of Books as lists of dicts, and lookups that scan them."""

    def __init__(self, **frames: list[Row]) -> None:
        self.frames = frames

    def in_force(self, frame: str, at: datetime, **wanted: Any) -> Row | None:
        for row in self.frames[frame]:
            if all(row[name] == value for name, value in wanted.items()) and (
                row["effective_from"] <= at
                and (row["effective_until"] is None or at < row["effective_until"])
            ):
                return row
        return None

    def price(self, frame: str, at: datetime, **wanted: Any) -> Row | None:
        region = wanted.pop("region")
        own = self.in_force(frame, at, **wanted, region=region)
        return own or self.in_force(frame, at, **wanted, region="*")


def earned(amount: Decimal, start: datetime, until: datetime) -> int:
    """Quanta of a monthly amount in a span within one month: the difference of two floors."""
    month = start.replace(day=1, hour=0, minute=0)
    length = monthrange(month.year, month.month)[1] * 24 * 60

    def cumulative(at: datetime) -> int:
        return quanta(amount) * int((at - month) / timedelta(minutes=1)) // length

    return cumulative(until) - cumulative(start)


def quanta(amount: Decimal) -> int:
    return int(EXACT.multiply(amount, Decimal(10) ** 12))


def burn_of(row: Row, at: datetime, books: Book) -> tuple[dict[str, int], list[str], bool]:
    """Burn by dimension, the meters that nothing weighs, and whether the pool has capacity at all."""
    steps = [s for s in books.frames["capacity_steps"] if s["pool"] == row["pool"]]
    steps = [
        s
        for s in steps
        if s["effective_from"] <= at and (s["effective_until"] is None or at < s["effective_until"])
    ]
    used = [meter for meter in METERS if row[meter]]
    if not steps:
        return {}, used, False
    weights: dict[str, dict[str, int]] = {}
    for step in steps:
        weights[step["dimension"]] = {}
        for meter in METERS:
            found = books.in_force(
                "burndown",
                at,
                pool=row["pool"],
                dimension=step["dimension"],
                model=row["model_served"],
                context_breakpoint=row["context_breakpoint"],
                meter=meter,
            )
            if found:
                weights[step["dimension"]][meter] = found["weight"]
    said = {meter for table in weights.values() for meter in table}
    missing = [
        meter for meter in used if not said or (meter in TOKENS and meter not in said and said & set(TOKENS))
    ]
    burn = {d: sum(row[meter] * weight for meter, weight in table.items()) for d, table in weights.items()}
    return burn, missing, True


def utilization(
    pool_usage: list[Row], books: Book, start: datetime, until: datetime
) -> dict[tuple[Any, ...], Row]:
    """(pool, dimension, minute) -> numerators, for every contracted minute."""
    minutes: dict[tuple[Any, ...], Row] = {}
    for step in books.frames["capacity_steps"]:
        denominator = next(
            (
                b["denominator"]
                for b in books.frames["burndown"]
                if (b["pool"], b["dimension"]) == (step["pool"], step["dimension"])
            ),
            1,
        )
        at = max(start, step["effective_from"])
        while at < until and (step["effective_until"] is None or at < step["effective_until"]):
            minutes[step["pool"], step["dimension"], at] = {
                "denominator": denominator,
                "contracted": step["units"] * step["unit_burn_per_minute"] * denominator,
                "burn": 0,
                "spill": 0,
            }
            at += timedelta(minutes=1)
    for row in pool_usage:
        if start <= row["minute"] < until and row["ran_on"] in ("pool", "overflow"):
            burn, _, _ = burn_of(row, row["minute"], books)
            side = "burn" if row["ran_on"] == "pool" else "spill"
            for dimension, amount in burn.items():
                minutes[row["pool"], dimension, row["minute"]][side] += amount
    for minute in minutes.values():
        minute["served"] = min(minute["burn"], minute["contracted"])
        minute["idle"] = minute["contracted"] - minute["served"]
        minute["overrun"] = minute["burn"] - minute["served"]
    return minutes


def margin(
    usage: list[Row], pool_usage: list[Row], books: Book, start: datetime, until: datetime, currency: str
) -> tuple[dict[tuple[Any, ...], Row], dict[tuple[Any, ...], list[int | None]]]:
    """(lines by key, unrated by key -> [quantity, quanta]) of a period."""
    lines: dict[tuple[Any, ...], Row] = defaultdict(lambda: defaultdict(int))
    unrated: dict[tuple[Any, ...], list[int | None]] = defaultdict(lambda: [None, None])
    open_: dict[tuple[Any, ...], int] = defaultdict(int)

    def who(customer: str | None, at: datetime) -> tuple[str | None, str | None]:
        if customer is None:
            return None, None
        found = books.in_force("customers", at, customer=customer)
        return (found["kind"], found["segment"]) if found else ("unknown", "unknown")

    def line_key(at: datetime, kind: str, row: Row) -> tuple[Any, ...]:
        names = ("product", "tier_sold", "provider", "model_served", "pool")
        customer = row.get("customer")
        return (at.date(), kind, customer, *who(customer, at), *(row.get(name) for name in names))

    def line(at: datetime, kind: str, row: Row) -> Row:
        return lines[line_key(at, kind, row)]

    def miss(
        at: datetime, side: str, reason: str, row: Row, meter: str | None, kind: str = "usage", **known: Any
    ) -> None:
        names = (*DIMENSIONS[:9], "context_breakpoint")
        key = (at.date(), side, reason, *(row.get(name) for name in names), meter, known.get("currency"))
        cells = unrated[key]
        if side != "capacity":
            open_[line_key(at, kind, row), side, key] += known.get("quantity", 0) + known.get("quanta", 0)
        for place, name in enumerate(("quantity", "quanta")):
            if name in known:
                cells[place] = (cells[place] or 0) + known[name]

    def money(
        at: datetime, kind: str, row: Row, side: str, column: str, amount: int, its_currency: str
    ) -> None:
        target = line(at, kind, row)
        if its_currency == currency or amount == 0:
            target[column] += amount
        else:
            miss(at, side, "no_exchange_rate", row, None, kind, quanta=amount, currency=its_currency)

    def priced(at: datetime, row: Row, side: str, column: str, frame: str, missing: str, **by: Any) -> None:
        for meter in METERS:
            if row[meter]:
                price = books.price(
                    frame,
                    at,
                    **by,
                    region=row["region"],
                    context_breakpoint=row["context_breakpoint"],
                    meter=meter,
                )
                if price:
                    amount = EXACT.multiply(Decimal(row[meter]), price["unit_price"])
                    money(at, "usage", row, side, column, quanta(amount), price["currency"])
                elif not quiet(frame, meter, by):
                    named = any(p["book"] == by["book"] for p in books.frames[frame])
                    miss(
                        at,
                        side,
                        missing if named else f"{missing_book[frame]}",
                        row,
                        meter,
                        quantity=row[meter],
                    )

    missing_book = {"price_books": "no_price_book", "cost_books": "no_cost_book"}

    def quiet(frame: str, meter: str, by: Row) -> bool:
        if meter != "accelerator_ms":
            return False
        rows = books.frames[frame]
        if frame == "price_books":
            same = [row for row in rows if row["book"] == by["book"]] or rows
            return not any((row["item"], row["meter"]) == (by["item"], meter) for row in same)
        same = [row for row in rows if all(row[name] == by[name] for name in ("book", "item", "tier"))]
        return bool(same) and all(row["meter"] != meter for row in same)

    merged: dict[tuple[Any, ...], Row] = {}
    for row in usage:
        if start <= row["quarter_start"] < until:
            key = (row["quarter_start"], *(row[name] for name in DIMENSIONS))
            into = merged.setdefault(key, {**row, **dict.fromkeys(("requests", *METERS), 0)})
            for name in ("requests", *METERS):
                into[name] += row[name]

    used = utilization(pool_usage, books, start, until)
    burns: dict[tuple[Any, ...], list[tuple[Any, ...]]] = defaultdict(list)
    for key, row in merged.items():
        at, counted = row["quarter_start"], row["counts_for"]
        target = line(at, "usage", row)
        if counted in ("charge_and_cost", "cost"):
            for name in ("requests", *METERS):
                target[name] += row[name]
        if counted in ("charge_and_cost", "charge"):
            target["billable_requests"] += row["requests"]
            known = books.in_force("customers", at, customer=row["customer"])
            contract = books.in_force("contracts", at, customer=row["customer"])
            if known and contract:
                priced(
                    at,
                    row,
                    "charge",
                    "charge",
                    "price_books",
                    "no_price",
                    book=contract["price_book"],
                    item=row["product"],
                    tier=row["tier_sold"],
                )
            else:
                for meter in METERS:
                    if row[meter] and not quiet("price_books", meter, {"book": "", "item": row["product"]}):
                        reason = "no_contract" if known else "unknown_customer"
                        miss(at, "charge", reason, row, meter, quantity=row[meter])
        if counted in ("charge_and_cost", "cost") and row["ran_on"] in ("overflow", "on_demand"):
            book = next(
                (
                    m["cost_book"]
                    for m in books.frames["models"]
                    if (m["provider"], m["model"]) == (row["provider"], row["model_served"])
                ),
                None,
            )
            if book:
                priced(
                    at,
                    row,
                    "cost",
                    "cost_on_demand",
                    "cost_books",
                    "no_cost",
                    book=book,
                    item=row["model_served"],
                    tier=row["tier_served"],
                )
            else:
                for meter in METERS:
                    if row[meter]:
                        miss(at, "cost", "no_cost_book", row, meter, quantity=row[meter])
        if counted in ("charge_and_cost", "cost") and row["ran_on"] == "pool":
            burn, missing, known_pool = burn_of(row, at, books)
            for meter in missing:
                reason = "no_weight" if known_pool else "unknown_pool"
                miss(at, "cost", reason, row, meter, quantity=row[meter])
            for dimension, amount in burn.items():
                if amount:
                    order = tuple(
                        (cell is not None, cell or 0 if i == 10 else cell or "")
                        for i, cell in enumerate(key[1:])
                    )
                    burns[row["pool"], dimension, at].append((order, amount, row))

    for row in pool_usage:
        if start <= row["minute"] < until and row["ran_on"] == "overflow":
            _, missing, known_pool = burn_of(row, row["minute"], books)
            for meter in missing:
                reason = "no_weight" if known_pool else "unknown_pool"
                miss(row["minute"], "capacity", reason, row, meter, quantity=row[meter])

    for fee in books.frames["fees"]:
        for at, after in quarters(start, until):
            if fee["effective_from"] <= at and (
                fee["effective_until"] is None or at < fee["effective_until"]
            ):
                amount = earned(fee["amount_per_month"], at, after)
                money(at, "fee", {"customer": fee["customer"]}, "fee", "fee", amount, fee["currency"])

    for at, after in quarters(start, until):
        pools = sorted({step["pool"] for step in books.frames["capacity_steps"]})
        for pool in pools:
            steps = sorted(
                (
                    s
                    for s in books.frames["capacity_steps"]
                    if s["pool"] == pool
                    and s["effective_from"] <= at
                    and (s["effective_until"] is None or at < s["effective_until"])
                ),
                key=lambda s: s["dimension"],
            )
            below = Decimal(0)
            for step in steps:
                fee = next(
                    f
                    for f in books.frames["capacity_fees"]
                    if f["pool"] == pool
                    and f["effective_from"] <= at
                    and (f["effective_until"] is None or at < f["effective_until"])
                )
                whole = earned(fee["amount"], at, after)
                above = below + step["fee_share_ratio"]
                cost = int(Fraction(above) * whole // 1) - int(Fraction(below) * whole // 1)
                below = above
                minutes = [used[pool, step["dimension"], at + timedelta(minutes=m)] for m in range(15)]
                contracted = sum(m["contracted"] for m in minutes)
                burned = sum(m["served"] for m in minutes)
                served = cost * burned // contracted if contracted else 0
                if contracted:  # the odd unit goes to the larger remainder, to what was served in a tie
                    rest = cost * burned % contracted
                    served += 1 if rest and rest >= cost * (contracted - burned) % contracted else 0
                money(at, "idle", {"pool": pool}, "cost", "cost_pool", cost - served, fee["currency"])
                shares = burns[pool, step["dimension"], at]
                total = sum(amount for _, amount, _ in shares)
                left = served - sum(served * amount // total for _, amount, _ in shares)
                ranked = sorted(shares, key=lambda share: (-(served * share[1] % total), share[0]))
                for place, (_, amount, row) in enumerate(ranked):
                    part = served * amount // total + (1 if place < left else 0)
                    money(at, "usage", row, "cost", "cost_pool", part, fee["currency"])
    for (key, side, _), left in open_.items():
        if left:
            lines[key]["cost_unrated" if side == "cost" else "charge_unrated"] = 1
    return lines, unrated


def quarters(start: datetime, until: datetime) -> list[tuple[datetime, datetime]]:
    count = int((until - start) / timedelta(minutes=15))
    return [
        (start + timedelta(minutes=15 * i), start + timedelta(minutes=15 * (i + 1))) for i in range(count)
    ]
