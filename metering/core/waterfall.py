"""The waterfall of charges: gross, less discounts, held between maximum and minimum, drawn from what was paid ahead.

    net = gross - line discount - contract discount - fixed discounts - capped
    due = net + top_up - drawdown - promotional_credit - prepaid_credit + overage_premium + shortfall (+ fees)

Every amount is an integer of money.QUANTUM on the finest line there is, a quarter hour of a series, so that the
lines of any slice sum to it: what is of a whole period is spread over the period's lines, never computed again.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import polars as pl

from metering.core.contract_periods import contract_periods
from metering.core.days import placed
from metering.core.drawing import Drawing, draw_contracts
from metering.core.effective import in_force
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM
from metering.money import multiply_divide, split_largest_remainder, to_quanta
from metering.periods import MINUTE, QUARTER
from metering.results.charges import WATERFALL

ONE: Final = pl.lit(10**12, dtype=SUM)
_ZERO: Final = pl.lit(0, dtype=SUM)
#: A line of the waterfall while it is made; `period_start` is that of the contract's period.
_KEY: Final = ["quarter_start", "line", "series_id", "customer", "contract", "item", "currency"]
_PERIOD: Final = ["contract", "currency", "period_start"]
_AMOUNTS: Final = tuple(name for name, dtype in WATERFALL.columns.items() if dtype == SUM)


@dataclass(frozen=True)
class Waterfall:
    """lines: results.WATERFALL. drawing: what was drawn of commitments and credits, and what they left."""

    lines: pl.DataFrame
    drawing: Drawing


def waterfall(
    gross: pl.DataFrame,
    series: pl.DataFrame,
    books: Books,
    spans: pl.DataFrame,
    until: datetime,
    since: datetime | None = None,
) -> Waterfall:
    """The waterfall of contracts under terms up to `until`, a quarter hour.

    since: what stands on a line of its own before it (top-ups of idle periods) is left out where nothing hangs on it,
    so that idle months take no room.

    gross: results.GROSS; series: series_id and frames.DIMENSIONS. spans: contract and [effective_from,
    effective_until) that gross covers: whole periods of the contract, but for where the contract begins or ends
    and where `until` cuts. What is per period (fixed discounts, minimum, maximum) is prorated by the days of the
    contract's zone, and within a day by its quarter hours, that are covered so far:
    floor(amount x place(end)) - floor(amount x place(start)), place being the share of the period before.
    """
    gross = gross.filter(pl.col("quarter_start") < pl.lit(until, dtype=INSTANT))
    periods = _covered(books, spans, until)
    lines = discounted(gross, books)
    lines = _in_periods(lines, periods)
    lines = _held(lines, periods, books)
    lines = pl.concat([lines.drop("period_start"), _alone(lines, periods, books, since)])
    drawing = draw_contracts(lines, gross, series, books, spans, until)
    lines = drawing.lines.with_columns(
        pl.col(name).fill_null(_ZERO) if name in drawing.lines.columns else _ZERO.alias(name)
        for name in _AMOUNTS
    )
    return Waterfall(WATERFALL.conform(lines), drawing)


def share(amount: pl.Expr, ratio: pl.Expr) -> pl.Expr:
    """floor(amount x ratio), both Int128 counts of 10**-12, 0 <= ratio <= 1; of what is negative, its opposite.

    So a charge that is taken back takes its discount back to the quantum.
    """
    part, _ = multiply_divide(amount.abs(), ratio, ONE)
    return part * amount.sign()


def discounted(gross: pl.DataFrame, books: Books) -> pl.DataFrame:
    """One line per quarter hour and series, with line and contract discount; `rest` is what they leave."""
    by = ["quarter_start", "series_id", "customer", "contract", "item", "currency"]
    lines = gross.group_by(by).agg(pl.col("gross").sum())
    said = books.discounts.with_columns(to_quanta(pl.col("ratio")).alias("ratio"))
    span = ["contract", "effective_from", "effective_until"]
    of_item = said.filter(pl.col("kind") == "line").select(*span, "item", pl.col("ratio").alias("_line"))
    of_all = said.filter(pl.col("kind") == "contract").select(*span, pl.col("ratio").alias("_all"))
    lines = in_force(lines, of_item, at="quarter_start", by=["contract", "item"])
    lines = in_force(lines, of_all, at="quarter_start", by=["contract"])
    lines = lines.with_columns(
        share(pl.col("gross"), pl.col("_line").fill_null(_ZERO)).alias("line_discount")
    ).with_columns(
        share(pl.col("gross") - pl.col("line_discount"), pl.col("_all").fill_null(_ZERO)).alias(
            "contract_discount"
        )
    )
    rest = pl.col("gross") - pl.col("line_discount") - pl.col("contract_discount")
    return lines.with_columns(rest.alias("rest"), pl.lit("usage").alias("line")).drop("_line", "_all")


def _covered(books: Books, spans: pl.DataFrame, until: datetime) -> pl.DataFrame:
    """The parts of contracts' periods that are covered so far, with minimum and maximum prorated to them.

    customer, contract, currency, zone, period_start, period_until, covered_from, covered_until, _whole (parts of
    days in the period), minimum, maximum (quanta, null: none). A period in which the terms of a contract change
    has several.
    """
    periods = contract_periods(books, spans, until)
    starts = ["period_start", "period_until"]
    for at in starts:
        periods = placed(periods, at=at, zone="zone", into=f"_{at}").drop(f"_{at}_day")
    periods = periods.with_columns((pl.col("_period_until") - pl.col("_period_start")).alias("_whole"))
    return _prorated(periods, {name: to_quanta(pl.col(name)) for name in ("minimum", "maximum")})


def _prorated(pieces: pl.DataFrame, amounts: dict[str, pl.Expr]) -> pl.DataFrame:
    """Pieces of periods [covered_from, covered_until) with amounts per period cut to them."""
    for at in ("covered_from", "covered_until"):
        pieces = placed(pieces, at=at, zone="zone", into=f"_{at}").drop(f"_{at}_day")

    def before(amount: pl.Expr, at: str) -> pl.Expr:
        place = (pl.col(f"_{at}") - pl.col("_period_start")).cast(SUM)
        return amount * place // pl.col("_whole").cast(SUM)

    return pieces.with_columns(
        (before(amount, "covered_until") - before(amount, "covered_from")).alias(name)
        for name, amount in amounts.items()
    ).drop("_covered_from", "_covered_until")


def _in_periods(lines: pl.DataFrame, periods: pl.DataFrame) -> pl.DataFrame:
    """The lines that lie in a period of their contract, with its period_start."""
    of = periods.select("contract", "period_start", "covered_from", "covered_until").sort("covered_from")
    held = lines.sort("quarter_start").join_asof(
        of,
        left_on="quarter_start",
        right_on="covered_from",
        by="contract",
        strategy="backward",
        check_sortedness=False,
    )
    return held.filter(pl.col("quarter_start") < pl.col("covered_until")).drop(
        "covered_from", "covered_until"
    )


def _held(lines: pl.DataFrame, periods: pl.DataFrame, books: Books) -> pl.DataFrame:
    """fixed_discount, capped, net and top_up of every line, each period's amount spread over its lines."""
    sums = periods.group_by(_PERIOD).agg(
        *(
            pl.when(pl.col(name).is_not_null().any()).then(pl.col(name).sum()).alias(name)
            for name in ("minimum", "maximum")
        )
    )
    fixed = _fixed(periods, books).group_by(_PERIOD).agg(pl.col("fixed").sum())
    terms = sums.join(fixed, on=_PERIOD, how="left", validate="1:1")
    lines = lines.join(terms, on=_PERIOD, how="left", validate="m:1")
    left = pl.col("rest").sum().over(_PERIOD)
    most = pl.max_horizontal(left, _ZERO)
    lines = _spread(lines, pl.min_horizontal(pl.col("fixed").fill_null(_ZERO), most), "fixed_discount")
    lines = lines.with_columns((pl.col("rest") - pl.col("fixed_discount")).alias("rest"))
    over = pl.max_horizontal(left - pl.col("maximum"), _ZERO).fill_null(_ZERO)
    lines = _spread(lines, over, "capped")
    lines = lines.with_columns((pl.col("rest") - pl.col("capped")).alias("rest"))
    below = pl.max_horizontal(pl.col("minimum") - left, _ZERO).fill_null(_ZERO)
    lines = _spread(lines, below, "top_up")
    return lines.rename({"rest": "net"}).drop("minimum", "maximum", "fixed")


def _fixed(periods: pl.DataFrame, books: Books) -> pl.DataFrame:
    """Fixed discounts of every piece of a period, cut to what both cover."""
    said = books.discounts.filter(pl.col("kind") == "fixed").select(
        "contract", "effective_from", "effective_until", "amount"
    )
    pieces = periods.join(said, on="contract").with_columns(
        pl.max_horizontal("covered_from", "effective_from").alias("covered_from"),
        pl.min_horizontal("covered_until", "effective_until").alias("covered_until"),
    )
    pieces = pieces.filter(pl.col("covered_from") < pl.col("covered_until"))
    return _prorated(pieces, {"fixed": to_quanta(pl.col("amount"))})


def _spread(lines: pl.DataFrame, total: pl.Expr, into: str) -> pl.DataFrame:
    """Split each period's total over its lines by what is left of them; 0 where nothing is above 0."""
    lines = lines.with_columns(
        total.alias("_total"), pl.max_horizontal("rest", _ZERO).alias("_weight")
    ).with_columns(pl.col("_weight").sum().over(_PERIOD).alias("_above"))
    splits = (pl.col("_total") > 0) & (pl.col("_above") > 0)
    parts = split_largest_remainder(
        lines.filter(splits),
        group=_PERIOD,
        total="_total",
        weight="_weight",
        tie_break=["quarter_start", "series_id"],
        into=into,
    ).select(*lines.columns, into)
    rest = lines.filter(~splits).with_columns(_ZERO.alias(into))
    return pl.concat([parts, rest]).drop("_total", "_weight", "_above")


def _alone(lines: pl.DataFrame, periods: pl.DataFrame, books: Books, since: datetime | None) -> pl.DataFrame:
    """Top-ups of periods in which there is nothing to spread them over, evenly by covered quarter hour.

    since: earlier ones are told only of contracts with credits, which may pay for them.
    """
    paid = lines.group_by(_PERIOD).agg(
        pl.col("net").sum(), pl.max_horizontal(pl.col("net"), _ZERO).sum().alias("_weights")
    )
    lacking = (
        periods.filter(pl.col("minimum").is_not_null())
        .join(paid, on=_PERIOD, how="left", validate="m:1")
        .filter(pl.col("_weights").fill_null(_ZERO) == 0)
        .with_columns(
            (pl.col("minimum").sum().over(_PERIOD) - pl.col("net").fill_null(_ZERO)).alias("_total")
        )
        .filter(pl.col("_total") > 0)
    )
    minutes = int(QUARTER / MINUTE)
    covered = (pl.col("covered_until") - pl.col("covered_from")).dt.total_minutes() // minutes
    credited = pl.col("contract").is_in(books.credit_grants["contract"].unique().implode())
    told_from = pl.max_horizontal("covered_from", pl.lit(since, dtype=INSTANT))
    pieces = (
        lacking.sort(*_PERIOD, "covered_from")
        .with_columns(covered.alias("_covered"))
        .with_columns(
            pl.col("_covered").sum().over(_PERIOD).cast(SUM).alias("_many"),
            (pl.col("_covered").cum_sum().over(_PERIOD) - pl.col("_covered")).alias("_before"),
            pl.when(credited).then(pl.col("covered_from")).otherwise(told_from).alias("_told_from"),
        )
        .filter(pl.col("_told_from") < pl.col("covered_until"))
    )
    quarters = pieces.with_columns(
        pl.datetime_ranges("_told_from", "covered_until", interval=QUARTER, closed="left").alias(
            "quarter_start"
        )
    ).explode("quarter_start")
    quarters = quarters.with_columns(pl.col("quarter_start").cast(INSTANT))
    into = (pl.col("quarter_start") - pl.col("covered_from")).dt.total_minutes() // minutes
    place, many = (pl.col("_before") + into).cast(SUM), pl.col("_many")
    part = pl.col("_total") * (place + 1) // many - pl.col("_total") * place // many
    rows = quarters.with_columns(
        part.alias("top_up"),
        pl.lit("top_up").alias("line"),
        pl.lit(None, dtype=pl.UInt32).alias("series_id"),
        pl.lit(None, dtype=pl.String).alias("item"),
    )
    return rows.select(
        pl.col(name) if name in rows.columns and name not in ("net",) else _ZERO.alias(name)
        for name in lines.columns
        if name != "period_start"
    )
