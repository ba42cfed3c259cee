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

from metering.core.capacity import denominators, weigh, weights_in
from metering.core.series import identify
from metering.errors import BadInput
from metering.frames import DIMENSIONS, INSTANT, SUM, SUMS, Books
from metering.money import EXACT_MAX, multiply_divide, ratio
from metering.periods import DAY, MINUTE, Period
from metering.results import (
    EXPOSURE,
    LIMIT_BURN,
    LIMIT_WINDOWS,
    LIMITS_BY,
    RAISED,
    limit_frame,
)

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


_MICROSECONDS: Final = MINUTE // timedelta(microseconds=1)


def limit_reach(limits: pl.DataFrame, period: Period, complete_until: datetime | None) -> Period:
    """The span of usage and refusals that the windows which touch a period need, cut at `complete_until`.

    From a window's length before the period, and SETTLING more for anchored windows, to a window's length after it.
    The anchored windows of a holder that never pauses for a window's length may begin at other minutes than if all
    of its past were read.
    """
    touching = _touching(limits, period)
    longest = timedelta(minutes=touching["window_minutes"].max() or 0)  # type: ignore[arg-type]  # integers
    settling = SETTLING if (touching["window"] == "anchored").any() else timedelta()
    return Period(period.name, period.start - longest - settling, period.until + longest).cut_at(
        complete_until
    )


def _touching(limits: pl.DataFrame, period: Period) -> pl.DataFrame:
    return limits.filter(
        (pl.col("effective_from") < period.until)
        & (pl.col("effective_until").is_null() | (pl.col("effective_until") > period.start))
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
    cells, uses = _uses(usage, books, period)
    refusals, cells = _refusals(refused, books, period, cells)
    used = _used(uses, cells)
    turned = _turned_away(refusals, used, cells)
    rows = (
        used.join(turned, on=["cell", "start"], how="full", coalesce=True, validate="1:1")
        .join(cells.with_columns(_order(cells)), on="cell", validate="m:1")
        .with_columns(
            pl.col("used", "refused", "refused_tokens").fill_null(pl.lit(0, dtype=SUM)),
            pl.col("refused_requests", "refused_unestimated").fill_null(0),
            pl.max_horizontal("start", "_since").alias("_first"),
            pl.min_horizontal(pl.col("start") + pl.col("window_minutes"), "_until").alias("_last"),
        )
        .filter((pl.col("_first") < _number(period.until)) & (pl.col("_last") > _number(period.start)))
        # the order of the key, but by numbers
        .sort("_order", "start")
    )
    quantity = pl.col("quantity").cast(SUM) * pl.col("denominator").cast(SUM)
    return LIMIT_WINDOWS.conform(
        rows.with_columns(
            _instant("_first").alias("window_start"),
            _instant("_last").alias("window_until"),
            (pl.col("_last") > _number(complete_until)).alias("open"),
            ratio(quantity - pl.col("used"), quantity).alias("headroom_ratio"),
            _instant(pl.min_horizontal("full_at", "refused_at")).alias("binding_from"),
        ).with_columns(pl.col("binding_from").is_not_null().alias("binding"))
    )


def _instant(number: str | pl.Expr) -> pl.Expr:
    column = pl.col(number) if isinstance(number, str) else number
    return (column * _MICROSECONDS).cast(INSTANT)


def _number(at: datetime) -> int:
    """Whole minutes since 1970."""
    return int(at.timestamp()) // 60


_WHO: Final = ("customer", "product", "project", "seat")


def _limits(books: Books, period: Period) -> pl.DataFrame:
    """The limits that touch a period, numbered, with their weights by meter and their spans in minutes."""
    numbered = _touching(books.limits, period).with_row_index("_limit")
    weights = books.limit_weights.group_by("contract", "limit").agg(
        pl.col("denominator").first(),
        *(pl.col("weight").filter(pl.col("meter") == meter).sum().alias(_weight(meter)) for meter in SUMS),
    )
    return numbered.join(weights, on=["contract", "limit"], validate="m:1").with_columns(
        _minutes("effective_from").alias("_since"),
        _minutes("effective_until").fill_null(2**40).alias("_until"),
        _minutes("anchor_at").alias("_anchor"),
        (pl.col("quantity").cast(SUM) * pl.col("denominator").cast(SUM)).alias("full"),
    )


def _minutes(column: str) -> pl.Expr:
    return pl.col(column).to_physical() // _MICROSECONDS


def _weight(meter: str) -> str:
    return f"weight_{meter}"


def _held(who: pl.DataFrame, limits: pl.DataFrame) -> pl.DataFrame:
    """Pairs of (customer, product, project, seat) and the limits that it is under, with who holds each."""
    items = limits.select("_limit", "customer", "items").explode("items", empty_as_null=True)
    some = who.join(
        items.filter(pl.col("items").is_not_null()),
        left_on=["customer", "product"],
        right_on=["customer", "items"],
    )
    every = who.join(items.filter(pl.col("items").is_null()).drop("items"), on="customer")
    holder = pl.col("holder")
    held_by = pl.when(holder == "customer").then("customer").when(holder == "project").then("project")
    return (
        pl.concat([some.select(every.columns), every])
        .join(limits.select("_limit", "holder"), on="_limit", validate="m:1")
        .with_columns(held_by.otherwise("seat").alias("held_by"))
        .filter(pl.col("held_by") != "")
        .drop("holder")
    )


def _cells(held: pl.DataFrame, limits: pl.DataFrame, cells: pl.DataFrame | None = None) -> pl.DataFrame:
    """Limits and their holders, numbered: those given first, as they are."""
    found = held.select("_limit", "held_by").unique().sort("_limit", "held_by")
    if cells is not None:
        known = cells.select("_limit", "held_by")
        found = pl.concat(
            [known, found.join(known, on=["_limit", "held_by"], how="anti").sort("_limit", "held_by")]
        )
    return found.with_row_index("cell").join(
        limits, on="_limit", how="left", validate="m:1", maintain_order="left"
    )


def _uses(usage: pl.DataFrame, books: Books, period: Period) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(cells, uses): limits with their holders; and per cell and minute in the limit's span what was used."""
    limits = _limits(books, period)
    usage = usage.filter(pl.col("customer").is_in(limits["customer"].unique().implode()))
    known = identify(usage, _WHO)
    held = _held(known.series, limits)
    cells = _cells(held, limits)
    weighing = [meter for meter in SUMS if (limits[_weight(meter)] != 0).any()]
    weights = [_weight(meter) for meter in weighing]
    pairs = held.join(
        cells.select("_limit", "held_by", "cell", "_since", "_until", *weights), on=["_limit", "held_by"]
    ).select("series_id", "cell", "_since", "_until", *weights)
    rows = (
        known.rows.select(_minutes("minute").alias("minute"), "series_id", *weighing)
        .join(pairs, on="series_id")
        .filter(pl.col("minute").is_between("_since", "_until", closed="left"))
    )
    weighed = [
        rows.select((pl.col(meter).abs().cast(pl.Float64) * pl.col(_weight(meter))).alias("weighed"))[
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
        *(pl.col(meter).cast(wide) * pl.col(_weight(meter)).cast(wide) for meter in weighing),
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
    rows = uses.with_columns(kind).with_columns(_by_clock().alias("start"))
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


def _by_clock() -> pl.Expr:
    since = pl.col("minute") - pl.col("_anchor").fill_null(0)
    return pl.col("minute") - since % pl.col("window_minutes")


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


_REFUSED: Final = {
    "refused_requests": pl.Int64,
    "refused_unestimated": pl.Int64,
    "refused_tokens": SUM,
    "refused": SUM,
}


def _refusals(
    refused: pl.DataFrame, books: Books, period: Period, cells: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Every refusal with each cell that it may be of: number, cell, minute, what it weighs; and all cells."""
    limits = _limits(books, period)
    rows = refused.select(
        pl.int_range(pl.len()).alias("_refusal"),
        _minutes("occurred_at").alias("minute"),
        "customer",
        pl.col("product", "project", "seat").fill_null(""),
        pl.col("estimated_input_tokens", "estimated_output_tokens").cast(SUM),
    )
    held = _held(rows, limits)
    cells = _cells(held, limits, cells)
    tokens = [pl.col(f"estimated_{side}_tokens").fill_null(0) for side in ("input", "output")]
    weighed = [
        pl.col(_weight(meter)).cast(SUM) for meter in ("uncached_input_tokens", "output_tokens", "requests")
    ]
    said = pl.any_horizontal(pl.col("estimated_input_tokens", "estimated_output_tokens").is_not_null())
    found = (
        held.join(cells, on=["_limit", "held_by"], suffix="_limit", validate="m:1")
        .filter(pl.col("minute").is_between("_since", "_until", closed="left"))
        .select(
            "_refusal",
            "cell",
            "minute",
            (~said).cast(pl.Int64).alias("refused_unestimated"),
            (tokens[0] + tokens[1]).alias("refused_tokens"),
            (tokens[0] * weighed[0] + tokens[1] * weighed[1] + weighed[2]).alias("refused"),
        )
    )
    return found, cells


def _turned_away(refusals: pl.DataFrame, used: pl.DataFrame, cells: pl.DataFrame) -> pl.DataFrame:
    """Refusals by cell and start of their window: each in the one that is used most of its quantity."""
    rows = refusals.join(
        cells.select("cell", "full", "window", "window_minutes", "_anchor", "limit", "contract"),
        on="cell",
        validate="m:1",
    ).with_columns(pl.when(pl.col("window") != "anchored").then(_by_clock()).alias("_clock"))
    used = used.join(refusals.select("cell").unique(), on="cell", how="semi")
    opened = used.select("cell", pl.col("start").alias("_open")).sort("_open")
    rows = (
        rows.sort("minute")
        .join_asof(
            opened, left_on="minute", right_on="_open", by="cell", strategy="backward", check_sortedness=False
        )
        .with_columns(
            pl.when(pl.col("_open") + pl.col("window_minutes") > pl.col("minute"))
            .then("_open")
            .alias("_open")
        )
        .with_columns(pl.coalesce("_clock", "_open", "minute").alias("start"))
        .join(used, on=["cell", "start"], how="left", validate="m:1")
        .with_columns(
            ratio(pl.col("used").fill_null(pl.lit(0, dtype=SUM)), pl.col("full")).alias("_fullness")
        )
        .sort(
            "_refusal",
            "_fullness",
            "window_minutes",
            "contract",
            "limit",
            descending=[False, True, False, False, False],
        )
        .unique("_refusal", keep="first", maintain_order=True)
    )
    return rows.group_by("cell", "start").agg(
        pl.len().cast(pl.Int64).alias("refused_requests"),
        pl.col("refused_unestimated", "refused_tokens", "refused").sum(),
        pl.col("minute").min().alias("refused_at"),
    )


def unlimited_refusals(refused: pl.DataFrame, books: Books, period: Period) -> pl.DataFrame:
    """Refusals within the period by customers whom no limit in force then turns away: customer, requests."""
    inside = refused.filter(pl.col("occurred_at").is_between(period.start, period.until, closed="left"))
    found, _ = _refusals(inside, books, period, _cells(_NOBODY, _limits(books, period)))
    under = inside.with_row_index("_refusal").join(
        found.select(pl.col("_refusal").cast(pl.UInt32)), on="_refusal", how="anti"
    )
    return under.group_by("customer").agg(pl.len().cast(pl.Int64).alias("requests")).sort("customer")


_NOBODY: Final = pl.DataFrame(schema={"_limit": pl.UInt32, "held_by": pl.String})


def limit_burn(usage: pl.DataFrame, books: Books, period: Period) -> pl.DataFrame:
    """Use and burn of every limit's products by customers under it, while they were: results.LIMIT_BURN.

    usage: frames.USAGE of the period. Use counts what charges count, wherever it ran; burn what is meant for a pool
    and counts for cost, overflow included. Limits of a plan are one over all contracts. Where a limit's products
    burned nothing of a pool there is no row.
    """
    limits = _limits(books, period)
    group = _group(limits)
    known = identify(
        usage.filter(pl.col("customer").is_in(limits["customer"].unique().implode())), list(DIMENSIONS)
    )
    who = known.series.with_columns(pl.lit("any").alias("project"), pl.lit("any").alias("seat"))
    held = _held(who.select("series_id", *_WHO), limits).select("series_id", "_limit").unique()
    charged = known.series.filter(pl.col("counts_for").is_in(["charge_and_cost", "charge"]))
    weighed, _ = weigh(
        known.rows.join(
            known.series.filter(
                pl.col("pool").is_not_null()
                & pl.col("counts_for").is_in(["charge_and_cost", "cost"])
                & pl.col("ran_on").is_in(["pool", "overflow"])
            ).select("series_id"),
            on="series_id",
            how="semi",
        ),
        known.series,
        *weights_in(books),
        at="quarter_start",
    )
    spans = limits.select("_limit", "_since", "_until", *map(_weight, SUMS))
    in_force = _minutes("quarter_start").is_between("_since", "_until", closed="left")
    use = pl.sum_horizontal(pl.col(meter).cast(SUM) * pl.col(_weight(meter)) for meter in SUMS).cast(SUM)
    uses = (
        known.rows.join(charged.select("series_id"), on="series_id", how="semi")
        .join(held, on="series_id")
        .join(spans, on="_limit", validate="m:1")
        .filter(in_force)
        .join(group, on="_limit", validate="m:1")
        .group_by(_GROUP)
        .agg(use.sum().alias("use"))
    )
    burned = (
        weighed.join(known.series.select("series_id", "pool"), on="series_id", validate="m:1")
        .join(held, on="series_id")
        .join(spans.select("_limit", "_since", "_until"), on="_limit", validate="m:1")
        .filter(in_force)
        .join(group, on="_limit", validate="m:1")
        .group_by(*_GROUP, "pool", "dimension")
        .agg(pl.col("burn").sum())
    )
    return LIMIT_BURN.conform(
        burned.filter(pl.col("burn") != 0)
        .join(uses, on=_GROUP, nulls_equal=True, validate="m:1")
        .join(
            group.join(limits.select("_limit", pl.col("denominator").alias("use_denominator")), on="_limit")
            .drop("_limit")
            .unique(_GROUP),
            on=_GROUP,
            nulls_equal=True,
            validate="m:1",
        )
        .join(denominators(*weights_in(books)), on=["pool", "dimension"], validate="m:1")
    )


_GROUP: Final = ["plan", "contract", "limit"]


def _group(limits: pl.DataFrame) -> pl.DataFrame:
    """Of every limit the group that it is of: those of a plan by plan and name, others by contract and name."""
    contract = pl.when(pl.col("plan").is_null()).then("contract").alias("contract")
    return limits.select("_limit", "plan", contract, "limit")


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


def exposure(
    usage: pl.DataFrame, burn: pl.DataFrame, utilization: pl.DataFrame, books: Books, period: Period
) -> pl.DataFrame:
    """What pools would burn if every holder used its limit, and what they did at once: results.EXPOSURE.

        exposure = sum over holders of limit x burn / use        available = that of an average minute x window

    usage: frames.LIMIT_USAGE of the period; burn: results.LIMIT_BURN of it; utilization: results.UTILIZATION. The
    limits in force at the end of the period count. A customer is a holder of its own limits; projects and seats are
    those that used something, or as many seats as the contract pays for, if those are more. The peak is the stretch of
    a window's length, at any minute, in which all holders together burned most; null where the period is shorter.
    """
    cells, uses = _uses(usage, books, period)
    limits = _limits(books, period)
    last = pl.lit(_number(period.until) - 1)
    limits = limits.filter(last.is_between("_since", "_until", closed="left"))
    inside = pl.col("minute").is_between(_number(period.start), _number(period.until), closed="left")
    uses = uses.filter(inside)
    group = _group(limits)
    nominal = (
        limits.join(_holders(limits, cells.join(uses, on="cell", how="semi"), books, period), on="_limit")
        .select("_limit", "window_minutes", "holders", (pl.col("full") * pl.col("holders")).alias("_full"))
        .join(group, on="_limit", validate="1:1")
        .group_by(*_GROUP, "window_minutes")
        .agg(pl.col("holders", "_full").sum())
    )
    place = ["pool", "dimension", "window_minutes"]
    rows = nominal.join(burn.filter(pl.col("use") > 0), on=_GROUP, nulls_equal=True).with_columns(
        _share_of(pl.col("_full"), "burn", "use").alias("exposure")
    )
    minutes = (
        uses.join(cells.select("cell", "_limit"), on="cell")
        .join(group, on="_limit")
        .group_by(*_GROUP, "minute")
        .agg(pl.col("used").sum())
        .join(rows.select(*_GROUP, *place, "burn", "use"), on=_GROUP, nulls_equal=True)
        .select(*place, *_GROUP, "minute", _share_of(pl.col("used"), "burn", "use").alias("burned"))
    )
    every = rows.group_by(place).agg(
        pl.col("denominator").first(),
        pl.col("exposure").sum(),
        pl.col("holders").sum(),
        pl.len().alias("_limits"),
    )
    nobody = [pl.lit(None, dtype=pl.String).alias(name) for name in _GROUP]
    together = minutes.group_by(*place, "minute").agg(pl.col("burned").sum()).with_columns(nobody)
    peaks = _peaks(pl.concat([minutes, together.select(minutes.columns)]), [*place, *_GROUP], period)
    available = utilization.group_by("pool", "dimension").agg(
        pl.col("available").sum(), pl.len().cast(SUM).alias("_minutes")
    )
    found = (
        pl.concat(
            [
                rows.select(*place, *_GROUP, "holders", "denominator", "exposure"),
                every.filter(pl.col("_limits") > 1)
                .with_columns(nobody)
                .select(*place, *_GROUP, "holders", "denominator", "exposure"),
            ]
        )
        .join(available, on=["pool", "dimension"], validate="m:1")
        .join(peaks, on=[*place, *_GROUP], how="left", nulls_equal=True, validate="1:1")
        .with_columns(
            (pl.col("available") * pl.col("window_minutes") // pl.col("_minutes")).alias("available")
        )
    )
    return EXPOSURE.conform(
        found.with_columns(
            ratio(pl.col("exposure"), pl.col("available")).alias("exposure_ratio"),
            ratio(pl.col("peak"), pl.col("available")).alias("peak_ratio"),
        )
    )


def _share_of(part: pl.Expr, burn: str, use: str) -> pl.Expr:
    """part x burn / use, rounded down, through sums that cannot wrap."""
    whole, left = part // pl.col(use), part % pl.col(use)
    return whole * pl.col(burn) + multiply_divide(pl.col(burn), left, pl.col(use))[0]


def _holders(limits: pl.DataFrame, met: pl.DataFrame, books: Books, period: Period) -> pl.DataFrame:
    """How many hold each limit: _limit, holders."""
    last = period.until - MINUTE
    in_force = (pl.col("effective_from") <= last) & (
        pl.col("effective_until").is_null() | (pl.col("effective_until") > last)
    )
    seats = (
        books.fees.filter(in_force & (pl.col("kind") == "seat"))
        .group_by("customer", "contract")
        .agg(pl.col("quantity").sum().alias("_paid"))
    )
    seen = met.group_by("_limit").agg(pl.col("held_by").n_unique().cast(pl.Int64).alias("_seen"))
    return (
        limits.join(seen, on="_limit", how="left", validate="1:1")
        .join(seats, on=["customer", "contract"], how="left", validate="m:1")
        .select(
            "_limit",
            pl.when(pl.col("holder") == "customer")
            .then(pl.lit(1, dtype=pl.Int64))
            .when(pl.col("holder") == "seat")
            .then(pl.max_horizontal(pl.col("_seen").fill_null(0), pl.col("_paid").fill_null(0)))
            .otherwise(pl.col("_seen").fill_null(0))
            .alias("holders"),
        )
    )


def _peaks(minutes: pl.DataFrame, by: list[str], period: Period) -> pl.DataFrame:
    """Of every `by` the stretch of window_minutes that burned most, the first of equals: by, peak_start, peak."""
    rows = minutes.filter(pl.col("window_minutes") <= period.minutes).sort(*by, "minute", nulls_last=False)
    # in one line of numbers, as windows that are anchored
    first, stride = _number(period.start), period.minutes + int(rows["window_minutes"].max() or 0) + 1  # type: ignore[arg-type]
    number = rows.select(pl.struct(by).rle_id().cast(pl.Int64)).to_series()
    line = number * stride + (rows["minute"] - first)
    since = line.to_numpy().searchsorted((line - rows["window_minutes"]).to_numpy(), side="right")
    sums = pl.concat([pl.Series("sums", [0], dtype=SUM), rows["burned"].cum_sum().alias("sums")])
    within = sums.gather(pl.int_range(1, rows.height + 1, eager=True)) - sums.gather(pl.Series(since))
    start = pl.max_horizontal(pl.col("minute") + 1 - pl.col("window_minutes"), pl.lit(first))
    return (
        rows.with_columns(within.alias("peak"), start.alias("_start"))
        .sort("peak", "_start", descending=[True, False])
        .unique(by, keep="first", maintain_order=True)
        .select(*by, _instant("_start").alias("peak_start"), "peak")
    )
