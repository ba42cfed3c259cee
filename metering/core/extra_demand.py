"""Demand that was not there: spread over minutes, it fills what stands idle in them, and the rest spills."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import polars as pl

from metering.core.capacity import capacity
from metering.core.scenario import elsewhere, part_of
from metering.core.series import identify
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM, Frame
from metering.frames.usage import DIMENSIONS, POOL_CUSTOMER_USAGE, POOL_USAGE, SUMS, USAGE
from metering.periods import DAY, Period
from metering.results.capacity import UTILIZATION

_QUANTITIES: Final = tuple(SUMS)
_MINUTE: Final = 60_000_000


@dataclass(frozen=True)
class Extra:
    """Demand that limits held back: so many of every quantity in each minute of [start, until), by series.

    steps: series_id, start, until and sums; series: series_id and frames.DIMENSIONS.
    """

    steps: pl.DataFrame
    series: pl.DataFrame

    def minutes(self, period: Period) -> pl.DataFrame:
        """The demand of a period minute by minute: series_id, minute and the quantities that there are any of."""
        start, until = (pl.lit(at).cast(INSTANT) for at in (period.start, period.until))
        return (
            self.steps.filter((pl.col("start") < until) & (pl.col("until") > start))
            .with_columns(
                pl.max_horizontal("start", start).dt.timestamp("us") // _MINUTE,
                pl.min_horizontal("until", until).dt.timestamp("us") // _MINUTE,
            )
            .with_columns(pl.int_ranges("start", "until").alias("minute"))
            .drop("start", "until", *(name for name in _QUANTITIES if name not in self.quantities))
            .explode("minute")
            .with_columns((pl.col("minute") * _MINUTE).cast(INSTANT).alias("minute"))
        )

    @cached_property
    def quantities(self) -> list[str]:
        """The quantities that there are any of."""
        return [name for name in _QUANTITIES if (self.steps[name] != 0).any()]


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
        fills = quantity x share of its pool and minute, rounded down per minute and series

    pool_usage: frames.POOL_USAGE of the traffic as it settled. Nobody is pushed out: what ran in a pool stays, and so
    does what spilled. What spills runs at the provider that the extra has if that sells the model on demand, else at
    the first that does; on demand where no capacity is in force. Extra that was meant for no pool runs on demand as
    it is. Works day by day, on numbers: minutes take much more memory than what they become.
    """
    series = _numbered(extra.series, books)
    usage, minutes, by_customer = [USAGE.empty()], [POOL_USAGE.empty()], [POOL_CUSTOMER_USAGE.empty()]
    burn = [UTILIZATION.empty()]
    stuck: set[str] = set()
    for day in period.runs(DAY):
        rows = extra.minutes(day)
        if not rows.height:
            continue
        here = pl.col("minute").is_between(day.start, day.until, closed="left")
        idle = capacity(pool_usage.filter(here), books, day).utilization
        runs = _runs(rows, series, idle, books, day)
        usage.append(_laid(runs, series, pl.col("minute").dt.truncate("15m").alias("quarter_start"), USAGE))
        pooled = runs.join(
            series.filter(pl.col("pool").is_not_null()).select("series_id"), on="series_id", how="semi"
        )
        minutes.append(POOL_USAGE.conform(_of_places(pooled, series)))
        held = pooled.join(series.filter("_entitled").select("series_id"), on="series_id", how="semi")
        by_customer.append(_laid(held, series, pl.col("minute"), POOL_CUSTOMER_USAGE))
        used = capacity(minutes[-1], books, day).utilization
        burn.append(used.filter(pl.col("burn") + pl.col("spill") > 0))
        left = runs.filter(pl.col("_to") == _STUCK).select("series_id").unique()
        stuck.update(series.join(left, on="series_id", how="semi")["pool"])
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


#: Where extra runs: in its pool (there because nobody else sells it), as overflow, on demand, or as it did.
_POOL, _STUCK, _OVERFLOW, _ON_DEMAND, _AS_IT_WAS = range(5)
_PLACE: Final = tuple(name for name in POOL_USAGE.key if name not in ("minute", "ran_on"))


def _numbered(series: pl.DataFrame, books: Books) -> pl.DataFrame:
    """The series with what happens to them: `_wants` a pool, `_provider` of what spills, `_place`, `_entitled`."""
    wants = pl.col("pool").is_not_null() & pl.col("ran_on").is_in(["pool", "overflow"])
    sold, unsold = elsewhere(series.filter(wants), books)
    provider = pl.concat([sold, unsold]).select("series_id", "_provider")
    places = series.select(_PLACE).unique().with_row_index("_place")
    return (
        series.join(provider, on="series_id", how="left", validate="1:1")
        .join(places, on=_PLACE, nulls_equal=True, validate="m:1")
        .with_columns(
            wants.alias("_wants"),
            pl.col("pool")
            .is_in(books.entitlements["pool"].unique().implode())
            .fill_null(value=False)
            .alias("_entitled"),
        )
    )


def _runs(
    rows: pl.DataFrame, series: pl.DataFrame, idle: pl.DataFrame, books: Books, day: Period
) -> pl.DataFrame:
    """The extra of a day where it runs: series_id, minute, `_to` and quantities."""
    unsold = pl.col("_provider").is_null().alias("_unsold")
    rows = rows.join(series.select("series_id", "_wants", "pool", unsold), on="series_id", validate="m:1")
    names = [name for name in _QUANTITIES if name in rows.columns]
    columns = ["series_id", "minute", *names]
    as_it_was = rows.filter(~pl.col("_wants")).select(*columns, pl.lit(_AS_IT_WAS).alias("_to"))
    wants = rows.filter("_wants")
    if not wants.height:
        return as_it_was
    asked = _of_places(wants.with_columns(pl.lit(_OVERFLOW).alias("_to")), series)
    by = ["pool", "minute"]
    room = idle.select("dimension", *by, "idle")
    spill = capacity(POOL_USAGE.conform(asked), books, day).utilization.filter(pl.col("spill") > 0)
    spill = spill.select("dimension", *by, "spill").join(
        room, on=["dimension", *by], how="left", validate="1:1"
    )
    whole, none = pl.lit(2**40, dtype=SUM), pl.lit(0, dtype=SUM)
    part = part_of(pl.col("idle"), pl.col("spill"))
    fits = pl.when(pl.col("spill") > pl.col("idle")).then(part).otherwise(whole)
    shares = spill.group_by(by).agg(fits.min().alias("_fits"))
    # what burns nothing fits; without capacity in force nothing does
    held = room.select(by).unique().with_columns(pl.lit(value=True).alias("_held"))
    wants = (
        wants.join(shares, on=by, how="left", validate="m:1")
        .join(held, on=by, how="left", validate="m:1")
        .with_columns(
            pl.coalesce("_fits", pl.when(pl.col("_held")).then(whole).otherwise(none)).alias("_fits"),
            pl.when("_unsold")
            .then(_STUCK)
            .when(pl.col("_held"))
            .then(_OVERFLOW)
            .otherwise(_ON_DEMAND)
            .alias("_to"),
        )
    )
    comes = [(pl.col(name) * pl.col("_fits") // whole).alias(name) for name in names]
    goes = [(pl.col(name) - pl.col(name) * pl.col("_fits") // whole).alias(name) for name in names]
    runs = [
        wants.select("series_id", "minute", *comes, pl.lit(_POOL).alias("_to")),
        wants.filter(pl.col("_fits") < whole).select("series_id", "minute", *goes, "_to"),
        as_it_was,
    ]
    return pl.concat(runs).filter(pl.any_horizontal(pl.col(name) != 0 for name in names))


def _ran_on() -> pl.Expr:
    named = {_POOL: "pool", _STUCK: "pool", _OVERFLOW: "overflow", _ON_DEMAND: "on_demand"}
    return pl.col("_to").replace_strict(named, default=None, return_dtype=pl.String)


def _whole(rows: pl.DataFrame) -> pl.DataFrame:
    """With a zero for each quantity that there is nothing of."""
    missing = [name for name in _QUANTITIES if name not in rows.columns]
    return rows.with_columns(pl.lit(0, dtype=SUM).alias(name) for name in missing)


def _of_places(runs: pl.DataFrame, series: pl.DataFrame) -> pl.DataFrame:
    """Minutes of pools without their customers, in the columns of frames.POOL_USAGE."""
    names = [name for name in _QUANTITIES if name in runs.columns]
    places = series.unique("_place").select("_place", *_PLACE)
    # told apart by what ran, not by why; what names a pool and does not want it runs on demand
    told = {_STUCK: _POOL, _AS_IT_WAS: _ON_DEMAND}
    to = pl.col("_to").replace(told).alias("_to")
    sums = (
        runs.join(series.select("series_id", "_place"), on="series_id", validate="m:1")
        .group_by("_place", to, "minute")
        .agg(pl.col(names).sum())
        .join(places, on="_place", validate="m:1")
    )
    return _whole(sums.with_columns(_ran_on().alias("ran_on"))).select(list(POOL_USAGE.columns))


def _laid(runs: pl.DataFrame, series: pl.DataFrame, at: pl.Expr, frame: Frame) -> pl.DataFrame:
    """Runs summed by series and time, in the columns of a frame."""
    names = [name for name in _QUANTITIES if name in runs.columns]
    sums = runs.group_by("series_id", at, "_to").agg(pl.col(names).sum())
    moved = pl.col("_to").is_in([_OVERFLOW, _ON_DEMAND])
    return _whole(
        sums.join(series, on="series_id", validate="m:1").with_columns(
            pl.coalesce(_ran_on(), "ran_on").alias("ran_on"),
            pl.when(moved).then("_provider").otherwise("provider").alias("provider"),
        )
    ).select(list(frame.columns))


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
