"""Reconciliation: a supplier's own usage figures against our ledger, and what would explain a difference."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Final

import polars as pl

from metering.bills.usage_export import UNITS, Precision
from metering.core.rating import on_demand_costs
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM, Frame
from metering.meters import INPUT_METERS, METERS, OUTPUT_METERS
from metering.money import MONEY, RATIO, from_quanta, ratio, to_quanta

#: How far a supplier's clock may be from UTC.
_HALF_HOURS: Final = range(-28, 29)
_HALF_HOUR: Final = timedelta(minutes=30)
#: Farther than this before and after the buckets nothing is needed.
REACH: Final = timedelta(hours=14)

STATUSES: Final = ("matched", "differs", "theirs_only", "ours_only")
#: Ours and theirs side by side. difference = theirs - ours.
RECONCILED: Final = Frame(
    "RECONCILED",
    {
        "starts": INSTANT,
        "time": pl.String,  # as the supplier writes it
        "model": pl.String,
        "unit": pl.String,
        "status": pl.String,
        "theirs": SUM,
        "ours": SUM,
        "difference": SUM,
        "capture_ratio": RATIO,  # ours / theirs; null where they say nothing
        "amount_theirs": MONEY,
        "amount_ours": MONEY,  # at our cost book; null where they give no amount, or in another currency
        "amount_difference": MONEY,
        "currency": pl.String,
        "reason": pl.String,  # what would explain it; null: nothing that was tried
    },
    key=("starts", "model", "unit"),
    nullable=frozenset(
        {"capture_ratio", "amount_theirs", "amount_ours", "amount_difference", "currency", "reason"}
    ),
    laws={"difference = theirs - ours": pl.col("difference") == pl.col("theirs") - pl.col("ours")},
)

_KEY: Final = ["starts", "model", "unit"]
_ZERO: Final = pl.lit(0, dtype=SUM)


def reconcile(
    theirs: pl.DataFrame,
    served: pl.DataFrame,
    books: Books,
    buckets: pl.DataFrame,
    precision: Precision | None = None,
    tolerance_ratio: Decimal = Decimal(0),
) -> pl.DataFrame:
    """Compare what a supplier counted (THEIRS) with what it served us (frames.SERVED): RECONCILED.

    served: of that supplier alone, from REACH before the first bucket to REACH after the last. buckets: all
    that the file is for, so that usage of ours in an hour or day that it leaves out is `ours_only`. Every
    attempt counts. Quantities match within tolerance_ratio x theirs, amounts within that or below the last
    place that the file writes. Reasons are tried in turn, each on exact sums: the file's hours are not UTC
    (time_zone +08:00: moved so far, ours match, of most rows of the file); cache reads or reasoning counted
    twice; attempts that we do not bill left out; rounding below the file's step; and where the quantity
    matches but the amount does not, the price.
    """
    step = precision or Precision()
    ran = served.filter(pl.col("counts_for").is_in(["charge_and_cost", "cost"]))
    units = {unit: UNITS[unit] for unit in theirs["unit"].unique().sort()}
    ours = _counted(ran, units)
    rows = (
        theirs.rename({"quantity": "theirs", "amount": "amount_theirs"})
        .join(_by_bucket(ours, buckets).rename({"quantity": "ours"}), on=_KEY, how="full", coalesce=True)
        .join(_priced(ran, books, units, buckets), on=_KEY, how="left", validate="1:1")
        .with_columns(
            pl.col("theirs").is_not_null().alias("_said"),
            pl.col("theirs").fill_null(_ZERO),
            pl.col("ours").fill_null(_ZERO),
        )
        .filter(pl.col("_said") | (pl.col("ours") != 0))
    )
    rows = _with_amounts(rows, step, tolerance_ratio).with_columns(
        _near(pl.col("theirs"), pl.col("ours"), tolerance_ratio).alias("_near")
    )
    rows = rows.with_columns(
        pl.when("_near", "_amount_near")
        .then(pl.lit("matched"))
        .when(~pl.col("_said"))
        .then(pl.lit("ours_only"))
        .when(pl.col("ours") == 0)
        .then(pl.lit("theirs_only"))
        .otherwise(pl.lit("differs"))
        .alias("status"),
        (pl.col("theirs") - pl.col("ours")).alias("difference"),
        ratio(pl.col("ours"), pl.col("theirs")).alias("capture_ratio"),
    )
    rows = _with_reason(rows, ran, ours, buckets, units, step, tolerance_ratio)
    return RECONCILED.conform(rows.join(buckets, on="starts", how="left", validate="m:1"))


_QUANTITY: Final[Mapping[str, pl.DataType | type[pl.DataType]]] = {
    "quarter_start": INSTANT,
    "model": pl.String,
    "unit": pl.String,
    "quantity": SUM,
}


def _counted(ran: pl.DataFrame, units: Mapping[str, Sequence[str]]) -> pl.DataFrame:
    """quarter_start, model, unit and the sum of the unit's meters; a meter named twice counts twice."""
    sums = ran.group_by("quarter_start", pl.col("model_served").alias("model")).agg(
        pl.col("requests", *METERS).sum()
    )
    pieces = [
        sums.select(
            "quarter_start",
            "model",
            pl.lit(unit).alias("unit"),
            sum((pl.col(meter) for meter in meters), _ZERO).alias("quantity"),
        )
        for unit, meters in units.items()
    ]
    return pl.concat([pl.DataFrame(schema=dict(_QUANTITY)), *pieces])


def _by_bucket(
    ours: pl.DataFrame, buckets: pl.DataFrame, shift: timedelta = timedelta(0), by: Sequence[str] = ()
) -> pl.DataFrame:
    """Sums of `quantity` by bucket, model and unit, as if our clock stood `shift` ahead."""
    moved = ours.with_columns((pl.col("quarter_start") + pl.lit(shift)).alias("_at")).sort("_at")
    return (
        moved.join_asof(
            buckets.select("starts", "ends").sort("starts"),
            left_on="_at",
            right_on="starts",
            strategy="backward",
            check_sortedness=False,
            coalesce=False,
        )
        .filter(pl.col("_at") < pl.col("ends"))
        .group_by(*_KEY, *by)
        .agg(pl.col("quantity").sum())
    )


def _priced(
    ran: pl.DataFrame, books: Books, units: Mapping[str, Sequence[str]], buckets: pl.DataFrame
) -> pl.DataFrame:
    """What our cost book says of the on-demand usage in every bucket, where it is all in one currency."""
    rated, _ = on_demand_costs(ran, books)
    of_unit = pl.DataFrame(
        [(unit, meter) for unit, meters in units.items() for meter in meters],
        schema={"unit": pl.String, "meter": pl.String},
        orient="row",
    )
    amounts = rated.join(of_unit, on="meter").select(
        "quarter_start",
        pl.col("model_served").alias("model"),
        "unit",
        pl.col("currency").alias("_paid_in"),
        to_quanta(pl.col("amount")).alias("quantity"),
    )
    return (
        _by_bucket(amounts, buckets, by=["_paid_in"])
        .group_by(_KEY)
        .agg(pl.col("quantity").sum().alias("_quanta"), pl.col("_paid_in").unique())
        .filter(pl.col("_paid_in").list.len() == 1)
        .with_columns(pl.col("_paid_in").list.first())
    )


def _near(theirs: pl.Expr, ours: pl.Expr, tolerance_ratio: Decimal) -> pl.Expr:
    """|theirs - ours| <= tolerance x |theirs|, the tolerance to 6 places."""
    micro = pl.lit(int(tolerance_ratio * 10**6), dtype=SUM)
    return (theirs - ours).abs() * pl.lit(10**6, dtype=SUM) <= theirs.abs() * micro


def _with_amounts(rows: pl.DataFrame, step: Precision, tolerance_ratio: Decimal) -> pl.DataFrame:
    theirs = to_quanta(pl.col("amount_theirs"))
    comparable = pl.col("amount_theirs").is_not_null() & (pl.col("_paid_in") == pl.col("currency"))
    ours = pl.when(comparable).then(pl.col("_quanta"))
    near = ((theirs - ours).abs() < step.quanta) | _near(theirs, ours, tolerance_ratio)
    return rows.with_columns(
        from_quanta(ours).alias("amount_ours"),
        from_quanta(theirs - ours).alias("amount_difference"),
        near.fill_null(value=True).alias("_amount_near"),
    )


def _with_reason(
    rows: pl.DataFrame,
    ran: pl.DataFrame,
    ours: pl.DataFrame,
    buckets: pl.DataFrame,
    units: Mapping[str, Sequence[str]],
    step: Precision,
    tolerance_ratio: Decimal,
) -> pl.DataFrame:
    open_ = ~pl.col("_near")
    if not rows.select(open_.any()).item():
        return rows.with_columns(pl.when(pl.col("status") != "matched").then(pl.lit("price")).alias("reason"))

    def explained(by: pl.DataFrame) -> pl.Series:
        """Whether each row matches if our figures were these."""
        moved = rows.select(*_KEY, "theirs").join(
            by, on=_KEY, how="left", validate="1:1", maintain_order="left"
        )
        other = pl.col("quantity").fill_null(_ZERO)
        return moved.select(_near(pl.col("theirs"), other, tolerance_ratio)).to_series()

    # what they do not say at all, another way of counting does not explain
    said = rows["theirs"] != 0
    tried: list[tuple[str, pl.Series]] = []
    shift, matches = _best_shift(rows, ours, buckets, explained)
    if shift:
        sign, minutes = "-" if shift < timedelta(0) else "+", abs(shift) // timedelta(minutes=1)
        tried.append((f"time_zone {sign}{minutes // 60:02}:{minutes % 60:02}", matches))
    for reason, meter, family in (
        ("cache_counted_twice", "cache_read_tokens", INPUT_METERS),
        ("reasoning_counted_twice", "reasoning_tokens", OUTPUT_METERS),
    ):
        twice = {unit: (*meters, meter) for unit, meters in units.items() if set(meters) <= set(family)}
        tried.append((reason, said & explained(_by_bucket(_counted(ran, twice), buckets))))
    billed = ran.filter(pl.col("counts_for") == "charge_and_cost")
    left_out = explained(_by_bucket(_counted(billed, units), buckets))
    tried.append(("unbilled_attempts_left_out", said & left_out))
    written = pl.col("unit").replace_strict(step.quantities, default=1, return_dtype=SUM)
    below = rows.select((pl.col("theirs") - pl.col("ours")).abs() < written).to_series()
    tried.append(("rounding", below))
    likely = pl.lit(None, dtype=pl.String)
    for name, holds in reversed(tried):
        likely = pl.when(open_ & pl.lit(holds)).then(pl.lit(name)).otherwise(likely)
    priced = pl.col("_near") & ~pl.col("_amount_near")
    return rows.with_columns(pl.when(priced).then(pl.lit("price")).otherwise(likely).alias("reason"))


def _best_shift(
    rows: pl.DataFrame,
    ours: pl.DataFrame,
    buckets: pl.DataFrame,
    explained: Callable[[pl.DataFrame], pl.Series],
) -> tuple[timedelta, pl.Series]:
    """The shift of our hours by which most rows match, 0 unless that is more than now, and most of them."""
    best, most = timedelta(0), rows["_near"]
    # of shifts that explain the same, a whole hour before a half one, then the smallest
    for half_hours in sorted(_HALF_HOURS, key=lambda steps: (steps % 2, abs(steps))):
        shift = half_hours * _HALF_HOUR
        matches = explained(_by_bucket(ours, buckets, shift))
        if matches.sum() > most.sum():
            best, most = shift, matches
    return (best, most) if 2 * most.sum() > rows.height else (timedelta(0), most)
