"""Recognition: what of fees and bills belongs to which quarter hour; every table can be checked by hand."""
# ruff: noqa: E501  # tables are as wide as they need to be

from itertools import pairwise

import polars as pl
import pytest

from metering.core.recognition import recognised
from metering.errors import BadInput
from metering.frames.supply import BILL_LINES, CAPACITY_FEES
from metering.money import from_quanta
from metering.periods import parse_period
from tests.core import example_books as a
from tests.text_tables import check, read

YEAR = "2026-01-01..2027-01-01"


def fees(text, **defaults):
    given = {"pool": "block", "fee": "capacity", "currency": "USD", "effective_from": "2026-01-01"}
    return read(text, CAPACITY_FEES, **{**given, **defaults})


def bills(text, **defaults):
    given = {"supplier": "northstar", "document": "INV", "object_kind": "pool", "object": "block"}
    given |= {"currency": "USD", "posted_month": "2026-01-01", "category": "charge"}
    return read(text, BILL_LINES, **{**given, **defaults})


def books(steps, charged, billed=None, recognition="as_billed"):
    bought = a.bought(steps)
    bought["pools"] = bought["pools"].with_columns(pl.lit(recognition).alias("recognition"))
    bought["capacity_fees"] = charged
    return a.books(**bought, **({} if billed is None else {"bill_lines": billed}))


def by(cost, every, *more):
    """Recognised cost summed to `every` length of time, rounded to the cent."""
    return (
        cost.group_by(pl.col("quarter_start").dt.truncate(every).dt.date().alias("from"), "currency", *more)
        .agg(pl.col("cost").sum())
        .with_columns(from_quanta(pl.col("cost")).round(2))
        .sort("from")
    )


#: Six months (181 days) of 184 units, then six (184 days) of 543: unit-time 1 : 3, as 100 and 300 units would be
#: in twelve equal months.
RAMP = """
effective_from | effective_until | units | fee_per_month
2026-01-01     | 2026-07-01      | 184   | 0
2026-07-01     | -               | 543   | 0
"""
FLAT = "amount | per | effective_until\n 100_000 | month | 2027-01-01"


def test_a_flat_fee_over_a_ramp_is_recognised_by_capacity_and_the_rest_is_prepaid():
    """$100k a month: by capacity-hours 300k in the first half (600k billed: 300k prepaid), 900k in the second."""
    billed = recognised(books(RAMP, fees(FLAT)), parse_period(YEAR))
    assert by(billed, "1mo")["cost"].to_list() == [100_000] * 12
    halves = by(
        recognised(books(RAMP, fees(FLAT), recognition="capacity_hours"), parse_period(YEAR)).with_columns(
            pl.col("quarter_start").dt.truncate("6mo")
        ),
        "1mo",
    )
    check(halves, "from | cost\n 2026-01-01 | 300_000\n 2026-07-01 | 900_000")


def test_two_equal_months_of_which_the_second_has_three_times_the_units():
    """July and August, 31 days each, $100k each: 50k and 150k by capacity, 100k each in a straight line."""
    steps = """
    effective_from | effective_until | units | fee_per_month
    2026-07-01     | 2026-08-01      | 100   | 0
    2026-08-01     | 2026-09-01      | 300   | 0
    """
    fee = fees("amount | per\n 100_000 | month", effective_from="2026-07-01", effective_until="2026-09-01")
    span = parse_period("2026-07-01..2026-09-01")
    for schedule, july, august in (
        ("capacity_hours", 50_000, 150_000),
        ("straight_line_days", 100_000, 100_000),
    ):
        found = by(recognised(books(steps, fee, recognition=schedule), span), "1mo")
        check(found, f"from | cost\n 2026-07-01 | {july}\n 2026-08-01 | {august}")


def test_an_upfront_fee_is_billed_in_its_first_month_and_recognised_in_a_straight_line():
    """$36,500 for the 365 days of 2026: $100 a day; as billed all of it within January."""
    fee = fees("amount | per | effective_until\n 36_500 | span | 2027-01-01")
    steps = "units | fee_per_month\n 1 | 0"
    months = parse_period("2026-01-01..2026-03-01")
    check(by(recognised(books(steps, fee), months), "1mo"), "from | cost\n 2026-01-01 | 36_500")
    for schedule in ("straight_line_days", "capacity_hours"):
        found = recognised(books(steps, fee, recognition=schedule), months)
        check(by(found, "1mo"), "from | cost\n 2026-01-01 | 3_100\n 2026-02-01 | 2_800")
        billed = bills("line | amount | service_from | service_until\n 1 | 36_500 | 2026-01-01 | 2027-01-01")
        known = recognised(books(steps, fee, billed, recognition=schedule), months)
        assert known["cost"].equals(found["cost"])
        assert not known["estimated"].any()
    # without an end there is no total to spread
    open_ = fees("amount | per\n 31 | month")
    assert recognised(books(steps, open_, recognition="capacity_hours"), months)["cost"].equals(
        recognised(books(steps, open_), months)["cost"]
    )


def test_fees_per_unit_accrue_with_the_units_in_force_whatever_the_schedule():
    """2 units until noon, then 6: 12 x 2 + 12 x 6 = 96 unit-hours = 4 unit-days, of 31 in the month."""
    steps = """
    effective_from   | effective_until  | units | fee_per_month
    2026-01-01       | 2026-01-01 12:00 | 2     | 0
    2026-01-01 12:00 | -                | 6     | 0
    """
    for schedule in ("as_billed", "capacity_hours"):
        for per, amount, day in (
            ("unit_hour", "1.50", "144"),
            ("unit_day", "10", "40"),
            ("unit_month", "310", "40"),
        ):
            fee = fees(f"amount | per\n {amount} | {per}")
            first = recognised(books(steps, fee, recognition=schedule), parse_period("2026-01-01"))
            check(by(first, "1d"), f"from | cost\n 2026-01-01 | {day}")
    # a month is as long as it is: 6 units of $310 in all of February
    fee = fees("amount | per\n 310 | unit_month")
    check(
        by(recognised(books(steps, fee), parse_period("2026-02")), "1mo"), "from | cost\n 2026-02-01 | 1_860"
    )


def test_dimensions_have_their_share_or_a_fee_of_their_own():
    steps = """
    dimension | units | fee_share_ratio | fee_per_month
    input     | 4     | 0.25            | 0
    output    | 1     | 0.75            | 0
    """
    fee = fees(
        """
        fee    | dimension | amount | per       | currency
        flat   | -         | 3_100  | month     | USD
        output | output    | 2      | unit_hour | USD
        each   | -         | 1      | unit_hour | CHF
        """
    )
    found = by(recognised(books(steps, fee), parse_period("2026-01-01")), "1d", "dimension")
    check(
        found,
        """
        dimension | currency | cost
        input     | USD      | 25
        output    | USD      | 123
        input     | CHF      | 24
        output    | CHF      | 18
        """,
    )


def test_where_billing_equals_the_contract_nothing_changes():
    """A ramp keeps its two rates, although the invoice says one amount: $100 a day, then $300, of 31 days."""
    steps = """
    effective_from | effective_until | units | fee_per_month
    2026-01-01     | 2026-01-11      | 1     | 0
    2026-01-11     | -               | 3     | 0
    """
    fee = fees("amount | per\n 100 | unit_day")
    invoice = "line | amount | service_from | service_until\n 1 | 7_300 | 2026-01-01 | 2026-02-01"
    estimate = recognised(books(steps, fee), parse_period("2026-01"))
    known = recognised(books(steps, fee, bills(invoice)), parse_period("2026-01-01..2026-02-02"))
    assert estimate["estimated"].all()
    assert known.head(31 * 96)["cost"].equals(estimate["cost"])
    assert not known.head(31 * 96)["estimated"].any()
    assert known.tail(96)["estimated"].all()


def test_a_difference_a_credit_and_a_true_up_are_spread_over_their_own_service():
    """Contract $3,100 a month. Billed 3,410: +10 a day. A credit of 620 for the 3rd and 4th; a true-up of 56 for February."""
    fee = fees("amount | per\n 3_100 | month", effective_until="2026-02-01")
    billed = bills(
        """
        line | category | amount | service_from | service_until
        1    | charge   | 3_410  | 2026-01-01   | 2026-02-01
        2    | credit   | -620   | 2026-01-03   | 2026-01-05
        3    | true_up  | 56     | 2026-02-01   | 2026-03-01
        """
    )
    cost = recognised(
        books("units | fee_per_month\n 1 | 0", fee, billed), parse_period("2026-01-01..2026-02-03")
    )
    days = by(cost, "1d")["cost"].to_list()
    assert days[:6] == [110, 110, -200, -200, 110, 110]
    assert days[30:] == [110, 2, 2]
    assert cost.filter(pl.col("estimated"))["quarter_start"].dt.date().n_unique() == 2


def test_a_quarter_hour_is_covered_once():
    """Two charges for January bill 1,500 and 1,700 of a contract of 3,100: 100 more, not 100 + 3,100 less."""
    fee = fees("amount | per\n 3_100 | month", effective_until="2026-02-01")
    billed = bills(
        """
        line | amount | service_from | service_until
        1    | 1_500  | 2026-01-01   | 2026-02-01
        2    | 1_700  | 2026-01-01   | 2026-02-01
        """
    )
    found = by(
        recognised(books("units | fee_per_month\n 1 | 0", fee, billed), parse_period("2026-01")), "1mo"
    )
    check(found, "from | cost\n 2026-01-01 | 3_200")


def test_a_bill_in_another_currency_is_a_cost_of_its_own():
    """It covers nothing that the contract owes in dollars."""
    fee = fees("amount | per\n 3_100 | month")
    billed = bills(
        "line | amount | currency | service_from | service_until\n 1 | 31 | EUR | 2026-01-01 | 2026-02-01"
    )
    cost = recognised(books("units | fee_per_month\n 1 | 0", fee, billed), parse_period("2026-01"))
    check(
        by(cost, "1mo", "estimated"),
        "currency | cost | estimated\n USD | 3_100 | yes\n EUR | 31 | no",
    )


def test_a_pool_that_is_paid_for_before_it_has_units():
    """Fee from January, units from February: January's cost is there, in the pool's dimension."""
    fee = fees("amount | per\n 3_100 | month")
    cost = recognised(
        books("effective_from | units | fee_per_month\n 2026-02-01 | 1 | 0", fee), parse_period("2026-01-01")
    )
    check(by(cost, "1d", "dimension"), "from | dimension | cost\n 2026-01-01 | all | 100")


@pytest.mark.parametrize("recognition", ["as_billed", "straight_line_days", "capacity_hours"])
def test_any_partition_of_time_adds_up(recognition):
    charged = fees(
        """
        fee   | amount           | per        | effective_until
        flat  | 0.000000100007   | month      | 2026-03-17 11:15
        whole | 77.000000000011  | span       | 2026-03-02 05:45
        each  | 3.333333333333   | unit_month | -
        """
    )
    billed = bills(
        "line | amount | service_from | service_until\n 1 | 9.000000000001 | 2026-01-05 | 2026-02-03 10:15"
    )
    world = books(RAMP.replace("2026-07-01", "2026-02-01 03:15"), charged, billed, recognition)
    whole = recognised(world, parse_period("2026-01-10..2026-03-20"))
    cuts = ["2026-01-10", "2026-01-31T23:45", "2026-02-01T03:15", "2026-02-14", "2026-03-20"]
    parts = [recognised(world, parse_period(f"{x}..{y}")) for x, y in pairwise(cuts)]
    assert pl.concat(parts).equals(whole)


def test_what_cannot_be_recognised_exactly_is_refused():
    with pytest.raises(BadInput, match="amount is negative in the fee"):
        recognised(
            books("units | fee_per_month\n 1 | 0", fees("amount | per\n -1 | month")), parse_period("2026-01")
        )
    huge = fees("amount | per\n 90_000_000_000_000 | unit_hour")
    with pytest.raises(BadInput, match="use a larger unit"):
        recognised(books("units | fee_per_month\n 9_000_000_000_000 | 0", huge), parse_period("2026-01"))
