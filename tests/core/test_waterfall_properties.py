"""What must hold of the waterfall of any contract: its terms sum, its parts add up, the order of rows says nothing."""

from dataclasses import replace
from random import Random

import polars as pl
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metering.core.commitments import TRANCHES, draw_down
from metering.core.revenue import charged, earned, reach, spans_of, under_terms
from metering.periods import QUARTER, Period
from tests.oracle.demand_worlds import demand_world

_TAKEN = ("line_discount", "contract_discount", "fixed_discount", "capped", "top_up")


@settings(max_examples=4)
@given(st.integers(0, 10**6))
def test_periods_add_up_and_neither_rows_nor_their_order_matter(seed: int) -> None:
    world = demand_world(seed)
    dice = Random(seed)
    whole = earned(world.usage, world.books, world.period, world.complete_until)
    # usage in another order, and each row as two of one key
    parts = pl.concat([world.usage, world.usage.with_columns(pl.col(pl.Int128) * 0)])
    shuffled = parts.sample(fraction=1, shuffle=True, seed=seed)
    again = earned(shuffled, world.books, world.period, world.complete_until)
    assert again.lines.equals(whole.lines)
    assert again.drawdown.equals(whole.drawdown)
    assert again.credits.equals(whole.credits)
    # two parts of the period, each with the usage that it needs, are the whole
    quarters = int((world.period.until - world.period.start) / QUARTER)
    edge = world.period.start + dice.randint(0, quarters) * QUARTER
    lines = []
    for start, until in ((world.period.start, edge), (edge, world.period.until)):
        period = Period("part", start, until)
        needed = reach(world.books, period, world.complete_until)
        read = (
            world.usage.join(needed, on="customer")
            .filter(pl.col("quarter_start").is_between("effective_from", "effective_until", closed="left"))
            .select(world.usage.columns)
        )
        part = earned(read, world.books, period, world.complete_until)
        lines.append(part.lines.join(part.series, on="series_id", how="left", nulls_equal=True, suffix="_"))
    both = pl.concat(lines).drop("series_id")
    one = whole.lines.join(whole.series, on="series_id", how="left", nulls_equal=True, suffix="_").drop(
        "series_id"
    )
    by = [name for name in one.columns if one.schema[name] != pl.Int128]
    assert both.sort(by, nulls_last=False).equals(one.sort(by, nulls_last=False))


@settings(max_examples=4)
@example(5)  # a credit pays what a commitment left of the same line
@given(st.integers(0, 10**6))
def test_what_is_drawn_and_what_is_over_is_what_was_eligible(seed: int) -> None:
    world = demand_world(seed)
    if under_terms(world.books).is_empty():
        return
    spans = spans_of(world.books, world.period, world.complete_until)
    done = charged(world.usage, world.books, spans)
    until = world.complete_until
    assert until is not None
    again = draw_down(TRANCHES.conform(done.terms.select(*TRANCHES.columns)), done.eligible, until)
    seen = done.eligible.filter(pl.col("slice_start") < until)["amount"].sum()
    assert again.drawn["amount"].sum() + again.overage["amount"].sum() == seen
    assert again.tranches["drawdown"].sum() == done.drawdown["drawdown"].sum()
    # nobody is paid for buying, whatever is agreed: what is taken is not more than there was
    lines = done.lines.filter(pl.col("gross") >= 0)
    assert lines.filter(pl.min_horizontal("net", *_TAKEN) < 0).is_empty()
    positive = lines.filter(pl.col("line") == "usage")
    left = pl.col("net") + pl.col("top_up") - pl.col("drawdown") - pl.col("promotional_credit")
    assert positive.filter(left - pl.col("prepaid_credit") < 0).is_empty()
    # a contract without terms is its gross
    plain = replace(
        world.books,
        contract_terms=world.books.contract_terms.with_columns(
            pl.lit(None, dtype=pl.Decimal(38, 12)).alias(name) for name in ("minimum", "maximum")
        ),
        discounts=world.books.discounts.clear(),
        commitments=world.books.commitments.clear(),
        credit_grants=world.books.credit_grants.clear(),
    )
    bare = charged(
        world.usage, plain, spans_of(plain, world.period, world.complete_until, everyone=True)
    ).lines
    assert bare["net"].sum() == bare["gross"].sum()
    assert (
        bare.select(pl.col(*_TAKEN, "drawdown", "prepaid_credit", "shortfall").abs().sum())
        .sum_horizontal()
        .item()
        == 0
    )
