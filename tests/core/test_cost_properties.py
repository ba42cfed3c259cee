"""Properties of costs on random worlds: nothing is lost between currencies, days, customers, or by order."""

from dataclasses import fields, replace
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering.core.allocation import by_part
from metering.core.capacity import capacity
from metering.core.costs import Costs, costs
from metering.core.entitlement import burned_by_customer, entitled
from metering.core.margin import margin
from metering.core.rating import on_demand_costs
from metering.core.recognition import recognised
from metering.frames.books import Books
from metering.money import to_quanta
from metering.periods import QUARTER, Period
from metering.results.costs import COSTS
from metering.results.margin import MARGIN_LINES
from tests.core.worlds import PERIOD, QUARTERS, START, World, supplied

relaxed = settings(deadline=None, max_examples=5, suppress_health_check=list(HealthCheck))
AMOUNTS = ("cost_pool", "cost_on_demand", "idle_share", "cause_shift", "on_demand_price")


def run(world: World, period: Period = PERIOD) -> Costs:
    return costs(
        world.usage,
        world.pool_usage,
        world.books,
        period,
        pool_customer_usage=world.pool_customer_usage,
        complete_until=PERIOD.until,
    )


@relaxed
@given(supplied())
def test_costs_do_not_depend_on_how_much_is_worked_on_at_once(world):
    with pytest.MonkeyPatch.context() as limits:
        limits.setattr("metering.core.costs.ROWS_AT_ONCE", 1)
        limits.setattr("metering.core.costs.POOL_ROWS_AT_ONCE", 1)
        little = run(world)
    whole = run(world)
    assert little.lines.equals(whole.lines)
    assert sorted(map(str, little.supply.moved.rows())) == sorted(map(str, whole.supply.moved.rows()))


def quanta(frame: pl.DataFrame, *names: str) -> pl.DataFrame:
    return frame.with_columns(to_quanta(pl.col(name)).alias(name) for name in names)


@relaxed
@given(supplied())
def test_costs_are_what_was_recognised_and_what_was_rated(world):
    lines = quanta(run(world).lines, *AMOUNTS)
    pools = recognised(world.books, PERIOD).join(world.books.pools.select("pool", "supplier"), on="pool")
    by = ["supplier", "currency"]
    wanted = pools.group_by(by).agg(pl.col("cost").sum()).filter(pl.col("cost") != 0)
    found = lines.group_by(by).agg(pl.col("cost_pool").sum().alias("cost")).filter(pl.col("cost") != 0)
    assert sorted(found.rows()) == sorted(wanted.rows())
    rated, _ = on_demand_costs(world.usage, world.books)
    bought = quanta(rated, "amount").group_by(pl.col("provider").alias("supplier"), "currency")
    wanted = bought.agg(pl.col("amount").sum()).filter(pl.col("amount") != 0)
    found = lines.group_by(by).agg(pl.col("cost_on_demand").sum()).filter(pl.col("cost_on_demand") != 0)
    assert sorted(found.rows()) == sorted(wanted.rows())
    moved = lines.group_by("day", "pool", "currency").agg(pl.col("idle_share", "cause_shift").sum())
    assert moved.filter((pl.col("idle_share") != 0) | (pl.col("cause_shift") != 0)).is_empty()


@relaxed
@given(supplied(), st.lists(st.integers(1, QUARTERS - 1), unique=True, max_size=3))
def test_the_costs_of_a_period_are_the_costs_of_its_parts(world, cuts):
    edges = [PERIOD.start, *(START + QUARTER * cut for cut in sorted(cuts)), PERIOD.until]
    parts = [run(world, Period("part", start, until)).lines for start, until in pairwise(edges)]
    together = (
        pl.concat(parts)
        .group_by(COSTS.key)
        .agg(
            pl.col(AMOUNTS[:-1]).sum(),
            pl.when(~pl.col("on_demand_price").is_null().any())
            .then(pl.col("on_demand_price").sum())
            .alias("on_demand_price"),
            pl.col("estimated").any(),
        )
    )
    assert COSTS.conform(together).equals(run(world).lines)


@relaxed
@given(supplied(), st.randoms(use_true_random=False))
def test_order_and_splitting_of_rows_change_no_cost(world, random):
    def torn(frame: pl.DataFrame) -> pl.DataFrame:
        sums = [name for name, dtype in frame.schema.items() if dtype == pl.Int128]
        part = pl.Series("part", [random.randrange(1, 5) for _ in range(frame.height)], dtype=pl.Int128)
        a = frame.with_columns(pl.col(name) // part for name in sums)
        b = frame.with_columns(pl.col(name) - pl.col(name) // part for name in sums)
        order = list(range(2 * frame.height))
        random.shuffle(order)
        return pl.concat([a, b])[order] if order else frame

    reverse = {field.name: getattr(world.books, field.name) for field in fields(Books)[1:]}
    mixed = Books(1, **{name: frame.reverse() for name, frame in reverse.items()})
    again = World(torn(world.usage), torn(world.pool_usage), mixed, torn(world.pool_customer_usage))
    assert run(again).lines.equals(run(world).lines)


@relaxed
@given(supplied())
def test_nobody_carries_more_idle_than_its_own_unused_part(world):
    """Of each quarter hour, at the pool's unit cost: cost x unused / contracted, and a quantum for rounding."""
    books = world.books
    books = replace(books, pools=books.pools.with_columns(pl.lit("entitlement").alias("idle_policy")))
    used = capacity(world.pool_usage, books, PERIOD).utilization
    by = ["pool", "dimension", "quarter_start"]
    quarter = pl.col("minute").dt.truncate("15m").alias("quarter_start")
    promised = entitled(books, used)
    minutes = used.select("pool", "dimension", "minute", quarter).join(promised, on=by)
    burned = burned_by_customer(world.pool_customer_usage, books, used)
    unused = (
        minutes.join(burned, on=["pool", "dimension", "minute", "customer"], how="left")
        .with_columns(pl.col("burn").fill_null(0))
        .filter(pl.col("burn") < pl.col("entitlement"))
        .group_by(*by, "customer")
        .agg((pl.col("entitlement") - pl.col("burn")).sum().alias("unused"))
    )
    contracted = used.group_by("pool", "dimension", quarter).agg(pl.col("contracted").sum())
    most: dict[tuple[str, str], float] = {}
    cost = quanta(by_part(recognised(books, PERIOD), used), "recognised_cost")
    for row in unused.join(contracted, on=by).join(cost, on=by).iter_rows(named=True):
        key = (row["customer"], row["pool"])
        part = abs(row["recognised_cost"]) * row["unused"] // max(row["contracted"], 1)
        most[key] = most.get(key, 0) + part + 3
    carried = quanta(run(replace(world, books=books)).lines, "idle_share").filter(
        (pl.col("line") == "idle") & pl.col("customer").is_not_null()
    )
    for row in carried.iter_rows(named=True):
        bound = most.get((row["customer"], row["pool"]), 0)
        assert abs(row["idle_share"]) <= bound * (1 + 2**-30) + 1


@relaxed
@given(supplied(), st.sampled_from([2, 10, 100]))
def test_shares_do_not_depend_on_the_scale_of_burn(world, factor):
    """Weights and units per minute x n: the same costs to the last quantum, but for parts of a unit of burn."""
    books = world.books
    whole = books.entitlements.with_columns(pl.col("units").floor())
    books = replace(books, entitlements=whole)
    larger = replace(
        books,
        burndown=books.burndown.with_columns(pl.col("weight") * factor),
        capacity_steps=books.capacity_steps.with_columns(pl.col("unit_burn_per_minute") * factor),
    )
    assert run(replace(world, books=larger)).lines.equals(run(replace(world, books=books)).lines)


@relaxed
@given(supplied())
def test_margin_closes_to_the_costs_in_the_reporting_currency(world):
    """Lines in dollars are the dollars of costs; loaded and by cause move cost, and create none."""
    result = margin(
        world.usage,
        world.pool_usage,
        world.books,
        PERIOD,
        "USD",
        pool_customer_usage=world.pool_customer_usage,
        complete_until=PERIOD.until,
    )
    lines = MARGIN_LINES.conform(result.lines)
    rated = not world.books.exchange_rates.height
    dollars = run(world).lines.filter(pl.col("currency") == "USD")
    if rated:
        assert lines["cost_pool"].sum() == dollars["cost_pool"].sum()
        assert lines["idle_share"].sum() == 0 == lines["cause_shift"].sum()
    assert lines["cost_on_demand"].sum() == dollars["cost_on_demand"].sum()
