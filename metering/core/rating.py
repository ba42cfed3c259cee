"""Rating: quantity x the price in force when it occurred; one function for what we earn and what we pay."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import polars as pl

from metering.core.effective import in_force
from metering.core.series import identify
from metering.core.sums import largest
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.meters import METERS
from metering.money import AMOUNT_MAX, EXACT_MAX, MONEY, refuse_beyond, to_quanta
from metering.results.rates import RATE_KEY, RATED, UNPRICED

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
    # millions of lines are told apart by numbers: to join them on texts takes several times as long
    dimensions = [*_PRICED_BY, "region"]
    known = identify(lines.select("quarter_start", *dimensions), dimensions)
    lines = lines.with_columns(known.rows["series_id"].alias("_priced_as"))
    wanted = lines.select("quarter_start", "_priced_as").unique()
    wanted = wanted.join(known.series.rename({"series_id": "_priced_as"}), on="_priced_as", validate="m:1")
    found = _unit_prices(wanted, book).select("quarter_start", "_priced_as", "unit_price", "currency")
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


def _unit_prices(wanted: pl.DataFrame, book: pl.DataFrame) -> pl.DataFrame:
    """`wanted` (quarter_start and what prices are by) with unit_price and currency in force, null where none is."""
    prices = book.select(*_PRICED_BY, "region", "effective_from", "effective_until", "unit_price", "currency")
    anywhere = pl.col("region") == _ANY_REGION
    rest = prices.filter(anywhere).drop("region").rename({"unit_price": "_price", "currency": "_currency"})
    found = in_force(wanted, prices.filter(~anywhere), at="quarter_start", by=[*_PRICED_BY, "region"])
    found = in_force(found, rest, at="quarter_start", by=_PRICED_BY)
    own = pl.col("unit_price").is_not_null()
    return found.with_columns(
        pl.coalesce("unit_price", "_price").alias("unit_price"),
        pl.when(own).then(pl.col("currency")).otherwise(pl.col("_currency")).alias("currency"),
    ).drop("_price", "_currency")


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


def charged_sums(usage: pl.DataFrame, books: Books) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(sums, unrated) of `charges`: quarter_start, series_id, currency, quanta, all meters of a row in one sum.

    usage: as for `charges`, with series_id; no two rows of one quarter_start and series_id. The amounts are the
    same to the quantum. unrated: quarter_start, series_id, meter, quantity, reason.
    """
    sold = _sold(usage)
    bound = sold.join(_bound(sold, books), on=["quarter_start", "customer"], how="left", validate="m:1")
    keyed = bound.with_columns(pl.col("product").alias("item"), pl.col("tier_sold").alias("tier"))
    silent = books.price_books.select("book", "item", "tier").unique()
    silent = silent.join(_sold_by_time(books), on=["book", "item"], how="anti")
    sums, rest = _summed(keyed, books.price_books, silent)
    if rest.is_empty():
        return sums, _no_gap(rest)
    rated, unrated = charge(_lines(rest, item="product", tier="tier_sold"), books)
    return _with(sums, rated), unrated.select(_GAP)


def _sold(usage: pl.DataFrame) -> pl.DataFrame:
    return usage.filter(pl.col("counts_for").is_in(["charge_and_cost", "charge"]))


def sold_lines(usage: pl.DataFrame, books: Books, meters: Sequence[str] = METERS) -> pl.DataFrame:
    """What `charges` counts of usage, one line per row and meter: with the contract in force, its price book, and
    the reason where there is none (unknown_customer, no_contract). meters: which become lines."""
    sold = _sold(usage)
    return _lines(sold, item="product", tier="tier_sold", meters=meters).join(
        _bound(sold, books), on=["quarter_start", "customer"], how="left", validate="m:1"
    )


def _bound(sold: pl.DataFrame, books: Books) -> pl.DataFrame:
    """Per quarter_start and customer: contract, book, and the reason where there is none."""
    who = sold.select("quarter_start", "customer").unique()
    known = books.customers.select("customer", "effective_from", "effective_until", "kind")
    bound = books.contracts.select(
        "customer", "effective_from", "effective_until", "contract", pl.col("price_book").alias("book")
    )
    who = in_force(who, known, at="quarter_start", by=["customer"])
    who = in_force(who, bound, at="quarter_start", by=["customer"])
    return who.with_columns(
        pl.when(pl.col("kind").is_null())
        .then(pl.lit("unknown_customer"))
        .when(pl.col("book").is_null())
        .then(pl.lit("no_contract"))
        .alias("reason")
    ).drop("kind")


def charge(lines: pl.DataFrame, books: Books) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rate `sold_lines` at the unit prices of their books: (rated, unrated), as `charges` says."""
    rated, unrated = _rate(lines, books.price_books, {"no_book": "no_price_book"})
    has_rules = pl.col("book").is_in(books.price_rules["book"].unique().implode())
    unrated = unrated.with_columns(
        pl.when((pl.col("reason") == "no_price_book") & has_rules)
        .then(pl.lit("no_price"))
        .otherwise(pl.col("reason"))
        .alias("reason")
    )
    time = pl.col("meter") == _TIME
    sold_by_time = _sold_by_time(books)
    in_a_book = pl.col("reason") == "no_price"
    missing = [
        unrated.filter(~time),
        unrated.filter(time & in_a_book).join(sold_by_time, on=["book", "item"], how="semi"),
        unrated.filter(time & ~in_a_book).join(sold_by_time, on="item", how="semi"),
    ]
    return rated, pl.concat(missing)


def _sold_by_time(books: Books) -> pl.DataFrame:
    """Book and item of what is sold by time: that the book ever prices so."""
    ruled = books.price_rules.select("book", "item", pl.col("meters").str.split(","))
    priced = books.price_books.filter(pl.col("meter") == _TIME).select("book", "item")
    return pl.concat(
        [priced, ruled.filter(pl.col("meters").list.contains(_TIME)).select("book", "item")]
    ).unique()


def on_demand_costs(usage: pl.DataFrame, books: Books) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What usage outside a pool costs us: (rated, unrated), by what was served.

    usage: as for `charges`. Counted are rows with counts_for charge_and_cost or cost that ran on overflow or
    on_demand, by model_served, tier_served, region and context breakpoint, at the cost book of (provider,
    model_served). Reasons: no_cost_book (the catalog names none for the model, or one without rows), no_cost.
    accelerator_ms without a cost is unrated unless the book knows the model and tier, and never by time: a
    supplier that bills tokens does not bill the time too.
    """
    return _at_cost_books(_bought(usage), books)


def on_demand_cost_sums(usage: pl.DataFrame, books: Books) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(sums, unrated) of `on_demand_costs`, as `charged_sums` has them of `charges`."""
    return _sums_at_cost_books(_bought(usage), books)


def _bought(usage: pl.DataFrame) -> pl.DataFrame:
    return usage.filter(
        pl.col("counts_for").is_in(["charge_and_cost", "cost"])
        & pl.col("ran_on").is_in(["overflow", "on_demand"])
    )


def on_demand_prices(usage: pl.DataFrame, books: Books) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What usage would have cost on demand: (rated, unrated), by what was served.

    usage: as for `charges`, and on_demand_book: the cost book that its pool names, null for that of (provider,
    model_served). Every row counts; otherwise as `on_demand_costs`.
    """
    return _at_cost_books(usage, books)


def on_demand_price_sums(usage: pl.DataFrame, books: Books) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(sums, unrated) of `on_demand_prices`, as `charged_sums` has them of `charges`."""
    return _sums_at_cost_books(usage, books)


def _at_cost_books(bought: pl.DataFrame, books: Books) -> tuple[pl.DataFrame, pl.DataFrame]:
    lines = _lines(_with_cost_book(bought, books), item="model_served", tier="tier_served")
    rated, unrated = _rate(lines, books.cost_books, {"no_book": "no_cost_book", "no_price": "no_cost"})
    time = pl.col("meter") == _TIME
    silent = unrated.filter(time).join(_billed_in_tokens(books), on=["book", "item", "tier"], how="anti")
    return rated, pl.concat([unrated.filter(~time), silent])


def _sums_at_cost_books(bought: pl.DataFrame, books: Books) -> tuple[pl.DataFrame, pl.DataFrame]:
    keyed = _with_cost_book(bought, books).with_columns(
        pl.col("model_served").alias("item"), pl.col("tier_served").alias("tier")
    )
    sums, rest = _summed(keyed, books.cost_books, _billed_in_tokens(books))
    if rest.is_empty():
        return sums, _no_gap(rest)
    rated, unrated = _at_cost_books(rest.drop("book", "reason"), books)
    return _with(sums, rated), unrated.select(_GAP)


def _with_cost_book(bought: pl.DataFrame, books: Books) -> pl.DataFrame:
    models = books.models.select(
        "provider", pl.col("model").alias("model_served"), pl.col("cost_book").alias("book")
    )
    rows = bought.join(models, on=["provider", "model_served"], how="left", validate="m:1")
    if "on_demand_book" in rows.columns:
        rows = rows.with_columns(pl.coalesce("on_demand_book", "book").alias("book"))
    return rows.with_columns(
        pl.when(pl.col("book").is_null()).then(pl.lit("no_cost_book")).otherwise(None).alias("reason")
    )


def _billed_in_tokens(books: Books) -> pl.DataFrame:
    """Book, item and tier that the cost books know, and never by time."""
    known = books.cost_books.group_by("book", "item", "tier").agg(
        (pl.col("meter") == _TIME).any().alias("by_time")
    )
    return known.filter(~pl.col("by_time")).drop("by_time")


_PRICED_AS: Final = ("book", "item", "tier", "region", "context_breakpoint")
_SUMMED: Final = ("quarter_start", "series_id", "currency")
_GAP: Final = ("quarter_start", "series_id", "meter", "quantity", "reason")


def _no_gap(rows: pl.DataFrame) -> pl.DataFrame:
    known = {name: rows.schema[name] for name in _SUMMED[:2]}
    return pl.DataFrame(schema={**known, "meter": pl.String, "quantity": SUM, "reason": pl.String})


def _summed(
    rows: pl.DataFrame, book: pl.DataFrame, silent: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(sums, rest): amounts of the rows that have a price for all they count, and the other rows, to be rated as lines.

    rows: quarter_start, series_id, book, item, tier, region, context_breakpoint, reason (not null: rest), meters.
    silent: book, item and tier for which time without a price is no gap. Prices are looked up once for all rows
    that are priced alike, and all meters of a row are summed at once, in 64 bits where no sum can leave them. What
    is priced in two currencies, or could be more than a report carries, is rest too: lines refuse it by name.
    """
    nothing = pl.DataFrame(
        schema={**{name: rows.schema[name] for name in _SUMMED[:2]}, "currency": pl.String, "quanta": SUM}
    )
    ready = rows.filter(pl.col("reason").is_null())
    if ready.is_empty():
        return nothing, rows
    priced_as = ["quarter_start", *_PRICED_AS]
    known = identify(ready.select(*priced_as, pl.lit(0).alias("_of")), priced_as)
    keys = known.series.rename({"series_id": "_priced_as"})
    prices = _wide_prices(keys, book, silent)
    place = known.rows["series_id"].to_numpy()
    quantity = {meter: ready[meter] for meter in METERS}
    most = {meter: largest(values) for meter, values in quantity.items()}
    met = [meter for meter in METERS if most[meter]]
    bound = sum(most[meter] * (prices[meter].max() or 0) for meter in met)  # type: ignore[operator,misc]  # integers
    if bound > AMOUNT_MAX * 10**12 or max(most.values()) > EXACT_MAX:
        return nothing, rows
    whole = prices["one_currency"].to_numpy()[place]
    # a row that counts nothing with a price has no amount: nothing says its currency
    counted = np.zeros(ready.height, np.bool_)
    for meter in met:
        some, priced = (quantity[meter] != 0).to_numpy(), prices[meter].is_not_null().to_numpy()
        counted |= some & priced[place]
        silenced = prices["silent"].to_numpy() if meter == _TIME else np.zeros(len(priced), np.bool_)
        whole &= ~some | (priced | silenced)[place]
    narrow = bound < 2**63
    if narrow:
        total = np.zeros(ready.height, np.int64)
        for meter in met:
            price = prices[meter].fill_null(0).cast(pl.Int64).to_numpy()
            total += quantity[meter].cast(pl.Int64).to_numpy() * price[place]
        quanta = pl.Series("quanta", total).cast(SUM)
    else:
        at = known.rows["series_id"]
        quanta = (
            pl.DataFrame(
                {meter: quantity[meter].cast(SUM) * prices[meter].fill_null(0).gather(at) for meter in met}
            )
            .select(pl.sum_horizontal(pl.all()).cast(SUM).alias("quanta"))
            .to_series()
        )
    sums = ready.select(
        *_SUMMED[:2], prices["currency"].gather(known.rows["series_id"]).alias("currency"), quanta
    ).filter(pl.Series(whole & counted))
    rest = pl.concat([rows.filter(pl.col("reason").is_not_null()), ready.filter(pl.Series(~whole))])
    return sums, rest


def _wide_prices(keys: pl.DataFrame, book: pl.DataFrame, silent: pl.DataFrame) -> pl.DataFrame:
    """Per row of `keys` (_priced_as ascending) the unit price of every meter in quanta, null where there is none,
    and the currency; one_currency: all of them are in it."""
    wanted = keys.join(pl.DataFrame({"meter": METERS}), how="cross")
    found = _unit_prices(wanted, book)
    price, meter = to_quanta(pl.col("unit_price")), pl.col("meter")
    wide = found.group_by("_priced_as").agg(
        *(price.filter(meter == name).first().alias(name) for name in METERS),
        pl.col("currency").drop_nulls().first().alias("currency"),
        (pl.col("currency").drop_nulls().n_unique() == 1).alias("one_currency"),
    )
    quiet = keys.select("_priced_as", "book", "item", "tier").join(
        silent, on=["book", "item", "tier"], how="semi"
    )
    return wide.sort("_priced_as").with_columns(
        pl.col("_priced_as").is_in(quiet["_priced_as"].implode()).alias("silent")
    )


def _with(sums: pl.DataFrame, rated: pl.DataFrame) -> pl.DataFrame:
    """The sums, and those of rated lines."""
    more = rated.select(*_SUMMED, to_quanta(pl.col("amount")).alias("quanta"))
    if more.is_empty():
        return sums
    return pl.concat([sums, more]).group_by(_SUMMED).agg(pl.col("quanta").sum())


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
