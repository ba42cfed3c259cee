"""Costs: who used, who carries idle, who caused spill, in which currency; every table can be checked by hand."""

from dataclasses import replace
from datetime import date

import polars as pl
import pytest

from metering.core.costs import costs, usage_basis
from metering.core.exchange import rates
from metering.core.margin import margin
from metering.core.summary import summarise
from metering.frames.books import EXCHANGE_RATES
from metering.frames.supply import BILL_LINES, CAPACITY_FEES, ENTITLEMENTS, SET_ASIDE
from metering.frames.terms import CUSTOMERS
from metering.frames.usage import POOL_CUSTOMER_USAGE, POOL_USAGE, SUMS, USAGE
from metering.meters import METERS
from metering.periods import parse_period
from tests.core import example_books as a
from tests.text_tables import check, read

QUARTER = parse_period("2026-03-01..2026-03-01T00:15")
HALF_HOUR = parse_period("2026-03-01..2026-03-01T00:30")
WEIGHTS = "meter | weight\n uncached_input_tokens | 1"
#: What the pool serves for 1 costs 4 on demand.
FOUR_EACH = "item | meter | unit_price\n large | uncached_input_tokens | 4_000_000"


def usage(text, **defaults):
    """Usage of the pool `block`, even over the minutes of its quarter hour; overflow is bought from cirrus."""
    rows = a.usage(text, **{"pool": "block", "ran_on": "pool", "provider": "own", **defaults})
    return rows.with_columns(
        pl.when(pl.col("ran_on") == "pool").then("provider").otherwise(pl.lit("cirrus")).alias("provider")
    )


def by_minute(rows, frame):
    """POOL_USAGE or POOL_CUSTOMER_USAGE of usage that is even over its quarter hour."""
    key = [name for name in frame.columns if name not in ("minute", *SUMS)]
    meant = rows.filter(pl.col("pool").is_not_null())
    parts = meant.group_by("quarter_start", *key).agg(pl.col("requests", *METERS).sum())
    minutes = pl.DataFrame({"_at": range(15)}, schema={"_at": pl.Int64})
    fifteenth = [(pl.col(name) // 15).alias(name) for name in METERS]
    return frame.conform(
        parts.join(minutes, how="cross").with_columns(
            (pl.col("quarter_start") + pl.duration(minutes=pl.col("_at"))).alias("minute"), *fifteenth
        )
    )


def books(fee, policy="none", entitled=None, span="2026-03-01 00:15", **frames):
    """A pool of 100 burn a minute that costs `fee` dollars from the start of March to the end of `span`."""
    bought = a.bought(f"units | fee_per_month | idle_policy\n 100 | 0 | {policy}")
    bought["capacity_steps"] = bought["capacity_steps"].with_columns(
        pl.lit(1, dtype=pl.Int64).alias("unit_burn_per_minute")
    )
    bought["capacity_fees"] = read(
        f"effective_from | effective_until | amount | per\n 2026-03-01 | {span} | {fee} | span",
        CAPACITY_FEES,
        pool="block",
        fee="capacity",
        currency="USD",
    )
    given = {
        "customers": read(
            "customer | kind\n a | paying\n b | trial",
            CUSTOMERS,
            effective_from="2026-01-01",
            name="x",
            segment="s",
        ),
        "burndown": a.burndown(WEIGHTS),
        "cost_books": a.prices(FOUR_EACH, book="on-demand"),
        **bought,
    }
    if entitled is not None:
        given["entitlements"] = read(
            entitled, ENTITLEMENTS, contract="c", pool="block", dimension="all", effective_from="2026-01-01"
        )
    return a.books(**{**given, **frames})


def lines(rows, world, period, **more):
    return costs(
        rows,
        by_minute(rows, POOL_USAGE),
        world,
        period,
        pool_customer_usage=by_minute(rows, POOL_CUSTOMER_USAGE),
        **more,
    ).lines


def loaded(found):
    """Per customer: usage basis, loaded, by cause; null is nobody's."""
    sums = pl.col("cost_pool").sum() + pl.col("cost_on_demand").sum()
    return found.group_by("customer").agg(
        sums.alias("usage"),
        (sums + pl.col("idle_share").sum()).alias("loaded"),
        (sums + pl.col("cause_shift").sum()).alias("cause"),
    )


def test_idle_by_burn_follows_the_months_burn():
    """Two windows of 100, $200: A takes 90 in one, B 10 in the other: 90 / 10, loaded 180 / 20."""
    rows = usage(
        """
        quarter_start    | customer | uncached_input_tokens
        2026-03-01 00:00 | a        | 1_350
        2026-03-01 00:15 | b        | 150
        """
    )
    world = books(200, "burn", span="2026-03-01 00:30")
    check(
        loaded(lines(rows, world, HALF_HOUR)),
        "customer | usage | loaded\n a | 90 | 180\n b | 10 | 20\n - | 100 | 0",
    )
    # a report on a part of the month carries what the whole month so far makes of it
    check(
        loaded(lines(rows, world, QUARTER, complete_until=HALF_HOUR.until)),
        "customer | usage | loaded\n a | 90 | 180\n - | 10 | -80",
    )
    # as long as nothing more is known, A carries all that stood idle
    check(loaded(lines(rows, world, QUARTER)), "customer | usage | loaded\n a | 90 | 100\n - | 10 | 0")
    # nobody carries what a month without burn leaves
    check(loaded(lines(rows.clear(), world, HALF_HOUR)), "customer | usage | loaded\n - | 200 | 200")


@pytest.mark.parametrize(
    ("entitled", "used", "carried"),
    [
        # entitled to 30 each of 100: A uses 30, B nothing: 40 are sold to nobody
        ("a | 30\n b | 30", 450, "a | 30 | 30\n b | 0 | 30\n - | 70 | 40"),
        # A takes 90 of which 60 are its own; B carries the 10 that are left of its 40
        ("a | 60\n b | 40", 1_350, "a | 90 | 90\n b | 0 | 10\n - | 10 | 0"),
        # more promised than there is: 10 and 130 unused of 70 idle, so 5 and 65; a part of a minute's burn is none
        ("a | 40.9\n b | 130.9", 450, "a | 30 | 35\n b | 0 | 65\n - | 70 | 0"),
        # one that is entitled to nothing, and one without any usage at all
        ("b | 0\n c | 20", 450, "a | 30 | 30\n c | 0 | 20\n - | 70 | 50"),
    ],
)
def test_idle_by_entitlement_is_carried_by_who_left_it_unused(entitled, used, carried):
    rows = usage(f"quarter_start | customer | uncached_input_tokens\n 2026-03-01 | a | {used}")
    world = books(100, "entitlement", f"customer | units\n {entitled}")
    found = lines(rows, world, QUARTER)
    check(loaded(found), f"customer | usage | loaded\n {carried}")
    assert found["idle_share"].sum() == 0
    assert set(found.filter(pl.col("idle_share") != 0)["line"]) == {"idle"}


def test_pools_that_are_worked_on_one_after_the_other_carry_what_they_carry_alone(monkeypatch):
    """Two pools alike, each a run of its own: 30 of 100 stay unused by B, in each of them."""
    rows = usage("quarter_start | customer | uncached_input_tokens\n 2026-03-01 | a | 1050")
    world = books(100, "entitlement", "customer | units\n a | 70\n b | 30")
    alone = lines(rows, world, QUARTER)

    def twice(frame):
        return pl.concat([frame, frame.with_columns(pl.lit("other").alias("pool"))])

    names = ("pools", "capacity_steps", "capacity_fees", "burndown", "entitlements")
    both = replace(world, **{name: twice(getattr(world, name)) for name in names})
    monkeypatch.setattr("metering.core.costs.POOL_ROWS_AT_ONCE", 1)
    found = lines(twice(rows), both, QUARTER)
    for pool in ("block", "other"):
        own = found.filter(pl.col("pool") == pool)
        assert own.drop("pool").equals(alone.drop("pool"))
        check(loaded(own), "customer | usage | loaded\n a | 70 | 70\n b | 0 | 30\n - | 30 | 0")


def test_an_entitlement_counts_minute_by_minute():
    """30 entitled. 450 in one minute of 15 is 30 used: the other 14 x 30 stay its own unused part."""
    rows = usage("quarter_start | customer | uncached_input_tokens\n 2026-03-01 | a | 450")
    world = books(1_500, "entitlement", "customer | units\n a | 30")
    at_once = costs(
        rows,
        a.pool_usage(rows),
        world,
        QUARTER,
        pool_customer_usage=by_minute(rows, POOL_CUSTOMER_USAGE)
        .head(1)
        .with_columns(pl.lit(450, dtype=SUMS["requests"]).alias("uncached_input_tokens")),
    )
    # served 100 of the minute's 450; held 14 x 30 = 420 of the 1,400 idle
    check(loaded(at_once.lines), "customer | usage | loaded\n a | 100 | 520\n - | 1_400 | 980")


def test_the_spill_premium_goes_to_who_took_more_than_its_part():
    """A takes 90 of its 60; B gets 10 of its 40 and spills 30 at 4 each: A 90, B 130; by cause A 180, B 40."""
    rows = usage(
        """
        quarter_start | customer | ran_on   | uncached_input_tokens
        2026-03-01    | a        | pool     | 1_350
        2026-03-01    | b        | pool     | 150
        2026-03-01    | b        | overflow | 450
        """
    )
    per_unit = a.prices(FOUR_EACH, book="on-demand").with_columns(
        (pl.col("unit_price") / 15).cast(pl.Decimal(38, 12)).alias("unit_price")
    )
    world = books(100, "none", "customer | units\n a | 60\n b | 40", cost_books=per_unit)
    found = lines(rows, world, QUARTER)
    whole = loaded(found).with_columns(pl.col("usage", "cause").round(6))
    check(whole, "customer | usage | cause\n a | 90 | 180\n b | 130 | 40\n - | 0 | 0")
    assert found["cause_shift"].sum() == 0
    # what spilled counts as taken: of 35 B is 5 above, and the 90 go 30 : 5
    both = loaded(lines(rows, replace(world, entitlements=entitle("a | 60\n b | 35")), QUARTER))
    both = both.with_columns(pl.col("cause").round(6))
    check(both, "customer | cause\n a | 167.142857\n b | 52.857143\n - | 0")
    # nobody is above its part: the premium stays where it is
    even = lines(rows, replace(world, entitlements=entitle("a | 90\n b | 40")), QUARTER)
    assert even["cause_shift"].abs().sum() == 0
    # overflow that cannot be priced, or is bought in another currency, has no premium
    euro = world.cost_books.with_columns(pl.lit("EUR").alias("currency"))
    for cost_books in (euro, euro.clear()):
        assert lines(rows, replace(world, cost_books=cost_books), QUARTER)["cause_shift"].abs().sum() == 0
    assert (lines(rows, usage_basis(world), QUARTER)["cause_shift"] == 0).all()


def entitle(rows):
    return read(
        f"customer | units\n {rows}",
        ENTITLEMENTS,
        contract="c",
        pool="block",
        dimension="all",
        effective_from="2026-01-01",
    )


def test_what_became_of_the_capacity():
    """Of 100: 20 undelivered, 10 set aside for research, 60 served, 10 idle. What research ran costs nobody else."""
    rows = usage(
        """
        quarter_start | customer | pool     | uncached_input_tokens
        2026-03-01    | a        | block    | 900
        2026-03-01    | lab      | research | 150
        """
    )
    aside = read(
        "kind | name | units\n undelivered | late | 20\n carve_out | research | 10",
        SET_ASIDE,
        pool="block",
        dimension="all",
        effective_from="2026-01-01",
    )
    result = margin(rows, by_minute(rows, POOL_USAGE), books(100, set_aside=aside), QUARTER, "USD")
    check(
        summarise(result.lines, ["line", "customer", "kind"], books(100)),
        """
        line        | customer | kind    | cost_pool | cost_unrated
        usage       | a        | paying  | 60        | no
        usage       | lab      | unknown | 0         | no
        undelivered | -        | -       | 20        | no
        carved_out  | -        | -       | 10        | no
        idle        | -        | -       | 10        | no
        """,
    )
    # not delivered at all: its cost is nobody's, whatever ran
    late = replace(
        books(100),
        set_aside=aside.head(0).vstack(
            aside.filter(pl.col("kind") == "undelivered").with_columns(units=pl.lit(100, dtype=pl.Int64))
        ),
    )
    check(loaded(lines(rows.head(1), late, QUARTER)), "customer | usage\n a | 0\n - | 100")


def test_burn_above_the_capacity_costs_no_more_than_the_capacity():
    """1,800 and 600 on 1,500: all of $100 is served, 75 / 25; over the whole period nothing was idle."""
    rows = usage(
        "quarter_start | customer | uncached_input_tokens\n 2026-03-01 | a | 1_800\n 2026-03-01 | b | 600"
    )
    for policy in ("none", "burn", "entitlement"):
        world = books(100, policy, "customer | units\n a | 60")
        check(
            loaded(lines(rows, world, QUARTER)),
            "customer | usage | loaded\n a | 75 | 75\n b | 25 | 25\n - | 0 | 0",
        )


def test_a_credit_larger_than_the_quarter_hour():
    """$100 less a credit of 300: -200, of which 60 were used, the rest idle: B is entitled to 40."""
    rows = usage("quarter_start | customer | uncached_input_tokens\n 2026-03-01 | a | 900")
    credit = read(
        "amount\n -300",
        BILL_LINES,
        supplier="northstar",
        document="C",
        line="1",
        category="credit",
        object_kind="pool",
        object="block",
        currency="USD",
        service_from="2026-03-01",
        service_until="2026-03-01 00:15",
        posted_month="2026-03-01",
    )
    for policy, carried in (
        ("none", "a | -120 | -120\n - | -80 | -80"),
        ("burn", "a | -120 | -200\n - | -80 | 0"),
        ("entitlement", "a | -120 | -120\n b | 0 | -80\n - | -80 | 0"),
    ):
        world = books(100, policy, "customer | units\n b | 40", bill_lines=credit)
        check(loaded(lines(rows, world, QUARTER)), f"customer | usage | loaded\n {carried}")


def test_an_ended_month_and_a_ramp_within_it_carry_by_the_whole_month():
    """100 units at $10 a quarter hour, from noon of the 2nd 200 at $30; A burns 10 % of the first quarter hour only."""
    steps = """
    effective_from   | effective_until  | units | unit_burn_per_minute | fee_per_month | idle_policy
    2026-03-01       | 2026-03-02 12:00 | 100   | 1                    | 29_760        | burn
    2026-03-02 12:00 | 2026-03-03       | 200   | 1                    | 89_280        | burn
    """
    rows = usage("quarter_start | customer | uncached_input_tokens\n 2026-03-01 | a | 150")
    world = replace(books(0), **a.bought(steps))
    month = lines(rows, world, parse_period("2026-03"))
    check(
        loaded(month).with_columns(pl.col("usage", "loaded").round(9)),
        "customer | usage | loaded\n a | 1 | 2_880\n - | 2_879 | 0",
    )
    days = [
        lines(rows, world, parse_period(f"2026-03-0{day}"), complete_until=parse_period("2026-03").until)
        for day in (1, 2, 3)
    ]
    assert pl.concat(days).equals(month)


RATES = """
currency | kind          | effective_from | rate
EUR      | month_average | 2026-02-01     | 1.5
EUR      | contract      | 2026-01-01     | 1.25
"""


def test_amounts_in_another_currency_are_translated_once_and_closed_in_their_own():
    """EUR 100 for the pool, 60 % used; overflow and charges in dollars. March has no average yet: February's 1.5 serves."""
    rows = usage(
        """
        quarter_start | customer | ran_on   | uncached_input_tokens
        2026-03-01    | a        | pool     | 900
        2026-03-01    | a        | overflow | 15
        """
    )
    world = books(100)
    world = replace(
        world,
        capacity_fees=world.capacity_fees.with_columns(pl.lit("EUR").alias("currency")),
        exchange_rates=read(RATES, EXCHANGE_RATES, into="USD"),
        pools=world.pools.with_columns(pl.lit("on-demand").alias("on_demand_book")),
    )
    check(
        lines(rows, world, QUARTER),
        """
        line  | supplier  | currency | ran_on   | cost_pool | cost_on_demand | on_demand_price
        usage | northstar | EUR      | pool     | 60        | 0              | 0
        usage | northstar | USD      | pool     | 0         | 0              | 3_600
        usage | cirrus    | USD      | overflow | 0         | 60             | 60
        idle  | northstar | EUR      | -        | 40        | 0              | 0
        """,
    )
    pool_usage = by_minute(rows, POOL_USAGE)
    result = margin(rows, pool_usage, world, QUARTER, "USD")
    check(
        summarise(result.lines, ["line"], world),
        """
        line  | cost_pool | cost_on_demand | cost | on_demand_price | saving_against_on_demand | fx_effect | estimated
        usage | 90        | 60             | 150  | 3_660           | 3_510                    | -15       | yes
        idle  | 60        | 0              | 60   | 0               | -60                      | -10       | yes
        """,
    )
    # without a contract rate there is no effect to state; without any rate the amount is unrated, never 1
    average = replace(world, exchange_rates=world.exchange_rates.filter(pl.col("kind") == "month_average"))
    unsaid = margin(rows, pool_usage, average, QUARTER, "USD").lines
    check(summarise(unsaid, ["line"], world), "line | cost | fx_effect\n usage | 150 | -\n idle | 60 | -")
    none = margin(
        rows, pool_usage, replace(world, exchange_rates=world.exchange_rates.clear()), QUARTER, "USD"
    )
    check(
        none.unrated.filter(pl.col("side") == "cost"),
        "reason | customer | amount | currency\n no_exchange_rate | a | 60 | EUR\n no_exchange_rate | - | 40 | EUR",
    )
    check(
        summarise(none.lines, ["line"], world),
        "line | cost | cost_unrated | saving_against_on_demand\n usage | 60 | yes | -\n idle | 0 | yes | -",
    )


def test_a_rate_is_half_even_to_a_quantum_and_of_the_service_day():
    """0.000000000001 and 0.000000000003 at 1.5 are 2 and 4 (half-even) quanta; the next month has its own rate."""
    rows = usage(
        """
        quarter_start    | customer | uncached_input_tokens
        2026-02-28 23:45 | a        | 1
        2026-02-28 23:45 | b        | 3
        2026-03-01 00:00 | a        | 1
        """,
        ran_on="on_demand",
        pool=None,
    )
    rates = f"{RATES}\n EUR | month_average | 2026-03-01 | 4"
    price = a.prices(
        "item | meter | unit_price\n large | uncached_input_tokens | 0.000001",
        book="on-demand",
        currency="EUR",
    )
    dated = read(RATES, EXCHANGE_RATES, into="USD").with_columns(
        pl.when(pl.col("kind") == "month_average")
        .then(read(rates, EXCHANGE_RATES, into="USD")["effective_from"].max())
        .alias("effective_until")
    )
    later = read(rates, EXCHANGE_RATES, into="USD").filter(pl.col("rate") == 4)
    world = books(0, cost_books=price, exchange_rates=pl.concat([dated, later]))
    result = margin(rows, POOL_USAGE.empty(), world, parse_period("2026-02-28..2026-03-02"), "USD")
    check(
        result.lines.filter(pl.col("line") == "usage"),
        """
        day        | customer | cost           | estimated
        2026-02-28 | a        | 0.000000000002 | no
        2026-02-28 | b        | 0.000000000004 | no
        2026-03-01 | a        | 0.000000000004 | no
        """,
    )


def test_a_floor_on_the_loaded_basis_breaches_when_others_go_quiet():
    """Revenue 100, cost 60, loaded 100: 40 % on usage, 0 on the loaded basis, against a floor of 20 %."""
    rows = usage("quarter_start | customer | uncached_input_tokens\n 2026-03-01 | a | 900", customer="a")
    world = books(
        100,
        "burn",
        price_books=a.prices("item | meter | unit_price\n large | uncached_input_tokens | 111_111.111112"),
    )
    for basis, breach in (("usage", "no"), ("loaded", "yes")):
        contract = a.contracts("customer | margin_floor_ratio\n a | 0.2").with_columns(
            pl.lit(basis).alias("floor_basis")
        )
        bound = replace(world, contracts=contract)
        result = margin(rows, by_minute(rows, POOL_USAGE), bound, QUARTER, "USD")
        found = summarise(result.lines, ["customer"], bound).filter(pl.col("customer") == "a")
        check(
            found.with_columns(pl.col("margin", "margin_loaded").round(3)),
            f"cost | cost_loaded | margin | margin_loaded | floor_basis | breach\n 60 | 100 | 40 | 0 | {basis} | {breach}",
        )


def test_a_price_on_demand_is_null_where_a_part_has_none():
    rows = usage(
        """
        quarter_start | customer | model_served | uncached_input_tokens
        2026-03-01    | a        | large        | 900
        2026-03-01    | a        | other        | 150
        """
    )
    world = books(100, burndown=pl.concat([a.burndown(WEIGHTS), a.burndown(WEIGHTS, model="other")]))
    world = replace(world, pools=world.pools.with_columns(pl.lit("on-demand").alias("on_demand_book")))
    result = margin(rows, by_minute(rows, POOL_USAGE), world, QUARTER, "USD")
    check(
        summarise(result.lines, ["line", "model_served"], world),
        """
        line  | model_served | cost | on_demand_price | saving_against_on_demand
        usage | large        | 60   | 3_600           | 3_540
        usage | other        | 10   | -               | -
        idle  | -            | 30   | 0               | -30
        """,
    )
    assert summarise(result.lines, [], world)["saving_against_on_demand"].to_list() == [None]
    assert not result.unrated.filter(pl.col("side") == "cost").height


def test_on_demand_cost_is_an_estimate_until_a_bill_covers_the_day():
    rows = a.usage(
        "quarter_start | uncached_input_tokens\n 2026-03-01 | 5\n 2026-03-02 | 5", provider="cirrus"
    )
    billed = read(
        "object\n large",
        BILL_LINES,
        supplier="cirrus",
        document="D",
        line="1",
        category="charge",
        object_kind="on_demand",
        amount=20,
        currency="USD",
        service_from="2026-03-01",
        service_until="2026-03-02",
        posted_month="2026-03-01",
    )
    found = costs(rows, POOL_USAGE.empty(), books(0, bill_lines=billed), parse_period("2026-03")).lines
    check(
        found.filter(pl.col("line") == "usage"),
        "day | cost_on_demand | estimated\n 2026-03-01 | 20 | no\n 2026-03-02 | 20 | yes",
    )


def test_without_usage_or_capacity_there_is_nothing():
    assert costs(USAGE.empty(), POOL_USAGE.empty(), a.books(), QUARTER).lines.is_empty()


def test_an_average_serves_its_month_and_as_an_estimate_the_next_one_only():
    """An older rate is not a guess that anybody may take for a rate: April is unrated."""
    days = pl.DataFrame({"day": [date(2026, month, 5) for month in (1, 2, 3, 4)], "currency": "EUR"})
    check(
        rates(days, read(RATES, EXCHANGE_RATES, into="USD"), "USD").sort("day"),
        """
        day        | month_average     | contract          | rate_estimated
        2026-01-05 | -                 | 1_250_000_000_000 | no
        2026-02-05 | 1_500_000_000_000 | 1_250_000_000_000 | no
        2026-03-05 | 1_500_000_000_000 | 1_250_000_000_000 | yes
        2026-04-05 | -                 | 1_250_000_000_000 | no
        """,
    )
