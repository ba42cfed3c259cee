"""Quotas: how full the rate limits were of what ran on demand, minute by minute."""

import polars as pl

from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM
from metering.meters import METERS
from metering.money import EXACT_MAX, ratio
from metering.periods import Period
from metering.results.capacity import UTILIZATION

_ANY = "*"
_CELL = ("quota", "dimension")


def quota_use(usage: pl.DataFrame, books: Books, period: Period) -> pl.DataFrame:
    """results.UTILIZATION of every quota, dimension and minute in force; `pool` is the quota.

        burn = sum of weight x quantity of what ran on demand at the provider, of the quota's models and regions
        contracted = available = per_minute,  overrun = what the provider let through above it

    usage: frames.ON_DEMAND_USAGE of at least the period, rows of one key may be split; other minutes are
    ignored. Quantities are numerators over `denominator`. A use beyond exact sums raises BadInput.
    """
    inside = pl.col("minute").is_between(period.start, period.until, closed="left")
    used = (
        usage.filter(inside)
        .group_by("minute", "provider", "model_served", "region")
        .agg(pl.col("requests", *METERS).sum())
    )
    denominators = books.quota_weights.select(*_CELL, "denominator").unique()
    minutes = _minutes(books.quotas, denominators, period)
    scope = books.quotas.select("quota", "provider", "model", "region").unique()
    here = (pl.col("model").is_in([_ANY]) | (pl.col("model") == pl.col("model_served"))) & (
        pl.col("region").is_in([_ANY]) | (pl.col("region") == pl.col("region_served"))
    )
    counted = (
        used.rename({"region": "region_served"})
        .join(scope, on="provider")
        .filter(here)
        .unpivot(
            ["requests", *METERS], index=["quota", "minute"], variable_name="meter", value_name="quantity"
        )
        .filter(pl.col("quantity") != 0)
        .join(books.quota_weights, on=["quota", "meter"])
    )
    about = counted.select(
        (pl.col("weight").cast(pl.Float64) * pl.col("quantity").cast(pl.Float64)).abs().sum()
    )
    if (about.item() or 0) > EXACT_MAX / 1_000_000:
        raise BadInput("what counts in a quota is beyond exact sums; use smaller weights")
    burn = counted.group_by(*_CELL, "minute").agg(
        (pl.col("weight").cast(SUM) * pl.col("quantity")).sum().alias("burn")
    )
    zero = pl.lit(0, dtype=SUM)
    rows = (
        minutes.join(burn, on=[*_CELL, "minute"], how="left", validate="1:1")
        .with_columns(
            pl.col("burn").fill_null(zero),
            pl.col("contracted").alias("available"),
            *(zero.alias(name) for name in ("undelivered", "carved_out", "spill")),
        )
        .with_columns(pl.min_horizontal("burn", "available").alias("served"))
        .with_columns(
            (pl.col("available") - pl.col("served")).alias("idle"),
            (pl.col("burn") - pl.col("served")).alias("overrun"),
            ratio(pl.col("burn"), pl.col("available")).alias("utilization_ratio"),
            pl.col("quota").alias("pool"),
        )
    )
    return UTILIZATION.conform(rows)


def _minutes(quotas: pl.DataFrame, denominators: pl.DataFrame, period: Period) -> pl.DataFrame:
    """Every minute of the period in which a quota is in force, with what it allows."""
    start = pl.max_horizontal("effective_from", pl.lit(period.start, dtype=INSTANT))
    until = pl.min_horizontal("effective_until", pl.lit(period.until, dtype=INSTANT))
    return (
        quotas.select(*_CELL, "effective_from", "effective_until", "per_minute")
        .unique()
        .join(denominators, on=_CELL, validate="m:1")
        .with_columns(start.alias("_start"), until.alias("_until"))
        .filter(pl.col("_start") < pl.col("_until"))
        .select(
            *_CELL,
            "denominator",
            (pl.col("per_minute").cast(SUM) * pl.col("denominator")).alias("contracted"),
            pl.datetime_ranges("_start", "_until", interval="1m", closed="left", time_unit="us").alias(
                "minute"
            ),
        )
        .explode("minute", empty_as_null=False)
    )
