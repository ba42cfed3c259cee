"""Obligations by hand: what counts toward a commitment, where it will end, what is left of a pool's term."""

from typing import Any

import polars as pl

from metering.core.closure import billing_slices, closure, rate_on_demand
from metering.core.obligations import committed_since, forfeited, obligations
from metering.frames.books import Books
from metering.frames.supply import BILL_LINES, CAPACITY_FEES, CAPACITY_STEPS, POOLS, SUPPLIER_COMMITMENTS
from metering.frames.usage import SERVED
from metering.periods import parse_period
from metering.results.costs import COSTS, RECOGNISED
from tests.core.example_books import books, prices
from tests.text_tables import check, instant, read

CUT = instant("2026-03-11")
PRICES = prices("item | meter | unit_price\n large | uncached_input_tokens | 1", book="on-demand")


def commitments(text: str, **given: Any) -> pl.DataFrame:
    defaults = {"supplier": "cirrus", "commitment": "spend", "currency": "USD", "draws": "all"}
    rule = {"shortfall_rule": "true_up", "shortfall_ratio": "1"}
    return read(text, SUPPLIER_COMMITMENTS, **{**defaults, **rule, **given})


def served(text: str, **given: Any) -> pl.DataFrame:
    """Usage of cirrus, in millions of tokens at a dollar each."""
    defaults = {
        "provider": "cirrus",
        "model_served": "large",
        "tier_served": "standard",
        "region": "us-west",
        "ran_on": "on_demand",
        "counts_for": "charge_and_cost",
        "requests": 1,
    }
    rows = read(text, SERVED, **{**defaults, **given})
    return rows.with_columns(pl.col("uncached_input_tokens") * 10**6)


def known(**frames: pl.DataFrame) -> Books:
    """A pool of cirrus until the end of June: $310 a month; and one of another supplier without an end."""
    pools = read(
        """
        pool  | supplier  | term_from  | term_until | renewal_months | notice_days
        ptu   | cirrus    | 2026-01-01 | 2026-07-01 | 12             | 30
        block | northstar | 2026-03-01 | -          | -              | -
        """,
        POOLS,
        unit="PTU",
        currency="USD",
        idle_policy="none",
        recognition="capacity_hours",
        window_seconds=60,
        units_min=1,
        units_sold_in=1,
    )
    terms = {"dimension": "all", "units": 10, "unit_burn_per_minute": 1, "fee_share_ratio": "1"}
    steps = read(
        "pool | effective_from | effective_until\n ptu | 2026-01-01 | 2026-07-01\n block | 2026-03-01 | -",
        CAPACITY_STEPS,
        **terms,
    )
    fees = read(
        """
        pool  | effective_from | effective_until | amount
        ptu   | 2026-01-01     | 2026-07-01      | 310
        block | 2026-03-01     | -               |  62
        """,
        CAPACITY_FEES,
        fee="step",
        per="month",
        currency="USD",
    )
    return books(pools=pools, capacity_steps=steps, capacity_fees=fees, cost_books=PRICES, **frames)


def test_what_counts_is_what_was_billed_else_what_usage_and_contracts_cost() -> None:
    """Ten days of March: $100 of capacity, $5 rated a day, of which a bill for $60 covers the first two."""
    usage = served(
        "\n".join(
            [
                "quarter_start | uncached_input_tokens",
                *(f"2026-03-{day:02} 12:00 | 5" for day in range(1, 11)),
            ]
        )
    )
    billed = read(
        "line | amount\n 1 | 60",
        BILL_LINES,
        supplier="cirrus",
        document="inv",
        category="charge",
        object_kind="on_demand",
        currency="USD",
        service_from="2026-03-01",
        service_until="2026-03-03",
        posted_month="2026-03-01",
    )
    terms = commitments(
        """
        commitment | draws     | effective_from | effective_until | amount | shortfall_ratio
        all        | all       | 2026-03-01     | 2026-04-01      | 1_000  | 0.5
        tokens     | on_demand | 2026-03-01     | 2026-03-21      |    80  | 1
        """
    )
    found = obligations(usage, known(supplier_commitments=terms, bill_lines=billed), CUT, 28)
    # on demand 60 + 8 x 5 = 100, of which the tokens commitment, ending first, draws 80; capacity 10 x 10;
    # ahead: capacity 21 x 10 = 210, on demand at 10 a day 210
    check(
        found.filter(pl.col("kind") == "commitment"),
        """
        obligation | state | measure | committed | drawn | remaining | run_rate_per_day | projected | shortfall | days_left
        all        | open  | USD     | 1_000     | 120   | 880       | 20               | 540       | 460       | 21
        tokens     | open  | USD     |    80     |  80   |   0       | 10               |  80       |   0       | 10
        """,
    )
    check(
        found.filter(pl.col("kind") == "commitment"),
        """
        obligation | pace_ratio | shortfall_cost | surplus
        all        | 0.372      | 230            | 0
        tokens     | 2          |   0            | 0
        """,
    )


def test_the_rest_of_a_term_and_the_last_day_to_refuse_its_renewal() -> None:
    found = obligations(SERVED.empty(), known(), CUT, 28)
    # of three months and ten of 31 days: 310 + 310 + 100
    check(
        found,
        """
        supplier  | obligation | kind | state | committed | drawn | remaining | notice_by  | effective_until | days_left
        cirrus    | ptu        | pool | open  | 1_860     | 720   | 1_140     | 2026-06-01 | 2026-07-01      | 112
        northstar | block      | pool | open  | -         |  20   | -         | -          | -               | -
        """,
    )


def test_what_ended_short_is_told_with_what_rolled_over() -> None:
    usage = served("quarter_start | uncached_input_tokens\n 2026-01-15 00:00 | 70\n 2026-02-15 00:00 | 150")
    terms = commitments(
        """
        effective_from | effective_until | amount
        2026-01-01     | 2026-02-01      | 100
        2026-02-01     | 2026-03-01      | 120
        2026-03-01     | 2026-04-01      |  50
        """,
        draws="on_demand",
        shortfall_rule="roll_over",
    )
    found = obligations(usage, known(supplier_commitments=terms), CUT, 7)
    check(
        found.filter(pl.col("kind") != "pool"),
        """
        kind        | effective_from | state | committed | drawn | remaining | shortfall | surplus
        commitment  | 2026-01-01     | ended | 100       |  70   |  0        |  0        | 0
        rolled_over | 2026-02-01     | open  |  30       |  30   |  0        |  0        | 0
        commitment  | 2026-02-01     | ended | 120       | 120   |  0        |  0        | 0
        commitment  | 2026-03-01     | open  |  50       |   0   | 50        | 50        | 0
        """,
    )
    assert committed_since(known(supplier_commitments=terms), CUT, 28) == instant("2026-01-01")


def test_units_are_counted_where_usage_is_and_otherwise_said_to_be_unknown() -> None:
    usage = served("quarter_start | uncached_input_tokens\n 2026-03-05 00:00 | 3", requests=7)
    terms = commitments(
        """
        commitment | effective_from | effective_until | units     | unit
        tokens     | 2026-03-01     | 2026-04-01      | 4_000_000 | total_input_tokens
        hours      | 2026-03-01     | 2026-04-01      |       100 | accelerator-hour
        """
    )
    found = obligations(usage, known(supplier_commitments=terms), CUT, 28)
    check(
        found.filter(pl.col("kind") == "commitment"),
        """
        obligation | measure            | committed | drawn     | shortfall_cost
        tokens     | total_input_tokens | 4_000_000 | 3_000_000 | -
        hours      | accelerator-hour   |       100 | -         | -
        """,
    )


def test_a_tranche_that_is_just_beginning_is_projected_from_what_was_used_before_it() -> None:
    usage = served("quarter_start | uncached_input_tokens\n 2026-03-09 00:00 | 10\n 2026-03-10 00:00 | 10")
    terms = commitments(
        "effective_from | effective_until | amount\n 2026-03-11 | 2026-03-31 | 150", draws="on_demand"
    )
    found = obligations(usage, known(supplier_commitments=terms), CUT, 2)
    check(
        found.filter(pl.col("kind") == "commitment"),
        """
        state | drawn | run_rate_per_day | pace_ratio | projected | surplus | shortfall | days_left
        ahead | 0     | 10               | -          | 150       | 50      | 0         | 20
        """,
    )


def test_what_was_paid_ahead_is_prepaid_until_it_is_drawn_and_lost_at_the_end() -> None:
    """$1,000 paid ahead for a quarter, of which January draws 200, February 300 and March 100.

    A bill for February says 310 and gives the 310 back as drawn: they are cost once, and no shortfall.
    """
    rows = ["quarter_start | uncached_input_tokens", "2026-01-05 12:00 | 200", "2026-02-05 12:00 | 300"]
    usage = served("\n".join([*rows, "2026-03-05 12:00 | 100"]))
    terms = commitments(
        """
        commitment | draws     | effective_from | effective_until | amount | shortfall_rule
        ahead      | on_demand | 2026-01-01     | 2026-04-01      | 1_000  | forfeit
        arrears    | capacity  | 2026-01-01     | 2026-04-01      | 5_000  | true_up
        """
    )
    bill = read(
        """
        document | line | category | object_kind | object | amount | service_from | service_until | posted_month
        paid     | 1    | charge   | commitment  | ahead  | 1_000  | 2026-01-01   | 2026-04-01    | 2026-01-01
        feb      | 1    | charge   | on_demand   | -      |   310  | 2026-02-01   | 2026-03-01    | 2026-02-01
        feb      | 2    | credit   | commitment  | ahead  |  -310  | 2026-02-01   | 2026-03-01    | 2026-02-01
        """,
        BILL_LINES,
        supplier="cirrus",
        currency="USD",
    )
    given = books(cost_books=PRICES, supplier_commitments=terms, bill_lines=bill)
    told = []
    for month in (parse_period(f"2026-0{number}") for number in (1, 2, 3, 4)):
        # of the tranche's whole span, where it ends here
        lost = forfeited(usage, given, month)
        cost, unrated = rate_on_demand(usage, given, billing_slices(given, month))
        done = closure(COSTS.empty(), RECOGNISED.empty(), cost, unrated, given, month, forfeited=lost)
        terms_ = (
            done.terms.filter(pl.col("term") != "unexplained").group_by("term").agg(pl.col("usage").sum())
        )
        amounts = dict(terms_.filter(pl.col("usage").is_not_null()).iter_rows())
        ends = done.documents.select(pl.col("recognised_here", "billed_here", "change_in_prepaid").sum())
        told.append((f"{month.start:%m}", amounts.get("shortfall", 0), *ends.row(0)))
    # shortfall 1,000 - 200 - 310 - 100; billed - recognised is what prepaid gains: it ends as it began
    assert told == [
        ("01", 0, 200, 1_000, 800),
        ("02", 0, 310, 0, -310),
        ("03", 390, 490, 0, -490),
        ("04", 0, 0, 0, 0),
    ]
    assert forfeited(usage, given, parse_period("2026-03-30..2026-04-01"))["quanta"].to_list() == [
        390 * 10**12
    ]
    assert forfeited(usage, given, parse_period("2026-01-01..2026-03-31")).is_empty()
