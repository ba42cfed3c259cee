"""Scenarios of demand: prices changed, customers who go, come and move, as if, in books and in recorded usage."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import polars as pl

from metering.core.scenario import Traffic, Which, conformed, scaled
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM
from metering.frames.terms import PRICE_RULES
from metering.money import decimal_to_quanta, from_quanta, to_quanta

#: What a customer's contracts say, by date: it ends where they do.
_AGREED: Final = ("contracts", "contract_terms", "fees", "entitlements", "discounts", "limits")
#: What belongs to one contract as a whole: a part of it cannot be kept.
_WHOLE: Final = ("commitments", "credit_grants")
#: A book of a contract's own prices is named after the book that it overrides.
_OVERRIDDEN: Final = " for "
_ONE: Final = 10**12


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
