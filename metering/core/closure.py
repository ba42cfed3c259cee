"""Closure: the cost of every customer, what nobody used, and the rest, up to the supplier's bill."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import polars as pl

from metering.core.effective import edges, slices, with_slice
from metering.core.exchange import rates, translate
from metering.core.rating import on_demand_costs
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM, Frame
from metering.money import MONEY, RATIO, from_quanta, ratio, to_quanta
from metering.periods import Period, month_start, next_month_start

#: The parts of a recognised cost, in the order in which they are told.
TERMS: Final = (
    "customers",  # by kind of customer; loaded: with the idle that they carry
    "idle",  # usage basis: all of it; loaded: what nobody carries
    "undelivered",
    "carved_out",
    "shortfall",  # billed for a commitment to the supplier
    "overhead",
    "variance",  # billed less rated on-demand cost of the same service span; null until billed
    "unexplained",  # not there unless something is wrong: what the parts leave of the recognised cost
)
#: The parts of the recognised cost of every day, in the currency of the bill. Over any rows of a supplier and
#: currency, the usage basis and the loaded basis both sum to the recognised cost of those days.
CLOSURE: Final = Frame(
    "CLOSURE",
    {
        "day": pl.Date,
        "supplier": pl.String,  # null: cost of a pool that no contract names
        "currency": pl.String,
        "term": pl.String,
        "kind": pl.String,  # of the customers
        "usage": MONEY,
        "loaded": MONEY,
        "estimated": pl.Boolean,  # some of it is not billed yet
    },
    key=("day", "supplier", "currency", "term", "kind"),
    nullable=frozenset({"supplier", "kind", "usage", "loaded"}),
)
#: Every document that was posted in the period or whose service lies in it, and what no document says. A document
#: that was corrected in a later month has a row for each month that it posts to.
#: Over the rows of a supplier and currency: sum of recognised_here = recognised cost, sum of billed_here =
#: billed, and change_in_prepaid = billed_here - recognised_here.
DOCUMENTS: Final = Frame(
    "DOCUMENTS",
    {
        "supplier": pl.String,
        "currency": pl.String,
        "what": pl.String,  # document | not_billed | schedule (deferred or advanced by how a pool is recognised)
        "document": pl.String,
        "posted_month": pl.Date,
        "billed": MONEY,  # by the whole document, in that month
        "billed_here": MONEY,  # the same if it was posted in the period, else 0; null unless that is whole months
        "recognised_before": MONEY,  # of the document's amount, by its own service spans
        "recognised_here": MONEY,
        "recognised_after": MONEY,
        "change_in_prepaid": MONEY,  # prepaid gained (accrued settled), or prepaid used up (accrued)
    },
    key=("supplier", "currency", "what", "document", "posted_month"),
    nullable=frozenset({"supplier", "document", "posted_month", "billed_here", "change_in_prepaid"}),
)
#: On-demand usage as rated and as billed, for every service span that a line of a bill has (a day, where the
#: bill has daily lines), clipped to the period.
CAPTURE: Final = Frame(
    "CAPTURE",
    {
        "supplier": pl.String,
        "currency": pl.String,
        "service_from": INSTANT,
        "service_until": INSTANT,
        "rated": MONEY,  # of the usage that the span's charges are for
        "billed": MONEY,  # charges, credits and true-ups of the span
        "variance": MONEY,  # billed - rated
        "capture_ratio": RATIO,  # rated / billed; null where nothing was billed, or less than credited
    },
    key=("supplier", "currency", "service_from", "service_until"),
    nullable=frozenset({"capture_ratio"}),
    laws={"variance = billed - rated": pl.col("variance") == pl.col("billed") - pl.col("rated")},
)
#: What is not known yet, so that nobody takes an estimate for a bill.
MISSING: Final = Frame(
    "MISSING",
    {
        "supplier": pl.String,
        "reason": pl.String,  # not_billed | no_cost_book | no_cost | other_currency
        "object": pl.String,  # the pool, or the model served
        "amount": MONEY,  # the estimate that stands for it
        "currency": pl.String,
        "quantity": SUM,  # units of the meter that have no cost
        "meter": pl.String,
    },
    key=("supplier", "reason", "object", "currency", "meter"),
    nullable=frozenset({"supplier", "object", "amount", "currency", "quantity", "meter"}),
)
#: Rated on-demand cost of a slice of time by supplier and model, a count of money.QUANTUM.
RATED_ON_DEMAND: Final = Frame(
    "RATED_ON_DEMAND",
    {"slice_start": INSTANT, "supplier": pl.String, "model": pl.String, "currency": pl.String, "quanta": SUM},
    key=("slice_start", "supplier", "model", "currency"),
)

#: What was paid ahead for a commitment to a supplier and is lost, a count of money.QUANTUM.
FORFEITED: Final = Frame(
    "FORFEITED",
    {
        "supplier": pl.String,
        "commitment": pl.String,
        "slice_start": INSTANT,  # the last quarter hour of the tranche
        "currency": pl.String,
        "quanta": SUM,
    },
    key=("supplier", "commitment", "slice_start"),
)

#: A closure to read: every term, and what they sum to. Translated: the sum of its months, each at its average;
#: null where a rate is missing.
CLOSED: Final = Frame(
    "CLOSED",
    {
        "supplier": pl.String,
        "currency": pl.String,
        "place": pl.Int64,  # of the line in the closure of a supplier and currency
        "term": pl.String,  # TERMS, recognised_cost, change_in_prepaid, billed
        "kind": pl.String,
        "usage": MONEY,
        "loaded": MONEY,
        "estimated": pl.Boolean,
        "usage_translated": MONEY,
        "loaded_translated": MONEY,
    },
    key=("supplier", "currency", "place"),
    nullable=frozenset({"supplier", "kind", "usage", "loaded", "usage_translated", "loaded_translated"}),
)
#: What the terms sum to, and what stands between that and the bills.
SUMS_OF_TERMS: Final = ("recognised_cost", "change_in_prepaid", "billed")

_OF: Final = ["supplier", "currency"]
_ZERO: Final = pl.lit(0, dtype=SUM)


@dataclass(frozen=True)
class Closure:
    """terms: CLOSURE. documents: DOCUMENTS. capture: CAPTURE. missing: MISSING."""

    period: Period
    terms: pl.DataFrame
    documents: pl.DataFrame
    capture: pl.DataFrame
    missing: pl.DataFrame


def billing_slices(books: Books, period: Period, at: Iterable[datetime] = ()) -> pl.DataFrame:
    """The period cut at midnights, where a cost changes, where a line of a bill begins or ends, and `at`."""
    lines = books.bill_lines.select(
        pl.col("service_from").alias("effective_from"), pl.col("service_until").alias("effective_until")
    )
    return slices(period, [*edges([books.cost_books, lines]), *at])


def rate_on_demand(usage: pl.DataFrame, books: Books, cut: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What usage outside of pools costs by the cost books: (RATED_ON_DEMAND, unrated by model and meter).

    usage: quarter_start, what ran (provider, model_served, tier_served, region, ran_on, counts_for,
    context_breakpoint) and meters; what lies outside of `cut` (billing_slices) is ignored. The supplier is
    the provider.
    """
    held = pl.col("quarter_start").is_between(
        pl.lit(cut["slice_start"].min(), dtype=INSTANT),
        pl.lit(cut["slice_until"].max(), dtype=INSTANT),
        "left",
    )
    ran = ["provider", "model_served", "tier_served", "region", "ran_on", "counts_for", "context_breakpoint"]
    meters = [name for name in usage.columns if usage.schema[name] == SUM and name != "requests"]
    sliced = (
        with_slice(usage.filter(held & (pl.col("ran_on") != "pool")), cut, at="quarter_start")
        .group_by("slice_start", *ran)
        .agg(pl.col(meters).sum())
        .rename({"slice_start": "quarter_start"})
    )
    rated, unrated = on_demand_costs(sliced, books)
    named = [pl.col("provider").alias("supplier"), pl.col("model_served").alias("model")]
    sums = (
        rated.select(
            pl.col("quarter_start").alias("slice_start"),
            *named,
            "currency",
            to_quanta(pl.col("amount")).alias("quanta"),
        )
        .group_by("slice_start", "supplier", "model", "currency")
        .agg(pl.col("quanta").sum())
    )
    gaps = unrated.group_by(*named, "meter", "reason").agg(pl.col("quantity").sum())
    return RATED_ON_DEMAND.conform(sums), gaps.filter(pl.col("quantity") != 0)


def spread(lines: pl.DataFrame, cut: pl.DataFrame) -> pl.DataFrame:
    """The part of every bill line in every slice: the line's columns, slice_start and `quanta`.

    A line is spread evenly by time over its service span: E(t) = floor(amount x elapsed / span), its part of
    a slice is E(end) - E(start). The slices are cut at the edges of the lines.
    """
    numbered = lines.with_row_index("_line")
    held = (
        numbered.select("_line", "service_from", "service_until")
        .join_where(
            cut,
            pl.col("service_from") <= pl.col("slice_start"),
            pl.col("slice_start") < pl.col("service_until"),
        )
        .select("_line", "slice_start", "slice_until")
    )
    rows = held.join(numbered, on="_line", validate="m:1")
    part = _before(pl.col("slice_until")) - _before(pl.col("slice_start"))
    return rows.with_columns(part.alias("quanta")).drop("_line", "slice_until")


def _before(instant: pl.Expr) -> pl.Expr:
    """E(instant) of a bill line, 0 before its service and the whole amount after it."""
    span = (pl.col("service_until") - pl.col("service_from")).dt.total_minutes().cast(SUM)
    elapsed = (instant - pl.col("service_from")).dt.total_minutes().cast(SUM)
    elapsed = pl.max_horizontal(pl.min_horizontal(elapsed, span), _ZERO)
    return to_quanta(pl.col("amount")) * elapsed // span


def bill_on_demand(rated: pl.DataFrame, parts: pl.DataFrame) -> pl.DataFrame:
    """RATED_ON_DEMAND with the service span of the charge that bills it: service_from, service_until, or null.

    parts: what `spread` gives. A charge is for the model that it names, or for all of its supplier, in its
    own currency. Of several the one with the shortest span, then the earliest.
    """
    charges = parts.filter((pl.col("object_kind") == "on_demand") & (pl.col("category") == "charge"))
    spans = charges.select("slice_start", *_OF, "object", "service_from", "service_until").unique()
    cell = ["slice_start", "supplier", "model", "currency"]
    chosen = (
        rated.select(cell)
        .join(spans, on=["slice_start", *_OF])
        .filter(pl.col("object").is_null() | (pl.col("object") == pl.col("model")))
        .with_columns((pl.col("service_until") - pl.col("service_from")).alias("_span"))
        .sort(*cell, "_span", "service_from")
        .group_by(cell, maintain_order=True)
        .agg(pl.col("service_from", "service_until").first())
    )
    return rated.join(chosen, on=cell, how="left", validate="1:1")


def paid_ahead(books: Books) -> pl.DataFrame:
    """The tranches of money that are paid ahead: what is unmet at their end was paid, and is lost."""
    return books.supplier_commitments.filter(
        (pl.col("shortfall_rule") == "forfeit") & pl.col("amount").is_not_null()
    )


def closure(
    costs: pl.DataFrame,
    recognised: pl.DataFrame,
    rated: pl.DataFrame,
    unrated: pl.DataFrame,
    books: Books,
    period: Period,
    asked: Period | None = None,
    *,
    forfeited: pl.DataFrame | None = None,
) -> Closure:
    """Close the costs of a period to the bills of its suppliers, per supplier and currency of the bill.

    costs: results.COSTS; recognised: results.RECOGNISED; rated, unrated: `rate_on_demand` over
    `billing_slices`; all of the same period, an open one already cut. `asked`: the period before it was cut;
    a document counts as billed here if it is posted in a month of it. forfeited: FORFEITED of the period, None: none.

        customers + idle + undelivered + carved_out + shortfall + overhead + variance = recognised cost
        recognised cost + change in prepaid (and accrued) = billed

    Recognised cost of on-demand usage is what was billed where a charge covers it, else what was rated
    (estimated). Lines for commitments and overhead are spread over their service spans, but for what is paid
    ahead, or given back, for a tranche that forfeits: it is prepaid, usage that draws it is cost as other usage
    is, and what nothing drew is shortfall at the tranche's end. What the parts leave of the recognised cost is
    never spread: it is a term of its own. The terms of a period are those of its days.
    """
    cut = billing_slices(books, period)
    lost = FORFEITED.empty() if forfeited is None else forfeited
    ahead = pl.col("object").is_in(paid_ahead(books)["commitment"].unique().implode())
    lines = books.bill_lines.with_columns(
        ((pl.col("object_kind") == "commitment") & ahead.fill_null(value=False)).alias("_prepaid")
    )
    parts = spread(lines.filter(~pl.col("_prepaid")), cut)
    on_demand = bill_on_demand(rated, parts)
    pools = _pools(recognised, books, parts, cut)
    terms = _terms(costs, on_demand, pools, parts, lost)
    return Closure(
        period,
        CLOSURE.conform(terms),
        DOCUMENTS.conform(_documents(lines, on_demand, pools, lost, period, asked or period)),
        CAPTURE.conform(_capture(on_demand, parts, period)),
        MISSING.conform(_missing(on_demand, unrated, pools, parts)),
    )


def _pools(recognised: pl.DataFrame, books: Books, parts: pl.DataFrame, cut: pl.DataFrame) -> pl.DataFrame:
    """Recognised cost of pools by slice, and how much of it the parts of bill lines are: `quanta`, `billed`."""
    by = ["slice_start", "pool", "currency"]
    cost = (
        with_slice(recognised, cut, at="quarter_start")
        .group_by(by)
        .agg(pl.col("cost").sum().alias("quanta"), pl.col("estimated").any())
    )
    lines = (
        parts.filter(pl.col("object_kind") == "pool")
        .group_by("slice_start", pl.col("object").alias("pool"), "currency")
        .agg(pl.col("quanta").sum().alias("billed"))
    )
    # a line for time in which the pool has no cost of its own is there too
    return (
        cost.join(lines, on=by, how="full", coalesce=True, validate="1:1")
        .with_columns(
            pl.col("quanta").fill_null(_ZERO),
            pl.col("billed").fill_null(_ZERO),
            pl.col("estimated").fill_null(value=False),
        )
        .join(books.pools.select("pool", "supplier"), on="pool", how="left", validate="m:1")
    )


_TERM: Final[Mapping[str, pl.DataType | type[pl.DataType]]] = {
    "day": pl.Date,
    "supplier": pl.String,
    "currency": pl.String,
    "term": pl.String,
    "kind": pl.String,
    "usage": SUM,
    "loaded": SUM,
    "estimated": pl.Boolean,
}


def _term(rows: pl.DataFrame, term: str) -> pl.DataFrame:
    """Rows with slice_start and quanta as a term that is the same on both bases."""
    return rows.select(
        pl.col("slice_start").dt.date().alias("day"),
        "supplier",
        "currency",
        pl.lit(term).alias("term"),
        pl.lit(None, dtype=pl.String).alias("kind"),
        pl.col("quanta").alias("usage"),
        pl.col("quanta").alias("loaded"),
        pl.lit(value=False).alias("estimated"),
    )


def _terms(
    costs: pl.DataFrame,
    on_demand: pl.DataFrame,
    pools: pl.DataFrame,
    parts: pl.DataFrame,
    lost: pl.DataFrame,
) -> pl.DataFrame:
    usage = to_quanta(pl.col("cost_pool")) + to_quanta(pl.col("cost_on_demand"))
    whose = pl.when((pl.col("line") == "usage") | pl.col("customer").is_not_null())
    known = costs.select(
        "day",
        "supplier",
        "currency",
        whose.then(pl.lit("customers")).otherwise(pl.col("line")).alias("term"),
        whose.then(pl.col("kind")).alias("kind"),
        usage.alias("usage"),
        (usage + to_quanta(pl.col("idle_share"))).alias("loaded"),
        "estimated",
    )
    of_kind = {
        term: parts.filter(pl.col("object_kind") == kind)
        for term, kind in (("shortfall", "commitment"), ("overhead", "overhead"), ("variance", "on_demand"))
    }
    not_billed = pl.col("service_from").is_null()
    billed = on_demand.filter(~not_billed).with_columns((_ZERO - pl.col("quanta")).alias("quanta"))
    told = pl.concat(
        [
            known,
            *(_term(rows, term) for term, rows in of_kind.items()),
            _term(lost, "shortfall"),
            _term(billed, "variance"),
        ]
    )
    key = list(CLOSURE.key)
    sums = told.group_by(key).agg(pl.col("usage", "loaded").sum(), pl.col("estimated").any())
    open_ = on_demand.filter(not_billed & (pl.col("quanta") != 0))
    recognised = pl.concat(
        [_term(rows, "recognised") for rows in (*of_kind.values(), lost, open_, pools)],
        how="vertical",
    )
    left = (
        pl.concat(
            [
                recognised,
                sums.select(*_TERM).with_columns(
                    (_ZERO - pl.col(name)).alias(name) for name in ("usage", "loaded")
                ),
            ]
        )
        .group_by("day", *_OF)
        .agg(pl.col("usage", "loaded").sum())
        .filter((pl.col("usage") != 0) | (pl.col("loaded") != 0))
        .with_columns(
            pl.lit("unexplained").alias("term"),
            pl.lit(None, dtype=pl.String).alias("kind"),
            pl.lit(value=False).alias("estimated"),
        )
    )
    return _as_money(_with_open_variance(pl.concat([sums.select(*_TERM), left.select(*_TERM)]), open_))


def _with_open_variance(rows: pl.DataFrame, not_billed: pl.DataFrame) -> pl.DataFrame:
    """A variance is null on a day whose on-demand usage has no bill, and estimated where only some has."""
    days = not_billed.select(pl.col("slice_start").dt.date().alias("day"), *_OF).unique()
    variance = rows.filter(pl.col("term") == "variance").select("day", *_OF)
    absent = days.join(variance, on=["day", *_OF], how="anti", nulls_equal=True)
    none = absent.select(
        "day",
        *_OF,
        pl.lit("variance").alias("term"),
        pl.lit(None, dtype=pl.String).alias("kind"),
        pl.lit(None, dtype=SUM).alias("usage"),
        pl.lit(None, dtype=SUM).alias("loaded"),
        pl.lit(value=True).alias("estimated"),
    )
    waiting = days.with_columns(pl.lit(value=True).alias("_open"))
    told = rows.join(waiting, on=["day", *_OF], how="left", nulls_equal=True, validate="m:1")
    # cost on demand is in the terms of customers and of the variance
    marked = pl.col("_open").fill_null(value=False) & pl.col("term").is_in(["customers", "variance"])
    told = told.with_columns((pl.col("estimated") | marked).alias("estimated")).drop("_open")
    return pl.concat([told.select(*_TERM), none])


def _as_money(rows: pl.DataFrame) -> pl.DataFrame:
    some = (pl.col("usage") != 0) | (pl.col("loaded") != 0) | (pl.col("term") == "variance")
    return rows.filter(some).with_columns(
        from_quanta(pl.col("usage")).alias("usage"), from_quanta(pl.col("loaded")).alias("loaded")
    )


def _documents(
    lines: pl.DataFrame,
    on_demand: pl.DataFrame,
    pools: pl.DataFrame,
    lost: pl.DataFrame,
    period: Period,
    asked: Period,
) -> pl.DataFrame:
    start, until = (pl.lit(at, dtype=INSTANT) for at in (period.start, period.until))
    posted = pl.col("posted_month").is_between(
        pl.lit(asked.start.date()), pl.lit(asked.until.date()), closed="left"
    )
    touches = (pl.col("service_from") < until) & (pl.col("service_until") > start)
    # of what is paid ahead the usage that draws it is recognised, and at the end what is lost
    whole = pl.when(~pl.col("_prepaid"))
    told = (
        lines.with_columns(
            whole.then(_before(start)).otherwise(_ZERO).alias("recognised_before"),
            whole.then(_before(until) - _before(start)).otherwise(_ZERO).alias("recognised_here"),
            to_quanta(pl.col("amount")).alias("billed"),
        )
        .with_columns(
            pl.when(posted).then(pl.col("billed")).otherwise(_ZERO).alias("billed_here"),
            (pl.col("billed") - pl.col("recognised_before") - pl.col("recognised_here")).alias(
                "recognised_after"
            ),
        )
        .group_by(*_OF, "document", "posted_month")
        .agg(
            pl.col(_AMOUNTS).sum(),
            (posted | touches).any().alias("_shown"),
        )
        .filter("_shown")
        .select(*_OF, pl.lit("document").alias("what"), "document", "posted_month", *_AMOUNTS)
    )
    rest = pools.with_columns((pl.col("quanta") - pl.col("billed")).alias("recognised_here")).select(
        *_OF, "recognised_here", pl.when("estimated").then(pl.lit("not_billed")).otherwise(
            pl.lit("schedule")
        ).alias("what")
    )  # fmt: skip
    open_ = on_demand.filter(pl.col("service_from").is_null()).select(
        *_OF, pl.col("quanta").alias("recognised_here"), pl.lit("not_billed").alias("what")
    )
    unmet = lost.select(*_OF, pl.col("quanta").alias("recognised_here"), pl.lit("schedule").alias("what"))
    undocumented = (
        pl.concat([rest, open_, unmet])
        .group_by(*_OF, "what")
        .agg(pl.col("recognised_here").sum())
        .filter(pl.col("recognised_here") != 0)
        .with_columns(
            *(pl.lit(0, dtype=SUM).alias(name) for name in _AMOUNTS if name != "recognised_here"),
            pl.lit(None, dtype=pl.String).alias("document"),
            pl.lit(None, dtype=pl.Date).alias("posted_month"),
        )
    )
    known = pl.lit(whole_months(asked))
    return (
        pl.concat([told, undocumented.select(told.columns)])
        .with_columns(pl.when(known).then(pl.col("billed_here")).alias("billed_here"))
        .with_columns((pl.col("billed_here") - pl.col("recognised_here")).alias("change_in_prepaid"))
        .with_columns(from_quanta(pl.col(name)).alias(name) for name in (*_AMOUNTS, "change_in_prepaid"))
    )


_AMOUNTS: Final = ["billed", "billed_here", "recognised_before", "recognised_here", "recognised_after"]


def _capture(on_demand: pl.DataFrame, parts: pl.DataFrame, period: Period) -> pl.DataFrame:
    by = [*_OF, "service_from", "service_until"]
    billed = (
        parts.filter(pl.col("object_kind") == "on_demand")
        .group_by(by)
        .agg(pl.col("quanta").sum().alias("billed"))
    )
    rated = (
        on_demand.filter(pl.col("service_from").is_not_null())
        .group_by(by)
        .agg(pl.col("quanta").sum().alias("rated"))
    )
    return (
        billed.join(rated, on=by, how="left", validate="1:1")
        .with_columns(pl.col("rated").fill_null(_ZERO))
        .with_columns(
            (pl.col("billed") - pl.col("rated")).alias("variance"),
            pl.col("service_from").clip(lower_bound=pl.lit(period.start, dtype=INSTANT)),
            pl.col("service_until").clip(upper_bound=pl.lit(period.until, dtype=INSTANT)),
        )
        # two spans may be the same once they are clipped
        .group_by(by)
        .agg(pl.col("rated", "billed", "variance").sum())
        .with_columns(ratio(pl.col("rated"), pl.col("billed")).alias("capture_ratio"))
        .with_columns(from_quanta(pl.col(name)).alias(name) for name in ("rated", "billed", "variance"))
    )


def _missing(
    on_demand: pl.DataFrame, unrated: pl.DataFrame, pools: pl.DataFrame, parts: pl.DataFrame
) -> pl.DataFrame:
    cell = ["slice_start", "supplier", "model", "currency"]
    open_ = on_demand.filter(pl.col("service_from").is_null() & (pl.col("quanta") != 0))
    charges = parts.filter((pl.col("object_kind") == "on_demand") & (pl.col("category") == "charge"))
    foreign = (
        open_.select(cell)
        .join(charges.select("slice_start", "supplier", "object"), on=["slice_start", "supplier"])
        .filter(pl.col("object").is_null() | (pl.col("object") == pl.col("model")))
        .select(*cell, pl.lit("other_currency").alias("reason"))
        .unique()
    )
    waiting = open_.join(foreign, on=cell, how="left", validate="1:1").select(
        *_OF,
        pl.col("reason").fill_null("not_billed"),
        pl.col("model").alias("object"),
        "quanta",
    )
    estimated = pools.filter(pl.col("estimated")).select(
        *_OF,
        pl.lit("not_billed").alias("reason"),
        pl.col("pool").alias("object"),
        (pl.col("quanta") - pl.col("billed")).alias("quanta"),
    )
    amounts = (
        pl.concat([waiting, estimated])
        .group_by(*_OF, "reason", "object")
        .agg(from_quanta(pl.col("quanta").sum()).alias("amount"))
        .with_columns(pl.lit(None, dtype=SUM).alias("quantity"), pl.lit(None, dtype=pl.String).alias("meter"))
    )
    gaps = unrated.select(
        "supplier",
        "reason",
        pl.col("model").alias("object"),
        pl.lit(None, dtype=MONEY).alias("amount"),
        pl.lit(None, dtype=pl.String).alias("currency"),
        "quantity",
        "meter",
    )
    return pl.concat([amounts.select(gaps.columns), gaps])


def whole_months(period: Period) -> bool:
    """Whether bills can be told to be posted in the period: it begins and ends with a UTC calendar month."""
    last = next_month_start(period.start)
    while last < period.until:
        last = next_month_start(last)
    return period.start == month_start(period.start) and last == period.until


def read_as(made: Closure, exchange_rates: pl.DataFrame, into: str, asked: Period) -> pl.DataFrame:
    """The closure of the whole period, line by line in the order of its equation: CLOSED.

    recognised_cost = the sum of its terms, on either basis; change_in_prepaid and billed, which close it to the
    documents posted in `asked`, are there if that is whole months.
    """
    some = [pl.col(basis).is_not_null().any() for basis in _BASES]
    months = made.terms.group_by(*_OF, "term", "kind", pl.col("day").dt.truncate("1mo")).agg(
        *(
            pl.when(known).then(to_quanta(pl.col(basis)).sum()).alias(basis)
            for basis, known in zip(_BASES, some, strict=True)
        ),
        pl.col("estimated").any(),
    )
    rated = months.join(
        rates(months, exchange_rates, into), on=["day", "currency"], how="left", validate="m:1"
    ).with_columns(
        translate(pl.col(basis), pl.col("month_average")).alias(f"{basis}_translated") for basis in _BASES
    )
    sums = [pl.col("estimated").any()]
    for basis, known in zip(_BASES, some, strict=True):
        translated = f"{basis}_translated"
        # what has no rate is not 0, and not a part of a sum either
        whole = (pl.col(basis).fill_null(_ZERO) == 0) | pl.col(translated).is_not_null()
        sums += [
            pl.when(known).then(pl.col(basis).sum()).alias(basis),
            pl.when(known & whole.all()).then(pl.col(translated).sum()).alias(translated),
        ]
    terms = rated.group_by(*_OF, "term", "kind").agg(sums)
    nothing = pl.lit(None, dtype=pl.String).alias("kind")
    cost = rated.group_by(*_OF).agg(sums).with_columns(pl.lit("recognised_cost").alias("term"), nothing)
    shape = [*_OF, "term", "kind", *_BASES, "estimated", *(f"{basis}_translated" for basis in _BASES)]
    told = [terms.select(shape), cost.select(shape)]
    if whole_months(asked):
        ends = made.documents.group_by(_OF).agg(
            to_quanta(pl.col("change_in_prepaid")).sum(),
            to_quanta(pl.col("billed_here")).sum().alias("billed"),
        )
        told += [
            ends.select(
                *_OF,
                pl.lit(name).alias("term"),
                nothing,
                *(pl.col(name).alias(basis) for basis in _BASES),
                pl.lit(value=False).alias("estimated"),
                *(pl.lit(None, dtype=SUM).alias(f"{basis}_translated") for basis in _BASES),
            )
            for name in SUMS_OF_TERMS[1:]
        ]
    places = pl.DataFrame({"term": [*TERMS, *SUMS_OF_TERMS]}, schema={"term": pl.String}).with_row_index(
        "_place"
    )
    lines = (
        pl.concat(told)
        .join(places, on="term", how="left", validate="m:1")
        .sort(*_OF, "_place", pl.col("kind") != "paying", "kind", nulls_last=False)
    )
    return CLOSED.conform(
        lines.with_columns(
            pl.int_range(1, pl.len() + 1).over(_OF).cast(pl.Int64).alias("place"),
            *(
                from_quanta(pl.col(f"{basis}{of}")).alias(f"{basis}{of}")
                for basis in _BASES
                for of in _READINGS
            ),
        )
    )


_BASES: Final = ("usage", "loaded")
_READINGS: Final = ("", "_translated")
