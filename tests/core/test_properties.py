"""Properties of the whole core on random worlds: it closes, it adds up, and it equals the slow oracle."""

from dataclasses import fields
from itertools import pairwise

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metering.core.capacity import capacity, summarise_capacity
from metering.core.capacity import together as capacity_together
from metering.core.margin import Margin, margin
from metering.core.rating import (
    charged_sums,
    charges,
    on_demand_cost_sums,
    on_demand_costs,
    on_demand_price_sums,
    on_demand_prices,
)
from metering.core.recognition import recognised
from metering.core.series import known_usage, united
from metering.core.summary import summarise, told_by
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.frames.usage import DIMENSIONS, SUMS, USAGE, Identified
from metering.meters import METERS
from metering.money import to_quanta
from metering.periods import QUARTER, Period
from metering.results.margin import LINE_KEY, MARGIN_LINES
from metering.results.rates import UNRATED
from tests.core.worlds import PERIOD, QUARTERS, START, World, worlds
from tests.oracle import margin as oracle
from tests.oracle import supply
from tests.oracle.worlds import plain

relaxed = settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
AMOUNTS = (
    *(
        "gross",
        "discount",
        "charge",
        "fee",
        "revenue",
        "cost_pool",
        "cost_on_demand",
        "cost",
        "idle_share",
        "cost_loaded",
    ),
    *("cause_shift", "cost_by_cause", "on_demand_price", "saving_against_on_demand", "fx_effect"),
    "revenue_fx_effect",
)
NULL_WINS = ("on_demand_price", "saving_against_on_demand", "fx_effect", "revenue_fx_effect")
FLAGS = ("charge_unrated", "cost_unrated", "estimated")


def run(world: World, period: Period = PERIOD) -> Margin:
    return margin(world.usage, world.pool_usage, world.books, period, "USD")


@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
@given(worlds(), st.data())
def test_usage_by_series_read_in_two_pieces_is_usage(world, data):
    """As the store reads it: numbers for series, 64 bits where every sum fits, a span at a time."""
    early = pl.col("quarter_start") < START + data.draw(st.integers(0, QUARTERS)) * QUARTER
    pieces = [known_usage(world.usage.filter(side)) for side in (early, ~early)]
    narrow = [
        Identified(
            piece.series, piece.rows.with_columns(pl.col(name).cast(pl.Int64) for name in fits(piece.rows))
        )
        for piece in pieces
    ]
    whole = run(world)
    made = margin(united(narrow), world.pool_usage, world.books, PERIOD, "USD")
    assert made.lines.equals(whole.lines)
    assert made.unrated.equals(whole.unrated)


def fits(rows: pl.DataFrame) -> list[str]:
    return [name for name in SUMS if not (rows[name].abs() >= 2**62).any()]


@relaxed
@given(worlds())
def test_equals_the_oracle_to_the_last_digit(world):
    result = run(world)
    lines, unrated = oracle.margin(
        world.usage.to_dicts(),
        world.pool_usage.to_dicts(),
        plain(world.books),
        PERIOD.start,
        PERIOD.until,
        "USD",
    )
    counts = ["requests", "billable_requests", *METERS, "charge_unrated", "cost_unrated"]
    known = ("charge", "fee", "cost_pool", "cost_on_demand")
    found = result.lines.with_columns(to_quanta(pl.col(name)).alias(name) for name in known)
    assert {
        tuple(row[name] for name in LINE_KEY): {name: int(row[name]) for name in (*counts, *known)}
        for row in found.to_dicts()
    } == {key: {name: line[name] for name in (*counts, *known)} for key, line in lines.items()}
    assert {
        tuple(row[name] for name in UNRATED.key): [row["quantity"], row["quanta"]]
        for row in result.unrated.with_columns(to_quanta(pl.col("amount")).alias("quanta")).to_dicts()
    } == {key: cells for key, cells in unrated.items() if any(cells)}


@relaxed
@given(worlds())
def test_utilization_equals_the_oracle(world):
    found = capacity(world.pool_usage, world.books, PERIOD).utilization
    wanted = supply.utilization(world.pool_usage.to_dicts(), plain(world.books), PERIOD.start, PERIOD.until)
    names = ("denominator", "contracted", "burn", "spill", "served", "idle", "overrun")
    assert {
        (row["pool"], row["dimension"], row["minute"]): {name: row[name] for name in names}
        for row in found.to_dicts()
    } == {key: {name: minute[name] for name in names} for key, minute in wanted.items()}


@relaxed
@given(worlds())
def test_customers_and_idle_close_to_the_recognised_cost(world):
    result = run(world)
    cost = recognised(world.books, PERIOD)
    foreign = result.unrated.filter((pl.col("side") == "cost") & pl.col("amount").is_not_null())
    on_pools = foreign.filter(pl.col("pool").is_not_null())
    assert (
        sum(to_quanta_of(result.lines["cost_pool"])) + sum(to_quanta_of(on_pools["amount"]))
        == cost["cost"].sum()
    )


def to_quanta_of(amounts: pl.Series) -> list[int]:
    return amounts.to_frame("amount").select(to_quanta(pl.col("amount")))["amount"].to_list()


@relaxed
@given(worlds(), st.lists(st.integers(1, QUARTERS - 1), unique=True, max_size=3))
def test_the_lines_of_a_period_are_the_lines_of_its_parts(world, cuts):
    edges = [PERIOD.start, *(START + QUARTER * cut for cut in sorted(cuts)), PERIOD.until]
    parts = [run(world, Period("part", start, until)) for start, until in pairwise(edges)]
    together = (
        pl.concat([part.lines for part in parts])
        .group_by(list(LINE_KEY), maintain_order=True)
        .agg(
            pl.exclude(*FLAGS, *NULL_WINS, "currency").sum(),
            *(
                pl.when(~pl.col(name).is_null().any()).then(pl.col(name).sum()).alias(name)
                for name in NULL_WINS
            ),
            pl.col(FLAGS).any(),
            pl.col("currency").first(),
        )
    )
    whole = run(world)
    assert MARGIN_LINES.conform(together).equals(whole.lines)
    joined = capacity_together([part.capacity for part in parts])
    assert all(
        getattr(joined, of.name).equals(getattr(whole.capacity, of.name)) for of in fields(whole.capacity)
    )


@relaxed
@given(worlds(), st.randoms(use_true_random=False))
def test_order_and_splitting_of_rows_change_nothing(world, random):
    sums = [name for name, dtype in world.usage.schema.items() if dtype == pl.Int128]
    torn = []
    for frame in (world.usage, world.pool_usage):
        some = [random.randrange(1, 5) for _ in range(frame.height)]
        part = pl.Series("part", some, dtype=pl.Int128)
        a = frame.with_columns(pl.col(name) // part for name in sums)
        b = frame.with_columns(pl.col(name) - pl.col(name) // part for name in sums)
        both = pl.concat([a, b])
        order = list(range(both.height))
        random.shuffle(order)
        torn.append(both[order] if order else both)
    mixed = Books(
        1,
        **{
            field.name: getattr(world.books, field.name).reverse()
            for field in fields(world.books)
            if field.name != "catalog_revision"
        },
    )
    again = run(World(torn[0], torn[1], mixed, world.pool_customer_usage))
    whole = run(world)
    assert again.lines.equals(whole.lines)
    assert again.unrated.equals(whole.unrated)
    assert again.capacity.utilization.equals(whole.capacity.utilization)
    assert again.capacity.unburned.equals(whole.capacity.unburned)
    assert summarise_capacity(again.capacity.utilization).equals(
        summarise_capacity(whole.capacity.utilization)
    )


@relaxed
@given(worlds(), st.lists(st.sampled_from(tuple(LINE_KEY)), unique=True, max_size=4))
def test_every_breakdown_sums_to_the_company(world, by):
    result = run(world)
    company = summarise(result.lines, [], world.books)
    parts = summarise(result.lines, by, world.books)
    sums = [
        name
        for name, dtype in company.schema.items()
        if dtype == pl.Int128 or name in {*AMOUNTS, "margin", "margin_loaded"} - {*NULL_WINS}
    ]
    assert parts.select(pl.col(sums).sum()).rows() == company.select(pl.col(sums).sum()).rows()


@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
@given(worlds(), st.sampled_from(["a", "b", "z"]))
def test_the_lines_of_one_customer_are_its_lines_among_all(world, customer):
    whole = run(world)
    alone = margin(world.usage, world.pool_usage, world.books, PERIOD, "USD", customer=customer)
    own = pl.col("customer") == customer
    assert alone.lines.filter(own).equals(whole.lines.filter(own))
    assert alone.lines.filter(~own).is_empty()
    assert alone.unrated.filter(own).equals(whole.unrated.filter(own))


@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
@given(worlds(), st.lists(st.sampled_from(tuple(LINE_KEY)), unique=True, max_size=4))
def test_what_is_read_and_summed_by_and_by_is_what_all_at_once_is(world, by):
    spans = []

    def read(span: Period) -> Identified:
        spans.append(span)
        inside = pl.col("quarter_start").is_between(span.start, span.until, closed="left")
        return known_usage(world.usage.filter(inside))

    whole = run(world)
    given = (read, world.pool_usage, world.books, PERIOD, "USD")
    lines = margin(*given, terms_usage=USAGE.empty()).lines
    assert lines.equals(whole.lines)
    assert len(spans) > 1
    some = margin(*given, terms_usage=USAGE.empty(), by=by)
    assert some.lines.equals(told_by(whole.lines, by))
    assert some.unrated.equals(whole.unrated)
    assert some.rates.equals(whole.rates)
    assert summarise(some.lines, by, world.books).equals(summarise(whole.lines, by, world.books))


@relaxed
@given(worlds(), st.sampled_from([1, 10**9]))
def test_sums_of_a_row_are_the_sums_of_its_lines(world, part):
    """Wide, in 64 bits and in 128, as meter by meter; and the same gaps."""
    key = ["quarter_start", *DIMENSIONS]
    rows = world.usage.group_by(key).agg((pl.col(*SUMS).sum() // part).cast(SUM)).sort(key)
    rows = rows.with_row_index("series_id")
    for wide, long in (
        (charged_sums, charges),
        (on_demand_cost_sums, on_demand_costs),
        (on_demand_price_sums, on_demand_prices),
    ):
        sums, gaps = wide(rows, world.books)
        rated, unrated = long(rows, world.books)
        by = ["quarter_start", "series_id", "currency"]
        wanted = rated.group_by(by).agg(to_quanta(pl.col("amount")).sum().alias("quanta")).sort(by)
        assert sums.select(*by, "quanta").sort(by).equals(wanted)
        same = ["series_id", "meter", "quantity", "reason"]
        assert gaps.select(same).sort(same).equals(unrated.select(same).sort(same))
