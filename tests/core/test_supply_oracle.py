"""The supply side twice: the worked examples on the slow oracle, then the core against it on random worlds."""

from collections import Counter
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import polars as pl
import pytest

from metering.frames.supply import BILL_LINES, BURNDOWN, CAPACITY_FEES, CAPACITY_STEPS, POOLS, SET_ASIDE
from metering.frames.usage import POOL_CUSTOMER_USAGE
from metering.money import MONEY
from metering.periods import Period
from tests.core import example_books
from tests.oracle import closing, supply
from tests.oracle.compare import (
    MET,
    by_key,
    commitments_differ,
    core_costs,
    differences,
    oracle_costs,
    schedules_differ,
    sizes_differ,
)
from tests.oracle.supply import Book, Row
from tests.oracle.worlds import World, world
from tests.text_tables import instant, read

M = 10**12
START = instant("2026-06-01")
MINUTE = supply.MINUTE


# ---- the oracle by hand -------------------------------------------------------------------------------


def book(*, steps: str, fees: str = "amount | per\n", pools: str = "pool\n block", **texts: str) -> Book:
    """Books from tables; what they do not say is the plainest there is."""
    given: dict[str, Any] = {"pool": "block", "dimension": "all", "effective_from": "2026-01-01"}
    whole = {"unit": "u", "supplier": "s", "currency": "USD", "window_seconds": 60, "term_from": "2026-01-01"}
    frames = {
        "pools": read(
            pools, POOLS, **_missing(pools, {**whole, "idle_policy": "none", "recognition": "as_billed"})
        ),
        "capacity_steps": read(
            steps,
            CAPACITY_STEPS,
            **_missing(steps, {**given, "unit_burn_per_minute": 1, "fee_share_ratio": "1"}),
        ),
        "capacity_fees": read(
            fees,
            CAPACITY_FEES,
            **_missing(
                fees, {"pool": "block", "fee": "f", "effective_from": "2026-01-01", "currency": "USD"}
            ),
        ),
        "burndown": read(
            burndown := "meter | weight\n uncached_input_tokens | 1",
            BURNDOWN,
            **_missing(burndown, {**given, "model": "large", "denominator": 1}),
        ),
    }
    if "set_aside" in texts:
        text = texts["set_aside"]
        frames["set_aside"] = read(text, SET_ASIDE, **_missing(text, given))
    if "bills" in texts:
        text = texts["bills"]
        filled = {
            "supplier": "s",
            "document": "d",
            "line": "1",
            "currency": "USD",
            "posted_month": "2026-06-01",
        }
        frames["bill_lines"] = read(text, BILL_LINES, **_missing(text, filled))
    return Book(**{name: frame.to_dicts() for name, frame in frames.items()})


def _missing(text: str, defaults: dict[str, Any]) -> dict[str, Any]:
    said = [cell.strip() for cell in next(line for line in text.splitlines() if line.strip()).split("|")]
    return {name: value for name, value in defaults.items() if name not in said}


def used(minute: int, tokens: int, ran_on: str = "pool") -> Row:
    return {
        **dict.fromkeys(supply.METERS, 0),
        "pool": "block",
        "ran_on": ran_on,
        "model_served": "large",
        "tier_served": "standard",
        "region": "west",
        "context_breakpoint": 0,
        "uncached_input_tokens": tokens,
        "minute": START + MINUTE * minute,
    }


def test_what_was_neither_delivered_nor_free_is_not_idle() -> None:
    books = book(
        steps="units\n 1000",
        set_aside="""
        kind        | name     | units
        undelivered | late     | 200
        carve_out   | research | 100
        """,
    )
    minute = supply.utilization([used(0, 600)], books, START, START + MINUTE)["block", "all", START]
    assert [minute[name] for name in ("contracted", *supply.PARTS)] == [1000, 200, 100, 600, 100]


def test_burn_above_a_minute_is_overrun_and_not_the_idle_of_the_next() -> None:
    minutes = supply.utilization(
        [used(0, 1_400), used(1, 200)], book(steps="units\n 1000"), START, START + 2 * MINUTE
    )
    assert [[row[name] for name in ("served", "overrun", "idle")] for row in minutes.values()] == [
        [1000, 400, 0],
        [200, 0, 800],
    ]


def test_a_flat_fee_over_a_ramp_as_billed_and_by_capacity_hours() -> None:
    def by_month(schedule: str, *months: tuple[str, str]) -> list[int]:
        books = book(
            pools=f"pool | recognition\n block | {schedule}",
            steps="""
            effective_from | effective_until | units
            2026-01-01     | 2026-07-01      | 100
            2026-07-01     | 2027-01-01      | 300
            """,
            fees="""
            amount | per   | effective_until
            100000 | month | 2027-01-01
            """,
        )
        spans = [(instant(since), instant(until)) for since, until in months]
        return [sum(cost for cost, _ in supply.recognised(books, *span).values()) // M for span in spans]

    january, february, july = (
        ("2026-01-01", "2026-02-01"),
        ("2026-02-01", "2026-03-01"),
        ("2026-07-01", "2026-08-01"),
    )

    assert by_month("as_billed", february, july) == [100_000, 100_000]
    # 181 days of 100 units, 184 of 300: 73,300 unit-days; January is 31 x 100 of them, July 31 x 300
    by_hours = [1_200_000 * 3_100 // 73_300, 1_200_000 * 9_300 // 73_300]
    assert by_month("capacity_hours", january, july) == by_hours
    assert by_month("straight_line_days", february) == [1_200_000 * 28 // 365]


def test_idle_by_entitlement_is_carried_by_those_whose_units_stood_idle() -> None:
    def carried(entitled: dict[str, int], burned: dict[str, int]) -> dict[str, int]:
        idle = 100 - sum(burned.values())
        minutes = {START: {"idle": idle}}
        return supply.held_by(
            idle * M, minutes, {START: entitled}, {(START, who): burn for who, burn in burned.items()}
        )

    assert carried({"A": 30, "B": 30}, {"A": 30}) == {"A": 0, "B": 30 * M}
    assert carried({"A": 60, "B": 40}, {"A": 90}) == {"A": 0, "B": 10 * M}


def test_the_premium_of_spill_goes_to_who_took_more_than_its_own() -> None:
    moved = supply.shift(
        {"all": Fraction(M)},
        {("all", "A"): 60, ("all", "B"): 40},
        {("all", "A"): 90, ("all", "B"): 10},
        {("all", "B"): 30},
        {"B": 120 * M},
    )
    assert moved == {"A": 90 * M, "B": -90 * M}


def test_a_bill_that_equals_the_contract_changes_nothing_and_a_difference_is_spread() -> None:
    given = {
        "steps": "units\n 10",
        "fees": """
        amount | per   | effective_until
        72000  | month | 2027-01-01
        """,
    }
    line = "category | object_kind | object | amount | service_from | service_until\n"
    until = instant("2026-07-01")
    alone = supply.recognised(book(**given), START, until)
    billed = supply.recognised(
        book(**given, bills=line + "charge | pool | block | 72000 | 2026-06-01 | 2026-07-01"), START, until
    )
    assert {key: (cost, False) for key, (cost, _) in alone.items()} == billed
    more = supply.recognised(
        book(**given, bills=line + "charge | pool | block | 72720 | 2026-06-01 | 2026-07-01"), START, until
    )
    assert {cost for cost, _ in more.values()} == {25 * M + M // 4}  # 72,000 + 720 over 2,880 quarter hours


def test_rated_and_billed_on_demand_leave_a_variance() -> None:
    books = book(
        steps="units\n 1",
        bills="""
        category | object_kind | amount    | service_from | service_until
        charge   | on_demand   | 10_240.17 | 2026-06-01   | 2026-07-01
        """,
    )
    rated = {(START, "s", "large", "USD"): 10_000 * M}
    costs = {
        (START.date(), "usage", "s", "USD", "acme", "paying"): {
            "cost_pool": 0,
            "cost_on_demand": 10_000 * M,
            "idle_share": 0,
        }
    }
    terms, whole = closing.closure(costs, {}, rated, books, START, instant("2026-07-01"))
    assert terms["s", "USD", "variance", None] == (240_170_000_000_000, 240_170_000_000_000)
    assert whole["s", "USD"] == 10_240_170_000_000_000


@pytest.mark.parametrize(
    ("rule", "edges", "pays"), [("true_up", 1, 6_200), ("true_up", 3, 6_500), ("roll_over", 3, 6_300)]
)
def test_commitments_by_one_term_by_year_and_with_roll_over(rule: str, edges: int, pays: int) -> None:
    year = timedelta(days=365)
    sizes = [6_000] if edges == 1 else [1_000, 2_000, 3_000]
    tranches = [
        {
            "holder": "h",
            "commitment": "c",
            "draws": [],
            "shortfall_rule": rule,
            "committed": size,
            "roll_over_max": None,
            "roll_over_until": None,
            "effective_from": START + place * year,
            "effective_until": START + (place + 1 if edges == 3 else 3) * year,
        }
        for place, size in enumerate(sizes)
    ]
    spent = [
        {"holder": "h", "account": "a", "part": 0, "slice_start": START + place * year, "amount": amount}
        for place, amount in enumerate([800, 2_500, 2_900])
    ]
    drawn = closing.draw_down(tranches, spent, START + 4 * year)
    assert 6_200 + sum(row["shortfall"] for row in drawn.values()) == pays


def test_the_best_size_is_where_demand_exceeds_it_as_often_as_its_cost_is_of_the_price() -> None:
    demand = [60, 70, 80, 85, 90, 95, 110, 120, 130, 150]
    costs = closing.curve(demand, range(50, 160, 10), Fraction(1, 4), Fraction(1))
    assert min(costs, key=lambda size: costs[size]) == 120
    assert (costs[120], costs[100]) == (340, 360)
    cut = closing.curve([min(d, 100) for d in demand], range(50, 160, 10), Fraction(1, 4), Fraction(1))
    assert (min(cut, key=lambda size: (cut[size], -size)), cut[100]) == (100, 250)


def test_an_amount_is_translated_once_half_even() -> None:
    assert [closing.translated(amount, Fraction(1, 2)) for amount in (1, 3, -1, -3)] == [0, 2, 0, -2]
    rates = [
        {
            "currency": "EUR",
            "into": "USD",
            "kind": "month_average",
            "effective_from": START,
            "rate": Decimal(2),
        }
    ]
    books = Book(exchange_rates=rates)
    asked = [
        closing.rate(books, (START + days * supply.MINUTE * 1440).date(), "EUR", "USD")
        for days in (0, 40, 70)
    ]
    assert asked == [(2, False), (2, True), (None, False)]
    assert closing.rate(books, START.date(), "CHF", "USD") == (None, False)


# ---- the core against it ------------------------------------------------------------------------------


def test_random_worlds_are_equal_to_the_last_digit() -> None:
    """Some eighty pools in sixteen worlds; `make oracle` has thousands."""
    met: Counter[str] = Counter()
    assert [line for seed in range(700, 716) for line in differences(world(seed), met)] == []
    assert {name for name in MET if not met[name]} == set()


def test_schedules_over_a_year_commitments_and_sizes_are_equal_to_the_last_digit() -> None:
    assert [line for seed in range(4) for line in schedules_differ(seed)] == []
    assert [line for seed in range(20) for line in commitments_differ(seed)] == []
    assert [line for seed in range(20) for line in sizes_differ(seed)] == []


@pytest.mark.parametrize("amount", ["10.000000000000", "10.000000000001", "10.000000000002"])
def test_equal_burn_in_two_quarter_hours_is_a_tie_that_the_earlier_takes(amount: str) -> None:
    """b burns 1 in the first quarter hour, a 1 in the second: an odd quantum of idle is b's, whatever its name."""
    hour = Period("tie", instant("2026-06-01"), instant("2026-06-01 00:30"))
    block = example_books.bought(
        """
        effective_from | effective_until  | units | unit_burn_per_minute | fee_per_month | idle_policy
        2026-06-01     | 2026-06-01 00:30 | 1     | 1                    | 0             | burn
        """
    )
    fee = block["capacity_fees"].with_columns(
        pl.lit("span").alias("per"), pl.lit(amount).cast(MONEY).alias("amount")
    )
    books = example_books.books(
        **{**block, "capacity_fees": fee},
        burndown=example_books.burndown("meter | weight\n uncached_input_tokens | 1"),
    )
    rows = example_books.usage(
        """
        quarter_start    | customer | uncached_input_tokens
        2026-06-01 00:00 | b        | 1
        2026-06-01 00:15 | a        | 1
        """,
        pool="block",
        ran_on="pool",
    )
    by_minute = example_books.pool_usage(rows)
    nobody = POOL_CUSTOMER_USAGE.empty()
    tie = World(0, rows, by_minute, nobody, books, hour, hour.until)
    carried = {key[4]: row["idle_share"] for key, row in oracle_costs(tie).items() if key[1] == "usage"}
    idle = sum(carried.values())
    assert carried == {"b": (idle + 1) // 2, "a": idle // 2}
    assert by_key(core_costs(tie).lines) == oracle_costs(tie)
