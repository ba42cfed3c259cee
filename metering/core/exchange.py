"""Exchange: amounts in the currency that they are agreed in, translated once, at the rate of the service day."""

from typing import Final

import polars as pl

from metering.core.effective import in_force
from metering.frames.frame import INSTANT, SUM
from metering.money import to_quanta

_ONE: Final = pl.lit(10**12, dtype=SUM)
_TWO: Final = pl.lit(2, dtype=SUM)


def rates(days: pl.DataFrame, exchange_rates: pl.DataFrame, into: str) -> pl.DataFrame:
    """Rates of (day, currency) rows into one currency: month_average, contract (quanta per unit), estimated.

    exchange_rates: frames.EXCHANGE_RATES. In force on the day; null where none is. In a month that has no
    average yet that of the month before serves, `estimated`; an older one does not: the rate is missing. A
    currency into itself is 1, by definition.
    """
    found = (
        days.select("day", "currency")
        .unique()
        .with_columns(
            pl.col("day").cast(pl.Datetime("us")).dt.replace_time_zone("UTC").cast(INSTANT).alias("_at")
        )
    )
    for kind in ("month_average", "contract"):
        dated = exchange_rates.filter((pl.col("into") == into) & (pl.col("kind") == kind)).select(
            "currency",
            "effective_from",
            "effective_until",
            to_quanta(pl.col("rate")).alias(kind),
            pl.col("effective_from").alias(f"_{kind}_from"),
        )
        found = in_force(found, dated, at="_at", by=["currency"])
    own = pl.col("currency") == into
    said, month = (pl.col(name).dt.truncate("1mo") for name in ("_month_average_from", "_at"))
    older = said < month
    stale = said.dt.offset_by("1mo") < month
    return found.select(
        "day",
        "currency",
        pl.when(own).then(_ONE).when(~stale).then(pl.col("month_average")).alias("month_average"),
        pl.when(own).then(_ONE).otherwise(pl.col("contract")).alias("contract"),
        (older & ~stale & ~own).fill_null(value=False).alias("rate_estimated"),
    )


def translate(quanta: pl.Expr, rate: pl.Expr) -> pl.Expr:
    """quanta x rate (10**-12 per unit), half-even to a quantum; |quanta| and the result below 2**86."""
    whole, part = quanta * (rate // _ONE), quanta * (rate % _ONE)
    floor, rest = whole + part // _ONE, part % _ONE
    twice = rest * _TWO
    up = (twice > _ONE) | ((twice == _ONE) & (floor % _TWO == 1))
    return floor + up.cast(SUM)
