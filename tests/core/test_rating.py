"""Rating: the price in force when it occurred, exactly; nothing without a price is guessed."""

from decimal import Decimal

import polars as pl
import pytest

from metering.core.rating import charges, on_demand_costs, rate
from metering.errors import BadInput
from metering.frames.frame import SUM, Frame
from metering.frames.supply import MODELS
from metering.results.rates import RATE_KEY
from tests.core import example_books as a
from tests.text_tables import check, read

LINES = Frame("LINES", {**RATE_KEY, "customer": pl.String})


def lines(text, **given):
    defaults = {
        "book": "standard",
        "item": "large",
        "tier": "standard",
        "region": "us-west",
        "customer": "acme",
    }
    defaults |= {"meter": "output_tokens", "quarter_start": "2026-03-01", "context_breakpoint": 0}
    return read(text, LINES, **{**defaults, **given})


def test_the_price_changes_on_the_quarter_hour():
    book = a.prices(
        """
        item  | meter         | effective_from   | effective_until  | unit_price
        large | output_tokens | 2026-01-01       | 2026-03-16 00:15 | 10
        large | output_tokens | 2026-03-16 00:15 | 2026-03-17       | 9
        large | output_tokens | 2026-03-18       | -                | 8
        """
    )
    rated, unrated = rate(
        lines(
            """
            quarter_start    | quantity
            2025-12-31 23:45 | 1_000_000
            2026-01-01 00:00 | 1_000_000
            2026-03-16 00:00 | 1_000_000
            2026-03-16 00:15 | 1_000_000
            2026-03-16 23:45 | 1_000_000
            2026-03-17 00:00 | 1_000_000
            2026-03-18 00:00 | 1_000_000
            """
        ),
        book,
    )
    check(
        rated,
        """
        quarter_start    | customer | amount | currency
        2026-01-01 00:00 | acme     | 10     | USD
        2026-03-16 00:00 | acme     | 10     | USD
        2026-03-16 00:15 | acme     | 9      | USD
        2026-03-16 23:45 | acme     | 9      | USD
        2026-03-18 00:00 | acme     | 8      | USD
        """,
    )
    check(unrated, "quarter_start | reason\n 2025-12-31 23:45 | no_price\n 2026-03-17 00:00 | no_price")


def test_long_context_is_a_cliff():
    """200,000 tokens of input do not pass the breakpoint of 200,000; one more reprices all of them."""
    book = a.prices(
        """
        item  | meter                 | context_breakpoint | unit_price
        large | uncached_input_tokens | 0                  | 3
        large | uncached_input_tokens | 200_000            | 6
        """
    )
    rated, unrated = rate(
        lines(
            """
            context_breakpoint | quantity
            128_000            | 200_000
            200_000            | 200_001
            512_000            | 1_000_000
            """,
            meter="uncached_input_tokens",
        ),
        book,
    )
    check(rated, "quantity | amount\n 200_000 | 0.6\n 200_001 | 1.200006\n 1_000_000 | 6")
    assert unrated.is_empty()


def test_a_price_for_the_region_wins_while_it_is_in_force():
    book = a.prices(
        """
        item  | meter         | region  | effective_from | effective_until | unit_price
        large | output_tokens | *       | 2026-01-01     | -               | 10
        large | output_tokens | us-west | 2026-02-01     | 2026-03-01      | 11
        """
    )
    rated, _ = rate(
        lines(
            """
            quarter_start    | region  | quantity
            2026-01-31 23:45 | us-west | 1_000_000
            2026-02-01 00:00 | us-west | 1_000_000
            2026-02-01 00:00 | us-east | 1_000_000
            2026-03-01 00:00 | us-west | 1_000_000
            """
        ),
        book,
    )
    check(
        rated,
        """
        quarter_start    | region  | amount
        2026-01-31 23:45 | us-west | 10
        2026-02-01 00:00 | us-west | 11
        2026-02-01 00:00 | us-east | 10
        2026-03-01 00:00 | us-west | 10
        """,
    )


def test_zero_is_a_price_and_a_missing_row_is_not():
    book = a.prices("item | meter | unit_price\n large | output_tokens | 0")
    rated, unrated = rate(
        lines(
            """
            book     | tier     | meter            | quantity
            standard | standard | output_tokens    | 7
            standard | standard | output_tokens    | 0
            standard | standard | reasoning_tokens | 0
            standard | standard | reasoning_tokens | 7
            standard | batch    | output_tokens    | 7
            nowhere  | standard | output_tokens    | 7
            """
        ),
        book,
    )
    check(rated, "quantity | amount\n 7 | 0")
    check(
        unrated,
        """
        book     | tier     | meter            | reason
        standard | standard | reasoning_tokens | no_price
        standard | batch    | output_tokens    | no_price
        nowhere  | standard | output_tokens    | no_book
        """,
    )


def test_compensating_entries_are_rated_below_zero():
    rated, _ = rate(
        lines("quantity\n -3"), a.prices("item | meter | unit_price\n large | output_tokens | 0.000001")
    )
    check(rated, "quantity | amount\n -3 | -0.000000000003")


def test_large_quantities_are_exact_or_refused():
    book = a.prices(
        "item | meter | unit_price\n large | output_tokens | 0.000001\n small | output_tokens | 15_000_000"
    )
    rated, _ = rate(lines(f"quantity\n {2**62 + 1}"), book)
    assert rated["amount"].to_list() == [Decimal(2**62 + 1).scaleb(-12)]
    for quantity in (2**62, 2**100):
        with pytest.raises(BadInput, match=f"is beyond .*{quantity}.*void the events"):
            rate(lines(f"item | quantity\n small | {quantity}"), book)


def test_accelerator_time_is_charged_only_where_the_book_prices_it():
    usage = a.usage(
        "quarter_start | product | accelerator_ms\n 2026-03-01 | large | 9\n 2026-03-01 | time | 9"
    )
    book = a.prices(
        "item | meter | unit_price\n large | output_tokens | 1\n time | accelerator_ms | 1_000_000"
    )
    rated, unrated = charges(usage, a.books(price_books=book))
    check(rated, "product | meter | amount\n time | accelerator_ms | 9")
    assert unrated.is_empty()


def test_time_without_a_price_is_unrated_where_it_is_what_was_sold():
    """`time` is sold by the millisecond until March 2; `large` never is, so its time is not asked for."""
    usage = a.usage(
        """
        quarter_start    | customer | product | output_tokens | accelerator_ms
        2026-03-01 23:45 | acme     | time    | 0             | 9
        2026-03-02 00:00 | acme     | time    | 0             | 9
        2026-03-02 00:00 | acme     | large   | 5             | 9
        2026-03-02 00:00 | mystery  | time    | 0             | 9
        2026-03-02 00:00 | mystery  | large   | 5             | 9
        """
    )
    book = a.prices(
        """
        item  | meter          | effective_until | unit_price
        large | output_tokens  | -               | 1_000_000
        time  | accelerator_ms | 2026-03-02      | 1_000_000
        """
    )
    rated, unrated = charges(usage, a.books(price_books=book))
    check(rated, "product | meter | amount\n time | accelerator_ms | 9\n large | output_tokens | 5")
    check(
        unrated,
        """
        customer | product | meter          | quantity | reason
        acme     | time    | accelerator_ms | 9        | no_price
        mystery  | time    | accelerator_ms | 9        | unknown_customer
        mystery  | large   | output_tokens  | 5        | unknown_customer
        """,
    )


def test_time_without_a_cost_is_unrated_unless_the_supplier_bills_tokens_alone():
    usage = a.usage(
        """
        quarter_start    | model_served | accelerator_ms
        2026-03-01 23:45 | by-time      | 9
        2026-03-02 00:00 | by-time      | 9
        2026-03-02 00:00 | by-token     | 9
        2026-03-02 00:00 | not-in-book  | 9
        """,
        provider="cirrus",
    )
    models = read(
        "model | provider\n by-time | cirrus\n by-token | cirrus\n not-in-book | cirrus",
        MODELS,
        name="m",
        cost_book="on-demand",
    )
    book = a.prices(
        """
        item     | meter          | effective_until | unit_price
        by-time  | accelerator_ms | 2026-03-02      | 1_000_000
        by-token | output_tokens  | -               | 1_000_000
        """,
        book="on-demand",
    )
    rated, unrated = on_demand_costs(usage, a.books(models=models, cost_books=book))
    check(rated, "quarter_start | model_served | amount\n 2026-03-01 23:45 | by-time | 9")
    check(
        unrated,
        """
        quarter_start    | model_served | reason
        2026-03-02 00:00 | by-time      | no_cost
        2026-03-02 00:00 | not-in-book  | no_cost
        """,
    )


def test_lines_keep_what_passes_through():
    rated, _ = rate(
        lines("quantity\n 1").with_columns(pl.lit(7, dtype=SUM).alias("series_id")),
        a.prices("item | meter | unit_price\n large | output_tokens | 1"),
    )
    assert rated.select("series_id", "customer").rows() == [(7, "acme")]
