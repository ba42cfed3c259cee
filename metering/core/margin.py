"""Margin: what each customer paid less what it cost us, line by line; the lines add up to the company."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Final, NamedTuple

import polars as pl

from metering.core.agreed import cost_plus, earned_flows, plain
from metering.core.capacity import Capacity
from metering.core.costs import QUANTA_MAX, Part, Supply, by_parts, supply
from metering.core.exchange import rates
from metering.core.fees import fees_earned
from metering.core.flows import UNPRICED, amounts, flow, gaps
from metering.core.lines import KNOWN_AMOUNTS, MOVED, OF, TAKEN, lines_of
from metering.core.projects import project_shares
from metering.core.rating import charged_sums
from metering.core.revenue import Earned, earned, under_terms
from metering.core.series import identify, known_usage
from metering.core.summary import told_by
from metering.frames.books import Books
from metering.frames.frame import SUM, Frame
from metering.frames.usage import DIMENSIONS, USAGE, Identified
from metering.money import from_quanta, refuse_beyond, to_quanta
from metering.periods import DAY, Period
from metering.results.margin import MARGIN_LINES, PROJECT_LINES
from metering.results.rates import UNRATED

#: Rows of usage and fees that are in memory at once, where usage is read by and by.
ROWS_IN_MEMORY: Final = 4_000_000


@dataclass(frozen=True)
class Margin:
    """lines: results.MARGIN_LINES or PROJECT_LINES. unrated: results.UNRATED.

    supply: the pools of the same period and usage. earned: what contracts under terms earned, quarter hour by
    quarter hour. rates: of each currency that was translated the lowest and highest month_average used (10**-12
    per unit), and whether one was of a month before. parts: where it is of one customer, the runs of days that it was
    computed in, for who takes it apart.
    """

    period: Period
    currency: str
    lines: pl.DataFrame
    unrated: pl.DataFrame
    supply: Supply
    earned: Earned
    rates: pl.DataFrame
    parts: Sequence[Part] = ()

    @property
    def capacity(self) -> Capacity:
        """The capacity identity of every contracted minute."""
        return self.supply.capacity


def margin(
    usage: pl.DataFrame | Identified | Callable[[Period], Identified],
    pool_usage: pl.DataFrame,
    books: Books,
    period: Period,
    reporting_currency: str,
    *,
    pool_customer_usage: pl.DataFrame | None = None,
    terms_usage: pl.DataFrame | None = None,
    project_usage: pl.DataFrame | None = None,
    of_terms: Earned | None = None,
    complete_until: datetime | None = None,
    by: Collection[str] | None = None,
    customer: str | None = None,
) -> Margin:
    """Revenue and cost of a period as the finest margin lines, and what could not be rated.

    usage: frames.USAGE, or that by series, or what reads that of a span, so that never all of it is in memory (not
    where a pool's idle goes by burn; and terms_usage has to be given); pool_usage: frames.POOL_USAGE, both of at
    least the period (where a pool's idle goes by burn: of its whole months, core.costs.reach); pool_customer_usage:
    frames.POOL_CUSTOMER_USAGE of pools with entitlements; terms_usage: frames.USAGE of core.revenue.reach (None:
    `usage` holds it). Other
    rows are ignored, rows of one key may be split. period: an open one already cut at `complete_until`, which may
    lie after the period. revenue = gross - discounts + fees + top-ups + overage premium + shortfall + breakage - promotional
    credits; what contracts under terms earn is core.revenue's, all else quantity x unit price. `cost` is on the
    usage basis: customers carry their share of what their pools served, by burn, and their own on-demand and
    overflow cost; idle, undelivered and carved-out capacity are lines of their own, so that all lines together =
    recognised cost of the pools + rated on-demand cost, exactly. cost_loaded = cost + idle_share, cost_by_cause =
    cost + cause_shift: both only move cost between lines.
    Amounts in another currency than `reporting_currency` are summed to the line and translated once, half-even
    to a quantum, at the month_average in force on the line's day; without one they are unrated, reason
    no_exchange_rate. fx_effect = the line's margin so translated less its margin at the `contract` rates, null
    where there is none. on_demand_price is null where a part of the usage has no price, or no rate.
    The lines of a period are the lines of its parts: margin(month) = the sum of margin(day), exactly.
    of_terms: what `earned` makes of terms_usage in a time that holds the period, where that is known already.
    project_usage: frames.PROJECT_USAGE of at least the period; then the lines are results.PROJECT_LINES: what
    they say of usage is attributed to projects (core.projects) per series and UTC day, or per slice of a day in
    which books change, and the projects of a line sum to the line without them, exactly.
    by: what of results.MARGIN_BY (and project) the lines are asked for, None for all: what nothing asks for is
    summed up while it is computed (core.summary.told_by), so that memory does not grow with the days.
    customer: what is used and paid by this one alone, beside what is nobody's; what it cost in pools is its share
    among all. (Others under terms are left out of the books.)
    """
    whole = known_usage(USAGE.empty() if callable(usage) else usage)
    made = supply(
        whole,
        pool_usage,
        books,
        period,
        pool_customer_usage=pool_customer_usage,
        complete_until=complete_until,
    )
    by_terms = of_terms
    if by_terms is None:
        assert terms_usage is not None or not callable(usage), (
            "usage that is read by and by is never all there"
        )
        used = _under_terms(whole, books) if terms_usage is None else terms_usage
        known_until = period.until if complete_until is None else complete_until
        by_terms = earned(used.select(*USAGE.columns), books, period, known_until)
    shape = MARGIN_LINES if project_usage is None else PROJECT_LINES
    done = _Done(shape.empty(), UNRATED.empty(), _NO_RATES)
    parts: list[Part] = []
    for run, known in _runs(made, usage, books) if callable(usage) else [(made, whole)]:
        fees = _fees(books, run.cut)
        if customer is not None:
            fees = fees.filter(pl.col("customer") == customer)
        made_of = partial(_part, books, by_terms, fees, reporting_currency, project_usage, by)
        if customer is None:
            done = _together(shape, by, [done, *by_parts(known, run, books, made_of)])
        else:
            of_run = by_parts(known, run, books, lambda part: part, customer=customer)
            done = _together(shape, by, [done, *map(made_of, of_run)])
            parts += of_run
        # the next run is read without this one in memory
        del known
    unrated = pl.concat([done.unrated, _unrated_spill(made.capacity)])
    return Margin(
        period,
        reporting_currency,
        done.lines,
        UNRATED.conform(unrated),
        made,
        by_terms,
        _rates_used(done.rates, reporting_currency),
        parts,
    )


def _runs(
    made: Supply, usage: Callable[[Period], Identified], books: Books
) -> Iterator[tuple[Supply, Identified]]:
    """The supply in runs of whole days, each with its usage, of about ROWS_IN_MEMORY rows and fees."""
    start, days = made.period.start, 1
    while start < made.period.until:
        midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
        until = min(midnight + days * DAY, made.period.until)
        run = replace(made.period, start=start, until=until)
        known = usage(run)
        a_day = max(1, known.rows.height // days + books.fees.height)
        inside = pl.col("slice_start").is_between(start, until, closed="left")
        yield replace(made, period=run, cut=made.cut.filter(inside)), known
        del known
        start, days = until, max(1, min(8 * days, ROWS_IN_MEMORY // a_day))


def _under_terms(known: Identified, books: Books) -> pl.DataFrame:
    mine = pl.col("customer").is_in(under_terms(books)["customer"].implode())
    series = known.series.filter(mine)
    return Identified(series, known.rows.join(series, on="series_id", how="semi")).told(USAGE)


class _Done(NamedTuple):
    lines: pl.DataFrame
    unrated: pl.DataFrame
    rates: pl.DataFrame


def _rates_used(found: pl.DataFrame, into: str) -> pl.DataFrame:
    average = pl.col("month_average")
    return (
        found.filter((pl.col("currency") != into) & average.is_not_null())
        .group_by("currency")
        .agg(average.min().alias("lowest"), average.max().alias("highest"), pl.col("rate_estimated").any())
        .sort("currency")
    )


def _fees(books: Books, cut: pl.DataFrame) -> pl.DataFrame:
    fees = fees_earned(books.fees, books.contract_terms, cut)
    quanta = to_quanta(pl.col("amount")).alias("quanta")
    return flow(fees.with_columns(quanta), line="fee", side="fee", into="fee")


def _together(shape: Frame, by: Collection[str] | None, done: Sequence[_Done]) -> _Done:
    """What was done of parts that follow one another, as one."""
    lines = [each.lines for each in done]
    return _Done(
        shape.end_to_end(lines) if by is None else told_by(pl.concat(lines), by),
        pl.concat([each.unrated for each in done]),
        pl.concat([each.rates.select(_NO_RATES.columns) for each in done]).unique(),
    )


def _part(
    books: Books,
    by_terms: Earned,
    fees: pl.DataFrame,
    reporting_currency: str,
    project_usage: pl.DataFrame | None,
    by: Collection[str] | None,
    part: Part,
) -> _Done:
    charged, uncharged = charged_sums(plain(part.sliced, books), books)
    start, until = part.cut["slice_start"].min(), part.cut["slice_until"].max()
    here = pl.col("slice_start").is_between(pl.lit(start), pl.lit(until), closed="left")
    flows = pl.concat(
        [
            part.flows,
            amounts(charged, "gross"),
            gaps(uncharged, "charge"),
            *earned_flows(by_terms, part, books),
            *cost_plus(part, books),
            fees.filter(here),
        ]
    ).with_columns(pl.col("slice_start").dt.date().alias("day"))
    found = rates(flows.filter(pl.col("currency").is_not_null()), books.exchange_rates, reporting_currency)
    untold = found.filter(pl.col("month_average").is_null()).select(
        "day", "currency", pl.lit("no_exchange_rate").alias("_untold")
    )
    known = pl.col("into").is_in(KNOWN_AMOUNTS)
    flows = (
        flows.join(untold, on=["day", "currency"], how="left", validate="m:1")
        .with_columns(
            pl.when(known & (pl.col("quanta") != 0))
            .then(pl.coalesce("_untold", "reason"))
            .otherwise(pl.col("reason"))
            .alias("reason"),
            # no amount that is not known may be summed: price and carried cost are not, where cost is not
            pl.when(~known & pl.col("_untold").is_not_null() & (pl.col("into") == "on_demand_price"))
            .then(pl.lit(UNPRICED))
            .otherwise(pl.col("into"))
            .alias("into"),
            (pl.col("into").is_in(MOVED) & pl.col("_untold").is_not_null() & (pl.col("quanta") != 0)).alias(
                "_unmoved"
            ),
        )
        .drop("_untold", "day")
    )
    flows = _standing(flows, part.known.series)
    shares = None if project_usage is None else project_shares(project_usage, part)
    lines = lines_of(part, flows, books, found, reporting_currency, shares)
    shape = MARGIN_LINES if shares is None else PROJECT_LINES
    unrated = _unrated(flows.filter(pl.col("reason").is_not_null()), part.known.series)
    return _Done(shape.conform(lines) if by is None else told_by(lines, by), unrated, found)


_NO_RATES: Final = pl.DataFrame(
    schema={"currency": pl.String, "month_average": SUM, "rate_estimated": pl.Boolean}
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
    key = ["slice_start", "line", "sold_id", *OF, "side", "meter", "reason", "currency"]
    taken_back = pl.coalesce("quantity", "quanta").sum().over(key) == 0
    gaps = gaps.join(ids, on="series_id", how="left", validate="m:1").with_columns(
        pl.when(~taken_back).then(pl.col("reason")).alias("reason"),
        pl.when(~taken_back).then(pl.col("quanta")).alias("quanta"),
    )
    return pl.concat([flows.filter(~open_), gaps.drop("sold_id")])


def _unrated(gaps: pl.DataFrame, series: pl.DataFrame) -> pl.DataFrame:
    rows = gaps.join(series, on="series_id", how="left", validate="m:1", suffix="_of_series").with_columns(
        *(pl.coalesce(name, f"{name}_of_series").alias(name) for name in ("customer", "pool", "product")),
        pl.col("slice_start").dt.date().alias("day"),
        pl.when(pl.col("into").is_in(TAKEN))
        .then(pl.col("quanta") * -1)
        .otherwise(pl.col("quanta"))
        .alias("quanta"),
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
        summed, "quanta", QUANTA_MAX, "no report can carry it; void the events or correct the price"
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
