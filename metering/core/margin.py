"""Margin: what each customer paid less what it cost us, line by line; the lines add up to the company."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import polars as pl

from metering.core.capacity import Capacity, capacity
from metering.core.effective import edges, in_force, slices, with_slice
from metering.core.fees import fees_earned
from metering.core.flows import amounts, flow, gaps, pool_flows
from metering.core.rating import charges, on_demand_costs
from metering.core.series import identify
from metering.errors import BadInput
from metering.frames import DIMENSIONS, INSTANT, SUM, SUMS, USAGE, Books
from metering.meters import METERS
from metering.money import AMOUNT_MAX, EXACT_MAX, QUANTUM, from_quanta, ratio, refuse_beyond, to_quanta
from metering.periods import Period
from metering.results import LINE_KEY, MARGIN_BY, MARGIN_LINES, UNRATED, margin_frame

#: Kind and segment of a customer that the catalog does not know.
UNKNOWN: Final = "unknown"
#: Usage rows that are worked on at once; a period with more is worked through in runs of days.
ROWS_AT_ONCE: Final = 250_000

_KNOWN_AMOUNTS: Final = ("charge", "fee", "cost_pool", "cost_on_demand")
_MONEY_COLUMNS: Final = (*_KNOWN_AMOUNTS, "revenue", "cost")
_SPAN: Final = ("effective_from", "effective_until")
#: A row by some of these with `customer` is all of a customer, so that its contract's floor applies.
_WHOLE_CUSTOMERS: Final = frozenset({"customer", "kind", "segment", "day"})
_COUNTS: Final = ("requests", "billable_requests", *METERS)
_FLOW_KEY: Final = ("slice_start", "line", "series_id", "customer", "pool")


@dataclass(frozen=True)
class Margin:
    """lines: results.MARGIN_LINES. unrated: results.UNRATED. capacity: of the same period and usage."""

    period: Period
    currency: str
    lines: pl.DataFrame
    unrated: pl.DataFrame
    capacity: Capacity


def margin(
    usage: pl.DataFrame, pool_usage: pl.DataFrame, books: Books, period: Period, reporting_currency: str
) -> Margin:
    """Charges, fees and cost of a period as the finest margin lines, and what could not be rated.

    usage: frames.USAGE; pool_usage: frames.POOL_USAGE, both of at least the period: other rows are ignored,
    rows of one key may be split. period: an open one already cut at `complete_until`. Basis: usage. Customers
    carry their share of what their pools served, by burn, and their own on-demand and overflow cost; idle is
    a line of its own, so that usage lines + idle lines = recognised cost of the pools, exactly.
    Amounts in another currency than `reporting_currency` are unrated, reason no_exchange_rate.
    The lines of a period are the lines of its parts: margin(month) = the sum of margin(day), exactly.
    """
    usage = _within(usage.select(*USAGE.columns), period)
    _refuse_beyond_exact(usage)
    used = capacity(pool_usage, books, period)
    changes = edges([books.customers, books.contracts, books.price_books, books.cost_books])
    parts = [
        _part(usage, used.utilization, books, span, changes, reporting_currency)
        for span in _spans(usage, period)
    ]
    lines = pl.concat([MARGIN_LINES.empty(), *(part_lines for part_lines, _ in parts)])
    unrated = pl.concat([UNRATED.empty(), *(part_unrated for _, part_unrated in parts), _unrated_spill(used)])
    return Margin(period, reporting_currency, MARGIN_LINES.conform(lines), UNRATED.conform(unrated), used)


def _within(usage: pl.DataFrame, period: Period) -> pl.DataFrame:
    return usage.filter(pl.col("quarter_start").is_between(period.start, period.until, closed="left"))


def _spans(usage: pl.DataFrame, period: Period) -> list[Period]:
    """The period in runs of whole UTC days of about ROWS_AT_ONCE rows: parts add up, and need less memory."""
    days = slices(period)
    counts = with_slice(usage.select("quarter_start"), days, at="quarter_start").group_by("slice_start").len()
    rows = 0
    cuts: list[datetime] = []
    for start, _, count in days.join(counts, on="slice_start", how="left").sort("slice_start").iter_rows():
        if not cuts or rows + (count or 0) > ROWS_AT_ONCE:
            cuts.append(start)
            rows = 0
        rows += count or 0
    return [
        Period(period.name, start, until)
        for start, until in zip(cuts, [*cuts[1:], period.until], strict=bool(cuts))
    ]


def _part(
    usage: pl.DataFrame,
    utilization: pl.DataFrame,
    books: Books,
    period: Period,
    changes: list[datetime],
    reporting_currency: str,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    cut = slices(period, changes)
    known = identify(with_slice(_within(usage, period), cut, at="quarter_start"), list(DIMENSIONS))
    sliced = (
        known.rows.group_by("slice_start", "series_id")
        .agg(pl.col(*SUMS).sum())
        .join(known.series, on="series_id", validate="m:1")
        .rename({"slice_start": "quarter_start"})
    )
    charged, uncharged = charges(sliced, books)
    bought, uncosted = on_demand_costs(sliced, books)
    fees = fees_earned(books.fees, cut).with_columns(to_quanta(pl.col("amount")).alias("quanta"))
    utilization = utilization.filter(pl.col("minute").is_between(period.start, period.until, closed="left"))
    flows = pl.concat(
        [
            amounts(charged, "charge"),
            amounts(bought, "cost_on_demand"),
            gaps(uncharged, "charge"),
            gaps(uncosted, "cost"),
            *pool_flows(known, utilization, books, period, cut),
            flow(fees, line="fee", side="fee", into="fee"),
        ]
    ).with_columns(
        pl.when((pl.col("currency") != reporting_currency) & (pl.col("quanta") != 0))
        .then(pl.lit("no_exchange_rate"))
        .otherwise(pl.col("reason"))
        .alias("reason")
    )
    flows = _standing(flows, known.series)
    lines = _lines(sliced, flows, known.series, books).with_columns(
        pl.lit(reporting_currency).alias("currency")
    )
    unrated = _unrated(flows.filter(pl.col("reason").is_not_null()), known.series)
    return lines.select(*MARGIN_LINES.columns), unrated


def _refuse_beyond_exact(usage: pl.DataFrame) -> None:
    totals = usage.select(pl.col(*SUMS).abs().cast(pl.Float64).sum())
    for name in SUMS:
        if totals[name].item() > 0.99 * EXACT_MAX:
            worst = usage.sort(pl.col(name).abs()).row(-1, named=True)
            raise BadInput(
                f"{name} is beyond what can be summed exactly, most of it in {worst}; void those events"
            )


def _standing(flows: pl.DataFrame, series: pl.DataFrame) -> pl.DataFrame:
    """The flows in which a gap that was taken back is none: a charge without a price, and the void of it.

    The void is of another series, which differs in counts_for alone; nothing stays open, nothing is flagged.
    """
    open_ = pl.col("reason").is_not_null()
    gaps = flows.filter(open_)
    if gaps.is_empty():
        return flows
    sold = [name for name in DIMENSIONS if name != "counts_for"]
    told = identify(series.select("series_id", *sold).rename({"series_id": "of_series"}), sold)
    ids = told.rows.select(pl.col("of_series").alias("series_id"), pl.col("series_id").alias("sold_id"))
    key = ["slice_start", "line", "sold_id", "customer", "pool", "side", "meter", "reason", "currency"]
    taken_back = pl.coalesce("quantity", "quanta").sum().over(key) == 0
    gaps = gaps.join(ids, on="series_id", how="left", validate="m:1").with_columns(
        pl.when(~taken_back).then(pl.col("reason")).alias("reason"),
        pl.when(~taken_back).then(pl.col("quanta")).alias("quanta"),
    )
    return pl.concat([flows.filter(~open_), gaps.drop("sold_id")])


def _lines(sliced: pl.DataFrame, flows: pl.DataFrame, series: pl.DataFrame, books: Books) -> pl.DataFrame:
    served = pl.col("counts_for").is_in(["charge_and_cost", "cost"])
    billable = pl.col("counts_for").is_in(["charge_and_cost", "charge"])
    zero = pl.lit(0, dtype=SUM)
    counts = sliced.select(
        pl.col("quarter_start").alias("slice_start"),
        pl.lit("usage").alias("line"),
        "series_id",
        pl.when(billable).then(pl.col("requests")).otherwise(zero).alias("billable_requests"),
        *(pl.when(served).then(pl.col(name)).otherwise(zero).alias(name) for name in ("requests", *METERS)),
    )
    known = pl.col("reason").is_null()
    amounts = flows.group_by(_FLOW_KEY).agg(
        *(
            pl.col("quanta").filter(known & (pl.col("into") == into)).sum().alias(into)
            for into in _KNOWN_AMOUNTS
        ),
        (~known & pl.col("side").is_in(["charge", "fee"])).any().alias("charge_unrated"),
        (~known & (pl.col("side") == "cost")).any().alias("cost_unrated"),
    )
    names = [name for name in LINE_KEY if name in DIMENSIONS]
    told = identify(series.select("series_id", *names).rename({"series_id": "of_series"}), names)
    ids = told.rows.select(pl.col("of_series").alias("series_id"), pl.col("series_id").alias("line_id"))
    # Counts, amounts of usage, and amounts of fee and idle meet in one sum, over numbers rather than text.
    key = ["slice_start", "line", "line_id", "customer", "pool"]
    rows = (
        pl.concat([counts, amounts], how="diagonal")
        .join(ids, on="series_id", how="left", validate="m:1")
        .group_by(key)
        .agg(pl.col(*_COUNTS, *_KNOWN_AMOUNTS).sum(), pl.col("charge_unrated", "cost_unrated").any())
        .join(told.series.rename({"series_id": "line_id"}), on="line_id", how="left", suffix="_of_series")
    )
    rows = rows.with_columns(
        pl.coalesce("customer", "customer_of_series").alias("customer"),
        pl.coalesce("pool", "pool_of_series").alias("pool"),
        pl.col("slice_start").dt.date().alias("day"),
    )
    who = in_force(
        rows.select("slice_start", "customer").unique().filter(pl.col("customer").is_not_null()),
        books.customers.drop("name"),
        at="slice_start",
        by=["customer"],
    ).with_columns(pl.col("kind", "segment").fill_null(UNKNOWN))
    quanta = rows.join(who, on=["slice_start", "customer"], how="left", validate="m:1")
    if rows["slice_start"].n_unique() > rows["day"].n_unique():
        quanta = quanta.group_by(list(LINE_KEY)).agg(
            pl.col(*_COUNTS, *_KNOWN_AMOUNTS).sum(), pl.col("charge_unrated", "cost_unrated").any()
        )
    return _totals(quanta)


def _totals(quanta: pl.DataFrame) -> pl.DataFrame:
    """Known amounts in quanta -> MONEY, with revenue and cost."""
    quanta = quanta.with_columns(
        (pl.col("charge") + pl.col("fee")).alias("revenue"),
        (pl.col("cost_pool") + pl.col("cost_on_demand")).alias("cost"),
    )
    for name in _MONEY_COLUMNS:
        refuse_beyond(
            quanta, name, _QUANTA_MAX, "no report can carry it; void the events or correct the price"
        )
    return quanta.with_columns(from_quanta(pl.col(name)).alias(name) for name in _MONEY_COLUMNS)


_QUANTA_MAX: Final = int(AMOUNT_MAX / QUANTUM) - 1


def _unrated(gaps: pl.DataFrame, series: pl.DataFrame) -> pl.DataFrame:
    rows = gaps.join(series, on="series_id", how="left", validate="m:1", suffix="_of_series").with_columns(
        pl.coalesce("customer", "customer_of_series").alias("customer"),
        pl.coalesce("pool", "pool_of_series").alias("pool"),
        pl.col("slice_start").dt.date().alias("day"),
    )
    summed = (
        rows.group_by(UNRATED.key)
        .agg(
            *(
                pl.when(pl.col(name).is_not_null().any()).then(pl.col(name).sum()).alias(name)
                for name in ("quantity", "quanta")
            )
        )
        .filter(pl.coalesce("quantity", "quanta") != 0)
    )
    refuse_beyond(
        summed, "quanta", _QUANTA_MAX, "no report can carry it; void the events or correct the price"
    )
    amount = from_quanta(pl.col("quanta")).alias("amount")
    return summed.with_columns(amount).select(*UNRATED.columns)


def _unrated_spill(used: Capacity) -> pl.DataFrame:
    """Overflow that no weight applies to: its cost is known, its spill is not."""
    rows = used.unburned.filter(pl.col("ran_on") == "overflow").with_columns(
        pl.col("minute").dt.date().alias("day"), pl.lit("capacity").alias("side")
    )
    absent = [name for name in UNRATED.columns if name not in (*rows.columns, "quantity")]
    return (
        rows.with_columns(pl.lit(None, dtype=UNRATED.columns[name]).alias(name) for name in absent)
        .group_by(UNRATED.key)
        .agg(pl.col("quantity").sum(), pl.col("amount").first())
        .filter(pl.col("quantity") != 0)
        .select(*UNRATED.columns)
    )


def summarise(
    lines: pl.DataFrame, by: Sequence[str], books: Books, until: datetime | None = None
) -> pl.DataFrame:
    """Margin lines summed by some of results.MARGIN_BY ([]: one row, the company): results.margin_frame(by).

    Rows of any `by` sum to the company's row exactly. By customer, a row says who the customer is (name,
    kind, segment: as of the row's last day; of the line, where `by` asks for them), the margin floor of the
    contract in force then, and breach = margin < floor x revenue, or revenue <= 0 with cost > 0, of paying
    customers with a floor; null where `by` cuts customers into parts (products, models, pools): the floor is
    agreed for the whole. No lines, no rows. An unknown or repeated `by` raises BadInput. `until`: the end of the
    period, already cut, if it lies within the last day: what begins later that day is not in force yet.
    """
    for name in by:
        if name not in MARGIN_BY:
            raise BadInput(f"--by {name}: margin has no such column; choose of {', '.join(MARGIN_BY)}")
    if len(set(by)) != len(by):
        raise BadInput(f"--by {','.join(by)}: a column is named twice; name each once")
    total = lines.with_columns(to_quanta(pl.col(name)).alias(name) for name in _KNOWN_AMOUNTS)
    groups = (
        total.with_columns(pl.lit(0).alias("_company"))
        .group_by("_company", *by)
        .agg(
            pl.col(*_COUNTS, *_KNOWN_AMOUNTS).sum(),
            pl.col("charge_unrated", "cost_unrated").any(),
            pl.col("currency").first(),
            pl.col("day").max().alias("_last_day"),
        )
    )
    margins = (
        _totals(groups)
        .with_columns((pl.col("revenue") - pl.col("cost")).alias("margin"))
        .with_columns(
            ratio(to_quanta(pl.col("margin")), to_quanta(pl.col("revenue"))).alias("margin_ratio"),
        )
    )
    if "customer" in by:
        margins = _judged(_described(margins, by, books, until), by)
    return margin_frame(by).conform(margins)


def _described(
    margins: pl.DataFrame, by: Sequence[str], books: Books, until: datetime | None
) -> pl.DataFrame:
    """Add name, kind and segment of the customer, and the floor of its contract, as of the row's last day."""
    floors = books.contracts.select("customer", *_SPAN, pl.col("margin_floor_ratio").alias("floor_ratio"))
    said = _as_of_last_day(margins, books.customers, until)
    said = _as_of_last_day(said, floors, until)
    customer = pl.col("customer").is_not_null()
    return said.with_columns(
        pl.when(customer).then(pl.col(name).fill_null(UNKNOWN)).otherwise(pl.col(name)).alias(name)
        for name in ("kind", "segment")
        if name not in by
    )


def _as_of_last_day(rows: pl.DataFrame, dated: pl.DataFrame, until: datetime | None) -> pl.DataFrame:
    """What is in force at the end of the row's last day, or at `until`; what ended that day still counts."""
    dated = dated.select(name for name in dated.columns if name == "customer" or name not in rows.columns)
    day_end = (pl.col("effective_until") - pl.duration(microseconds=1)).dt.truncate("1d") + pl.duration(
        days=1
    )
    day_after = (pl.col("_last_day").cast(pl.Datetime("us")) + pl.duration(days=1)).dt.replace_time_zone(
        "UTC"
    )
    at = pl.min_horizontal(day_after, pl.lit(until, dtype=INSTANT)) - pl.duration(microseconds=1)
    found = in_force(
        rows.with_columns(at.alias("_at")),
        dated.with_columns(day_end.alias("effective_until")),
        at="_at",
        by=["customer"],
    )
    return found.drop("_at")


def _judged(margins: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Add breach, compared in integers: margin x 10**12 < floor in 10**-12 x revenue, all in quanta."""
    if not set(by) <= _WHOLE_CUSTOMERS:
        return margins.with_columns(pl.lit(None, dtype=pl.Boolean).alias("breach"))
    quanta = margins.select(
        "customer",
        "floor_ratio",
        pl.col("kind") == "paying",
        *(to_quanta(pl.col(name)).alias(name) for name in ("margin", "revenue", "cost")),
    )
    refuse_beyond(quanta, "margin", _QUANTA_MAX, "no floor can be applied to it exactly")
    refuse_beyond(quanta, "floor_ratio", 1, "a margin floor is a ratio of at most 1; correct the contract")
    margin, revenue, cost = pl.col("margin"), pl.col("revenue"), pl.col("cost")
    short = margin * pl.lit(10**12, dtype=SUM) < to_quanta(pl.col("floor_ratio")) * revenue
    breach = pl.col("kind") & pl.col("floor_ratio").is_not_null() & (short | ((revenue <= 0) & (cost > 0)))
    return margins.with_columns(quanta.select(breach.fill_null(value=False).alias("breach"))["breach"])
