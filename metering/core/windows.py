"""Windows of capacity: the minutes of a pool summed to hours or days, or as they are."""

from decimal import Decimal
from typing import Final

import polars as pl

from metering.core.allocation import by_part
from metering.core.recognition import recognised
from metering.errors import BadInput
from metering.frames import INSTANT, SUM, Books, Frame
from metering.money import MONEY, RATIO, ratio
from metering.periods import Period
from metering.results import UTILIZATION

#: The lengths that capacity may be shown by.
WINDOWS: Final = {"minute": "1m", "hour": "1h", "day": "1d"}
#: Burn for people and files: its numerator / its denominator.
BURN: Final = pl.Decimal(38, 6)
_SUMMED: Final = tuple(name for name, dtype in UTILIZATION.columns.items() if dtype == SUM)
_SHARES: Final = ("served_of_contracted_ratio", "served_of_available_ratio", "max_ratio")

#: One row per pool, dimension and window that holds a contracted minute. Sums are numerators / denominator.
CAPACITY_WINDOWS: Final = Frame(
    "CAPACITY_WINDOWS",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "window_start": INSTANT,
        "minutes": pl.Int64,  # contracted minutes of the window
        "denominator": pl.Int64,
        **dict.fromkeys(_SUMMED, SUM),
        **dict.fromkeys(_SHARES, RATIO),
        "minutes_at_limit": pl.Int64,
        "recognised_cost": MONEY,  # null by the minute: cost is computed per quarter hour
        "served_cost": MONEY,
        "idle_cost": MONEY,
        "currency": pl.String,
    },
    key=("pool", "dimension", "window_start"),
    nullable=frozenset({*_SHARES, "recognised_cost", "served_cost", "idle_cost", "currency"}),
    laws={
        "contracted = undelivered + carved_out + served + idle": pl.col("contracted")
        == pl.col("undelivered") + pl.col("carved_out") + pl.col("served") + pl.col("idle"),
    },
)


def capacity_windows(utilization: pl.DataFrame, pool_cost: pl.DataFrame, window: str) -> pl.DataFrame:
    """Sum results.UTILIZATION to clock windows of WINDOWS, with the cost of the window's quarter hours.

    A window [start, start + length) begins on the clock's edge: the minute 10:59 is in the hour of 10:00, the
    minute 11:00 in the next. At its limit is a minute with burn >= available (and not both 0).
    """
    every = WINDOWS[window]
    by = ["pool", "dimension", "window_start"]
    full = (pl.col("burn") >= pl.col("available")) & ((pl.col("burn") > 0) | (pl.col("available") > 0))
    rows = (
        utilization.with_columns(pl.col("minute").dt.truncate(every).alias("window_start"))
        .group_by(by)
        .agg(
            pl.len().cast(pl.Int64).alias("minutes"),
            pl.col("denominator").first(),
            *(pl.col(name).sum() for name in _SUMMED),
            pl.col("utilization_ratio").max().alias("max_ratio"),
            full.sum().cast(pl.Int64).alias("minutes_at_limit"),
        )
        .with_columns(
            ratio(pl.col("served"), pl.col("contracted")).alias("served_of_contracted_ratio"),
            ratio(pl.col("served"), pl.col("available")).alias("served_of_available_ratio"),
        )
    )
    cost = ("recognised_cost", "served_cost", "idle_cost")
    if window == "minute":
        none = [pl.lit(None, dtype=MONEY).alias(name) for name in cost]
        return CAPACITY_WINDOWS.conform(
            rows.with_columns(*none, pl.lit(None, dtype=pl.String).alias("currency"))
        )
    costs = (
        pool_cost.with_columns(pl.col("quarter_start").dt.truncate(every).alias("window_start"))
        .group_by(by)
        .agg(*(pl.col(name).sum() for name in cost), pl.col("currency").first())
    )
    return CAPACITY_WINDOWS.conform(rows.join(costs, on=by, how="left", validate="1:1"))


def pool_costs(utilization: pl.DataFrame, books: Books, period: Period) -> pl.DataFrame:
    """Recognised, served and idle cost of every pool, dimension and quarter hour (results.POOL_COST).

    utilization: results.UTILIZATION of the period. The same split as the margin's. A pool and
    dimension has one currency in the period, so that its costs may be added: two raise BadInput.
    """
    costs = by_part(recognised(books, period), utilization)
    paid_in = costs.group_by("pool", "dimension").agg(pl.col("currency").unique().sort())
    mixed = paid_in.filter(pl.col("currency").list.len() > 1).sort("pool", "dimension")
    if mixed.height:
        row = mixed.row(0, named=True)
        raise BadInput(
            f"pool '{row['pool']}', dimension '{row['dimension']}', is paid for in {', '.join(row['currency'])} "
            "within one period, and such costs cannot be added; give the pool of another currency another name"
        )
    return costs


def in_burn_units(numerator: pl.Expr, denominator: pl.Expr) -> pl.Expr:
    """A burn numerator (Int128, below 2**86) with 6 places; exact for weights of up to 6 decimals."""
    micro = numerator * pl.lit(10**6, dtype=SUM) // denominator.cast(SUM)
    return micro.cast(pl.Decimal(38, 0)) * pl.lit(Decimal("0.000001"), dtype=BURN)
