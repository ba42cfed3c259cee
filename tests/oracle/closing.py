"""What comes after the costs, again in plain Python: closure to bills, commitments, rates, sizes of a pool."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from fractions import Fraction

from tests.oracle.supply import (
    AMOUNTS,
    COSTS_KEY,
    Book,
    Key,
    Row,
    cost_book,
    half_even,
    minutes_between,
    price_of,
    quanta,
)


def rated(usage: list[Row], books: Book, start: datetime, until: datetime) -> dict[Key, int]:
    """(quarter hour, supplier, model, currency) -> quanta of usage that ran outside of pools."""
    found: dict[Key, int] = defaultdict(int)
    for row in usage:
        at = row["quarter_start"]
        if start <= at < until and row["ran_on"] != "pool" and row["counts_for"] != "charge":
            for currency, amount in price_of(row, at, cost_book(row, books), books)[0].items():
                found[at, row["provider"], row["model_served"], currency] += amount
    return found


def spread(line: Row, start: datetime, until: datetime) -> int:
    """The part of a bill line in [start, until), evenly by time over its service span."""
    since, to = line["service_from"], line["service_until"]

    def before(at: datetime) -> int:
        return quanta(line["amount"]) * minutes_between(since, min(at, to)) // minutes_between(since, to)

    return before(until) - before(start)


def closure(
    costs: dict[Key, Row],
    recognised: dict[Key, tuple[int, bool]],
    on_demand: dict[Key, int],
    books: Book,
    start: datetime,
    until: datetime,
) -> tuple[dict[Key, tuple[int, int]], dict[Key, int]]:
    """(supplier, currency, term, kind) -> (usage, loaded); and (supplier, currency) -> recognised cost.

    A variance is not there until some of the on-demand usage is billed.
    """
    terms: dict[Key, list[int]] = defaultdict(lambda: [0, 0])
    whole: dict[Key, int] = defaultdict(int)
    for key, row in costs.items():
        _, line, supplier, currency, customer, kind = key[:6]
        whose = line == "usage" or customer is not None
        cell = terms[supplier, currency, "customers" if whose else line, kind if whose else None]
        cell[0] += row["cost_pool"] + row["cost_on_demand"]
        cell[1] += row["cost_pool"] + row["cost_on_demand"] + row["idle_share"]
    for (pool, _, _, currency), (amount, _) in recognised.items():
        whole[books.pool(pool)["supplier"], currency] += amount
    for line in books["bill_lines"]:
        name = {"commitment": "shortfall", "overhead": "overhead", "on_demand": "variance"}
        if line["object_kind"] in name and line["service_from"] < until and line["service_until"] > start:
            amount = spread(line, start, until)
            cell = terms[line["supplier"], line["currency"], name[line["object_kind"]], None]
            cell[0] += amount
            cell[1] += amount
            whole[line["supplier"], line["currency"]] += amount
    charges = books.of("bill_lines", object_kind="on_demand", category="charge")
    for (at, supplier, model, currency), amount in on_demand.items():
        if any(
            line["service_from"] <= at < line["service_until"]
            and (line["supplier"], line["currency"]) == (supplier, currency)
            and line["object"] in (None, model)
            for line in charges
        ):
            cell = terms[supplier, currency, "variance", None]
            cell[0] -= amount
            cell[1] -= amount
        else:
            whole[supplier, currency] += amount
    return {key: (cell[0], cell[1]) for key, cell in terms.items()}, dict(whole)


def draw_down(tranches: list[Row], eligible: list[Row], until: datetime) -> dict[Key, Row]:
    """(holder, commitment, effective_from, rolled) -> what became of it, one slice of time after the other."""
    items = [{**row, "rolled": False, "reached": 0, "drawdown": 0} for row in tranches]
    for row in list(items):
        last = max(
            t["effective_until"]
            for t in tranches
            if (t["holder"], t["commitment"]) == (row["holder"], row["commitment"])
        )
        expiry = row["roll_over_until"] or last
        row["carries"] = row["shortfall_rule"] == "roll_over" and expiry > row["effective_until"]
        if row["carries"]:
            later = {"effective_from": row["effective_until"], "effective_until": expiry, "of": row}
            items.append({**row, **later, "rolled": True, "carries": False, "committed": None})

    def committed(item: Row) -> int:
        if item["committed"] is not None:
            return int(item["committed"])
        unmet = item["of"]["committed"] - item["of"]["drawdown"]
        most = item["of"]["roll_over_max"]
        return int(unmet if most is None else min(unmet, most))

    turns = sorted(
        items, key=lambda i: (i["effective_until"], i["effective_from"], i["commitment"], i["rolled"])
    )
    for row in sorted(eligible, key=lambda r: (r["slice_start"], r["account"], r["part"])):
        left = row["amount"] if row["slice_start"] < until else 0
        for item in turns:
            if (
                item["holder"] == row["holder"]
                and item["effective_from"] <= row["slice_start"] < item["effective_until"]
                and (not item["draws"] or row["account"] in item["draws"])
            ):
                item["reached"] += left
                now = min(item["reached"], committed(item))
                left -= now - item["drawdown"]
                item["drawdown"] = now
    found = {}
    for item in items:
        ended = item["effective_until"] <= until
        if item["rolled"] and item["of"]["effective_until"] > until:
            continue
        unmet = committed(item) - item["drawdown"]
        rolls = 0
        if item["carries"] and ended:
            rolls = unmet if item["roll_over_max"] is None else min(unmet, item["roll_over_max"])
        if item["rolled"] and not committed(item):
            continue
        found[item["holder"], item["commitment"], item["effective_from"], item["rolled"]] = {
            "committed": committed(item),
            "drawdown": item["drawdown"],
            "rolled_over": rolls,
            "shortfall": unmet - rolls if ended else 0,
            "remaining": 0 if ended else unmet,
        }
    return found


def rate(books: Book, day: date, currency: str, into: str) -> tuple[Fraction | None, bool]:
    """The average of the month of `day`, else that of the month before, estimated; None where there is none."""
    if currency == into:
        return Fraction(1), False
    rows = [
        row
        for row in books.of("exchange_rates", currency=currency, into=into, kind="month_average")
        if row["effective_from"].date() <= day
    ]
    if not rows:
        return None, False
    latest = max(rows, key=lambda row: row["effective_from"])
    said = latest["effective_from"].date()
    months = (day.year - said.year) * 12 + day.month - said.month
    return (Fraction(latest["rate"]), months == 1) if months <= 1 else (None, False)


def translated(amount: int, rate: Fraction) -> int:
    """Quanta in the other currency, half-even to a quantum."""
    return half_even(amount * rate)


LINE_KEY = (
    "day",
    "line",
    "customer",
    "kind",
    "segment",
    "product",
    "tier_sold",
    "provider",
    "model_served",
    "pool",
)


def margin_lines(costs: dict[Key, Row], books: Book, into: str) -> dict[Key, Row]:
    """Costs by LINE_KEY in one currency: of each line and currency every amount is translated once.

    What has no rate is not there. fx_effect is the margin so translated less that at contract rates, None
    where a part has none; on_demand_price is None where a part has no price, or its price no rate.
    """
    sums: dict[Key, Row] = {}
    for key, row in costs.items():
        named = dict(zip(COSTS_KEY, key, strict=True))
        of = (*(named[name] for name in LINE_KEY), named["currency"])
        into_row = sums.setdefault(of, dict.fromkeys(AMOUNTS, 0))
        for name in AMOUNTS:
            some, more = into_row[name], row[name]
            into_row[name] = None if some is None or more is None else some + more
    found: dict[Key, Row] = {}
    for (*line, currency), row in sums.items():
        average, _ = rate(books, line[0], currency, into)
        at = datetime(line[0].year, line[0].month, line[0].day, tzinfo=UTC)
        agreed = books.in_force("exchange_rates", at, currency=currency, into=into, kind="contract")
        target = found.setdefault(tuple(line), dict.fromkeys((*AMOUNTS, "fx_effect"), 0))
        if average is None:
            if row["on_demand_price"] != 0:
                target["on_demand_price"] = None
            continue
        for name in AMOUNTS:
            if row[name] is None or target[name] is None:
                target[name] = None
            else:
                target[name] += translated(row[name], average)
        for name in ("cost_pool", "cost_on_demand") if currency != into else ():
            if row[name] and agreed is None:
                target["fx_effect"] = None
            elif target["fx_effect"] is not None and agreed is not None:
                contract = translated(row[name], Fraction(agreed["rate"]))
                target["fx_effect"] += contract - translated(row[name], average)
    return found


def curve(
    demand: Sequence[int], sizes: Iterable[int], unit_cost: Fraction, price: Fraction
) -> dict[int, Fraction]:
    """Cost of each size: what is bought in every window, and on demand what exceeds it."""
    return {
        size: len(demand) * size * unit_cost + sum(max(0, d - size) for d in demand) * price for size in sizes
    }
