"""Obligations: what we committed to suppliers, how much of it is drawn, and what is still to be paid."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

import polars as pl

from metering.bills.usage_export import UNITS
from metering.core.closure import (
    FORFEITED,
    bill_on_demand,
    billing_slices,
    paid_ahead,
    rate_on_demand,
    spread,
)
from metering.core.commitments import ELIGIBLE, TRANCHES, continued, counts_toward, draw_down, pace
from metering.core.effective import with_slice
from metering.core.recognition import recognised
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM, Frame
from metering.frames.supply import BILL_LINES
from metering.money import MONEY, RATIO, from_quanta, multiply_divide, to_quanta
from metering.periods import DAY, QUARTER, Period
from metering.results.costs import RECOGNISED

#: One row per tranche of a commitment to a supplier, per amount that rolled over, and per pool with an end.
#: Amounts are in `measure`: a currency, or a unit.
OBLIGATIONS: Final = Frame(
    "OBLIGATIONS",
    {
        "supplier": pl.String,
        "obligation": pl.String,  # the commitment, or the pool
        "kind": pl.String,  # commitment | rolled_over | pool
        "effective_from": INSTANT,
        "effective_until": INSTANT,  # null: a pool without an end
        "state": pl.String,  # ended | open | ahead
        "measure": pl.String,
        "committed": MONEY,  # of a pool: all fees of its term; null without an end
        "drawn": MONEY,  # of a pool: what the contract bills up to the cut; null: a unit that is not counted
        "remaining": MONEY,  # not drawn yet, 0 once it ended; of a pool: to be billed from the cut to the end
        "pace_ratio": RATIO,  # drawn / (committed x elapsed share of the span)
        "run_rate_per_day": MONEY,  # of what counts toward the commitment, over the days before the cut
        "projected": MONEY,  # drawn at the end if the run rate goes on; capacity by its contracts
        "shortfall": MONEY,  # unmet at the end: as it was, or as projected
        "surplus": MONEY,  # eligible beyond what is committed, likewise
        "shortfall_cost": MONEY,  # shortfall x its ratio; null in units
        "days_left": pl.Int64,  # whole days from the cut to the end
        "notice_by": INSTANT,  # the last instant at which the renewal of a pool can be refused
    },
    key=("supplier", "obligation", "kind", "effective_from", "measure"),
    nullable=frozenset(
        {
            *("effective_until", "committed", "drawn", "remaining", "pace_ratio", "run_rate_per_day"),
            *("projected", "shortfall", "surplus", "shortfall_cost", "days_left", "notice_by"),
        }
    ),
)
_ONE: Final = 10**12
_ITEM: Final = ["holder", "commitment", "effective_from", "rolled"]


def committed_since(books: Books, until: datetime, run_rate_days: int) -> datetime:
    """Since when usage decides what is left of commitments, and what the run rate is; `until` without any."""
    first = books.supplier_commitments["effective_from"].min()
    return min(first, until - run_rate_days * DAY) if isinstance(first, datetime) else until


def obligations(served: pl.DataFrame, books: Books, until: datetime, run_rate_days: int) -> pl.DataFrame:
    """What is committed to suppliers as of `until`, the cut: OBLIGATIONS.

    served: frames.SERVED from `committed_since` to the cut. What counts toward a commitment is, on demand, what
    was billed where a charge covers it, else what the cost book says; of capacity what was billed, else what
    the contract bills. Projected: capacity goes on by its contracts, on demand as in the last `run_rate_days`
    (or as many as there are). A commitment in units counts the supplier's on-demand usage, if its unit is one
    that usage is counted in.
    """
    rows = [_commitments(served, books, until, run_rate_days), _pools(books, until)]
    return OBLIGATIONS.conform(pl.concat(rows))


def _tranches(books: Books) -> pl.DataFrame:
    """TRANCHES in quanta, with what their rows say beside it; holder: supplier and measure."""
    measure = pl.when(pl.col("amount").is_not_null()).then(pl.col("currency")).otherwise(pl.col("unit"))
    quanta = pl.coalesce(to_quanta(pl.col("amount")), pl.col("units").cast(SUM) * _ONE)
    most, _ = multiply_divide(
        pl.col("committed"), to_quanta(pl.col("roll_over_cap_ratio")), pl.lit(_ONE, dtype=SUM)
    )
    return books.supplier_commitments.with_columns(
        measure.alias("measure"),
        quanta.alias("committed"),
        (pl.col("supplier") + " / " + measure).alias("holder"),
    ).with_columns(most.alias("roll_over_max"))


def _drawn_down(terms: pl.DataFrame) -> pl.DataFrame:
    """TRANCHES of what `_tranches` gives."""
    drawn_by = pl.when(pl.col("draws") == "all").then(pl.lit([], dtype=pl.List(pl.String)))
    return TRANCHES.conform(
        terms.with_columns(drawn_by.otherwise(pl.concat_list("draws")).alias("draws")).select(
            *TRANCHES.columns
        )
    )


def _edges(terms: pl.DataFrame) -> list[datetime]:
    return sorted(
        {*terms["effective_from"], *terms["effective_until"], *terms["roll_over_until"].drop_nulls()}
    )


def forfeits(books: Books, period: Period) -> bool:
    """Whether a tranche that was paid ahead ends in a period: its usage since `committed_since` decides what is lost."""
    ends = pl.col("effective_until").is_between(
        pl.lit(period.start, dtype=INSTANT), pl.lit(period.until, dtype=INSTANT), closed="right"
    )
    return not paid_ahead(books).filter(ends).is_empty()


def forfeited(served: pl.DataFrame, books: Books, period: Period) -> pl.DataFrame:
    """What was paid ahead to suppliers and never drawn, at the last quarter hour before its tranche ends: FORFEITED.

    served: frames.SERVED from `committed_since` to the end of the period, which is already cut; of tranches that end
    in it, money alone.
    """
    if not forfeits(books, period):
        return FORFEITED.empty()
    terms = _tranches(books)
    so_far = Period("so far", committed_since(books, period.until, 0), period.until)
    eligible = _eligible(served, books, terms, so_far, _edges(terms))
    done = draw_down(_drawn_down(terms), eligible, period.until).tranches.filter(~pl.col("rolled"))
    ahead = paid_ahead(books).select("supplier", "commitment", "effective_from", "currency")
    ended = pl.col("effective_until").is_between(
        pl.lit(period.start, dtype=INSTANT), pl.lit(period.until, dtype=INSTANT), closed="right"
    )
    return FORFEITED.conform(
        done.filter(ended & (pl.col("shortfall") != 0))
        .join(terms.select("holder", "commitment", "effective_from", "supplier"), on=_TRANCHE, validate="1:1")
        .join(ahead, on=["supplier", "commitment", "effective_from"], validate="1:1")
        .with_columns(
            (pl.col("effective_until") - pl.lit(QUARTER)).alias("slice_start"),
            pl.col("shortfall").alias("quanta"),
        )
    )


_TRANCHE: Final = ["holder", "commitment", "effective_from"]


def _commitments(served: pl.DataFrame, books: Books, until: datetime, run_rate_days: int) -> pl.DataFrame:
    terms = _tranches(books)
    if terms.is_empty():
        return OBLIGATIONS.empty()
    tranches = _drawn_down(terms)
    edges = _edges(terms)
    last: datetime = edges[-1]
    since = committed_since(books, until, run_rate_days)
    eligible = _eligible(served, books, terms, Period("so far", since, until), edges)
    now = draw_down(tranches, eligible, until)
    days = _days_known(eligible, until, run_rate_days)
    ahead = _ahead(eligible, books, terms, until, last, days, edges)
    then = draw_down(tranches, pl.concat([eligible, ahead]), last)
    rates = (
        eligible.filter(pl.col("slice_start") >= pl.lit(until - days * DAY, dtype=INSTANT))
        .join(tranches.select("holder", "commitment", "draws").unique(), on="holder")
        .filter(counts_toward(pl.col("draws"), pl.col("account")))
        .group_by("holder", "commitment")
        .agg((pl.col("amount").sum() // days).alias("run_rate"))
    )
    projected = then.tranches.select(
        *_ITEM,
        pl.col("drawdown").alias("projected"),
        pl.col("shortfall").alias("_shortfall"),
        pl.col("overage").alias("surplus"),
        pl.col("committed").alias("_committed"),
    )
    said = terms.select(
        "holder", "commitment", "effective_from", "supplier", "measure", "shortfall_ratio", "amount"
    )
    origin = terms.select(
        "holder",
        "commitment",
        pl.col("effective_until").alias("effective_from"),
        *("supplier", "measure", "shortfall_ratio", "amount"),
    )
    rows = projected.join(now.tranches.drop("rolled_over"), on=_ITEM, how="left", validate="1:1").join(
        pl.concat(
            [
                said.with_columns(pl.lit(value=False).alias("rolled")),
                origin.with_columns(pl.lit(value=True).alias("rolled")),
            ]
        ),
        on=_ITEM,
        how="left",
        validate="1:1",
    )
    # what will roll over by the projection has not done so yet, and has no span of its own but that of its rule
    spans = then.tranches.select(*_ITEM, pl.col("effective_until").alias("_until"))
    rows = rows.join(spans, on=_ITEM, validate="1:1").join(
        rates, on=["holder", "commitment"], how="left", validate="m:1"
    )
    at = pl.lit(until, dtype=INSTANT)
    counted = pl.col("amount").is_not_null() | pl.col("measure").is_in(list(UNITS))
    committed = pl.col("_committed")
    drawn = pl.when(counted).then(pl.col("drawdown").fill_null(pl.lit(0, dtype=SUM)))
    minutes = (pl.col("_until") - pl.col("effective_from")).dt.total_minutes().cast(SUM)
    elapsed = (pl.min_horizontal(at, "_until") - pl.col("effective_from")).dt.total_minutes().cast(SUM)
    cost, _ = multiply_divide(
        pl.max_horizontal(pl.col("_shortfall"), pl.lit(0, dtype=SUM)),
        to_quanta(pl.col("shortfall_ratio")),
        pl.lit(_ONE, dtype=SUM),
    )
    return rows.select(
        "supplier",
        pl.col("commitment").alias("obligation"),
        pl.when("rolled").then(pl.lit("rolled_over")).otherwise(pl.lit("commitment")).alias("kind"),
        "effective_from",
        pl.col("_until").alias("effective_until"),
        _state(pl.col("effective_from"), pl.col("_until"), at),
        "measure",
        from_quanta(committed).alias("committed"),
        from_quanta(drawn).alias("drawn"),
        from_quanta(pl.when(counted).then(pl.coalesce("remaining", committed))).alias("remaining"),
        pl.when(elapsed > 0).then(pace(drawn, committed, elapsed, minutes)).alias("pace_ratio"),
        from_quanta(pl.when(counted).then(pl.col("run_rate"))).alias("run_rate_per_day"),
        from_quanta(pl.when(counted).then(pl.col("projected"))).alias("projected"),
        from_quanta(pl.when(counted).then(pl.col("_shortfall"))).alias("shortfall"),
        from_quanta(pl.when(counted).then(pl.col("surplus"))).alias("surplus"),
        from_quanta(pl.when(pl.col("amount").is_not_null()).then(cost)).alias("shortfall_cost"),
        _days_left(pl.col("_until"), at),
        pl.lit(None, dtype=INSTANT).alias("notice_by"),
    )


def _state(start: pl.Expr, end: pl.Expr, at: pl.Expr) -> pl.Expr:
    return (
        pl.when(start >= at)
        .then(pl.lit("ahead"))
        .when(end <= at)
        .then(pl.lit("ended"))
        .otherwise(pl.lit("open"))
        .alias("state")
    )


def _days_left(end: pl.Expr, at: pl.Expr) -> pl.Expr:
    return pl.max_horizontal((end - at).dt.total_days(), pl.lit(0)).cast(pl.Int64).alias("days_left")


def _days_known(eligible: pl.DataFrame, until: datetime, days_max: int) -> int:
    """The days before the cut that a run rate is taken from: no more than something was used in."""
    first = eligible.filter((pl.col("account") == "on_demand") & (pl.col("amount") != 0))["slice_start"].min()
    if not isinstance(first, datetime):
        return 1
    return max(1, min(days_max, -((first - until) // timedelta(days=1))))


def _eligible(
    served: pl.DataFrame, books: Books, terms: pl.DataFrame, period: Period, edges: list[datetime]
) -> pl.DataFrame:
    """ELIGIBLE of all holders up to the cut, in quanta."""
    cut = billing_slices(books, period, edges)
    rated, _ = rate_on_demand(served, books, cut)
    parts = spread(books.bill_lines, cut)
    on_demand = bill_on_demand(rated, parts).filter(pl.col("service_from").is_null())
    billed = parts.filter(pl.col("object_kind") == "on_demand")
    by = ["slice_start", "supplier", "currency"]
    money = pl.concat(
        [
            *(
                rows.select(*by, pl.lit("on_demand").alias("account"), "quanta")
                for rows in (on_demand, billed)
            ),
            _capacity(books, terms, period, cut).select(*by, pl.lit("capacity").alias("account"), "quanta"),
        ]
    ).select(
        (pl.col("supplier") + " / " + pl.col("currency")).alias("holder"),
        "slice_start",
        "account",
        pl.col("quanta").alias("amount"),
    )
    return _of(terms, pl.concat([money, _counted(served, terms, cut)]))


def _of(terms: pl.DataFrame, amounts: pl.DataFrame) -> pl.DataFrame:
    """The amounts of holders that committed something, summed."""
    sums = amounts.group_by("holder", "slice_start", "account").agg(pl.col("amount").sum())
    held = sums.join(terms.select("holder").unique(), on="holder", how="semi")
    return ELIGIBLE.conform(held.with_columns(pl.lit(0, dtype=pl.UInt32).alias("part")))


def _counted(served: pl.DataFrame, terms: pl.DataFrame, cut: pl.DataFrame) -> pl.DataFrame:
    """On-demand usage in the units of commitments that are not of money."""
    ran = served.filter(
        pl.col("counts_for").is_in(["charge_and_cost", "cost"]) & (pl.col("ran_on") != "pool")
    )
    sliced = with_slice(ran, cut, at="quarter_start")
    pieces = [
        sliced.group_by("slice_start", "provider")
        .agg(sum((pl.col(meter).sum() for meter in UNITS[unit]), pl.lit(0, dtype=SUM)).alias("units"))
        .select(
            (pl.col("provider") + f" / {unit}").alias("holder"),
            "slice_start",
            pl.lit("on_demand").alias("account"),
            (pl.col("units") * _ONE).alias("amount"),
        )
        for unit in terms.filter(pl.col("amount").is_null())["measure"].unique().sort()
        if unit in UNITS
    ]
    return pl.concat([pl.DataFrame(schema={name: ELIGIBLE.columns[name] for name in _AMOUNT}), *pieces])


_AMOUNT: Final = ("holder", "slice_start", "account", "amount")


def _capacity(books: Books, terms: pl.DataFrame, period: Period, cut: pl.DataFrame) -> pl.DataFrame:
    """What pools bill, by slice: billed where a charge covers it, else what the contract bills."""
    wanted = terms.filter(pl.col("draws") != "on_demand")["supplier"].unique()
    pools = books.pools.filter(pl.col("supplier").is_in(wanted.implode()))
    cost = _as_billed(books, pools, period)
    return (
        with_slice(cost, cut, at="quarter_start")
        .group_by("slice_start", "pool", "currency")
        .agg(pl.col("cost").sum().alias("quanta"))
        .join(pools.select("pool", "supplier"), on="pool", validate="m:1")
    )


def _as_billed(books: Books, pools: pl.DataFrame, period: Period) -> pl.DataFrame:
    """results.RECOGNISED of some pools as they are billed, whatever schedule they are recognised by."""
    of = {
        name: getattr(books, name).filter(pl.col("pool").is_in(pools["pool"].implode()))
        for name in ("capacity_steps", "capacity_fees")
    }
    if pools.is_empty() or period.until <= period.start:
        return RECOGNISED.empty()
    billed = pl.col("object").is_in(pools["pool"].implode()) & (pl.col("object_kind") == "pool")
    plain = pools.with_columns(pl.lit("as_billed").alias("recognition"))
    return recognised(replace(books, pools=plain, bill_lines=books.bill_lines.filter(billed), **of), period)


def _ahead(
    eligible: pl.DataFrame,
    books: Books,
    terms: pl.DataFrame,
    until: datetime,
    last: datetime,
    days: int,
    edges: list[datetime],
) -> pl.DataFrame:
    """ELIGIBLE from the cut to the end of the last tranche, as projected."""
    if last <= until:
        return ELIGIBLE.empty()
    period = Period("ahead", until, last)
    cut = billing_slices(books, period, edges)
    capacity = _capacity(books, terms, period, cut).select(
        (pl.col("supplier") + " / " + pl.col("currency")).alias("holder"),
        "slice_start",
        pl.lit("capacity").alias("account"),
        pl.col("quanta").alias("amount"),
    )
    lately = eligible.filter(pl.col("account") == "on_demand")
    return _of(terms, pl.concat([capacity, continued(lately, until, days, cut).drop("part")]))


def _pools(books: Books, until: datetime) -> pl.DataFrame:
    """What is left to pay of every pool's term: its fees as the contract bills them."""
    unbilled = replace(books, bill_lines=BILL_LINES.empty())
    at = pl.lit(until, dtype=INSTANT)
    sums = [
        _as_billed(unbilled, one, Period("term", start, end))
        .group_by("pool", "currency")
        .agg(
            pl.col("cost").filter(pl.col("quarter_start") < at).sum().alias("_drawn"),
            pl.col("cost").filter(pl.col("quarter_start") >= at).sum().alias("_left"),
        )
        for one in books.pools.partition_by("pool")
        for start, end in one.select("term_from", pl.col("term_until").fill_null(at)).iter_rows()
        if start < end
    ]
    schema = {"pool": pl.String, "_paid_in": pl.String, "_drawn": SUM, "_left": SUM}
    paid = pl.concat([pl.DataFrame(schema=schema), *(rows.rename({"currency": "_paid_in"}) for rows in sums)])
    ends = pl.col("term_until").is_not_null()
    notice = pl.col("term_until") - pl.duration(days=pl.col("notice_days"))
    committed = pl.col("_drawn") + pl.col("_left")
    nothing = pl.lit(None, dtype=MONEY)
    span = (pl.col("term_until") - pl.col("term_from")).dt.total_minutes().cast(SUM)
    elapsed = (pl.min_horizontal(at, "term_until") - pl.col("term_from")).dt.total_minutes().cast(SUM)
    return (
        books.pools.join(paid, on="pool", how="left")
        .with_columns(pl.col("_drawn", "_left").fill_null(pl.lit(0, dtype=SUM)))
        .select(
            "supplier",
            pl.col("pool").alias("obligation"),
            pl.lit("pool").alias("kind"),
            pl.col("term_from").alias("effective_from"),
            pl.col("term_until").alias("effective_until"),
            _state(pl.col("term_from"), pl.col("term_until").fill_null(at + pl.duration(days=1)), at),
            pl.coalesce("_paid_in", "currency").alias("measure"),
            from_quanta(pl.when(ends).then(committed)).alias("committed"),
            from_quanta(pl.col("_drawn")).alias("drawn"),
            from_quanta(pl.when(ends).then(pl.col("_left"))).alias("remaining"),
            pl.when(ends & (elapsed > 0)).then(pace(pl.col("_drawn"), committed, elapsed, span)).alias(
                "pace_ratio"
            ),
            nothing.alias("run_rate_per_day"),
            from_quanta(pl.when(ends).then(committed)).alias("projected"),
            nothing.alias("shortfall"),
            nothing.alias("surplus"),
            nothing.alias("shortfall_cost"),
            pl.when(ends).then(_days_left(pl.col("term_until"), at)).alias("days_left"),
            pl.when(pl.col("renewal_months").is_not_null()).then(notice).alias("notice_by"),
        )
    )  # fmt: skip
