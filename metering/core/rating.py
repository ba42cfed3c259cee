"""Rating: quantity x the price in force when it occurred; one function for what we earn and what we pay."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import polars as pl

from metering.core.effective import in_force
from metering.core.series import identify
from metering.frames import SUM, Books
from metering.meters import METERS
from metering.money import AMOUNT_MAX, EXACT_MAX, MONEY, refuse_beyond
from metering.results import RATE_KEY, RATED, UNPRICED

_PRICED_BY: Final = ("book", "item", "tier", "context_breakpoint", "meter")
_ANY_REGION: Final = "*"
_TIME: Final = "accelerator_ms"
_REMEDY: Final = "no report can carry it; void the events or correct the price"


def rate(lines: pl.DataFrame, book: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Price lines by the book in force: (rated, unrated). Serves price books and cost books alike.

    lines: the columns of results.RATE_KEY and any others, which pass through. book: frames.PRICES, any number
    of books. The price is the one with effective_from <= quarter_start < effective_until; one for the line's
    own region wins over one for '*'. amount = quantity x unit_price, exactly. Lines with quantity 0 are in
    neither result. unrated has a `reason`: no_book (no row of such a book) or no_price. An amount beyond
    AMOUNT_MAX raises BadInput.
    """
    lines = lines.filter(pl.col("quantity") != 0)
    prices = book.select(*_PRICED_BY, "region", "effective_from", "effective_until", "unit_price", "currency")
    anywhere = pl.col("region") == _ANY_REGION
    own = prices.filter(~anywhere)
    rest = prices.filter(anywhere).drop("region").rename({"unit_price": "_price", "currency": "_currency"})
    # millions of lines are told apart by numbers: to join them on texts takes several times as long
    dimensions = [*_PRICED_BY, "region"]
    known = identify(lines.select("quarter_start", *dimensions), dimensions)
    lines = lines.with_columns(known.rows["series_id"].alias("_priced_as"))
    wanted = lines.select("quarter_start", "_priced_as").unique()
    wanted = wanted.join(known.series.rename({"series_id": "_priced_as"}), on="_priced_as", validate="m:1")
    found = in_force(wanted, own, at="quarter_start", by=dimensions)
    found = in_force(found, rest, at="quarter_start", by=_PRICED_BY)
    found = found.select(
        "quarter_start",
        "_priced_as",
        pl.coalesce("unit_price", "_price").alias("unit_price"),
        pl.when(pl.col("unit_price").is_not_null())
        .then(pl.col("currency"))
        .otherwise(pl.col("_currency"))
        .alias("currency"),
    )
    priced = lines.join(found, on=["quarter_start", "_priced_as"], how="left", validate="m:1")
    priced, lines = priced.drop("_priced_as"), lines.drop("_priced_as")
    passed = {name: dtype for name, dtype in lines.schema.items() if name not in RATE_KEY}
    rated = priced.filter(pl.col("unit_price").is_not_null())
    refuse_beyond(rated, "quantity", EXACT_MAX, "it cannot be priced exactly; void the events behind it")
    guess = rated.with_columns(
        (pl.col("quantity").cast(pl.Float64) * pl.col("unit_price").cast(pl.Float64)).alias("amount_about")
    )
    refuse_beyond(guess, "amount_about", 2 * AMOUNT_MAX, _REMEDY)
    rated = rated.with_columns((pl.col("quantity").cast(MONEY) * pl.col("unit_price")).alias("amount"))
    refuse_beyond(rated, "amount", AMOUNT_MAX, _REMEDY)
    named = pl.col("book").is_in(book["book"].unique().implode())
    unrated = priced.filter(pl.col("unit_price").is_null()).with_columns(
        pl.when(named).then(pl.lit("no_price")).otherwise(pl.lit("no_book")).alias("reason")
    )
    return (
        replace(RATED, columns={**RATED.columns, **passed}, nullable=frozenset(passed)).conform(rated),
        replace(
            UNPRICED, columns={**UNPRICED.columns, **passed}, nullable=frozenset({"book", *passed})
        ).conform(unrated),
    )


def charges(usage: pl.DataFrame, books: Books) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What customers are charged for usage: (rated, unrated), by what they bought.

    usage: quarter_start, frames.DIMENSIONS, meters and any other columns that pass through. Counted are rows
    with counts_for charge_and_cost or charge, by product, tier_sold, region and context breakpoint, at the
    price book of the customer's contract in force. Reasons: unknown_customer, no_contract, no_price_book,
    no_price.
    accelerator_ms is a capacity meter: charged where the book prices it. Without a price it is unrated only of
    a product that is sold by time: that the book in question (any, where none could be named) ever prices so.
    """
    return charge(sold_lines(usage, books), books)


def sold_lines(usage: pl.DataFrame, books: Books, meters: Sequence[str] = METERS) -> pl.DataFrame:
    """What `charges` counts of usage, one line per row and meter: with the contract in force, its price book, and
    the reason where there is none (unknown_customer, no_contract). meters: which become lines."""
    sold = usage.filter(pl.col("counts_for").is_in(["charge_and_cost", "charge"]))
    who = sold.select("quarter_start", "customer").unique()
    known = books.customers.select("customer", "effective_from", "effective_until", "kind")
    bound = books.contracts.select(
        "customer", "effective_from", "effective_until", "contract", pl.col("price_book").alias("book")
    )
    who = in_force(who, known, at="quarter_start", by=["customer"])
    who = in_force(who, bound, at="quarter_start", by=["customer"])
    who = who.with_columns(
        pl.when(pl.col("kind").is_null())
        .then(pl.lit("unknown_customer"))
        .when(pl.col("book").is_null())
        .then(pl.lit("no_contract"))
        .alias("reason")
    ).drop("kind")
    return _lines(sold, item="product", tier="tier_sold", meters=meters).join(
        who, on=["quarter_start", "customer"], how="left", validate="m:1"
    )


def charge(lines: pl.DataFrame, books: Books) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rate `sold_lines` at the unit prices of their books: (rated, unrated), as `charges` says."""
    rated, unrated = _rate(lines, books.price_books, {"no_book": "no_price_book"})
    ruled = books.price_rules.select("book", "item", pl.col("meters").str.split(","))
    has_rules = pl.col("book").is_in(ruled["book"].unique().implode())
    unrated = unrated.with_columns(
        pl.when((pl.col("reason") == "no_price_book") & has_rules)
        .then(pl.lit("no_price"))
        .otherwise(pl.col("reason"))
        .alias("reason")
    )
    time = pl.col("meter") == _TIME
    sold_by_time = pl.concat(
        [
            books.price_books.filter(time).select("book", "item"),
            ruled.filter(pl.col("meters").list.contains(_TIME)).select("book", "item"),
        ]
    ).unique()
    in_a_book = pl.col("reason") == "no_price"
    missing = [
        unrated.filter(~time),
        unrated.filter(time & in_a_book).join(sold_by_time, on=["book", "item"], how="semi"),
        unrated.filter(time & ~in_a_book).join(sold_by_time, on="item", how="semi"),
    ]
    return rated, pl.concat(missing)


def on_demand_costs(usage: pl.DataFrame, books: Books) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What usage outside a pool costs us: (rated, unrated), by what was served.

    usage: as for `charges`. Counted are rows with counts_for charge_and_cost or cost that ran on overflow or
    on_demand, by model_served, tier_served, region and context breakpoint, at the cost book of (provider,
    model_served). Reasons: no_cost_book (the catalog names none for the model, or one without rows), no_cost.
    accelerator_ms without a cost is unrated unless the book knows the model and tier, and never by time: a
    supplier that bills tokens does not bill the time too.
    """
    bought = usage.filter(
        pl.col("counts_for").is_in(["charge_and_cost", "cost"])
        & pl.col("ran_on").is_in(["overflow", "on_demand"])
    )
    return _at_cost_books(bought, books)


def on_demand_prices(usage: pl.DataFrame, books: Books) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What usage would have cost on demand: (rated, unrated), by what was served.

    usage: as for `charges`, and on_demand_book: the cost book that its pool names, null for that of (provider,
    model_served). Every row counts; otherwise as `on_demand_costs`.
    """
    return _at_cost_books(usage, books)


def _at_cost_books(bought: pl.DataFrame, books: Books) -> tuple[pl.DataFrame, pl.DataFrame]:
    models = books.models.select(
        "provider", pl.col("model").alias("model_served"), pl.col("cost_book").alias("book")
    )
    lines = _lines(bought, item="model_served", tier="tier_served").join(
        models, on=["provider", "model_served"], how="left", validate="m:1"
    )
    if "on_demand_book" in lines.columns:
        lines = lines.with_columns(pl.coalesce("on_demand_book", "book").alias("book"))
    lines = lines.with_columns(
        pl.when(pl.col("book").is_null()).then(pl.lit("no_cost_book")).otherwise(None).alias("reason")
    )
    rated, unrated = _rate(lines, books.cost_books, {"no_book": "no_cost_book", "no_price": "no_cost"})
    time = pl.col("meter") == _TIME
    known = books.cost_books.group_by("book", "item", "tier").agg(time.any().alias("by_time"))
    tokens_alone = known.filter(~pl.col("by_time"))
    silent = unrated.filter(time).join(tokens_alone, on=["book", "item", "tier"], how="anti")
    return rated, pl.concat([unrated.filter(~time), silent])


def _lines(usage: pl.DataFrame, *, item: str, tier: str, meters: Sequence[str] = METERS) -> pl.DataFrame:
    """One line per row and meter with a quantity; `item` and `tier` keep their own columns too."""
    return pl.concat(
        [
            usage.filter(pl.col(meter) != 0)
            .with_columns(pl.lit(meter).alias("meter"), pl.col(meter).cast(SUM).alias("quantity"))
            .drop({*METERS, *meters})
            for meter in meters
        ]
    ).with_columns(pl.col(item).alias("item"), pl.col(tier).alias("tier"))


def _rate(
    lines: pl.DataFrame, book: pl.DataFrame, names: dict[str, str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rate the lines without a reason yet; return the others with the unrated, in the side's words."""
    ready = pl.col("reason").is_null()
    rated, unrated = rate(lines.filter(ready).drop("reason"), book)
    unrated = unrated.with_columns(pl.col("reason").replace(names))
    return rated, pl.concat([unrated, lines.filter(~ready).select(unrated.columns)])
