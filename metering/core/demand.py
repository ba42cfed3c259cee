"""Scenarios of demand: prices, customers and limits changed as if, in books and in recorded usage."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import polars as pl

from metering.core.capacity import capacity
from metering.core.scenario import Traffic, Which, carried, conformed, elsewhere, part_of, scaled
from metering.core.series import identify
from metering.frames import (
    DIMENSIONS,
    INSTANT,
    POOL_CUSTOMER_USAGE,
    POOL_USAGE,
    PRICE_RULES,
    SUM,
    SUMS,
    USAGE,
    Books,
)
from metering.money import decimal_to_quanta, from_quanta, to_quanta
from metering.periods import DAY, Period
from metering.results import UTILIZATION

#: What a customer's contracts say, by date: it ends where they do.
_AGREED: Final = ("contracts", "contract_terms", "fees", "entitlements", "discounts", "limits")
#: What belongs to one contract as a whole: a part of it cannot be kept.
_WHOLE: Final = ("commitments", "credit_grants")
#: A book of a contract's own prices is named after the book that it overrides.
_OVERRIDDEN: Final = " for "
_ONE: Final = 10**12
_QUANTITIES: Final = tuple(SUMS)
_MINUTE: Final = 60_000_000


# ---- prices --------------------------------------------------------------------------------------------


def repriced(
    books: Books,
    book: str,
    product: str,
    since: datetime,
    *,
    factor: Decimal | None = None,
    per_million: Mapping[str, Decimal] | None = None,
    tier: str | None = None,
) -> Books:
    """The books in which a product of a price book costs other prices from `since` on.

    factor: every price of it x factor, rounded down to a quantum per unit: unit prices, amounts of tiers and of
    packages, in all regions, hours and contexts (of one tier sold, or of all). per_million: unit prices of some
    meters of a tier (None: standard) become these, in all regions; prices above a context breakpoint that differ
    from those below it stay. Prices that a contract overrides stay: they were agreed with one customer.
    """
    of = (pl.col("item") == product) & (
        pl.col("tier") == (tier or "standard") if tier or per_million else True
    )
    mine = pl.col("book") == book
    prices, rules = books.price_books, books.price_rules
    cells = ["item", "tier", "region", "context_breakpoint", "meter", "unit_price"]
    inherited = pl.col("book").str.starts_with(f"{book}{_OVERRIDDEN}")
    chosen = pl.concat(
        [
            prices.filter(mine & of),
            prices.filter(inherited & of).join(prices.filter(mine & of), on=cells, how="semi"),
        ]
    )
    if per_million is not None:
        wanted = dict(per_million)
        if "output_tokens" in wanted:
            wanted.setdefault("reasoning_tokens", wanted["output_tokens"])
        short = chosen.filter(pl.col("context_breakpoint") == 0)
        by = ["book", "item", "tier", "region", "meter", "effective_from", "unit_price"]
        chosen = chosen.filter(pl.col("meter").is_in(list(wanted))).join(short, on=by, how="semi")
        quanta = {meter: decimal_to_quanta(amount) // 10**6 for meter, amount in wanted.items()}
        amount = pl.col("meter").replace_strict(quanta, default=None, return_dtype=SUM)
    else:
        assert factor is not None
        amount = _times(pl.col("unit_price"), factor)
    kept, past, coming = _split(prices, chosen, ["book", *cells[:-1], "effective_from"], since)
    changed = coming.with_columns(from_quanta(amount).alias("unit_price"))
    books = replace(books, price_books=pl.concat([kept, past, changed.select(kept.columns)]))
    if factor is None:
        return books
    # a contract's own book takes a rule over under its name
    chosen = rules.filter(
        (mine | inherited) & pl.col("rule").is_in(rules.filter(mine & of)["rule"].implode())
    )
    kept, past, coming = _split(rules, chosen, [*PRICE_RULES.key], since)
    renamed = (pl.col("rule") + f" x {factor.normalize():f}").alias("rule")
    tiers = books.price_tiers.join(coming.select("rule").unique(), on="rule", how="semi").with_columns(
        renamed,
        *(from_quanta(_times(pl.col(name), factor)).alias(name) for name in ("unit_price", "flat_amount")),
    )
    return replace(
        books,
        price_rules=pl.concat([kept, past, coming.with_columns(renamed)]),
        price_tiers=pl.concat([books.price_tiers, tiers.select(books.price_tiers.columns)]),
    )


def _times(amount: pl.Expr, factor: Decimal) -> pl.Expr:
    """Quanta of an amount x factor, rounded down."""
    return to_quanta(amount) * pl.lit(decimal_to_quanta(factor), dtype=SUM) // pl.lit(_ONE, dtype=SUM)


def _split(
    frame: pl.DataFrame, chosen: pl.DataFrame, key: list[str], since: datetime
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """A dated frame as (what was not chosen, the chosen until `since`, the chosen from then on)."""
    kept = frame.join(chosen.select(key), on=key, how="anti")
    return kept, before(chosen, since), after(chosen, since)


# ---- customers -----------------------------------------------------------------------------------------


def before(rows: pl.DataFrame, since: datetime) -> pl.DataFrame:
    """Dated rows as far as they lie before an instant; a fee for a span keeps that part of its amount."""
    held = rows.filter(pl.col("effective_from") < since)
    edge = pl.lit(since).cast(INSTANT)
    end = pl.min_horizontal(pl.col("effective_until").fill_null(edge), edge)
    return _within(held, pl.col("effective_from"), end)


def after(rows: pl.DataFrame, since: datetime) -> pl.DataFrame:
    """Dated rows as far as they lie from an instant on."""
    held = rows.filter(pl.col("effective_until").is_null() | (pl.col("effective_until") > since))
    start = pl.max_horizontal("effective_from", pl.lit(since).cast(INSTANT))
    return _within(held, start, pl.col("effective_until"))


def _within(rows: pl.DataFrame, start: pl.Expr, until: pl.Expr) -> pl.DataFrame:
    cut = rows.with_columns(start.alias("_start"), until.alias("_until"))
    if "per" in rows.columns:

        def minutes(instant: str) -> pl.Expr:
            return (pl.col(instant) - pl.col("effective_from")).dt.total_minutes().cast(SUM)

        whole = minutes("effective_until")
        quanta = to_quanta(pl.col("amount"))
        part = quanta * minutes("_until") // whole - quanta * minutes("_start") // whole
        cut = cut.with_columns(
            pl.when(pl.col("per") == "span")
            .then(from_quanta(part))
            .otherwise(pl.col("amount"))
            .alias("amount")
        )
    return cut.with_columns(
        pl.col("_start").alias("effective_from"), pl.col("_until").alias("effective_until")
    ).select(rows.columns)


def lost(books: Books, customer: str, since: datetime, *, keeping: Iterable[str] = ()) -> Books:
    """The books in which a customer has no contract from `since` on.

    Fees, entitlements, discounts and limits end with it. What it had committed to beyond that is not claimed, and
    credits that were not used until then are not given back: both go as a whole. keeping: frames that stay.
    """
    mine = pl.col("customer") == customer
    changed: dict[str, Any] = {}
    for name in (*_AGREED, *_WHOLE):
        if name in keeping:
            continue
        frame: pl.DataFrame = getattr(books, name)
        if name in _WHOLE:
            ended = pl.col("effective_until").is_not_null() & (pl.col("effective_until") <= since)
            changed[name] = frame.filter(~mine | ended)
        else:
            changed[name] = pl.concat([frame.filter(~mine), before(frame.filter(mine), since)])
    return replace(books, **changed)


def without_customer(traffic: Traffic, customer: str, since: datetime) -> Traffic:
    """The traffic without what a customer sends from `since` on."""
    return scaled(traffic, Which(customer=customer, effective_from=since), Decimal(0))


def won(books: Books, like: str, customer: str, since: datetime) -> Books:
    """The books with a new customer whose contracts say what those of `like` say, from `since` on.

    Its kind and segment, price book, discounts, minimum, fees, limits; without commitments, credits and
    entitlements, which are of one customer alone. A minimum and fees stay whole, whatever its size.
    """

    def contract() -> pl.Expr:
        return (pl.col("contract") + f", like it {customer}").alias("contract")

    changed: dict[str, Any] = {}
    for name in ("customers", *(one for one in _AGREED if one != "entitlements")):
        frame: pl.DataFrame = getattr(books, name)
        theirs = after(frame.filter(pl.col("customer") == like), since).with_columns(
            pl.lit(customer).alias("customer")
        )
        if "contract" in frame.columns:
            theirs = theirs.with_columns(contract())
        if "name" in frame.columns:
            theirs = theirs.with_columns(pl.lit(customer).alias("name"))
        changed[name] = pl.concat([frame, theirs.select(frame.columns)])
    theirs = books.contracts.filter(pl.col("customer") == like).select("contract").unique()
    weights = books.limit_weights.join(theirs, on="contract", how="semi").with_columns(contract())
    changed["limit_weights"] = pl.concat([books.limit_weights, weights])
    return replace(books, **changed)


def with_customer(traffic: Traffic, like: str, customer: str, factor: Decimal, since: datetime) -> Traffic:
    """The traffic with that of `like` x factor a second time, from `since` on, as that of another customer."""
    theirs = Traffic(
        traffic.usage.filter(Which(customer=like, effective_from=since).rows("quarter_start")),
        traffic.minutes.filter(Which(customer=like, effective_from=since).rows("minute")),
    )
    theirs = scaled(theirs, Which(), factor)
    named = pl.lit(customer).alias("customer")
    return conformed(
        pl.concat([traffic.usage, theirs.usage.with_columns(named)]),
        pl.concat([traffic.minutes, theirs.minutes.with_columns(named)]),
    )


def on_plan(books: Books, other: Books, customer: str, since: datetime) -> Books:
    """The books in which a customer has from `since` on the contract that `other` books say it has.

    Nothing of its own contract stays but its entitlements. `other`: with that contract and its fees and limits.
    """
    books = lost(books, customer, since, keeping=("entitlements",))
    changed: dict[str, Any] = {}
    for name in (*_AGREED, *_WHOLE):
        frame: pl.DataFrame = getattr(books, name)
        theirs = getattr(other, name).filter(pl.col("customer") == customer)
        changed[name] = pl.concat([frame, after(theirs, since).select(frame.columns)])
    weights = other.limit_weights.join(
        other.contracts.filter(pl.col("customer") == customer).select("contract").unique(),
        on="contract",
        how="semi",
    )
    changed["limit_weights"] = pl.concat([books.limit_weights, weights])
    return replace(books, **changed)


# ---- more demand ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Extra:
    """Demand that limits held back: so many of every quantity in each minute of [start, until), by series.

    steps: series_id, start, until and sums; series: series_id and frames.DIMENSIONS.
    """

    steps: pl.DataFrame
    series: pl.DataFrame

    def within(self, period: Period) -> Traffic:
        """The demand of a period, in whole quarter hours, as traffic."""
        start, until = (pl.lit(at).cast(INSTANT) for at in (period.start, period.until))
        minutes = (
            self.steps.filter((pl.col("start") < until) & (pl.col("until") > start))
            .with_columns(
                pl.max_horizontal("start", start).dt.timestamp("us") // _MINUTE,
                pl.min_horizontal("until", until).dt.timestamp("us") // _MINUTE,
            )
            .with_columns(pl.int_ranges("start", "until").alias("minute"))
            .explode("minute")
            .with_columns((pl.col("minute") * _MINUTE).cast(INSTANT).alias("minute"))
            .drop("start", "until")
            .join(self.series, on="series_id", validate="m:1")
        )
        quarter = pl.col("minute").dt.truncate("15m").alias("quarter_start")
        usage = minutes.group_by(quarter, *DIMENSIONS).agg(pl.col(*_QUANTITIES).sum())
        meant = minutes.filter(pl.col("pool").is_not_null()).select(list(POOL_CUSTOMER_USAGE.columns))
        return conformed(usage.select(list(USAGE.columns)), meant)


@dataclass(frozen=True)
class Filled:
    """What became of extra demand: its usage (frames.USAGE), its minutes (frames.POOL_USAGE), and of those by customer
    (frames.POOL_CUSTOMER_USAGE) the pools in which somebody is entitled to units. Rows of one key may be split.

    burn: pool, dimension, denominator, extra = filled + spilled (numerators). stuck: pools whose excess no provider
    sells on demand: it stays in the pool, as overrun.
    """

    usage: pl.DataFrame
    pool_usage: pl.DataFrame
    pool_customer_usage: pl.DataFrame
    burn: pl.DataFrame
    stuck: tuple[str, ...]


def filled(pool_usage: pl.DataFrame, extra: Extra, books: Books, period: Period) -> Filled:
    """Let extra demand fill what stands idle in its minutes; the rest spills.

        share = the smallest over dimensions of min(extra burn, idle) / extra burn, rounded down per minute

    pool_usage: frames.POOL_USAGE of the traffic as it settled. Nobody is pushed out: what ran in a pool stays, and so
    does what spilled. What spills runs at the provider that the extra has if that sells the model on demand, else at
    the first that does; on demand where no capacity is in force. Extra that was meant for no pool runs on demand as
    it is. Works day by day: minutes take much more memory than what they become.
    """
    entitled = pl.col("pool").is_in(books.entitlements["pool"].unique().implode())
    usage, minutes, by_customer = [USAGE.empty()], [POOL_USAGE.empty()], [POOL_CUSTOMER_USAGE.empty()]
    burn = [UTILIZATION.empty()]
    stuck: set[str] = set()
    for day in period.runs(DAY):
        asked = extra.within(day)
        here = pl.col("minute").is_between(day.start, day.until, closed="left")
        found, nowhere = _filled(asked, capacity(pool_usage.filter(here), books, day).utilization, books, day)
        usage.append(found.usage)
        minutes.append(found.pool_usage())
        by_customer.append(found.minutes.filter(entitled))
        burn.append(
            capacity(minutes[-1], books, day).utilization.filter(pl.col("burn") + pl.col("spill") > 0)
        )
        stuck.update(nowhere)
    sums = (
        pl.concat(burn)
        .group_by("pool", "dimension")
        .agg(
            pl.col("denominator").first(),
            (pl.col("burn") + pl.col("spill")).sum().alias("extra"),
            pl.col("burn").sum().alias("filled"),
            pl.col("spill").sum().alias("spilled"),
        )
        .sort("pool", "dimension")
    )
    return Filled(pl.concat(usage), pl.concat(minutes), pl.concat(by_customer), sums, tuple(sorted(stuck)))


def _filled(
    extra: Traffic, utilization: pl.DataFrame, books: Books, period: Period
) -> tuple[Traffic, list[str]]:
    """(the extra where it runs, pools whose excess has nowhere else to run)."""
    wants = pl.col("pool").is_not_null() & (pl.col("ran_on") == "pool")

    def over(rows: pl.DataFrame) -> pl.DataFrame:
        to = pl.when(wants).then(pl.lit("overflow")).otherwise(pl.col("ran_on"))
        return rows.with_columns(to.alias("ran_on"))

    extra = conformed(over(extra.usage), over(extra.minutes))
    rows = extra.minutes.filter(pl.col("ran_on") == "overflow")
    if not rows.height:
        return extra, []
    by = ["pool", "dimension", "minute"]
    room = utilization.select(*by, "idle")
    asked = capacity(extra.pool_usage(), books, period).utilization.filter(pl.col("spill") > 0)
    asked = asked.select(*by, "spill").join(room, on=by, how="left", validate="1:1")
    whole, none = pl.lit(2**40, dtype=SUM), pl.lit(0, dtype=SUM)
    part = part_of(pl.col("idle"), pl.col("spill"))
    fits = pl.when(pl.col("spill") > pl.col("idle")).then(part).otherwise(whole)
    shares = asked.group_by("pool", "minute").agg(fits.min().alias("_fits"))
    # what burns nothing fits; without capacity in force nothing does
    held = room.select("pool", "minute").unique().with_columns(pl.lit(value=True).alias("_held"))
    place = ["pool", "minute"]
    touched = (
        rows.join(shares, on=place, how="left", validate="m:1")
        .join(held, on=place, how="left", validate="m:1")
        .with_columns(
            pl.coalesce("_fits", pl.when(pl.col("_held")).then(whole).otherwise(none)).alias("_fits"),
            pl.when(pl.col("_held")).then(pl.lit("overflow")).otherwise(pl.lit("on_demand")).alias("_to"),
        )
    )
    comes = touched.with_columns(
        (pl.col(name) * pl.col("_fits") // whole).alias(name) for name in _QUANTITIES
    )
    goes = touched.with_columns(
        (pl.col(name) - pl.col(name) * pl.col("_fits") // whole).alias(name) for name in _QUANTITIES
    )
    some = pl.any_horizontal(pl.col(name) != 0 for name in _QUANTITIES)
    goes, nowhere = elsewhere(goes.filter(some), books)
    extra = carried(extra, comes.select(rows.columns), {"ran_on": "pool"})
    for (to, provider), leaves in goes.group_by("_to", "_provider"):
        extra = carried(extra, leaves.select(rows.columns), {"ran_on": str(to), "provider": str(provider)})
    extra = carried(extra, nowhere.select(rows.columns), {"ran_on": "pool"})
    return extra, nowhere["pool"].unique().to_list()


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
    use, they use as much less, in proportion.
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
    mix = uses.drop("_weighed").group_by("_window", *DIMENSIONS).agg(pl.col(*_QUANTITIES).sum())
    rooms = numbered(windows).join(
        more.select(*of, "held_by", "window_start", pl.lit(value=True).alias("_raised")),
        on=[*of, "held_by", "window_start"],
        how="left",
        validate="1:1",
    )
    bounds = [_spread(_bounded(told, mix, rooms, books, bound)) for bound in ("low", "high")]
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
    return _weighed(held, books).select("_window", *DIMENSIONS, *_QUANTITIES, "_weighed")


def _weighed(rows: pl.DataFrame, books: Books) -> pl.DataFrame:
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


def _bounded(
    told: pl.DataFrame, mix: pl.DataFrame, rooms: pl.DataFrame, books: Books, bound: str
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
        done = pl.concat([done, more.select(done.columns)]).filter(
            pl.any_horizontal(pl.col(name) != 0 for name in _QUANTITIES)
        )
    return done


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
    return _weighed(rows, books).select("_row", "_room", "_weighed")


def _spread(extra: pl.DataFrame) -> Extra:
    """Quantities laid evenly on the minutes from `binding_from` to `window_until`, the first minutes one more."""
    rows = extra.group_by("binding_from", "window_until", *DIMENSIONS).agg(pl.col(*_QUANTITIES).sum())
    known = identify(rows, list(DIMENSIONS))
    length = (pl.col("window_until") - pl.col("binding_from")).dt.total_minutes().cast(SUM)
    zero = pl.lit(0, dtype=SUM)
    changes = []
    for name in _QUANTITIES:
        each, left = pl.col(name) // length, pl.col(name) % length
        one = (left > 0).cast(SUM)
        uneven = pl.col("binding_from") + pl.duration(minutes=left.cast(pl.Int64))
        for at, change in (
            (pl.col("binding_from"), each + one),
            (uneven, zero - one),
            (pl.col("window_until"), zero - each),
        ):
            changes.append(
                known.rows.filter(pl.col(name) != 0).select(
                    "series_id",
                    at.cast(INSTANT).alias("start"),
                    *(change.alias(name) if name == other else zero.alias(other) for other in _QUANTITIES),
                )
            )
    steps = (
        pl.concat(changes)
        .group_by("series_id", "start")
        .agg(pl.col(*_QUANTITIES).sum())
        .sort("series_id", "start")
        .with_columns(
            pl.col(*_QUANTITIES).cum_sum().over("series_id"),
            pl.col("start").shift(-1).over("series_id").alias("until"),
        )
        .filter(pl.any_horizontal(pl.col(name) != 0 for name in _QUANTITIES))
    )
    return Extra(steps.select("series_id", "start", "until", *_QUANTITIES), known.series)
