"""Reconciliation by hand: a supplier's figures that match, that do not, and why."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import polars as pl

from metering.bills.usage_export import BUCKETS, THEIRS, Precision
from metering.core.reconciliation import reconcile
from metering.frames.usage import SERVED
from metering.periods import DAY
from tests.core.example_books import books, prices
from tests.text_tables import check, instant, read

DAYS = ("2026-03-01", "2026-03-02", "2026-03-03")


def buckets(*days: str, length: timedelta = DAY) -> pl.DataFrame:
    return BUCKETS.conform(
        pl.DataFrame(
            [(instant(day), instant(day) + length, day) for day in days],
            schema=dict(BUCKETS.columns),
            orient="row",
        )
    )


def theirs(text: str, **given: Any) -> pl.DataFrame:
    return read(text, THEIRS, **{"starts": "2026-03-01", "model": "large", **given})


def served(text: str, **given: Any) -> pl.DataFrame:
    defaults = {
        "quarter_start": "2026-03-01 12:00",
        "provider": "cirrus",
        "model_served": "large",
        "tier_served": "standard",
        "region": "us-west",
        "ran_on": "on_demand",
        "counts_for": "charge_and_cost",
        "requests": 1,
    }
    return read(text, SERVED, **{**defaults, **given})


def test_what_matches_what_differs_and_what_only_one_side_has() -> None:
    found = reconcile(
        theirs(
            """
            starts     | model | unit               | quantity
            2026-03-01 | large | total_input_tokens | 1_100
            2026-03-01 | large | requests           | 2
            2026-03-01 | small | total_input_tokens | 7
            2026-03-02 | large | total_input_tokens | 90
            2026-03-02 | small | total_input_tokens | 0
            """
        ),
        served(
            """
            quarter_start    | model_served | uncached_input_tokens | cache_read_tokens | cache_write_5m_tokens
            2026-03-01 00:00 | large        | 600                   | 300               | 50
            2026-03-01 23:45 | large        | 150                   |   0               |  0
            2026-03-02 00:00 | large        | 100                   |   0               |  0
            2026-03-03 00:00 | large        |  10                   |   0               |  0
            2026-03-04 00:00 | large        |  10                   |   0               |  0
            """
        ),
        books(),
        buckets(*DAYS),
    )
    check(
        found,
        """
        time       | model | unit               | status      | theirs | ours  | difference | capture_ratio
        2026-03-01 | large | total_input_tokens | matched     | 1_100  | 1_100 |   0        | 1
        2026-03-01 | large | requests           | matched     |     2  |     2 |   0        | 1
        2026-03-01 | small | total_input_tokens | theirs_only |     7  |     0 |   7        | 0
        2026-03-02 | large | total_input_tokens | differs     |    90  |   100 | -10        | 1.111111
        2026-03-02 | large | requests           | ours_only   |     0  |     1 |  -1        | -
        2026-03-02 | small | total_input_tokens | matched     |     0  |     0 |   0        | -
        2026-03-03 | large | total_input_tokens | ours_only   |     0  |    10 | -10        | -
        2026-03-03 | large | requests           | ours_only   |     0  |     1 |  -1        | -
        """,
    )
    assert found["reason"].null_count() == found.height


def test_within_the_tolerance_is_matched() -> None:
    rows = theirs("starts | unit | quantity\n 2026-03-01 | requests | 1_000\n 2026-03-02 | requests | 1_000")
    ours = served("quarter_start | requests\n 2026-03-01 00:00 | 990\n 2026-03-02 00:00 | 989")
    found = reconcile(rows, ours, books(), buckets(*DAYS[:2]), tolerance_ratio=Decimal("0.01"))
    check(found, "ours | status\n 990 | matched\n 989 | differs")


def test_a_supplier_whose_day_begins_elsewhere_is_found_by_moving_our_hours() -> None:
    """Their day is that of UTC+8: it begins at 16:00 UTC of the day before."""
    found = reconcile(
        theirs(
            """
            starts     | unit     | quantity
            2026-03-01 | requests | 5
            2026-03-02 | requests | 20
            2026-03-03 | requests | 300
            """
        ),
        served(
            """
            quarter_start    | requests
            2026-02-28 20:00 |   5
            2026-03-01 16:00 |  20
            2026-03-02 16:00 | 100
            2026-03-03 15:45 | 200
            2026-03-03 16:00 |   1
            """
        ),
        books(),
        buckets(*DAYS),
    )
    check(
        found,
        """
        time       | theirs | ours | status  | reason
        2026-03-01 |   5    |  20  | differs | time_zone +08:00
        2026-03-02 |  20    | 100  | differs | time_zone +08:00
        2026-03-03 | 300    | 201  | differs | time_zone +08:00
        """,
    )


def test_counted_twice_left_out_and_rounded() -> None:
    ours = served(
        """
        model_served | counts_for      | uncached_input_tokens | cache_read_tokens | output_tokens | reasoning_tokens
        large        | charge_and_cost | 1_000                 | 400               | 70            | 30
        small        | charge_and_cost | 1_000                 |   0               |  0            |  0
        small        | cost            |    50                 |   0               |  0            |  0
        small        | charge          |    -9                 |   0               |  0            |  0
        tiny         | charge_and_cost | 1_234                 |   0               |  0            |  0
        mini         | charge_and_cost |     9                 |   0               |  0            |  0
        """
    )
    found = reconcile(
        theirs(
            """
            model | unit                | quantity
            large | total_input_tokens  | 1_800
            large | total_output_tokens |   130
            small | total_input_tokens  | 1_000
            tiny  | total_input_tokens  | 1_200
            mini  | total_input_tokens  | 1_000
            """
        ),
        ours,
        books(),
        buckets(DAYS[0]),
        Precision({"total_input_tokens": 100}),
    )
    check(
        found,
        """
        model | unit                | ours  | status  | reason
        large | total_input_tokens  | 1_400 | differs | cache_counted_twice
        large | total_output_tokens |   100 | differs | reasoning_counted_twice
        small | total_input_tokens  | 1_050 | differs | unbilled_attempts_left_out
        tiny  | total_input_tokens  | 1_234 | differs | rounding
        mini  | total_input_tokens  |     9 | differs | -
        """,
    )


def test_amounts_are_compared_to_the_last_place_of_the_file_at_our_cost_book() -> None:
    priced = books(
        cost_books=prices(
            "item | meter | unit_price\n large | uncached_input_tokens | 2.5\n small | uncached_input_tokens | 3",
            book="on-demand",
        ),
        models=books().models.vstack(
            books().models.filter(pl.col("provider") == "cirrus").with_columns(pl.lit("small").alias("model"))
        ),
    )
    ours = served("model_served | uncached_input_tokens\n large | 1_001_000\n small | 1_000_000")
    rows = """
        model | unit                  | quantity  | amount | currency
        large | uncached_input_tokens | 1_001_000 | 2.50   | {}
        small | uncached_input_tokens | 1_000_000 | 3.60   | {}
        """
    cents = Precision(quanta=10**10)
    found = reconcile(theirs(rows.format("USD", "USD")), ours, priced, buckets(DAYS[0]), cents)
    check(
        found,
        """
        model | status  | amount_ours | amount_difference | reason
        large | matched | 2.5025      | -0.0025           | -
        small | differs | 3           |  0.60             | price
        """,
    )
    # amounts of another currency are not compared
    euro = reconcile(theirs(rows.format("EUR", "EUR")), ours, priced, buckets(DAYS[0]), cents)
    check(euro, "model | status | amount_ours\n large | matched | -\n small | matched | -")
