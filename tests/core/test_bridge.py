"""The bridge: a table worked by hand, and what must hold between any two periods of random worlds."""

from dataclasses import replace
from decimal import Decimal

import polars as pl
from hypothesis import HealthCheck, given, settings

from metering.core.bridge import Told, bridge
from metering.core.cells import Cells, cells
from metering.core.costs import supply
from metering.core.margin import margin
from metering.core.revenue import earned, under_terms
from metering.frames import POOL_USAGE
from metering.money import to_quanta
from metering.periods import QUARTER, Period
from metering.results import CELLS, FULL_RATES, USED_BY, Frame
from tests.core.worlds import PERIOD, START, World, supplied
from tests.oracle.demand_worlds import demand_world
from tests.text_tables import check, read

relaxed = settings(deadline=None, max_examples=3, suppress_health_check=list(HealthCheck))
QUANTUM = Decimal("0.000000000001")
TOTALS = Frame(
    "TOTALS",
    {"customer": pl.String, "revenue": pl.Int128, "cost": pl.Int128},
    nullable=frozenset({"customer"}),
)


def told(text: str, full: str, used: str, totals: str, rates: dict[str, int] | None = None) -> Told:
    """A period in quanta: every figure of the tables is one of 10^-12."""
    made = Cells(
        read(text, CELLS, currency="USD"),
        read(full, FULL_RATES, pool="block", dimension="all", currency="USD", denominator=1),
        read(used, USED_BY, requests=1),
    )
    money = read(totals, TOTALS).with_columns(
        pl.col(name).cast(pl.Decimal(38, 12)) * pl.lit(QUANTUM, dtype=pl.Decimal(38, 12))
        for name in ("revenue", "cost")
    )
    return Told(made, money, rates or {})


def in_quanta(parts: pl.DataFrame) -> pl.DataFrame:
    return parts.with_columns(to_quanta(pl.col(name)).alias(name) for name in ("revenue", "cost", "margin"))


OLD = """
of     | customer | item  | meter                 | place     | quantity | gross | amount
charge | acme     | chat  | uncached_input_tokens | -         | 80       | 160   | 144
charge | acme     | chat  | output_tokens         | -         | 20       | 100   | 90
fee    | acme     | team  | -                     | -         | 0        | 10    | 10
cost   | acme     | large | uncached_input_tokens | block     | 60       | 30    | 30
cost   | acme     | large | uncached_input_tokens | on_demand | 20       | 20    | 20
cost   | acme     | large | output_tokens         | block     | 20       | 20    | 20
unused | -        | -     | all                   | block     | 100      | 50    | 50
"""
NEW = """
of     | customer | item  | meter                 | place     | quantity | gross | amount
charge | acme     | chat  | uncached_input_tokens | -         | 120      | 360   | 288
charge | acme     | chat  | output_tokens         | -         | 80       | 400   | 320
fee    | acme     | team  | -                     | -         | 0        | 25    | 25
cost   | acme     | large | uncached_input_tokens | block     | 120      | 90    | 90
cost   | acme     | large | output_tokens         | block     | 40       | 60    | 60
cost   | acme     | large | output_tokens         | on_demand | 40       | 100   | 100
unused | -        | -     | all                   | block     | 40       | 40    | 40
charge | late     | chat  | output_tokens         | -         | 7        | 35    | 35
"""
WAS = (OLD, "recognised | contracted\n 100 | 200", "customer | tokens\n acme | 100",
       "customer | revenue | cost\n acme | 244 | 70\n - | 0 | 50")  # fmt: skip
NOW = (NEW, "recognised | contracted\n 200 | 200", "customer | tokens\n acme | 200\n late | 7",
       "customer | revenue | cost\n acme | 633 | 250\n late | 35 | 0\n - | 0 | 40")  # fmt: skip


def test_a_bridge_worked_by_hand():
    """Charges: 234, twice the tokens 468, input 144 x 120 / 80 and output 90 x 80 / 20 = 576, at the new list price
    324 + 360 = 684, net 608. Cost: 70, 140, input 50 x 1.5 and output 20 x 4 = 155; the pool is twice as dear,
    and 40 of the 160 tokens of input that ran on demand have no new price: 90 + 30 + 160 = 280; as it ran 250."""
    check(
        in_quanta(bridge(told(*WAS), told(*NOW), "USD")),
        """
        customer | term           | revenue | cost | margin
        -        | supplier_price | 0       | 50   | -50
        -        | utilization    | 0       | -60  | 60
        acme     | volume         | 234     | 70   | 164
        acme     | mix            | 108     | 15   | 93
        acme     | price          | 108     | 0    | 108
        acme     | discounts      | -76     | 0    | -76
        acme     | fee            | 15      | 0    | 15
        acme     | supplier_price | 0       | 125  | -125
        acme     | utilization    | 0       | -30  | 30
        late     | new_customers  | 35      | 0    | 35
        """,
    )


def test_a_customer_that_left_is_lost_with_all_that_it_was():
    found = in_quanta(bridge(told(*NOW), told(*WAS), "USD"))
    check(
        found.filter(customer="late"),
        "customer | term | revenue | cost | margin\n late | lost_customers | -35 | 0 | -35",
    )


def test_exchange_rates_are_what_is_left_when_everything_else_was_replaced():
    """100 EUR at 1.10, then 150 at 1.20: 50 more at the old rate are 55; all 150 by 0.10 more are 15."""
    header = "of | customer | item | meter | currency | quantity | gross | amount"
    cell = f"{header}\n charge | acme | chat | output_tokens | EUR | "
    none = "recognised | contracted\n 1 | 1"
    was = told(f"{cell} 100 | 100 | 100", none, "customer | tokens\n acme | 100",
               "customer | revenue | cost\n acme | 110 | 0", {"EUR": 1_100_000_000_000})  # fmt: skip
    now = told(f"{cell} 150 | 150 | 150", none, "customer | tokens\n acme | 150",
               "customer | revenue | cost\n acme | 180 | 0", {"EUR": 1_200_000_000_000})  # fmt: skip
    check(
        in_quanta(bridge(was, now, "USD")),
        """
        customer | term   | revenue | cost | margin
        acme     | volume | 55      | 0    | 55
        acme     | fx     | 15      | 0    | 15
        """,
    )


def of_period(world: World, period: Period) -> Told:
    made = margin(
        world.usage,
        world.pool_usage,
        world.books,
        period,
        "USD",
        pool_customer_usage=world.pool_customer_usage,
        complete_until=PERIOD.until,
    )
    totals = made.lines.group_by("customer").agg(pl.col("revenue", "cost").sum())
    return Told(cells(world.usage, made.supply, world.books), totals, {"CHF": 10**12, "EUR": 10**12})


def change(old: Told, new: Told) -> dict[str | None, tuple[int, int]]:
    sums: dict[str | None, list[int]] = {}
    for each, sign in ((old, -1), (new, 1)):
        quanta = each.totals.with_columns(to_quanta(pl.col(name)) for name in ("revenue", "cost"))
        for customer, revenue, cost in quanta.select("customer", "revenue", "cost").rows():
            at = sums.setdefault(customer, [0, 0])
            at[0] += sign * revenue
            at[1] += sign * cost
    return {name: (revenue, cost) for name, (revenue, cost) in sums.items() if revenue or cost}


def only(made: Told, customer: str | None) -> Told:
    """What the period is of one customer alone."""
    mine = pl.col("customer").eq_missing(pl.lit(customer, dtype=pl.String))
    return Told(
        Cells(made.cells.cells.filter(mine), made.cells.full, made.cells.used.filter(mine)),
        made.totals.filter(mine),
        made.rates,
    )


@relaxed
@given(supplied())
def test_the_terms_sum_to_the_change_and_to_those_of_each_customer(world):
    middle = START + 6 * QUARTER
    old, new = (of_period(world, Period("half", *span)) for span in ((START, middle), (middle, PERIOD.until)))
    parts = in_quanta(bridge(old, new, "USD"))
    sums = parts.group_by("customer").agg(pl.col("revenue", "cost").sum())
    found = {row[0]: row[1:] for row in sums.select("customer", "revenue", "cost").rows() if any(row[1:])}
    assert found == change(old, new)
    assert parts.filter(term="other").is_empty(), "cells hold everything that the margin has"
    customers = {None, *old.totals["customer"], *new.totals["customer"]}
    each = pl.concat([in_quanta(bridge(only(old, name), only(new, name), "USD")) for name in customers])
    assert sorted(map(str, each.rows())) == sorted(map(str, parts.rows()))
    assert bridge(old, old, "USD").is_empty()
    assert bridge(new, new, "USD").is_empty()


def test_what_contracts_under_terms_earned_is_in_cells_to_the_quantum():
    met = set()
    for seed in range(6):
        world = demand_world(seed)
        own = earned(world.usage, world.books, world.period, world.complete_until)
        made = supply(world.usage, POOL_USAGE.empty(), world.books, world.period)
        under = set(under_terms(world.books)["contract"])
        assert set(own.lines["contract"]) <= under, (
            "other contracts are charged by quantity x unit price, once"
        )
        with_terms = cells(world.usage, made, world.books, own).cells
        without = cells(
            world.usage, made, world.books, replace(own, lines=own.lines.clear(), priced=own.priced.clear())
        )
        rest = without.cells.filter(of="charge")
        charged = with_terms.filter(of="charge")
        for mine, theirs in (("gross", "gross"), ("amount", "net")):
            assert charged[mine].sum() - rest[mine].sum() == own.lines[theirs].sum()
        for name in ("top_up", "overage_premium", "shortfall", "breakage", "promotional_credit"):
            sign = -1 if name == "promotional_credit" else 1
            assert with_terms.filter(of=name)["amount"].sum() == sign * own.lines[name].sum()
            met |= {name} if own.lines[name].sum() else set()
        met |= {"discount"} if charged["gross"].sum() != charged["amount"].sum() else set()
    assert {"discount", "top_up", "promotional_credit"} <= met
