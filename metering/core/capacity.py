"""Capacity: what a pool's traffic burned, minute by minute, against what was contracted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from metering.core.burn import (
    SERIES,
    carve_out_pools,
    denominators,
    unburned,
    weigh_by_dimension,
    weights_in,
)
from metering.core.series import identify, where
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM
from metering.frames.usage import POOL_USAGE, Identified
from metering.meters import METERS
from metering.money import EXACT_MAX, RATIO, ratio
from metering.periods import MINUTE, Period
from metering.results.capacity import CAPACITY_SUMMARY, UNBURNED, UTILIZATION

_SUMMED: Final = tuple(name for name, dtype in UTILIZATION.columns.items() if dtype == SUM)


@dataclass(frozen=True)
class Capacity:
    """utilization: results.UTILIZATION of the pools. unburned: results.UNBURNED, unknown_pool and no_weight.

    carve_outs: results.UTILIZATION of what was set aside, `pool` being the name of the carve-out: the units in
    force are what it has (0 outside of its spans), and what ran on it is its burn, not its pool's.
    """

    utilization: pl.DataFrame
    unburned: pl.DataFrame
    carve_outs: pl.DataFrame


#: Of a dimension of a pool, or of a carve-out, from `start` to `until`, per minute.
_SPANS: Final[Mapping[str, pl.DataType | type[pl.DataType]]] = {
    "pool": pl.String,
    "dimension": pl.String,
    "start": INSTANT,
    "until": INSTANT,
    "denominator": pl.Int64,
    "contracted": SUM,
    "undelivered": SUM,
    "carved_out": SUM,
}


def contracted(books: Books, period: Period) -> tuple[pl.DataFrame, pl.DataFrame]:
    """When capacity is contracted, of pools and of carve-outs: (pools, carve_outs), spans that do not overlap.

    Each: pool, dimension, start, until, denominator, and per minute contracted, undelivered, carved_out, Int128
    numerators: units x unit_burn_per_minute x denominator of the step in force. A carve-out has its units as
    contracted. More set aside than is contracted raises BadInput.
    """
    steps = books.capacity_steps.join(
        denominators(books.burndown, books.multipliers), on=["pool", "dimension"], how="left", validate="m:1"
    ).with_columns(pl.col("denominator").fill_null(1))
    aside: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in books.set_aside.iter_rows(named=True):
        aside.setdefault((row["pool"], row["dimension"]), []).append(row)
    pools: list[tuple[object, ...]] = []
    carve_outs: list[tuple[object, ...]] = []
    for step in steps.sort("pool", "dimension", "effective_from").iter_rows(named=True):
        start = max(period.start, step["effective_from"])
        until = min(period.until, step["effective_until"] or period.until)
        if start >= until:
            continue
        pool, dimension = step["pool"], step["dimension"]
        unit = step["unit_burn_per_minute"] * step["denominator"]
        if step["units"] * unit * period.minutes > EXACT_MAX:
            raise BadInput(
                f"pool '{pool}', dimension '{dimension}': {step['units']} units x "
                f"{step['unit_burn_per_minute']} a minute are beyond exact sums; use a larger unit"
            )
        rows = aside.get((pool, dimension), [])
        ends = {row["effective_from"] for row in rows} | {row["effective_until"] for row in rows}
        cuts = sorted({start, until, *(cut for cut in ends if cut is not None and start < cut < until)})
        for since, to in pairwise(cuts):
            units: dict[tuple[str, str], int] = {}
            for row in rows:
                if row["effective_from"] <= since and since < (row["effective_until"] or to):
                    name = (row["kind"], row["name"])
                    units[name] = units.get(name, 0) + row["units"]
            if sum(units.values()) > step["units"]:
                told = ", ".join(f"{count} {kind} '{name}'" for (kind, name), count in sorted(units.items()))
                raise BadInput(
                    f"pool '{pool}', dimension '{dimension}', from {since:%Y-%m-%dT%H:%MZ}: {told} of "
                    f"{step['units']} units are more than was contracted; correct the capacity contract"
                )
            carved = {name: count for (kind, name), count in units.items() if kind == "carve_out"}
            span = (dimension, since, to, step["denominator"])
            reserved = sum(carved.values())
            missing = sum(units.values()) - reserved
            pools.append((pool, *span, step["units"] * unit, missing * unit, reserved * unit))
            carve_outs += [(name, *span, count * unit, 0, 0) for name, count in carved.items()]
    spans = [pl.DataFrame(rows, schema=_SPANS, orient="row") for rows in (pools, carve_outs)]
    return spans[0].sort("pool", "dimension", "start"), spans[1].sort("pool", "dimension", "start")


def together(parts: Sequence[Capacity]) -> Capacity:
    """The capacity of a period from that of its parts, which do not overlap: every row is about one minute."""
    return Capacity(
        UTILIZATION.conform(pl.concat([part.utilization for part in parts])),
        UNBURNED.conform(pl.concat([part.unburned for part in parts])),
        UTILIZATION.conform(pl.concat([part.carve_outs for part in parts])),
    )


def capacity(pool_usage: pl.DataFrame, books: Books, period: Period) -> Capacity:
    """Capacity identity of every pool, dimension and minute of the period, used or not.

        contracted = undelivered + carved_out + served + idle        exactly
        available = contracted - undelivered - carved_out
        served = min(burn, available),  burn = served + overrun

    pool_usage: frames.POOL_USAGE of at least the period, whose end is already cut; other minutes are ignored.
    Usage whose pool is the name of a carve-out is the carve-out's. Usage of a pool with no capacity in force
    in that minute is in `unburned` as unknown_pool.
    A negative burn in a minute raises BadInput: compensating entries cannot outweigh what they compensate.
    """
    usage = where(
        pool_usage.select(*POOL_USAGE.columns),
        (pl.col("minute") >= period.start)
        & (pl.col("minute") < period.until)
        & pl.col("ran_on").is_in(["pool", "overflow"]),
    )
    known = identify(usage, SERIES)
    del usage
    pools, carve_outs = contracted(books, period)
    apart = carve_out_pools(books.set_aside)["carve_out"]
    inside = _has_capacity(known, pools, apart, period)
    unknown = known.rows.filter(~inside).unpivot(
        METERS, index=["minute", "series_id"], variable_name="meter", value_name="quantity"
    )
    weights = weights_in(books)
    burned, unweighed = weigh_by_dimension(where(known.rows, inside), known.series, *weights, at="minute")
    without = [
        unburned(unknown, known.series, "unknown_pool"),
        unburned(unweighed, known.series, "no_weight"),
    ]
    # minutes of pools and dimensions are told apart by one number: to join on texts takes ten times as long
    denominator = denominators(*weights)
    cells = pl.concat([each.select("pool", "dimension") for each in (pools, carve_outs, denominator)])
    cells = cells.unique().sort("pool", "dimension").with_row_index("_cell")
    sides = _sides(known.series, burned, cells, period)
    of_carve_outs = _by_minute(carve_outs, cells, period)
    # traffic on a carve-out outside of its spans had nothing: all of it is overrun
    outside = sides.met.copy()
    outside[of_carve_outs["_at"].to_numpy()] = False
    had_nothing = (
        pl.DataFrame({"_at": np.flatnonzero(outside)})
        .select("_at", *_place(cells, period))
        .filter(pl.col("pool").is_in(apart.implode()))
        .join(denominator, on=["pool", "dimension"], validate="m:1")
    )
    return Capacity(
        _identity(_by_minute(pools, cells, period), sides),
        UNBURNED.conform(pl.concat(without)),
        _identity(pl.concat([of_carve_outs, had_nothing], how="diagonal"), sides),
    )


def _minute_of(instants: pl.Series, period: Period) -> pl.Series:
    """Whole minutes since the period began."""
    return (instants - period.start).dt.total_minutes()


def _has_capacity(known: Identified, pools: pl.DataFrame, apart: pl.Series, period: Period) -> pl.Series:
    """Whether a row's pool has capacity in force in its minute, in any dimension, or is a carve-out (`apart`)."""
    names = known.series["pool"].unique().sort()
    covered = np.zeros((len(names), period.minutes), np.bool_)
    covered[names.is_in(apart.implode()).to_numpy()] = True
    spans = pools.filter(pl.col("pool").is_in(names.implode())).select(
        pl.col("pool").replace_strict(names, np.arange(len(names)), return_dtype=pl.Int64),
        *((pl.col(edge) - period.start).dt.total_minutes() for edge in ("start", "until")),
    )
    for name, start, until in spans.iter_rows():
        covered[name, start:until] = True
    of_series = names.search_sorted(known.series["pool"]).to_numpy()
    minutes = _minute_of(known.rows["minute"], period).to_numpy()
    return pl.Series(covered[of_series[known.rows["series_id"].to_numpy()], minutes], dtype=pl.Boolean)


_SIDES: Final = ("pool", "overflow")
_LIMB: Final = 2**32


@dataclass(frozen=True)
class _Sides:
    """Of every minute of a cell, whose place is cell x minutes of the period + minute: burn, spill, any usage."""

    burn: pl.Series
    spill: pl.Series
    met: npt.NDArray[np.bool_]


def _sides(
    series: pl.DataFrame, burned: Mapping[str, pl.DataFrame], cells: pl.DataFrame, period: Period
) -> _Sides:
    places = cells.height * period.minutes
    met = np.zeros(places, np.bool_)
    # sums in two limbs never leave 64 bits, and to add them up by place costs a fraction of a grouping
    limbs = {ran_on: (np.zeros(places, np.int64), np.zeros(places, np.int64)) for ran_on in _SIDES}
    for dimension, rows in burned.items():
        of_dimension = cells.filter(pl.col("dimension") == dimension).select("pool", "_cell")
        numbered = series.join(of_dimension, on="pool", how="left", validate="m:1", maintain_order="left")
        cell = numbered["_cell"].cast(pl.Int64).gather(rows["series_id"])
        at = cell * period.minutes + _minute_of(rows["minute"], period)
        for ran_on, (high, low) in limbs.items():
            here = (series["ran_on"] == ran_on).gather(rows["series_id"])
            if here.any():
                place = at.filter(here).to_numpy()
                met[place] = True
                burn = where(rows.select("burn"), here)
                limb = pl.lit(_LIMB, dtype=burn.schema["burn"])
                for sums, part in ((high, pl.col("burn") // limb), (low, pl.col("burn") % limb)):
                    np.add.at(sums, place, burn.select(part.cast(pl.Int64)).to_series().to_numpy())
    summed, spill = (
        pl.select(
            pl.lit(pl.Series(high)).cast(SUM) * pl.lit(_LIMB, dtype=SUM) + pl.lit(pl.Series(low)).cast(SUM)
        ).to_series()
        for high, low in limbs.values()
    )
    negative = (summed < 0) | (spill < 0)
    if negative.any():
        row = (
            pl.DataFrame({"_at": negative.arg_true().cast(pl.Int64), "burn": summed.filter(negative)})
            .with_columns(spill.filter(negative).alias("spill"))
            .select(*_place(cells, period), "burn", "spill")
            .sort("pool", "dimension", "minute")
            .row(0, named=True)
        )
        raise BadInput(
            f"burn is negative in {row}: a compensating entry outweighs its target; run `metering verify`"
        )
    return _Sides(summed, spill, met)


def _place(cells: pl.DataFrame, period: Period) -> list[pl.Expr]:
    """Pool, dimension and minute of a number of `_sides`."""
    cell = pl.col("_at") // period.minutes
    return [
        *(pl.lit(cells[name]).gather(cell).alias(name) for name in ("pool", "dimension")),
        (pl.lit(period.start, dtype=INSTANT) + pl.duration(minutes=pl.col("_at") % period.minutes)).alias(
            "minute"
        ),
    ]


def _by_minute(spans: pl.DataFrame, cells: pl.DataFrame, period: Period) -> pl.DataFrame:
    """Every minute of the spans, which are sorted, with the number that `_sides` gives it."""
    first, length = (
        spans.select((pl.col(edge) - since).dt.total_minutes()).to_series().to_numpy()
        for edge, since in (("start", period.start), ("until", pl.col("start")))
    )
    span = np.repeat(np.arange(spans.height), length)
    minute = np.arange(len(span)) + np.repeat(first - np.cumsum(length) + length, length)
    cell = spans.join(cells, on=["pool", "dimension"], how="left", maintain_order="left")["_cell"]
    start = int(period.start.timestamp()) * 1_000_000
    return (
        spans.drop("start", "until")
        .select(pl.all().gather(span))
        .with_columns(
            pl.Series("minute", start + minute * _MICROSECONDS).cast(INSTANT),
            pl.Series("_at", cell.cast(pl.Int64).to_numpy()[span] * period.minutes + minute),
        )
    )


def _identity(grid: pl.DataFrame, sides: _Sides) -> pl.DataFrame:
    minutes = (
        grid.with_columns(
            sides.burn.gather(grid["_at"]).alias("burn"), sides.spill.gather(grid["_at"]).alias("spill")
        )
        .drop("_at")
        .with_columns(pl.col("contracted", "undelivered", "carved_out").fill_null(0))
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
    return UTILIZATION.conform(minutes)


def summarise_capacity(utilization: pl.DataFrame) -> pl.DataFrame:
    """One row per pool and dimension (results.CAPACITY_SUMMARY), on all minutes, before any filter.

    Percentiles are nearest rank: the value at place ceil(p x n) of the n ascending minutes, so p50 of four is
    the second. A minute, or a 5- or 15-minute window of the clock, is at its limit where burn >= available
    and not both are 0. Minutes with nothing available have no ratio and are left out of mean and percentiles.
    """
    # pools and dimensions are told apart by numbers: to group millions of rows by texts takes several times as long
    known = identify(utilization.select("pool", "dimension", "minute"), ["pool", "dimension"])
    place = (
        known.rows["series_id"].cast(pl.Int64) * 2**32 + known.rows["minute"].to_physical() // _MICROSECONDS
    )
    minutes = utilization.with_columns(
        known.rows["series_id"].alias("_cell"),
        place.alias("_place"),
        at_limit().alias("_full"),
        modelled_spill(),
    )
    if not place.is_sorted():
        minutes = minutes.sort("_place")
    micro = pl.col("utilization_ratio").drop_nulls().sort().to_physical()
    count = micro.len()
    shares = minutes.group_by("_cell").agg(
        pl.len().cast(pl.Int64).alias("minutes"),
        pl.col("denominator").first(),
        *(pl.col(name).sum() for name in _SUMMED),
        sum_of_modelled_spill(),
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
            minutes.group_by("_cell", pl.col("minute").dt.truncate(f"{length}m"))
            .agg(pl.col("burn").sum(), pl.col("available").sum(), pl.len().cast(pl.Int64).alias("_minutes"))
            .group_by("_cell")
            .agg(pl.col("_minutes").filter(at_limit()).sum().alias(f"minutes_at_limit_{length}m"))
        )
        shares = shares.join(windows, on="_cell", validate="1:1")
    # the place of another pool or dimension is never the next one
    gap = pl.col("_place").diff() != 1
    broken = (~pl.col("_full") | gap.fill_null(value=True)).cum_sum()
    runs = (
        minutes.select("_cell", "_full", broken.alias("_run"))
        .group_by("_run")
        .agg(pl.col("_cell").first(), pl.col("_full").sum().cast(pl.Int64).alias("_length"))
        .group_by("_cell")
        .agg(pl.col("_length").max().alias("longest_run_at_limit_minutes"))
    )
    pools = (
        minutes.filter(pl.col("_full"))
        .group_by("pool")
        .agg(pl.col("minute").n_unique().cast(pl.Int64).alias("pool_minutes_at_limit"))
    )
    summary = (
        shares.join(runs, on="_cell", validate="1:1")
        .join(known.series.rename({"series_id": "_cell"}), on="_cell", validate="1:1")
        .join(pools, on="pool", how="left", validate="m:1")
        .with_columns(pl.col("pool_minutes_at_limit").fill_null(0))
    )
    return CAPACITY_SUMMARY.conform(with_tightest(summary))


_MICRO: Final = pl.lit(Decimal("0.000001"), dtype=RATIO)
_MICROSECONDS: Final = MINUTE // timedelta(microseconds=1)


def at_limit() -> pl.Expr:
    """burn >= available, and not both 0: of a minute, or of the sums of a window."""
    return (pl.col("burn") >= pl.col("available")) & (pl.col("burn") + pl.col("available") > 0)


def modelled_spill() -> pl.Expr:
    """Column `modelled_spill` of results.UTILIZATION: what exceeded the pool where events do not say.

    = overrun of a pool in which the whole frame has no spill: its producers do not report overflow. Elsewhere
    null: there the spill that events report stands.
    """
    silent = (pl.col("spill").sum() == 0).over("pool")
    return pl.when(silent).then(pl.col("overrun")).otherwise(None).alias("modelled_spill")


def sum_of_modelled_spill() -> pl.Expr:
    """The sum of `modelled_spill`; null where it says nothing that the reported spill does not."""
    found = pl.col("modelled_spill").sum()
    return pl.when(found > 0).then(found).otherwise(None).alias("modelled_spill")


def with_tightest(rows: pl.DataFrame, window: Sequence[str] = ()) -> pl.DataFrame:
    """Mark, of each pool and window, the dimension with the highest burn / available: `tightest`.

    Its utilization is the pool's. Burn with nothing available is the highest of all; the first of equals.
    """
    share = ratio(pl.col("burn"), pl.col("available"))
    nothing = (pl.col("available") == 0) & (pl.col("burn") > 0)
    highest = {"_nothing": True, "_share": True, "dimension": False}
    ordered = rows.with_columns(nothing.alias("_nothing"), share.fill_null(0).alias("_share")).sort(
        list(highest), descending=list(highest.values())
    )
    first = pl.int_range(pl.len()).over("pool", *window) == 0
    return ordered.with_columns(first.alias("tightest")).drop("_nothing", "_share")
