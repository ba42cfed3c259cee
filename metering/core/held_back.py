"""What raised limits would let through: extra demand of holders whom a limit held back, between two bounds."""

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

import polars as pl

from metering.core.extra_demand import Extra, spread
from metering.core.several_limits import bounded, weighed_by
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.frames.usage import DIMENSIONS, SUMS
from metering.money import decimal_to_quanta

_ONE: Final = 10**12


@dataclass(frozen=True)
class HeldBack:
    """What holders of raised limits might have used more, between two bounds.

    unmixed: binding windows in which nothing was used, so that nobody knows of what the extra would have been.
    """

    low: Extra
    high: Extra
    unmixed: int


def with_limits(
    books: Books,
    factor: Decimal,
    *,
    plan: str | None = None,
    contract: str | None = None,
    limit: str | None = None,
) -> tuple[Books, pl.DataFrame]:
    """The books with limits raised: (books, their limits as they were). None: of every plan, contract, name."""
    said = (("plan", plan), ("contract", contract), ("limit", limit))
    named = [pl.col(column) == name for column, name in said if name is not None]
    chosen = pl.all_horizontal(pl.lit(value=True), *named).fill_null(value=False)
    quantity = (pl.col("quantity").cast(SUM) * pl.lit(decimal_to_quanta(factor), dtype=SUM)) // _ONE
    limits = books.limits.with_columns(
        pl.when(chosen).then(quantity.cast(pl.Int64)).otherwise("quantity").alias("quantity")
    )
    return replace(books, limits=limits), books.limits.filter(chosen)


def held_back(
    windows: pl.DataFrame,
    more: pl.DataFrame,
    used: pl.DataFrame,
    books: Books,
    after: Books,
) -> HeldBack:
    """The extra demand of raised limits.

    windows: results.LIMIT_WINDOWS of all limits; more: results.RAISED of those that are raised; used:
    frames.HELD_USAGE of the windows in `more`; books, after: the limits as they are, and raised. In every window

        extra of a series and meter = used x extra / weighted use, rounded down

    so that the extra is the mix of the holder's own use in that window. It lies evenly on the minutes from the first
    in which the window was binding to its end (whole units, the first minutes one more). Where a holder is under
    several limits nothing counts twice: a longer window takes the extra of the shorter ones within it for its own,
    and where it has less room (its new quantity less what was used; its raise, if it was binding) than they would
    use, they use as much less, in proportion. And what a longer window would use more is at most what the windows of
    every limit of the same holder that are no longer let through in its minutes:

        sum over those windows of max(0, new quantity - used) - the extra of shorter limits in them

    where windows that nobody opened count as often as they fit. Limits of seats and projects are not asked what they
    would let through of their customer's limit: nobody knows how many of them there would be.
    """
    of = ["customer", "contract", "limit"]
    new = after.limits.select(*of, "effective_from", pl.col("quantity").alias("_quantity"))
    limits = books.limits.join(
        new, on=[*of, "effective_from"], validate="1:1", maintain_order="left"
    ).with_row_index("_limit")

    def numbered(frame: pl.DataFrame) -> pl.DataFrame:
        found = frame.join(
            limits.select(
                *of,
                "_limit",
                "_quantity",
                "effective_from",
                "effective_until",
                pl.col("holder").alias("_holder"),
            ),
            on=of,
        )
        ended = pl.col("effective_until") <= pl.col("window_start")
        # a window that began before its limit did is one of its use until now
        return (
            found.filter((pl.col("effective_from") < pl.col("window_until")) & ~ended.fill_null(value=False))
            .sort("effective_from")
            .unique([*of, "held_by", "window_start"], keep="last", maintain_order=True)
        )

    chosen = numbered(more).with_row_index("_window")
    uses = _uses(used, chosen, limits, books)
    weighed = uses.group_by("_window").agg(pl.col("_weighed").sum().alias("_used"))
    told = chosen.join(weighed.filter(pl.col("_used") > 0), on="_window", validate="1:1")
    mix = uses.drop("_weighed").group_by("_window", *DIMENSIONS).agg(pl.col(*SUMS).sum())
    rooms = numbered(windows).join(
        more.select(*of, "held_by", "window_start", pl.lit(value=True).alias("_raised")),
        on=[*of, "held_by", "window_start"],
        how="left",
        validate="1:1",
    )
    bounds = [spread(bounded(told, mix, rooms, limits, books, bound)) for bound in ("low", "high")]
    return HeldBack(bounds[0], bounds[1], chosen.height - told.height)


def _uses(used: pl.DataFrame, chosen: pl.DataFrame, limits: pl.DataFrame, books: Books) -> pl.DataFrame:
    """What was used in each window that is chosen, as it counts: rows of `used` with `_window` and `_weighed`."""
    rows = used.filter(
        (pl.col("counts_for") == "charge_and_cost")
        & pl.col("customer").is_in(chosen["customer"].unique().implode())
    )
    some = limits.join(chosen.select("_limit").unique(), on="_limit", how="semi")
    held = rows.join(some.select("customer", "contract", "limit", "_limit", "holder", "items"), on="customer")
    holder = pl.col("holder")
    held = held.filter(
        (pl.col("items").list.len() == 0) | pl.col("items").list.contains(pl.col("product"))
    ).with_columns(
        pl.when(holder == "customer")
        .then("customer")
        .when(holder == "project")
        .then("project")
        .otherwise("seat")
        .alias("held_by")
    )
    spans = chosen.select("_limit", "held_by", "_window", "window_start", "window_until").sort("window_start")
    held = held.sort("minute").join_asof(
        spans,
        left_on="minute",
        right_on="window_start",
        by=["_limit", "held_by"],
        strategy="backward",
        check_sortedness=False,
    )
    held = held.filter(pl.col("minute") < pl.col("window_until"))
    return weighed_by(held, books).select("_window", *DIMENSIONS, *SUMS, "_weighed")
