"""Scenarios on small books: what fits moves in, what does not moves out, and no token is lost or made."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from random import Random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.core.capacity import capacity
from metering.core.margin import margin
from metering.core.recognition import recognised
from metering.core.scenario import (
    Traffic,
    Which,
    delayed,
    moved,
    resized,
    scaled,
    settled,
    with_fee,
    without,
)
from metering.errors import WrongWorld
from metering.frames.books import Books
from metering.frames.supply import MODELS
from metering.frames.usage import POOL_CUSTOMER_USAGE, SUMS, USAGE
from metering.meters import METERS
from metering.money import MONEY
from metering.periods import parse_period
from tests.core.example_books import books, bought, burndown, prices, usage
from tests.text_tables import check, instant, read

PERIOD = parse_period("2026-03-01T00:00..2026-03-01T00:30")
START = PERIOD.start


def world(units: int = 100, overflow: bool = True) -> Books:
    """Units of 1 burn a minute, an uncached input token burning 1, at $446.40 a unit and month of 31 days: a cent
    a minute; on demand a token costs 2 cents."""
    return books(
        **bought(f"units | unit_burn_per_minute | fee_per_month\n {units} | 1 | {units * Decimal('446.40')}"),
        burndown=burndown("meter | weight\n uncached_input_tokens | 1"),
        cost_books=prices(
            "meter | unit_price\n uncached_input_tokens | 20_000", book="on-demand", item="large"
        ),
        price_books=prices("meter | unit_price\n uncached_input_tokens | 50_000", item="large"),
        models=read(
            "model | provider | cost_book\n large | own | -\n large | cirrus | on-demand"
            if overflow
            else "model | provider | cost_book\n large | own | -",
            MODELS,
            name="Large",
        ),
    )


def traffic(minutes: str, quarters: str) -> Traffic:
    served = {"provider": "own", "model_served": "large", "tier_served": "standard", "region": "us-west"}
    return Traffic(usage(quarters), read(minutes, POOL_CUSTOMER_USAGE, **served, pool="block", requests=1))


def example() -> Traffic:
    """Two minutes in the first quarter hour: 80 in the pool; then 100 in it and 40 that spilled."""
    return traffic(
        """
        minute           | ran_on   | customer | uncached_input_tokens
        2026-03-01 00:00 | pool     | acme     | 80
        2026-03-01 00:01 | pool     | acme     | 60
        2026-03-01 00:01 | pool     | bolt     | 40
        2026-03-01 00:01 | overflow | acme     | 40
        """,
        """
        quarter_start    | pool  | ran_on   | customer | product | uncached_input_tokens | requests
        2026-03-01 00:00 | block | pool     | acme     | large   | 100                   | 1
        2026-03-01 00:00 | block | pool     | acme     | small   | 40                    | 1
        2026-03-01 00:00 | block | pool     | bolt     | large   | 40                    | 1
        2026-03-01 00:00 | block | overflow | acme     | large   | 40                    | 1
        """,
    )


def settle(given: Traffic, before: Books, after: Books, arrived: tuple[str, ...] = ()) -> Traffic:
    used = capacity(given.pool_usage(), before, PERIOD)
    found = settled(given, used, after, PERIOD, arrived, ["block"])
    agree(found.traffic)
    return found.traffic


def agree(given: Traffic) -> None:
    """The minutes of a quarter hour are its series that cost: what capacity and cost both stand on."""
    cell = [name for name in POOL_CUSTOMER_USAGE.key if name != "minute"]
    by_minute = given.minutes.group_by(pl.col("minute").dt.truncate("15m").alias("quarter_start"), *cell).agg(
        pl.col(*SUMS).sum()
    )
    counted = pl.col("pool").is_not_null() & (pl.col("counts_for") != "charge")
    by_series = given.usage.filter(counted).group_by("quarter_start", *cell).agg(pl.col(*SUMS).sum())
    order = ["quarter_start", *cell]
    assert by_minute.sort(order).rows() == by_series.select(by_minute.columns).sort(order).rows()


def test_spill_moves_in_where_capacity_grew() -> None:
    """125 a minute: of the 40 that spilled beside 100, 25 fit."""
    found = settle(example(), world(), resized(world(), "block", START, units=125))
    check(
        found.usage,
        """
        customer | product | ran_on   | uncached_input_tokens
        acme     | large   | pool     | 125
        acme     | small   | pool     | 40
        bolt     | large   | pool     | 40
        acme     | large   | overflow | 15
        """,
    )
    check(
        found.minutes.filter(pl.col("minute") == START + timedelta(minutes=1)),
        "customer | ran_on | uncached_input_tokens\n acme | pool | 85\n bolt | pool | 40\n acme | overflow | 15",
    )
    # what spilled beside room that was there already stays: the minute does not show why
    for units in (100, 150):
        same = settle(example(), world(units), world(units))
        assert same.usage.equals(example().usage)


def test_burn_above_what_is_left_moves_out() -> None:
    """50 a minute: 30 of 80 and 50 of 100 leave, everybody in proportion, and run at the one who sells the model."""
    found = settle(example(), world(), resized(world(), "block", START, factor=Decimal("0.5")))
    check(
        found.usage.group_by("customer", "ran_on", "provider").agg(pl.col("uncached_input_tokens").sum()),
        """
        customer | ran_on   | provider | uncached_input_tokens
        acme     | pool     | own      | 80
        bolt     | pool     | own      | 20
        acme     | overflow | cirrus   | 60
        bolt     | overflow | cirrus   | 20
        acme     | overflow | own      | 40
        """,
    )
    # without anybody who sells it, it stays: overrun
    bare = world(overflow=False)
    stuck = settled(
        example(),
        capacity(example().pool_usage(), bare, PERIOD),
        resized(bare, "block", START, units=50),
        PERIOD,
        (),
        ["block"],
    )
    assert stuck.stuck == ("block",)
    assert stuck.traffic.usage.equals(example().usage)


def test_a_recorded_overrun_is_not_sent_away() -> None:
    """At 90 a minute of 100 that ran, 10 were overrun; one unit less sends 1 away, not 11."""
    found = settle(example(), world(90), resized(world(90), "block", START, units=89))
    check(
        found.minutes.filter(pl.col("provider") == "cirrus"),
        "minute | customer | uncached_input_tokens\n 2026-03-01 00:01 | acme | 1\n 2026-03-01 00:01 | bolt | 1",
    )


def test_a_dropped_pool_leaves_its_traffic_on_demand() -> None:
    dropped = without(world(), "block", START)
    found = settle(example(), world(), dropped)
    assert set(found.usage["ran_on"]) == {"on_demand"}
    before = margin(example().usage, example().pool_usage(), world(), PERIOD, "USD")
    after = margin(found.usage, found.pool_usage(), dropped, PERIOD, "USD")
    # 30 minutes of 100 units at a cent; on demand 180 x 2 cents, and 40 that own does not sell
    assert before.lines["cost_pool"].sum() == 30
    assert after.lines["cost_pool"].sum() == 0
    assert after.lines["cost_on_demand"].sum() == Decimal("3.6")
    assert after.lines["charge"].sum() == before.lines["charge"].sum()


def test_traffic_grows_and_moves() -> None:
    grown = scaled(example(), Which(customer="acme"), Decimal("1.5"))
    agree(grown)
    check(
        grown.usage.group_by("customer", "ran_on").agg(pl.col("uncached_input_tokens").sum()),
        "customer | ran_on | uncached_input_tokens\n acme | pool | 210\n bolt | pool | 40\n acme | overflow | 60",
    )
    with pytest.raises(WrongWorld, match="has no minutes"):
        scaled(Traffic(example().usage, POOL_CUSTOMER_USAGE.empty()), Which(), Decimal(2))
    small = moved(
        example(), Which(model="large", customer="acme"), Decimal("0.25"), {"model_served": "small"}
    )
    agree(small)
    check(
        small.usage.group_by("model_served").agg(pl.col("uncached_input_tokens").sum()),
        "model_served | uncached_input_tokens\n large | 175\n small | 45",
    )


def test_usage_meant_for_no_pool_comes_to_one() -> None:
    """30 tokens of a quarter hour, two in each minute; one fits."""
    loose = traffic(
        "minute | ran_on | customer | uncached_input_tokens\n 2026-03-01 00:15 | pool | acme | 98",
        """
        quarter_start    | pool  | ran_on    | provider | uncached_input_tokens
        2026-03-01 00:00 | -     | on_demand | cirrus   | 30
        2026-03-01 00:15 | block | pool      | own      | 98
        """,
    )
    came = moved(loose, Which(pool="-"), Decimal(1), {"pool": "block"})
    agree(came)
    found = settle(came, world(1), world(1), ("block",))
    check(
        found.usage.filter(pl.col("quarter_start") == START),
        "pool | ran_on | uncached_input_tokens\n block | pool | 15\n block | overflow | 15",
    )


def test_books_resized_delayed_and_repriced() -> None:
    half = instant("2026-03-01 00:15")
    check(
        resized(world(), "block", half, units=150).capacity_fees,
        """
        effective_from   | effective_until  | amount
        2026-01-01 00:00 | 2026-03-01 00:15 | 44640
        2026-03-01 00:15 | -                | 66960
        """,
    )
    check(
        resized(world(), "block", half, factor=Decimal("1.001")).capacity_steps,
        "effective_from | units\n 2026-01-01 00:00 | 100\n 2026-03-01 00:15 | 101",
    )
    check(delayed(world(), "block", 90).capacity_steps, "effective_from | units\n 2026-04-01 00:00 | 100")
    check(
        with_fee(world(), "block", "step", half, amount=Decimal(7)).capacity_fees,
        "effective_from | amount\n 2026-01-01 00:00 | 44640\n 2026-03-01 00:15 | 7",
    )
    assert without(world(), "block", half).capacity_steps["effective_until"].to_list() == [half]


def spread(per: str, schedule: str) -> Books:
    """100 units from January to the end of April, and their fee: 1,200 a month, or 12,000 in advance."""
    given = world()
    until = instant("2026-05-01")
    amount = {"month": 1200, "span": 12000}[per]
    ends = pl.lit(until).cast(given.capacity_fees.schema["effective_until"]).alias("effective_until")
    fee = pl.lit(Decimal(amount)).cast(MONEY).alias("amount")
    return replace(
        given,
        pools=given.pools.with_columns(pl.lit(schedule).alias("recognition")),
        capacity_steps=given.capacity_steps.with_columns(ends),
        capacity_fees=given.capacity_fees.with_columns(fee, ends, pl.lit(per).alias("per")),
    )


@pytest.mark.parametrize("per", ["month", "span"])
@pytest.mark.parametrize("schedule", ["as_billed", "straight_line_days", "capacity_hours"])
def test_what_stays_the_same_costs_the_same(per: str, schedule: str) -> None:
    """The same units and the same fee again, in the middle of a span, change nothing; half more of April's units
    costs in April half more; a fee for a span is replaced as that of its whole span."""
    given, april = spread(per, schedule), parse_period("2026-04")
    amount = {"month": 1200, "span": 12000}[per]
    same = recognised(given, april)
    for since in (instant("2026-03-15"), april.start):
        again = resized(given, "block", since, units=100)
        assert recognised(again, april).equals(same)
        again = with_fee(given, "block", "step", since, amount=Decimal(amount))
        assert recognised(again, april).equals(same)

    def april_of(books: Books) -> int:
        return round(recognised(books, april)["cost"].sum() / 10**12)

    grown = resized(given, "block", april.start, factor=Decimal("1.5"))
    april_was = {("span", "as_billed"): 0, ("span", "straight_line_days"): 3000}
    assert april_of(given) == april_was.get((per, schedule), amount // 4 if per == "span" else 1200)
    more = 600 if per == "month" else 1500
    assert april_of(grown) == april_of(given) + more
    # another fee from April on: 2,400 a month, or for April a fourth of 24,000
    dearer = with_fee(given, "block", "step", april.start, amount=Decimal(2 * amount))
    assert april_of(dearer) == april_of(given) + (1200 if per == "month" else 3000)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["0", "0.3", "0.5", "1", "1.7"]))
def test_no_token_is_lost_or_made(seed: int, factor: str) -> None:
    """Whatever is resized or dropped: totals by customer, product and meter stay, and no minute has more than fits."""
    dice = Random(seed)
    rows = []
    for customer in ("acme", "bolt"):
        for ran_on in ("pool", "overflow"):
            for minute in dice.sample(range(30), 6):
                at = START + timedelta(minutes=minute)
                rows.append(
                    {
                        "minute": at,
                        "ran_on": ran_on,
                        "customer": customer,
                        "requests": dice.randrange(1, 5),
                        **{meter: dice.randrange(150) for meter in METERS[:3]},
                    }
                )
    served = {"pool": "block", "provider": "own", "model_served": "large", "tier_served": "standard"}
    served |= {"region": "us-west"}
    frame = pl.DataFrame([{**served, **row} for row in rows])
    minutes = POOL_CUSTOMER_USAGE.conform(
        frame.with_columns(
            pl.lit(0, dtype=pl.Int32).alias("context_breakpoint"),
            *(
                (pl.col(name) if name in frame.columns else pl.lit(0)).cast(pl.Int128).alias(name)
                for name in SUMS
            ),
            pl.col("minute").cast(POOL_CUSTOMER_USAGE.columns["minute"]),
        )
    )
    whole = minutes.group_by(
        pl.col("minute").dt.truncate("15m").alias("quarter_start"),
        *(name for name in POOL_CUSTOMER_USAGE.key if name != "minute"),
    ).agg(pl.col(*SUMS).sum())
    told = {"tier_sold": "standard", "counts_for": "charge_and_cost"}
    whole = whole.with_columns(pl.lit(value).alias(name) for name, value in told.items())
    first = whole.with_columns((pl.col(name) // 3).alias(name) for name in SUMS)
    second = whole.with_columns((pl.col(name) - pl.col(name) // 3).alias(name) for name in SUMS)
    quarters = USAGE.conform(
        pl.concat(
            [
                first.with_columns(pl.lit("x").alias("product")),
                second.with_columns(pl.lit("y").alias("product")),
            ]
        )
    )
    given_ = Traffic(quarters, minutes)
    before = world()
    zero = factor == "0"
    after = (
        without(before, "block", START) if zero else resized(before, "block", START, factor=Decimal(factor))
    )
    found = settle(given_, before, after)
    by = ["quarter_start", "customer", "product"]
    for name in SUMS:
        assert (
            found.usage.group_by(by).agg(pl.col(name).sum()).sort(by).rows()
            == quarters.group_by(by).agg(pl.col(name).sum()).sort(by).rows()
        )
    used = capacity(found.pool_usage(), after, PERIOD).utilization
    recorded = capacity(given_.pool_usage(), before, PERIOD).utilization
    if not zero:
        assert (used["overrun"] <= recorded["overrun"]).all()
    margin(found.usage, found.pool_usage(), after, PERIOD, "USD")
