"""Tiers: what a price rule charges for the first x units of a counter; charges are differences of it.

G(x) = the amount for x units, less the free ones, over all tiers; G(0) = 0
"""

from typing import Final

import polars as pl

from metering.frames.frame import SUM
from metering.money import AMOUNT_MAX, EXACT_MAX, QUANTUM, multiply_floor, refuse_beyond, to_quanta

_QUANTA_MAX: Final = int(AMOUNT_MAX / QUANTUM)
#: What to do about an amount in quanta beyond AMOUNT_MAX.
BEYOND: Final = (
    "no report can carry it (it counts 1e-12 units of currency); void the events or correct the price"
)
_PLACES_MAX: Final = 2**63 - 2
_ZERO: Final = pl.lit(0, dtype=SUM)


def cumulative(rows: pl.DataFrame, tiers: pl.DataFrame, *, units: str, total: str, into: str) -> pl.DataFrame:
    """Give every row `into`: the count of money.QUANTUM that its rule charges for `units` units of its counter.

    rows: rule, model, free_units, `units` (below 0: as 0) and `total` (all units of the counter's span), both
    Int128. tiers: frames.PRICE_TIERS. With x = max(0, units - free_units):

        unit, graduated   the unit price of each tier x the units in it + the flat amount of each tier entered
        volume            unit price of the tier of the total x x + floor(its flat amount x x / total), where the
                          total too is less the free units
        package_started   flat_amount x ceil(x / package_units)
        package_full      flat_amount x floor(x / package_units)

    A quantity exactly at `up_to` belongs to the lower tier. An amount beyond AMOUNT_MAX raises BadInput.
    """
    for name in (units, total):
        refuse_beyond(rows, name, EXACT_MAX, "it cannot be priced exactly; void the events behind it")
    free = pl.col("free_units").cast(SUM)
    volume = pl.col("model") == "volume"
    given = rows.columns
    rows = rows.with_columns(
        pl.max_horizontal(_ZERO, pl.col(units) - free).alias("_x"),
        pl.max_horizontal(_ZERO, pl.col(total) - free).alias("_all"),
    ).with_columns(
        pl.min_horizontal(
            pl.lit(_PLACES_MAX, dtype=SUM), pl.when(volume).then(pl.col("_all")).otherwise(pl.col("_x"))
        )
        .cast(pl.Int64)
        .alias("_place")
    )
    found = rows.sort("_place").join_asof(
        _steps(tiers), left_on="_place", right_on="_first", by="rule", check_sortedness=False, coalesce=False
    )
    about = pl.col("_x").cast(pl.Float64) * pl.col("_unit").cast(pl.Float64) + pl.max_horizontal(
        "_before_about", pl.col("_flat").cast(pl.Float64)
    )
    packages = pl.when(pl.col("package_units") > 0).then(pl.col("package_units"))
    about = pl.max_horizontal(
        about, pl.col("_x").cast(pl.Float64) / packages * pl.col("_flat").cast(pl.Float64)
    )
    refuse_beyond(
        found.with_columns(about.fill_null(0).alias("amount_about")),
        "amount_about",
        2 * _QUANTA_MAX,
        BEYOND,
    )
    every = packages.cast(SUM)
    started = pl.col("model") == "package_started"
    package = pl.col("_x") // every + (started & (pl.col("_x") % every > 0)).cast(SUM)
    weights = pl.when(pl.col("_all") > 0).then(pl.col("_all")).otherwise(pl.lit(1, dtype=SUM))
    share, _ = multiply_floor(pl.col("_flat"), pl.col("_x"), weights)
    amount = (
        pl.when(volume)
        .then(pl.col("_unit") * pl.col("_x") + share)
        .when(pl.col("model").is_in(["package_started", "package_full"]))
        .then(package * pl.col("_flat"))
        .otherwise(pl.col("_before") + pl.col("_unit") * (pl.col("_x") - pl.col("_from")))
    )
    return found.with_columns(amount.fill_null(_ZERO).alias(into)).select(*given, into)


def _steps(tiers: pl.DataFrame) -> pl.DataFrame:
    """Per tier: its first unit, what all units below it cost with its own flat amount, and its prices in quanta."""
    step = tiers.sort("rule", "tier").with_columns(
        to_quanta(pl.col("unit_price")).alias("_unit"), to_quanta(pl.col("flat_amount")).alias("_flat")
    )
    width = (pl.col("up_to") - pl.col("from_units")).fill_null(0)
    whole = pl.col("_unit") * width.cast(SUM)
    about = pl.col("_unit").cast(pl.Float64) * width.cast(pl.Float64)
    # beyond what is exact the float says so, where such a tier is reached at all
    whole = pl.when(about > 2.0 * _QUANTA_MAX).then(_ZERO).otherwise(whole)
    return step.select(
        "rule",
        (pl.col("from_units") + 1).alias("_first"),
        pl.col("from_units").cast(SUM).alias("_from"),
        "_unit",
        "_flat",
        "package_units",
        (whole.cum_sum().over("rule") - whole + pl.col("_flat").cum_sum().over("rule")).alias("_before"),
        (
            about.cum_sum().over("rule") - about + pl.col("_flat").cast(pl.Float64).cum_sum().over("rule")
        ).alias("_before_about"),
    ).sort("_first")
