"""Windows of capacity: the minutes of a pool summed to those of a clock, or to the hours of a week."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final

import polars as pl

from metering.core.allocation import by_part
from metering.core.capacity import at_limit, modelled_spill, sum_of_modelled_spill, with_tightest
from metering.core.recognition import recognised
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM, Frame
from metering.money import MONEY, RATIO, ratio
from metering.periods import Period
from metering.results.capacity import UTILIZATION
from metering.results.costs import POOL_COST

#: The lengths that capacity may be shown by.
WINDOWS: Final = {"minute": "1m", "5m": "5m", "15m": "15m", "hour": "1h", "day": "1d", "month": "1mo"}
#: Windows shorter than the quarter hour by which cost is computed.
_WITHOUT_COST: Final = ("minute", "5m")
_CURVE: Final = ("1m", "5m", "15m", "30m", "1h", "2h", "3h", "6h", "12h", "1d", "1w", "1mo", "1y")
WEEKDAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
#: Burn for people and files: its numerator / its denominator.
BURN: Final = pl.Decimal(38, 6)
_SUMMED: Final = tuple(name for name, dtype in UTILIZATION.columns.items() if dtype == SUM)
_SHARES: Final = ("served_of_contracted_ratio", "served_of_available_ratio", "max_ratio")

_COST: Final = tuple(name for name, dtype in POOL_COST.columns.items() if dtype == MONEY)
_HOUR: Final = "hour_of_week"  # 0..167 from Monday 00:00


def _windows(name: str, key: str, window: Mapping[str, pl.DataType | type[pl.DataType]]) -> Frame:
    return Frame(
        name,
        {
            "pool": pl.String,
            "dimension": pl.String,
            **window,
            "minutes": pl.Int64,  # contracted minutes of the window
            "denominator": pl.Int64,
            **dict.fromkeys(_SUMMED, SUM),
            "modelled_spill": SUM,  # overrun of a pool whose events never say overflow; null where there is none
            **dict.fromkeys(_SHARES, RATIO),
            "tightest": pl.Boolean,  # of the pool's dimensions the one with the least room in the window
            "minutes_at_limit": pl.Int64,
            **dict.fromkeys(_COST, MONEY),  # null in windows of less than a quarter hour
            "currency": pl.String,
            "estimated": pl.Boolean,  # no bill covers all of the cost yet
        },
        key=("pool", "dimension", key),
        nullable=frozenset({*_SHARES, *_COST, "modelled_spill", "currency", "estimated"}),
        laws={
            "contracted = undelivered + carved_out + served + idle": pl.col("contracted")
            == pl.col("undelivered") + pl.col("carved_out") + pl.col("served") + pl.col("idle"),
        },
    )


#: One row per pool, dimension and window that holds a contracted minute. Sums are numerators / denominator.
CAPACITY_WINDOWS: Final = _windows("CAPACITY_WINDOWS", "window_start", {"window_start": INSTANT})
#: One row per pool, dimension and hour of the UTC week, all 168 of them: the minutes of every such hour.
CAPACITY_HOURS_OF_WEEK: Final = _windows(
    "CAPACITY_HOURS_OF_WEEK", _HOUR, {_HOUR: pl.Int64, "weekday": pl.String, "hour": pl.Int64}
)


def capacity_windows(utilization: pl.DataFrame, pool_cost: pl.DataFrame, window: str) -> pl.DataFrame:
    """Sum results.UTILIZATION to clock windows of WINDOWS, with the cost of the window's quarter hours.

    A window [start, start + length) begins on the clock's edge: the minute 10:59 is in the hour of 10:00, the
    minute 11:00 in the next; a month begins on its first. At its limit is a minute with burn >= available (and
    not both 0). utilization and pool_cost (results.POOL_COST) are of the same pools and period.
    """
    start = "window_start"
    rows = _summed(utilization, pl.col("minute").dt.truncate(WINDOWS[window]).alias(start))
    cost = pool_cost.with_columns(pl.col("quarter_start").dt.truncate(WINDOWS[window]).alias(start))
    return CAPACITY_WINDOWS.conform(
        _with_cost(rows, cost.clear() if window in _WITHOUT_COST else cost, start)
    )


def capacity_hours_of_week(utilization: pl.DataFrame, pool_cost: pl.DataFrame) -> pl.DataFrame:
    """Sum results.UTILIZATION by hour of the UTC week (CAPACITY_HOURS_OF_WEEK), Monday 00:00 being the first.

    An hour that the period does not hold has 0 minutes, and no ratio.
    """
    rows = _summed(utilization, _hour_of_week("minute"))
    hours = range(24 * len(WEEKDAYS))
    week = pl.DataFrame(
        {_HOUR: hours, "weekday": [WEEKDAYS[hour // 24] for hour in hours], "hour": [n % 24 for n in hours]},
        schema={_HOUR: pl.Int64, "weekday": pl.String, "hour": pl.Int64},
    )
    pools = utilization.group_by("pool", "dimension").agg(pl.col("denominator").first())
    rows = (
        pools.join(week, how="cross")
        .join(rows.drop("denominator"), on=["pool", "dimension", _HOUR], how="left", validate="1:1")
        .with_columns(
            pl.col("minutes", "minutes_at_limit", *_SUMMED).fill_null(0),
            pl.col("tightest").fill_null(value=False),
        )
    )
    cost = pool_cost.with_columns(_hour_of_week("quarter_start"))
    return CAPACITY_HOURS_OF_WEEK.conform(_with_cost(rows, cost, _HOUR))


def capacity_curve(utilization: pl.DataFrame, points_max: int) -> tuple[str, pl.DataFrame]:
    """The shortest clock windows of which the period has at most `points_max`: (length, CAPACITY_WINDOWS)."""
    none = POOL_COST.empty().with_columns(pl.lit(None, dtype=INSTANT).alias("window_start"))
    for length in _CURVE:
        starts = pl.col("minute").dt.truncate(length).alias("window_start")
        if utilization.select(starts.n_unique()).item() <= points_max or length == _CURVE[-1]:
            break
    return length, CAPACITY_WINDOWS.conform(_with_cost(_summed(utilization, starts), none, "window_start"))


def _hour_of_week(at: str) -> pl.Expr:
    instant = pl.col(at).dt
    return (24 * (instant.weekday().cast(pl.Int64) - 1) + instant.hour().cast(pl.Int64)).alias(_HOUR)


def _summed(utilization: pl.DataFrame, window: pl.Expr) -> pl.DataFrame:
    name = window.meta.output_name()
    rows = (
        utilization.with_columns(modelled_spill(), window)
        .group_by("pool", "dimension", name)
        .agg(
            pl.len().cast(pl.Int64).alias("minutes"),
            pl.col("denominator").first(),
            *(pl.col(name).sum() for name in _SUMMED),
            sum_of_modelled_spill(),
            pl.col("utilization_ratio").max().alias("max_ratio"),
            at_limit().sum().cast(pl.Int64).alias("minutes_at_limit"),
        )
        .with_columns(
            ratio(pl.col("served"), pl.col("contracted")).alias("served_of_contracted_ratio"),
            ratio(pl.col("served"), pl.col("available")).alias("served_of_available_ratio"),
        )
    )
    return with_tightest(rows, [name])


def _with_cost(rows: pl.DataFrame, cost: pl.DataFrame, window: str) -> pl.DataFrame:
    by = ["pool", "dimension", window]
    return rows.join(sum_costs(cost, by), on=by, how="left", validate="1:1")


def sum_costs(cost: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """results.POOL_COST summed by some of its columns, with currency and estimated; null where it is paid for
    in several currencies, which cannot be added."""
    one = pl.col("currency").n_unique() == 1
    summed = [*(pl.col(name).sum() for name in _COST), pl.col("currency").first(), pl.col("estimated").any()]
    return cost.group_by(by).agg(pl.when(one).then(column) for column in summed)


def pool_costs(utilization: pl.DataFrame, books: Books, period: Period) -> pl.DataFrame:
    """Recognised cost of every pool, dimension and quarter hour, and what became of it (results.POOL_COST).

    utilization: results.UTILIZATION of the period. The same split as the margin's.
    """
    return by_part(recognised(books, period), utilization)


def in_burn_units(numerator: pl.Expr, denominator: pl.Expr) -> pl.Expr:
    """A burn numerator (Int128, below 2**86) with 6 places; exact for weights of up to 6 decimals."""
    micro = numerator * pl.lit(10**6, dtype=SUM) // denominator.cast(SUM)
    return micro.cast(pl.Decimal(38, 0)) * pl.lit(Decimal("0.000001"), dtype=BURN)
