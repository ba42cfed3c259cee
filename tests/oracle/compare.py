"""Hold the core against the oracle on one world: every difference, by row and column."""

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import date
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any

import polars as pl

from metering.core.capacity import Capacity, summarise_capacity
from metering.core.closure import billing_slices, closure, rate_on_demand
from metering.core.commitments import draw_down
from metering.core.costs import Costs, costs
from metering.core.exchange import rates, translate
from metering.core.margin import margin
from metering.core.planning import DEMAND, Sizing, cost_curve
from metering.core.recognition import recognised
from metering.core.shares import customer_shares
from metering.money import decimal_to_quanta, to_quanta
from metering.results.costs import COSTS
from tests.oracle import closing, supply, worlds
from tests.oracle.supply import QUARTER, Key, quarters
from tests.oracle.worlds import START, World

_MINUTE = ("denominator", "contracted", "available", *supply.PARTS, "burn", "spill", "overrun")
_RATES = tuple(
    (day, currency, amount)
    for day in (date(2026, 2, 1), date(2026, 2, 28), date(2026, 3, 1), date(2026, 4, 1))
    for currency in ("USD", "EUR", "CHF")
    for amount in (0, 7, -7, 10**12 + 1, -(10**18) - 3, 500_000_000_000)
)
_CUSTOMERS = (
    *("burn", "spill", "peak_demand", "peak_ratio", "own_peak_minute", "own_peak_demand"),
    *("entitlement", "entitlement_used"),
)
_UNIT = 10**12
#: What some world of a run must have had.
MET = frozenset(
    {
        *(
            "minutes with overrun",
            "minutes carved out",
            "credits larger than the cost",
            "billed quarter hours",
        ),
        *("lines with an effect of exchange rates", "lines with a saving"),
        *("idle carried by burn", "idle carried by entitlement", "lines without a price"),
        *(f"lines with {name}" for name in supply.AMOUNTS),
        *(f"term {name}" for name in ("customers", "idle", "undelivered", "carved_out", "overhead")),
        *(f"term {name}" for name in ("shortfall", "variance")),
    }
)


def differences(world: World, met: Counter[str] | None = None) -> list[str]:
    """What the core says and the oracle does not, or the other way round; empty where they agree.

    `met` counts what the world had, so that a run which never met a rule is not taken for a proof of it.
    """
    met = Counter() if met is None else met
    told = [*_supply(world, met), *_rates(world)]
    return [f"seed {world.seed}: {line}" for line in told]


def _compare(what: str, found: Mapping[Key, Any], wanted: Mapping[Key, Any]) -> Iterator[str]:
    for key in sorted({*found, *wanted}, key=str):
        if found.get(key) != wanted.get(key):
            yield f"{what} {', '.join(map(str, key))}: core {found.get(key)}, oracle {wanted.get(key)}"


def core_costs(world: World) -> Costs:
    return costs(
        *(world.usage, world.pool_usage, world.books, world.period),
        pool_customer_usage=world.customer_usage,
        complete_until=world.complete_until,
    )


def oracle_costs(world: World) -> dict[Key, supply.Row]:
    usage = (world.usage, world.pool_usage, world.customer_usage)
    span = (world.period.start, world.period.until)
    return supply.costs(*(frame.to_dicts() for frame in usage), world.plain, *span, world.complete_until)


def _supply(world: World, met: Counter[str]) -> Iterator[str]:
    plain = world.plain
    span = (world.period.start, world.period.until)
    made = core_costs(world)
    used = supply.utilization(world.pool_usage.to_dicts(), plain, *span)
    yield from _compare(
        "utilization",
        {
            (row["pool"], row["dimension"], row["minute"]): [row[name] for name in _MINUTE]
            for row in made.supply.capacity.utilization.iter_rows(named=True)
        },
        {key: [row[name] for name in _MINUTE] for key, row in used.items()},
    )
    yield from _summaries(made.supply.capacity.utilization, used)
    yield from _shares(world, made.supply.capacity, used)
    paid = supply.recognised(plain, *span)
    yield from _compare(
        "recognised",
        {row[:4]: row[4:] for row in made.supply.recognised.iter_rows() if row[4]},
        {key: cell for key, cell in paid.items() if cell[0]},
    )
    wanted = oracle_costs(world)
    yield from _compare("costs", by_key(made.lines), wanted)
    yield from _margin(world, wanted, met)
    yield from _closure(world, made.lines, made.supply.recognised, wanted, paid, met)
    met.update(
        {
            "minutes with overrun": sum(row["overrun"] > 0 for row in used.values()),
            "minutes carved out": sum(row["carved_out"] > 0 for row in used.values()),
            "credits larger than the cost": sum(cost < 0 for cost, _ in paid.values()),
            "billed quarter hours": sum(not estimated for _, estimated in paid.values()),
            **{
                f"lines with {name}": sum(row[name] not in (0, None) for row in wanted.values())
                for name in supply.AMOUNTS
            },
            "idle carried by burn": sum(
                key[1] == "usage" and row["idle_share"] != 0 for key, row in wanted.items()
            ),
            "idle carried by entitlement": sum(
                key[1] == "idle" and key[4] is not None and row["idle_share"] != 0
                for key, row in wanted.items()
            ),
            "lines without a price": sum(row["on_demand_price"] is None for row in wanted.values()),
        }
    )


def _summaries(utilization: pl.DataFrame, used: dict[Key, supply.Row]) -> Iterator[str]:
    wanted = {key: supply.summary(used, *key) for key in {key[:2] for key in used}}
    found = {}
    for row in summarise_capacity(utilization).iter_rows(named=True):
        known = wanted.get((row["pool"], row["dimension"]), {})
        found[row["pool"], row["dimension"]] = {
            name: int(row[name] * 10**6) if isinstance(row[name], Decimal) else row[name] for name in known
        }
    yield from _compare("summary", found, wanted)


def _shares(world: World, capacity: Capacity, used: dict[Key, supply.Row]) -> Iterator[str]:
    wanted = supply.customer_shares(world.customer_usage.to_dicts(), used, world.plain)
    found = {}
    for row in customer_shares(world.customer_usage, world.books, capacity).iter_rows(named=True):
        key = (row["pool"], row["dimension"], row["customer"])
        named = {name: row[name] or 0 if name.startswith("entitlement") else row[name] for name in _CUSTOMERS}
        named["peak_ratio"] = None if row["peak_ratio"] is None else int(row["peak_ratio"] * 10**6)
        if key[:2] in {pool[:2] for pool in used} and any(named[n] for n in ("burn", "spill", "entitlement")):
            found[key] = named
    yield from _compare("share", found, wanted)


def by_key(lines: pl.DataFrame) -> dict[Key, supply.Row]:
    """Lines of costs in quanta, without those that say 0 throughout."""
    rows = {
        tuple(row[name] for name in supply.COSTS_KEY): {
            name: None if row[name] is None else decimal_to_quanta(row[name]) for name in supply.AMOUNTS
        }
        for row in lines.iter_rows(named=True)
    }
    return {key: row for key, row in rows.items() if any(amount != 0 for amount in row.values())}


def _closure(
    world: World,
    lines: pl.DataFrame,
    cost: pl.DataFrame,
    wanted: dict[Key, supply.Row],
    paid: dict[Key, tuple[int, bool]],
    met: Counter[str],
) -> Iterator[str]:
    period, books, plain = world.period, world.books, world.plain
    inside = pl.col("quarter_start").is_between(period.start, period.until, closed="left")
    usage = world.usage.filter(inside & pl.col("counts_for").is_in(["charge_and_cost", "cost"]))
    rated, unrated = rate_on_demand(usage, books, billing_slices(books, period))
    closed = closure(lines, cost, rated, unrated, books, period)
    sums = closed.terms.group_by("supplier", "currency", "term", "kind").agg(
        to_quanta(pl.col("usage")).sum(), to_quanta(pl.col("loaded")).sum()
    )
    span = (period.start, period.until)
    terms, whole = closing.closure(wanted, paid, closing.rated(usage.to_dicts(), plain, *span), plain, *span)
    yield from _compare(
        "closure",
        {row[:4]: row[4:] for row in sums.iter_rows() if any(row[4:])},
        {key: cell for key, cell in terms.items() if any(cell)},
    )
    for key, amount in whole.items():
        for basis, name in enumerate(("usage", "loaded")):
            left = amount - sum(cell[basis] for term, cell in terms.items() if term[:2] == key)
            if left:
                yield f"closure {key}: {name} basis leaves {left} of {amount}"
    documents = closed.documents.group_by("supplier", "currency").agg(
        to_quanta(pl.col("recognised_here")).sum()
    )
    yield from _compare(
        "documents",
        {row[:2]: row[2] for row in documents.iter_rows() if row[2]},
        {key: amount for key, amount in whole.items() if amount},
    )
    met.update(f"term {key[2]}" for key, cell in terms.items() if any(cell))


def _margin(world: World, wanted: dict[Key, supply.Row], met: Counter[str]) -> Iterator[str]:
    """Costs on margin lines, translated: amounts, the effect of the rates, and the saving."""
    made = margin(
        *(world.usage, world.pool_usage, world.books, world.period, "USD"),
        pool_customer_usage=world.customer_usage,
        complete_until=world.complete_until,
    ).lines
    found, lines = {}, {}
    names = [*supply.AMOUNTS, "fx_effect"]
    told = closing.margin_lines(wanted, world.plain, "USD")
    for row in made.iter_rows(named=True):
        key = tuple(row[name] for name in closing.LINE_KEY)
        amounts = {name: None if row[name] is None else decimal_to_quanta(row[name]) for name in names}
        if key in told or any(amounts[name] not in (0, None) for name in names):
            found[key] = amounts
            lines[key] = row
    yield from _compare(
        "margin", found, {key: {name: row[name] for name in names} for key, row in told.items()}
    )
    met["lines with an effect of exchange rates"] += sum(
        row["fx_effect"] not in (0, None) for row in told.values()
    )
    met["lines with a saving"] += sum(
        row["saving_against_on_demand"] not in (0, None) for row in lines.values()
    )
    for key, row in lines.items():
        price, saving = row["on_demand_price"], row["saving_against_on_demand"]
        right = None if price is None or row["cost_unrated"] else price - row["cost"]
        if saving != right:
            yield f"saving {', '.join(map(str, key))}: core {saving}, oracle {right}"


def _rates(world: World) -> Iterator[str]:
    asked = pl.DataFrame(
        _RATES,
        schema={"day": COSTS.columns["day"], "currency": pl.String, "amount": pl.Int128},
        orient="row",
    )
    found, wanted = {}, {}
    told = asked.join(rates(asked, world.books.exchange_rates, "USD"), on=["day", "currency"])
    into = translate(pl.col("amount"), pl.col("month_average"))
    for row in told.with_columns(into.alias("into")).iter_rows(named=True):
        key = (row["day"], row["currency"], row["amount"])
        found[key] = (row["into"], row["rate_estimated"])
        rate, estimated = closing.rate(world.plain, row["day"], row["currency"], "USD")
        wanted[key] = (None if rate is None else closing.translated(row["amount"], rate), estimated)
    yield from _compare("rates", found, wanted)


def schedules_differ(seed: int) -> list[str]:
    """Recognised cost over a year of months: quarter hours of a few days of it, and the whole."""
    books = worlds.a_year(seed)
    plain = worlds.plain(books)
    told: list[str] = []
    for period in worlds.days_of_a_year(seed):
        told += _compare(
            f"seed {seed}: schedule",
            {row[:4]: row[4:] for row in recognised(books, period).iter_rows() if row[4]},
            {
                key: cell
                for key, cell in supply.recognised(plain, period.start, period.until).items()
                if cell[0]
            },
        )
    return told


def commitments_differ(seed: int) -> list[str]:
    """What became of every tranche of random commitments."""
    tranches, eligible, until = worlds.commitments(seed)
    drawn = draw_down(tranches, eligible, until).tranches
    amounts = ("committed", "drawdown", "rolled_over", "shortfall", "remaining")
    return list(
        _compare(
            f"seed {seed}: commitment",
            {
                (row["holder"], row["commitment"], row["effective_from"], row["rolled"]): [
                    row[name] for name in amounts
                ]
                for row in drawn.iter_rows(named=True)
            },
            {
                key: [row[name] for name in amounts]
                for key, row in closing.draw_down(tranches.to_dicts(), eligible.to_dicts(), until).items()
            },
        )
    )


def sizes_differ(seed: int) -> list[str]:
    """The cost of every size of a pool of one dimension, over random demand, and which is best."""
    dice = Random(seed)
    demand = [dice.randint(0, 90) for _ in range(dice.randint(1, 30))]
    step, unit_burn, today = dice.choice([1, 1, 5]), dice.choice([1, 3]), dice.choice([5, 20, 40])
    unit_cost, price = Fraction(dice.randint(1, 40), 4), Fraction(dice.randint(1, 40), 4)
    sizing = Sizing(
        pool="p",
        currency="USD",
        units={"all": today},
        unit_burn={"all": unit_burn},
        units_min=0,
        units_sold_in=step,
        unit_cost=unit_cost * _UNIT,
        mix_cost={"all": int(price * _UNIT)},
        mix_burn={"all": 1},
    )
    none = {"denominator": 1, "available": 0, "carved_out": 0, "served": 0, "burn": 0, "spill": 0}
    rows = [
        {**none, "pool": "p", "dimension": "all", "minute": at, "refused": asked, "demand": asked}
        for at, asked in zip(quarters(START, START + len(demand) * QUARTER), demand, strict=True)
    ]
    found = cost_curve(DEMAND.conform(pl.DataFrame(rows, schema=dict(DEMAND.columns))), sizing, 1_000)
    sizes = range(0, max(*demand, today * unit_burn) // unit_burn + 2 * step, step)
    # a size of K units has room for K x unit_burn
    wanted = {
        size: closing.curve(demand, [size * unit_burn], unit_cost / unit_burn, price)[size * unit_burn]
        for size in {*sizes, today}
    }
    told = list(
        _compare(
            f"seed {seed}: size",
            {(size,): cost for size, cost in found.select("units", "cost").iter_rows()},
            {(size,): wanted[size] for size in found["units"]},
        )
    )
    best = found.filter("best")["units"].to_list()
    if best != [min(wanted, key=lambda size: (wanted[size], size))]:
        told.append(f"seed {seed}: best size: core {best}, oracle {wanted}")
    return told
