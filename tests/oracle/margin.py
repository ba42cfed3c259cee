"""Margin again, in Python integers and Decimals, one quarter hour at a time; its cost is of `supply`.

Everything comes in as lists of dicts (`frame.to_dicts()`) and goes out as dicts by key, so that a difference
to the core names the row. Only the words are shared: column names, reasons and the meters' order.
"""

from collections import defaultdict
from datetime import datetime
from decimal import Decimal
from typing import Any

from tests.oracle.supply import (
    EXACT,
    METERS,
    MINUTE,
    QUARTER,
    SERIES,
    Book,
    Key,
    Row,
    burn_of,
    by_part,
    cost_book,
    holds,
    minutes_between,
    month_after,
    month_of,
    quanta,
    quarters,
    recognised,
    series_order,
    split,
    utilization,
)


def earned(fee: Row, at: datetime) -> int:
    """Quanta of a customer's fee in a quarter hour: the difference of two floors. Months and years are of UTC."""
    amount = quanta(fee["amount"]) * fee["quantity"]
    start, end = month_of(at), month_after(at)
    if fee["per"] == "span":
        start, end = fee["effective_from"], fee["effective_until"]
    elif fee["per"] == "year":
        # no world begins a fee on a 29 February
        start = fee["effective_from"].replace(hour=0, minute=0)
        while (end := start.replace(year=start.year + 1)) <= at:
            start = end
    length = minutes_between(start, end)
    return (
        amount * minutes_between(start, at + QUARTER) // length
        - amount * minutes_between(start, at) // length
    )


def margin(
    usage: list[Row], pool_usage: list[Row], books: Book, start: datetime, until: datetime, currency: str
) -> tuple[dict[Key, Row], dict[Key, list[int | None]]]:
    """(lines by key, unrated by key -> [quantity, quanta]) of a period."""
    lines: dict[Key, Row] = defaultdict(lambda: defaultdict(int))
    unrated: dict[Key, list[int | None]] = defaultdict(lambda: [None, None])
    open_: dict[Key, int] = defaultdict(int)

    def who(customer: str | None, at: datetime) -> tuple[str | None, str | None]:
        if customer is None:
            return None, None
        found = books.in_force("customers", at, customer=customer)
        return (found["kind"], found["segment"]) if found else ("unknown", "unknown")

    def line_key(at: datetime, kind: str, row: Row) -> Key:
        names = ("product", "tier_sold", "provider", "model_served", "pool")
        customer = row.get("customer")
        contract = row.get("contract", agreed(customer, at))
        return (at.date(), kind, customer, *who(customer, at), contract, None, *map(row.get, names))

    def agreed(customer: str | None, at: datetime) -> str | None:
        found = books.in_force("contracts", at, customer=customer) if customer is not None else None
        return found["contract"] if found else None

    def line(at: datetime, kind: str, row: Row) -> Row:
        return lines[line_key(at, kind, row)]

    def miss(
        at: datetime, side: str, reason: str, row: Row, meter: str | None, kind: str = "usage", **known: Any
    ) -> None:
        names = (*SERIES[:9], "context_breakpoint")
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
                    named = any(p["book"] == by["book"] for p in books[frame])
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
        rows = books[frame]
        if frame == "price_books":
            same = [row for row in rows if row["book"] == by["book"]] or rows
            return not any((row["item"], row["meter"]) == (by["item"], meter) for row in same)
        same = [row for row in rows if all(row[name] == by[name] for name in ("book", "item", "tier"))]
        return bool(same) and all(row["meter"] != meter for row in same)

    merged: dict[Key, Row] = {}
    for row in usage:
        if start <= row["quarter_start"] < until:
            key = (row["quarter_start"], series_order(row))
            into = merged.setdefault(key, {**row, **dict.fromkeys(("requests", *METERS), 0)})
            for name in ("requests", *METERS):
                into[name] += row[name]

    used = utilization(pool_usage, books, start, until)
    burns: dict[Key, dict[Key, int]] = defaultdict(dict)
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
            book = cost_book(row, books)
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
                    burns[row["pool"], dimension, at][key[1]] = amount

    for row in pool_usage:
        if start <= row["minute"] < until and row["ran_on"] == "overflow":
            _, missing, known_pool = burn_of(row, row["minute"], books)
            for meter in missing:
                reason = "no_weight" if known_pool else "unknown_pool"
                miss(row["minute"], "capacity", reason, row, meter, quantity=row[meter])

    for fee in books["fees"]:
        for at in quarters(start, until):
            if holds(fee, at):
                amount = earned(fee, at)
                money(
                    at,
                    "fee",
                    {name: fee[name] for name in ("customer", "contract")},
                    "fee",
                    "fee",
                    amount,
                    fee["currency"],
                )

    for (pool, dimension, at, paid_in), (cost, _) in recognised(books, start, until).items():
        minutes = [used.get((pool, dimension, at + MINUTE * m)) for m in range(15)]
        parts = by_part(cost, [minute for minute in minutes if minute])
        money(at, "idle", {"pool": pool}, "cost", "cost_pool", parts["idle"], paid_in)
        for name in ("undelivered", "carved_out"):
            if parts[name]:
                money(at, name, {"pool": pool}, "cost", "cost_pool", parts[name], paid_in)
        own = burns[pool, dimension, at]
        for order, part in split(parts["served"], own).items() if own else ():
            money(at, "usage", merged[at, order], "cost", "cost_pool", part, paid_in)
    for (key, side, _), left in open_.items():
        if left:
            lines[key]["cost_unrated" if side == "cost" else "charge_unrated"] = 1
    return lines, unrated
