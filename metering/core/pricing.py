"""Pricing: what usage costs a customer before any discount, where a price depends on how much was used, or when.

A price rule counts: its counter is (contract, product, meters), on which every tier, region, context and hour of
the product counts, from its reset on and through every price change. In a quarter hour with Q units of the counter,
of which Q_t are priced by rule t, and `position` units counted in the quarter hours before:

    charge of the rule = floor(dG_t x Q_t / Q)        dG_t = G_t(position + Q) - G_t(position)

G_t being what the rule charges for the first x units (core.tiers). The charge is split over the rows of the rule
(series, meter) by quantity, largest remainder: tier amounts are attributed and never computed again for a slice.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final, NamedTuple

import polars as pl

from metering.core.contract_periods import reset_edges, terms_of_contracts
from metering.core.effective import in_force
from metering.core.rating import charge, sold_lines
from metering.core.series import identify
from metering.core.tiers import BEYOND, cumulative
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM
from metering.frames.usage import DIMENSIONS, SUMS
from metering.meters import METERS
from metering.money import AMOUNT_MAX, QUANTUM, multiply_floor, refuse_beyond, to_quanta
from metering.periods import QUARTER
from metering.results.charges import COUNTED, GROSS
from metering.results.rates import RATE_KEY

#: What a line says in place of a meter where it is a percentage of other charges: this and the charge's name.
PERCENTAGE: Final = "% "
_ANY: Final = "*"
_REQUESTS: Final = "requests"
_COUNTER: Final = ["contract", "item", "meters"]
_CELL: Final = ["book", "item", "tier", "region", "context_breakpoint", "meter"]
_SPAN: Final = ["effective_from", "effective_until"]
_ZERO: Final = pl.lit(0, dtype=SUM)
_ONE: Final = pl.lit(1, dtype=SUM)
_TERMS: Final = ("zone", "anchor_day", "period_months")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Gross(NamedTuple):
    """lines: results.GROSS. series: series_id and frames.DIMENSIONS. counted: results.COUNTED. unrated: of
    results.UNPRICED quarter_start, what a price is looked up by, and reason, with series_id."""

    lines: pl.DataFrame
    series: pl.DataFrame
    counted: pl.DataFrame
    unrated: pl.DataFrame


def gross(usage: pl.DataFrame, books: Books, until: datetime) -> Gross:
    """What usage costs customers at the prices in force up to `until`, a quarter hour, before any discount.

    usage: frames.USAGE, of every counter from its reset on; rows of one key may be split. The price of a line is
    that of its own region where there is one, else that of '*'; and there a rule in its hours goes before a rule
    for always, and that before a unit price. What no rule prices is rated by `rating.charges`, with its reasons.
    A volume's tier is that of all units of the counter's span up to `until`, so its lines move with `until`; all
    others stay. Negative quantities count back: positions are sums of what is known. A counter below zero charges
    nothing. A percentage of charges is floor(ratio x the line's charges), of credits its opposite.
    """
    known = identify(usage.filter(pl.col("quarter_start") < pl.lit(until, dtype=INSTANT)), list(DIMENSIONS))
    rows = known.rows.group_by("quarter_start", "series_id").agg(pl.col(*SUMS).sum())
    rows = rows.join(known.series.select("series_id", *_SOLD), on="series_id", validate="m:1")
    lines = sold_lines(rows, books, _metered(books)).drop(_REQUESTS, strict=False)
    counting = _with_rules(lines, books)
    by_rule, counted = _charged_by_rules(counting, lines, books, until)
    plain = counting.filter(pl.col("_rule").is_null() & pl.col("meter").is_in(METERS))
    rated, unrated = charge(plain.drop("_rule"), books)
    priced = pl.concat(
        [
            rated.select(
                *_LINE, to_quanta(pl.col("amount")).alias("gross"), "currency", pl.lit(None).alias("rule")
            ).cast({"rule": pl.String}),
            by_rule.select(*_LINE, "gross", "currency", "rule"),
        ]
    )
    priced = pl.concat([priced, _percentages(priced, books)])
    refuse_beyond(priced, "gross", _QUANTA_MAX, BEYOND)
    return Gross(
        GROSS.conform(priced), known.series, counted, unrated.select(*RATE_KEY, "series_id", "reason")
    )


#: The dimensions that a charge depends on.
_SOLD: Final = ("customer", "product", "tier_sold", "region", "context_breakpoint", "counts_for")
_LINE: Final = ["quarter_start", "series_id", "customer", "contract", "item", "meter", "quantity"]
_QUANTA_MAX: Final = int(AMOUNT_MAX / QUANTUM)


def _metered(books: Books) -> tuple[str, ...]:
    """The meters that may have a price; requests where a rule counts them."""
    counts = books.price_rules["meters"].str.split(",").explode()
    return (*METERS, _REQUESTS) if (counts == _REQUESTS).any() else METERS


def _rules(books: Books) -> pl.DataFrame:
    """frames.PRICE_RULES by meter, `_rule` being the number of the row."""
    return books.price_rules.with_row_index("_rule").select(
        *("_rule", "book", "item", "tier", "region", "context_breakpoint", "hours", *_SPAN),
        pl.col("meters").str.split(",").alias("meter"),
    ).explode("meter")  # fmt: skip


def _with_rules(lines: pl.DataFrame, books: Books) -> pl.DataFrame:
    """Give every line the number of the price rule that prices it, `_rule`; null: a unit price, or none.

    A line with a reason has none: the catalog may date a customer later than a contract that has left it.
    """
    rules = _rules(books)
    known = identify(lines.select("quarter_start", *_CELL), _CELL)
    lines = lines.with_columns(known.rows["series_id"].alias("_cell"))
    cells = known.series.rename({"series_id": "_cell"})
    mine = _at_cells(cells, rules.filter(pl.col("region") != _ANY), [*_CELL])
    rest = _at_cells(cells, rules.filter(pl.col("region") == _ANY), [n for n in _CELL if n != "region"])
    own_price = books.price_books.filter(pl.col("region") != _ANY).select(*_CELL, *_SPAN)
    own_price = _at_cells(cells, own_price, [*_CELL]).select(
        "_cell", *_SPAN, pl.lit(value=True).alias("_own_price")
    )
    ruled = pl.concat([mine["_cell"], rest["_cell"]]).unique()
    wanted = lines.filter(pl.col("_cell").is_in(ruled.implode())).select("quarter_start", "_cell").unique()
    hours = _hours_in_force(wanted, cells, books)
    found = wanted
    for table, into in ((mine, "_mine"), (rest, "_rest")):
        found = _in_hours(found, table, hours, f"{into}_hours")
        always = table.filter(pl.col("hours") == _ANY).select("_cell", *_SPAN, pl.col("_rule").alias(into))
        found = in_force(found, always, at="quarter_start", by=["_cell"])
    found = in_force(found, own_price, at="quarter_start", by=["_cell"])
    found = found.select(
        "quarter_start",
        "_cell",
        pl.coalesce(
            "_mine_hours",
            "_mine",
            pl.when(pl.col("_own_price").is_null()).then(pl.coalesce("_rest_hours", "_rest")),
        ).alias("_rule"),
    )
    lines = lines.join(found, on=["quarter_start", "_cell"], how="left", validate="m:1").drop("_cell")
    return lines.with_columns(pl.when(pl.col("reason").is_null()).then(pl.col("_rule")))


def _at_cells(cells: pl.DataFrame, dated: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    return cells.select("_cell", *by).join(dated, on=by).drop(set(by) - {"book"})


def _hours_in_force(wanted: pl.DataFrame, cells: pl.DataFrame, books: Books) -> pl.DataFrame:
    """The named hours that each wanted quarter hour lies in: quarter_start, book, hours."""
    schema: Mapping[str, pl.DataType | type[pl.DataType]] = {
        "quarter_start": INSTANT,
        "book": pl.String,
        "hours": pl.String,
    }
    of_books = cells.select("_cell", "book")
    instants = wanted.join(of_books, on="_cell", validate="m:1").select("quarter_start", "book").unique()
    parts = [pl.DataFrame(schema=schema)]
    for (zone,), table in books.price_hours.group_by("zone", maintain_order=True):
        local = pl.col("quarter_start").dt.convert_time_zone(str(zone))
        here = instants.with_columns(
            local.dt.weekday().cast(pl.Int64).alias("weekday"),
            (local.dt.hour().cast(pl.Int64) * 60 + local.dt.minute()).alias("_minute"),
        ).join(table, on=["book", "weekday"])
        inside = pl.col("_minute").is_between("from_minute", "until_minute", closed="left")
        parts.append(here.filter(inside).select(list(schema)))
    return pl.concat(parts).unique()


def _in_hours(found: pl.DataFrame, table: pl.DataFrame, hours: pl.DataFrame, into: str) -> pl.DataFrame:
    """Give every (quarter_start, _cell) the rule of the first of its hours that has one, by name."""
    table = table.filter(pl.col("hours") != _ANY)
    of_cells = table.select("_cell", "book", "hours").unique()
    asked = (
        found.select("quarter_start", "_cell")
        .join(of_cells, on="_cell")
        .join(hours, on=["quarter_start", "book", "hours"], how="semi")
    )
    dated = table.select("_cell", "hours", *_SPAN, pl.col("_rule").alias(into))
    first = (
        in_force(asked, dated, at="quarter_start", by=["_cell", "hours"])
        .drop_nulls(into)
        .sort("hours")
        .unique(["quarter_start", "_cell"], keep="first", maintain_order=True)
        .select("quarter_start", "_cell", into)
    )
    return found.join(first, on=["quarter_start", "_cell"], how="left", validate="m:1")


def _charged_by_rules(
    counting: pl.DataFrame, lines: pl.DataFrame, books: Books, until: datetime
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The lines that rules price with their `gross`, and results.COUNTED."""
    rules = books.price_rules.with_row_index("_rule").select(
        *("_rule", "rule", "meters", "model", "free_units", "reset", "currency"),
        pl.col("rule").rank("dense").alias("_by"),
    )
    rows = counting.drop_nulls("_rule").select("_rule", *_LINE)
    if rows.is_empty():
        return GROSS.empty(), COUNTED.empty()
    rows = rows.join(rules.select("_rule", "_by", "rule", "meters", "currency"), on="_rule", validate="m:1")
    counters = identify(rows.select(_COUNTER), _COUNTER)
    rows = rows.with_columns(counters.rows["series_id"].alias("_counter"))
    # from here on millions of rows are told apart by numbers alone
    key = ["_counter", "quarter_start", "_by"]
    asked = rows.group_by(key).agg(pl.col("quantity").sum(), pl.col("_rule").first())
    asked = asked.sort(key).with_row_index("_asked")
    rows = rows.join(asked.select("_asked", *key), on=key, validate="m:1")
    asked = asked.join(rules.drop("_by", "meters", "currency"), on="_rule", validate="m:1")
    told = counters.series.rename({"series_id": "_counter"})
    asked = _positioned(asked, told, lines, books, until)
    asked = _by_rules(asked, books).sort("_asked")
    counted = asked.join(told, on="_counter", validate="m:1", maintain_order="left")
    return _split(rows, asked), COUNTED.conform(counted)


def _by_rules(asked: pl.DataFrame, books: Books) -> pl.DataFrame:
    """`gross`: what each rule charges in a quarter hour: floor(dG x its quantity / what its counter counted)."""
    asked = asked.with_columns((pl.col("position") + pl.col("counted")).alias("after"))
    for units in ("position", "after"):
        asked = cumulative(asked, books.price_tiers, units=units, total="total", into=f"charged_{units}")
    counted = pl.col("counted")
    sign = counted.sign()
    some = counted != 0
    share, _ = multiply_floor(
        pl.col("charged_after") - pl.col("charged_position"),
        pl.col("quantity") * sign,
        pl.when(some).then(counted.abs()).otherwise(_ONE),
    )
    # without free units there is nothing to count: exactly quantity x price, of a counter at any place
    plain = (pl.col("model") == "unit") & (pl.col("free_units") == 0)
    price = books.price_tiers.filter(pl.col("tier") == 1).select(
        "rule", to_quanta(pl.col("unit_price")).alias("_price")
    )
    asked = asked.join(price, on="rule", how="left", validate="m:1").with_columns(
        pl.when(plain).then(pl.col("_price")).alias("_price")
    )
    moved = (pl.col("charged_after") - pl.col("charged_position")).cast(pl.Float64)
    each = pl.coalesce(
        pl.col("_price").cast(pl.Float64), moved / pl.when(some).then(counted).cast(pl.Float64)
    )
    about = (pl.col("quantity").cast(pl.Float64) * each).fill_null(0)
    refuse_beyond(asked.with_columns(about.alias("amount_about")), "amount_about", 2 * _QUANTA_MAX, BEYOND)
    exact = pl.col("quantity") * pl.col("_price")
    return asked.with_columns(pl.coalesce(exact, pl.when(some).then(share).otherwise(_ZERO)).alias("gross"))


def _positioned(
    asked: pl.DataFrame, counters: pl.DataFrame, lines: pl.DataFrame, books: Books, until: datetime
) -> pl.DataFrame:
    """Give each (counter, quarter hour) counter_start, position, counted and `total`, the units of its span."""
    sold = ["contract", "item", "meter"]
    known = identify(lines.select(sold), sold)
    metered = counters.with_columns(pl.col("meters").str.split(",").alias("meter")).explode("meter")
    counts = metered.join(known.series, on=sold).select("_counter", pl.col("series_id").alias("_sold"))
    units = (
        lines.select("quarter_start", "quantity", known.rows["series_id"].alias("_sold"))
        .join(counts, on="_sold")
        .group_by("_counter", "quarter_start")
        .agg(pl.col("quantity").sum().alias("counted"))
        .sort("_counter", "quarter_start")
        .with_columns(pl.col("counted").cum_sum().over("_counter").alias("_until"))
        .with_columns((pl.col("_until") - pl.col("counted")).alias("_counted_before"))
        .sort("quarter_start")
    )
    asked = asked.join(units.drop("_until"), on=["_counter", "quarter_start"], validate="m:1")
    asked = _counter_spans(asked, counters, books, until)
    # every counter has far fewer edges than quarter hours
    spans = asked.select("_counter", "counter_start", "_counter_until").unique()
    for at in ("counter_start", "_counter_until"):
        spans = spans.sort(at).join_asof(
            units.select(
                "_counter", pl.col("quarter_start").alias("_at"), pl.col("_until").alias(f"_of{at}")
            ),
            left_on=at,
            right_on="_at",
            by="_counter",
            strategy="backward",
            allow_exact_matches=False,
            check_sortedness=False,
            coalesce=False,
        )
        spans = spans.drop("_at").with_columns(pl.col(f"_of{at}").fill_null(_ZERO))
    asked = asked.join(spans, on=["_counter", "counter_start", "_counter_until"], validate="m:1")
    return asked.with_columns(
        (pl.col("_counted_before") - pl.col("_ofcounter_start")).alias("position"),
        (pl.col("_of_counter_until") - pl.col("_ofcounter_start")).alias("total"),
    )


def _counter_spans(
    asked: pl.DataFrame, counters: pl.DataFrame, books: Books, until: datetime
) -> pl.DataFrame:
    """Give each row the span of its counter that holds its quarter hour: counter_start and `_counter_until`."""
    terms = terms_of_contracts(books).select("contract", *_SPAN, *_TERMS, "origin")
    of_counters = counters.select("_counter", "contract").join(terms, on="contract").drop("contract")
    resets = asked.select("_counter", "reset").unique()
    in_months = (pl.col("reset") == "period") & (pl.col("period_months") > 1)
    # contracts that begin apart count over the same months, unless their periods are several months long
    since = pl.when(in_months).then(pl.col("origin")).otherwise(pl.lit(_EPOCH, dtype=INSTANT))
    schedules = identify(
        resets.join(of_counters, on="_counter").with_columns(since.alias("_since")),
        ["reset", *_TERMS, "_since"],
    )
    dated = schedules.rows.rename({"series_id": "_schedule"}).join(
        schedules.series.select(pl.col("series_id").alias("_schedule"), "reset"), on="_schedule"
    )
    rows = in_force(asked, dated, at="quarter_start", by=["_counter", "reset"])
    met = rows.group_by("_schedule").agg(
        pl.col("quarter_start").min().alias("start"), pl.col("quarter_start").max().alias("last")
    )
    found = []
    for said in met.join(schedules.series, left_on="_schedule", right_on="series_id").to_dicts():
        start, last, origin = said["start"], said["last"], said["_since"]
        edges = reset_edges(said["reset"], said, min(origin, start), start, last + QUARTER)
        found += [(said["_schedule"], *pair) for pair in pairwise(edges) if said["reset"] != "never"]
    edged = pl.DataFrame(
        found,
        schema={"_schedule": pl.UInt32, "_edge": INSTANT, "_counter_until": INSTANT},
        orient="row",
    ).sort("_edge")
    rows = rows.sort("quarter_start").join_asof(
        edged,
        left_on="quarter_start",
        right_on="_edge",
        by="_schedule",
        strategy="backward",
        check_sortedness=False,
        coalesce=False,
    )
    end = pl.lit(until, dtype=INSTANT)
    return rows.with_columns(
        pl.max_horizontal("_edge", "origin").alias("counter_start"),
        pl.min_horizontal(pl.col("_counter_until").fill_null(end), end).alias("_counter_until"),
    ).drop("_edge", "_schedule", "origin")


def _split(rows: pl.DataFrame, asked: pl.DataFrame) -> pl.DataFrame:
    """Split what each rule charges in a quarter hour over its rows by quantity, largest remainder, ties by the key.

    rows: `_asked`, the place in `asked` of its rule and quarter hour. Quantities may have both signs: a part is
    |charge| x quantity / their sum, floored, with the sign of the charge; where they sum to nothing every part is
    nothing. A unit price is exact on every row.
    """
    place = rows["_asked"]
    rows = rows.with_columns(
        asked["quantity"].gather(place).alias("_whole"),
        asked["gross"].gather(place).alias("_charge"),
        asked["_price"].gather(place),
    )
    whole = pl.col("_whole")
    quotient, remainder = multiply_floor(
        pl.col("_charge").abs(),
        pl.col("quantity") * whole.sign(),
        pl.when(whole != 0).then(whole.abs()).otherwise(_ONE),
    )
    rows = rows.with_columns(quotient.alias("_floor"), remainder.alias("_remainder"))
    floors = rows.group_by("_asked").agg(pl.col("_floor").sum()).sort("_asked")["_floor"]
    left = asked["gross"].abs() - floors
    rows = rows.with_columns(left.gather(place).alias("_left"))
    uneven = (pl.col("_left") > 0) & (whole != 0) & pl.col("_price").is_null()
    ranked = rows.filter(uneven).sort(
        ["_asked", "_remainder", "series_id", "meter"], descending=[False, True, False, False]
    )
    more = pl.int_range(pl.len()).over("_asked") < pl.col("_left")
    ranked = ranked.with_columns(pl.col("_floor") + more.cast(SUM))
    part = pl.when(whole != 0).then(pl.col("_floor") * pl.col("_charge").sign()).otherwise(_ZERO)
    return pl.concat([rows.filter(~uneven), ranked]).with_columns(
        pl.coalesce(pl.col("quantity") * pl.col("_price"), part).alias("gross")
    )


def _percentages(priced: pl.DataFrame, books: Books) -> pl.DataFrame:
    """Lines of charges that are a ratio of other charges, by quarter hour and series; of gaps nothing is charged."""
    ratios = books.percentages.filter(pl.col("of") == "charge")
    if ratios.is_empty():
        return priced.clear()
    sums = priced.group_by("quarter_start", "series_id", "customer", "contract", "item", "currency").agg(
        pl.col("gross").sum()
    )
    bound = books.contracts.select("customer", *_SPAN, pl.col("price_book").alias("book"))
    sums = in_force(sums, bound, at="quarter_start", by=["customer"])
    found = sums.join(ratios_in_force(sums, ratios).drop("charged_in"), on=["quarter_start", "book", "item"])
    amount, _ = multiply_floor(pl.col("gross").abs(), pl.col("ratio"), pl.lit(int(1 / QUANTUM), dtype=SUM))
    return (
        found.with_columns((amount * pl.col("gross").sign()).alias("gross"))
        .with_columns(pl.format(f"{PERCENTAGE}{{}}", "charge").alias("meter"))
        .group_by("quarter_start", "series_id", "customer", "contract", "item", "meter")
        .agg(_ZERO.first().alias("quantity"), pl.col("gross").sum(), pl.col("currency").first())
        .with_columns(pl.lit(None, dtype=pl.String).alias("rule"))
        .select(priced.columns)
    )


def ratios_in_force(rows: pl.DataFrame, ratios: pl.DataFrame) -> pl.DataFrame:
    """The percentages in force for each (quarter_start, book, item) of rows: once each, with `charge`, `ratio` (a
    count of 10**-12) and `charged_in`, its currency.

    ratios: of frames.PERCENTAGES. A charge's ratio for the item goes before its ratio for all items; charges of
    different names stand side by side.
    """
    asked = rows.select("quarter_start", "book", "item").unique()
    each = asked.join(ratios.select("book", "charge").unique(), on="book")
    dated = ratios.select(
        *("book", "charge", "item", *_SPAN),
        to_quanta(pl.col("ratio")),
        pl.col("currency").alias("charged_in"),
    )
    general = dated.filter(pl.col("item").is_null()).select(
        *("book", "charge", *_SPAN), pl.col("ratio").alias("_any"), pl.col("charged_in").alias("_any_in")
    )
    own = ["book", "charge", "item"]
    each = in_force(each, dated.drop_nulls("item"), at="quarter_start", by=own)
    each = in_force(each, general, at="quarter_start", by=["book", "charge"])
    return each.select(
        *("quarter_start", *own), pl.coalesce("ratio", "_any"), pl.coalesce("charged_in", "_any_in")
    ).drop_nulls("ratio")
