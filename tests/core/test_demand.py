"""Scenarios of demand on small books: prices, customers who go and come, and demand that limits held back."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import polars as pl

from metering.core.capacity import capacity
from metering.core.demand import lost, on_plan, repriced, with_customer, without_customer, won
from metering.core.extra_demand import Extra, Filled, filled
from metering.core.held_back import HeldBack, held_back, with_limits
from metering.core.limits import limit_windows, raised
from metering.core.margin import Margin, margin
from metering.core.scenario import Traffic, settled
from metering.frames.books import Books
from metering.frames.frame import INSTANT
from metering.frames.terms import (
    CONTRACT_TERMS,
    CONTRACTS,
    CUSTOMERS,
    FEES,
    LIMIT_WEIGHTS,
    LIMITS,
    PRICE_RULES,
    PRICE_TIERS,
)
from metering.frames.usage import (
    DIMENSIONS,
    HELD_USAGE,
    LIMIT_REFUSED,
    LIMIT_USAGE,
    POOL_CUSTOMER_USAGE,
    POOL_USAGE,
    SUMS,
    USAGE,
)
from tests.core.example_books import books, bought, burndown, contracts, fees, prices, usage
from tests.core.test_scenario import PERIOD, START, agree, example, world
from tests.text_tables import check, instant, read

LATER = instant("2026-03-16")


def book(text: str) -> Books:
    return books(price_books=prices(text, item="large"))


def test_a_price_changes_from_a_day_on() -> None:
    """3 becomes 3.30 a million; what a contract agreed on its own stays, what it took over from the book moves."""
    was = book(
        """
        book              | meter                 | unit_price
        standard          | uncached_input_tokens | 3
        standard          | output_tokens         | 15
        standard for acme | uncached_input_tokens | 2
        standard for acme | output_tokens         | 15
        other             | output_tokens         | 15
        """
    )
    now = repriced(was, "standard", "large", LATER, factor=Decimal("1.1"))
    rows = now.price_books.filter(pl.col("context_breakpoint") == 0).with_columns(
        pl.col("unit_price") * 1_000_000
    )
    check(
        rows,
        """
        book              | meter                 | effective_from | effective_until | unit_price
        standard          | uncached_input_tokens | 2026-01-01     | 2026-03-16      | 3
        standard          | uncached_input_tokens | 2026-03-16     | -               | 3.3
        standard          | output_tokens         | 2026-01-01     | 2026-03-16      | 15
        standard          | output_tokens         | 2026-03-16     | -               | 16.5
        standard for acme | uncached_input_tokens | 2026-01-01     | -               | 2
        standard for acme | output_tokens         | 2026-01-01     | 2026-03-16      | 15
        standard for acme | output_tokens         | 2026-03-16     | -               | 16.5
        other             | output_tokens         | 2026-01-01     | -               | 15
        """,
    )


def test_named_prices_leave_the_others_and_long_context() -> None:
    was = books(
        price_books=prices(
            """
            meter                 | tier     | context_breakpoint | unit_price
            uncached_input_tokens | standard | 0                  | 3
            uncached_input_tokens | standard | 200000             | 6
            output_tokens         | standard | 0                  | 15
            reasoning_tokens      | standard | 0                  | 15
            output_tokens         | batch    | 0                  | 7
            """,
            item="large",
        )
    )
    new = {"uncached_input_tokens": Decimal("2.5"), "output_tokens": Decimal(12)}
    now = repriced(was, "standard", "large", instant("2026-01-01"), per_million=new)
    rows = now.price_books.with_columns(pl.col("unit_price") * 1_000_000)
    check(
        rows.filter(pl.col("context_breakpoint").is_in([0, 512_000])).unique(),
        """
        meter                 | tier     | context_breakpoint | unit_price
        uncached_input_tokens | standard | 0                  | 2.5
        uncached_input_tokens | standard | 512000             | 6
        output_tokens         | standard | 0                  | 12
        output_tokens         | standard | 512000             | 12
        reasoning_tokens      | standard | 0                  | 12
        reasoning_tokens      | standard | 512000             | 12
        output_tokens         | batch    | 0                  | 7
        output_tokens         | batch    | 512000             | 7
        """,
    )


def test_tiers_change_with_their_flat_amounts() -> None:
    rule = {"item": "code", "tier": "standard", "region": "*", "hours": "*", "effective_from": "2026-01-01"}
    was = books(
        price_rules=read(
            "book | rule | meters\n standard | r | output_tokens\n standard for acme | r | output_tokens\n"
            " standard for bolt | b | output_tokens",
            PRICE_RULES,
            **rule,
            model="graduated",
            reset="period",
            currency="USD",
        ),
        price_tiers=read(
            """
            rule | tier | from_units | up_to | unit_price | flat_amount
            r    | 1    | 0          | 10    | 1          | 5
            r    | 2    | 10         | -     | 0.5        | 2
            b    | 1    | 0          | -     | 0.9        | 0
            """,
            PRICE_TIERS,
        ),
    )
    now = repriced(was, "standard", "code", LATER, factor=Decimal("1.5"))
    check(
        now.price_rules,
        """
        book              | rule    | effective_from | effective_until
        standard          | r       | 2026-01-01     | 2026-03-16
        standard          | r x 1.5 | 2026-03-16     | -
        standard for acme | r       | 2026-01-01     | 2026-03-16
        standard for acme | r x 1.5 | 2026-03-16     | -
        standard for bolt | b       | 2026-01-01     | -
        """,
    )
    check(
        now.price_tiers.filter(pl.col("rule") == "r x 1.5"),
        "tier | up_to | unit_price | flat_amount\n 1 | 10 | 1.5 | 7.5\n 2 | - | 0.75 | 3",
    )


def two_customers() -> Books:
    """acme and bolt of 100 units, as in `world`; bolt pays a fee of 1,488 a month, 31 days: a dollar in 30 minutes."""
    return replace(
        world(),
        customers=read(
            "customer | name | kind | segment\n acme | Acme | paying | big\n bolt | Bolt | paying | small",
            CUSTOMERS,
            effective_from="2026-01-01",
        ),
        contracts=read(
            "customer | contract\n acme | a\n bolt | b",
            CONTRACTS,
            effective_from="2026-01-01",
            price_book="standard",
            floor_basis="usage",
        ),
        fees=fees("customer | contract | amount\n bolt | b | 1488"),
    )


def of_customers(found: Margin) -> pl.DataFrame:
    return (
        found.lines.filter(pl.col("customer").is_not_null())
        .group_by("customer")
        .agg(pl.col("charge", "fee", "cost", "requests").sum())
    )


def rated(given: Traffic, said: Books) -> Margin:
    return margin(given.usage, given.pool_usage(), said, PERIOD, "USD")


def test_a_lost_customer_gives_its_room_to_what_spilled() -> None:
    """bolt's 40 tokens a minute go: the 40 of acme that spilled beside them fit, and bolt's fee goes too."""
    before = two_customers()
    gone = without_customer(example(), "bolt", START)
    after = lost(before, "bolt", START)
    found = settled(gone, capacity(example().pool_usage(), before, PERIOD), after, PERIOD, (), ["block"])
    agree(found.traffic)
    check(
        of_customers(rated(example(), before)),
        # large at 5 cents a token (small has no price); a cent for each of 3,000 burn units; own does not sell the 40
        """
        customer | charge        | fee | cost | requests
        acme     | 7.0           | 0   | 1.4  | 3
        bolt     | 2.0           | 1   | 0.4  | 1
        """,
    )
    check(of_customers(rated(found.traffic, after)), "customer | charge | fee | cost\n acme | 7.0 | 0 | 1.8")
    half = lost(before, "bolt", instant("2026-03-01 00:15"))
    check(
        of_customers(rated(without_customer(example(), "bolt", PERIOD.until), half)).filter(customer="bolt"),
        "fee\n 0.5",
    )


def test_a_new_customer_comes_with_the_shape_of_another() -> None:
    """Half of bolt: 20 tokens a minute at bolt's price, a fee of its own, and 20 of all 120 of that minute leave."""
    before = two_customers()
    after = won(before, "bolt", "new", START)
    more = with_customer(example(), "bolt", "new", Decimal("0.5"), START)
    agree(more)
    found = settled(more, capacity(example().pool_usage(), before, PERIOD), after, PERIOD, (), ["block"])
    agree(found.traffic)
    check(
        of_customers(rated(found.traffic, after)).select("customer", "charge", "fee"),
        "customer | charge | fee\n acme | 7.0 | 0\n bolt | 2.0 | 1\n new | 1.0 | 1",
    )
    check(
        found.traffic.minutes.filter(pl.col("ran_on") == "pool")
        .group_by("customer")
        .agg(pl.col("uncached_input_tokens").sum()),
        # 100 / 120 of 60, 40 and 20, rounded down, and acme's 80 of the minute before
        "customer | uncached_input_tokens\n acme | 129\n bolt | 33\n new | 16",
    )
    check(
        after.contracts.filter(customer="new"),
        "contract | price_book | effective_from\n b, like it new | standard | 2026-03-01",
    )


def test_a_customer_moves_to_a_plan() -> None:
    before = two_customers()
    other = books(
        contracts=contracts("customer | contract | price_book\n bolt | b on flat | flat"),
        contract_terms=read(
            "customer | contract | plan\n bolt | b on flat | flat",
            CONTRACT_TERMS,
            effective_from="2026-01-01",
            currency="USD",
            zone="UTC",
            anchor_day=1,
            period_months=1,
        ),
        fees=read(
            "amount\n 2976",
            FEES,
            customer="bolt",
            contract="b on flat",
            fee="flat",
            effective_from="2026-01-01",
            kind="plan",
            quantity=1,
            per="month",
            currency="USD",
        ),
    )
    flat = prices("book | meter | unit_price\n flat | uncached_input_tokens | 0", item="large")
    before = replace(before, price_books=pl.concat([before.price_books, flat]))
    after = on_plan(before, other, "bolt", START)
    check(
        after.contracts.filter(customer="bolt"),
        """
        contract  | price_book | effective_from | effective_until
        b         | standard   | 2026-01-01     | 2026-03-01
        b on flat | flat       | 2026-03-01     | -
        """,
    )
    check(
        of_customers(rated(example(), after)),
        "customer | charge | fee | requests\n acme | 7.0 | 0 | 3\n bolt | 0 | 2 | 1",
    )


def extra(tokens: int) -> Extra:
    """More of bolt, in the first minute, where 20 of 100 stand idle, and in the second, which is full."""
    series = usage("quarter_start | pool | ran_on | customer\n 2026-03-01 00:00 | block | pool | bolt")
    steps = pl.DataFrame(
        {
            "series_id": [0],
            "start": [START],
            "until": [START + timedelta(minutes=2)],
            **{name: [0] for name in SUMS},
        }
    ).with_columns(pl.lit(tokens).alias("uncached_input_tokens"), pl.lit(1).alias("requests"))
    return Extra(
        steps.cast({"series_id": pl.UInt32, "start": INSTANT, "until": INSTANT, **SUMS}),
        series.select(pl.lit(0, dtype=pl.UInt32).alias("series_id"), *DIMENSIONS),
    )


def agrees(found: Filled) -> None:
    """The extra's minutes are its series that cost."""
    of = [name for name in POOL_USAGE.key if name != "minute"]
    counted = found.usage.filter(pl.col("pool").is_not_null())
    quarters = found.pool_usage.group_by(pl.col("minute").dt.truncate("15m").alias("quarter_start"), *of)
    by_minute = quarters.agg(pl.col(*SUMS).sum()).sort("quarter_start", *of)
    by_series = counted.group_by("quarter_start", *of).agg(pl.col(*SUMS).sum()).sort("quarter_start", *of)
    assert by_minute.rows() == by_series.rows()


def test_extra_demand_fills_what_stands_idle_and_the_rest_spills() -> None:
    found = filled(example().pool_usage(), extra(40), two_customers(), PERIOD)
    agrees(found)
    check(
        found.pool_usage,
        """
        minute           | ran_on   | uncached_input_tokens
        2026-03-01 00:00 | pool     | 20
        2026-03-01 00:00 | overflow | 20
        2026-03-01 00:01 | overflow | 40
        """,
    )
    check(
        found.usage,
        "ran_on | customer | provider | uncached_input_tokens\n pool | bolt | own | 20\n overflow | bolt | cirrus | 60",
    )
    check(found.burn, "pool | dimension | extra | filled | spilled\n block | all | 80 | 20 | 60")
    assert not found.pool_customer_usage.height  # nobody is entitled to units


def test_extra_demand_of_a_model_that_nobody_sells_stays_as_overrun() -> None:
    found = filled(example().pool_usage(), extra(40), world(overflow=False), PERIOD)
    assert found.stuck == ("block",)
    assert set(found.pool_usage["ran_on"]) == {"pool"}
    assert found.pool_usage["uncached_input_tokens"].sum() == 80


def seats(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    """Use of acme's seats in the pool: (minute of 1 March, seat, tokens), a request each."""
    text = "\n".join(f"2026-03-01 {minute} | {seat} | {tokens}" for minute, seat, tokens in rows)
    where = {
        "provider": "own",
        "model_served": "large",
        "pool": "block",
        "ran_on": "pool",
        "region": "us-west",
    }
    return read(
        f"minute | seat | uncached_input_tokens\n{text}",
        HELD_USAGE,
        **where,
        customer="acme",
        product="large",
        tier_sold="standard",
        tier_served="standard",
        counts_for="charge_and_cost",
        project="",
        requests=1,
    )


def refusals(count: int, minute: str, tokens: int) -> pl.DataFrame:
    """One of each of the first `count` seats."""
    text = "\n".join(f"r{seat} | s{seat:04}" for seat in range(count))
    return read(
        f"request_id | seat\n{text}",
        LIMIT_REFUSED,
        occurred_at=f"2026-03-01 {minute}",
        customer="acme",
        product="large",
        estimated_input_tokens=tokens,
        estimated_output_tokens=0,
    )


def limited(text: str, said: Books) -> Books:
    limits = read(text, LIMITS, customer="acme", contract="c", effective_from="2026-01-01", plan="team")
    weights = limits.select("contract", "limit").with_columns(
        pl.lit("uncached_input_tokens").alias("meter"),
        pl.lit(1, dtype=pl.Int64).alias("weight"),
        pl.lit(1, dtype=pl.Int64).alias("denominator"),
    )
    return replace(said, limits=limits, limit_weights=LIMIT_WEIGHTS.conform(weights))


def raise_(said: Books, used: pl.DataFrame, refused: pl.DataFrame, only: str | None = None) -> HeldBack:
    usage = used.select(list(LIMIT_USAGE.columns))
    windows = limit_windows(usage, refused, said, PERIOD, PERIOD.until)
    after, _ = with_limits(said, Decimal(2), plan="team", limit=only)
    more = raised(windows, Decimal(2), limits=None if only is None else [only])
    return held_back(windows, more, used, said, after)


def tokens(extra: Extra) -> int:
    minutes = extra.minutes(PERIOD)
    return int(minutes["uncached_input_tokens"].sum()) if minutes.height else 0


def as_traffic(used: pl.DataFrame) -> Traffic:
    sums = [name for name in POOL_CUSTOMER_USAGE.columns if name not in POOL_CUSTOMER_USAGE.key]
    minutes = used.group_by(POOL_CUSTOMER_USAGE.key).agg(pl.col(sums).sum())
    key = [name for name in USAGE.key if name != "quarter_start"]
    quarters = used.group_by(pl.col("minute").dt.truncate("15m").alias("quarter_start"), *key).agg(
        pl.col(sums).sum()
    )
    return Traffic(USAGE.conform(quarters), POOL_CUSTOMER_USAGE.conform(minutes))


def test_the_limits_of_a_thousand_seats_are_doubled() -> None:
    """1,000 seats, 400 binding at 100 a minute, 12,000 units refused: 12,000 to 40,000 extra; with 25,000 idle 0 to
    15,000 spill, at 2 cents $0 to $300 more, for no more revenue: the seats pay a flat plan."""
    said = books(
        **bought("units | unit_burn_per_minute | fee_per_month\n 95_000 | 1 | 0"),
        burndown=burndown("meter | weight\n uncached_input_tokens | 1"),
        cost_books=prices(
            "meter | unit_price\n uncached_input_tokens | 20_000", book="on-demand", item="large"
        ),
        price_books=prices("meter | unit_price\n uncached_input_tokens | 0", item="large"),
        fees=fees("amount\n 200_000"),
    )
    said = limited(
        "limit | holder | window | window_minutes | quantity\n a minute | seat | minute | 1 | 100", said
    )
    used = seats([("00:07", f"s{seat:04}", 100 if seat < 400 else 50) for seat in range(1000)])
    extra = raise_(said, used, refusals(400, "00:07", 30))
    recorded = as_traffic(used)
    before = margin(recorded.usage, recorded.pool_usage(), said, PERIOD, "USD").lines
    for more, sums, cost in (
        (extra.low, (12_000, 12_000, 0), 0),
        (extra.high, (40_000, 25_000, 15_000), 300),
    ):
        found = filled(recorded.pool_usage(), more, said, PERIOD)
        agrees(found)
        assert found.burn.select("extra", "filled", "spilled").rows() == [sums]
        assert set(found.pool_usage["minute"]) == {instant("2026-03-01 00:07")}
        both = pl.concat([recorded.usage, found.usage]), pl.concat([recorded.pool_usage(), found.pool_usage])
        after = margin(*both, said, PERIOD, "USD").lines
        assert after["cost"].sum() - before["cost"].sum() == cost
        assert after["revenue"].sum() == before["revenue"].sum()
    assert extra.unmixed == 0
    # a refusal of somebody who used nothing in the window: nobody knows of what it would have been
    assert raise_(said, seats([]), refusals(3, "00:07", 30)).unmixed == 3


def test_extra_demand_lies_on_the_minutes_in_which_a_window_was_binding() -> None:
    """100 used by 00:04 of ten minutes: 100 more at most, 17 or 16 in each of the six minutes that were left."""
    said = limited(
        "limit | holder | window | window_minutes | quantity\n ten | seat | anchored | 10 | 100", world(1000)
    )
    extra = raise_(said, seats([("00:00", "s0000", 60), ("00:04", "s0000", 40)]), refusals(1, "00:05", 5))
    check(
        extra.high.minutes(PERIOD),
        """
        minute           | uncached_input_tokens | requests
        2026-03-01 00:04 | 17                    | 1
        2026-03-01 00:05 | 17                    | 1
        2026-03-01 00:06 | 17                    | 0
        2026-03-01 00:07 | 17                    | 0
        2026-03-01 00:08 | 16                    | 0
        2026-03-01 00:09 | 16                    | 0
        """,
    )
    assert extra.low.minutes(PERIOD)["uncached_input_tokens"].to_list() == [1, 1, 1, 1, 1]


def test_a_longer_limit_holds_back_what_a_shorter_one_would_let_through() -> None:
    """Two windows of ten minutes at 100 want 100 more each. Of the half hour's 250 only 30 are left: 15 each. Doubled
    too, the half hour has 280 left: all 200. It was not binding, so it wants nothing more of its own."""
    said = limited(
        """
        limit     | holder   | window   | window_minutes | quantity
        ten       | seat     | anchored | 10             | 100
        half hour | customer | fixed    | 30             | 250
        """,
        world(1000),
    )
    said = replace(said, limits=said.limits.with_columns(pl.lit(START).alias("anchor_at")))
    used = seats([("00:00", "s0000", 100), ("00:15", "s0000", 100), ("00:16", "s0001", 20)])
    none = refusals(0, "00:00", 0)

    def wanted(given: Books, only: str | None) -> int:
        return tokens(raise_(given, used, none, only).high)

    assert wanted(said, "ten") == 30
    assert wanted(said, None) == 200
    # binding itself at 220: doubled it wants 220 more, of which the shorter ones' 200 are a part
    tight = replace(
        said,
        limits=said.limits.with_columns(
            pl.when(pl.col("limit") == "ten").then("quantity").otherwise(pl.lit(220)).alias("quantity")
        ),
    )
    assert wanted(tight, "ten") == 0
    assert wanted(tight, None) == 220
    # seats are not asked what they would let through of their customer's: there may be more of them
    assert wanted(tight, "half hour") == 220


def test_a_longer_limit_lets_through_no_more_than_the_shorter_ones_within_it() -> None:
    """200 in the half hour, all used by 00:10 in two windows of ten minutes at 100. Ten times as much would be 1,800
    more: but the window until 00:20 is full, and the one until 00:30 lets 100 through. With ten minutes doubled it is
    100 in each of the first two, which were binding, and 200 in the third: 3 x 200 - 200 in all."""
    said = limited(
        """
        limit     | holder | window   | window_minutes | quantity
        ten       | seat   | anchored | 10             | 100
        half hour | seat   | fixed    | 30             | 200
        """,
        world(1000),
    )
    said = replace(said, limits=said.limits.with_columns(pl.lit(START).alias("anchor_at")))
    used = seats([("00:00", "s0000", 100), ("00:10", "s0000", 100)])
    usage = used.select(list(LIMIT_USAGE.columns))

    def wanted(given: Books, factors: dict[str, int]) -> list[int]:
        windows = limit_windows(usage, refusals(1, "00:25", 900), given, PERIOD, PERIOD.until)
        after, more = given, []
        for name, factor in factors.items():
            after, _ = with_limits(after, Decimal(factor), limit=name)
            more.append(raised(windows, Decimal(factor), limits=[name]))
        found = held_back(windows, pl.concat(more), used, given, after)
        return [tokens(found.low), tokens(found.high)]

    # what was refused at 00:25, 900, is of the half hour: there was no window of ten minutes
    assert wanted(said, {"half hour": 10}) == [100, 100]
    assert wanted(said, {"half hour": 10, "ten": 2}) == [300, 400]
    # one unit in each minute of the clock: 20 are left from 00:10 on, and that one is used up
    ten = pl.col("limit") == "ten"
    by_minute = said.limits.with_columns(
        pl.when(ten).then(pl.lit("minute")).otherwise("window").alias("window"),
        pl.when(ten).then(1).otherwise("window_minutes").cast(pl.Int32).alias("window_minutes"),
        pl.when(ten).then(1).otherwise("quantity").alias("quantity"),
        pl.when(ten).then(pl.lit(None)).otherwise("anchor_at").alias("anchor_at"),
    )
    said = replace(said, limits=LIMITS.conform(by_minute.cast(dict(LIMITS.columns))))
    assert wanted(said, {"half hour": 10}) == [19, 19]
