"""Closure by hand: what customers cost, what nobody used, and what was billed; and that it always closes."""

from dataclasses import replace
from decimal import Decimal
from random import Random
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering.core.closure import (
    CAPTURE,
    RATED_ON_DEMAND,
    Closure,
    bill_on_demand,
    billing_slices,
    closure,
    rate_on_demand,
    read_as,
    spread,
    whole_months,
)
from metering.core.costs import costs as compute
from metering.frames.books import EXCHANGE_RATES, Books
from metering.frames.supply import BILL_LINES, CAPACITY_FEES, POOLS
from metering.frames.usage import POOL_USAGE, USAGE
from metering.money import QUANTUM
from metering.periods import QUARTER, Period, parse_period
from metering.results.costs import COSTS, RECOGNISED
from tests.core.example_books import books as example_books
from tests.core.example_books import bought, prices, usage
from tests.core.worlds import PERIOD as WORLD
from tests.core.worlds import START, World, supplied
from tests.text_tables import check, instant, read

MARCH = parse_period("2026-03")
NOTHING_UNRATED = pl.DataFrame(
    schema={
        "supplier": pl.String,
        "model": pl.String,
        "meter": pl.String,
        "reason": pl.String,
        "quantity": pl.Int128,
    }
)


def costs(text: str, **given: Any) -> pl.DataFrame:
    defaults = {"day": "2026-03-01", "line": "usage", "supplier": "cirrus", "currency": "USD"}
    return read(text, COSTS, **{**defaults, "estimated": "no", **given})


def rated(text: str, **given: Any) -> pl.DataFrame:
    """Rated on-demand cost, given in dollars."""
    defaults = {"slice_start": "2026-03-01", "supplier": "cirrus", "model": "large", "currency": "USD"}
    rows = read(text, RATED_ON_DEMAND, **{**defaults, **given})
    return rows.with_columns(pl.col("quanta") * 10**12)


def lines(text: str, **given: Any) -> pl.DataFrame:
    defaults = {
        "supplier": "cirrus",
        "document": "inv-1",
        "category": "charge",
        "object_kind": "on_demand",
        "currency": "USD",
        "service_from": "2026-03-01",
        "service_until": "2026-04-01",
        "posted_month": "2026-03-01",
    }
    return read(text, BILL_LINES, **{**defaults, **given})


def recognised(text: str, **given: Any) -> pl.DataFrame:
    defaults = {"pool": "ptu", "dimension": "all", "quarter_start": "2026-03-01", "currency": "USD"}
    rows = read(text, RECOGNISED, **{**defaults, "estimated": "no", **given})
    return rows.with_columns(pl.col("cost") * 10**12)


def books(**frames: pl.DataFrame) -> Books:
    pools = read(
        "pool | supplier\n ptu | cirrus\n block | northstar",
        POOLS,
        unit="PTU",
        currency="USD",
        idle_policy="none",
        recognition="as_billed",
        window_seconds=60,
        units_min=1,
        units_sold_in=1,
        term_from="2026-01-01",
    )
    return Books(1, **{"pools": pools, **frames})


def close(
    cost: pl.DataFrame,
    rated_cost: pl.DataFrame,
    bill: pl.DataFrame,
    pool_cost: pl.DataFrame | None = None,
    period: Period = MARCH,
    asked: Period | None = None,
    unrated: pl.DataFrame = NOTHING_UNRATED,
) -> Closure:
    pool_cost = RECOGNISED.empty() if pool_cost is None else pool_cost
    return closure(cost, pool_cost, rated_cost, unrated, books(bill_lines=bill), period, asked)


def told(terms: pl.DataFrame) -> pl.DataFrame:
    """The terms of all days."""
    return terms.group_by("supplier", "currency", "term", "kind").agg(
        pl.col("usage", "loaded").sum(), pl.col("estimated").any()
    )


def test_what_was_billed_above_what_was_rated_is_the_variance() -> None:
    done = close(
        costs("customer | kind | cost_on_demand\n acme | paying | 10_000.00"),
        rated("quanta\n 10_000"),
        lines("line | amount\n 1 | 10_240.17"),
    )
    check(
        told(done.terms),
        """
        term      | kind   | usage     | loaded    | estimated
        customers | paying | 10_000    | 10_000    | no
        variance  | -      | 240.17    | 240.17    | no
        """,
    )
    check(
        done.capture,
        """
        service_from | rated  | billed    | variance | capture_ratio
        2026-03-01   | 10_000 | 10_240.17 | 240.17   | 0.976546
        """,
    )
    check(
        done.documents,
        """
        document | billed_here | recognised_before | recognised_here | recognised_after | change_in_prepaid
        inv-1    | 10_240.17   | 0                 | 10_240.17       | 0                | 0
        """,
    )
    assert done.missing.is_empty()


def test_before_the_bill_the_variance_is_null_and_the_rated_cost_stands_for_it() -> None:
    done = close(
        costs("customer | kind | cost_on_demand\n acme | paying | 10_000.00"),
        rated("quanta\n 10_000"),
        BILL_LINES.empty(),
    )
    assert done.terms.filter(pl.col("term") == "variance").row(0, named=True)["usage"] is None
    check(
        done.terms,
        """
        term      | usage  | estimated
        customers | 10_000 | yes
        variance  | -      | yes
        """,
    )
    check(done.missing, "reason | object | amount\n not_billed | large | 10_000")
    check(
        done.documents,
        "what | document | recognised_here | change_in_prepaid\n not_billed | - | 10_000 | -10_000",
    )
    assert done.capture.is_empty()


def test_every_term_of_a_pool_and_the_two_bases() -> None:
    """$1,000 of a pool: served 600, idle 100, undelivered 200, set aside 100; acme carries 60 of the idle."""
    done = close(
        costs(
            """
            line        | customer | kind     | pool | cost_pool | idle_share
            usage       | acme     | paying   | ptu  | 500       |   0
            usage       | lab      | internal | ptu  | 100       |   0
            idle        | -        | -        | ptu  | 100       | -60
            idle        | acme     | paying   | ptu  |   0       |  60
            undelivered | -        | -        | ptu  | 200       |   0
            carved_out  | -        | -        | ptu  | 100       |   0
            """
        ),
        RATED_ON_DEMAND.empty(),
        lines(
            """
            line | object_kind | object | amount | category
            1    | pool        | ptu    | 31_000 | charge
            2    | overhead    | -      |    310 | charge
            3    | commitment  | spend  |    620 | true_up
            """
        ),
        recognised("cost\n 1_000"),
        period=parse_period("2026-03-01"),
        asked=parse_period("2026-03-01"),
    )
    check(
        told(done.terms),
        """
        term        | kind     | usage | loaded
        customers   | paying   | 500   | 560
        customers   | internal | 100   | 100
        idle        | -        | 100   |  40
        undelivered | -        | 200   | 200
        carved_out  | -        | 100   | 100
        overhead    | -        |  10   |  10
        shortfall   | -        |  20   |  20
        """,
    )
    # the document is posted to March, of which this is a day: nothing is billed in a day
    check(
        done.documents,
        "billed | billed_here | recognised_here | recognised_after\n 31_930 | - | 1_030 | 30_900",
    )


def test_prepaid_and_accrued_lie_between_what_was_billed_and_what_was_recognised() -> None:
    """A year's fee billed in January, February's usage billed in March, a schedule that defers 50."""
    quarters = recognised("quarter_start | cost\n 2026-03-01 | 50\n 2026-03-02 | 0")
    done = close(
        costs("pool | cost_pool | customer | kind\n ptu | 50 | acme | paying"),
        RATED_ON_DEMAND.empty(),
        lines(
            """
            document | line | object_kind | object | amount | service_from | service_until | posted_month
            year     | 1    | pool        | ptu    | 36_500 | 2026-01-01   | 2027-01-01    | 2026-01-01
            feb      | 1    | on_demand   | -      | 280    | 2026-02-01   | 2026-03-01    | 2026-03-01
            """
        ),
        quarters,
        period=parse_period("2026-03-01"),
        asked=MARCH,
    )
    check(
        done.documents,
        """
        what     | document | billed_here | recognised_before | recognised_here | recognised_after | change_in_prepaid
        document | year     |   0         | 5_900             | 100             | 30_500           | -100
        document | feb      | 280         |   280             |   0             |      0           |  280
        schedule | -        |   0         |     0             | -50             |      0           |   50
        """,
    )


def test_half_a_year_billed_evenly_for_a_ramp_that_comes_later_is_prepaid() -> None:
    """$100k billed each month, by capacity-hours 300k of it is the first half's: 300k is prepaid after June."""
    half = parse_period("2026-01-01..2026-07-01")
    block = bought(
        """
        effective_from | effective_until | units | fee_per_month | recognition
        2026-01-01     | 2026-07-01      | 184   | 0             | capacity_hours
        2026-07-01     | 2027-01-01      | 543   | 0             | capacity_hours
        """
    )
    flat = read(
        "pool | fee | amount | per | currency | effective_from | effective_until\n"
        "block | flat | 100_000 | month | USD | 2026-01-01 | 2027-01-01",
        CAPACITY_FEES,
    )
    bill = lines(
        """
        line | service_from | service_until
        1    | 2026-01-01   | 2026-02-01
        2    | 2026-02-01   | 2026-03-01
        3    | 2026-03-01   | 2026-04-01
        4    | 2026-04-01   | 2026-05-01
        5    | 2026-05-01   | 2026-06-01
        6    | 2026-06-01   | 2026-07-01
        """,
        supplier="northstar",
        object_kind="pool",
        object="block",
        amount="100_000",
    )
    known = example_books(**{**block, "capacity_fees": flat, "bill_lines": bill})
    made = compute(USAGE.empty(), POOL_USAGE.empty(), known, half)
    rated_, unrated = rate_on_demand(USAGE.empty(), known, billing_slices(known, half))
    done = closure(made.lines, made.supply.recognised, rated_, unrated, known, half)
    check(
        told(done.terms),
        """
        term | kind | usage   | loaded
        idle | -    | 300_000 | 300_000
        """,
    )
    check(
        done.documents,
        """
        what     | billed_here | recognised_here | change_in_prepaid
        document | 600_000     |  600_000        |       0
        schedule |       0     | -300_000        | 300_000
        """,
    )


def test_a_bill_by_day_gives_the_capture_rate_of_each_day_and_names_what_it_leaves_out() -> None:
    done = close(
        costs(
            """
            day        | customer | kind   | cost_on_demand
            2026-03-01 | acme     | paying | 100
            2026-03-02 | acme     | paying | 100
            2026-03-02 | bob      | trial  |  50
            """
        ),
        rated(
            """
            slice_start | model | quanta
            2026-03-01  | large | 100
            2026-03-02  | large | 100
            2026-03-02  | small |  50
            """
        ),
        lines(
            """
            line | object | amount | service_from | service_until | category
            1    | large  | 104    | 2026-03-01   | 2026-03-02    | charge
            2    | large  |  99    | 2026-03-02   | 2026-03-03    | charge
            3    | -      |  -4    | 2026-03-01   | 2026-03-03    | credit
            """
        ),
        period=parse_period("2026-03-01..2026-03-03"),
    )
    check(
        done.capture,
        """
        service_from | service_until | rated | billed | variance | capture_ratio
        2026-03-01   | 2026-03-02    | 100   | 104    |  4       | 0.961538
        2026-03-02   | 2026-03-03    | 100   |  99    | -1       | 1.010101
        2026-03-01   | 2026-03-03    |   0   |  -4    | -4       | -
        """,
    )
    check(done.missing, "reason | object | amount\n not_billed | small | 50")
    check(
        done.terms,
        """
        day        | term      | kind   | usage | estimated
        2026-03-01 | customers | paying | 100   | no
        2026-03-01 | variance  | -      |   2   | no
        2026-03-02 | customers | paying | 100   | yes
        2026-03-02 | customers | trial  |  50   | yes
        2026-03-02 | variance  | -      |  -3   | yes
        """,
    )


def test_of_two_charges_for_the_same_usage_the_one_with_the_shorter_span_bills_it() -> None:
    done = close(
        costs("day | customer | kind | cost_on_demand\n 2026-03-01 | acme | paying | 10\n"
              "2026-03-02 | acme | paying | 20"),
        rated("slice_start | quanta\n 2026-03-01 | 10\n 2026-03-02 | 20"),
        lines(
            """
            line | amount | service_from | service_until
            1    | 30     | 2026-03-01   | 2026-03-03
            2    |  5     | 2026-03-02   | 2026-03-03
            """
        ),
        period=parse_period("2026-03-01..2026-03-03"),
    )  # fmt: skip
    check(
        done.capture,
        """
        service_from | service_until | rated | billed | variance
        2026-03-01   | 2026-03-03    | 10    | 30     |  20
        2026-03-02   | 2026-03-03    | 20    |  5     | -15
        """,
    )


def test_a_bill_in_another_currency_than_the_cost_book_is_not_compared_with_it() -> None:
    done = close(
        costs("customer | kind | cost_on_demand\n acme | paying | 100"),
        rated("quanta\n 100"),
        lines("line | amount\n 1 | 93", currency="EUR"),
    )
    check(done.missing, "reason | object | amount | currency\n other_currency | large | 100 | USD")
    check(
        told(done.terms).filter(pl.col("currency") == "EUR"),
        "term | usage\n variance | 93",
    )


def test_a_difference_of_unknown_origin_is_a_line_of_its_own() -> None:
    done = close(
        costs("customer | kind | cost_pool | pool\n acme | paying | 99 | ptu"),
        RATED_ON_DEMAND.empty(),
        BILL_LINES.empty(),
        recognised("cost\n 100", estimated="yes"),
    )
    check(done.terms, "term | usage | loaded\n customers | 99 | 99\n unexplained | 1 | 1")


def test_on_demand_usage_is_rated_by_supplier_and_what_has_no_cost_is_told() -> None:
    served = usage(
        """
        quarter_start    | provider | model_served | uncached_input_tokens | ran_on    | pool | customer
        2026-03-01 00:00 | cirrus   | large        | 1_000_000             | on_demand | -    | acme
        2026-03-01 12:00 | cirrus   | large        | 2_000_000             | overflow  | ptu  | acme
        2026-03-01 12:00 | cirrus   | large        | 9_000_000             | pool      | ptu  | acme
        2026-03-01 12:00 | nimbus   | tiny         |       500             | on_demand | -    | bob
        """
    )
    known = example_books(
        cost_books=prices("item | meter | unit_price\n large | uncached_input_tokens | 2", book="on-demand")
    )
    found, unrated = rate_on_demand(served, known, billing_slices(known, MARCH))
    check(found.with_columns(pl.col("quanta") // 10**12), "supplier | model | quanta\n cirrus | large | 6")
    check(unrated, "supplier | model | quantity | reason\n nimbus | tiny | 500 | no_cost_book")
    done = close(COSTS.empty(), RATED_ON_DEMAND.empty(), BILL_LINES.empty(), unrated=unrated)
    check(done.missing, "supplier | reason | quantity\n nimbus | no_cost_book | 500")


RATES = """
currency | into | kind          | effective_from | rate
EUR      | USD  | month_average | 2026-03-01     | 1.10
"""


def test_a_closure_reads_from_its_parts_to_the_bill_and_is_translated_by_the_day() -> None:
    done = close(
        costs(
            """
            day        | line | customer | kind   | pool | cost_pool | cost_on_demand | idle_share | currency
            2026-03-01 | usage | acme    | paying | -    |   0       | 10_000         |  0         | EUR
            2026-03-02 | usage | bob     | trial  | ptu  |  70       |      0         |  0         | USD
            2026-03-02 | idle  | bob     | trial  | ptu  |   0       |      0         | 10         | USD
            2026-03-02 | idle  | -       | -      | ptu  |  30       |      0         |-10         | USD
            """
        ),
        rated("quanta | currency\n 10_000 | EUR"),
        lines(
            """
            line | amount    | currency | document | service_until | object_kind | object
            1    | 10_240.17 | EUR      | inv-1    | 2026-04-01    | on_demand   | -
            2    | 150       | USD      | inv-2    | 2026-04-16    | pool        | ptu
            """
        ),
        recognised("quarter_start | cost\n 2026-03-02 | 100"),
    )
    march = read_as(done, read(RATES, EXCHANGE_RATES), "USD", MARCH)
    check(
        march,
        """
        currency | place | term              | kind   | usage     | loaded    | usage_translated | loaded_translated
        EUR      | 1     | customers         | paying | 10_000    | 10_000    | 11_000           | 11_000
        EUR      | 2     | variance          | -      |    240.17 |    240.17 |    264.187       |    264.187
        EUR      | 3     | recognised_cost   | -      | 10_240.17 | 10_240.17 | 11_264.187       | 11_264.187
        EUR      | 4     | change_in_prepaid | -      |      0    |      0    | -                | -
        EUR      | 5     | billed            | -      | 10_240.17 | 10_240.17 | -                | -
        USD      | 1     | customers         | trial  |     70    |     80    |     70           |     80
        USD      | 2     | idle              | -      |     30    |     20    |     30           |     20
        USD      | 3     | recognised_cost   | -      |    100    |    100    |    100           |    100
        USD      | 4     | change_in_prepaid | -      |     50    |     50    | -                | -
        USD      | 5     | billed            | -      |    150    |    150    | -                | -
        """,
    )
    # a missing rate is not 1, and bills are not posted to a day
    day = read_as(done, EXCHANGE_RATES.empty(), "USD", parse_period("2026-03-01"))
    assert day.filter(pl.col("currency") == "EUR")["usage_translated"].null_count() == 3
    assert "billed" not in day["term"].to_list()


@pytest.mark.parametrize(
    ("period", "whole"),
    [
        ("2026-03", True),
        ("2026-03-01", False),
        ("2026-02-01..2026-04-01", True),
        ("2026-02-01..2026-03-15", False),
        ("2026-02-02..2026-04-01", False),
    ],
)
def test_documents_are_posted_to_months(period: str, whole: bool) -> None:
    assert whole_months(parse_period(period)) is whole


def _world(dice: Random) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Costs that tie to what was rated and recognised, and any bill."""
    days = [instant(f"2026-03-{day:02}") for day in (1, 2, 3)]
    rated_rows, cost_rows, pool_rows, bill_rows = [], [], [], []

    def amount(low: int = 0) -> int:
        return dice.randint(low, 10 ** dice.randint(1, 18))

    for day in days:
        for supplier, model in (("cirrus", "large"), ("cirrus", "small"), ("nimbus", "large")):
            cost = amount()
            rated_rows.append((day, supplier, model, "USD", cost))
            cost_rows.append({"day": day.date(), "line": "usage", "supplier": supplier, "currency": "USD",
                              "customer": dice.choice("ab"), "kind": dice.choice(["paying", "trial"]),
                              "model_served": model, "cost_on_demand": QUANTUM * cost})  # fmt: skip
        for pool, supplier in (("ptu", "cirrus"), ("block", "northstar")):
            kinds = [amount() for _ in range(4)]
            estimated = dice.random() < 0.5
            pool_rows.append((pool, "all", day, "USD", sum(kinds), estimated))
            carried = dice.randint(0, kinds[1])
            for line, customer, cost, share in (
                ("usage", "a", kinds[0], 0),
                ("idle", None, kinds[1], -carried),
                ("idle", "b", 0, carried),
                ("undelivered", None, kinds[2], 0),
                ("carved_out", None, kinds[3], 0),
            ):
                cost_rows.append({"day": day.date(), "line": line, "supplier": supplier, "currency": "USD",
                                  "customer": customer, "kind": customer and "paying", "pool": pool,
                                  "cost_pool": QUANTUM * cost, "idle_share": QUANTUM * share,
                                  "estimated": estimated})  # fmt: skip
    for number in range(dice.randint(0, 8)):
        first = dice.choice([instant("2026-02-20"), *days, instant("2026-03-02 06:15")])
        kind = dice.choice(["pool", "on_demand", "on_demand", "commitment", "overhead"])
        of = {"pool": ["ptu"], "on_demand": ["large", None], "commitment": ["c"], "overhead": [None]}
        bill_rows.append({
            "supplier": "cirrus", "document": dice.choice(["d1", "d2"]), "line": str(number),
            "category": dice.choice(["charge", "credit", "true_up"]), "object_kind": kind,
            "object": dice.choice(of[kind]), "amount": QUANTUM * amount(-(10**9)),
            "currency": dice.choice(["USD", "USD", "EUR"]), "service_from": first,
            "service_until": dice.choice([instant("2026-03-04"), instant("2026-03-03 18:00"), instant("2026-03-20")]),
            "posted_month": instant(dice.choice(["2026-02-01", "2026-03-01"])).date(),
        })  # fmt: skip
    zero = {name: Decimal(0) for name in ("cost_pool", "cost_on_demand", "idle_share", "cause_shift")}
    blank = {**dict.fromkeys(COSTS.columns), **zero, "estimated": False}
    cost_frame = pl.DataFrame([{**blank, **row} for row in cost_rows], schema=dict(COSTS.columns))
    bills = pl.DataFrame(
        [{**dict.fromkeys(BILL_LINES.columns), **row} for row in bill_rows], schema=dict(BILL_LINES.columns)
    )
    return (
        COSTS.conform(cost_frame),
        RECOGNISED.conform(pl.DataFrame(pool_rows, schema=dict(RECOGNISED.columns), orient="row")),
        RATED_ON_DEMAND.conform(pl.DataFrame(rated_rows, schema=dict(RATED_ON_DEMAND.columns), orient="row")),
        BILL_LINES.conform(bills.unique(["supplier", "document", "line"])),
    )


THREE_DAYS = parse_period("2026-03-01..2026-03-04")


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_any_costs_and_bills_close_to_the_smallest_unit(dice: Random) -> None:
    cost, pool_cost, rated_cost, bill = _world(dice)
    if "2026-03-02 06:15" in str(bill["service_from"].to_list()):
        # usage between the edges of bills is rated by slices of its own
        cuts = billing_slices(books(bill_lines=bill), THREE_DAYS)
        assert cuts.height >= 3
    done = close(cost, rated_cost, bill, pool_cost, THREE_DAYS, MARCH)
    by = ["supplier", "currency"]
    terms = done.terms.group_by(by).agg(pl.col("usage", "loaded").sum())
    assert (terms["usage"] == terms["loaded"]).all()
    assert "unexplained" not in done.terms["term"].to_list()
    here = done.documents.group_by(by).agg(
        pl.col("recognised_here", "billed_here", "change_in_prepaid").sum()
    )
    both = terms.join(here, on=by, how="full", coalesce=True).with_columns(pl.col("usage").fill_null(0))
    # recognised cost on either side, and with the change in prepaid it is what was billed
    assert both.select((pl.col("usage") == pl.col("recognised_here").fill_null(0)).all()).item()
    assert both.select(
        (
            pl.col("usage") + pl.col("change_in_prepaid").fill_null(0) == pl.col("billed_here").fill_null(0)
        ).all()
    ).item()
    # captured and billed differ by the variance
    variance = done.terms.filter(pl.col("term") == "variance")["usage"].sum()
    assert done.capture["variance"].sum() == variance
    # the days add up to the period, whatever the order of the rows
    parts = []
    for day in ("2026-03-01", "2026-03-02", "2026-03-03"):
        period = parse_period(day)
        within = pl.col("slice_start").is_between(period.start, period.until, closed="left")
        parts.append(
            close(
                cost.filter(pl.col("day") == period.start.date()).reverse(),
                rated_cost.filter(within).reverse(),
                bill.reverse(),
                pool_cost.rename({"quarter_start": "slice_start"})
                .filter(within)
                .rename({"slice_start": "quarter_start"}),
                period,
                MARCH,
            ).terms
        )
    assert pl.concat(parts).sort(done.terms.columns).equals(done.terms.sort(done.terms.columns))
    assert done.capture.columns == list(CAPTURE.columns)


def test_the_parts_of_a_line_are_its_amount_and_a_charge_for_a_model_is_for_it_alone() -> None:
    bill = lines("line | amount | object\n 1 | 0.000000000100 | large\n 2 | -7 | -")
    cut = billing_slices(books(bill_lines=bill), MARCH)
    parts = spread(bill, cut)
    sums = {row[0]: row[1] for row in parts.group_by("line").agg(pl.col("quanta").sum()).iter_rows()}
    assert sums == {"1": 100, "2": -7 * 10**12}
    both = bill_on_demand(
        rated("model | quanta\n large | 1\n small | 1"), parts.filter(pl.col("line") == "1")
    )
    assert both.sort("model")["service_from"].to_list() == [MARCH.start, None]


@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(supplied(), st.randoms(use_true_random=False))
def test_the_costs_of_any_world_close_to_any_bills_of_its_suppliers(world: World, dice: Random) -> None:
    suppliers = sorted(set(world.books.models["provider"]))
    on_demand = [
        {
            **dict.fromkeys(BILL_LINES.columns),
            "supplier": dice.choice(suppliers),
            "document": f"o{number}",
            "line": "1",
            "category": dice.choice(["charge", "charge", "credit"]),
            "object_kind": dice.choice(["on_demand", "on_demand", "overhead"]),
            "object": dice.choice([None, *world.books.models["model"].to_list()]),
            "amount": Decimal(dice.randint(-(10**14), 10**14)).scaleb(-12),
            "currency": dice.choice(["USD", "EUR"]),
            "service_from": START + QUARTER * dice.randint(-9, 5),
            "service_until": START + QUARTER * dice.randint(6, 20),
            "posted_month": START.date().replace(day=1),
        }
        for number in range(dice.randint(0, 4))
    ]
    more = BILL_LINES.conform(pl.DataFrame(on_demand, schema=dict(BILL_LINES.columns)))
    known = replace(world.books, bill_lines=pl.concat([world.books.bill_lines, more]))
    made = compute(
        world.usage,
        world.pool_usage,
        known,
        WORLD,
        pool_customer_usage=world.pool_customer_usage,
        complete_until=WORLD.until,
    )
    rated_cost, unrated = rate_on_demand(world.usage, known, billing_slices(known, WORLD))
    months = Period("months", instant("2026-02-01"), instant("2026-04-01"))
    done = closure(made.lines, made.supply.recognised, rated_cost, unrated, known, WORLD, months)
    assert "unexplained" not in done.terms["term"].to_list()
    by = ["supplier", "currency"]
    terms = done.terms.group_by(by).agg(pl.col("usage", "loaded").sum())
    here = done.documents.group_by(by).agg(pl.col("recognised_here").sum())
    both = terms.join(here, on=by, how="full", coalesce=True, nulls_equal=True).fill_null(0)
    assert both.select(
        (pl.col("usage") == pl.col("loaded")).all() & (pl.col("usage") == pl.col("recognised_here")).all()
    ).row(0) == (True,)
