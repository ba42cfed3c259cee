"""What must hold of prices whatever the tables and the usage: they equal the oracle, add up, and can be undone."""

from random import Random

import polars as pl
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from metering.core.adjustment import adjustment
from metering.core.pricing import Gross, gross
from metering.frames.usage import SUMS, USAGE
from metering.results.charges import COUNTED
from tests.core import example_books as a
from tests.core.test_pricing import CHANGE, CHANGE_TIERS, money, priced
from tests.oracle.demand import SERIES, charges
from tests.oracle.demand_worlds import DemandWorld, demand_world
from tests.text_tables import instant

relaxed = settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 10_000)


def of(world: DemandWorld, usage: pl.DataFrame | None = None) -> Gross:
    return gross(world.usage if usage is None else usage, world.books, world.complete_until)


def told(done: Gross) -> dict[tuple[object, ...], int]:
    rows = done.lines.join(done.series, on="series_id")
    return {
        (row["quarter_start"], *(row[name] for name in SERIES), row["meter"]): row["gross"]
        for row in rows.iter_rows(named=True)
    }


@relaxed
@example(13)  # what a rule charges does not divide evenly
@given(seeds)
def test_equals_the_oracle_to_the_last_quantum_and_every_breakdown_sums_to_the_total(seed: int) -> None:
    world = demand_world(seed)
    done = of(world)
    (contract,) = world.plain["contracts"]
    oracle = charges(world.usage.to_dicts(), world.plain, contract, world.complete_until)
    found = {key: amount for key, amount in told(done).items() if amount}
    assert found == {(at, *key, meter): amount for (at, key, meter), amount in oracle.gross.items() if amount}
    ruled = done.lines.drop_nulls("rule")["gross"].sum()
    assert ruled == done.counted["gross"].sum()
    days = done.lines.group_by(pl.col("quarter_start").dt.date()).agg(pl.col("gross").sum())["gross"].sum()
    products = money(done.lines, "item")["gross"].sum()
    assert days == done.lines["gross"].sum()
    assert (products or 0) == (money(done.lines)["gross"].sum() or 0)


@relaxed
@given(seeds)
def test_neither_the_order_nor_the_split_of_rows_matters(seed: int) -> None:
    """As usage is dealt out over batches, or over the minutes of a quarter hour."""
    world = demand_world(seed)
    dice = Random(seed)
    share = pl.Series([dice.random() for _ in range(world.usage.height)], dtype=pl.Float64)
    part = {name: (pl.col(name).cast(pl.Float64) * share).cast(pl.Int128) for name in SUMS}
    first = world.usage.with_columns(part[name].alias(name) for name in SUMS)
    rest = world.usage.with_columns((pl.col(name) - part[name]).alias(name) for name in SUMS)
    dealt = pl.concat([rest, first]).sample(fraction=1, shuffle=True, seed=seed)
    whole, again = of(world), of(world, dealt)
    assert whole.lines.equals(again.lines)
    assert whole.counted.equals(again.counted)
    assert whole.unrated.sort(pl.all()).equals(again.unrated.sort(pl.all()))


@relaxed
@given(seeds)
def test_what_is_taken_back_is_as_if_it_had_never_been(seed: int) -> None:
    """Usage that comes late, before and behind the rest, and is voided in its own quarter hour."""
    world = demand_world(seed)
    late = world.usage.filter(pl.col("counts_for") == "charge_and_cost").sample(fraction=0.5, seed=seed)
    void = late.with_columns(
        pl.lit("charge").alias("counts_for"), *((pl.lit(0) - pl.col(name)).alias(name) for name in SUMS)
    )
    by = ["quarter_start", "item", "rule"]
    once, undone = of(world), of(world, pl.concat([late, world.usage, void]))
    # an uneven split of one rule may move a quantum between series; never between quarter hours, rules, products
    assert adjustment(undone.lines, once.lines, by=by, amounts=["quantity", "gross"]).is_empty()
    counted = [name for name in COUNTED.columns if name != "rule"]
    assert once.counted.select(counted).equals(undone.counted.select(counted))


@relaxed
@given(seeds)
def test_what_comes_later_changes_nothing_of_what_was_but_of_a_volume(seed: int) -> None:
    world = demand_world(seed)
    volumes = world.books.price_rules.filter(pl.col("model") == "volume")["rule"].unique()
    middle = world.usage["quarter_start"].sort()[world.usage.height // 2] if world.usage.height else None
    if middle is None:
        return
    lines = of(world).lines.filter(pl.col("quarter_start") < middle)
    early = gross(world.usage, world.books, middle).lines
    key = ["quarter_start", "item", "meter", "rule"]
    moved = adjustment(lines, early, by=key, amounts=["quantity", "gross"])
    assert moved.filter(~pl.col("rule").is_in(volumes.implode()).fill_null(value=False)).is_empty()


def test_an_adjustment_is_what_is_rated_now_less_what_was_issued_and_issuing_it_leaves_none() -> None:
    """1,340 were issued; 40 M that arrive late for the 10th make it 1,640: 360 more before, 60 less after."""
    books = priced(CHANGE, CHANGE_TIERS)
    on_time = a.usage(
        """
        quarter_start    | output_tokens
        2026-01-05 10:00 | 80_000_000
        2026-01-20 10:00 | 80_000_000
        """
    )
    late = a.usage("quarter_start | output_tokens\n 2026-01-10 10:00 | 40_000_000")
    until = instant("2026-03-01")
    issued = gross(on_time, books, until).lines
    now = gross(pl.concat([on_time, late]), books, until).lines
    due = adjustment(now, issued, by=["contract", "rule"], amounts=["gross"])
    assert [(row["rule"], row["gross"] // 10**12) for row in due.to_dicts()] == [
        ("after", -60),
        ("before", 360),
    ]
    assert due["gross"].sum() == 300 * 10**12
    columns = ["contract", "rule", "gross"]
    everything = pl.concat([issued.select(columns), due.select(columns)])
    assert adjustment(now, everything, by=["contract", "rule"], amounts=["gross"]).is_empty()


@settings(deadline=None, max_examples=5, suppress_health_check=list(HealthCheck))
@given(seeds)
def test_whatever_was_known_when_statements_were_issued_they_end_at_what_is_rated_now(seed: int) -> None:
    """Histories of late usage, voids and catalog fixes, issued in any order of knowledge."""
    dice = Random(seed)
    world, fixed = demand_world(seed), demand_world(seed + 1).books
    usage = world.usage
    cuts = sorted(dice.sample(range(usage.height + 1), min(2, usage.height)))
    arrived = USAGE.conform(usage).sample(fraction=1, shuffle=True, seed=seed)
    void = arrived.head(usage.height // 3).with_columns(
        pl.lit("charge").alias("counts_for"), *((pl.lit(0) - pl.col(name)).alias(name) for name in SUMS)
    )
    states = [
        *((arrived.head(cut), books) for cut in cuts for books in (world.books, fixed)),
        (pl.concat([arrived, void]), fixed),
    ]
    last = len(states) - 1
    by = ["quarter_start", "contract", "item", "meter"]
    issued = gross(usage.clear(), world.books, world.complete_until).lines.select(*by, "gross")
    for place in [*dice.choices(range(last + 1), k=2), last, last]:
        rated = gross(*states[place], world.complete_until).lines
        due = adjustment(rated, issued, by=by, amounts=["gross"])
        issued = pl.concat([issued, due])
        assert adjustment(rated, issued, by=by, amounts=["gross"]).is_empty()
    final = gross(*states[last], world.complete_until).lines
    assert (issued["gross"].sum() or 0) == (final["gross"].sum() or 0)
