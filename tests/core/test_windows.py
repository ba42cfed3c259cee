"""Windows and shares of capacity: the same minutes by the clock, by hour of the week, by model, by customer."""
# ruff: noqa: E501  # tables are as wide as they need to be

from dataclasses import dataclass, replace
from decimal import Decimal
from random import Random

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering.core.capacity import capacity, summarise_capacity
from metering.core.shares import customer_shares, model_shares
from metering.core.windows import (
    CAPACITY_HOURS_OF_WEEK,
    WINDOWS,
    capacity_curve,
    capacity_hours_of_week,
    capacity_windows,
    pool_costs,
)
from metering.errors import WrongWorld
from metering.frames.supply import ENTITLEMENTS, MULTIPLIERS, SET_ASIDE
from metering.frames.usage import POOL_CUSTOMER_USAGE, POOL_USAGE, SUMS
from metering.periods import MINUTE, parse_period
from metering.results.costs import POOL_COST
from tests.core import example_books as a
from tests.core.worlds import PERIOD, START, World, worlds
from tests.text_tables import check, read

INPUT = "uncached_input_tokens"
QUARTER = parse_period("2026-03-01..2026-03-01T00:15")


def minutes(text):
    return read(
        text,
        POOL_USAGE,
        pool="block",
        ran_on="pool",
        model_served="large",
        tier_served="standard",
        region="us-west",
        context_breakpoint=0,
        requests=1,
    )


def by_customer(text):
    return read(
        text,
        POOL_CUSTOMER_USAGE,
        pool="block",
        ran_on="pool",
        provider="own",
        model_served="large",
        tier_served="standard",
        region="us-west",
        context_breakpoint=0,
    )


def without_customers(customer_usage):
    key = [name for name in POOL_USAGE.columns if name not in SUMS]
    return POOL_USAGE.conform(customer_usage.group_by(key).agg(pl.col(*SUMS).sum()))


def block(per_minute=100, steps=None, weights=f"meter | weight\n {INPUT} | 1", **given):
    bought = a.bought(steps or f"unit_burn_per_minute\n {per_minute}")
    return a.books(**{**bought, "burndown": a.burndown(weights), **given})


def aside(text):
    return read(text, SET_ASIDE, pool="block", dimension="all", effective_from="2026-01-01")


# ---- by the clock ------------------------------------------------------------------------------------------


def test_windows_of_the_clock_over_a_months_edge():
    """The last minute of February is in its hour, day and month; the first of March in the next of each."""
    period = parse_period("2026-02-28T23:45..2026-03-01T00:15")
    usage = minutes(
        f"minute | {INPUT}\n 2026-02-28 23:59 | 130\n 2026-03-01 00:00 | 40\n 2026-03-01 00:07 | 60"
    )
    books = block(steps="unit_burn_per_minute | fee_per_month\n 100 | 29.76")
    used = capacity(usage, books, period).utilization
    cost = pool_costs(used, books, period)
    check(
        capacity_windows(used, cost, "month"),
        """
        window_start | minutes | contracted | served | overrun | idle  | max_ratio | minutes_at_limit | recognised_cost
        2026-02-01   | 15      | 1_500      | 100    | 30      | 1_400 | 1.3       | 1                | 0.011071428572
        2026-03-01   | 15      | 1_500      | 100    | 0       | 1_400 | 0.6       | 0                | 0.01
        """,
    )
    check(
        capacity_windows(used, cost, "5m").filter(pl.col("burn") > 0),
        """
        window_start     | minutes | served | overrun | served_of_available_ratio | recognised_cost | currency
        2026-02-28 23:55 | 5       | 100    | 30      | 0.2                       | -               | -
        2026-03-01 00:00 | 5       | 40     | 0       | 0.08                      | -               | -
        2026-03-01 00:05 | 5       | 60     | 0       | 0.12                      | -               | -
        """,
    )
    fifteen = capacity_windows(used, cost, "15m")
    assert fifteen["recognised_cost"].null_count() == 0
    assert fifteen.height == 2


def test_hours_of_the_week():
    """Nine days from Sunday 23:00: Monday 00:00 comes twice, full once; most hours came once, none never did."""
    period = parse_period("2026-03-01T23:00..2026-03-09T01:00")
    usage = minutes(
        f"minute | {INPUT}\n 2026-03-02 00:00 | 50\n 2026-03-09 00:59 | 100\n 2026-03-01 23:00 | 30"
    )
    books = block()
    used = capacity(usage, books, period).utilization
    found = capacity_hours_of_week(used, pool_costs(used, books, period))
    assert (found.height, found["minutes"].sum()) == (168, period.minutes)
    check(
        found.filter(pl.col("burn") > 0),
        """
        hour_of_week | weekday | hour | minutes | contracted | served | max_ratio | minutes_at_limit | served_of_available_ratio
        0            | Mon     | 0    | 120     | 12_000     | 150    | 1         | 1                | 0.0125
        167          | Sun     | 23   | 120     | 12_000     | 30     | 0.3       | 0                | 0.0025
        """,
    )
    short = capacity_hours_of_week(used.head(60), POOL_COST.empty())
    check(
        short.filter(pl.col("hour_of_week") >= 166),
        """
        weekday | hour | minutes | contracted | served_of_available_ratio | recognised_cost | tightest
        Sun     | 22   | 0       | 0          | -                         | -               | no
        Sun     | 23   | 60      | 6_000      | 0.005                     | -               | yes
        """,
    )


def test_the_line_of_a_picture_has_the_shortest_stretches_that_fit():
    books = block()
    for period, length, points in (
        ("2026-03-01T00:00..2026-03-01T01:00", "1m", 60),
        ("2026-03-01", "30m", 48),
        ("2026-03-01..2026-03-08", "3h", 56),
        ("2026-03", "12h", 62),
    ):
        used = capacity(minutes(f"minute | {INPUT}"), books, parse_period(period)).utilization
        each, curve = capacity_curve(used, 64)
        assert (each, curve.height) == (length, points)


def test_a_ramp_in_mid_month_and_a_month_that_is_not_over():
    """100 until the 16th, then 300: of March 1,440 x (15 x 100 + 16 x 300); until the 16th at 06:00 15 d and 6 h."""
    books = block(
        steps="""
        effective_from   | effective_until  | units | unit_burn_per_minute
        2026-01-01       | 2026-03-16       | 1     | 100
        2026-03-16       | -                | 3     | 100
        """
    )
    for period, contracted in (("2026-03", 9_072_000), ("2026-03-01..2026-03-16T06:00", 2_268_000)):
        used = capacity(minutes(f"minute | {INPUT}"), books, parse_period(period)).utilization
        check(
            summarise_capacity(used),
            f"contracted | served | idle | mean_ratio | minutes_at_limit\n {contracted} | 0 | {contracted} | 0 | 0",
        )


# ---- dimensions, and spill that no event reports -----------------------------------------------------------


def test_a_pool_is_as_full_as_its_tightest_dimension():
    """Input at 120 % spills 5k, output has room: the pool's figure is the input's. Then the output's turn."""
    books = block(
        steps="dimension | unit_burn_per_minute | fee_share_ratio\n input | 25_000 | 0.5\n output | 2_500 | 0.5",
        weights=f"dimension | meter | weight\n input | {INPUT} | 1\n output | output_tokens | 1",
    )
    usage = minutes(
        f"""
        minute           | {INPUT} | output_tokens
        2026-03-01 00:00 | 30_000  | 1_000
        2026-03-01 00:01 | 10_000  | 2_500
        """
    )
    used = capacity(usage, books, QUARTER).utilization
    check(
        capacity_windows(used, POOL_COST.empty(), "minute").filter(pl.col("burn") > 0),
        """
        dimension | window_start     | max_ratio | tightest | minutes_at_limit | modelled_spill
        input     | 2026-03-01 00:00 | 1.2       | yes      | 1                | 5_000
        output    | 2026-03-01 00:00 | 0.4       | no       | 0                | -
        input     | 2026-03-01 00:01 | 0.4       | no       | 0                | -
        output    | 2026-03-01 00:01 | 1         | yes      | 1                | -
        """,
    )
    check(
        summarise_capacity(used),
        """
        dimension | minutes_at_limit | pool_minutes_at_limit | tightest | overrun | modelled_spill
        input     | 1                | 2                     | yes      | 5_000   | 5_000
        output    | 1                | 2                     | no       | 0       | -
        """,
    )


def test_what_exceeds_is_modelled_spill_only_where_no_event_says_overflow():
    books = a.books(
        **a.bought("pool | unit_burn_per_minute\n quiet | 100\n says | 100\n silent | 100"),
        burndown=a.burndown(
            f"pool | meter | weight\n quiet | {INPUT} | 1\n says | {INPUT} | 1\n silent | {INPUT} | 1"
        ),
    )
    usage = minutes(
        f"""
        minute           | pool   | ran_on   | {INPUT}
        2026-03-01 00:00 | says   | pool     | 140
        2026-03-01 00:09 | says   | overflow | 7
        2026-03-01 00:00 | silent | pool     | 140
        2026-03-01 00:00 | quiet  | pool     | 100
        """
    )
    used = capacity(usage, books, QUARTER).utilization
    check(
        summarise_capacity(used),
        """
        pool   | overrun | spill | modelled_spill
        quiet  | 0       | 0     | -
        says   | 40      | 7     | -
        silent | 40      | 0     | 40
        """,
    )


# ---- whose burn it was -------------------------------------------------------------------------------------


def test_burn_by_model():
    """Output weighs 4, small half as much; what ran on demand, or in a pool without capacity, is nobody's."""
    usage = minutes(
        f"""
        minute           | model_served | ran_on    | {INPUT} | output_tokens | requests
        2026-03-01 00:00 | large        | pool      | 100     | 25            | 2
        2026-03-01 00:01 | large        | overflow  | 30      | 0             | 1
        2026-03-01 00:01 | small        | pool      | 100     | 25            | 4
        2026-03-01 00:01 | small        | overflow  | 20      | 0             | 1
        2026-03-01 00:01 | large        | on_demand | 999     | 0             | 1
        2026-03-01 00:15 | large        | pool      | 999     | 0             | 1
        """
    )
    weights = f"""
        model | meter         | weight | denominator
        large | {INPUT}       | 2      | 2
        large | output_tokens | 8      | 2
        small | {INPUT}       | 1      | 2
        small | output_tokens | 4      | 2
        """
    books = block(1_000, weights=weights)
    check(
        model_shares(usage, books, capacity(usage, books, QUARTER)),
        """
        model_served | denominator | requests | burn | burn_ratio | spill | spill_ratio
        large        | 2           | 3        | 400  | 0.666667   | 60    | 0.75
        small        | 2           | 5        | 200  | 0.333333   | 20    | 0.25
        """,
    )


CUSTOMERS = f"""
minute           | customer | pool     | ran_on   | {INPUT}
2026-03-01 00:00 | a        | block    | pool     | 90
2026-03-01 00:00 | b        | block    | pool     | 10
2026-03-01 00:00 | d        | block    | pool     | 5
2026-03-01 00:01 | a        | block    | pool     | 20
2026-03-01 00:01 | b        | block    | pool     | 50
2026-03-01 00:01 | b        | block    | overflow | 40
2026-03-01 00:02 | a        | research | pool     | 3
2026-03-01 00:04 | b        | block    | pool     | 0
"""


def test_each_customers_share_of_the_pools_peak_and_of_its_entitlement():
    """Demand is highest at 00:01 with 110, 90 of them b's. a, entitled to 60, used 60 of its 90 and then 20."""
    usage = by_customer(CUSTOMERS)
    books = block(
        set_aside=aside("kind | name | units | effective_until\n carve_out | research | 1 | 2026-03-02"),
        steps="units | unit_burn_per_minute\n 11 | 10",
        entitlements=read(
            "customer | units | effective_until\n a | 6 | -\n b | 6.97 | -\n c | 2 | 2026-03-01 00:15",
            ENTITLEMENTS,
            contract="c",
            pool="block",
            dimension="all",
            effective_from="2026-01-01",
        ),
    )
    used = capacity(without_customers(usage), books, parse_period("2026-03-01..2026-03-01T00:30"))
    found = customer_shares(usage, books, used)
    check(
        found,
        """
        pool     | customer | burn | burn_ratio | spill | peak_minute      | peak_demand | peak_ratio | own_peak_minute  | own_peak_demand
        block    | a        | 110  | 0.628571   | 0     | 2026-03-01 00:01 | 20          | 0.181818   | 2026-03-01 00:00 | 90
        block    | b        | 60   | 0.342857   | 40    | 2026-03-01 00:01 | 90          | 0.818182   | 2026-03-01 00:01 | 90
        block    | c        | 0    | 0          | 0     | 2026-03-01 00:01 | 0           | 0          | -                | 0
        block    | d        | 5    | 0.028571   | 0     | 2026-03-01 00:01 | 0           | 0          | 2026-03-01 00:00 | 5
        research | a        | 3    | 1          | 0     | 2026-03-01 00:02 | 3           | 1          | 2026-03-01 00:02 | 3
        """,
    )
    check(
        found,
        """
        pool     | customer | entitlement | entitlement_used | entitlement_used_ratio
        block    | a        | 1_800       | 80               | 0.044444
        block    | b        | 2_070       | 60               | 0.028986
        block    | c        | 300         | 0                | 0
        block    | d        | -           | -                | -
        research | a        | -           | -                | -
        """,
    )
    with pytest.raises(WrongWorld, match=r"usage by customer and pool usage by minute disagree in .*'block'"):
        customer_shares(usage.head(3), books, used)


# ---- properties --------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Richer(World):
    def _repr_pretty_(self, printer, _cycle):
        printer.text("a world")  # all of its frames are more than hypothesis prints


@st.composite
def richer(draw):
    """A world with something set aside from its pools, multipliers, and customers who are entitled to units."""
    world = draw(worlds())
    dice = Random(draw(st.integers(0, 2**32)))
    steps, early = world.books.capacity_steps, START - 600 * MINUTE
    set_aside, multipliers, entitlements = [], [], []
    for (pool, dimension), some in steps.group_by("pool", "dimension"):
        least = some["units"].min()
        edge = START + dice.randrange(1, 150) * MINUTE
        aside = {"pool": pool, "dimension": dimension, "effective_from": early, "effective_until": edge}
        if least > 1:
            set_aside.append({**aside, "kind": "carve_out", "name": f"of-{pool}", "units": 1})
        if least > 0:
            set_aside.append({**aside, "kind": "undelivered", "name": "late", "units": 1})
        for by, value in (("region", "west"), ("tier", "standard")):
            if dice.random() < 0.7:
                row = {
                    "pool": pool,
                    "dimension": dimension,
                    "by": by,
                    "value": value,
                    "effective_from": early,
                }
                multipliers.append({**row, "numerator": dice.randrange(9), "denominator": 7})
        for customer in dice.sample(["a", "b", "c"], dice.randrange(4)):
            row = {"customer": customer, "contract": "c", "pool": pool, "dimension": dimension}
            entitlements.append(
                {**row, "effective_from": early, "units": Decimal(dice.randrange(30)).scaleb(-1)}
            )
    books = replace(
        world.books,
        set_aside=_rows(SET_ASIDE, set_aside),
        multipliers=_rows(MULTIPLIERS, multipliers),
        entitlements=_rows(ENTITLEMENTS, entitlements),
    )
    return Richer(world.usage, world.pool_usage, books, world.pool_customer_usage)


def _rows(frame, rows):
    given = pl.DataFrame(
        [{**dict.fromkeys(frame.columns), **row} for row in rows], schema_overrides=dict(frame.columns)
    )
    return frame.conform(given if rows else frame.empty())


SMALL = settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
SUMMED = (
    "contracted",
    "undelivered",
    "carved_out",
    "available",
    "burn",
    "served",
    "idle",
    "overrun",
    "spill",
)


@SMALL
@given(richer(), st.randoms(use_true_random=False))
def test_every_breakdown_sums_to_the_pool(world, random):
    """By any window, hour of the week, model or customer: the sums are those of the minutes, in any order."""
    used = capacity(world.pool_usage, world.books, PERIOD)
    every = pl.concat([used.utilization, used.carve_outs])
    of_pool = ["pool", "dimension"]
    whole = summarise_capacity(every)
    wanted = whole.select(*of_pool, *SUMMED).sort(of_pool).rows()
    cost = pool_costs(used.utilization, world.books, PERIOD)
    tables = [capacity_windows(every, cost, window) for window in WINDOWS]
    tables.append(CAPACITY_HOURS_OF_WEEK.conform(capacity_hours_of_week(every, cost)))
    for table in tables:
        assert table.group_by(of_pool).agg(pl.col(SUMMED).sum()).sort(of_pool).rows() == wanted
        assert table.group_by(of_pool).agg(pl.col("minutes").sum()).sort(of_pool).rows() == (
            whole.select(*of_pool, "minutes").sort(of_pool).rows()
        )
    # one dimension of every pool is the tightest
    assert (whole.group_by("pool").agg(pl.col("tightest").sum())["tightest"] == 1).all()
    models = model_shares(world.pool_usage, world.books, used)
    customers = customer_shares(world.pool_customer_usage, world.books, used)
    used_at_all = whole.filter(pl.col("burn") + pl.col("spill") > 0).select(*of_pool, "burn", "spill").rows()
    for table in (models, customers):
        sums = table.group_by(of_pool).agg(pl.col("burn", "spill").sum()).sort(of_pool)
        assert sums.filter(pl.col("burn") + pl.col("spill") > 0).rows() == used_at_all
    shuffled = world.pool_customer_usage.sample(fraction=1, shuffle=True, seed=random.randrange(1_000))
    assert customer_shares(shuffled, world.books, used).equals(customers)


@SMALL
@given(richer(), st.integers(1, 9))
def test_shares_do_not_depend_on_scale(world, factor):
    """All usage x k: every share stays as it is, every burn is k times what it was."""
    times = pl.lit(factor, dtype=pl.Int128)
    grown = [
        frame.with_columns(pl.col(*SUMS) * times) for frame in (world.pool_usage, world.pool_customer_usage)
    ]
    before, after = (
        customer_shares(usage, world.books, capacity(pools, world.books, PERIOD))
        for pools, usage in ((world.pool_usage, world.pool_customer_usage), grown)
    )
    shares = ["pool", "dimension", "customer", "burn_ratio", "peak_ratio", "peak_minute", "own_peak_minute"]
    assert after.select(shares).equals(before.select(shares))
    assert after["burn"].to_list() == [factor * burn for burn in before["burn"]]
