"""The waterfall by hand: discounts, minimum and maximum, commitments, credits; and what must hold for any of it."""

from typing import Any

import polars as pl
import pytest

from metering.core.revenue import Earned, charged, earned, reach, spans_of, under_terms
from metering.frames.books import Books
from metering.frames.frame import INSTANT, Frame
from metering.frames.terms import CONTRACT_TERMS, CREDIT_GRANTS, CUSTOMER_COMMITMENTS, DISCOUNTS
from metering.money import from_quanta
from metering.periods import parse_period
from metering.results.charges import WATERFALL
from tests.core import example_books as a
from tests.text_tables import check, instant, read

SINCE = "2026-01-01"
#: A million tokens cost a dollar: amounts are dollars, quantities millions.
DOLLAR = a.prices("item | meter | unit_price\n large | output_tokens | 1\n code | output_tokens | 1")
_SAID: dict[str, Any] = {"customer": "acme", "contract": "c", "effective_from": SINCE}
_DEFAULTS: dict[str, tuple[Frame, dict[str, Any]]] = {
    "contract_terms": (
        CONTRACT_TERMS,
        {"currency": "USD", "anchor_day": 1, "zone": "UTC", "period_months": 1},
    ),
    "discounts": (DISCOUNTS, {"kind": "contract"}),
    "commitments": (
        CUSTOMER_COMMITMENTS,
        {"currency": "USD", "paid": "in_arrears", "shortfall_rule": "true_up", "shortfall_ratio": "1"},
    ),
    "credit_grants": (CREDIT_GRANTS, {"currency": "USD", "kind": "promotional"}),
}


def terms(**tables: str | pl.DataFrame) -> Books:
    """Books of acme at a dollar a million tokens, with tables of terms."""
    frames = {
        name: read(table, _DEFAULTS[name][0], **{**_SAID, **_DEFAULTS[name][1]})
        if isinstance(table, str)
        else table
        for name, table in tables.items()
    }
    return a.books(**{"price_books": DOLLAR, **frames})


def bought(text: str) -> pl.DataFrame:
    """Usage: dollars of output tokens of a product."""
    rows = read(text, SPENT, product="large").select("quarter_start", "product", "dollars")
    lines = [
        f"{at:%Y-%m-%d %H:%M} | {product} | {spent * 1_000_000}" for at, product, spent in rows.iter_rows()
    ]
    return a.usage("\n".join(["quarter_start | product | output_tokens", *lines]))


YEAR = """
commitment | effective_from | effective_until | amount
year       | 2026-01-01     | 2027-01-01      | 50_000
"""
SPENT = Frame(
    "SPENT", {"quarter_start": WATERFALL.columns["quarter_start"], "product": pl.String, "dollars": pl.Int64}
)


def of(usage: pl.DataFrame, books: Books, period: str = "2026-01", until: str = "2026-02-01") -> Earned:
    return earned(usage, books, parse_period(period), instant(until))


def dollars(lines: pl.DataFrame) -> pl.DataFrame:
    amounts = [name for name in WATERFALL.columns if WATERFALL.columns[name] == pl.Int128]
    due = (
        pl.col("net") + pl.col("top_up") - pl.col("drawdown") - pl.col("promotional_credit")
        - pl.col("prepaid_credit") + pl.col("overage_premium") + pl.col("shortfall")
    )  # fmt: skip
    return lines.with_columns(due.alias("due")).with_columns(
        from_quanta(pl.col(name)).alias(name) for name in [*amounts, "due"]
    )


def sums(lines: pl.DataFrame, *by: str) -> pl.DataFrame:
    amounts = [name for name, dtype in WATERFALL.columns.items() if dtype == pl.Int128]
    return dollars(lines.group_by(by or [pl.lit(1).alias("all")]).agg(pl.col(amounts).sum()))


def test_discount_minimum_and_promotion_leave_850_due() -> None:
    books = terms(
        discounts="discount | ratio\n loyalty | 0.10",
        contract_terms="minimum\n 950",
        credit_grants="credit | amount\n launch | 100",
    )
    done = of(bought("quarter_start | dollars\n 2026-01-05 10:00 | 400\n 2026-01-20 10:00 | 600"), books)
    check(
        sums(done.lines, "quarter_start"),
        """
        quarter_start    | gross | contract_discount | net | top_up | promotional_credit | due
        2026-01-05 10:00 |   400 |                40 | 360 |     20 |                100 | 280
        2026-01-20 10:00 |   600 |                60 | 540 |     30 |                  0 | 570
        """,
    )
    assert sums(done.lines)["due"].item() == 850


def test_discounts_of_a_line_of_the_contract_and_fixed_are_taken_in_this_order() -> None:
    books = terms(
        discounts="""
        discount  | kind     | item | ratio | amount
        code deal | line     | code | 0.20  | -
        loyalty   | contract | -    | 0.10  | -
        launch    | fixed    | -    | -     | 100
        """
    )
    spent = bought(
        """
        quarter_start    | product | dollars
        2026-01-05 10:00 | large   | 1_000
        2026-01-05 10:00 | code    |   500
        2026-01-06 10:00 | large   |   200
        """
    )
    check(
        sums(of(spent, books).lines, "quarter_start", "item"),
        # the fixed 100 goes by what is left: 900, 360 and 180 of 1,440
        """
        quarter_start    | item  | gross | line_discount | contract_discount | fixed_discount | net
        2026-01-05 10:00 | large | 1_000 |             0 |               100 |           62.5 | 837.5
        2026-01-05 10:00 | code  |   500 |           100 |                40 |             25 | 335
        2026-01-06 10:00 | large |   200 |             0 |                20 |           12.5 | 167.5
        """,
    )
    # a fixed discount takes no more than there is
    little = of(bought("quarter_start | dollars\n 2026-01-05 10:00 | 10"), books)
    check(sums(little.lines), "gross | contract_discount | fixed_discount | net\n 10 | 1 | 9 | 0")


def test_a_maximum_caps_and_is_prorated_as_the_minimum_is() -> None:
    spent = bought("quarter_start | dollars\n 2026-01-20 10:00 | 300\n 2026-01-30 10:00 | 100")
    capped = of(spent, terms(contract_terms="maximum\n 310"))
    check(
        sums(capped.lines, "quarter_start"),
        """
        quarter_start    | gross | capped | net
        2026-01-20 10:00 |   300 |   67.5 | 232.5
        2026-01-30 10:00 |   100 |   22.5 |  77.5
        """,
    )
    # from the 17th on, 15 of 31 days are covered: 150
    late = a.contracts("customer\n acme").with_columns(
        pl.lit(instant("2026-01-17")).cast(INSTANT).alias("effective_from")
    )
    part = of(spent, terms(contracts=late, contract_terms="effective_from | maximum\n 2026-01-17 | 310"))
    assert sums(part.lines)["net"].item() == 150
    # until the 20th at noon, 3 1/2 of them are
    cut = of(
        spent,
        terms(contracts=late, contract_terms="effective_from | minimum\n 2026-01-17 | 3_100"),
        until="2026-01-20 12:00",
    )
    check(sums(cut.lines), "gross | net | top_up | due\n 300 | 300 | 50 | 350")


def test_a_minimum_without_usage_is_topped_up_evenly_by_quarter_hour() -> None:
    done = of(bought("quarter_start | dollars\n 2025-12-01 | 1"), terms(contract_terms="minimum\n 2_976"))
    assert done.lines.height == 2976
    assert done.lines["line"].unique().to_list() == ["top_up"]
    check(sums(done.lines), "net | top_up | due\n 0 | 2_976 | 2_976")
    day = of(
        bought("quarter_start | dollars\n 2025-12-01 | 1"),
        terms(contract_terms="minimum\n 2_976"),
        "2026-01-07",
    )
    check(sums(day.lines), "top_up\n 96")


@pytest.mark.parametrize("credits", [{}, {"credit_grants": "credit | amount\n launch | 100"}])
def test_the_top_ups_of_an_idle_month_are_those_of_its_days(credits: dict[str, str]) -> None:
    """1,000 over 2,976 quarter hours: 0.336021505376 each, and now and then a quantum more, wherever one looks."""
    nothing = bought("quarter_start | dollars\n 2025-12-01 | 1")
    books = terms(contract_terms="minimum\n 1_000", **credits)
    month = of(nothing, books).lines
    days = [of(nothing, books, f"2026-01-{day:02d}").lines for day in (1, 2, 17, 31)]
    assert [day.height for day in days] == [96] * 4
    for day in days:
        at = pl.col("quarter_start").is_in(day["quarter_start"].implode())
        assert day.equals(month.filter(at))
    assert sums(month)["top_up"].item() == 1_000


def test_idle_months_before_the_report_take_no_rows_unless_a_credit_pays_for_them() -> None:
    year = {"commitments": YEAR, "contract_terms": "minimum\n 1_000"}
    spans = spans_of(terms(**year), parse_period("2026-10-09"), instant("2026-10-10"))
    assert spans["effective_from"].item() == instant("2026-01-01")
    since = instant("2026-10-09")
    for books, rows in (
        (terms(**year), 96),
        (terms(**year, credit_grants="credit | amount\n launch | 100"), 282 * 96),
    ):
        done = charged(bought("quarter_start | dollars\n 2025-12-01 | 1"), books, spans, since)
        assert done.lines.filter(pl.col("line") == "top_up").height == rows


def test_periods_begin_on_the_anchor_day_of_the_zone_and_days_of_25_hours_are_one_day() -> None:
    # New York sets its clocks back on 2026-11-01: the period from 15 October is 31 days, 745 hours
    books = terms(contract_terms="anchor_day | zone | minimum\n 15 | America/New_York | 310")
    none = bought("quarter_start | dollars\n 2026-06-01 | 0")
    first = of(none, books, "2026-10-15T04:00..2026-11-15T05:00", "2026-11-15 05:00")
    assert (first.lines.height, sums(first.lines)["top_up"].item()) == (745 * 4, 310)
    # two of the days, one of which has 25 hours; then the first half of the 25 hours
    two = of(none, books, "2026-10-15T04:00..2026-11-02T05:00", "2026-11-02 05:00")
    assert sums(two.lines)["top_up"].item() == 180
    half = of(none, books, "2026-10-15T04:00..2026-11-01T16:30", "2026-11-01 16:30")
    assert sums(half.lines)["top_up"].item() == 175


#: Charges of 0.8, 2.5 and 2.9 M in three years.
THREE_YEARS = """
quarter_start | dollars
2026-06-01    |   800_000
2027-02-01    | 2_000_000
2027-06-01    |   500_000
2028-06-01    | 2_900_000
"""
RAMP = """
commitment | effective_from | effective_until | amount    | shortfall_rule
ramp       | 2026-01-01     | 2027-01-01      | 1_000_000 | {rule}
ramp       | 2027-01-01     | 2028-01-01      | 2_000_000 | {rule}
ramp       | 2028-01-01     | 2029-01-01      | 3_000_000 | {rule}
"""


def test_one_term_an_annual_true_up_and_a_roll_over_pay_what_they_should() -> None:
    spent = bought(THREE_YEARS)
    whole = ("2026-01-01..2029-01-01", "2029-01-01")
    one = (
        "commitment | effective_from | effective_until | amount\n term | 2026-01-01 | 2029-01-01 | 6_000_000"
    )
    assert sums(of(spent, terms(commitments=one), *whole).lines)["due"].item() == 6_200_000
    annual = of(spent, terms(commitments=RAMP.format(rule="true_up")), *whole)
    assert sums(annual.lines)["due"].item() == 6_500_000
    check(
        dollars(annual.lines.filter(pl.col("line") == "commitment")),
        """
        quarter_start    | contract | shortfall
        2026-12-31 23:45 | c        | 200_000
        2028-12-31 23:45 | c        | 100_000
        """,
    )
    rolled = of(spent, terms(commitments=RAMP.format(rule="roll_over")), *whole)
    assert sums(rolled.lines)["due"].item() == 6_300_000
    # a year on its own says the same of itself
    year = of(spent, terms(commitments=RAMP.format(rule="true_up")), "2028-01-01..2029-01-01", "2029-01-01")
    assert sums(year.lines)["due"].item() == 3_000_000


def test_what_was_paid_ahead_is_drawn_first_and_what_was_not_used_of_it_is_revenue_but_not_due() -> None:
    books = terms(
        commitments="""
        commitment | effective_from | effective_until | amount | paid  | items
        block      | 2026-01-01     | 2026-01-11      | 500    | ahead | large
        """,
        credit_grants="""
        credit | kind        | effective_from | effective_until | amount | items
        promo  | promotional | 2026-01-01     | 2026-03-01      |     50 | all
        older  | prepaid     | 2026-01-01     | -               |     80 | code
        sooner | prepaid     | 2026-01-02     | 2026-01-21      |    100 | all
        """,
    )
    spent = bought(
        """
        quarter_start    | product | dollars
        2026-01-03 10:00 | large   | 300
        2026-01-03 10:00 | code    | 120
        2026-01-12 10:00 | large   |  10
        2026-01-22 10:00 | code    | 100
        """
    )
    done = of(spent, books)
    check(
        sums(done.lines, "quarter_start", "line", "item"),
        """
        quarter_start    | line       | item  | net | drawdown | promotional_credit | prepaid_credit | breakage | due
        2026-01-03 10:00 | usage      | large | 300 |      300 |                  0 |              0 |        0 |   0
        2026-01-03 10:00 | usage      | code  | 120 |        0 |                 50 |             70 |        0 |   0
        2026-01-10 23:45 | commitment | -     |   0 |        0 |                  0 |              0 |      200 |   0
        2026-01-12 10:00 | usage      | large |  10 |        0 |                  0 |             10 |        0 |   0
        2026-01-20 23:45 | credit     | -     |   0 |        0 |                  0 |              0 |       20 |   0
        2026-01-22 10:00 | usage      | code  | 100 |        0 |                  0 |             80 |        0 |  20
        """,
    )
    check(
        done.credits.with_columns(
            from_quanta(pl.col(name)).alias(name) for name in ("amount", "used", "lapsed", "left")
        ),
        """
        credit | amount | used | lapsed | left
        promo  |     50 |   50 |      0 |    0
        older  |     80 |   80 |      0 |    0
        sooner |    100 |   80 |     20 |    0
        """,
    )


def test_the_crossing_quarter_hour_is_split_and_overage_costs_what_its_book_says() -> None:
    dear = a.prices("item | meter | unit_price\n large | output_tokens | 2.5", book="overage")
    books = terms(
        price_books=pl.concat([DOLLAR, dear]),
        discounts="discount | ratio\n loyalty | 0.2",
        commitments="""
        commitment | effective_from | effective_until | amount | paid  | overage_book
        block      | 2026-01-01     | 2026-02-01      | 1_000  | ahead | overage
        """,
    )
    spent = bought(
        "quarter_start | dollars\n 2026-01-03 10:00 | 1_000\n 2026-01-09 10:00 | 500\n 2026-01-10 10:00 | 10"
    )
    check(
        sums(of(spent, books).lines, "quarter_start"),
        # of the 400 net of the 9th 200 are overage: half of 500 M at 2.50
        """
        quarter_start    | gross | net | drawdown | overage_premium | due
        2026-01-03 10:00 | 1_000 | 800 |      800 |               0 |   0
        2026-01-09 10:00 |   500 | 400 |      200 |             425 | 625
        2026-01-10 10:00 |    10 |   8 |        0 |              17 |  25
        """,
    )
    no_price = terms(
        commitments="""
        commitment | effective_from | effective_until | amount | overage_book
        block      | 2026-01-01     | 2026-02-01      | 1      | missing
        """
    )
    left = of(bought("quarter_start | dollars\n 2026-01-03 10:00 | 3"), no_price)
    check(sums(left.lines), "net | overage_premium\n 3 | 0")
    check(left.unrated, "item | meter | quantity | reason\n large | output_tokens | 3_000_000 | no_book")


def test_what_is_overage_of_units_is_not_overage_in_money_too() -> None:
    prices = a.prices(
        """
        book     | item  | meter                 | unit_price
        standard | large | output_tokens         | 3
        standard | large | uncached_input_tokens | 1
        units    | large | output_tokens         | 5
        double   | large | output_tokens         | 6
        double   | large | uncached_input_tokens | 2
        """
    )
    books = terms(
        price_books=prices,
        commitments="""
        commitment | effective_from | effective_until | units      | amount | meters        | overage_book
        tokens     | 2026-01-01     | 2026-02-01      | 10_000_000 | -      | output_tokens | units
        block      | 2026-01-01     | 2026-02-01      | -          | 40     | -             | double
        """,
    )
    spent = a.usage(
        """
        quarter_start    | uncached_input_tokens | output_tokens
        2026-01-03 10:00 |             7_000_000 |    20_000_000
        2026-01-04 10:00 |             7_000_000 |    10_000_000
        2026-01-05 10:00 |             5_000_000 |             0
        """
    )
    done = of(spent, books)
    check(
        sums(done.lines, "quarter_start"),
        # 3rd: 10 M output above the units at 5 in place of 3; 27 above the 40, all of it of those 30
        # 4th: again 20 more; of the 37 above the money 30 were just that, the other 7 cost twice as much
        """
        quarter_start    | net | overage_premium
        2026-01-03 10:00 |  67 |              20
        2026-01-04 10:00 |  37 |              27
        2026-01-05 10:00 |   5 |               5
        """,
    )
    check(
        done.drawdown.with_columns(pl.col("committed", "drawdown", "overage") // pl.lit(10**6)),
        """
        commitment | committed  | drawdown   | overage
        tokens     | 10         | 10         | 20
        block      | 40_000_000 | 40_000_000 | 69_000_000
        """,
    )


def test_units_that_were_paid_ahead_cover_the_charges_of_their_meters() -> None:
    prices = a.prices(
        "item | meter | unit_price\n large | output_tokens | 3\n large | uncached_input_tokens | 1"
    )
    books = terms(
        price_books=prices,
        commitments="""
        commitment | effective_from | effective_until | units      | meters        | paid
        tokens     | 2026-01-01     | 2026-02-01      | 15_000_000 | output_tokens | ahead
        """,
    )
    spent = a.usage(
        """
        quarter_start    | uncached_input_tokens | output_tokens
        2026-01-03 10:00 |             7_000_000 |    10_000_000
        2026-01-04 10:00 |             1_000_000 |    20_000_000
        """
    )
    done = of(spent, books)
    check(
        sums(done.lines, "quarter_start"),
        """
        quarter_start    | net | drawdown | due
        2026-01-03 10:00 |  37 |       30 |   7
        2026-01-04 10:00 |  61 |       15 |  46
        """,
    )
    check(
        done.drawdown,
        """
        commitment | meters        | committed  | drawdown   | overage
        tokens     | output_tokens | 15_000_000 | 15_000_000 | 15_000_000
        """,
    )


def test_prepaid_credit_pays_and_takes_nothing_off_revenue() -> None:
    books = terms(credit_grants="credit | kind | amount\n paid | prepaid | 500")
    done = of(bought("quarter_start | dollars\n 2026-01-03 10:00 | 800"), books)
    check(sums(done.lines), "net | prepaid_credit | breakage | due\n 800 | 500 | 0 | 300")


def test_whose_usage_is_read_and_since_when() -> None:
    contracts = a.contracts("customer | contract\n acme | c\n plain | p")
    none = terms(contracts=contracts)
    january = parse_period("2026-03")
    assert under_terms(none).is_empty()
    assert reach(none, january, instant("2026-04-01")).is_empty()

    def since(**tables: str) -> tuple[str, str]:
        rows = reach(terms(contracts=contracts, **tables), january, instant("2026-03-20 10:20"))
        ((customer, start, until),) = rows.iter_rows()
        assert customer == "acme"
        return f"{start:%m-%d %H:%M}", f"{until:%m-%d %H:%M}"

    cut = "03-20 10:15"
    assert since(discounts="discount | ratio\n loyalty | 0.1") == ("03-01 00:00", cut)
    assert since(contract_terms="anchor_day | minimum\n 15 | 5") == ("02-15 00:00", cut)
    tranche = "commitment | effective_from | effective_until | amount\n x | 2026-02-20 | 2026-04-01 | 1"
    assert since(commitments=tranche) == ("02-20 00:00", cut)
    # the tranche reaches into a period whose charges hang together, which reaches into another grant
    assert since(
        commitments=tranche,
        contract_terms="anchor_day | maximum\n 15 | 5",
        credit_grants="credit | effective_from | effective_until | amount\n g | 2026-01-20 | 2026-02-16 | 1",
    ) == ("01-15 00:00", cut)
    assert since(
        credit_grants="""
        credit | effective_from | effective_until | amount
        g      | 2026-01-20     | 2026-03-01      | 1
        h      | 2026-03-01     | -               | 1
        """
    ) == ("03-01 00:00", cut)
