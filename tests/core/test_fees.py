"""Fees: earned evenly over each calendar month; spans that touch add up exactly."""

from decimal import Decimal
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from metering.core.effective import slices
from metering.core.fees import fees_earned
from metering.periods import QUARTER, Period, parse_period
from tests.core import example_books as a
from tests.text_tables import check, instant


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


@given(
    st.integers(0, 10**20),
    st.lists(st.integers(1, 96 * 61), min_size=1, max_size=6, unique=True),
)
def test_spans_that_touch_add_up(quanta, edges):
    fees = a.fees(f"amount\n {Decimal(quanta).scaleb(-12):f}")
    start = instant("2026-01-30")
    cuts = [start, *(start + edge * QUARTER for edge in sorted(edges))]
    whole = fees_earned(fees, slices(Period("whole", cuts[0], cuts[-1])))["amount"].sum()
    parts = [
        fees_earned(fees, slices(Period("part", since, until)))["amount"].sum()
        for since, until in pairwise(cuts)
    ]
    assert sum(parts) == whole
