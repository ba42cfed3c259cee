"""Fees: amounts that do not depend on usage, earned evenly over each calendar month."""

import polars as pl

from metering.frames import INSTANT
from metering.money import AMOUNT_MAX, from_quanta, refuse_beyond, to_quanta
from metering.results import FEES_EARNED


def earned_between(amount: pl.Expr, start: pl.Expr, until: pl.Expr) -> pl.Expr:
    """Quanta of a monthly `amount` (quanta) earned in [start, until), a span within one UTC calendar month.

    E(t) = floor(amount x minutes of the month before t / minutes of the month); earned = E(until) - E(start),
    so spans that touch add up exactly and the whole month earns the whole amount.
    """
    month = start.dt.truncate("1mo")
    minutes = month.dt.days_in_month().cast(pl.Int128) * 1440
    before = (start - month).dt.total_minutes().cast(pl.Int128)
    after = (until - month).dt.total_minutes().cast(pl.Int128)
    return amount * after // minutes - amount * before // minutes


def fees_earned(fees: pl.DataFrame, cut: pl.DataFrame) -> pl.DataFrame:
    """Fees earned per customer, contract, fee and slice of time.

    fees: frames.FEES. cut: slices of the period (core.effective.slices), none longer than a UTC day. A fee in
    force for part of a slice earns for that part.
    """
    fees = refuse_beyond(fees, "amount", AMOUNT_MAX, "correct the fee in the catalog")
    start = pl.max_horizontal("slice_start", "effective_from")
    until = pl.min_horizontal("slice_until", pl.col("effective_until").fill_null(pl.col("slice_until")))
    spans = (
        fees.join(cut.cast({"slice_start": INSTANT, "slice_until": INSTANT}), how="cross")
        .with_columns(start.alias("start"), until.alias("until"))
        .filter(pl.col("start") < pl.col("until"))
    )
    earned = earned_between(to_quanta(pl.col("amount")), pl.col("start"), pl.col("until"))
    amounts = (
        spans.with_columns(earned.alias("earned"))
        .group_by("customer", "contract", "fee", "slice_start", "currency")
        .agg(pl.col("earned").sum())
        .with_columns(from_quanta(pl.col("earned")).alias("amount"))
    )
    return FEES_EARNED.conform(amounts)
