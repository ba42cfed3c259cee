"""What customers' charges draw down: commitments first, then promotional credits, then what was prepaid."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import polars as pl

from metering.core.commitments import (
    DRAWDOWN,
    ELIGIBLE,
    TRANCHES,
    Drawdown,
    draw_down,
    overage_by_tranche,
)
from metering.core.rating import rate
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM, Frame
from metering.meters import METERS
from metering.money import multiply_divide, to_quanta
from metering.periods import QUARTER
from metering.results.rates import RATE_KEY

#: An end for what has none.
FOR_EVER: Final = datetime(9999, 12, 31, tzinfo=UTC)
_ZERO: Final = pl.lit(0, dtype=SUM)
_ONE: Final = pl.lit(10**12, dtype=SUM)
_NO_SERIES: Final = pl.lit(None, dtype=pl.UInt32)
_NO_TEXT: Final = pl.lit(None, dtype=pl.String)
_ITEM: Final = ["holder", "commitment", "effective_from", "rolled"]
_LINE: Final = ["holder", "slice_start", "account", "part"]
#: What became of every tranche of a customer's commitment, and of what rolled over from one. Amounts are counts
#: of money.QUANTUM or, of a commitment in units, of units.
TRANCHES_DRAWN: Final = Frame(
    "TRANCHES_DRAWN",
    {
        "customer": pl.String,
        "contract": pl.String,
        "currency": pl.String,
        "meters": pl.String,  # null: committed in money
        "paid": pl.String,
        "shortfall_rule": pl.String,
        "ratio": SUM,  # shortfall_ratio, count of 10**-12
        **{name: dtype for name, dtype in DRAWDOWN.columns.items() if name != "holder"},
    },
    key=("contract", "commitment", "effective_from", "rolled"),
    nullable=frozenset({"meters"}),
    laws=DRAWDOWN.laws,
)
#: What became of every credit grant. amount = used + lapsed + left. Counts of money.QUANTUM.
GRANTS_DRAWN: Final = Frame(
    "GRANTS_DRAWN",
    {
        "customer": pl.String,
        "contract": pl.String,
        "credit": pl.String,
        "kind": pl.String,  # promotional | prepaid
        "effective_from": INSTANT,
        "effective_until": INSTANT,  # null: never
        "currency": pl.String,
        "amount": SUM,
        "used": SUM,
        "lapsed": SUM,  # left when it expired: of what was prepaid, breakage
        "left": SUM,
    },
    key=("contract", "credit"),
    nullable=frozenset({"effective_until"}),
    laws={
        "amount = used + lapsed + left": pl.col("amount")
        == pl.col("used") + pl.col("lapsed") + pl.col("left")
    },
)


@dataclass(frozen=True)
class Drawing:
    """lines: those given, with what was drawn from them, and lines of their own at the ends of what was not.

    tranches: TRANCHES_DRAWN; grants: GRANTS_DRAWN, both as of the cut. terms: commitments.TRANCHES with what else
    their contract says of them; eligible: commitments.ELIGIBLE of their holders. creditable: the same of credits, by
    contract and currency, before any was used. unpriced: results.UNPRICED with
    series_id, overage that its book has no price for.
    """

    lines: pl.DataFrame
    tranches: pl.DataFrame
    grants: pl.DataFrame
    terms: pl.DataFrame
    eligible: pl.DataFrame
    creditable: pl.DataFrame
    unpriced: pl.DataFrame


def draw_contracts(
    lines: pl.DataFrame,
    gross: pl.DataFrame,
    series: pl.DataFrame,
    books: Books,
    spans: pl.DataFrame,
    until: datetime,
) -> Drawing:
    """Draw commitments and credits down by the net charges of contracts, up to `until`.

    lines: of results.WATERFALL so far, with net and top_up; gross: results.GROSS of the same lines; spans: since
    when (effective_from) the lines of each contract are whole: what began before is left out.
    Commitments in units draw first, then those in money by net charges less what units that were paid ahead
    cover: of a line, floor(floor(net x gross of the meters / gross) x units drawn / units). Only what was paid
    ahead (`drawdown`) takes off what is due; then promotional credits pay of net + top_up - drawdown, then
    prepaid ones. Unmet at the end of a tranche, x shortfall_ratio: paid ahead, it is `breakage`; in arrears
    `shortfall`, but with forfeit nothing; in units it has no amount. Overage of a tranche with an overage book
    costs what that book says in place of its net charge:
    overage_premium = floor(amount at that book x overage / net of the line) - overage. Nothing is overage twice:
    what is of units, priced by their book, is not of money too.
    """
    terms = _since(commitment_terms(books), spans)
    lines = (
        lines.with_columns(
            pl.col("item").fill_null("").alias("account"), pl.col("quarter_start").alias("slice_start")
        )
        .sort("slice_start", "account", "series_id")
        .with_row_index("part")
    )
    counted = _counted(lines, gross, terms)
    in_units = _eligible(counted, "quantity")
    units = draw_down(_tranches(terms, counted=True), in_units, until)
    lines = _with(lines, _covered(units.drawn, counted, terms), "_covered")
    money = lines.filter(pl.col("line") == "usage").with_columns(
        _holder("contract", "currency"), (pl.col("net") - pl.col("_covered")).alias("amount")
    )
    committed = money.join(terms, on="holder", how="semi")
    in_money = _eligible(committed, "amount")
    spent = draw_down(_tranches(terms, counted=False), in_money, until)
    ahead = spent.drawn.join(_about(terms), on=["holder", "commitment"], validate="m:1").filter(
        pl.col("paid") == "ahead"
    )
    lines = _with(lines, ahead, "_ahead", value="amount").with_columns(
        (pl.col("_covered") + pl.col("_ahead")).alias("drawdown")
    )
    premium, unpriced = _premium((units, counted), (spent, committed), terms, gross, series, books)
    lines = _with(lines, premium, "overage_premium")
    lines = lines.with_columns((pl.col("net") + pl.col("top_up") - pl.col("drawdown")).alias("left"))
    granted = books.credit_grants.select("contract").unique()
    creditable = _left_to_pay(lines, granted)
    grants = []
    for kind, into in (("promotional", "promotional_credit"), ("prepaid", "prepaid_credit")):
        said = _since(books.credit_grants.filter(pl.col("kind") == kind), spans)
        paid = draw_down(grant_tranches(said), _left_to_pay(lines, granted), until)
        grants.append(_granted(said, paid.tranches))
        lines = _with(lines, paid.drawn, into, value="amount").with_columns(
            (pl.col("left") - pl.col(into)).alias("left")
        )
    of_grants = pl.concat([GRANTS_DRAWN.empty(), *grants])
    of_tranches = _drawn(pl.concat([units.tranches, spent.tranches]), terms)
    lines = lines.drop("account", "part", "slice_start", "_covered", "_ahead", "left")
    return Drawing(
        pl.concat([lines, _unmet(of_tranches), _lapsed(of_grants)], how="diagonal"),
        TRANCHES_DRAWN.conform(of_tranches),
        GRANTS_DRAWN.conform(of_grants),
        terms,
        pl.concat([in_units, in_money]),
        creditable,
        unpriced,
    )


def commitment_terms(books: Books) -> pl.DataFrame:
    """commitments.TRANCHES of customers with the rest of frames.CUSTOMER_COMMITMENTS beside them.

    holder: the contract and its measure, a currency or the meters that count. ratio: shortfall_ratio x 10**12.
    """
    measure = pl.when(pl.col("amount").is_null()).then(pl.col("meters")).otherwise(pl.col("currency"))
    most, _ = multiply_divide(
        pl.col("committed"),
        pl.min_horizontal(to_quanta(pl.col("roll_over_cap_ratio")), _ONE),
        _ONE,
    )
    capped = pl.when(pl.col("roll_over_cap_ratio").is_not_null()).then(most)
    return (
        books.commitments.with_columns(
            measure.alias("measure"),
            pl.coalesce(to_quanta(pl.col("amount")), pl.col("units").cast(SUM)).alias("committed"),
            pl.col("items").alias("draws"),
            to_quanta(pl.col("shortfall_ratio")).alias("ratio"),
        )
        .with_columns(_holder("contract", "measure"), capped.alias("roll_over_max"))
        .select(
            *TRANCHES.columns,
            *("customer", "contract", "currency", "paid", "overage_book", "ratio"),
            pl.when(pl.col("amount").is_null()).then(pl.col("meters")).alias("meters"),
        )
    )


def _holder(contract: str, measure: str) -> pl.Expr:
    return (pl.col(contract) + " / " + pl.col(measure)).alias("holder")


def _since(dated: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
    """What began when the lines of its contract were whole already."""
    since = spans.group_by("contract").agg(pl.col("effective_from").min().alias("_since"))
    return (
        dated.join(since, on="contract", validate="m:1")
        .filter(pl.col("effective_from") >= pl.col("_since"))
        .drop("_since")
    )


def _tranches(terms: pl.DataFrame, *, counted: bool) -> pl.DataFrame:
    rows = terms.filter(pl.col("meters").is_not_null() == counted)
    return TRANCHES.conform(rows.select(*TRANCHES.columns))


def _about(terms: pl.DataFrame) -> pl.DataFrame:
    """What holds of a commitment, whichever tranche."""
    said = [name for name in terms.columns if name not in TRANCHES.columns]
    first = pl.col("shortfall_rule", *said).sort_by("effective_from").first()
    return terms.group_by("holder", "commitment").agg(first)


def _eligible(rows: pl.DataFrame, amount: str) -> pl.DataFrame:
    return ELIGIBLE.conform(rows.filter(pl.col(amount) != 0).select(*_LINE, pl.col(amount).alias("amount")))


def _left_to_pay(lines: pl.DataFrame, granted: pl.DataFrame) -> pl.DataFrame:
    """commitments.ELIGIBLE of contracts with credits, by contract and currency."""
    mine = lines.join(granted, on="contract", how="semi")
    return _eligible(mine.with_columns(_holder("contract", "currency")), "left")


def _counted(lines: pl.DataFrame, gross: pl.DataFrame, terms: pl.DataFrame) -> pl.DataFrame:
    """Lines as commitments in units see them: `quantity` of their meters, and what of gross and net is theirs."""
    wanted = terms.filter(pl.col("meters").is_not_null()).select("contract", "holder", "meters").unique()
    counts = (
        gross.select("quarter_start", "series_id", "contract", "currency", "meter", "quantity", "gross")
        .join(wanted, on="contract")
        .filter(pl.col("meters").str.split(",").list.contains(pl.col("meter")))
        .group_by("holder", "quarter_start", "series_id", "contract", "currency")
        .agg(pl.col("quantity", "gross").sum())
        .rename({"gross": "_of_meters"})
    )
    of_line = ["quarter_start", "series_id", "contract", "currency"]
    found = lines.filter(pl.col("line") == "usage").join(counts, on=of_line, validate="1:m")
    return found.with_columns(
        _part(pl.col("net"), pl.col("_of_meters"), pl.col("gross")).alias("net")
    ).select(*_LINE, *of_line, "quantity", "net")


def _part(amount: pl.Expr, some: pl.Expr, whole: pl.Expr) -> pl.Expr:
    """floor(amount x some / whole) of magnitudes with the sign of amount, some being a part of whole; 0 of 0."""
    of = pl.when(whole == 0).then(pl.lit(1, dtype=SUM)).otherwise(whole.abs())
    part, _ = multiply_divide(amount.abs(), pl.min_horizontal(some.abs(), of), of)
    return pl.when(whole == 0).then(_ZERO).otherwise(part * amount.sign())


def _covered(drawn: pl.DataFrame, counted: pl.DataFrame, terms: pl.DataFrame) -> pl.DataFrame:
    """What of the net of lines is covered by units that were paid ahead."""
    ahead = (
        drawn.join(_about(terms), on=["holder", "commitment"], validate="m:1")
        .filter(pl.col("paid") == "ahead")
        .group_by(_LINE)
        .agg(pl.col("amount").sum())
    )
    return ahead.join(
        counted.drop("slice_start", "account"), on=["holder", "part"], validate="1:1"
    ).with_columns(_part(pl.col("net"), pl.col("amount"), pl.col("quantity")).alias("_covered"))


def _with(lines: pl.DataFrame, found: pl.DataFrame, name: str, value: str | None = None) -> pl.DataFrame:
    """The lines with the sum of `value` (default: `name`) of what was found of them, 0 where nothing was."""
    sums = found.group_by("part").agg(pl.col(value or name).sum().alias(name))
    return lines.join(sums, on="part", how="left", validate="1:1").with_columns(pl.col(name).fill_null(_ZERO))


def _premium(
    units: tuple[Drawdown, pl.DataFrame],
    money: tuple[Drawdown, pl.DataFrame],
    terms: pl.DataFrame,
    gross: pl.DataFrame,
    series: pl.DataFrame,
    books: Books,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """overage_premium by line, and overage without a price in its book.

    Of units and of money: what was drawn, and the lines that it was drawn of, with holder and net. What is overage
    of units and is priced by their overage book is not overage in money again: of a line, that is the less.
    """
    over = _overage(*units, terms, "quantity")
    there, unpriced = _at_overage_book(over, gross, series, books)
    dear = _dearer(over, there)
    of_units = dear.group_by("part").agg(pl.col("_own").abs().sum().alias("_of_units"))
    left = pl.col("amount").abs() - pl.col("_of_units").fill_null(_ZERO)
    over = (
        _overage(*money, terms, "net")
        .join(of_units, on="part", how="left", validate="m:1")
        .with_columns(pl.max_horizontal(left, _ZERO) * pl.col("amount").sign())
        .filter(pl.col("amount") != 0)
    )
    there, more = _at_overage_book(over, gross, series, books)
    return pl.concat([dear, _dearer(over, there)]), pl.concat([unpriced, more])


def _overage(done: Drawdown, rows: pl.DataFrame, terms: pl.DataFrame, whole: str) -> pl.DataFrame:
    """Overage of tranches with an overage book: `amount`, a part of the line's `_whole`."""
    booked = _about(terms).filter(pl.col("overage_book").is_not_null())
    return (
        overage_by_tranche(done.overage, _tranches(terms, counted=whole == "quantity"))
        .join(
            booked.select("holder", "commitment", "overage_book", "meters"),
            on=["holder", "commitment"],
            validate="m:1",
        )
        .join(
            rows.select("holder", "part", "quarter_start", "series_id", "net", pl.col(whole).alias("_whole")),
            on=["holder", "part"],
            validate="1:1",
        )
    )


def _dearer(over: pl.DataFrame, there: pl.DataFrame) -> pl.DataFrame:
    """What overage costs at its book above its part of the line's net, `_own`: where that has a price for it."""
    part = _part(pl.col("_there"), pl.col("amount"), pl.col("_whole"))
    own = _part(pl.col("net"), pl.col("amount"), pl.col("_whole"))
    priced = over.join(there, on=_LINE, validate="1:1").with_columns(own.alias("_own"))
    return priced.select("part", "_own", (part - pl.col("_own")).alias("overage_premium"))


def _at_overage_book(
    over: pl.DataFrame, gross: pl.DataFrame, series: pl.DataFrame, books: Books
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What the whole of each line costs at its overage book (`_there`, where that prices all of it)."""
    sold = series.select("series_id", pl.col("tier_sold").alias("tier"), "region", "context_breakpoint")
    every = pl.col("meters").is_null() | pl.col("meters").str.split(",").list.contains(pl.col("meter"))
    usage = (
        over.select(*_LINE, "quarter_start", "series_id", "meters", pl.col("overage_book").alias("book"))
        .join(gross.drop("gross", "rule", "currency"), on=["quarter_start", "series_id"])
        .filter(every & pl.col("meter").is_in([*METERS, "requests"]))
        .join(sold, on="series_id", validate="m:1")
    )
    rated, unrated = rate(usage, books.price_books)
    there = rated.group_by(_LINE).agg(to_quanta(pl.col("amount")).sum().alias("_there"))
    there = there.join(unrated, on=_LINE, how="anti")
    return there, unrated.select(*RATE_KEY, "series_id", "reason")


def grant_tranches(grants: pl.DataFrame) -> pl.DataFrame:
    """commitments.TRANCHES of credit grants: what is left at their end is lost."""
    return TRANCHES.conform(
        grants.select(
            _holder("contract", "currency"),
            pl.col("credit").alias("commitment"),
            "effective_from",
            pl.col("effective_until").fill_null(pl.lit(FOR_EVER, dtype=INSTANT)),
            to_quanta(pl.col("amount")).alias("committed"),
            pl.col("items").alias("draws"),
            pl.lit("forfeit").alias("shortfall_rule"),
            pl.lit(None, dtype=SUM).alias("roll_over_max"),
            pl.lit(None, dtype=INSTANT).alias("roll_over_until"),
        )
    )


def _granted(grants: pl.DataFrame, tranches: pl.DataFrame) -> pl.DataFrame:
    """GRANTS_DRAWN of grants and what was drawn of them (commitments.DRAWDOWN)."""
    done = tranches.select(
        *("holder", pl.col("commitment").alias("credit")),
        pl.col("drawdown").alias("used"),
        pl.col("shortfall").alias("lapsed"),
        pl.col("remaining").alias("left"),
    )
    rows = grants.with_columns(_holder("contract", "currency"), to_quanta(pl.col("amount")).alias("amount"))
    return rows.join(done, on=["holder", "credit"], validate="1:1").select(*GRANTS_DRAWN.columns)


def _drawn(tranches: pl.DataFrame, terms: pl.DataFrame) -> pl.DataFrame:
    rows = tranches.join(_about(terms), on=["holder", "commitment"], validate="m:1")
    return rows.select(*TRANCHES_DRAWN.columns)


def part_of_ratio(amount: pl.Expr, part: pl.Expr) -> pl.Expr:
    """floor(amount x ratio), the ratio being a count of 10**-12 of at most 1, the amount not negative."""
    quotient, _ = multiply_divide(amount, part, _ONE)
    return quotient


def _unmet(tranches: pl.DataFrame) -> pl.DataFrame:
    """Lines of what was committed in money and not drawn at its end."""
    amount = part_of_ratio(pl.col("shortfall"), pl.col("ratio"))
    ahead, lapses = pl.col("paid") == "ahead", pl.col("shortfall_rule") == "forfeit"
    rows = tranches.filter((pl.col("shortfall") > 0) & pl.col("meters").is_null())
    return _own_lines(
        rows.with_columns(
            pl.when(~ahead & ~lapses).then(amount).otherwise(_ZERO).alias("shortfall"),
            pl.when(ahead).then(amount).otherwise(_ZERO).alias("breakage"),
        ),
        "commitment",
        ["shortfall", "breakage"],
    )


def _lapsed(grants: pl.DataFrame) -> pl.DataFrame:
    """Lines of what was prepaid and not used at its expiry."""
    rows = grants.filter((pl.col("kind") == "prepaid") & (pl.col("lapsed") > 0))
    return _own_lines(rows.with_columns(pl.col("lapsed").alias("breakage")), "credit", ["breakage"])


def _own_lines(rows: pl.DataFrame, line: str, amounts: list[str]) -> pl.DataFrame:
    """Lines at the last quarter hour before the end of rows, summed by contract; those of nothing left out."""
    by = ["quarter_start", "customer", "contract", "currency"]
    sums = (
        rows.with_columns((pl.col("effective_until") - QUARTER).alias("quarter_start"))
        .group_by(by)
        .agg(pl.col(amounts).sum())
        .filter(pl.any_horizontal(pl.col(amounts) != 0))
    )
    return sums.with_columns(
        pl.lit(line).alias("line"), _NO_SERIES.alias("series_id"), _NO_TEXT.alias("item")
    )
