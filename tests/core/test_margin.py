"""Margin: the company's lines close to what its pools cost and its customers paid, exactly."""
# ruff: noqa: E501  # tables are as wide as they need to be

from decimal import Decimal

import polars as pl
import pytest

from metering.core.margin import margin
from metering.core.summary import summarise
from metering.errors import BadInput
from metering.frames.supply import MODELS
from metering.frames.terms import CUSTOMERS
from metering.frames.usage import POOL_USAGE, USAGE
from metering.periods import parse_period
from tests.core import example_books as a
from tests.text_tables import check, instant, read

PRICES = """
item  | meter                 | unit_price
large | uncached_input_tokens | 3
large | output_tokens         | 15
"""
ON_DEMAND = """
item  | meter                 | unit_price
large | uncached_input_tokens | 1
large | output_tokens         | 5
"""


def on_demand_books(**frames):
    given = {"price_books": a.prices(PRICES), "cost_books": a.prices(ON_DEMAND, book="on-demand")}
    return a.books(**{**given, **frames})


def test_two_sides_of_a_retry():
    """10k in, 2k out at $3/$15: charged once $0.06, paid for twice."""
    rows = a.usage(
        """
        quarter_start    | counts_for      | uncached_input_tokens | output_tokens
        2026-03-01 00:00 | charge_and_cost | 10_000                | 2_000
        2026-03-01 00:00 | cost            | 10_000                | 2_000
        """,
        provider="cirrus",
    )
    result = margin(rows, POOL_USAGE.empty(), on_demand_books(), parse_period("2026-03-01"), "USD")
    check(
        result.lines,
        """
        line  | customer | requests | billable_requests | charge | cost_on_demand | cost | output_tokens
        usage | acme     | 2        | 1                 | 0.06   | 0.04           | 0.04 | 4_000
        """,
    )
    assert result.unrated.is_empty()


def test_a_fallback_to_a_larger_model_does_not_change_what_the_customer_pays():
    """It bought `small`: 10k in, 2k out at $0.80/$4 = $0.016. We paid for `large`: at $1/$5, $0.02."""
    rows = a.usage(
        """
        quarter_start    | product | model_served | uncached_input_tokens | output_tokens
        2026-03-01 00:00 | small   | small        | 10_000                | 2_000
        2026-03-01 00:15 | small   | large        | 10_000                | 2_000
        """,
        provider="cirrus",
    )
    prices = "small | uncached_input_tokens | 0.8\n small | output_tokens | 4"
    costs = "small | uncached_input_tokens | 0.5\n small | output_tokens | 2"
    models = "model | provider | cost_book\n small | cirrus | on-demand\n large | cirrus | on-demand"
    books = on_demand_books(
        price_books=a.prices(f"{PRICES}\n{prices}"),
        cost_books=a.prices(f"{ON_DEMAND}\n{costs}", book="on-demand"),
        models=read(models, MODELS, name="m"),
    )
    result = margin(rows, POOL_USAGE.empty(), books, parse_period("2026-03-01"), "USD")
    check(
        summarise(result.lines, ["product", "model_served"], books),
        """
        product | model_served | revenue | cost  | margin | margin_ratio
        small   | small        | 0.016   | 0.009 | 0.007  | 0.4375
        small   | large        | 0.016   | 0.02  | -0.004 | -0.25
        """,
    )


def test_spill_costs_who_spilled_on_the_usage_basis():
    """Pool of 100 a minute at $1: A takes 90; B gets 10 and spills 30 at 4 x the unit cost: A 90, B 130."""
    rows = a.usage(
        """
        quarter_start    | customer | pool  | ran_on   | provider | uncached_input_tokens
        2026-03-01 00:00 | a        | block | pool     | own      | 90
        2026-03-01 00:00 | b        | block | pool     | own      | 10
        2026-03-01 00:00 | b        | block | overflow | cirrus   | 30
        """
    )
    books = on_demand_books(
        cost_books=a.prices(
            "item | meter | unit_price\n large | uncached_input_tokens | 4_000_000", book="on-demand"
        ),
        **a.bought("unit_burn_per_minute | fee_per_month\n 100 | 4_464_000"),
        burndown=a.burndown("meter | weight\n uncached_input_tokens | 1"),
    )
    quarter = parse_period("2026-03-01..2026-03-01T00:15")
    result = margin(rows, a.pool_usage(rows), books, quarter, "USD")
    check(
        summarise(result.lines, ["line", "customer"], books),
        """
        line  | customer | cost_pool | cost_on_demand | cost
        usage | a        | 90        | 0              | 90
        usage | b        | 10        | 120            | 130
        idle  | -        | 1_400     | 0              | 1_400
        """,
    )
    check(
        result.capacity.utilization.head(1),
        "contracted | burn | served | idle | spill\n 100 | 100 | 100 | 0 | 30",
    )


def test_a_flat_plan_earns_each_month_alike():
    """$2,400 a year, $200 a month, cost $150 a month: +50 each month, not +2,250 in one and -150 in the others."""
    rows = a.usage(
        """
        quarter_start    | output_tokens
        2026-01-31 23:45 | 30_000_000
        2026-02-01 00:00 | 30_000_000
        """,
        provider="cirrus",
    )
    books = on_demand_books(
        fees=a.fees("amount\n 200"),
        price_books=a.prices("item | meter | unit_price\n large | output_tokens | 0"),
    )
    for month in ("2026-01", "2026-02"):
        result = margin(rows, POOL_USAGE.empty(), books, parse_period(month), "USD")
        check(
            summarise(result.lines, ["customer"], books),
            "customer | fee | revenue | cost | margin | margin_ratio\n acme | 200 | 200 | 150 | 50 | 0.25",
        )


def test_margin_is_of_revenue_not_of_what_is_still_due():
    """Charges 800, cost 600: 25 %, however much of it was paid ahead."""
    rows = a.usage(
        """
        quarter_start    | counts_for      | uncached_input_tokens
        2026-03-01 00:00 | charge_and_cost | 100_000_000
        2026-03-01 00:00 | cost            | 500_000_000
        """,
        provider="cirrus",
    )
    books = on_demand_books(
        price_books=a.prices("item | meter | unit_price\n large | uncached_input_tokens | 8")
    )
    result = margin(rows, POOL_USAGE.empty(), books, parse_period("2026-03-01"), "USD")
    check(
        summarise(result.lines, ["customer"], books),
        "revenue | cost | margin | margin_ratio | breach\n 800 | 600 | 200 | 0.25 | no",
    )


def test_void_of_a_charge_takes_revenue_and_leaves_cost():
    rows = a.usage(
        """
        quarter_start    | counts_for      | requests | uncached_input_tokens | output_tokens
        2026-03-01 00:00 | charge_and_cost | 1        | 10_000                | 2_000
        2026-03-01 00:00 | charge          | -1       | -10_000               | -2_000
        """,
        provider="cirrus",
    )
    result = margin(rows, POOL_USAGE.empty(), on_demand_books(), parse_period("2026-03-01"), "USD")
    check(
        summarise(result.lines, [], a.books()),
        "requests | billable_requests | charge | cost\n 1 | 0 | 0 | 0.02",
    )


def test_a_gap_that_was_taken_back_is_none():
    """Of two charges without a price one is voided: 7 tokens stay open. The other customer's was the only one."""
    rows = a.usage(
        """
        quarter_start    | customer | counts_for      | requests | output_tokens
        2026-03-01 00:00 | acme     | charge_and_cost | 2        | 12
        2026-03-01 00:00 | acme     | charge          | -1       | -5
        2026-03-01 00:00 | globex   | charge_and_cost | 1        | 5
        2026-03-01 00:00 | globex   | charge          | -1       | -5
        """,
        provider="cirrus",
        product="preview",
    )
    result = margin(rows, POOL_USAGE.empty(), on_demand_books(), parse_period("2026-03-01"), "USD")
    check(
        result.unrated,
        "side | reason | customer | meter | quantity\n charge | no_price | acme | output_tokens | 7",
    )
    check(
        summarise(result.lines, ["customer"], a.books()),
        """
        customer | requests | billable_requests | charge | cost     | charge_unrated
        acme     | 2        | 1                 | 0      | 0.00006  | yes
        globex   | 1        | 0                 | 0      | 0.000025 | no
        """,
    )


def test_what_is_not_known_is_not_zero():
    rows = a.usage(
        """
        quarter_start    | customer | product | model_served | pool | ran_on    | uncached_input_tokens | accelerator_ms
        2026-03-01 00:00 | acme     | large   | large        | -    | on_demand | 1_000_000             | 5
        2026-03-01 00:00 | acme     | preview | large        | -    | on_demand | 1_000_000             | 5
        2026-03-01 00:15 | mystery  | large   | large        | -    | on_demand | 1_000_000             | 5
        2026-03-01 00:00 | former   | large   | large        | -    | on_demand | 1_000_000             | 5
        2026-03-01 00:00 | odd-book | large   | large        | -    | on_demand | 1_000_000             | 5
        2026-03-01 00:30 | acme     | large   | new          | -    | on_demand | 1_000_000             | 5
        2026-03-01 00:30 | acme     | large   | lost         | -    | on_demand | 1_000_000             | 5
        2026-03-01 00:45 | acme     | large   | large        | gone | pool      | 1_000_000             | 5
        2026-03-01 00:45 | acme     | large   | large        | gone | overflow  | 1_000_000             | 0
        """,
        provider="cirrus",
    )
    customers = read(
        """
        customer | name | kind
        acme     | Acme | paying
        former   | F    | paying
        odd-book | O    | paying
        """,
        CUSTOMERS,
        effective_from="2026-01-01",
        segment="s",
    )
    contracts = a.contracts("customer | price_book\n acme | standard\n odd-book | nowhere")
    models = pl.concat(
        [
            a.books().models,
            a.books()
            .models.head(1)
            .with_columns(
                pl.lit("cirrus").alias("provider"),
                pl.lit("lost").alias("model"),
                pl.lit("nowhere").alias("cost_book"),
            ),
        ]
    )
    books = on_demand_books(customers=customers, contracts=contracts, models=models)
    result = margin(rows, a.pool_usage(rows), books, parse_period("2026-03-01"), "USD")
    check(
        result.unrated,
        """
        side     | reason           | customer | product | model_served | pool | ran_on    | meter                 | quantity
        charge   | no_price         | acme     | preview | large        | -    | on_demand | uncached_input_tokens | 1_000_000
        charge   | unknown_customer | mystery  | large   | large        | -    | on_demand | uncached_input_tokens | 1_000_000
        charge   | no_contract      | former   | large   | large        | -    | on_demand | uncached_input_tokens | 1_000_000
        charge   | no_price_book    | odd-book | large   | large        | -    | on_demand | uncached_input_tokens | 1_000_000
        cost     | no_cost_book     | acme     | large   | new          | -    | on_demand | uncached_input_tokens | 1_000_000
        cost     | no_cost_book     | acme     | large   | new          | -    | on_demand | accelerator_ms        | 5
        cost     | no_cost_book     | acme     | large   | lost         | -    | on_demand | uncached_input_tokens | 1_000_000
        cost     | no_cost_book     | acme     | large   | lost         | -    | on_demand | accelerator_ms        | 5
        cost     | unknown_pool     | acme     | large   | large        | gone | pool      | uncached_input_tokens | 1_000_000
        cost     | unknown_pool     | acme     | large   | large        | gone | pool      | accelerator_ms        | 5
        capacity | unknown_pool     | -        | -       | large        | gone | overflow  | uncached_input_tokens | 1_000_000
        """,
    )
    check(
        summarise(result.lines, ["customer"], books),
        """
        customer | kind    | charge | cost | charge_unrated | cost_unrated
        acme     | paying  | 15     | 3    | yes            | yes
        mystery  | unknown | 0      | 1    | yes            | no
        former   | paying  | 0      | 1    | yes            | no
        odd-book | paying  | 0      | 1    | yes            | no
        """,
    )


def test_idle_is_a_line_of_its_own_and_the_pool_closes():
    """$29,760 a month are $10 a quarter hour, in which the pool has 15 x 100: 60, then 30 and 15 are used."""
    rows = a.usage(
        """
        quarter_start    | customer | uncached_input_tokens
        2026-03-01 00:00 | acme     | 60
        2026-03-01 00:15 | acme     | 30
        2026-03-01 00:15 | research | 15
        """,
        pool="block",
        ran_on="pool",
    )
    customers = read(
        "customer | name | kind\n acme | Acme | paying\n research | R | internal",
        CUSTOMERS,
        effective_from="2026-01-01",
        segment="s",
    )
    books = a.books(
        customers=customers,
        contracts=a.contracts("customer | margin_floor_ratio\n acme | 0.2\n research | 0.2"),
        price_books=a.prices("item | meter | unit_price\n large | uncached_input_tokens | 1_000_000"),
        **a.bought("unit_burn_per_minute | fee_per_month\n 100 | 29_760"),
        burndown=a.burndown("meter | weight\n uncached_input_tokens | 1"),
    )
    result = margin(rows, a.pool_usage(rows), books, parse_period("2026-03-01"), "USD")
    total = summarise(result.lines, [], books)
    check(total, "cost | cost_pool | revenue\n 960 | 960 | 105")
    check(
        summarise(result.lines, ["line", "customer"], books),
        """
        line  | customer | kind     | revenue | cost  | breach
        usage | acme     | paying   | 90      | 0.6   | -
        usage | research | internal | 15      | 0.1   | -
        idle  | -        | -        | 0       | 959.3 | -
        """,
    )
    assert summarise(result.lines, ["line"], books)["cost"].sum() == Decimal(960)


def test_prepaid_does_not_reduce_revenue_and_the_floor_is_judged_without_the_ratio():
    books = on_demand_books(fees=a.fees("fee | amount\n plan | 3_100"))
    rows = a.usage(
        """
        quarter_start    | output_tokens
        2026-03-02 10:00 | 70_000_000
        """,
        provider="cirrus",
        product="plan-only",
    )
    books = on_demand_books(
        fees=a.fees("fee | amount\n plan | 3_100"),
        price_books=a.prices("item | meter | unit_price\n plan-only | output_tokens | 0"),
    )
    month = margin(rows, POOL_USAGE.empty(), books, parse_period("2026-03"), "USD")
    check(
        summarise(month.lines, ["customer"], books),
        """
        customer | name | fee  | revenue | cost | margin | margin_ratio | floor_ratio | breach
        acme     | Acme | 3100 | 3100    | 350  | 2750   | 0.887097     | 0.2         | no
        """,
    )
    check(
        summarise(month.lines.filter(pl.col("day") == instant("2026-03-02").date()), ["customer"], books),
        """
        customer | fee | revenue | cost | margin | margin_ratio | breach
        acme     | 100 | 100     | 350  | -250   | -2.500000    | yes
        """,
    )


@pytest.mark.parametrize(
    ("cost_tokens", "breach"),
    [("159_999_999", False), ("160_000_000", False), ("160_000_001", True)],
)
def test_a_margin_of_exactly_the_floor_is_no_breach(cost_tokens, breach):
    """Revenue $200, floor 20 %: $160 of cost leave exactly the floor."""
    rows = a.usage(
        f"""
        quarter_start    | counts_for      | uncached_input_tokens
        2026-03-01 00:00 | charge_and_cost | 1
        2026-03-01 00:00 | cost            | {cost_tokens}
        """,
        provider="cirrus",
    ).with_columns(pl.col("uncached_input_tokens") - (pl.col("counts_for") == "cost").cast(pl.Int128))
    books = on_demand_books(
        price_books=a.prices("item | meter | unit_price\n large | uncached_input_tokens | 200_000_000")
    )
    result = margin(rows, POOL_USAGE.empty(), books, parse_period("2026-03-01"), "USD")
    assert summarise(result.lines, ["customer"], books)["breach"].to_list() == [breach]


def test_no_revenue_with_cost_is_a_breach_without_a_ratio():
    rows = a.usage("quarter_start | uncached_input_tokens\n 2026-03-01 00:00 | 1_000_000", provider="cirrus")
    books = on_demand_books(
        price_books=a.prices("item | meter | unit_price\n large | uncached_input_tokens | 0")
    )
    result = margin(rows, POOL_USAGE.empty(), books, parse_period("2026-03-01"), "USD")
    check(
        summarise(result.lines, ["customer"], books),
        "revenue | margin | margin_ratio | breach\n 0 | -1 | - | yes",
    )


def test_another_currency_is_unrated_not_one_to_one():
    rows = a.usage(
        "quarter_start | pool | ran_on | uncached_input_tokens\n 2026-03-01 00:00 | block | pool | 60"
    )
    books = a.books(
        price_books=a.prices(
            "item | meter | unit_price\n large | uncached_input_tokens | 1_000_000", currency="EUR"
        ),
        fees=a.fees("amount | currency\n 310 | EUR"),
        **a.bought("unit_burn_per_minute | fee_per_month | currency\n 100 | 31_000 | CHF"),
        burndown=a.burndown("meter | weight\n uncached_input_tokens | 1"),
    )
    result = margin(rows, a.pool_usage(rows), books, parse_period("2026-03-01"), "USD")
    check(
        result.unrated,
        """
        side   | reason           | customer | pool  | amount           | currency
        charge | no_exchange_rate | acme     | block | 60               | EUR
        fee    | no_exchange_rate | acme     | -     | 10               | EUR
        cost   | no_exchange_rate | acme     | block | 0.416666666667   | CHF
        cost   | no_exchange_rate | -        | block | 999.583333333333 | CHF
        """,
    )
    check(
        summarise(result.lines, ["line"], books),
        """
        line  | revenue | cost | charge_unrated | cost_unrated | currency
        usage | 0       | 0    | yes            | yes          | USD
        fee   | 0       | 0    | yes            | no           | USD
        idle  | 0       | 0    | no             | yes          | USD
        """,
    )


def test_nothing_is_nothing_in_every_currency():
    rows = a.usage("quarter_start | uncached_input_tokens\n 2026-03-01 00:00 | 60", provider="cirrus")
    free = a.prices("item | meter | unit_price\n large | uncached_input_tokens | 0", currency="EUR")
    books = on_demand_books(price_books=free, fees=a.fees("amount | currency\n 0 | EUR"))
    result = margin(rows, POOL_USAGE.empty(), books, parse_period("2026-03-01"), "USD")
    assert result.unrated.is_empty()
    check(
        summarise(result.lines, ["line"], books),
        "line | revenue | cost | charge_unrated\n usage | 0 | 0.00006 | no\n fee | 0 | 0 | no",
    )


def test_what_begins_after_the_cut_does_not_judge_what_came_before():
    """Paying from noon on: a period until noon is of a trial, which has no breach; a quarter hour more is."""
    customers = read(
        """
        customer | effective_from   | effective_until  | kind
        acme     | 2026-01-01       | 2026-03-01 12:00 | trial
        acme     | 2026-03-01 12:00 | -                | paying
        """,
        CUSTOMERS,
        name="Acme",
        segment="s",
    )
    rows = a.usage(
        "quarter_start | counts_for | output_tokens\n 2026-03-01 06:00 | cost | 1_000_000", provider="cirrus"
    )
    books = on_demand_books(customers=customers)
    for until, kind, breach in (("12:14", "trial", "no"), ("12:15", "paying", "yes")):
        cut = parse_period("2026-03").cut_at(instant(f"2026-03-01 {until}"))
        lines = margin(rows, POOL_USAGE.empty(), books, cut, "USD").lines
        found = summarise(lines, ["customer"], books, cut.until)
        check(found, f"customer | kind | revenue | cost | breach\n acme | {kind} | 0 | 5 | {breach}")


def test_a_customer_that_starts_paying_is_two_kinds():
    customers = read(
        """
        customer | effective_from   | effective_until  | kind
        acme     | 2026-01-01       | 2026-03-01 12:00 | trial
        acme     | 2026-03-01 12:00 | -                | paying
        """,
        CUSTOMERS,
        name="Acme",
        segment="s",
    )
    rows = a.usage(
        """
        quarter_start    | uncached_input_tokens
        2026-03-01 11:45 | 1_000_000
        2026-03-01 12:00 | 2_000_000
        """,
        provider="cirrus",
    )
    books = on_demand_books(customers=customers)
    result = margin(rows, POOL_USAGE.empty(), books, parse_period("2026-03-01"), "USD")
    check(
        summarise(result.lines, ["customer", "kind"], books),
        "customer | kind | revenue | breach\n acme | trial | 3 | no\n acme | paying | 6 | no",
    )
    check(summarise(result.lines, ["customer"], books), "customer | kind | revenue\n acme | paying | 9")


def test_an_open_month_is_cut_for_usage_fees_and_capacity_alike():
    rows = a.usage(
        """
        quarter_start    | uncached_input_tokens
        2026-03-01 11:45 | 60
        2026-03-01 12:00 | 60
        """,
        pool="block",
        ran_on="pool",
    )
    books = a.books(
        price_books=a.prices("item | meter | unit_price\n large | uncached_input_tokens | 1_000_000"),
        fees=a.fees("amount\n 310"),
        **a.bought("unit_burn_per_minute | fee_per_month\n 100 | 31_000"),
        burndown=a.burndown("meter | weight\n uncached_input_tokens | 1"),
    )
    cut = parse_period("2026-03").cut_at(instant("2026-03-01 12:07"))
    result = margin(rows, a.pool_usage(rows), books, cut, "USD")
    check(summarise(result.lines, [], books), "charge | fee | cost\n 60 | 5 | 500")
    assert result.capacity.utilization.height == 720


def test_an_empty_period_has_no_rows():
    cut = parse_period("2026-03").cut_at(None)
    result = margin(USAGE.empty(), POOL_USAGE.empty(), a.books(), cut, "USD")
    assert result.lines.is_empty()
    assert result.unrated.is_empty()
    assert summarise(result.lines, [], a.books()).is_empty()
    assert summarise(result.lines, ["customer", "day"], a.books()).is_empty()


def test_by_must_be_a_column_of_margin():
    with pytest.raises(BadInput, match="--by colour: margin has no such column"):
        summarise(
            margin(USAGE.empty(), POOL_USAGE.empty(), a.books(), parse_period("2026-03-01"), "USD").lines,
            ["colour"],
            a.books(),
        )
