"""Capacity: what a pool's traffic burned, minute by minute, against what was contracted."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import polars as pl

from metering.core.effective import edges, in_force
from metering.core.series import identify
from metering.errors import BadInput
from metering.frames import INSTANT, POOL_USAGE, SUM, Books
from metering.meters import METERS, TOKEN_METERS
from metering.money import EXACT_MAX, RATIO, ratio
from metering.periods import MINUTE, Period
from metering.results import BURNED, CAPACITY_SUMMARY, UNBURNED, UTILIZATION

_SERIES: Final = ("pool", "ran_on", "model_served", "tier_served", "region", "context_breakpoint")
_WEIGHED_BY: Final = ("pool", "model_served", "context_breakpoint")
_GRID: Final = ("pool", "dimension", "minute", "denominator", "contracted")
_SUMMED: Final = tuple(name for name, dtype in UTILIZATION.columns.items() if dtype == SUM)


@dataclass(frozen=True)
class Capacity:
    """utilization: results.UTILIZATION. unburned: results.UNBURNED, reasons unknown_pool and no_weight."""

    utilization: pl.DataFrame
    unburned: pl.DataFrame


def weigh(
    rows: pl.DataFrame, series: pl.DataFrame, burndown: pl.DataFrame, *, at: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Burn numerators per row and dimension: sum over meters of weight x quantity; (weighed, unweighed).

    rows: `at`, series_id, meters. series: series_id, pool, model_served, context_breakpoint. burndown:
    frames.BURNDOWN; the weights in force at `at` apply. weighed: `at`, series_id, dimension, burn.
    unweighed: `at`, series_id, meter, quantity that no dimension weighs: all of a model that the table in
    force does not name; else token meters without a weight, where the table weighs tokens at all (a weight
    of 0 has to be said). accelerator_ms without a weight burns nothing: the pool is measured in tokens.
    Total burn beyond EXACT_MAX raises BadInput: it could wrap.
    """
    starts = edges([burndown])
    instants = rows.select(at).unique().sort(at)
    epochs = instants.join_asof(
        pl.DataFrame({"epoch": starts}, schema={"epoch": INSTANT}),
        left_on=at,
        right_on="epoch",
        strategy="backward",
        check_sortedness=False,
        coalesce=False,
    ).with_columns(pl.col("epoch").fill_null(pl.lit(0).cast(INSTANT)))
    rows = rows.join(epochs, on=at, how="left", validate="m:1")
    met = rows.select("series_id", "epoch").unique().join(series, on="series_id", how="left", validate="m:1")
    weights, missing = _weights(met.select(*_WEIGHED_BY, "epoch").unique(), burndown)
    weights = met.join(weights, on=[*_WEIGHED_BY, "epoch"]).select(
        "series_id", "epoch", "dimension", *_COLUMNS
    )
    weighed = rows.join(weights, on=["series_id", "epoch"])
    guess = pl.sum_horizontal(
        pl.col(meter).abs().cast(pl.Float64) * pl.col(_weight(meter)).cast(pl.Float64) for meter in METERS
    )
    if (weighed.select(guess.sum()).item() or 0) > 0.99 * EXACT_MAX:
        worst = weighed.select(at, "dimension", *METERS, guess.alias("burn")).sort("burn").row(-1, named=True)
        raise BadInput(f"burn is beyond what can be summed exactly, most of it in {worst}; void those events")
    burn = pl.sum_horizontal(pl.col(meter).cast(SUM) * pl.col(_weight(meter)) for meter in METERS)
    weighed = weighed.select(at, "series_id", "dimension", burn.cast(SUM).alias("burn"))
    gaps = met.join(missing, on=[*_WEIGHED_BY, "epoch"]).select("series_id", "epoch", "meter")
    unweighed = pl.concat(
        [
            rows.filter(pl.col(meter) != 0)
            .join(gaps.filter(pl.col("meter") == meter), on=["series_id", "epoch"])
            .select(at, "series_id", "meter", pl.col(meter).cast(SUM).alias("quantity"))
            for meter in METERS
        ]
    )
    return weighed, unweighed


def _weight(meter: str) -> str:
    return f"weight_{meter}"


_COLUMNS: Final = tuple(_weight(meter) for meter in METERS)


def _weights(keys: pl.DataFrame, burndown: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Per key and dimension one column of weights per meter; and per key the meters that nothing weighs."""
    meters = pl.DataFrame({"meter": METERS}, schema={"meter": pl.String})
    dimensions = burndown.select("pool", "dimension").unique()
    table = burndown.select(
        *("pool", "dimension", "context_breakpoint", "meter", "effective_from", "effective_until"),
        pl.col("model").alias("model_served"),
        pl.col("weight").cast(SUM),
    )
    found = in_force(
        keys.join(dimensions, on="pool").join(meters, how="cross"),
        table,
        at="epoch",
        by=[*_WEIGHED_BY, "dimension", "meter"],
    )
    by = [*_WEIGHED_BY, "epoch"]
    wide = found.group_by(*by, "dimension").agg(
        pl.col("weight").filter(pl.col("meter") == meter).sum().alias(_weight(meter)) for meter in METERS
    )
    said = found.group_by(*by, "meter").agg(pl.col("weight").is_not_null().any().alias("said"))
    every = keys.join(meters, how="cross").join(said, on=[*by, "meter"], how="left", validate="1:1")
    said_ = pl.col("said").fill_null(value=False)
    token = pl.col("meter").is_in(TOKEN_METERS)
    named = said_.any().over(by)
    tokens_weighed = (said_ & token).any().over(by)
    missing = every.filter(~named | (token & tokens_weighed & ~said_)).select(*by, "meter")
    return wide, missing


def denominators(burndown: pl.DataFrame) -> pl.DataFrame:
    """The one denominator of each pool and dimension: pool, dimension, denominator. Two raise BadInput."""
    found = burndown.group_by("pool", "dimension").agg(
        pl.col("denominator").first(), pl.col("denominator").n_unique().alias("_count")
    )
    two = found.filter(pl.col("_count") > 1)
    if two.height:
        row = two.row(0, named=True)
        raise BadInput(
            f"burndown of pool '{row['pool']}', dimension '{row['dimension']}' has "
            f"{row['_count']} denominators; bring all its versions to one"
        )
    return found.drop("_count")


def burn(pool_usage: pl.DataFrame, burndown: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Burn per minute, pool, dimension and ran_on (on_demand burns nothing): (burned, unburned).

    pool_usage: frames.POOL_USAGE, rows of one key may be split. burn(r, d) = sum over meters of weight x
    quantity, as numerators over the dimension's denominator; what has no weight is in `unburned`.
    """
    usage = pool_usage.filter(pl.col("ran_on").is_in(["pool", "overflow"]))
    identified = identify(usage.select(*POOL_USAGE.columns), _SERIES)
    series = identified.series
    weighed, unweighed = weigh(identified.rows, series, burndown, at="minute")
    burned = (
        weighed.join(series.select("series_id", "pool", "ran_on"), on="series_id", validate="m:1")
        .group_by("minute", "pool", "dimension", "ran_on")
        .agg(pl.col("burn").sum())
        .join(denominators(burndown), on=["pool", "dimension"], validate="m:1")
    )
    unburned = (
        unweighed.join(series, on="series_id", validate="m:1")
        .group_by("minute", *_SERIES, "meter")
        .agg(pl.col("quantity").sum())
        .filter(pl.col("quantity") != 0)
        .with_columns(pl.lit("no_weight").alias("reason"))
    )
    return BURNED.conform(burned), UNBURNED.conform(unburned)


def contracted(books: Books, period: Period) -> pl.DataFrame:
    """Every minute in which capacity is contracted: pool, dimension, minute, denominator, contracted.

    contracted = units x unit_burn_per_minute x denominator, from the step in force, an Int128 numerator.
    """
    steps = books.capacity_steps.join(
        denominators(books.burndown), on=["pool", "dimension"], how="left", validate="m:1"
    ).with_columns(pl.col("denominator").fill_null(1))
    grids = [pl.DataFrame(schema={name: UTILIZATION.columns[name] for name in _GRID})]
    for step in steps.iter_rows(named=True):
        start = max(period.start, step["effective_from"])
        until = min(period.until, step["effective_until"] or period.until)
        if start >= until:
            continue
        numerator = step["units"] * step["unit_burn_per_minute"] * step["denominator"]
        if numerator * period.minutes > EXACT_MAX:
            raise BadInput(
                f"pool '{step['pool']}', dimension '{step['dimension']}': {step['units']} units x "
                f"{step['unit_burn_per_minute']} a minute are beyond exact sums; use a larger unit"
            )
        minutes = pl.datetime_range(start, until, MINUTE, closed="left", time_unit="us", eager=True)
        grids.append(
            pl.DataFrame({"minute": minutes}, schema={"minute": INSTANT}).select(
                pl.lit(step["pool"]).alias("pool"),
                pl.lit(step["dimension"]).alias("dimension"),
                "minute",
                pl.lit(step["denominator"], dtype=pl.Int64).alias("denominator"),
                pl.lit(numerator, dtype=SUM).alias("contracted"),
            )
        )
    return pl.concat(grids)


def capacity(pool_usage: pl.DataFrame, books: Books, period: Period) -> Capacity:
    """Capacity identity of every pool, dimension and minute of the period, used or not.

        contracted = undelivered + carved_out + served + idle        exactly
        available = contracted - undelivered - carved_out
        served = min(burn, available),  burn = served + overrun

    pool_usage: frames.POOL_USAGE of at least the period, whose end is already cut; other minutes are ignored.
    Usage of a pool with no capacity in force in that minute is in `unburned` as unknown_pool.
    A negative burn in a minute raises BadInput: compensating entries cannot outweigh what they compensate.
    """
    usage = pool_usage.filter(
        (pl.col("minute") >= period.start)
        & (pl.col("minute") < period.until)
        & pl.col("ran_on").is_in(["pool", "overflow"])
    )
    grid = contracted(books, period)
    in_capacity = grid.select("pool", "minute").unique()
    known = usage.join(in_capacity, on=["pool", "minute"], how="semi")
    unknown = usage.join(in_capacity, on=["pool", "minute"], how="anti")
    table = books.burndown.join(
        grid.select("pool", "dimension").unique(), on=["pool", "dimension"], how="semi"
    )
    burned, unburned = burn(known, table)
    lost = (
        unknown.unpivot(METERS, index=["minute", *_SERIES], variable_name="meter", value_name="quantity")
        .group_by("minute", *_SERIES, "meter")
        .agg(pl.col("quantity").sum())
        .filter(pl.col("quantity") != 0)
        .with_columns(pl.lit("unknown_pool").alias("reason"))
    )
    by = ["pool", "dimension", "minute"]
    sides = burned.group_by(by).agg(
        pl.col("burn").filter(pl.col("ran_on") == "pool").sum().alias("burn"),
        pl.col("burn").filter(pl.col("ran_on") == "overflow").sum().alias("spill"),
    )
    negative = sides.filter((pl.col("burn") < 0) | (pl.col("spill") < 0))
    if negative.height:
        raise BadInput(
            f"burn is negative in {negative.sort(by).row(0, named=True)}: a compensating entry outweighs "
            "its target; run `metering verify`"
        )
    zero = pl.lit(0, dtype=SUM)
    minutes = (
        grid.join(sides, on=by, how="left", validate="1:1")
        .with_columns(
            pl.col("burn", "spill").fill_null(zero),
            zero.alias("undelivered"),
            zero.alias("carved_out"),
        )
        .with_columns(
            (pl.col("contracted") - pl.col("undelivered") - pl.col("carved_out")).alias("available")
        )
        .with_columns(pl.min_horizontal("burn", "available").alias("served"))
        .with_columns(
            (pl.col("available") - pl.col("served")).alias("idle"),
            (pl.col("burn") - pl.col("served")).alias("overrun"),
            ratio(pl.col("burn"), pl.col("available")).alias("utilization_ratio"),
        )
    )
    columns = list(UNBURNED.columns)
    unburned = pl.concat([unburned.select(columns), lost.select(columns)])
    return Capacity(UTILIZATION.conform(minutes), UNBURNED.conform(unburned))


def summarise_capacity(utilization: pl.DataFrame) -> pl.DataFrame:
    """One row per pool and dimension (results.CAPACITY_SUMMARY), on all minutes, before any filter.

    Percentiles are nearest rank: the value at place ceil(p x n) of the n ascending minutes, so p50 of four is
    the second. A minute, or a 5- or 15-minute window of the clock, is at its limit where burn >= available
    and not both are 0. Minutes with nothing available have no ratio and are left out of mean and percentiles.
    """
    by = ["pool", "dimension"]
    minutes = utilization.sort(*by, "minute").with_columns(_at_limit().alias("_full"))
    micro = pl.col("utilization_ratio").drop_nulls().sort().to_physical()
    count = micro.len()
    shares = minutes.group_by(by).agg(
        pl.len().cast(pl.Int64).alias("minutes"),
        pl.col("denominator").first(),
        *(pl.col(name).sum() for name in _SUMMED),
        (micro.sum().cast(SUM)).alias("_sum"),
        count.cast(SUM).alias("_count"),
        *(
            micro.get((count * percent + 99) // 100 - 1, null_on_oob=True).alias(f"p{percent}_ratio")
            for percent in (50, 95, 99)
        ),
        micro.max().alias("max_ratio"),
        pl.col("_full").sum().cast(pl.Int64).alias("minutes_at_limit"),
    )
    million = pl.lit(10**6, dtype=SUM)
    placed = [pl.col(f"{name}_ratio").cast(RATIO) * _MICRO for name in ("p50", "p95", "p99", "max")]
    shares = shares.with_columns(
        *placed,
        ratio(pl.col("_sum"), pl.col("_count") * million).alias("mean_ratio"),
        ratio(pl.col("served"), pl.col("contracted")).alias("served_of_contracted_ratio"),
        ratio(pl.col("served"), pl.col("available")).alias("served_of_available_ratio"),
    )
    for length in (5, 15):
        windows = (
            minutes.group_by(*by, pl.col("minute").dt.truncate(f"{length}m"))
            .agg(pl.col("burn").sum(), pl.col("available").sum(), pl.len().cast(pl.Int64).alias("_minutes"))
            .group_by(by)
            .agg(pl.col("_minutes").filter(_at_limit()).sum().alias(f"minutes_at_limit_{length}m"))
        )
        shares = shares.join(windows, on=by, validate="1:1")
    gap = (pl.col("minute") - pl.col("minute").shift(1)).over(by) != pl.lit(MINUTE)
    broken = (~pl.col("_full") | gap.fill_null(value=True)).cum_sum().over(by)
    runs = (
        minutes.with_columns(broken.alias("_run"))
        .group_by(*by, "_run")
        .agg(pl.col("_full").sum().cast(pl.Int64).alias("_length"))
        .group_by(by)
        .agg(pl.col("_length").max().alias("longest_run_at_limit_minutes"))
    )
    pools = (
        minutes.filter(pl.col("_full"))
        .group_by("pool")
        .agg(pl.col("minute").n_unique().cast(pl.Int64).alias("pool_minutes_at_limit"))
    )
    summary = (
        shares.join(runs, on=by, validate="1:1")
        .join(pools, on="pool", how="left", validate="m:1")
        .with_columns(pl.col("pool_minutes_at_limit").fill_null(0))
    )
    return CAPACITY_SUMMARY.conform(summary)


_MICRO: Final = pl.lit(Decimal("0.000001"), dtype=RATIO)


def _at_limit() -> pl.Expr:
    return (pl.col("burn") >= pl.col("available")) & (pl.col("burn") + pl.col("available") > 0)
