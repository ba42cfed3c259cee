"""Revenue of contracts under terms: whose usage must be read since when, and what was earned of it in a period."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import polars as pl

from metering.core.commitments import ELIGIBLE
from metering.core.contract_periods import reset_edges, terms_of_contracts
from metering.core.drawing import FOR_EVER, GRANTS_DRAWN, TRANCHES_DRAWN, commitment_terms
from metering.core.pricing import gross
from metering.core.waterfall import waterfall
from metering.frames.books import Books
from metering.frames.frame import INSTANT, Frame
from metering.periods import QUARTER, Period, floor_to_quarter
from metering.results.charges import WATERFALL
from metering.results.rates import RATE_KEY

#: Whose usage must be read, and of which span.
REACH: Final = Frame(
    "REACH",
    {"customer": pl.String, "effective_from": INSTANT, "effective_until": INSTANT},
    key=("customer",),
)
#: Since when the waterfall of a contract is whole, so that the lines of a period are right, and until when.
SPANS: Final = Frame(
    "SPANS",
    {
        "customer": pl.String,
        "contract": pl.String,
        "effective_from": INSTANT,
        "effective_until": INSTANT,
        "read_from": INSTANT,  # effective_from, or earlier: where a counter began that counts then
    },
    key=("contract",),
)
_UNRATED: Final = [*RATE_KEY, "series_id", "reason"]


@dataclass(frozen=True)
class Earned:
    """What contracts under terms earned.

    lines: results.WATERFALL of the period. series: series_id and frames.DIMENSIONS, of `lines`, `counted` and
    `unrated`. counted: results.COUNTED of the period. drawdown: drawing.TRANCHES_DRAWN and credits:
    drawing.GRANTS_DRAWN as of the end of the complete part of the contract's period. unrated: results.UNPRICED of
    the period with series_id. priced: results.GROSS of the usage that `lines` are of: what each meter was priced.
    """

    lines: pl.DataFrame
    series: pl.DataFrame
    counted: pl.DataFrame
    drawdown: pl.DataFrame
    credits: pl.DataFrame
    unrated: pl.DataFrame
    priced: pl.DataFrame


@dataclass(frozen=True)
class Charged:
    """What contracts were charged over their spans: as `Earned`, and what commitments and credits see of it.

    terms, eligible, creditable: those of drawing.Drawing.
    """

    lines: pl.DataFrame
    series: pl.DataFrame
    counted: pl.DataFrame
    drawdown: pl.DataFrame
    credits: pl.DataFrame
    unrated: pl.DataFrame
    terms: pl.DataFrame
    eligible: pl.DataFrame
    creditable: pl.DataFrame
    priced: pl.DataFrame


def under_terms(books: Books) -> pl.DataFrame:
    """The contracts (customer, contract) whose charges are more than quantity x unit price.

    That have, at any time, price rules or percentages in their book, discounts, a minimum, a maximum, commitments
    or credits.
    """
    booked = pl.concat([books.price_rules.select("book"), books.percentages.select("book")]).unique()
    terms = books.contract_terms.filter(pl.col("minimum").is_not_null() | pl.col("maximum").is_not_null())
    named = pl.concat([terms, books.discounts, books.commitments, books.credit_grants], how="diagonal")[
        "contract"
    ].unique()
    has = pl.col("contract").is_in(named.implode()) | pl.col("price_book").is_in(booked["book"].implode())
    return books.contracts.filter(has).select("customer", "contract").unique().sort("customer", "contract")


def reach(
    books: Books, period: Period, complete_until: datetime | None, *, everyone: bool = False
) -> pl.DataFrame:
    """Whose usage decides what contracts under terms earn in a period, and which span of it: REACH.

    One row per customer of such a contract that has something in the period: from the beginning of the counters,
    periods, tranches and grants that touch it (and of those that touch those) until the end of the contract's
    periods, or of a volume's counter, as far as input is complete. everyone: of every contract, from the
    beginning of its own period.
    """
    spans = spans_of(books, period, complete_until, everyone=everyone)
    return REACH.conform(
        spans.group_by("customer").agg(
            pl.col("read_from").min().alias("effective_from"), pl.col("effective_until").max()
        )
    )


def earned(usage: pl.DataFrame, books: Books, period: Period, complete_until: datetime | None) -> Earned:
    """What contracts under terms earned in a period: their waterfall, on all usage of `reach`.

    usage: frames.USAGE of at least `reach`; of other customers it is ignored. The lines of a period are the lines
    of its parts, given the same complete_until: what is of a contract's period is spread over all of that
    period's lines, not over those of the report.
    """
    done = charged(usage, books, spans_of(books, period, complete_until), since=period.start)
    here = pl.col("quarter_start").is_between(period.start, period.until, closed="left")
    # a customer's other contracts are charged quantity x unit price, as everybody's
    theirs = pl.col("contract").is_in(under_terms(books)["contract"].implode())
    return Earned(
        done.lines.filter(here & theirs),
        done.series,
        done.counted.filter(here),
        done.drawdown,
        done.credits,
        done.unrated.filter(here),
        done.priced.filter(here & theirs),
    )


def charged(usage: pl.DataFrame, books: Books, spans: pl.DataFrame, since: datetime | None = None) -> Charged:
    """What the contracts of `spans` (SPANS) were charged over them; usage of other customers is ignored.

    since: the lines before it are those of usage; for who asks for later ones (core.waterfall).
    """
    mine = usage.filter(pl.col("customer").is_in(spans["customer"].unique().implode()))
    until = spans["effective_until"].max()
    until = until if isinstance(until, datetime) else FOR_EVER
    priced, series, counted, unrated = gross(mine, books, until)
    parts = [
        waterfall(priced.join(group, on="contract", how="semi"), series, books, group, end, since)
        for (end,), group in spans.group_by("effective_until", maintain_order=True)
        if isinstance(end, datetime)
    ]
    drawings = [part.drawing for part in parts]
    unpriced = [unrated.select(_UNRATED), *(drawing.unpriced.select(_UNRATED) for drawing in drawings)]
    return Charged(
        WATERFALL.conform(pl.concat([WATERFALL.empty(), *(part.lines for part in parts)])),
        series,
        counted,
        TRANCHES_DRAWN.conform(pl.concat([TRANCHES_DRAWN.empty(), *(each.tranches for each in drawings)])),
        GRANTS_DRAWN.conform(pl.concat([GRANTS_DRAWN.empty(), *(each.grants for each in drawings)])),
        pl.concat(unpriced),
        pl.concat([commitment_terms(books).clear(), *(each.terms for each in drawings)]),
        ELIGIBLE.conform(pl.concat([ELIGIBLE.empty(), *(each.eligible for each in drawings)])),
        ELIGIBLE.conform(pl.concat([ELIGIBLE.empty(), *(each.creditable for each in drawings)])),
        priced.join(spans, on="contract", how="semi"),
    )


def spans_of(
    books: Books, period: Period, complete_until: datetime | None, *, everyone: bool = False
) -> pl.DataFrame:
    """SPANS of the contracts of customers under terms (everyone: of all) that have something in the period."""
    known = floor_to_quarter(complete_until) if complete_until is not None else period.start
    if known <= period.start or period.until <= period.start:
        return SPANS.empty()
    period = replace(period, until=min(period.until, known))
    customers = under_terms(books)["customer"].unique()
    mine = pl.lit(value=True) if everyone else pl.col("customer").is_in(customers.implode())
    dated = _dated(books)
    counters = _counters(books)
    spread = {
        *books.contract_terms.filter(pl.col("minimum").is_not_null() | pl.col("maximum").is_not_null())[
            "contract"
        ],
        *books.discounts.filter(pl.col("kind") == "fixed")["contract"],
    }
    rows = []
    contracts = (
        terms_of_contracts(books)
        .filter(mine)
        .with_columns(pl.col("effective_until").fill_null(pl.lit(FOR_EVER, dtype=INSTANT)))
    )
    for group in contracts.partition_by("contract", maintain_order=True):
        terms = group.row(0, named=True) | {"ends": group["effective_until"].max()}
        name = terms["contract"]
        found = _span(
            terms,
            dated.get(name, []),
            counters.get(terms["price_book"], set()),
            period,
            known,
            per_period=everyone or name in spread,
        )
        if found is not None:
            rows.append((terms["customer"], name, *found))
    return SPANS.conform(pl.DataFrame(rows, schema=dict(SPANS.columns), orient="row"))


def _dated(books: Books) -> dict[str, list[tuple[datetime, datetime]]]:
    """Spans by contract in which tranches, what rolls over from them, and grants are drawn."""
    tranches = commitment_terms(books).select(
        "contract",
        "effective_from",
        pl.when(pl.col("shortfall_rule") == "roll_over")
        .then(
            pl.max_horizontal(
                "effective_until",
                pl.coalesce("roll_over_until", pl.col("effective_until").max().over("holder", "commitment")),
            )
        )
        .otherwise(pl.col("effective_until"))
        .alias("effective_until"),
    )
    grants = books.credit_grants.select(
        "contract", "effective_from", pl.col("effective_until").fill_null(pl.lit(FOR_EVER, dtype=INSTANT))
    )
    spans: dict[str, list[tuple[datetime, datetime]]] = {}
    for contract, start, end in pl.concat([tranches, grants]).iter_rows():
        spans.setdefault(contract, []).append((start, end))
    return spans


def _counters(books: Books) -> dict[str, set[tuple[str, bool]]]:
    """By book: how its counters are reset, and whether a price hangs on all of a counter's span (volume)."""
    found: dict[str, set[tuple[str, bool]]] = {}
    rules = books.price_rules.select("book", "reset", pl.col("model") == "volume").unique()
    for book, reset, whole in rules.iter_rows():
        found.setdefault(book, set()).add((reset, whole))
    return found


def _span(
    terms: dict[str, Any],
    dated: list[tuple[datetime, datetime]],
    counters: set[tuple[str, bool]],
    period: Period,
    known: datetime,
    *,
    per_period: bool,
) -> tuple[datetime, datetime, datetime] | None:
    """(effective_from, effective_until, read_from) of a contract, or None: it has nothing in the period."""
    begins, ends, origin = terms["effective_from"], terms["ends"], terms["origin"]
    here = begins < period.until and ends > period.start
    if not here and not any(start < period.until and end > period.start for start, end in dated):
        return None
    since = max(period.start, begins) if here else period.start
    until = period.until

    def edges(reset: str, start: datetime, end: datetime) -> list[datetime]:
        return reset_edges(reset, terms, origin, start, end)

    moved = True
    while moved:
        before = since
        since = min([since, *(start for start, end in dated if start < since < end)])
        if per_period and begins <= since < ends:
            since = max(begins, edges("period", since, since + QUARTER)[0])
        moved = since != before
    resets = {reset for reset, _ in counters}
    read_from = min([since, *(max(begins, edges(reset, since, since + QUARTER)[0]) for reset in resets)])
    if here:
        last = min(until, ends) - QUARTER
        whole = {reset for reset, volume in counters if volume} | ({"period"} if per_period else set())
        until = max(
            [
                until,
                *(known if reset == "never" else edges(reset, last, last + QUARTER)[-1] for reset in whole),
            ]
        )
    return since, min(until, known), min(since, read_from)
