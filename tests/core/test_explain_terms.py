"""Explanations of contracts under terms: tiers, minimum and discounts by hand, and sums in random worlds of terms."""

from dataclasses import replace

import polars as pl
import pytest

from metering.core.explain_margin import Cell, explain_margin
from metering.core.margin import margin
from metering.frames.books import EXCHANGE_RATES, PRICES
from metering.frames.terms import PERCENTAGES
from metering.frames.usage import POOL_USAGE
from metering.money import to_quanta
from metering.periods import parse_period
from metering.tree import Node
from tests.core import example_books as a
from tests.core.test_explain import nodes, place
from tests.core.test_margin_terms import ON_DEMAND
from tests.core.test_waterfall import terms
from tests.oracle.demand_worlds import demand_world
from tests.text_tables import instant, read

OF_TERMS = ("top_up", "overage_premium", "shortfall", "breakage", "promotional_credit")
USAGE = a.usage(
    """
    quarter_start    | output_tokens
    2026-03-02 00:00 | 60
    2026-03-20 12:00 | 50
    2026-03-20 12:15 | 10
    """,
    provider="cirrus",
)


def explained(usage, books, column, period="2026-03", **where):
    made = margin(
        usage,
        POOL_USAGE.empty(),
        books,
        parse_period(period),
        "USD",
        terms_usage=USAGE,
        complete_until=instant("2026-04-01"),
    )
    return explain_margin(usage, made, books, Cell(where, column), place)


def shown(node: Node, depth: int = 0) -> list[str]:
    said = f"{'  ' * depth}{node.name}: {node.value.normalize():f}"
    return [said, *(line for child in node.children for line in shown(child, depth + 1))]


def graduated(**more):
    """100 units at 10 + 5 on entering, then at 8; 10 free; 10 % off; at least 1,200 a month."""
    ruled = a.rules(
        "rule | free_units\n rule | 10",
        "tier | from_units | up_to | unit_price | flat_amount\n 1 | 0 | 100 | 10 | 5\n 2 | 100 | - | 8 | 0",
    )
    return terms(
        price_books=PRICES.empty(),
        discounts="discount | ratio\n loyalty | 0.1",
        contract_terms="plan | minimum\n team | 1_200",
        cost_books=ON_DEMAND,
        **ruled,
        **more,
    )


def test_tiers_a_discount_and_a_minimum_are_told_one_by_one():
    """50 x 10 + 5 on the 2nd; on the 20th 50 x 10, then 10 x 8: gross 1,085, discount 108.50, top-up 223.50."""
    tree = explained(USAGE, graduated(), "revenue", contract="c")
    assert shown(tree) == [
        "revenue: 1200",
        "  charge: 976.5",
        "    gross: 1085",
        "      large, graduated price of output_tokens: 1085",
        "        2026-03-02: 505",
        "          output_tokens, standard, us-west: 505",
        "        2026-03-20: 580",
        "          tier 1: 500",
        "          tier 2: 80",
        "    less discount: -108.5",
        "      contract discount: -108.5",
        "        large, loyalty: -108.5",
        "          2026-03-02: -50.5",
        "          2026-03-20: -58",
        "  top_up: 223.5",
        "    c, period 2026-03-01 00:00 to 2026-04-01 00:00 UTC, large: 223.5",
        "      2026-03-02: 104.02534562212",
        "      2026-03-20: 119.47465437788",
    ]
    rule = tree.children[0].children[0].children[0]
    assert rule.how == (
        "at 0 units when the first of these began, 120 counted: tier 1 to 100: 100 x 10000000 per million + 5.00 on "
        "entering it; tier 2 above 100: 10 x 8000000 per million; "
        "one counter for all of them since 2026-03-01 00:00 UTC (reset: period), 10 units free; contract c, "
        "book standard (revision 1, price_book.yaml:1), rule rule"
    )
    assert rule.children[0].how == (
        "at 0 units when the day began, 60 counted: tier 1 to 100: 50 x 10000000 per million + 5.00 on entering it"
    )
    assert rule.children[1].how == (
        "at 60 units when the day began, 60 counted: tier 1 to 100: 50 x 10000000 per million; "
        "tier 2 above 100: 10 x 8000000 per million"
    )
    discount = tree.children[0].children[1].children[0].children[0]
    assert discount.how.startswith("0.1 of 1,085.00 (gross less line discount)")
    assert "lack of the minimum of 1,200.00" in tree.children[1].children[0].how


def test_of_a_day_every_quarter_hour_has_its_place_on_the_counter():
    tree = explained(USAGE, graduated(), "gross", "2026-03-20", contract="c")
    assert [line.strip() for line in shown(tree)] == [
        "gross: 580",
        "large, graduated price of output_tokens: 580",
        "12:00: 500",
        "output_tokens, standard, us-west: 500",
        "12:15: 80",
        "output_tokens, standard, us-west: 80",
    ]
    assert [node.facts["position"] for node in nodes(tree) if "position" in node.facts] == [60, 110]


def test_a_minimum_that_ends_within_the_period_is_still_named():
    books = graduated()
    change = pl.lit(instant("2026-03-17"))

    def cut(rows: pl.DataFrame, **later: pl.Expr) -> pl.DataFrame:
        first = rows.with_columns(change.cast(rows.schema["effective_until"]).alias("effective_until"))
        rest = rows.with_columns(change.cast(rows.schema["effective_from"]).alias("effective_from"), **later)
        return pl.concat([first, rest])

    none = pl.lit(None, dtype=books.contract_terms.schema["minimum"])
    books = replace(
        books, contracts=cut(books.contracts), contract_terms=cut(books.contract_terms, minimum=none)
    )
    # so large that some of it falls on usage after the change
    more = (pl.col("minimum") * 10).cast(books.contract_terms.schema["minimum"])
    books = replace(books, contract_terms=books.contract_terms.with_columns(more.alias("minimum")))
    tree = explained(USAGE, books, "top_up", contract="c")
    assert "lack of the minimum of 12,000.00, prorated" in tree.children[0].how


def test_amounts_in_another_currency_and_of_cost_are_taken_apart():
    percent = read(
        "charge | of | ratio\n cost plus | cost | 1.2",
        PERCENTAGES,
        book="standard",
        effective_from="2026-01-01",
        currency="CHF",
    )
    rates = read(
        "kind | effective_from | rate\n month_average | 2026-03-01 | 0.5",
        EXCHANGE_RATES,
        currency="CHF",
        into="USD",
    )
    back = rates.with_columns(
        pl.lit("USD").alias("currency"),
        pl.lit("CHF").alias("into"),
        pl.lit(2).cast(rates.schema["rate"]).alias("rate"),
    )
    books = graduated()
    books = replace(
        books,
        price_rules=books.price_rules.clear(),
        contract_terms=books.contract_terms.clear(),
        percentages=percent,
        exchange_rates=pl.concat([rates, back]),
    )
    # 120 tokens at 0.50 a million: $0.00006 = CHF 0.00012, x 1.2, less 10 %
    tree = explained(USAGE, books, "charge", customer="acme")
    assert shown(tree) == [
        "charge: 0.0000648",
        "  gross: 0.000072",
        "    in CHF: 0.000072",
        "  less discount: -0.0000072",
        "    in CHF: -0.0000072",
    ]
    made_of = tree.children[0].children[0].made_of
    assert [line.strip() for line in shown(made_of)][:2] == [": 0.000144", "large, of cost: 0.000144"]
    assert made_of.children[0].how.startswith("cost plus 1.2 of the cost on the usage basis")


@pytest.mark.parametrize("seed", [1, 2, 7, 28, 33, 59])
def test_trees_of_random_terms_are_the_cells_and_sum(seed: int):
    world = demand_world(seed)
    made = margin(
        world.usage,
        POOL_USAGE.empty(),
        world.books,
        world.period,
        "USD",
        complete_until=world.complete_until,
    )
    for where in ({}, {"product": "code", "model_served": "large"}):
        mine = made.lines.filter(Cell(where, "margin").lines)
        if mine.is_empty():
            continue
        # every node sums to its children: Node says so; here each column of the report stands in the tree
        tree = explain_margin(world.usage, made, world.books, Cell(where, "revenue"), place)
        there = nodes(tree)
        assert "without parts" not in {node.name for node in there}
        for column in ("revenue", "charge", "gross", "discount", *OF_TERMS):
            sign = -1 if column in ("discount", "promotional_credit") else 1
            found = [node.amount for node in there if node.name in (column, f"less {column}")]
            assert sum(found) == sign * mine.select(to_quanta(pl.col(column)).sum()).item()
