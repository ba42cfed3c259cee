"""Exposure: what pools would burn if every holder used its limit, against what they have and what they burned."""

from typing import Final

import polars as pl

from metering.core.burn import denominators, weigh, weights_in
from metering.core.limit_cells import (
    WHO,
    as_instant,
    limits_in,
    minute_number,
    minutes_of,
    under_limits,
    weight_column,
)
from metering.core.limits import uses_of_limits
from metering.core.series import identify
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.frames.usage import DIMENSIONS, SUMS
from metering.money import multiply_divide, ratio
from metering.periods import MINUTE, Period
from metering.results.limits import EXPOSURE, LIMIT_BURN


def limit_burn(usage: pl.DataFrame, books: Books, period: Period) -> pl.DataFrame:
    """Use and burn of every limit's products by customers under it, while they were: results.LIMIT_BURN.

    usage: frames.USAGE of the period. Use counts what charges count, wherever it ran; burn what is meant for a pool
    and counts for cost, overflow included. Limits of a plan are one over all contracts. Where a limit's products
    burned nothing of a pool there is no row.
    """
    limits = limits_in(books, period)
    group = _group(limits)
    known = identify(
        usage.filter(pl.col("customer").is_in(limits["customer"].unique().implode())), list(DIMENSIONS)
    )
    who = known.series.with_columns(pl.lit("any").alias("project"), pl.lit("any").alias("seat"))
    held = under_limits(who.select("series_id", *WHO), limits).select("series_id", "_limit").unique()
    charged = known.series.filter(pl.col("counts_for").is_in(["charge_and_cost", "charge"]))
    weighed, _ = weigh(
        known.rows.join(
            known.series.filter(
                pl.col("pool").is_not_null()
                & pl.col("counts_for").is_in(["charge_and_cost", "cost"])
                & pl.col("ran_on").is_in(["pool", "overflow"])
            ).select("series_id"),
            on="series_id",
            how="semi",
        ),
        known.series,
        *weights_in(books),
        at="quarter_start",
    )
    spans = limits.select("_limit", "_since", "_until", *map(weight_column, SUMS))
    in_force = minutes_of("quarter_start").is_between("_since", "_until", closed="left")
    use = pl.sum_horizontal(pl.col(meter).cast(SUM) * pl.col(weight_column(meter)) for meter in SUMS).cast(
        SUM
    )
    uses = (
        known.rows.join(charged.select("series_id"), on="series_id", how="semi")
        .join(held, on="series_id")
        .join(spans, on="_limit", validate="m:1")
        .filter(in_force)
        .join(group, on="_limit", validate="m:1")
        .group_by(_GROUP)
        .agg(use.sum().alias("use"))
    )
    burned = (
        weighed.join(known.series.select("series_id", "pool"), on="series_id", validate="m:1")
        .join(held, on="series_id")
        .join(spans.select("_limit", "_since", "_until"), on="_limit", validate="m:1")
        .filter(in_force)
        .join(group, on="_limit", validate="m:1")
        .group_by(*_GROUP, "pool", "dimension")
        .agg(pl.col("burn").sum())
    )
    return LIMIT_BURN.conform(
        burned.filter(pl.col("burn") != 0)
        .join(uses, on=_GROUP, nulls_equal=True, validate="m:1")
        .join(
            group.join(limits.select("_limit", pl.col("denominator").alias("use_denominator")), on="_limit")
            .drop("_limit")
            .unique(_GROUP),
            on=_GROUP,
            nulls_equal=True,
            validate="m:1",
        )
        .join(denominators(*weights_in(books)), on=["pool", "dimension"], validate="m:1")
    )


_GROUP: Final = ["plan", "contract", "limit"]


def _group(limits: pl.DataFrame) -> pl.DataFrame:
    """Of every limit the group that it is of: those of a plan by plan and name, others by contract and name."""
    contract = pl.when(pl.col("plan").is_null()).then("contract").alias("contract")
    return limits.select("_limit", "plan", contract, "limit")


def exposure(
    usage: pl.DataFrame, burn: pl.DataFrame, utilization: pl.DataFrame, books: Books, period: Period
) -> pl.DataFrame:
    """What pools would burn if every holder used its limit, and what they did at once: results.EXPOSURE.

        exposure = sum over holders of limit x burn / use        available = that of an average minute x window

    usage: frames.LIMIT_USAGE of the period; burn: results.LIMIT_BURN of it; utilization: results.UTILIZATION. The
    limits in force at the end of the period count. A customer is a holder of its own limits; projects and seats are
    those that used something, or as many seats as the contract pays for, if those are more. The peak is the stretch of
    a window's length, at any minute, in which all holders together burned most; null where the period is shorter.
    """
    cells, uses = uses_of_limits(usage, books, period)
    limits = limits_in(books, period)
    last = pl.lit(minute_number(period.until) - 1)
    limits = limits.filter(last.is_between("_since", "_until", closed="left"))
    inside = pl.col("minute").is_between(
        minute_number(period.start), minute_number(period.until), closed="left"
    )
    uses = uses.filter(inside)
    group = _group(limits)
    nominal = (
        limits.join(_holders(limits, cells.join(uses, on="cell", how="semi"), books, period), on="_limit")
        .select("_limit", "window_minutes", "holders", (pl.col("full") * pl.col("holders")).alias("_full"))
        .join(group, on="_limit", validate="1:1")
        .group_by(*_GROUP, "window_minutes")
        .agg(pl.col("holders", "_full").sum())
    )
    place = ["pool", "dimension", "window_minutes"]
    rows = nominal.join(burn.filter(pl.col("use") > 0), on=_GROUP, nulls_equal=True).with_columns(
        _share_of(pl.col("_full"), "burn", "use").alias("exposure")
    )
    minutes = (
        uses.join(cells.select("cell", "_limit"), on="cell")
        .join(group, on="_limit")
        .group_by(*_GROUP, "minute")
        .agg(pl.col("used").sum())
        .join(rows.select(*_GROUP, *place, "burn", "use"), on=_GROUP, nulls_equal=True)
        .select(*place, *_GROUP, "minute", _share_of(pl.col("used"), "burn", "use").alias("burned"))
    )
    every = rows.group_by(place).agg(
        pl.col("denominator").first(),
        pl.col("exposure").sum(),
        pl.col("holders").sum(),
        pl.len().alias("_limits"),
    )
    nobody = [pl.lit(None, dtype=pl.String).alias(name) for name in _GROUP]
    together = minutes.group_by(*place, "minute").agg(pl.col("burned").sum()).with_columns(nobody)
    peaks = _peaks(pl.concat([minutes, together.select(minutes.columns)]), [*place, *_GROUP], period)
    available = utilization.group_by("pool", "dimension").agg(
        pl.col("available").sum(), pl.len().cast(SUM).alias("_minutes")
    )
    found = (
        pl.concat(
            [
                rows.select(*place, *_GROUP, "holders", "denominator", "exposure"),
                every.filter(pl.col("_limits") > 1)
                .with_columns(nobody)
                .select(*place, *_GROUP, "holders", "denominator", "exposure"),
            ]
        )
        .join(available, on=["pool", "dimension"], validate="m:1")
        .join(peaks, on=[*place, *_GROUP], how="left", nulls_equal=True, validate="1:1")
        .with_columns(
            (pl.col("available") * pl.col("window_minutes") // pl.col("_minutes")).alias("available")
        )
    )
    return EXPOSURE.conform(
        found.with_columns(
            ratio(pl.col("exposure"), pl.col("available")).alias("exposure_ratio"),
            ratio(pl.col("peak"), pl.col("available")).alias("peak_ratio"),
        )
    )


def _share_of(part: pl.Expr, burn: str, use: str) -> pl.Expr:
    """part x burn / use, rounded down, through sums that cannot wrap."""
    whole, left = part // pl.col(use), part % pl.col(use)
    return whole * pl.col(burn) + multiply_divide(pl.col(burn), left, pl.col(use))[0]


def _holders(limits: pl.DataFrame, met: pl.DataFrame, books: Books, period: Period) -> pl.DataFrame:
    """How many hold each limit: _limit, holders."""
    last = period.until - MINUTE
    in_force = (pl.col("effective_from") <= last) & (
        pl.col("effective_until").is_null() | (pl.col("effective_until") > last)
    )
    seats = (
        books.fees.filter(in_force & (pl.col("kind") == "seat"))
        .group_by("customer", "contract")
        .agg(pl.col("quantity").sum().alias("_paid"))
    )
    seen = met.group_by("_limit").agg(pl.col("held_by").n_unique().cast(pl.Int64).alias("_seen"))
    return (
        limits.join(seen, on="_limit", how="left", validate="1:1")
        .join(seats, on=["customer", "contract"], how="left", validate="m:1")
        .select(
            "_limit",
            pl.when(pl.col("holder") == "customer")
            .then(pl.lit(1, dtype=pl.Int64))
            .when(pl.col("holder") == "seat")
            .then(pl.max_horizontal(pl.col("_seen").fill_null(0), pl.col("_paid").fill_null(0)))
            .otherwise(pl.col("_seen").fill_null(0))
            .alias("holders"),
        )
    )


def _peaks(minutes: pl.DataFrame, by: list[str], period: Period) -> pl.DataFrame:
    """Of every `by` the stretch of window_minutes that burned most, the first of equals: by, peak_start, peak."""
    rows = minutes.filter(pl.col("window_minutes") <= period.minutes).sort(*by, "minute", nulls_last=False)
    # in one line of numbers, as windows that are anchored
    first, stride = minute_number(period.start), period.minutes + int(rows["window_minutes"].max() or 0) + 1  # type: ignore[arg-type]
    number = rows.select(pl.struct(by).rle_id().cast(pl.Int64)).to_series()
    line = number * stride + (rows["minute"] - first)
    since = line.to_numpy().searchsorted((line - rows["window_minutes"]).to_numpy(), side="right")
    sums = pl.concat([pl.Series("sums", [0], dtype=SUM), rows["burned"].cum_sum().alias("sums")])
    within = sums.gather(pl.int_range(1, rows.height + 1, eager=True)) - sums.gather(pl.Series(since))
    start = pl.max_horizontal(pl.col("minute") + 1 - pl.col("window_minutes"), pl.lit(first))
    return (
        rows.with_columns(within.alias("peak"), start.alias("_start"))
        .sort("peak", "_start", descending=[True, False])
        .unique(by, keep="first", maintain_order=True)
        .select(*by, as_instant("_start").alias("peak_start"), "peak")
    )
