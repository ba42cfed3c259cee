"""Fees: earned evenly over the days of a month, a year or a span; slices that touch add up exactly."""

from decimal import Decimal
from itertools import pairwise

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.core.effective import slices
from metering.core.fees import fees_earned as earned_of
from metering.frames.terms import CONTRACT_TERMS
from metering.periods import QUARTER, Period, parse_period
from tests.core import example_books as a
from tests.text_tables import check, instant, read

UTC_MONTHS = CONTRACT_TERMS.empty()


def fees_earned(fees, cut, terms=UTC_MONTHS):
    return earned_of(fees, terms, cut)


def test_an_annual_plan_of_2400_earns_each_month_alike():
    """$200 a month: a day of 31 earns 200/31, quanta fall where the floor of the sum does."""
    earned = fees_earned(a.fees("amount\n 200"), slices(parse_period("2026-03")))
    assert earned.height == 31
    assert earned["amount"].sum() == Decimal(200)
    check(
        earned.head(3),
        """
        slice_start      | customer | amount         | currency
        2026-03-01 00:00 | acme     | 6.451612903225 | USD
        2026-03-02 00:00 | acme     | 6.451612903226 | USD
        2026-03-03 00:00 | acme     | 6.451612903226 | USD
        """,
    )


def test_a_fee_earns_while_it_is_in_force():
    fees = a.fees(
        """
        fee   | effective_from   | effective_until  | amount
        plan  | 2026-03-01 12:00 | 2026-03-02 06:00 | 31
        seats | 2026-02-01       | 2026-03-01       | 28
        later | 2026-03-03       | -                | 31
        """
    )
    check(
        fees_earned(fees, slices(parse_period("2026-02-28..2026-03-03"))),
        """
        fee   | slice_start | amount
        plan  | 2026-03-01  | 0.5
        plan  | 2026-03-02  | 0.25
        seats | 2026-02-28  | 1
        """,
    )


def test_an_annual_plan_earns_by_the_day_of_its_year():
    """2,400 a year at a cost of 150 a month: +53.84 in a month of 31 days of a year of 365, not +2,250, -150."""
    plan = a.fees("amount | per\n 2_400 | year")
    months = [
        fees_earned(plan, slices(parse_period(f"2026-{month:02}")))["amount"].sum() for month in range(1, 13)
    ]
    assert sum(months) == 2_400
    assert round(months[0] - 150, 2) == Decimal("53.84")
    assert round(months[1] - 150, 2) == Decimal("34.11")
    # a leap year has a day more, and the year runs from the day on which the fee began
    leap = a.fees("amount | per | effective_from\n 366 | year | 2027-03-01")
    assert fees_earned(leap, slices(parse_period("2028-02")))["amount"].sum() == 29
    # the next year has 365
    assert round(fees_earned(leap, slices(parse_period("2028-03-01")))["amount"].item(), 6) == Decimal(
        "1.002740"
    )


def test_seats_are_counted_and_a_reservation_is_earned_over_its_span():
    fees = a.fees(
        """
        fee   | kind        | effective_from   | effective_until  | amount | quantity | per
        seats | seat        | 2026-01-01       | -                |   31   |       12 | month
        block | reservation | 2026-03-01 12:00 | 2026-03-03 12:00 | 1_000  |        1 | span
        """
    )
    check(
        fees_earned(fees, slices(parse_period("2026-03-01..2026-03-04"))),
        """
        fee   | slice_start | amount
        seats | 2026-03-01  |  12
        seats | 2026-03-02  |  12
        seats | 2026-03-03  |  12
        block | 2026-03-01  | 250
        block | 2026-03-02  | 500
        block | 2026-03-03  | 250
        """,
    )


def test_a_month_runs_from_the_anchor_day_in_the_zone_and_a_day_of_25_hours_earns_as_any_other():
    terms = read(
        "anchor_day | zone\n 31 | America/New_York",
        CONTRACT_TERMS,
        customer="acme",
        contract="c",
        effective_from="2026-01-01",
        currency="USD",
        period_months=1,
    )
    fees = a.fees("amount\n 3_100")
    # the month from 31 October to 30 November (which has no 31st) has 30 days; it begins at 04:00 UTC
    check(
        fees_earned(
            fees,
            slices(parse_period("2026-10-31T04:00..2026-11-02T05:00"), [instant("2026-11-01 04:00")]),
            terms,
        )
        .group_by("customer")
        .agg(pl.col("amount").sum().round(10)),
        "amount\n 206.6666666667",
    )
    month = slices(parse_period("2026-10-31T04:00..2026-11-30T05:00"))
    assert fees_earned(fees, month, terms)["amount"].sum() == 3_100
    # 25 quarter hours of the first of November, which has 100, are a quarter of a day
    part = slices(parse_period("2026-11-01T04:00..2026-11-01T10:15"))
    assert round(fees_earned(fees, part, terms)["amount"].sum(), 6) == Decimal("25.833333")


@settings(max_examples=5)
@given(
    st.integers(0, 10**20),
    st.lists(st.integers(1, 96 * 61), min_size=1, max_size=6, unique=True),
    st.sampled_from(["month", "year", "span"]),
    st.sampled_from([("UTC", 1), ("America/New_York", 31), ("Australia/Lord_Howe", 29)]),
)
def test_spans_that_touch_add_up(quanta, edges, per, billing):
    zone, anchor_day = billing
    terms = read(
        f"anchor_day | zone\n {anchor_day} | {zone}",
        CONTRACT_TERMS,
        customer="acme",
        contract="c",
        effective_from="2026-01-01",
        currency="USD",
        period_months=1,
    )
    fees = a.fees(f"amount | per | effective_until\n {Decimal(quanta).scaleb(-12):f} | {per} | 2027-01-01")
    start = instant("2026-01-30")
    cuts = [start, *(start + edge * QUARTER for edge in sorted(edges))]
    whole = fees_earned(fees, slices(Period("whole", cuts[0], cuts[-1])), terms)["amount"].sum()
    parts = [
        fees_earned(fees, slices(Period("part", since, until)), terms)["amount"].sum()
        for since, until in pairwise(cuts)
    ]
    assert sum(parts) == whole
