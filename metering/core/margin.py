"""Margin: what each customer paid less what it cost us, line by line; the lines add up to the company."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

import polars as pl

from metering.core.agreed import cost_plus, earned_flows, plain
from metering.core.capacity import Capacity
from metering.core.costs import QUANTA_MAX, UNKNOWN, Part, Supply, by_parts, supply
from metering.core.effective import in_force
from metering.core.exchange import rates
from metering.core.fees import fees_earned
from metering.core.flows import UNPRICED, amounts, flow, gaps
from metering.core.lines import COUNTS, FLAGS, FLOWN, KNOWN_AMOUNTS, MOVED, OF, TAKEN, lines_of, totals
from metering.core.projects import project_shares
from metering.core.rating import charged_sums
from metering.core.revenue import Earned, earned, under_terms
from metering.core.series import identify, known_usage
from metering.errors import BadInput
from metering.frames import DIMENSIONS, INSTANT, SUM, USAGE, Books, Identified
from metering.money import from_quanta, ratio, refuse_beyond, to_quanta
from metering.periods import Period
from metering.results import MARGIN_BY, MARGIN_LINES, PROJECT_LINES, UNRATED, margin_frame

_SPAN: Final = ("effective_from", "effective_until")
#: A row by some of these with `customer` is all of a customer, so that its contract's floor applies.
_WHOLE_CUSTOMERS: Final = frozenset({"customer", "kind", "segment", "day"})


@dataclass(frozen=True)
class Margin:
    """lines: results.MARGIN_LINES or PROJECT_LINES. unrated: results.UNRATED.

    supply: the pools of the same period and usage. earned: what contracts under terms earned, quarter hour by
    quarter hour. rates: of each currency that was translated the lowest and highest month_average used (10**-12
    per unit), and whether one was of a month before.
    """

    period: Period
    currency: str
    lines: pl.DataFrame
    unrated: pl.DataFrame
    supply: Supply
    earned: Earned
    rates: pl.DataFrame

    @property
    def capacity(self) -> Capacity:
        """The capacity identity of every contracted minute."""
        return self.supply.capacity


def margin(
    usage: pl.DataFrame | Identified,
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
) -> Margin:
    """Revenue and cost of a period as the finest margin lines, and what could not be rated.

    usage: frames.USAGE, or that by series; pool_usage: frames.POOL_USAGE, both of at least the period (where a
    pool's idle goes by burn: of its whole months, core.costs.reach); pool_customer_usage: frames.POOL_CUSTOMER_USAGE
    of pools with entitlements; terms_usage: frames.USAGE of core.revenue.reach (None: `usage` holds it). Other
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
    by_terms = of_terms
    if by_terms is None:
        used = _under_terms(known, books) if terms_usage is None else terms_usage
        known_until = period.until if complete_until is None else complete_until
        by_terms = earned(used.select(*USAGE.columns), books, period, known_until)
    fees = _fees(books, made.cut)
    shape = MARGIN_LINES if project_usage is None else PROJECT_LINES
    done = by_parts(
        known,
        made,
        books,
        lambda part: _part(part, books, by_terms, fees, reporting_currency, project_usage),
    )
    lines = pl.concat([shape.empty(), *(each.lines.select(*shape.columns) for each in done)])
    unrated = pl.concat([UNRATED.empty(), *(each.unrated for each in done), _unrated_spill(made.capacity)])
    return Margin(
        period,
        reporting_currency,
        shape.conform(lines),
        UNRATED.conform(unrated),
        made,
        by_terms,
        _rates_used([each.rates for each in done], reporting_currency),
    )


def _under_terms(known: Identified, books: Books) -> pl.DataFrame:
    mine = pl.col("customer").is_in(under_terms(books)["customer"].implode())
    series = known.series.filter(mine)
    return Identified(series, known.rows.join(series, on="series_id", how="semi")).told(USAGE)


class _Done(NamedTuple):
    lines: pl.DataFrame
    unrated: pl.DataFrame
    rates: pl.DataFrame


def _rates_used(found: Sequence[pl.DataFrame], into: str) -> pl.DataFrame:
    average = pl.col("month_average")
    return (
        pl.concat([_NO_RATES, *(each.select(_NO_RATES.columns) for each in found)])
        .filter((pl.col("currency") != into) & average.is_not_null())
        .group_by("currency")
        .agg(average.min().alias("lowest"), average.max().alias("highest"), pl.col("rate_estimated").any())
        .sort("currency")
    )


def _fees(books: Books, cut: pl.DataFrame) -> pl.DataFrame:
    """The fees of all slices, as flows in the order of time."""
    fees = fees_earned(books.fees, books.contract_terms, cut).sort("slice_start", maintain_order=True)
    quanta = to_quanta(pl.col("amount")).alias("quanta")
    return flow(fees.with_columns(quanta), line="fee", side="fee", into="fee")


def _part(
    part: Part,
    books: Books,
    by_terms: Earned,
    fees: pl.DataFrame,
    reporting_currency: str,
    project_usage: pl.DataFrame | None,
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
    unrated = _unrated(flows.filter(pl.col("reason").is_not_null()), part.known.series)
    return _Done(lines, unrated, found)


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


def summarise(
    lines: pl.DataFrame, by: Sequence[str], books: Books, until: datetime | None = None
) -> pl.DataFrame:
    """Margin lines summed by some of results.MARGIN_BY, and project where they have it ([]: one row): margin_frame(by).

    Rows of any `by` sum to the company's row exactly. By customer, a row says who the customer is (name,
    kind, segment: as of the row's last day; of the line, where `by` asks for them), the margin floor of the
    contract in force then with its basis, and breach = margin < floor x revenue, or revenue <= 0 with cost > 0
    (on the loaded basis margin_loaded and cost_loaded), of paying customers with a floor; null where `by` cuts
    customers into parts (products, models, pools): the floor is agreed for the whole. No lines, no rows. An
    unknown or repeated `by` raises BadInput. `until`: the end of the period, already cut, if it lies within
    the last day: what begins later that day is not in force yet.
    """
    allowed = [*MARGIN_BY, *({"project"} & {*lines.columns})]
    for name in by:
        if name not in allowed:
            raise BadInput(f"--by {name}: margin has no such column; choose of {', '.join(allowed)}")
    if len(set(by)) != len(by):
        raise BadInput(f"--by {','.join(by)}: a column is named twice; name each once")
    flown = (*FLOWN, "fx_effect", "revenue_fx_effect")
    total = lines.with_columns(to_quanta(pl.col(name)).alias(name) for name in flown)
    groups = (
        total.with_columns(pl.lit(0).alias("_company"))
        .group_by("_company", *by)
        .agg(
            pl.col(*COUNTS, *flown).sum(),
            pl.col(FLAGS).any(),
            pl.col("on_demand_price").is_null().any().alias("_unpriced"),
            pl.col("fx_effect").is_null().any().alias("_no_contract_rate"),
            pl.col("currency").first(),
            pl.col("day").max().alias("_last_day"),
        )
        .with_columns(
            pl.when(~pl.col("_no_contract_rate")).then(pl.col(name)).alias(name)
            for name in ("fx_effect", "revenue_fx_effect")
        )
    )
    margins = (
        totals(groups)
        .with_columns(
            (pl.col("revenue") - pl.col("cost")).alias("margin"),
            (pl.col("revenue") - pl.col("cost_loaded")).alias("margin_loaded"),
        )
        .with_columns(
            ratio(to_quanta(pl.col("margin")), to_quanta(pl.col("revenue"))).alias("margin_ratio"),
        )
    )
    if "customer" in by:
        margins = _judged(_described(margins, by, books, until), by)
    return margin_frame(by).conform(margins)


def on_floor_basis(margins: pl.DataFrame) -> pl.DataFrame:
    """Margins by customer with cost, margin and margin_ratio on the basis of the customer's floor."""
    loaded = (pl.col("floor_basis") == "loaded").fill_null(value=False)
    return margins.with_columns(
        pl.when(loaded).then(pl.col(f"{name}_loaded")).otherwise(pl.col(name)).alias(name)
        for name in ("cost", "margin")
    ).with_columns(ratio(to_quanta(pl.col("margin")), to_quanta(pl.col("revenue"))).alias("margin_ratio"))


def _described(
    margins: pl.DataFrame, by: Sequence[str], books: Books, until: datetime | None
) -> pl.DataFrame:
    """Add name, kind and segment of the customer, and the floor of its contract, as of the row's last day."""
    floors = books.contracts.select(
        "customer", *_SPAN, pl.col("margin_floor_ratio").alias("floor_ratio"), "floor_basis"
    )
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
    """Add breach, compared in integers: margin x 10**12 < floor in 10**-12 x revenue, all in quanta.

    breach_by_fx: it is none at the contract exchange rates, at which margin and revenue are theirs less fx_effect.
    """
    judged = ("breach", "breach_by_fx")
    if not set(by) <= _WHOLE_CUSTOMERS:
        return margins.with_columns(pl.lit(None, dtype=pl.Boolean).alias(name) for name in judged)
    loaded = pl.col("floor_basis") == "loaded"
    quanta = margins.select(
        "customer",
        "floor_ratio",
        pl.col("kind") == "paying",
        *(to_quanta(pl.col(name)).alias(name) for name in ("revenue", "fx_effect", "revenue_fx_effect")),
        *(
            to_quanta(pl.when(loaded).then(pl.col(f"{name}_loaded")).otherwise(pl.col(name))).alias(name)
            for name in ("margin", "cost")
        ),
    )
    refuse_beyond(quanta, "margin", QUANTA_MAX, "no floor can be applied to it exactly")
    refuse_beyond(quanta, "floor_ratio", 1, "a margin floor is a ratio of at most 1; correct the contract")
    said = pl.col("kind") & pl.col("floor_ratio").is_not_null()

    def below(margin: pl.Expr, revenue: pl.Expr, cost: pl.Expr) -> pl.Expr:
        short = margin * pl.lit(10**12, dtype=SUM) < to_quanta(pl.col("floor_ratio")) * revenue
        return said & (short | ((revenue <= 0) & (cost > 0)))

    margin, revenue, cost = pl.col("margin"), pl.col("revenue"), pl.col("cost")
    breach = below(margin, revenue, cost).fill_null(value=False)
    moved, earned_more = pl.col("fx_effect"), pl.col("revenue_fx_effect")
    otherwise = below(margin - moved, revenue - earned_more, cost - earned_more + moved)
    by_fx = breach & ~otherwise.fill_null(value=True)
    found = quanta.select(breach.alias("breach"), by_fx.alias("breach_by_fx"))
    return margins.with_columns(found[name] for name in judged)
