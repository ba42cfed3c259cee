"""Margin of contracts under terms: what revenue is made of, by contract and plan; breaches that rates alone made."""

from decimal import Decimal

import polars as pl
import pytest

from metering.core.margin import margin
from metering.core.summary import summarise
from metering.frames.books import EXCHANGE_RATES
from metering.frames.terms import CONTRACT_TERMS, CONTRACTS, CUSTOMERS, PERCENTAGES
from metering.frames.usage import POOL_USAGE, SUMS
from metering.money import to_quanta
from metering.periods import parse_period
from metering.results.margin import MARGIN_BY, MARGIN_LINES
from tests.core import example_books as a
from tests.core.test_waterfall import DOLLAR, bought, terms
from tests.text_tables import check, instant, read

MARCH = parse_period("2026-03")
SOLD = "item | meter | unit_price\n large | output_tokens | 1\n code | output_tokens | 1"
ON_DEMAND = a.prices("item | meter | unit_price\n large | output_tokens | 0.5", book="on-demand")


def of_march(usage, books, period=MARCH, **given):
    return margin(
        usage, POOL_USAGE.empty(), books, period, "USD", complete_until=instant("2026-04-01"), **given
    )


def test_revenue_is_made_of_what_the_waterfall_says():
    """$1,000 less 10 %, minimum $950, promotional $100, plan $200: 900 + 50 + 200 - 100 = 1,050. Cost $500."""
    books = terms(
        discounts="discount | ratio\n loyalty | 0.1",
        contract_terms="plan | minimum\n team | 950",
        credit_grants="credit | amount | effective_from\n launch | 100 | 2026-03-01",
        fees=a.fees("amount\n 200"),
        cost_books=ON_DEMAND,
    )
    usage = bought("quarter_start | dollars\n 2026-03-02 00:00 | 400\n 2026-03-20 12:00 | 600")
    usage = usage.with_columns(pl.lit("cirrus").alias("provider"))
    made = of_march(usage, books)
    check(
        summarise(made.lines, ["contract", "plan"], books),
        """
        contract | plan | gross | discount | charge | top_up | promotional_credit | fee | revenue | cost | margin
        c        | team | 1_000 | 100      | 900    | 50     | 100                | 200 | 1_050   | 500  | 550
        """,
    )
    # the whole is the sum of its days, and usage may be told apart from the usage that terms need
    days = [
        of_march(usage, books, parse_period(f"2026-03-{day:02d}"), terms_usage=usage).lines
        for day in range(1, 32)
    ]
    assert MARGIN_LINES.conform(pl.concat(days)).equals(made.lines)
    assert of_march(usage.clear(), books, terms_usage=usage.clear()).lines["revenue"].sum() == Decimal(1_050)
    for by in MARGIN_BY:
        rows = summarise(made.lines, [by], books)
        assert rows["revenue"].sum() == summarise(made.lines, [], books)["revenue"].item()


def test_a_prepaid_customer_earns_what_it_uses():
    """Prepaid $500, charges $800, cost $600: margin 25 %, not of the $300 that are still due."""
    books = terms(
        credit_grants="credit | kind | amount\n prepaid | prepaid | 500",
        cost_books=a.prices("item | meter | unit_price\n large | output_tokens | 0.75", book="on-demand"),
    )
    usage = bought("quarter_start | dollars\n 2026-03-02 00:00 | 800").with_columns(
        pl.lit("cirrus").alias("provider")
    )
    check(
        summarise(of_march(usage, books).lines, ["customer"], books),
        "customer | revenue | cost | margin | margin_ratio\n acme | 800 | 600 | 200 | 0.25",
    )


def test_a_shortfall_is_a_line_of_its_own():
    """Committed $1,000 in March, used 400: shortfall 600."""
    books = terms(
        commitments="commitment | amount | effective_from | effective_until\n"
        " ramp | 1_000 | 2026-03-01 | 2026-04-01",
    )
    usage = bought("quarter_start | dollars\n 2026-03-02 00:00 | 400")
    check(
        summarise(of_march(usage, books).lines, ["line", "contract", "product"], books),
        """
        line       | contract | product | charge | shortfall | revenue
        usage      | c        | large   | 400    | 0         | 400
        commitment | c        | -       | 0      | 600       | 600
        """,
    )


def test_a_product_that_has_a_cost_plus_of_its_own_is_not_charged_that_of_all_too():
    """Cost $500 at 1.5 of its own, where all pay 1.2: 750; a charge of another name adds its 0.1: 800."""
    percent = read(
        """
        charge    | ratio | item
        cost plus | 1.2   | -
        cost plus | 1.5   | large
        handling  | 0.1   | -
        """,
        PERCENTAGES,
        book="standard",
        effective_from="2026-01-01",
        of="cost",
        currency="USD",
    )
    books = terms(price_books=DOLLAR.clear(), percentages=percent, cost_books=ON_DEMAND)
    usage = a.usage(
        """
        quarter_start    | product | model_served | output_tokens
        2026-03-02 00:00 | large   | large        | 1_000_000_000
        2026-03-02 00:00 | code    | large        | 1_000_000_000
        """,
        provider="cirrus",
    )
    check(
        summarise(of_march(usage, books).lines, ["product"], books),
        """
        product | gross | revenue | cost
        large   | 800   | 800     | 500
        code    | 650   | 650     | 500
        """,
    )


def test_cost_plus_is_a_ratio_of_what_the_usage_cost():
    """Cost $500 x 1.2, less 10 %: 540. What has no cost has no charge either, and is unrated on both sides."""
    percent = read(
        "charge | of | ratio\n cost plus | cost | 1.2",
        PERCENTAGES,
        book="standard",
        effective_from="2026-01-01",
        currency="USD",
    )
    books = terms(
        price_books=DOLLAR.clear(),
        percentages=percent,
        discounts="discount | ratio\n loyalty | 0.1",
        cost_books=ON_DEMAND,
    )
    usage = a.usage(
        """
        quarter_start    | model_served | output_tokens
        2026-03-02 00:00 | large        | 600_000_000
        2026-03-20 12:00 | large        | 400_000_000
        2026-03-20 12:00 | larger       | 1
        """,
        provider="cirrus",
    )
    made = of_march(usage, books)
    check(
        summarise(made.lines, ["model_served"], books),
        """
        model_served | gross | discount | revenue | cost | margin | charge_unrated
        large        | 600   | 60       | 540     | 500  | 40     | no
        larger       | 0     | 0        | 0       | 0    | 0      | yes
        """,
    )
    check(
        made.unrated,
        """
        side   | reason       | model_served | quantity
        charge | no_cost_book | larger       | 1
        cost   | no_cost_book | larger       | 1
        """,
    )


@pytest.mark.parametrize(("contract_rate", "by_fx"), [("0.6", True), ("0.5", False)])
def test_a_breach_that_exchange_rates_alone_made_says_so(contract_rate, by_fx):
    """CHF 1,000 of charges at 0.5 in March: revenue 500, cost 450, margin 10 % below the floor of 20 %.

    At 0.6, as agreed: revenue 600, margin 25 %.
    """
    told = read(
        f"kind | effective_from | rate\n month_average | 2026-03-01 | 0.5\n contract | 2026-01-01 | {contract_rate}",
        EXCHANGE_RATES,
        currency="CHF",
        into="USD",
    )
    books = terms(
        price_books=a.prices(SOLD, currency="CHF"),
        exchange_rates=told,
        cost_books=a.prices("item | meter | unit_price\n large | output_tokens | 0.45", book="on-demand"),
    )
    usage = bought("quarter_start | dollars\n 2026-03-02 00:00 | 1_000").with_columns(
        pl.lit("cirrus").alias("provider")
    )
    made = of_march(usage, books)
    (row,) = summarise(made.lines, ["customer"], books).to_dicts()
    assert (row["revenue"], row["margin"], row["breach"], row["breach_by_fx"]) == (500, 50, True, by_fx)
    assert row["revenue_fx_effect"] == row["fx_effect"] == Decimal(-100 if by_fx else 0)
    assert made.rates.rows() == [("CHF", 5 * 10**11, 5 * 10**11, False)]


def test_a_trial_that_becomes_paying_and_moves_to_another_plan_within_a_period_is_told_apart():
    """Trial until the 11th, plan team until the 21st, then scale; every contract counts its own tiers and period.

    Of March 10 days each at a minimum of 310: 100, of team; 11 of scale: 110. Tiers: 100 at 1, then at 0.50.
    """
    edges = ["2026-03-01", "2026-03-11", "2026-03-21", "-"]
    spans = list(zip(("trial", "team", "scale"), edges, edges[1:], strict=False))
    bound = "\n".join(f" {plan} | {since} | {until}" for plan, since, until in spans)
    agreed = "\n".join(
        f" {plan} | {plan} | {since} | {until} | {'-' if plan == 'trial' else 310}"
        for plan, since, until in spans
    )
    tiers = a.rules(
        "free_units\n 0",
        """
        tier | from_units  | up_to       | unit_price
        1    | 0           | 100_000_000 | 0.000001
        2    | 100_000_000 | -           | 0.0000005
        """,
    )
    books = terms(
        **tiers,
        customers=read(
            "kind | effective_from | effective_until\n trial | 2026-03-01 | 2026-03-11\n paying | 2026-03-11 | -",
            CUSTOMERS,
            customer="acme",
            name="Acme",
            segment="startup",
        ),
        contracts=read(
            f"contract | effective_from | effective_until\n{bound}",
            CONTRACTS,
            customer="acme",
            price_book="standard",
            floor_basis="usage",
        ),
        contract_terms=read(
            f"contract | plan | effective_from | effective_until | minimum\n{agreed}",
            CONTRACT_TERMS,
            customer="acme",
            currency="USD",
            anchor_day=1,
            zone="UTC",
            period_months=1,
        ),
        cost_books=ON_DEMAND,
    )
    usage = bought(
        """
        quarter_start    | dollars
        2026-03-02 00:00 | 140
        2026-03-10 23:45 |  60
        2026-03-11 00:00 |  60
        2026-03-21 00:00 | 300
        2026-03-31 23:45 | 100
        """
    ).with_columns(pl.lit("cirrus").alias("provider"))
    made = of_march(usage, books)
    # trial: 100 + 50; team: 60, and 40 to its minimum; scale: 100 + 150
    check(
        summarise(made.lines, ["kind", "plan", "contract"], books),
        """
        kind   | plan  | contract | gross | top_up | revenue | cost
        trial  | trial | trial    | 150   | 0      | 150     | 100
        paying | team  | team     | 60    | 40     | 100     | 30
        paying | scale | scale    | 250   | 0      | 250     | 200
        """,
    )
    # taken back late, a unit of the first quarter hour is one less of the tier that the counter ended in
    void = usage.head(1).with_columns(
        pl.lit("charge").alias("counts_for"), *((pl.lit(0) - pl.col(name)).alias(name) for name in SUMS)
    )
    after = of_march(pl.concat([usage, void]), books)
    check(
        summarise(after.lines, ["plan"], books),
        """
        plan  | gross | top_up | revenue | cost
        trial | 60    | 0      | 60      | 100
        team  | 60    | 40     | 100     | 30
        scale | 250   | 0      | 250     | 200
        """,
    )


def test_what_a_contract_still_owes_is_of_its_last_plan():
    """A contract that ended keeps its name and plan on lines that name it."""
    said = read(
        "contract | plan | effective_from | effective_until\n c | team | 2026-01-01 | 2026-02-01",
        CONTRACT_TERMS,
        customer="acme",
        currency="USD",
        anchor_day=1,
        zone="UTC",
        period_months=1,
    )
    books = terms(contract_terms=said, fees=a.fees("amount\n 31"))
    lines = of_march(a.usage("quarter_start | output_tokens"), books).lines
    assert lines.select("contract", "plan").unique().rows() == [("c", "team")]
    assert lines.select(to_quanta(pl.col("fee")).sum()).item() == 31 * 10**12
