"""Explanations of where customers stand: a roll-over by hand, and every cell of random worlds of terms."""

from collections import Counter
from collections.abc import Iterator
from decimal import Decimal

import polars as pl
import pytest

from metering.core.explain_standing import (
    BALANCE_COLUMNS,
    CONTRACT_COLUMNS,
    Stands,
    explain_balance,
    explain_commitment,
)
from metering.core.revenue import charged, spans_of
from metering.core.standing import balances, contract_standing
from metering.errors import BadInput
from metering.periods import DAY, Period
from metering.tree import RATIO_PER, Node
from tests.core.test_explain import nodes, place
from tests.core.test_explain_terms import shown
from tests.core.test_standing import NOTHING_USED
from tests.core.test_waterfall import bought, terms
from tests.oracle.demand_worlds import demand_world
from tests.text_tables import instant

DAYS, SOON = 28, 30
SEEDS = (1, 17, 18)
SIXTH = Decimal("0.000001")


def stands(usage, books, period, known, *, everyone):
    period = Period("so far", min(period.start, period.until - DAYS * DAY), period.until)
    spans = spans_of(books, period, known, everyone=everyone)
    return Stands("c", charged(usage, books, spans), books, period.until, DAYS, place)


def test_what_a_tranche_drew_and_what_rolled_over_from_it_is_told_by_product_and_day():
    """Of 1,000, 800 were drawn in 2026; 200 may be drawn in 2027, after the 7,500 of that year, which end with it."""
    books = terms(
        commitments="""
        commitment | effective_from | effective_until | amount | shortfall_rule | shortfall_ratio
        ramp       | 2026-01-01     | 2027-01-01      | 1_000  | roll_over      | 0.5
        ramp       | 2027-01-01     | 2028-01-01      | 7_500  | roll_over      | 0.5
        """,
        discounts="discount | ratio\n tenth | 0.1",
    )
    # less a tenth: 800, and 280 in the four weeks before the cut: 10 a day
    usage = bought(
        """
        quarter_start    | dollars
        2026-03-01 10:00 |   800
        2026-03-02 10:00 |    80
        2026-03-02 10:15 |     8
        2026-03-03 10:00 |     1
        2027-06-10 10:00 |   310
        2027-06-11 10:00 |     1
        """
    )
    until = instant("2027-07-02 12:00")
    found = stands(usage, books, Period("so far", until - DAYS * DAY, until), until, everyone=False)
    rows = contract_standing(found.charged, NOTHING_USED, books, until - DAYS * DAY, until, DAYS)
    [tranche, rolled] = rows.sort("what").iter_rows(named=True)
    assert shown(explain_commitment(found, tranche, "remaining")) == [
        "remaining: 7220.1",
        "  committed: 7500",
        "  less drawn: -279.9",
        "    large: -279.9",
        "      2027-06-10: -279",
        "      2027-06-11: -0.9",
    ]
    assert shown(explain_commitment(found, rolled, "committed")) == ["committed: 199.9"]
    assert "unmet in the tranche that ended then" in explain_commitment(found, rolled, "committed").how
    drawn = explain_commitment(found, tranche, "drawn")
    assert drawn.made_of is not None
    assert shown(drawn.made_of) == [
        "net charges of its products and span: 279.9",
        "  gross: 311",
        "    large, standard, us-west, output_tokens: 311",
        "  less discount: -31.1",
        "    contract discount: -31.1",
        "      large, tenth: -31.1",
        "        2027-06-10: -31",
        "        2027-06-11: -0.1",
    ]
    assert "311,000,000 x 1 per million, book standard (revision 1, price_book.yaml:1)" in {
        node.how for node in nodes(drawn)
    }
    # 182.5 of 365 days are over
    pace = explain_commitment(found, tranche, "pace_ratio")
    assert pace.how == "drawn 279.90 / (committed 7,500.00 x 182.50 of 365.00 days elapsed)"
    assert pace.amount == RATIO_PER * 2799 // 37500
    rate = explain_commitment(found, tranche, "run_rate_per_day")
    assert rate.how == "279.90 in the last 28 days / 28, rounded down"
    fee = explain_commitment(found, tranche, "shortfall_fee")
    assert " unmet x 0.5, rounded down" in fee.how
    assert fee.made_of is not None
    assert fee.made_of.name == "shortfall_projected"
    with pytest.raises(BadInput, match="contracts has no column 'days_left' that has parts"):
        explain_commitment(found, tranche, "days_left")


def test_every_cell_of_random_terms_is_its_root_and_every_node_its_parts():
    told: Counter[str] = Counter()
    for seed in SEEDS:
        told.update(told_of(seed))
    assert set(told) == {"commitment", "rolled_over", "empty", "balance"}, told


def told_of(seed: int) -> Iterator[str]:
    world = demand_world(seed)
    books, until = world.books, world.period.until
    if until == world.period.start:
        return
    some = stands(world.usage, books, world.period, until, everyone=False)
    rows = contract_standing(some.charged, NOTHING_USED, books, world.period.start, until, DAYS)
    for row in rows.filter(pl.col("what").is_in(["commitment", "rolled_over"])).iter_rows(named=True):
        mine = Stands(row["contract"], some.charged, books, until, DAYS, place)
        for column in CONTRACT_COLUMNS:
            if row[column] is None:
                with pytest.raises(BadInput, match="is empty here"):
                    explain_commitment(mine, row, column)
                yield "empty"
            else:
                assert checked(explain_commitment(mine, row, column)) == row[column], (seed, column)
                yield row["what"]
    every = stands(world.usage, books, world.period, until, everyone=True)
    for row in balances(every.charged, books, until, DAYS, SOON).iter_rows(named=True):
        mine = Stands(row["contract"], every.charged, books, until, DAYS, place)
        for column in BALANCE_COLUMNS:
            assert checked(explain_balance(mine, row, column, SOON)) == row[column], (seed, column)
            yield "balance"


def checked(tree: Node):
    """The amount of a tree in whose every node the parts sum; Node refuses another when it is made."""
    for node in nodes(tree):
        assert not node.children or node.amount == sum(child.amount for child in node.children)
    if tree.per == 1:
        return tree.amount
    return tree.value if tree.per != RATIO_PER else tree.value.quantize(SIXTH)
