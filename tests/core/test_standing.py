"""Where customers stand, by hand: tranches drawn and projected, what is left, what is not billed, what will be lost."""

from dataclasses import replace

import polars as pl

from metering.core.revenue import charged, spans_of
from metering.core.standing import balances, contract_standing
from metering.frames.books import Books
from metering.frames.supply import ENTITLEMENTS
from metering.periods import DAY, Period
from metering.results.capacity import CAPACITY_CUSTOMERS
from tests.core import example_books as a
from tests.core.test_waterfall import bought, terms
from tests.text_tables import check, instant, read

NOTHING_USED = CAPACITY_CUSTOMERS.empty()


def standing(
    usage: pl.DataFrame, books: Books, at: str, used: pl.DataFrame = NOTHING_USED, days: int = 28
) -> pl.DataFrame:
    until = instant(at)
    spans = spans_of(books, Period("so far", until - days * DAY, until), until)
    return contract_standing(charged(usage, books, spans), used, books, until - days * DAY, until, days)


def left(usage: pl.DataFrame, books: Books, at: str, days: int = 28) -> pl.DataFrame:
    until = instant(at)
    spans = spans_of(books, Period("so far", until - days * DAY, until), until, everyone=True)
    return balances(charged(usage, books, spans), books, until, days, 30)


def test_a_ramp_with_an_open_year_is_told_as_it_stands_and_as_it_will_end() -> None:
    books = terms(
        commitments="""
        commitment | effective_from | effective_until | amount | shortfall_rule | shortfall_ratio
        ramp       | 2026-01-01     | 2027-01-01      | 1_000  | roll_over      | 0.5
        ramp       | 2027-01-01     | 2028-01-01      | 7_500  | roll_over      | 0.5
        """
    )
    # 10 a day in the four weeks before the cut, which is half of the second year
    spent = bought(
        """
        quarter_start    | dollars
        2026-03-01 10:00 |   800
        2027-06-10 10:00 |   280
        """
    )
    rows = standing(spent, books, "2027-07-02 12:00")
    check(
        rows,
        # 1,825 more by the end of the year; what rolled over ends with it too, and comes after it
        """
        what       | effective_from | state | committed | drawn | remaining | pace_ratio | projected | days_left
        commitment | 2027-01-01     | open  |     7_500 |   280 |     7_220 |   0.074667 |     2_105 |       182
        rolled_over| 2027-01-01     | open  |       200 |     0 |       200 |          0 |         0 |       182
        """,
    )
    check(
        rows.filter(pl.col("what") == "commitment"),
        """
        run_rate_per_day | shortfall | shortfall_projected | shortfall_fee | measure | paid
        10               |         0 |               5_395 |       2_697.5 | USD     | in_arrears
        """,
    )


def test_units_and_entitlements_are_told_in_their_own_measure_and_every_contract_has_a_row() -> None:
    contracts = a.contracts("customer | contract\n acme | c\n plain | p")
    books = replace(
        terms(
            contracts=contracts,
            commitments="""
            commitment | effective_from | effective_until | units     | meters
            tokens     | 2026-01-01     | 2026-03-02      | 6_000_000 | output_tokens
            """,
        ),
        entitlements=read(
            "units\n 2",
            ENTITLEMENTS,
            customer="acme",
            contract="c",
            pool="block",
            dimension="all",
            effective_from="2026-01-01",
        ),
    )
    used = read(
        "burn | entitlement | entitlement_used | entitlement_used_ratio\n 90 | 100 | 60 | 0.6",
        CAPACITY_CUSTOMERS,
        pool="block",
        dimension="all",
        customer="acme",
        denominator=2,
    )
    rows = standing(bought("quarter_start | dollars\n 2026-01-20 | 3"), books, "2026-01-31", used)
    check(
        rows,
        """
        customer | what        | name      | measure       | committed | drawn     | remaining | overage | pace_ratio
        acme     | commitment  | tokens    | output_tokens | 6_000_000 | 3_000_000 | 3_000_000 |       0 | 1
        acme     | entitlement | block all | units         |         2 |       1.2 |       0.8 |     0.6 | 0.6
        plain    | terms       | -         | -             |         - |         - |         - |       - | -
        """,
    )
    # units have no price of their own: what they fall short by costs nothing that could be told
    assert rows.filter(pl.col("what") == "commitment")["shortfall_fee"].item() is None


def test_balances_say_what_is_left_what_is_not_billed_and_what_will_be_lost() -> None:
    books = terms(
        contracts=a.contracts("customer | contract\n acme | c\n plain | p"),
        customers=a.books().customers.vstack(
            a.books().customers.with_columns(pl.lit("plain").alias("customer"), pl.lit("trial").alias("kind"))
        ),
        contract_terms="anchor_day | minimum\n 15 | 310",
        fees=a.fees("amount | contract\n 31 | c"),
        credit_grants="""
        credit | kind        | effective_from | effective_until | amount
        promo  | promotional | 2026-01-01     | 2026-02-04      |    100
        paid   | prepaid     | 2026-01-01     | 2026-12-01      |  1_000
        """,
        commitments="""
        commitment | effective_from | effective_until | amount | paid
        block      | 2026-01-01     | 2026-02-11      |    500 | ahead
        """,
    )
    acme = bought(
        """
        quarter_start    | product | dollars
        2026-01-10 10:00 | large   |  50
        2026-01-20 10:00 | large   | 100
        """
    )
    plain = acme.with_columns(pl.lit("plain").alias("customer"))
    rows = left(pl.concat([acme, plain]), books, "2026-01-25")
    # the promotion paid the top-up of the first 14 of the days before the 15th, 140 - 50
    check(
        rows,
        """
        customer | kind   | period_start | committed_left | prepaid_left | promotional_left | fees | unbilled
        acme     | paying | 2026-01-15   |            350 |        1_000 |               10 |   10 |       10
        plain    | trial  | 2026-01-01   |              0 |            0 |                0 |    0 |      150
        """,
    )
    # 150 of the block in 15 days: 170 more by its end; of the promotion 6 a day
    check(
        rows,
        """
        customer | expiring | expires_at | expected_lost
        acme     |      360 | 2026-02-04 |           180
        plain    |        0 | -          |             0
        """,
    )
