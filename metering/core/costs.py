"""Costs: where every unit of a supplier's fees and of on-demand usage went, in the currency it is billed in."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, TypeVar

import numpy as np
import polars as pl

from metering.core.allocation import by_part
from metering.core.capacity import Capacity, capacity
from metering.core.cause import cause_shift
from metering.core.effective import edges, in_force, slices, with_slice
from metering.core.entitlement import burned_by_customer, entitled
from metering.core.flows import (
    COST_AMOUNTS,
    FLOW,
    UNPRICED,
    amounts,
    flow,
    gaps,
    in_pool,
    pool_flows,
    price_flows,
)
from metering.core.idle import carried_by_burn, carried_by_entitlement
from metering.core.rating import on_demand_cost_sums
from metering.core.recognition import recognised
from metering.core.series import known_usage, numbered, where
from metering.core.sums import largest, sums_at
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM
from metering.frames.usage import DIMENSIONS, POOL_CUSTOMER_USAGE, SUMS, USAGE, Identified
from metering.money import AMOUNT_MAX, EXACT_MAX, QUANTUM, from_quanta, refuse_beyond
from metering.periods import DAY, QUARTER, Period, floor_to_quarter, month_start, next_month_start
from metering.results.costs import COSTS

#: Kind and segment of a customer that the catalog does not know.
UNKNOWN: Final = "unknown"
#: Usage rows that are worked on at once; what has more is worked through in runs of days.
ROWS_AT_ONCE: Final = 500_000
#: As many rows of usage in runs of pools, where every minute of every customer is looked at.
POOL_ROWS_AT_ONCE: Final = 250_000
#: Runs of days that are worked on side by side, where there are cores for them.
RUNS_AT_ONCE: Final = 4
#: The largest amount of a line, in quanta.
QUANTA_MAX: Final = int(AMOUNT_MAX / QUANTUM) - 1
_DAY: Final = DAY // timedelta(microseconds=1)
_SERIES_KEY: Final = ("product", "tier_sold", "provider", "model_served", "ran_on")


@dataclass(frozen=True)
class Supply:
    """What is computed over whole pools before their usage is worked through.

    capacity, recognised (results.RECOGNISED) and pool_cost (results.POOL_COST) are of the period. `cut`: its
    slices. `carried`: idle that series carry, by slice_start and currency. `moved`: flows that name no series.
    """

    period: Period
    cut: pl.DataFrame
    capacity: Capacity
    recognised: pl.DataFrame
    pool_cost: pl.DataFrame
    carried: Identified
    moved: pl.DataFrame


@dataclass(frozen=True)
class Part:
    """A run of days: its slices, usage by series (`known`), usage summed by slice, and the flows of cost.

    burned: usage by the same series that shares pools with it; more than `known` where one customer is looked at.
    """

    cut: pl.DataFrame
    known: Identified
    burned: Identified
    sliced: pl.DataFrame
    flows: pl.DataFrame


@dataclass(frozen=True)
class Costs:
    """lines: results.COSTS; supply: what they were made of."""

    lines: pl.DataFrame
    supply: Supply


def costs(
    usage: pl.DataFrame | Identified,
    pool_usage: pl.DataFrame,
    books: Books,
    period: Period,
    *,
    pool_customer_usage: pl.DataFrame | None = None,
    complete_until: datetime | None = None,
) -> Costs:
    """Where the cost of a period went: results.COSTS. The arguments are those of `supply`.

    Pools: the sum of cost_pool over all lines of a currency is the recognised cost. On demand: what is rated.
    What has no cost, or no price, is not here: margin's unrated says so. Lines of two periods that do not
    overlap add up, if both were given the same complete_until.
    """
    known = known_usage(usage)
    made = supply(
        known,
        pool_usage,
        books,
        period,
        pool_customer_usage=pool_customer_usage,
        complete_until=complete_until,
    )
    lines = [COSTS.empty(), *by_parts(known, made, books, lambda part: cost_lines(part, books))]
    return Costs(COSTS.conform(pl.concat(lines)), made)


def pools_by_burn(books: Books) -> list[str]:
    """Pools whose idle goes by burn: their cost needs the usage of whole months."""
    return sorted(books.pools.filter(pl.col("idle_policy") == "burn")["pool"])


def usage_basis(books: Books) -> Books:
    """The books without what moves cost between customers, for who needs the usage basis alone, and sooner."""
    return replace(
        books,
        pools=books.pools.with_columns(pl.lit("none").alias("idle_policy")),
        entitlements=books.entitlements.clear(),
    )


def pools_by_customer(books: Books) -> list[str]:
    """Pools whose cost needs usage per minute and customer: those in which somebody is entitled to units."""
    return sorted(books.entitlements["pool"].unique())


def reach(books: Books, period: Period, complete_until: datetime | None) -> Period:
    """The time whose usage the cost of a period needs: its whole months so far where a pool's idle goes by burn."""
    if not pools_by_burn(books) or period.until <= period.start:
        return period
    last = next_month_start((period.until - QUARTER).date())
    known = max(period.until, floor_to_quarter(complete_until or period.until))
    return Period(period.name, month_start(period.start.date()), min(last, known))


def supply(
    usage: pl.DataFrame | Identified,
    pool_usage: pl.DataFrame,
    books: Books,
    period: Period,
    *,
    pool_customer_usage: pl.DataFrame | None = None,
    complete_until: datetime | None = None,
) -> Supply:
    """Recognise, allocate and carry the cost of pools.

    usage: frames.USAGE, or that by series, and pool_usage: frames.POOL_USAGE of at least `reach`; pool_customer_usage:
    frames.POOL_CUSTOMER_USAGE of at least the period and `pools_by_customer`. Other rows are ignored, rows of
    one key may be split. period: an open one already cut. complete_until: the end of complete input, which
    may lie after the period; idle by burn is that of whole months up to it.
    """
    used = capacity(pool_usage, books, period)
    cost = recognised(books, period)
    pool_cost = by_part(cost, used.utilization)
    dated = [books.customers, books.contracts, books.contract_terms, books.price_books, books.cost_books]
    changes = edges([*dated, *_charged_on_cost(books)])
    cut = slices(period, changes)
    carried, moved = _by_burn(
        known_usage(usage), pool_usage, books, period, reach(books, period, complete_until), cut
    )
    by_customer = POOL_CUSTOMER_USAGE.empty() if pool_customer_usage is None else pool_customer_usage
    moved += _by_customer(by_customer, books, used.utilization, cost, pool_cost, cut)
    return Supply(period, cut, used, cost, pool_cost, carried, pl.concat([flow(_NONE), *moved]))


def _charged_on_cost(books: Books) -> list[pl.DataFrame]:
    """Dated frames that decide what is charged on cost, slice by slice."""
    ratios = books.percentages.filter(pl.col("of") == "cost")
    contracts = books.contracts.filter(pl.col("price_book").is_in(ratios["book"].implode()))["contract"]
    return [ratios, books.discounts.filter(pl.col("contract").is_in(contracts.implode()))]


_CARRIED: Final[Mapping[str, pl.DataType | type[pl.DataType]]] = {
    "slice_start": INSTANT,
    "series_id": pl.UInt32,
    "currency": pl.String,
    "quanta": SUM,
    "estimated": pl.Boolean,
}
_NONE: Final = pl.DataFrame(schema=dict(FLOW))


def _of_pools(books: Books, pools: list[str]) -> Books:
    """The books with the capacity of these pools alone."""
    here = pl.col("pool").is_in(pools)
    return replace(
        books,
        pools=books.pools.filter(here),
        capacity_steps=books.capacity_steps.filter(here),
        capacity_fees=books.capacity_fees.filter(here),
        burndown=books.burndown.filter(here),
        multipliers=books.multipliers.filter(here),
        set_aside=books.set_aside.filter(here),
        entitlements=books.entitlements.filter(here),
        bill_lines=books.bill_lines.filter(pl.col("object").is_in(pools)),
    )


def _by_burn(
    known: Identified,
    pool_usage: pl.DataFrame,
    books: Books,
    period: Period,
    months: Period,
    cut: pl.DataFrame,
) -> tuple[Identified, list[pl.DataFrame]]:
    pools = pools_by_burn(books)
    here = pl.col("pool").is_in(pools)
    within = pl.col("quarter_start").is_between(months.start, months.until, closed="left")
    series = known.series.filter(here & in_pool(pl.col("ran_on"), pl.col("counts_for")))
    if not pools:
        return Identified(series, pl.DataFrame(schema=_CARRIED)), []
    mine = pl.col("series_id").is_in(series["series_id"].implode())
    known = Identified(series, known.rows.filter(within & mine))
    own = _of_pools(books, pools)
    used = capacity(pool_usage.filter(here), own, months).utilization
    parts = carried_by_burn(known, by_part(recognised(own, months), used), used, own)
    inside = pl.col("quarter_start").is_between(period.start, period.until, closed="left")
    parts = with_slice(parts.filter(inside), cut, at="quarter_start")
    sums = [pl.col("quanta").sum(), pl.col("estimated").any()]
    carried = parts.group_by("slice_start", "series_id", "currency").agg(sums)
    left = parts.group_by("slice_start", "pool", "currency").agg(
        (pl.lit(0, dtype=SUM) - pl.col("quanta").sum()).alias("quanta")
    )
    return Identified(known.series, carried.select(*_CARRIED)), [
        flow(left, line="idle", side="cost", into="idle_share")
    ]


def _by_customer(
    usage: pl.DataFrame,
    books: Books,
    utilization: pl.DataFrame,
    cost: pl.DataFrame,
    pool_cost: pl.DataFrame,
    cut: pl.DataFrame,
) -> list[pl.DataFrame]:
    """Flows of idle carried by entitlement and of the spill's cause. No pool's depend on another's."""
    found = []
    for pools in _runs(pools_by_customer(books), usage):
        here = pl.col("pool").is_in(pools)
        of_run = (where(frame, here) for frame in (usage, utilization, cost, pool_cost))
        found += _moved_within(_of_pools(books, pools), cut, *of_run)
    return found


def _runs(pools: list[str], usage: pl.DataFrame) -> Iterator[list[str]]:
    """The pools in runs of about POOL_ROWS_AT_ONCE rows of usage: to work through all at once takes more memory."""
    counts = dict(usage.group_by("pool").len().iter_rows())
    run: list[str] = []
    rows = 0
    for pool in pools:
        if run and rows + counts.get(pool, 0) > POOL_ROWS_AT_ONCE:
            yield run
            run, rows = [], 0
        run.append(pool)
        rows += counts.get(pool, 0)
    if run:
        yield run


def _moved_within(
    books: Books,
    cut: pl.DataFrame,
    usage: pl.DataFrame,
    utilization: pl.DataFrame,
    cost: pl.DataFrame,
    pool_cost: pl.DataFrame,
) -> list[pl.DataFrame]:
    """As `_by_customer`, of all pools of the books at once."""
    promised = entitled(books, utilization)
    burned = burned_by_customer(usage, books, utilization)
    shifted = cause_shift(usage, promised, burned, cost, utilization, books)
    by_entitlement = books.pools.filter(pl.col("idle_policy") == "entitlement")["pool"]
    carry = pl.col("pool").is_in(by_entitlement.implode())
    carried = carried_by_entitlement(
        *(where(frame, carry) for frame in (promised, burned, pool_cost, utilization))
    )
    by = ["slice_start", "customer", "pool", "currency"]
    carried = with_slice(carried, cut, at="quarter_start")
    shifted = with_slice(shifted, cut, at="minute").group_by(by).agg(pl.col("quanta").sum())
    left = carried.group_by("slice_start", "pool", "currency").agg(
        (pl.lit(0, dtype=SUM) - pl.col("quanta").sum()).alias("quanta")
    )
    held = carried.group_by(by).agg(pl.col("quanta").sum(), pl.col("estimated").any())
    return [
        flow(held, line="idle", side="cost", into="idle_share"),
        flow(left, line="idle", side="cost", into="idle_share"),
        flow(shifted, line="usage", side="cost", into="cause_shift"),
    ]


_T = TypeVar("_T")


def by_parts(
    usage: pl.DataFrame | Identified,
    made: Supply,
    books: Books,
    done: Callable[[Part], _T],
    *,
    customer: str | None = None,
) -> list[_T]:
    """What `done` makes of each part of the period, in the order of time.

    A part is a run of whole UTC days of about ROWS_AT_ONCE rows: parts add up, need less memory, and do not wait
    for each other. customer: parts are of this one alone, its share of pools being what it is among all.
    """
    known = known_usage(usage)
    known = Identified(known.series, _within(known.rows, made.period))
    _refuse_beyond_exact(known)
    spans = _spans(known.rows, made.period)
    at_once = min(RUNS_AT_ONCE, pl.thread_pool_size(), len(spans))
    if at_once < 2:
        return [done(_part(_of(known, span), made, books, span, customer)) for span in spans]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda span: done(_part(_of(known, span), made, books, span, customer)), spans))


def _of(known: Identified, span: Period) -> Identified:
    """The rows of a span, and their series."""
    inside = pl.col("quarter_start").is_between(span.start, span.until, closed="left")
    rows = known.rows.filter(inside)
    met = np.zeros(known.series.height, np.bool_)
    met[rows["series_id"].to_numpy()] = True
    return Identified(where(known.series, pl.Series(met)), rows)


def _within(rows: pl.DataFrame, period: Period) -> pl.DataFrame:
    return where(rows, pl.col("quarter_start").is_between(period.start, period.until, closed="left"))


def _spans(usage: pl.DataFrame, period: Period) -> list[Period]:
    days = slices(period)["slice_start"]
    if days.is_empty():
        return []
    numbers = usage["quarter_start"].to_physical().to_numpy() // _DAY
    counts = np.bincount(numbers - int(days.to_physical()[0]) // _DAY, minlength=len(days))
    rows = 0
    cuts: list[datetime] = []
    for start, count in zip(days, counts.tolist(), strict=True):
        if not cuts or rows + count > ROWS_AT_ONCE:
            cuts.append(start)
            rows = 0
        rows += count
    return [
        Period(period.name, start, until)
        for start, until in zip(cuts, [*cuts[1:], period.until], strict=True)
    ]


def _refuse_beyond_exact(known: Identified) -> None:
    rows = known.rows
    for name in SUMS:
        if largest(rows[name]) * rows.height <= 0.99 * EXACT_MAX:
            continue
        size = pl.col(name).cast(SUM).abs()
        if rows.select(size.cast(pl.Float64).sum()).item() > 0.99 * EXACT_MAX:
            last = Identified(known.series, rows.sort(size).tail(1))
            worst = last.told(USAGE).row(0, named=True)
            raise BadInput(
                f"{name} is beyond what can be summed exactly, most of it in {worst}; void those events"
            )


def _part(known: Identified, made: Supply, books: Books, span: Period, customer: str | None) -> Part:
    def inside(name: str) -> pl.Expr:
        return pl.col(name).is_between(span.start, span.until, closed="left")

    cut = made.cut.filter(inside("slice_start"))
    burned = Identified(known.series, with_slice(known.rows, cut, at="quarter_start"))
    known = burned if customer is None else _of_customer(burned, customer)
    sliced = (
        summed(known.rows)
        .join(known.series, on="series_id", validate="m:1")
        .rename({"slice_start": "quarter_start"})
    )
    bought, uncosted = on_demand_cost_sums(sliced, books)
    same = made.carried.series.rename({"series_id": "carried_id"}).join(
        known.series, on=list(DIMENSIONS), nulls_equal=True, validate="1:1"
    )
    carried = made.carried.rows.filter(inside("slice_start")).rename({"series_id": "carried_id"})
    carried = carried.join(same.select("carried_id", "series_id"), on="carried_id", validate="m:1")
    flows = [
        amounts(bought, "cost_on_demand"),
        amounts(bought, "on_demand_price"),
        gaps(uncosted, "cost"),
        *pool_flows(
            burned,
            made.capacity.utilization.filter(inside("minute")),
            made.pool_cost.filter(inside("quarter_start")),
            books,
            cut,
        ),
        *price_flows(sliced, books),
        flow(carried, line="usage", side="cost", into="idle_share"),
        made.moved.filter(inside("slice_start")),
    ]
    told = pl.concat(flows)
    if customer is not None:
        of_series = pl.col("series_id").is_in(known.series["series_id"].implode())
        told = told.filter(of_series | pl.col("series_id").is_null())
    return Part(cut, known, burned, sliced, told)


def _of_customer(known: Identified, customer: str) -> Identified:
    series = known.series.filter(pl.col("customer") == customer)
    return Identified(series, known.rows.filter(pl.col("series_id").is_in(series["series_id"].implode())))


def summed(rows: pl.DataFrame) -> pl.DataFrame:
    """Sums by slice and series."""
    starts = rows["slice_start"].unique().sort()
    at = starts.to_physical().search_sorted(rows["slice_start"].to_physical())
    width = int(rows["series_id"].max() or 0) + 1  # type: ignore[arg-type]  # integers
    codes = at.cast(pl.Int64) * width + rows["series_id"].cast(pl.Int64)
    different, number = numbered(codes)
    place = number.to_numpy()
    return pl.DataFrame(
        {
            "slice_start": starts.gather(different // width),
            "series_id": (different % width).cast(pl.UInt32),
            **{name: sums_at(place, rows[name], len(different)) for name in SUMS},
        }
    )


def cost_lines(part: Part, books: Books) -> pl.DataFrame:
    """The flows of cost of a part, summed to the columns of results.COSTS."""
    flows = part.flows.filter(pl.col("into").is_in([*COST_AMOUNTS, UNPRICED]))
    named = part.known.series.select("series_id", "customer", "pool", *_SERIES_KEY)
    rows = (
        flows.group_by("slice_start", "line", "series_id", "customer", "pool", "currency")
        .agg(
            *(pl.col("quanta").filter(pl.col("into") == into).sum().alias(into) for into in COST_AMOUNTS),
            (pl.col("into") == UNPRICED).any().alias("_unpriced"),
            pl.col("estimated").any(),
        )
        .join(named, on="series_id", how="left", validate="m:1", suffix="_of_series")
        .with_columns(
            pl.coalesce("customer", "customer_of_series").alias("customer"),
            pl.coalesce("pool", "pool_of_series").alias("pool"),
            pl.col("slice_start").dt.date().alias("day"),
        )
    )
    rows = said(rows, books).join(
        books.pools.select("pool", pl.col("supplier").alias("_supplier")),
        on="pool",
        how="left",
        validate="m:1",
    )
    on_demand = pl.col("ran_on").is_in(["overflow", "on_demand"])
    rows = rows.with_columns(
        pl.when(on_demand).then(pl.col("provider")).otherwise(pl.col("_supplier")).alias("supplier")
    )
    lines = rows.group_by(COSTS.key).agg(
        pl.col(COST_AMOUNTS).sum(), pl.col("_unpriced").any(), pl.col("estimated").any()
    )
    for name in COST_AMOUNTS:
        refuse_beyond(lines, name, QUANTA_MAX, "no report can carry it; void the events or correct the price")
    price = pl.when(~pl.col("_unpriced")).then(pl.col("on_demand_price"))
    lines = lines.with_columns(
        from_quanta(pl.col(name)).alias(name) for name in COST_AMOUNTS[:-1]
    ).with_columns(from_quanta(price).alias("on_demand_price"))
    return _estimated(lines, books).select(*COSTS.columns)


def said(rows: pl.DataFrame, books: Books) -> pl.DataFrame:
    """Give rows with slice_start and customer the customer's kind and segment then; `unknown` of one not known."""
    who = in_force(
        rows.select("slice_start", "customer").unique().filter(pl.col("customer").is_not_null()),
        books.customers.drop("name"),
        at="slice_start",
        by=["customer"],
    ).with_columns(pl.col("kind", "segment").fill_null(UNKNOWN))
    return rows.join(who, on=["slice_start", "customer"], how="left", validate="m:1")


def _estimated(lines: pl.DataFrame, books: Books) -> pl.DataFrame:
    """On-demand cost is an estimate until a bill of the supplier covers the day, for that model or for all."""
    billed = books.bill_lines.filter(
        (pl.col("object_kind") == "on_demand") & (pl.col("category") == "charge")
    )
    billed = billed.select(
        "supplier",
        "currency",
        "object",
        pl.col("service_from").alias("_from"),
        pl.col("service_until").alias("_until"),
    )
    bought = lines.filter(pl.col("ran_on").is_in(["overflow", "on_demand"])).select(
        "supplier", "currency", "model_served", "day"
    )
    start = pl.col("day").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    covered = (
        bought.unique()
        .join(billed, on=["supplier", "currency"])
        .filter(
            (pl.col("object").is_null() | (pl.col("object") == pl.col("model_served")))
            & (pl.col("_from") <= start)
            & (pl.col("_until") >= start + pl.duration(days=1))
        )
        .select("supplier", "currency", "model_served", "day")
        .unique()
        .with_columns(pl.lit(value=True).alias("_billed"))
    )
    on_demand = pl.col("ran_on").is_in(["overflow", "on_demand"]).fill_null(value=False)
    return lines.join(
        covered, on=["supplier", "currency", "model_served", "day"], how="left", validate="m:1"
    ).with_columns(
        pl.when(on_demand)
        .then(pl.col("_billed").is_null())
        .otherwise(pl.col("estimated").fill_null(value=False))
        .alias("estimated")
    )
