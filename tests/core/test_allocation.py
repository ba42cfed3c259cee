"""Allocation: a quarter hour's recognised cost goes to what was served; the rest is idle."""

from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.core.allocation import by_part, served_costs
from metering.core.capacity import capacity
from metering.core.recognition import recognised
from metering.core.windows import pool_costs, sum_costs
from metering.errors import BadInput, WrongWorld
from metering.frames.frame import INSTANT, SUM, Frame
from metering.frames.usage import POOL_USAGE
from metering.money import multiply_divide, split_largest_remainder
from metering.periods import parse_period
from tests.core import example_books as a
from tests.text_tables import check, instant, read

INPUT = "uncached_input_tokens"
SERIES = {
    "pool": "block",
    "ran_on": "pool",
    "model_served": "large",
    "tier_served": "standard",
    "region": "us-west",
}
QUARTER = parse_period("2026-03-01..2026-03-01T00:15")
BURNED = Frame(
    "BURNED",
    {"quarter_start": a.USAGE.columns["quarter_start"], "series_id": pl.UInt32, "pool": pl.String}
    | {"dimension": pl.String, "burn": SUM},
)


def burned(text):
    return read(text, BURNED, pool="block", dimension="all", quarter_start="2026-03-01")


def used(quantity, steps):
    rows = a.usage(
        f"quarter_start | uncached_input_tokens\n 2026-03-01 | {quantity}", pool="block", ran_on="pool"
    )
    books = a.books(**steps, burndown=a.burndown("meter | weight\n uncached_input_tokens | 1"))
    return capacity(a.pool_usage(rows), books, QUARTER).utilization


def test_a_mid_month_ramp_is_two_steps():
    """$29,760 and $59,520 a month are $10 and $20 a quarter hour of March."""
    steps = a.bought(
        """
        effective_from   | effective_until  | units | fee_per_month
        2026-01-01       | 2026-03-16 00:00 | 100   | 29_760
        2026-03-16 00:00 | -                | 300   | 59_520
        """
    )
    found = recognised(a.books(**steps), parse_period("2026-03"))
    by_day = found.group_by(pl.col("quarter_start").dt.day().alias("day")).agg(pl.col("cost").sum() // 10**12)
    assert sorted(by_day.rows()) == [(day, 960 if day < 16 else 1920) for day in range(1, 32)]


def test_a_ramp_in_mid_month_costs_each_half_at_its_own_rate():
    """100 units x 15 d at $1.00 a day, then 300 x 15 d at $0.50: 1,200 unit-days in the first half cost $1,200.

    The month's average, $3,750 / 6,000 = $0.625, would make it $750. 1,200 of 15 x 100 unit-days are 80 of 100
    units in every minute.
    """
    april = parse_period("2026-04")
    steps = a.bought(
        """
        effective_from | effective_until | units | unit_burn_per_minute | fee_per_month
        2026-04-01     | 2026-04-16      | 100   | 1                    | 3_000
        2026-04-16     | -               | 300   | 1                    | 4_500
        """
    )
    half = pl.datetime_range(april.start, instant("2026-04-16"), "1m", closed="left", eager=True)
    one = read(f"minute | {INPUT}\n 2026-04-01 | 80", POOL_USAGE, **SERIES)
    rows = one.drop("minute").join(pl.DataFrame({"minute": half}, schema={"minute": INSTANT}), how="cross")
    books = a.books(**steps, burndown=a.burndown(f"meter | weight\n {INPUT} | 1"))
    costs = pool_costs(capacity(rows, books, april).utilization, a.books(**steps), april)
    by_half = costs.group_by((pl.col("quarter_start") >= instant("2026-04-16")).alias("second")).agg(
        pl.col("recognised_cost", "served_cost", "idle_cost").sum().round(6)
    )
    check(
        by_half,
        """
        second | recognised_cost | served_cost | idle_cost
        no     | 1_500           | 1_200       | 300
        yes    | 2_250           | 0           | 2_250
        """,
    )


def test_a_full_pool_costs_its_fee_to_the_last_quantum():
    """$30 M over 432e12 burn: the unit cost at 12 places, multiplied back, would be $192 short."""
    april = parse_period("2026-04")
    steps = a.bought("unit_burn_per_minute | fee_per_month\n 10_000_000_000 | 30_000_000")
    books = a.books(**steps, burndown=a.burndown(f"meter | weight\n {INPUT} | 1"))
    every = pl.datetime_range(april.start, april.until, "1m", closed="left", eager=True)
    one = read(f"minute | {INPUT}\n 2026-04-01 | 10_000_000_000", POOL_USAGE, **SERIES)
    rows = one.drop("minute").join(pl.DataFrame({"minute": every}, schema={"minute": INSTANT}), how="cross")
    used = capacity(rows, books, april).utilization
    costs = pool_costs(used, books, april)
    check(costs.select(pl.col("served_cost", "idle_cost").sum()), "served_cost | idle_cost\n 30_000_000 | 0")
    assert used["burn"].sum() == 432 * 10**12
    assert Decimal(30_000_000) - Decimal("0.000000069444") * (432 * 10**12) == 192


def test_the_costs_of_a_pool_paid_in_two_currencies_are_not_added():
    """The sum of $10 and CHF 10 is not 20 of anything."""
    steps = a.bought(
        """
        effective_from   | effective_until  | unit_burn_per_minute | fee_per_month | currency
        2026-01-01       | 2026-03-01 00:15 | 100                  | 29_760        | USD
        2026-03-01 00:15 | -                | 100                  | 29_760        | CHF
        """
    )
    for period, currency in (("2026-02-28", "USD"), ("2026-03-01T00:15..2026-03-02", "CHF")):
        span = parse_period(period)
        books = a.books(**steps)
        costs = pool_costs(capacity(POOL_USAGE.empty(), books, span).utilization, a.books(**steps), span)
        assert costs["currency"].unique().to_list() == [currency]
    day = parse_period("2026-03-01")
    mixed = pool_costs(capacity(POOL_USAGE.empty(), a.books(**steps), day).utilization, a.books(**steps), day)
    check(sum_costs(mixed, ["pool"]), "pool | recognised_cost | idle_cost | currency\n block | - | - | -")


def test_dimensions_share_a_fee_without_losing_a_quantum():
    steps = a.bought(
        """
        dimension | fee_per_month  | fee_share_ratio
        input     | 100.000000000007 | 0.333333333333
        output    | 100.000000000007 | 0.666666666667
        """
    )
    assert recognised(a.books(**steps), parse_period("2026-03"))["cost"].sum() == 100_000_000_000_007


def test_served_cost_is_split_by_burn_and_never_exceeds_the_capacity():
    """$10 a quarter hour for 15 x 100: a minute of 450 serves 100 of them; 100/1500 of $10 is split 2 : 1."""
    steps = a.bought("unit_burn_per_minute | fee_per_month\n 100 | 29_760")
    rows = burned("series_id | burn\n 0 | 300\n 1 | 150")
    cost = by_part(recognised(a.books(**steps), QUARTER), used(450, steps))
    check(cost, "recognised_cost | served_cost | idle_cost\n 10 | 0.666666666667 | 9.333333333333")
    served = served_costs(rows, cost, used(450, steps))
    check(served, "series_id | cost\n 0 | 444_444_444_445\n 1 | 222_222_222_222")


def test_a_tie_goes_to_the_first_series():
    rows = pl.DataFrame(
        {"group": [1, 1, 1], "total": [5, 5, 5], "weight": [2, 2, 2], "series_id": [9, 7, 8]},
        schema={"group": pl.Int64, "total": SUM, "weight": SUM, "series_id": pl.Int64},
    )
    split = split_largest_remainder(
        rows, group=["group"], total="total", weight="weight", tie_break=["series_id"], into="part"
    )
    check(split, "series_id | part\n 7 | 2\n 8 | 2\n 9 | 1")


def test_rollups_that_disagree_are_a_wrong_world():
    steps = a.bought("unit_burn_per_minute | fee_per_month\n 100 | 29_760")
    cost = by_part(recognised(a.books(**steps), QUARTER), used(450, steps))
    with pytest.raises(WrongWorld, match=r"disagree.*metering verify"):
        served_costs(burned("series_id | burn\n 0 | 449"), cost, used(450, steps))
    with pytest.raises(BadInput, match="burn is negative"):
        served_costs(burned("series_id | burn\n 0 | -1\n 1 | 451"), cost, used(450, steps))


@given(st.integers(0, 2**120 - 1), st.integers(0, 2**86), st.integers(1, 2**86))
def test_multiply_divide_is_exact_beyond_128_bits(factor, weight, weights):
    weight = min(weight, weights)
    frame = pl.DataFrame({"f": [factor], "w": [weight], "s": [weights]}, schema=dict.fromkeys("fws", SUM))
    quotient, remainder = multiply_divide(pl.col("f"), pl.col("w"), pl.col("s"))
    assert frame.select(quotient.alias("q"), remainder.alias("r")).row(0) == divmod(factor * weight, weights)


@given(st.integers(0, 2**100), st.lists(st.integers(0, 2**80), min_size=1, max_size=9))
def test_parts_sum_to_the_whole(total, weights):
    weights[0] += 1
    frame = pl.DataFrame(
        {"g": [0] * len(weights), "t": [total] * len(weights), "w": weights, "i": list(range(len(weights)))},
        schema={"g": pl.Int64, "t": SUM, "w": SUM, "i": pl.Int64},
    )
    split = split_largest_remainder(frame, group=["g"], total="t", weight="w", tie_break=["i"], into="part")
    assert split["part"].sum() == total
    for weight, part in split.select("w", "part").rows():
        assert part in (total * weight // sum(weights), total * weight // sum(weights) + 1)
