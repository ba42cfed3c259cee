"""Limits: windows, headroom, refusals and what larger limits would burn, by hand computation."""
# ruff: noqa: E501  # tables are as wide as they need to be

from collections import defaultdict
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from random import Random

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.core.exposure import exposure, limit_burn
from metering.core.limit_refusals import unlimited_refusals
from metering.core.limits import limit_reach, limit_windows, raised, summarise_limits
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.supply import CAPACITY_STEPS
from metering.frames.terms import FEES, LIMIT_WEIGHTS, LIMITS
from metering.frames.usage import LIMIT_REFUSED, LIMIT_USAGE, SUMS
from metering.periods import Period, parse_period
from metering.results.capacity import UTILIZATION
from metering.results.limits import LIMIT_WINDOWS
from tests.core import example_books as a
from tests.text_tables import check, instant, read

DAY = parse_period("2026-03-10")
BEFORE = "2026-01-01"


def books(limits: str, weights: str = "", **defaults: object) -> Books:
    said = {"customer": "acme", "contract": "acme", "effective_from": BEFORE, "window_minutes": 1, **defaults}
    rows = read(limits, LIMITS, **said)
    if weights:
        return Books(1, limits=rows, limit_weights=read(weights, LIMIT_WEIGHTS))
    each = rows.select("contract", "limit").unique()
    plain = each.with_columns(pl.lit("output_tokens").alias("meter"), weight=1, denominator=1)
    return Books(
        1,
        limits=rows,
        limit_weights=LIMIT_WEIGHTS.conform(plain.cast({"weight": pl.Int64, "denominator": pl.Int64})),
    )


def usage(text: str) -> pl.DataFrame:
    return read(text, LIMIT_USAGE, customer="acme", product="large", project="", seat="")


def refusals(text: str) -> pl.DataFrame:
    return read(text, LIMIT_REFUSED, customer="acme", product="large")


def windows(
    used: pl.DataFrame,
    of: Books,
    turned_away: pl.DataFrame | None = None,
    period: Period = DAY,
    until: datetime | None = None,
) -> pl.DataFrame:
    refused = LIMIT_REFUSED.empty() if turned_away is None else turned_away
    return limit_windows(used, refused, of, period, until or instant("2026-04-01"))


THREE = """
    minute           | output_tokens
    2026-03-10 10:07 | 1
    2026-03-10 14:50 | 60
    2026-03-10 15:02 | 60
"""


def test_an_anchored_window_opens_at_the_first_use_and_a_clock_would_tell_another_story() -> None:
    limits = """
        limit    | holder   | window   | window_minutes | quantity | anchor_at
        anchored | customer | anchored | 300            | 100      | -
        clock    | customer | fixed    | 300            | 100      | 2026-03-10
    """
    check(
        windows(usage(THREE), books(limits)),
        """
        limit    | window_start     | window_until     | used | headroom_ratio | binding | binding_from
        anchored | 2026-03-10 10:07 | 2026-03-10 15:07 | 121  | -0.21          | yes     | 2026-03-10 15:02
        clock    | 2026-03-10 10:00 | 2026-03-10 15:00 | 61   | 0.39           | no      | -
        clock    | 2026-03-10 15:00 | 2026-03-10 20:00 | 60   | 0.4            | no      | -
        """,
    )


def subscribers() -> pl.DataFrame:
    """A thousand seats in one window of a limit of 100; 400 of them reached it, 30 units of each were refused."""
    one = read(
        """
        holder | plan | limit      | held_by | window_start     | window_until     | quantity | used | binding
        seat   | team | five hours | -       | 2026-03-10 10:00 | 2026-03-10 15:00 | 100      | 40   | no
        """.replace("| - ", "| x "),
        LIMIT_WINDOWS,
        customer="acme",
        contract="acme",
        window="fixed",
        window_minutes=300,
        denominator=1,
        open=False,
        headroom_ratio="0.6",
    )
    seat = pl.format("seat-{}", pl.int_range(1000).cast(pl.String).str.zfill(4))
    full = pl.int_range(1000) < 400
    opened = pl.lit(instant("2026-03-10 10:00")).cast(one.schema["binding_from"])
    return LIMIT_WINDOWS.conform(
        pl.concat([one] * 1000).with_columns(
            seat.alias("held_by"),
            full.alias("binding"),
            pl.when(full).then(opened).alias("binding_from"),
            pl.when(full).then(100).otherwise(40).cast(pl.Int128).alias("used"),
            pl.when(full).then(1).otherwise(0).cast(pl.Int64).alias("refused_requests"),
            pl.when(full).then(30).otherwise(0).cast(pl.Int128).alias("refused"),
        )
    )


def test_doubling_the_limit_of_a_thousand_subscribers() -> None:
    more = raised(subscribers(), Decimal(2), plans=["team"])
    assert more.height == 400
    assert more.select(pl.col("extra_low", "extra_high").sum()).row(0) == (12_000, 40_000)
    one = subscribers().filter(pl.col("held_by") == "seat-0000")
    tenth = raised(one, Decimal("1.1")).select("quantity_after", "extra_low", "extra_high")
    assert tenth.rows() == [(110, 10, 10)]
    assert raised(subscribers(), Decimal(1))["extra_high"].sum() == 0
    assert raised(subscribers(), Decimal(2), plans=["other"]).is_empty()
    assert raised(subscribers(), Decimal(2), customers=["acme"], limits=["other"]).is_empty()
    with pytest.raises(BadInput, match="factor of at least 1"):
        raised(one, Decimal("0.5"))
    with pytest.raises(BadInput, match="beyond 64 bits"):
        raised(one, Decimal("1e18"))


def test_windows_of_every_kind_per_holder_with_weights_products_and_a_change_of_the_limit() -> None:
    limits = """
        limit  | holder   | items       | window   | window_minutes | quantity | anchor_at        | effective_from | effective_until
        minute | customer | large       | minute   | 1              | 10       | -                | 2026-01-01     | -
        week   | seat     | all         | fixed    | 10080          | 100      | 2026-03-02 06:00 | 2026-01-01     | 2026-03-10 12:00
        week   | seat     | all         | fixed    | 10080          | 200      | 2026-03-02 06:00 | 2026-03-10 12:00 | -
        day    | project  | large,small | anchored | 1440           | 50       | -                | 2026-01-01     | -
    """
    weights = """
        contract | limit  | meter                 | weight | denominator
        acme     | minute | requests              | 1      | 1
        acme     | week   | uncached_input_tokens | 1      | 2
        acme     | week   | output_tokens         | 5      | 2
        acme     | day    | output_tokens         | 1      | 1
    """
    used = usage(
        """
        minute           | product | project | seat | requests | uncached_input_tokens | cache_read_tokens | output_tokens
        2026-03-08 09:00 | large   | -       | a    | 1        | 2                     | 99                | 1
        2026-03-10 11:59 | large   | one     | a    | 10       | 20                    | 0                 | 10
        2026-03-10 12:00 | small   | one     | a    | 1        | 1                     | 99                | 0
        2026-03-10 12:00 | large   | one     | b    | 1        | 0                     | 99                | 0
        2026-03-10 12:00 | other   | one     | b    | 1        | 0                     | 0                 | 3
        2026-03-10 12:01 | large   | one     | a    | 0        | 0                     | 0                 | 0
        2026-03-11 11:58 | small   | one     | -    | 1        | 0                     | 0                 | 45
        2026-03-11 11:59 | small   | one     | -    | 1        | 0                     | 0                 | 1
        """.replace("| -  ", "|    ")
    )
    found = windows(used, books(limits, weights))
    # the week of the 8th ends on the 9th: it does not touch the day; cache reads count nothing, nor does another
    # product in the limit of a minute; of a day that opens at 11:59 the 45 are part, of the next one the 1
    check(
        found,
        """
        limit  | held_by | window_start     | window_until     | quantity | denominator | used | headroom_ratio | binding
        minute | acme    | 2026-03-10 11:59 | 2026-03-10 12:00 | 10       | 1           | 10   | 0              | yes
        minute | acme    | 2026-03-10 12:00 | 2026-03-10 12:01 | 10       | 1           | 1    | 0.9            | no
        week   | a       | 2026-03-09 06:00 | 2026-03-10 12:00 | 100      | 2           | 70   | 0.65           | no
        week   | a       | 2026-03-10 12:00 | 2026-03-16 06:00 | 200      | 2           | 1    | 0.9975         | no
        week   | b       | 2026-03-10 12:00 | 2026-03-16 06:00 | 200      | 2           | 15   | 0.9625         | no
        day    | one     | 2026-03-10 11:59 | 2026-03-11 11:59 | 50       | 1           | 55   | -0.1           | yes
        """,
    )
    assert set(found["open"]) == {False}
    early = windows(used, books(limits, weights), until=instant("2026-03-12"))
    assert early.filter("open")["held_by"].to_list() == ["a", "b"]


def test_a_refusal_counts_once_in_the_window_that_is_used_most() -> None:
    limits = """
        limit  | holder   | items | window   | window_minutes | quantity | anchor_at
        five   | seat     | all   | anchored | 300            | 100      | -
        week   | seat     | all   | fixed    | 10080          | 1000     | 2026-03-09
        other  | customer | small | minute   | 1              | 5        | -
    """
    of = books(limits)
    used = usage(
        """
        minute           | seat | output_tokens
        2026-03-10 10:00 | a    | 90
        2026-03-10 10:30 | a    | 5
        2026-03-10 10:00 | b    | 50
        2026-03-10 20:00 | b    | 950
        """
    )
    turned = refusals(
        """
        occurred_at             | request_id | product | seat | estimated_input_tokens | estimated_output_tokens
        2026-03-10 10:31:07     | r1         | large   | a    | 7                      | 20
        2026-03-10 14:59:59     | r2         | large   | a    | -                      | -
        2026-03-10 15:00:00     | r3         | large   | c    | 1                      | 300
        2026-03-10 21:00        | r4         | large   | b    | 1                      | 10
        2026-03-10 21:00        | r5         | small   | -    | 1                      | 10
        2026-03-10 21:00        | r6         | large   | -    | 1                      | 10
        """
    )
    # c has used nothing: all its limits are as full as each other, so the shortest, in a window of its own
    check(
        windows(used, of, turned),
        """
        limit | held_by | window_start     | used | binding | binding_from     | refused_requests | refused_tokens | refused_unestimated | refused
        five  | a       | 2026-03-10 10:00 | 95   | yes     | 2026-03-10 10:31 | 2                | 27             | 1                   | 20
        five  | b       | 2026-03-10 10:00 | 50   | no      | -                | 0                | 0              | 0                   | 0
        five  | b       | 2026-03-10 20:00 | 950  | yes     | 2026-03-10 20:00 | 1                | 11             | 0                   | 10
        five  | c       | 2026-03-10 15:00 | 0    | yes     | 2026-03-10 15:00 | 1                | 301            | 0                   | 300
        other | acme    | 2026-03-10 21:00 | 0    | yes     | 2026-03-10 21:00 | 1                | 11             | 0                   | 10
        week  | a       | 2026-03-09       | 95   | no      | -                | 0                | 0              | 0                   | 0
        week  | b       | 2026-03-09       | 1000 | yes     | 2026-03-10 20:00 | 0                | 0              | 0                   | 0
        """,
    )
    assert unlimited_refusals(turned, of, DAY).rows() == [("acme", 1)]
    check(
        summarise_limits(windows(used, of, turned), "limit"),
        """
        limit | contract | holders | holders_binding | windows | windows_binding | binding_ratio | p50_ratio | max_ratio | least_headroom_ratio | refused_requests | refused_tokens
        five  | acme     | 3       | 3               | 4       | 3               | 0.75          | 0.5       | 9.5       | -8.5                 | 4                | 339
        other | acme     | 1       | 1               | 1       | 1               | 1             | 0         | 0         | 1                    | 1                | 11
        week  | acme     | 2       | 1               | 2       | 1               | 0.5           | 0.095     | 1         | 0                    | 0                | 0
        """,
    )
    check(
        summarise_limits(windows(used, of, turned), "customer"),
        "customer | holders | windows | windows_binding | p95_ratio\nacme | 4 | 7 | 5 | 9.5",
    )


def test_what_was_taken_back_gives_room_and_opens_nothing() -> None:
    limits = books(
        "limit | holder | window | window_minutes | quantity\nfive | customer | anchored | 300 | 100"
    )
    used = read(
        """
        minute           | product | requests | output_tokens
        2026-03-10 09:00 | large   | 0        | 0
        2026-03-10 09:59 | large   | 1        | 50
        2026-03-10 14:58 | large   | 1        | 30
        2026-03-10 14:59 | large   | 1        | 70
        """,
        LIMIT_USAGE,
        customer="acme",
        project="",
        seat="",
    )
    check(
        windows(used, limits),
        """
        window_start     | window_until     | used | binding
        2026-03-10 09:59 | 2026-03-10 14:59 | 80   | no
        2026-03-10 14:59 | 2026-03-10 19:59 | 70   | no
        """,
    )


def test_what_the_windows_of_a_period_need() -> None:
    text = "limit | holder | window | window_minutes | quantity | anchor_at\nweek | seat | fixed | 10080 | 1 | 2026-03-02"
    start, until = instant("2026-03-03"), instant("2026-03-18")
    reach = limit_reach(books(text).limits, DAY, instant("2027-01-01"))
    assert (reach.start, reach.until) == (start, until)
    anchored = "limit | holder | window | window_minutes | quantity\nfive | seat | anchored | 300 | 1"
    reach = limit_reach(books(anchored).limits, DAY, instant("2026-03-10 12:07"))
    assert (reach.start, reach.until) == (instant("2026-03-02 19:00"), instant("2026-03-10 12:00"))
    reach = limit_reach(LIMITS.empty(), DAY, instant("2027-01-01"))
    assert (reach.start, reach.until) == (DAY.start, DAY.until)
    nothing = windows(LIMIT_USAGE.empty(), books(text))
    assert nothing.is_empty()
    assert summarise_limits(nothing, "holder").is_empty()


@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=60
    ),
    st.integers(1, 90),
    st.randoms(),
)
def test_anchored_windows_are_those_of_one_holder_after_the_other(
    events: list[tuple[int, str, int]], length: int, random: Random
) -> None:
    """In any order of rows, and with rows of one key split: what a loop over each holder's minutes gives."""
    random.shuffle(events)
    rows = pl.DataFrame(
        {
            "minute": [instant("2026-03-10") + timedelta(minutes=at) for at, _, _ in events],
            "seat": [seat for _, seat, _ in events],
            "output_tokens": [amount for *_, amount in events],
        }
    ).with_columns(customer=pl.lit("acme"), product=pl.lit("large"), project=pl.lit(""))
    missing = [name for name in LIMIT_USAGE.columns if name not in rows.columns]
    used = rows.with_columns(pl.lit(0).alias(name) for name in missing).cast(
        dict.fromkeys(SUMS, pl.Int128) | {"minute": LIMIT_USAGE.columns["minute"]}
    )
    of = books(f"limit | holder | window | window_minutes | quantity\nsome | seat | anchored | {length} | 5")
    wanted: dict[tuple[str, int], int] = {}
    for seat in "abc":
        sums: dict[int, int] = defaultdict(int)
        for at, who, amount in events:
            if who == seat:
                sums[at] += amount
        opened = None
        for at in sorted(at for at, amount in sums.items() if amount):
            if opened is None or at >= opened + length:
                opened = at
            wanted[seat, opened] = wanted.get((seat, opened), 0) + sums[at]
    found = windows(used.select(list(LIMIT_USAGE.columns)), of)
    start = (pl.col("window_start") - instant("2026-03-10")).dt.total_minutes()
    assert {
        (seat, at): amount for seat, at, amount in found.select("held_by", start, "used").rows()
    } == wanted
    assert all(row["binding"] == (row["used"] >= 5) for row in found.iter_rows(named=True))
    assert found["used"].sum() == used["output_tokens"].sum()


def test_exposure_is_every_limit_in_what_it_burns_and_the_peak_is_what_burned_at_once() -> None:
    """Two limits of ten minutes: 5 seats paid for at 100, one contract at 40; a pool of 100 a minute."""
    limits = """
        customer | contract | plan | limit | holder   | items | window   | window_minutes | quantity
        acme     | acme     | team | ten   | seat     | large | anchored | 10             | 100
        globex   | globex   | team | ten   | seat     | large | anchored | 10             | 100
        globex   | globex   | -    | own   | customer | small | fixed    | 10             | 40
    """
    of = books(limits, anchor_at="2026-03-10")
    of = replace(
        of,
        fees=read(
            "customer | contract | fee | kind | quantity\nacme | acme | seats | seat | 3", FEES,
            effective_from=BEFORE, per="month", currency="USD",
        ),
        burndown=a.burndown("meter | model | weight\noutput_tokens | large | 2\noutput_tokens | small | 1", pool="north"),
        capacity_steps=read(
            "pool | dimension | units | unit_burn_per_minute\nnorth | all | 1 | 100", CAPACITY_STEPS,
            effective_from=BEFORE, fee_share_ratio="1",
        ),
    )  # fmt: skip
    quarters = a.usage(
        """
        quarter_start    | customer | product | model_served | pool  | ran_on    | counts_for      | output_tokens
        2026-03-10 10:00 | acme     | large   | large        | north | pool      | charge_and_cost | 100
        2026-03-10 10:00 | globex   | large   | large        | north | overflow  | charge_and_cost | 50
        2026-03-10 10:00 | globex   | large   | large        | -     | on_demand | charge_and_cost | 50
        2026-03-10 10:00 | globex   | large   | large        | north | pool      | cost            | 25
        2026-03-10 10:15 | globex   | small   | small        | north | pool      | charge_and_cost | 20
        2026-03-10 10:15 | globex   | other   | large        | north | pool      | charge_and_cost | 999
        2026-03-10 10:15 | initech  | large   | large        | north | pool      | charge_and_cost | 999
        """
    )
    burn = limit_burn(quarters, of, DAY)
    # 200 used; 100 + 50 + a retry of 25, at 2 each, burned: 1.75 for each used
    check(
        burn,
        """
        plan | contract | limit | pool  | dimension | use | burn | denominator
        team | -        | ten   | north | all       | 200 | 350  | 1
        -    | globex   | own   | north | all       | 20  | 20   | 1
        """,
    )
    used = read(
        """
        minute           | customer | product | seat | output_tokens
        2026-03-10 10:00 | acme     | large   | a    | 40
        2026-03-10 10:05 | acme     | large   | b    | 60
        2026-03-10 10:12 | globex   | large   | x    | 50
        2026-03-10 10:14 | globex   | large   | y    | 50
        2026-03-10 10:16 | globex   | small   | y    | 20
        """,
        LIMIT_USAGE,
        project="",
    )
    minute = read("pool | dimension | minute | denominator\nnorth | all | 2026-03-10 | 1", UTILIZATION)
    flat = UTILIZATION.conform(
        pl.concat([minute] * 1440).with_columns(
            pl.col("minute") + pl.duration(minutes=pl.int_range(1440)),
            *(pl.lit(100, dtype=pl.Int128).alias(name) for name in ("contracted", "available", "idle")),
        )
    )
    # acme pays for 3 seats and used 2, globex used 2: 5 x 100 x 1.75 = 875 of 1,000; its own 40 x 1
    # most at once: 10:05 to 10:15, 160 x 1.75: 105 + 87 + 87, each rounded down
    check(
        exposure(used, burn, flat, of, DAY),
        """
        pool  | window_minutes | plan | contract | limit | holders | exposure | available | exposure_ratio | peak_start       | peak | peak_ratio
        north | 10             | team | -        | ten   | 5       | 875      | 1000      | 0.875          | 2026-03-10 10:05 | 279  | 0.279
        north | 10             | -    | globex   | own   | 1       | 40       | 1000      | 0.04           | 2026-03-10 10:07 | 20   | 0.02
        north | 10             | -    | -        | -     | 6       | 915      | 1000      | 0.915          | 2026-03-10 10:05 | 279  | 0.279
        """,
    )
    short = Period("short", instant("2026-03-10 10:00"), instant("2026-03-10 10:08"))
    of_short = exposure(used, burn, flat.head(8), of, short)
    assert set(of_short["peak"]) == {None}
    assert exposure(used, burn.clear(), flat, of, DAY).is_empty()


def test_where_nothing_is_limited_there_is_no_window() -> None:
    assert windows(usage(THREE), Books(1)).is_empty()
