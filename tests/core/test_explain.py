"""Explanations: trees whose parts sum, and whose root is the report's cell, in random worlds and by hand."""

from dataclasses import replace
from random import Random

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering.core.explain_margin import COLUMNS, Cell, explain_margin
from metering.core.margin import margin
from metering.errors import BadInput, FrameBroken
from metering.money import to_quanta
from metering.results.margin import LINE_KEY
from metering.tree import Node
from tests.core.worlds import PERIOD, supplied

relaxed = settings(deadline=None, max_examples=3, suppress_health_check=list(HealthCheck))


def place(kind: str, name: str) -> str:
    return f"revision 1, {kind}.yaml:1"


def nodes(tree: Node) -> list[Node]:
    below = [*tree.children, *([tree.made_of] if tree.made_of else [])]
    return [tree, *(node for child in below for node in nodes(child))]


def test_a_node_whose_parts_do_not_sum_is_refused():
    part = Node("part", 2, 1, "USD")
    assert Node("whole", 4, 1, "USD", children=(part, part)).negated().amount == -4
    with pytest.raises(FrameBroken, match="whole: is 5, its parts sum to 4"):
        Node("whole", 5, 1, "USD", children=(part, part))
    with pytest.raises(FrameBroken, match="in EUR"):
        Node("whole", 2, 1, "USD", children=(replace(part, unit="EUR"),))


@relaxed
@given(supplied(), st.integers(0, 2**32))
def test_the_root_is_the_cell_and_every_node_the_sum_of_its_children(world, seed):
    dice = Random(seed)
    made = margin(
        world.usage,
        world.pool_usage,
        world.books,
        PERIOD,
        "USD",
        pool_customer_usage=world.pool_customer_usage,
        complete_until=PERIOD.until,
    )
    lines = made.lines
    keys = [dice.sample(sorted(LINE_KEY), dice.randint(0, 3)) for _ in range(2)]
    for by in keys if lines.height else []:
        row = lines.row(dice.randrange(lines.height), named=True)
        where = {name: row[name] for name in by}
        mine = lines.filter(Cell(where, "margin").lines)
        for column in ("margin_loaded", *dice.sample(COLUMNS, 2)):
            if mine.schema.get(column) is not None and mine[column].null_count():
                continue
            tree = explain_margin(world.usage, made, world.books, Cell(where, column), place)
            if column in ("margin", "margin_loaded"):
                cost = column.replace("margin", "cost")
                wanted = mine.select((to_quanta(pl.col("revenue")) - to_quanta(pl.col(cost))).sum()).item()
            elif mine.schema[column] == pl.Int128:
                wanted = mine[column].sum()
            else:
                wanted = mine.select(to_quanta(pl.col(column)).sum()).item()
            assert tree.amount == wanted
            for node in nodes(tree):
                assert not node.children or node.amount == sum(child.amount for child in node.children)
    with pytest.raises(BadInput, match="margin has no line customer=nobody"):
        explain_margin(world.usage, made, world.books, Cell({"customer": "nobody"}, "cost"), place)
