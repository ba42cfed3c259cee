"""Limits: what holders used of them window by window, what turned them away, and what larger limits would burn.

A limit is the most weighted quantity that a holder (customer, project or seat) may use of a group of products in
one window. minute: of the clock. fixed: one after the other from an anchor. anchored: opens at the first use after
the last one closed. Use lands on the minute in which a request ended. Usage that does not say its project or seat
is under no limit that projects or seats hold.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from metering.core.limit_cells import (
    WHO,
    as_instant,
    clock_start,
    limits_in,
    limits_touching,
    minute_number,
    minutes_of,
    numbered_cells,
    under_limits,
    weight_column,
)
from metering.core.limit_refusals import refusals_by_cell, turned_away
from metering.core.series import identify
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.frames.usage import SUMS
from metering.money import EXACT_MAX, ratio
from metering.periods import DAY, Period
from metering.results.limits import LIMIT_WINDOWS, LIMITS_BY, RAISED, limit_frame

#: Anchored windows hang on all use before them, back to a pause as long as a window. So much is looked at.
SETTLING: Final = 7 * DAY


def raised(
    windows: pl.DataFrame,
    factor: Decimal,
    *,
    plans: Sequence[str] | None = None,
    customers: Sequence[str] | None = None,
    limits: Sequence[str] | None = None,
) -> pl.DataFrame:
    """What each binding window might use more if its limit L became L' = floor(L x factor): results.RAISED.

        min(refused, L' - L) <= extra <= L' - L

    windows: results.LIMIT_WINDOWS. plans, customers, limits: only theirs; None: of all. Windows that were not
    binding use nothing more. A factor below 1 raises BadInput: what a smaller limit would turn away is not known.
    """
    if factor < 1:
        raise BadInput(f"a limit raised by the factor {factor} would be smaller; give a factor of at least 1")
    chosen = pl.col("binding")
    for column, names in (("plan", plans), ("customer", customers), ("limit", limits)):
        if names is not None:
            chosen &= pl.col(column).is_in(list(names))
    rows = windows.filter(chosen.fill_null(value=False))
    exact = Fraction(factor)
    after = {quantity: int(quantity * exact) for quantity in rows["quantity"].unique()}
    if any(quantity >= 2**63 for quantity in after.values()):
        raise BadInput(f"a limit raised by the factor {factor} is beyond 64 bits; give a smaller factor")
    more = (pl.col("quantity_after").cast(SUM) - pl.col("quantity")) * pl.col("denominator").cast(SUM)
    return RAISED.conform(
        rows.with_columns(
            pl.col("quantity").replace_strict(after, return_dtype=pl.Int64).alias("quantity_after")
        ).with_columns(more.alias("extra_high"), pl.min_horizontal("refused", more).alias("extra_low"))
    )


def limit_reach(limits: pl.DataFrame, period: Period, complete_until: datetime | None) -> Period:
    """The span of usage and refusals that the windows which touch a period need, cut at `complete_until`.

    From a window's length before the period, and SETTLING more for anchored windows, to a window's length after it.
    The anchored windows of a holder that never pauses for a window's length may begin at other minutes than if all
    of its past were read.
    """
    touching = limits_touching(limits, period)
    longest = timedelta(minutes=touching["window_minutes"].max() or 0)  # type: ignore[arg-type]  # integers
    settling = SETTLING if (touching["window"] == "anchored").any() else timedelta()
    return Period(period.name, period.start - longest - settling, period.until + longest).cut_at(
        complete_until
    )


def limit_windows(
    usage: pl.DataFrame, refused: pl.DataFrame, books: Books, period: Period, complete_until: datetime
) -> pl.DataFrame:
    """The windows that touch the period in which a holder used something or was refused: results.LIMIT_WINDOWS.

    usage: frames.LIMIT_USAGE of `limit_reach`, rows of one key may be split; refused: frames.LIMIT_REFUSED of the
    same. A window over an edge of the period is in both periods, whole. A refusal counts in one window of one limit
    of its customer, product, project and seat: the one that is used most of its quantity (the shorter of equals,
    then by name). Where no anchored window is open it stands in one of its own, in which nothing was used. Refused
    tokens weigh as uncached input and as output. Use beyond exact sums raises BadInput.
    """
    cells, uses = uses_of_limits(usage, books, period)
    refusals, cells = refusals_by_cell(refused, books, period, cells)
    used = _used(uses, cells)
    turned = turned_away(refusals, used, cells)
    rows = (
        used.join(turned, on=["cell", "start"], how="full", coalesce=True, validate="1:1")
        .join(cells.with_columns(_order(cells)), on="cell", validate="m:1")
        .with_columns(
            pl.col("used", "refused", "refused_tokens").fill_null(pl.lit(0, dtype=SUM)),
            pl.col("refused_requests", "refused_unestimated").fill_null(0),
            pl.max_horizontal("start", "_since").alias("_first"),
            pl.min_horizontal(pl.col("start") + pl.col("window_minutes"), "_until").alias("_last"),
        )
        .filter(
            (pl.col("_first") < minute_number(period.until)) & (pl.col("_last") > minute_number(period.start))
        )
        # the order of the key, but by numbers
        .sort("_order", "start")
    )
    quantity = pl.col("quantity").cast(SUM) * pl.col("denominator").cast(SUM)
    return LIMIT_WINDOWS.conform(
        rows.with_columns(
            as_instant("_first").alias("window_start"),
            as_instant("_last").alias("window_until"),
            (pl.col("_last") > minute_number(complete_until)).alias("open"),
            ratio(quantity - pl.col("used"), quantity).alias("headroom_ratio"),
            as_instant(pl.min_horizontal("full_at", "refused_at")).alias("binding_from"),
        ).with_columns(pl.col("binding_from").is_not_null().alias("binding"))
    )


def uses_of_limits(usage: pl.DataFrame, books: Books, period: Period) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(cells, uses): limits with their holders; and per cell and minute in the limit's span what was used."""
    limits = limits_in(books, period)
    usage = usage.filter(pl.col("customer").is_in(limits["customer"].unique().implode()))
    known = identify(usage, WHO)
    held = under_limits(known.series, limits)
    cells = numbered_cells(held, limits)
    weighing = [meter for meter in SUMS if (limits[weight_column(meter)] != 0).any()]
    weights = [weight_column(meter) for meter in weighing]
    pairs = held.join(
        cells.select("_limit", "held_by", "cell", "_since", "_until", *weights), on=["_limit", "held_by"]
    ).select("series_id", "cell", "_since", "_until", *weights)
    rows = (
        known.rows.select(minutes_of("minute").alias("minute"), "series_id", *weighing)
        .join(pairs, on="series_id")
        .filter(pl.col("minute").is_between("_since", "_until", closed="left"))
    )
    weighed = [
        rows.select((pl.col(meter).abs().cast(pl.Float64) * pl.col(weight_column(meter))).alias("weighed"))[
            "weighed"
        ]
        for meter in weighing
    ]
    if sum(each.sum() for each in weighed) > EXACT_MAX / 10**6:
        raise BadInput("what counts in limits is beyond exact sums; use smaller weights")
    # in 64 bits where no use can leave them, which takes a fraction of the time
    largest = sum(each.max() or 0 for each in weighed)  # type: ignore[misc]  # floats
    wide = SUM if largest > 2.0**62 else pl.Int64
    use = pl.sum_horizontal(
        pl.lit(0, dtype=wide),
        *(pl.col(meter).cast(wide) * pl.col(weight_column(meter)).cast(wide) for meter in weighing),
    )
    # one number for cell and minute: grouping by two takes longer
    place = pl.col("cell").cast(pl.Int64) * _MINUTES_MAX + pl.col("minute")
    uses = (
        rows.select(place.alias("_place"), use.cast(SUM).alias("used"))
        .group_by("_place")
        .agg(pl.col("used").sum())
        .filter(pl.col("used") != 0)
        .sort("_place")
        .select(
            (pl.col("_place") // _MINUTES_MAX).cast(pl.UInt32).alias("cell"),
            (pl.col("_place") % _MINUTES_MAX).alias("minute"),
            "used",
        )
    )
    return cells, uses


#: More minutes since 1970 than any instant has.
_MINUTES_MAX: Final = 2**33


def _used(uses: pl.DataFrame, cells: pl.DataFrame) -> pl.DataFrame:
    """The windows of uses (sorted by cell and minute): cell, start (minutes since 1970), used, full_at.

    full_at: the minute in which the limit was reached, null in a window that ends below it: what was taken back came
    in between.
    """
    cell = uses["cell"]
    kind = cells.select("window", "window_minutes", "_anchor", "full").select(pl.all().gather(cell))
    rows = uses.with_columns(kind).with_columns(clock_start().alias("start"))
    chained = rows["window"] == "anchored"
    if chained.any():
        starts = rows["start"].to_numpy().copy()
        starts[chained.to_numpy()] = _anchored(rows.filter(chained))
        rows = rows.with_columns(pl.Series("start", starts))
    # the windows of a cell follow each other
    opens = ((pl.col("cell").diff() != 0) | (pl.col("start").diff() != 0)).fill_null(value=True)
    first = rows.select(opens).to_series().arg_true().cast(pl.Int64)
    sums = pl.concat([pl.Series([0], dtype=SUM), rows["used"].cum_sum()])
    ends = pl.concat([first.slice(1), pl.Series([rows.height], dtype=pl.Int64)]) if rows.height else first
    used = rows.select("cell", "start").select(pl.all().gather(first))
    used = used.with_columns((sums.gather(ends) - sums.gather(first)).alias("used"))
    number = rows.select(opens.cum_sum().cast(pl.Int64) - 1).to_series()
    reached = rows["used"].cum_sum() - sums.gather(first).gather(number) >= rows["full"]
    full = (
        pl.DataFrame({"_window": number.filter(reached), "full_at": rows["minute"].filter(reached)})
        .unique("_window", keep="first", maintain_order=True)
        .join(used.with_row_index("_window").cast({"_window": pl.Int64}), on="_window", how="right")
        .join(cells.select("cell", "full"), on="cell", validate="m:1", how="left", maintain_order="left")
    )
    return full.select(
        "cell", "start", "used", pl.when(pl.col("used") >= pl.col("full")).then("full_at").alias("full_at")
    )


def _order(cells: pl.DataFrame) -> pl.Series:
    """The place of each cell among all, in the order of limit and holder."""
    place = cells.select("cell", "_limit", "held_by").sort("_limit", "held_by").with_row_index("_order")
    return place.sort("cell")["_order"]


def _anchored(rows: pl.DataFrame) -> npt.NDArray[np.int64]:
    """The starts of anchored windows of uses sorted by cell and minute.

    For every use the first one a window's length later in its cell is looked up at once; then all cells jump from
    window to window together, as many times as the busiest has windows.
    """
    minute: npt.NDArray[np.int64] = rows["minute"].to_numpy()
    cell = rows["cell"].cast(pl.Int64).to_numpy()
    if not len(minute):
        return np.empty(0, np.int64)
    first, length = int(minute.min()), rows["window_minutes"].to_numpy()
    # in one line of numbers, cell after cell, with more than a window between two
    stride = int(minute.max()) - first + int(length.max()) + 1
    line = cell * stride + (minute - first)
    beyond = np.searchsorted(line, line + length)
    opens = np.zeros(len(line), np.bool_)
    at = np.flatnonzero(np.diff(cell, prepend=-1))
    ends = np.append(at[1:], len(line))
    while len(at):
        opens[at] = True
        at = beyond[at]
        inside = at < ends
        at, ends = at[inside], ends[inside]
    started: npt.NDArray[np.int64] = minute[np.flatnonzero(opens)[np.cumsum(opens) - 1]]
    return started


def summarise_limits(windows: pl.DataFrame, by: str) -> pl.DataFrame:
    """Windows summed by limit, plan, customer or holder: results.limit_frame(by).

    windows: results.LIMIT_WINDOWS. Percentiles are nearest rank over the windows: the value at place ceil(p x n) of
    the n ascending. used_ratio is that of the sums; windows in which nothing was used and nobody refused have no row
    and are not counted.
    """
    full = pl.col("quantity").cast(SUM) * pl.col("denominator").cast(SUM)
    rows = windows.with_columns(
        # other denominators do not add up: shares of a million do
        ratio(pl.col("used"), full).alias("_ratio"),
        pl.when(pl.col("plan").is_null()).then("contract").alias("contract") if by == "limit" else "contract",
        pl.concat_list("customer", "held_by", "holder").alias("_holder"),
    )
    used = pl.col("_ratio").sort()
    holders = pl.col("_holder")
    summed = rows.group_by(LIMITS_BY[by]).agg(
        holders.n_unique().cast(pl.Int64).alias("holders"),
        holders.filter("binding").n_unique().cast(pl.Int64).alias("holders_binding"),
        pl.len().cast(pl.Int64).alias("windows"),
        pl.col("binding").sum().cast(pl.Int64).alias("windows_binding"),
        *(used.get((pl.len() * percent + 99) // 100 - 1).alias(f"p{percent}_ratio") for percent in (50, 95)),
        used.last().alias("max_ratio"),
        pl.col("headroom_ratio").min().alias("least_headroom_ratio"),
        pl.col("refused_requests", "refused_unestimated", "refused_tokens").sum(),
    )
    share = ratio(pl.col("windows_binding").cast(SUM), pl.col("windows").cast(SUM))
    return limit_frame(LIMITS_BY[by]).conform(summed.with_columns(share.alias("binding_ratio")))
