"""Fees: amounts that do not depend on usage, earned evenly over the days of the month, year or span that they are for."""

from typing import Final

import polars as pl

from metering.core.contract_periods import DEFAULTS
from metering.core.days import DAY_PARTS, place_of_day, placed
from metering.frames.frame import INSTANT, SUM
from metering.money import AMOUNT_MAX, from_quanta, refuse_beyond, to_quanta
from metering.results.charges import FEES_EARNED

#: What decides how a fee is spread over time, whoever pays it.
_SCHEDULE: Final = ("per", "zone", "anchor_day", "begins", "ends")
#: The longest span of a fee: with more, its amount times the place in it could not be told exactly.
_DAYS_MAX: Final = 36 * 365


def fees_earned(fees: pl.DataFrame, terms: pl.DataFrame, cut: pl.DataFrame) -> pl.DataFrame:
    """Fees earned per customer, contract, fee and slice of time.

    fees: frames.FEES. terms: frames.CONTRACT_TERMS, which say zone and anchor day of a contract (else UTC and the
    first). cut: slices of the period (core.effective.slices), none longer than a UTC day. A fee in force for part
    of a slice earns for that part. The month of a fee runs from anchor day to anchor day in the zone, its year
    from the day of the zone on which the fee begins, a span from its beginning to its end. With A the amount x
    quantity of a fee and place() the core.days.placed of an instant:

        E(t) = A x complete months (years) + floor(A x (place(t) - place(start)) / (place(end) - place(start)))

    start and end being those of the month (year, span) that holds t; earned = E(until) - E(start of the slice). So
    slices that touch add up exactly, and a whole month earns the whole amount, however many hours its days have.
    """
    fees = refuse_beyond(fees, "amount", AMOUNT_MAX, "correct the fee in the catalog")
    fees = refuse_beyond(
        fees.with_columns(
            (pl.col("amount").cast(pl.Float64) * pl.col("quantity").cast(pl.Float64)).alias("amount_about")
        ),
        "amount_about",
        AMOUNT_MAX,
        "correct the fee in the catalog",
    )
    start = pl.max_horizontal("slice_start", "effective_from")
    until = pl.min_horizontal("slice_until", pl.col("effective_until").fill_null(pl.col("slice_until")))
    known = _scheduled(fees, terms)
    spans = (
        known.join(cut.cast({"slice_start": INSTANT, "slice_until": INSTANT}), how="cross")
        .with_columns(start.alias("start"), until.alias("until"))
        .filter(pl.col("start") < pl.col("until"))
    )
    places = _places(spans, known)
    amount = to_quanta(pl.col("amount")) * pl.col("quantity").cast(SUM)

    def earned_before(at: str) -> pl.Expr:
        return pl.col(f"{at}_turn") * amount + amount * pl.col(f"{at}_place") // pl.col(f"{at}_length")

    amounts = (
        spans.join(places, on=["schedule", "start", "until"], validate="m:1")
        .with_columns((earned_before("until") - earned_before("start")).alias("earned"))
        .group_by("customer", "contract", "fee", "slice_start", "currency")
        .agg(pl.col("earned").sum())
        .with_columns(from_quanta(pl.col("earned")).alias("amount"))
    )
    return FEES_EARNED.conform(amounts)


def _scheduled(fees: pl.DataFrame, terms: pl.DataFrame) -> pl.DataFrame:
    """Fees with the number of their schedule and what it says."""
    said = terms.group_by("contract").agg(pl.col("zone", "anchor_day").sort_by("effective_from").first())
    yearly, whole = pl.col("per") == "year", pl.col("per") == "span"
    rows = fees.join(said, on="contract", how="left", validate="m:1").with_columns(
        *(pl.col(name).fill_null(DEFAULTS[name]) for name in ("zone", "anchor_day")),
        pl.when(yearly | whole).then(pl.col("effective_from")).alias("begins"),
        pl.when(whole).then(pl.col("effective_until")).alias("ends"),
    )
    schedules = rows.select(_SCHEDULE).unique(maintain_order=True).with_row_index("schedule")
    return rows.join(schedules, on=list(_SCHEDULE), how="left", nulls_equal=True, validate="m:1")


def _places(spans: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """By schedule, start and until: which turn (month, year) holds each, how far in it, and its length in parts.

    The end of a turn is place 0 of the next.
    """
    said = known.select("schedule", *_SCHEDULE).unique()
    for at in ("begins", "ends"):
        said = placed(said, at=at, zone="zone", into=f"_{at}")
    whole = (pl.col("_ends") - pl.col("_begins")).cast(SUM)
    refuse_beyond(
        said.with_columns((whole // DAY_PARTS).alias("days_of_the_fee")),
        "days_of_the_fee",
        _DAYS_MAX,
        "correct the fee in the catalog",
    )
    anniversary = pl.coalesce(pl.col("_begins_day").dt.day().cast(pl.Int64), "anchor_day")
    yearly = pl.col("per") == "year"
    said = said.with_columns(
        pl.when(yearly).then(anniversary).otherwise(pl.col("anchor_day")).alias("_anchor"),
        pl.when(yearly).then(_month(pl.col("_begins_day"))).otherwise(0).alias("_first"),
        pl.when(yearly).then(12).otherwise(1).cast(pl.Int64).alias("_months"),
    )
    places = spans.select("schedule", "start", "until").unique()
    places = places.join(said, on="schedule", validate="m:1")
    spanned = pl.col("per") == "span"
    for at in ("start", "until"):
        places = placed(places, at=at, zone="zone", into=f"_{at}")
        day = pl.col(f"_{at}_day")
        month = _month(day)
        month -= (day < _anchored(month, pl.col("_anchor"))).cast(pl.Int64)
        turn = (month - pl.col("_first")) // pl.col("_months")
        first = pl.col("_first") + turn * pl.col("_months")
        begins = place_of_day(_anchored(first, pl.col("_anchor")))
        ends = place_of_day(_anchored(first + pl.col("_months"), pl.col("_anchor")))
        places = places.with_columns(
            pl.when(spanned).then(0).otherwise(turn).cast(SUM).alias(f"{at}_turn"),
            (pl.col(f"_{at}") - pl.when(spanned).then(pl.col("_begins")).otherwise(begins))
            .cast(SUM)
            .alias(f"{at}_place"),
            pl.when(spanned).then(whole).otherwise((ends - begins).cast(SUM)).alias(f"{at}_length"),
        )
    of = [f"{at}_{name}" for at in ("start", "until") for name in ("turn", "place", "length")]
    return places.select("schedule", "start", "until", *of)


def _month(day: pl.Expr) -> pl.Expr:
    """12 x year + month - 1 of a day."""
    return day.dt.year().cast(pl.Int64) * 12 + day.dt.month().cast(pl.Int64) - 1


def _anchored(month: pl.Expr, anchor_day: pl.Expr) -> pl.Expr:
    """The anchor day of a month, its last day where it has no such day."""
    first = pl.date(month // 12, month % 12 + 1, 1)
    place = pl.min_horizontal(anchor_day, first.dt.days_in_month().cast(pl.Int64)) - 1
    return first + pl.duration(days=place)
