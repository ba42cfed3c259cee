"""Several limits of one holder: nothing counts twice, and none lets through more than the others leave."""

from typing import Final

import polars as pl

from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM
from metering.frames.usage import SUMS

_MINUTE: Final = 60_000_000
_QUANTITIES: Final = tuple(SUMS)


def weighed_by(rows: pl.DataFrame, books: Books) -> pl.DataFrame:
    """Rows of a contract's limit with what they weigh of it, as numerators: `_weighed`."""
    weights = books.limit_weights.pivot("meter", index=["contract", "limit"], values="weight")
    named = {name: f"_weight_{name}" for name in _QUANTITIES if name in weights.columns}
    weights = weights.select(
        "contract", "limit", *(pl.col(a).fill_null(0).alias(b) for a, b in named.items())
    )
    rows = rows.join(weights, on=["contract", "limit"], how="left", validate="m:1")
    use = pl.sum_horizontal(
        pl.lit(0, dtype=SUM), *(pl.col(a) * pl.col(b).fill_null(0).cast(SUM) for a, b in named.items())
    )
    return rows.with_columns(use.cast(SUM).alias("_weighed")).drop(list(named.values()))


def bounded(
    told: pl.DataFrame,
    mix: pl.DataFrame,
    rooms: pl.DataFrame,
    limits: pl.DataFrame,
    books: Books,
    bound: str,
) -> pl.DataFrame:
    """Extra quantities by window and series, with `binding_from`, `window_until`: limit by limit, shortest first."""
    extra = f"extra_{bound}"
    order = rooms.select("window_minutes", "limit").unique().sort("window_minutes", "limit")
    who = ["customer", "_holder", "held_by"]
    done = mix.clear().with_columns(
        *(pl.lit(None, dtype=pl.String).alias(name) for name in who),
        pl.lit(None, dtype=INSTANT).alias("binding_from"),
        pl.lit(None, dtype=INSTANT).alias("window_until"),
    )
    for minutes, limit in order.iter_rows():
        of = rooms.filter((pl.col("window_minutes") == minutes) & (pl.col("limit") == limit)).with_row_index(
            "_room"
        )
        inner = _inside(done.with_row_index("_row"), of, books)
        sums = inner.group_by("_room").agg(pl.col("_weighed").sum().alias("_inner"))
        # what fits into these windows of what shorter ones would use more
        new = pl.col("_quantity").cast(SUM) * pl.col("denominator").cast(SUM)
        old = pl.col("quantity").cast(SUM) * pl.col("denominator").cast(SUM)
        fits = pl.when(pl.col("_raised")).then(new - old)
        full = of.join(sums, on="_room", validate="1:1").with_columns(
            fits.otherwise(pl.max_horizontal(new - pl.col("used"), pl.lit(0, dtype=SUM))).alias("_fits")
        )
        cut = full.filter(pl.col("_inner") > pl.col("_fits"))
        squeezed = inner.join(cut.select("_room", "_inner", "_fits"), on="_room", validate="m:1")
        shares = squeezed.unique("_row", keep="first").select("_row", "_inner", "_fits")
        done = (
            done.with_row_index("_row")
            .join(shares, on="_row", how="left", validate="1:1")
            .with_columns(
                pl.when(pl.col("_inner").is_not_null())
                .then(pl.col(name) * pl.col("_fits") // pl.col("_inner"))
                .otherwise(pl.col(name))
                .alias(name)
                for name in _QUANTITIES
            )
            .select(done.columns)
        )
        key = ["customer", "contract", "limit", "held_by", "window_start"]
        mine = told.join(of.select(*key, "_room"), on=key, validate="1:1").join(
            full.select("_room", pl.min_horizontal("_inner", "_fits").alias("_inner")),
            on="_room",
            how="left",
            validate="1:1",
        )
        own = pl.max_horizontal(
            pl.col(extra) - pl.col("_inner").fill_null(pl.lit(0, dtype=SUM)), pl.lit(0, dtype=SUM)
        )
        mine = mine.select("_window", *who, "binding_from", "window_until", own.alias("_extra"), "_used")
        more = mix.join(mine, on="_window", validate="m:1").with_columns(
            (pl.col(name) * pl.col("_extra") // pl.col("_used")).alias(name) for name in _QUANTITIES
        )
        for other_minutes, other in order.iter_rows():
            if other_minutes <= minutes and other != limit:
                more = _let_through(more, mine, done, rooms, limits.filter(pl.col("limit") == other), books)
        done = pl.concat([done, more.select(done.columns)]).filter(
            pl.any_horizontal(pl.col(name) != 0 for name in _QUANTITIES)
        )
    return done


def _let_through(
    more: pl.DataFrame,
    asking: pl.DataFrame,
    done: pl.DataFrame,
    rooms: pl.DataFrame,
    shorter: pl.DataFrame,
    books: Books,
) -> pl.DataFrame:
    """Extra quantities (`more`, of the windows `asking`), as much of them as a shorter limit would let through.

    shorter: limits of one name, numbered, with `_quantity` as they are raised; done: the extra of shorter windows.
    """
    spans = (
        asking.select("_window", "customer", "_holder", "held_by", "binding_from", "window_until")
        .join(
            shorter.with_columns(pl.col("holder").alias("_holder")).join(
                books.limit_weights.group_by("contract", "limit").agg(pl.col("denominator").first()),
                on=["contract", "limit"],
                validate="m:1",
            ),
            on=["customer", "_holder"],
        )
        .with_columns(
            pl.max_horizontal("binding_from", "effective_from").alias("window_start"),
            pl.min_horizontal("window_until", "effective_until").alias("window_until"),
        )
        .filter(pl.col("window_start") < pl.col("window_until"))
        .with_row_index("_room")
    )
    if not spans.height:
        return more
    zero = pl.lit(0, dtype=SUM)
    taken = _inside(done.with_row_index("_row"), spans, books)
    lets = (
        _room_in(spans, rooms)
        .join(taken.group_by("_room").agg(pl.col("_weighed").sum()), on="_room", how="left", validate="1:1")
        .with_columns(
            pl.max_horizontal(pl.col("_lets") - pl.col("_weighed").fill_null(zero), zero).alias("_lets")
        )
        # versions of one limit, one after the other, let through what they do together
        .group_by("_window")
        .agg(pl.col("_lets").sum())
    )
    more = more.with_row_index("_row")
    limit = spans.unique("_window", keep="first").select("_window", "contract", "limit", "items")
    counted = more.join(limit, on="_window", validate="m:1").filter(
        (pl.col("items").list.len() == 0) | pl.col("items").list.contains(pl.col("product"))
    )
    counted = weighed_by(counted, books).select("_row", "_window", "_weighed")
    asked = counted.group_by("_window").agg(pl.col("_weighed").sum().alias("_asked"))
    cut = asked.join(lets, on="_window", validate="1:1").filter(pl.col("_asked") > pl.col("_lets"))
    shares = counted.join(cut, on="_window", validate="m:1").select("_row", "_lets", "_asked")
    return (
        more.join(shares, on="_row", how="left", validate="1:1")
        .with_columns(
            pl.when(pl.col("_asked").is_not_null())
            .then(pl.col(name) * pl.col("_lets") // pl.col("_asked"))
            .otherwise(pl.col(name))
            .alias(name)
            for name in _QUANTITIES
        )
        .drop("_row", "_lets", "_asked")
    )


def _room_in(spans: pl.DataFrame, rooms: pl.DataFrame) -> pl.DataFrame:
    """What the windows of a limit that touch a span would let through beyond what was used: _room, _window, _lets.

    Of windows in which nothing was used there are as many as fit: by the clock those that touch the span; anchored
    ones begin when the one that is open closes, and one after the other.
    """
    who = ["_limit", "held_by"]
    full = pl.col("_quantity").cast(SUM) * pl.col("denominator").cast(SUM)
    seen = (
        rooms.join(spans.select("_limit").unique(), on="_limit", how="semi")
        .sort("window_start")
        .select(
            *who,
            pl.col("window_start").alias("_from"),
            pl.col("window_until").alias("_to"),
            (full - pl.col("used")).clip(lower_bound=0).cum_sum().over(who).alias("_left"),
            pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over(who).alias("_windows"),
        )
    )

    def last(rows: pl.DataFrame, at: pl.Expr, key: str, end: str) -> pl.DataFrame:
        """With the last window that begins (or ends: `key`) at or before an instant, and the sums up to it."""
        named = seen.select(
            *who,
            pl.col(key).alias("_key"),
            *(pl.col(name).alias(f"{name}{end}") for name in ("_to", "_left", "_windows")),
        )
        return (
            rows.with_columns(at.alias("_at"))
            .sort("_at")
            .join_asof(
                named.sort("_key"),
                left_on="_at",
                right_on="_key",
                by=who,
                strategy="backward",
                check_sortedness=False,
            )
            .drop("_at", "_key")
        )

    def minute(at: str) -> pl.Expr:
        return pl.col(at).dt.timestamp("us") // _MINUTE

    found = last(spans, pl.col("window_start"), "_to", "_before")
    found = last(found, pl.col("window_start"), "_from", "_open")
    found = last(found, pl.col("window_until") - pl.duration(minutes=1), "_from", "_last")
    length, anchor = pl.col("window_minutes").cast(pl.Int64), minute("anchor_at").fill_null(0)
    start, until = minute("window_start"), minute("window_until")
    is_open = (pl.col("_to_open") > pl.col("window_start")).fill_null(value=False)
    closes = pl.when(is_open).then(minute("_to_open")).otherwise(start)
    fit = (
        pl.when(pl.col("window") == "anchored")
        .then(is_open.cast(pl.Int64) + ((until - closes).clip(lower_bound=0) + length - 1) // length)
        .otherwise((until - 1 - anchor) // length - (start - anchor) // length + 1)
    )
    unopened = fit - (pl.col("_windows_last").fill_null(0) - pl.col("_windows_before").fill_null(0))
    zero = pl.lit(0, dtype=SUM)
    return found.select(
        "_room",
        "_window",
        (
            pl.col("_left_last").fill_null(zero)
            - pl.col("_left_before").fill_null(zero)
            + unopened.clip(lower_bound=0).cast(SUM) * full
        ).alias("_lets"),
    )


def _inside(extra: pl.DataFrame, rooms: pl.DataFrame, books: Books) -> pl.DataFrame:
    """Which extra (`_row`) begins in which window (`_room`) of its holder or customer, and what it weighs there."""
    spans = rooms.select(
        *("customer", "contract", "limit", "_room", "_limit", "_holder", "held_by"),
        pl.col("window_start").alias("_from"),
        pl.col("window_until").alias("_to"),
    ).sort("_from")
    extra = extra.sort("binding_from")

    def begun(rows: pl.DataFrame, rooms: pl.DataFrame, by: list[str]) -> pl.DataFrame:
        # windows of one holder do not overlap
        found = rows.join_asof(
            rooms,
            left_on="binding_from",
            right_on="_from",
            by=by,
            strategy="backward",
            check_sortedness=False,
        )
        return found.filter(pl.col("binding_from") < pl.col("_to"))

    customers = pl.col("_holder") == "customer"
    whose = spans.filter(customers).drop("_holder", "held_by")
    rows = pl.concat(
        [
            begun(extra, spans, ["customer", "_holder", "held_by"]),
            begun(extra.filter(~customers), whose, ["customer"]),
        ],
        how="diagonal",
    )
    items = books.limits.with_row_index("_limit").select("_limit", "items")
    rows = rows.join(items, on="_limit", validate="m:1").filter(
        (pl.col("items").list.len() == 0) | pl.col("items").list.contains(pl.col("product"))
    )
    return weighed_by(rows, books).select("_row", "_room", "_weighed")
