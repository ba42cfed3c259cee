"""Explanations of limits by hand: what opened a window and what it holds, and every column of every summary."""

import polars as pl
import pytest

from metering.core.explain_limits import WINDOW_COLUMNS, explain_windows
from metering.core.limits import summarise_limits
from metering.errors import BadInput
from metering.results.limits import LIMITS_BY
from metering.tree import RATIO_PER
from tests.core.test_explain import nodes, place
from tests.core.test_explain_terms import shown
from tests.core.test_limits import THREE, books, refusals, usage, windows

MANY = """
    limit  | holder   | items | window   | window_minutes | quantity | anchor_at
    five   | seat     | all   | anchored | 300            | 100      | -
    week   | seat     | all   | fixed    | 10080          | 1000     | 2026-03-09
    other  | customer | small | minute   | 1              | 5        | -
"""
USED = """
    minute           | seat | product | output_tokens | cache_read_tokens
    2026-03-10 10:00 | a    | large   | 90            | 5
    2026-03-10 10:30 | a    | large   | 5             | 5
    2026-03-10 10:31 | a    | small   | 1             | 5
    2026-03-10 10:00 | b    | large   | 50            | 5
    2026-03-10 20:00 | b    | large   | 950           | 5
"""
REFUSED = """
    occurred_at         | request_id | seat | estimated_input_tokens | estimated_output_tokens
    2026-03-10 10:31:07 | r1         | a    | 7                      | 20
    2026-03-10 14:59:59 | r2         | a    | -                      | -
    2026-03-10 15:00:00 | r3         | c    | 1                      | 300
"""


def test_an_anchored_window_is_told_by_what_opened_it_and_quarter_hour_by_quarter_hour():
    limits = """
        limit    | holder   | window   | window_minutes | quantity
        anchored | customer | anchored | 300            | 100
    """
    of = books(limits)
    found = windows(usage(THREE), of)
    tree = explain_windows(found, usage(THREE), of, "used", place)
    assert shown(tree) == [
        "used: 121",
        "  acme, anchored: 121",
        "    2026-03-10 10:07 to 2026-03-10 15:07 UTC: 121",
        "      large: 121",
        "        2026-03-10 10:00: 1",
        "        2026-03-10 14:45: 60",
        "        2026-03-10 15:00: 60",
    ]
    limit = tree.children[0]
    assert limit.how == (
        "100 per customer, windows of 300 minutes from the first use after the last one closed, of output_tokens x 1; "
        "contract acme (revision 1, contract.yaml:1)"
    )
    window = limit.children[0]
    assert window.how == "121 of 100, binding from 2026-03-10 15:02"
    assert window.children[0].how == "121 output_tokens x 1"
    headroom = explain_windows(found, usage(THREE), of, "headroom_ratio", place)
    assert (headroom.amount, headroom.how) == (-210_000, "1 - 121 / 100")


def test_every_column_of_every_summary_is_its_root():
    of, used = books(MANY), usage(USED)
    found = windows(used, of, refusals(REFUSED))
    for by, names in LIMITS_BY.items():
        summed = summarise_limits(found, by)
        for row in summed.iter_rows(named=True):
            same = (pl.col(name).eq_missing(pl.lit(row[name])) for name in names)
            mine = found.filter(pl.all_horizontal(same))
            for column in set(WINDOW_COLUMNS) & set(row):
                tree = explain_windows(mine, used, of, column, place)
                amount = row[column]
                assert tree.amount == (amount * RATIO_PER if tree.per == RATIO_PER else amount), (by, column)
                assert all(
                    node.amount == sum(part.amount for part in node.children)
                    for node in nodes(tree)
                    if node.children
                )
    # each window of its own: used and refused in units
    for place_of, row in enumerate(found.iter_rows(named=True)):
        for column in ("used", "refused"):
            assert explain_windows(found[place_of], used, of, column, place).amount == row[column]
    with pytest.raises(BadInput, match="units of five, other, week cannot be added; add limit=NAME"):
        explain_windows(found, used, of, "used", place)
    with pytest.raises(BadInput, match="headroom_ratio is of one window"):
        explain_windows(found, used, of, "headroom_ratio", place)
