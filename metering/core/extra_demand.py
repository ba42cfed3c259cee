"""Demand that was not there: spread over minutes, it fills what stands idle in them, and the rest spills."""

from dataclasses import dataclass
from typing import Final

import polars as pl

from metering.core.capacity import capacity
from metering.core.scenario import Traffic, carried, conformed, elsewhere, part_of
from metering.core.series import identify
from metering.frames import (
    DIMENSIONS,
    INSTANT,
    POOL_CUSTOMER_USAGE,
    POOL_USAGE,
    SUM,
    SUMS,
    USAGE,
    Books,
)
from metering.periods import DAY, Period
from metering.results import UTILIZATION

_QUANTITIES: Final = tuple(SUMS)
_MINUTE: Final = 60_000_000


@dataclass(frozen=True)
class Extra:
    """Demand that limits held back: so many of every quantity in each minute of [start, until), by series.

    steps: series_id, start, until and sums; series: series_id and frames.DIMENSIONS.
    """

    steps: pl.DataFrame
    series: pl.DataFrame

    def within(self, period: Period) -> Traffic:
        """The demand of a period, in whole quarter hours, as traffic."""
        start, until = (pl.lit(at).cast(INSTANT) for at in (period.start, period.until))
        minutes = (
            self.steps.filter((pl.col("start") < until) & (pl.col("until") > start))
            .with_columns(
                pl.max_horizontal("start", start).dt.timestamp("us") // _MINUTE,
                pl.min_horizontal("until", until).dt.timestamp("us") // _MINUTE,
            )
            .with_columns(pl.int_ranges("start", "until").alias("minute"))
            .explode("minute")
            .with_columns((pl.col("minute") * _MINUTE).cast(INSTANT).alias("minute"))
            .drop("start", "until")
            .join(self.series, on="series_id", validate="m:1")
        )
        quarter = pl.col("minute").dt.truncate("15m").alias("quarter_start")
        usage = minutes.group_by(quarter, *DIMENSIONS).agg(pl.col(*_QUANTITIES).sum())
        meant = minutes.filter(pl.col("pool").is_not_null()).select(list(POOL_CUSTOMER_USAGE.columns))
        return conformed(usage.select(list(USAGE.columns)), meant)


@dataclass(frozen=True)
class Filled:
    """What became of extra demand: its usage (frames.USAGE), its minutes (frames.POOL_USAGE), and of those by customer
    (frames.POOL_CUSTOMER_USAGE) the pools in which somebody is entitled to units. Rows of one key may be split.

    burn: pool, dimension, denominator, extra = filled + spilled (numerators). stuck: pools whose excess no provider
    sells on demand: it stays in the pool, as overrun.
    """

    usage: pl.DataFrame
    pool_usage: pl.DataFrame
    pool_customer_usage: pl.DataFrame
    burn: pl.DataFrame
    stuck: tuple[str, ...]


def filled(pool_usage: pl.DataFrame, extra: Extra, books: Books, period: Period) -> Filled:
    """Let extra demand fill what stands idle in its minutes; the rest spills.

        share = the smallest over dimensions of min(extra burn, idle) / extra burn, rounded down per minute

    pool_usage: frames.POOL_USAGE of the traffic as it settled. Nobody is pushed out: what ran in a pool stays, and so
    does what spilled. What spills runs at the provider that the extra has if that sells the model on demand, else at
    the first that does; on demand where no capacity is in force. Extra that was meant for no pool runs on demand as
    it is. Works day by day: minutes take much more memory than what they become.
    """
    entitled = pl.col("pool").is_in(books.entitlements["pool"].unique().implode())
    usage, minutes, by_customer = [USAGE.empty()], [POOL_USAGE.empty()], [POOL_CUSTOMER_USAGE.empty()]
    burn = [UTILIZATION.empty()]
    stuck: set[str] = set()
    for day in period.runs(DAY):
        asked = extra.within(day)
        here = pl.col("minute").is_between(day.start, day.until, closed="left")
        found, nowhere = _filled(asked, capacity(pool_usage.filter(here), books, day).utilization, books, day)
        usage.append(found.usage)
        minutes.append(found.pool_usage())
        by_customer.append(found.minutes.filter(entitled))
        burn.append(
            capacity(minutes[-1], books, day).utilization.filter(pl.col("burn") + pl.col("spill") > 0)
        )
        stuck.update(nowhere)
    sums = (
        pl.concat(burn)
        .group_by("pool", "dimension")
        .agg(
            pl.col("denominator").first(),
            (pl.col("burn") + pl.col("spill")).sum().alias("extra"),
            pl.col("burn").sum().alias("filled"),
            pl.col("spill").sum().alias("spilled"),
        )
        .sort("pool", "dimension")
    )
    return Filled(pl.concat(usage), pl.concat(minutes), pl.concat(by_customer), sums, tuple(sorted(stuck)))


def _filled(
    extra: Traffic, utilization: pl.DataFrame, books: Books, period: Period
) -> tuple[Traffic, list[str]]:
    """(the extra where it runs, pools whose excess has nowhere else to run)."""
    wants = pl.col("pool").is_not_null() & (pl.col("ran_on") == "pool")

    def over(rows: pl.DataFrame) -> pl.DataFrame:
        to = pl.when(wants).then(pl.lit("overflow")).otherwise(pl.col("ran_on"))
        return rows.with_columns(to.alias("ran_on"))

    extra = conformed(over(extra.usage), over(extra.minutes))
    rows = extra.minutes.filter(pl.col("ran_on") == "overflow")
    if not rows.height:
        return extra, []
    by = ["pool", "dimension", "minute"]
    room = utilization.select(*by, "idle")
    asked = capacity(extra.pool_usage(), books, period).utilization.filter(pl.col("spill") > 0)
    asked = asked.select(*by, "spill").join(room, on=by, how="left", validate="1:1")
    whole, none = pl.lit(2**40, dtype=SUM), pl.lit(0, dtype=SUM)
    part = part_of(pl.col("idle"), pl.col("spill"))
    fits = pl.when(pl.col("spill") > pl.col("idle")).then(part).otherwise(whole)
    shares = asked.group_by("pool", "minute").agg(fits.min().alias("_fits"))
    # what burns nothing fits; without capacity in force nothing does
    held = room.select("pool", "minute").unique().with_columns(pl.lit(value=True).alias("_held"))
    place = ["pool", "minute"]
    touched = (
        rows.join(shares, on=place, how="left", validate="m:1")
        .join(held, on=place, how="left", validate="m:1")
        .with_columns(
            pl.coalesce("_fits", pl.when(pl.col("_held")).then(whole).otherwise(none)).alias("_fits"),
            pl.when(pl.col("_held")).then(pl.lit("overflow")).otherwise(pl.lit("on_demand")).alias("_to"),
        )
    )
    comes = touched.with_columns(
        (pl.col(name) * pl.col("_fits") // whole).alias(name) for name in _QUANTITIES
    )
    goes = touched.with_columns(
        (pl.col(name) - pl.col(name) * pl.col("_fits") // whole).alias(name) for name in _QUANTITIES
    )
    some = pl.any_horizontal(pl.col(name) != 0 for name in _QUANTITIES)
    goes, nowhere = elsewhere(goes.filter(some), books)
    extra = carried(extra, comes.select(rows.columns), {"ran_on": "pool"})
    for (to, provider), leaves in goes.group_by("_to", "_provider"):
        extra = carried(extra, leaves.select(rows.columns), {"ran_on": str(to), "provider": str(provider)})
    extra = carried(extra, nowhere.select(rows.columns), {"ran_on": "pool"})
    return extra, nowhere["pool"].unique().to_list()


def spread(extra: pl.DataFrame) -> Extra:
    """Quantities laid evenly on the minutes from `binding_from` to `window_until`, the first minutes one more."""
    rows = extra.group_by("binding_from", "window_until", *DIMENSIONS).agg(pl.col(*_QUANTITIES).sum())
    known = identify(rows, list(DIMENSIONS))
    length = (pl.col("window_until") - pl.col("binding_from")).dt.total_minutes().cast(SUM)
    zero = pl.lit(0, dtype=SUM)
    changes = []
    for name in _QUANTITIES:
        each, left = pl.col(name) // length, pl.col(name) % length
        one = (left > 0).cast(SUM)
        uneven = pl.col("binding_from") + pl.duration(minutes=left.cast(pl.Int64))
        for at, change in (
            (pl.col("binding_from"), each + one),
            (uneven, zero - one),
            (pl.col("window_until"), zero - each),
        ):
            changes.append(
                known.rows.filter(pl.col(name) != 0).select(
                    "series_id",
                    at.cast(INSTANT).alias("start"),
                    *(change.alias(name) if name == other else zero.alias(other) for other in _QUANTITIES),
                )
            )
    steps = (
        pl.concat(changes)
        .group_by("series_id", "start")
        .agg(pl.col(*_QUANTITIES).sum())
        .sort("series_id", "start")
        .with_columns(
            pl.col(*_QUANTITIES).cum_sum().over("series_id"),
            pl.col("start").shift(-1).over("series_id").alias("until"),
        )
        .filter(pl.any_horizontal(pl.col(name) != 0 for name in _QUANTITIES))
    )
    return Extra(steps.select("series_id", "start", "until", *_QUANTITIES), known.series)
