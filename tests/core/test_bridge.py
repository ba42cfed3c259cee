"""The bridge: a table worked by hand, and what must hold between any two periods of random worlds."""

from dataclasses import replace
from decimal import Decimal

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering.core.bridge import Told, bridge
from metering.core.cells import Cells, cells
from metering.core.costs import supply
from metering.core.margin import margin
from metering.core.revenue import earned, under_terms
from metering.frames.frame import Frame
from metering.frames.terms import PERCENTAGES
from metering.frames.usage import POOL_USAGE
from metering.money import to_quanta
from metering.periods import QUARTER, Period
from metering.results.charges import CHARGED_ON_COST
from metering.results.costs import FULL_RATES
from metering.results.margin import CELLS, USED_BY
from tests.core.worlds import PERIOD, START, World, supplied
from tests.oracle.demand_worlds import demand_world
from tests.text_tables import check, read

relaxed = settings(deadline=None, max_examples=3, suppress_health_check=list(HealthCheck))
ON_COST = {
    "product": "chat",
    "provider": "own",
    "model_served": "large",
    "tier_served": "standard",
    "region": "us-west",
    "context_breakpoint": 0,
    "meter": "output_tokens",
    "cost_currency": "USD",
    "currency": "USD",
}
QUANTUM = Decimal("0.000000000001")
TOTALS = Frame(
    "TOTALS",
    {"customer": pl.String, "revenue": pl.Int128, "cost": pl.Int128},
    nullable=frozenset({"customer"}),
)


def told(
    text: str,
    full: str,
    used: str,
    totals: str,
    rates: dict[str, int] | None = None,
    on_cost: str | None = None,
) -> Told:
    """A period in quanta: every figure of the tables is one of 10^-12."""
    made = Cells(
        read(text, CELLS, currency="USD"),
        read(on_cost, CHARGED_ON_COST, **ON_COST) if on_cost else CHARGED_ON_COST.empty(),
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


def test_a_charge_on_cost_moves_as_its_cost_does():
    """Cost 100 for 100 in the pool, then 480 for 200: 120 of them there, at twice the full rate 240, and 80 on demand
    240. Charged 1.2 of cost less 10 %, then 1.5 less 20 %.

    Charge: 108; twice the tokens 216; at 1.5 instead of 1.2 it is 270; less 20 % instead of 10 % 240; the pool twice
    as dear 480; and as it ran, for 480 and not for the 400 of the pool alone, 576.
    """
    cost = "of | customer | item | meter | place | quantity | amount | gross\n cost | acme | large | output_tokens | "
    was = told(
        f"{cost} block | 100 | 100 | 100",
        "recognised | contracted\n 100 | 100",
        "customer | tokens\n acme | 100",
        "customer | revenue | cost\n acme | 108 | 100",
        on_cost="customer | place | quantity | cost | gross | amount\n acme | block | 100 | 100 | 120 | 108",
    )
    now = told(
        f"{cost} block | 120 | 240 | 240\n cost | acme | large | output_tokens | on_demand | 80 | 240 | 240",
        "recognised | contracted\n 200 | 100",
        "customer | tokens\n acme | 200",
        "customer | revenue | cost\n acme | 576 | 480",
        on_cost="customer | place | quantity | cost | gross | amount\n"
        " acme | block | 120 | 240 | 360 | 288\n acme | on_demand | 80 | 240 | 360 | 288",
    )
    check(
        in_quanta(bridge(was, now, "USD")),
        """
        customer | term           | revenue | cost | margin
        acme     | volume         | 108     | 100  | 8
        acme     | price          | 54      | 0    | 54
        acme     | discounts      | -30     | 0    | -30
        acme     | supplier_price | 240     | 200  | 40
        acme     | utilization    | 96      | 80   | 16
        """,
    )


def test_a_charge_on_a_cost_in_another_currency_moves_by_the_rate_too():
    """Charged 1.2 of EUR 100 at 1.10 = $132, then of EUR 100 at 1.20 = $144: only the rate moved, cost and charge."""
    sides = [
        told(
            "of | customer | item | meter | place | quantity | amount | gross | currency\n"
            " cost | acme | large | output_tokens | on_demand | 100 | 100 | 100 | EUR",
            "recognised | contracted\n 1 | 1",
            "customer | tokens\n acme | 100",
            f"customer | revenue | cost\n acme | {charge} | {cost}",
            {"EUR": rate * 10**10},
            "customer | place | quantity | cost | gross | amount | cost_currency\n"
            f" acme | on_demand | 100 | 100 | {charge} | {charge} | EUR",
        )
        for rate, charge, cost in ((110, 132, 110), (120, 144, 120))
    ]
    check(
        in_quanta(bridge(*sides, "USD")),
        "customer | term | revenue | cost | margin\n acme | fx | 12 | 10 | 2",
    )


def test_a_percentage_of_charges_moves_as_they_do():
    """10 % of 200 is 20. Twice the tokens, at twice the price: 800, and 15 % of it 120. The new price makes 40 into 120
    of the percentage, and 400 into 800 of what it is of."""
    header = "of | customer | item | meter | quantity | gross | amount"
    none = "recognised | contracted\n 1 | 1"
    was, now = (
        told(
            f"{header}\n charge | acme | chat | output_tokens | {tokens} | {charged} | {charged}\n"
            f" charge | acme | chat | % support | 0 | {support} | {support}",
            none,
            f"customer | tokens\n acme | {tokens}",
            f"customer | revenue | cost\n acme | {charged + support} | 0",
        )
        for tokens, charged, support in ((100, 200, 20), (200, 800, 120))
    )
    check(
        in_quanta(bridge(was, now, "USD")),
        """
        customer | term   | revenue | cost | margin
        acme     | volume | 220     | 0    | 220
        acme     | price  | 480     | 0    | 480
        """,
    )


def of_period(world: World, period: Period, *, loaded: bool = False) -> Told:
    made = margin(
        world.usage,
        world.pool_usage,
        world.books,
        period,
        "USD",
        pool_customer_usage=world.pool_customer_usage,
        complete_until=PERIOD.until,
    )
    cost = pl.col("cost_loaded" if loaded else "cost").sum().alias("cost")
    totals = made.lines.group_by("customer").agg(pl.col("revenue").sum(), cost)
    found = cells(world.usage, made.supply, world.books, made.earned, loaded=loaded)
    # euros have no rate in these worlds, so that the margin holds the charges in dollars
    charged = found.cells.filter(of="charge", currency="USD"), found.on_cost.filter(currency="USD")
    for name, told_as in (("gross", "gross"), ("charge", "amount")):
        quanta = made.lines.select(to_quanta(pl.col(name)).sum()).item()
        assert sum(each[told_as].sum() for each in charged) == quanta
    return Told(found, totals, {"CHF": 10**12, "EUR": 10**12})


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
        Cells(
            made.cells.cells.filter(mine),
            made.cells.on_cost.filter(mine),
            made.cells.full,
            made.cells.used.filter(mine),
        ),
        made.totals.filter(mine),
        made.rates,
    )


@relaxed
@given(supplied(), st.booleans(), st.booleans())
def test_the_terms_sum_to_the_change_and_to_those_of_each_customer(world, loaded, at_cost):
    middle = START + 6 * QUARTER
    if at_cost:
        ratios = (
            "charge | ratio | item\n cost plus | 1.2 | -\n cost plus | 0.333333 | m1\n uplift | 0.000001 | m2"
        )
        dated = {"of": "cost", "book": "gold", "currency": "USD", "effective_from": START + QUARTER}
        world = replace(world, books=replace(world.books, percentages=read(ratios, PERCENTAGES, **dated)))
    spans = (START, middle), (middle, PERIOD.until)
    old, new = (of_period(world, Period("half", *span), loaded=loaded) for span in spans)
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
