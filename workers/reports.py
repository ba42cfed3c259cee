"""Reports: one snapshot is read (knowledge, books, usage), the core computes, and a report is laid out."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Final

import polars as pl
from sqlalchemy import Connection

from metering import __version__
from metering.core import revenue
from metering.core.capacity import capacity, together
from metering.core.costs import pools_by_burn, pools_by_customer, reach
from metering.core.deciles import plan_deciles
from metering.core.margin import Margin, margin
from metering.core.revenue import Earned
from metering.core.series import united
from metering.core.summary import summarise
from metering.delivery import columns
from metering.delivery.report import Provenance, Report, as_total, choose_by, counted, select
from metering.delivery.tables import money, ratio
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.frames.usage import POOL_CUSTOMER_USAGE, USAGE, Identified
from metering.meters import INPUT_METERS, METERS, OUTPUT_METERS
from metering.money import QUANTUM
from metering.periods import DAY, Period
from metering.results.margin import MARGIN_BY
from metering.results.rates import UNRATED
from metering.settings import Settings
from metering.store.bills import read_bill_lines
from metering.store.books import read_books
from metering.store.rollups import (
    read_pool_customer_usage,
    read_pool_usage,
    read_project_usage,
    read_usage_by_series,
    read_usage_of,
)
from metering.store.watermarks import read_knowledge
from workers.capacity_reports import CapacityReport, chosen_by, known_pool
from workers.losing import loss_notes

#: What margin can be by where its lines were read by project.
PROJECT: Final = "project"
UNRATED_BY: Final = tuple(name for name in UNRATED.key if name not in ("meter", "currency"))
_UNRATED_DEFAULT: Final = ("side", "reason", "customer", "product", "model_served", "pool")
_SELDOM: Final = ("discount", "top_up", "overage_premium", "shortfall", "breakage", "promotional_credit")
_WHO: Final = ("name", "kind", "segment")
#: Whose losses are explained in a sentence.
_LOSING: Final = ("customer", "segment", "contract", "plan")


def known(
    connection: Connection, settings: Settings, period: Period, as_of: int | None
) -> tuple[Provenance, Books]:
    """The point of knowledge of a report, its cut, and the books in force. BadInput for no such watermark."""
    knowledge = read_knowledge(connection, as_of, settings=settings)
    provenance = Provenance(
        period=period,
        cut=period.cut_at(knowledge.complete_until),
        watermark_id=knowledge.watermark_id,
        catalog_revision=knowledge.catalog_revision,
        complete_until=knowledge.complete_until,
        program_version=__version__,
    )
    books = read_books(connection, knowledge.catalog_revision)
    return provenance, replace(books, bill_lines=read_bill_lines(connection, as_of))


@dataclass(frozen=True)
class Recorded:
    """Usage as rollups hold it, as far as the margin of a period needs it: USAGE by series, POOL_USAGE, ...

    terms_usage: of the customers under terms, since when their counters, commitments and credits began.
    """

    usage: Identified
    pool_usage: pl.DataFrame
    pool_customer_usage: pl.DataFrame
    terms_usage: pl.DataFrame


def recorded(
    connection: Connection,
    books: Books,
    provenance: Provenance,
    *,
    terms: bool = True,
    usage_too: bool = True,
) -> Recorded:
    """Read the usage of a report's cut, and for pools whose idle goes by burn that of its months so far.

    Usage per customer and minute is read only of pools in which somebody is entitled to units. terms: also what
    contracts under terms reach into. usage_too: False for who reads that of the cut himself, by and by.
    """
    cut, as_of = provenance.cut, provenance.watermark_id
    months = reach(books, cut, provenance.complete_until)
    usage = [read_usage_by_series(connection, cut.start, cut.until if usage_too else cut.start, as_of)]
    pool_usage = [read_pool_usage(connection, cut.start, cut.until, as_of)]
    pools = pools_by_burn(books)
    for start, until in ((months.start, cut.start), (cut.until, months.until)):
        if start < until:
            usage.append(read_usage_by_series(connection, start, until, as_of, pools))
            pool_usage.append(read_pool_usage(connection, start, until, as_of, pools))
    customers = pools_by_customer(books)
    by_customer = POOL_CUSTOMER_USAGE.empty()
    if customers:
        by_customer = read_pool_customer_usage(connection, cut.start, cut.until, as_of, customers)
    of_terms = usage_of_terms(connection, books, provenance) if terms else USAGE.empty()
    return Recorded(
        usage[0] if len(usage) == 1 else united(usage), pl.concat(pool_usage), by_customer, of_terms
    )


def usage_of_terms(
    connection: Connection, books: Books, provenance: Provenance, customer: str | None = None
) -> pl.DataFrame:
    """USAGE that decides what contracts under terms (of one customer, or all) earn in the report's cut."""
    needed = revenue.reach(books, provenance.cut, provenance.complete_until)
    if customer is not None:
        needed = needed.filter(pl.col("customer") == customer)
    rows = [USAGE.empty()]
    for (start, until), group in needed.group_by("effective_from", "effective_until", maintain_order=True):
        assert isinstance(start, datetime)
        assert isinstance(until, datetime)
        customers = group["customer"].to_list()
        rows.append(read_usage_of(connection, start, until, provenance.watermark_id, customers).told(USAGE))
    return pl.concat(rows)


def margin_report(
    connection: Connection,
    settings: Settings,
    period: Period,
    as_of: int | None = None,
    *,
    by: Collection[str] | None = None,
) -> "MarginReport":
    """Read usage of the period up to its cut and compute its margin lines.

    `connection` is one snapshot (store.postgres.reading); as_of None: live, the open interval included.
    by: what the report will be asked for, None for all but projects: these read usage by the minute.
    """
    provenance, books = known(connection, settings, period, as_of)
    projects = by is not None and PROJECT in by
    computed = margin_of(connection, settings, books, provenance, projects=projects, by=by)
    return MarginReport(provenance, books, settings.reporting_currency, computed)


def margin_of(
    connection: Connection,
    settings: Settings,
    books: Books,
    provenance: Provenance,
    *,
    projects: bool = False,
    of_terms: Earned | None = None,
    by: Collection[str] | None = None,
) -> Margin:
    """The margin of a report's cut under some books: those in force, or those of another catalog.

    of_terms: what contracts under terms earned in a time that holds the cut, where that is known already. by: what
    the lines are asked for, None for all. Usage is read in runs of days, unless a pool's idle goes by burn.
    """
    cut, as_of = provenance.cut, provenance.watermark_id
    whole = bool(pools_by_burn(books))
    read = recorded(connection, books, provenance, terms=of_terms is None, usage_too=whole)

    def of_span(span: Period) -> Identified:
        return read_usage_by_series(connection, span.start, span.until, as_of)

    by_project = read_project_usage(connection, cut.start, cut.until, as_of) if projects else None
    return margin(
        read.usage if whole else of_span,
        read.pool_usage,
        books,
        provenance.cut,
        settings.reporting_currency,
        pool_customer_usage=read.pool_customer_usage,
        terms_usage=read.terms_usage,
        project_usage=by_project,
        of_terms=of_terms,
        complete_until=provenance.complete_until,
        by=by,
    )


def capacity_report(
    connection: Connection,
    settings: Settings,
    period: Period,
    as_of: int | None = None,
    *,
    by: str | None = None,
    pool: str | None = None,
) -> CapacityReport:
    """Read pool usage of the period up to its cut and compute every contracted minute of it.

    `by`, `pool`: what the report will be asked for; usage by customer is read only for `--by customer`.
    """
    provenance, books = known(connection, settings, period, as_of)
    cut = provenance.cut
    pools, about = known_pool(pool, books), chosen_by(by)
    parts, of_models = [], []
    # usage by the minute takes much more memory than what it becomes
    for week in cut.runs(7 * DAY):
        pool_usage = read_pool_usage(connection, week.start, week.until, as_of)
        parts.append(capacity(pool_usage, books, week))
        if about == "model":
            of_models.append(pool_usage)
    used = together(parts)
    customers = None
    if about == "customer":
        customers = read_pool_customer_usage(connection, cut.start, cut.until, as_of, pools)
    usage = pl.concat(of_models) if of_models else None
    return CapacityReport(provenance, books, settings.reporting_currency, used, pool, usage, customers)


def chosen(text: str | None) -> tuple[str, ...]:
    """The columns that `--by` of a margin report names."""
    return choose_by(text, (*MARGIN_BY, PROJECT), ("customer",), "margin")


@dataclass(frozen=True)
class MarginReport:
    """The margin of a period: `computed.lines` and `.unrated`, from which every table of it is summed."""

    provenance: Provenance
    books: Books
    currency: str
    computed: Margin

    @cached_property
    def summary(self) -> pl.DataFrame:
        """One row per customer (null: idle capacity), with floor and breach: results.margin_frame."""
        return summarise(self.computed.lines, ["customer"], self.books, self.provenance.cut.until)

    @cached_property
    def capacity(self) -> CapacityReport:
        """The capacity of the same usage."""
        return CapacityReport(self.provenance, self.books, self.currency, self.computed.capacity)

    def by(self, text: str | None = None, name: str = "margin") -> Report:
        """The margin by the columns of `--by` (default customer), with the company's total."""
        by = chosen(text)
        rows = _with_token_totals(summarise(self.computed.lines, by, self.books, self.provenance.cut.until))
        total = _with_token_totals(summarise(self.computed.lines, [], self.books))
        described = [column for column in _WHO if column in rows.columns and column not in by]
        order = [*by, *described]
        declared = [
            *order,
            *(c.name for c in columns.MARGIN if c.name in rows.columns and c.name not in order),
        ]
        rows = rows.select(declared)
        # what the reader asked for is shown on any terminal; what nothing moved between, in files alone
        ranks = dict.fromkeys(by, 0)
        # of what revenue is made of, a table shows what there is
        ranks |= {name: 9 for name in _SELDOM if not (rows[name] != 0).any()}
        if not (rows["idle_share"] != 0).any():
            ranks |= dict.fromkeys(("idle_share", "margin_loaded"), 9)
        else:  # who carries idle is asked before where its own cost ran
            ranks |= {"idle_share": 1}
        laid_out = tuple(
            replace(column, rank=ranks.get(column.name, column.rank))
            for column in select(columns.MARGIN, declared)
        )
        return Report(
            name=name,
            title=f"Margin by {', '.join(by)}",
            columns=columns.in_currency(laid_out, self.currency),
            rows=rows,
            total=as_total(total, rows),
            provenance=self.provenance,
            notes=(*self._notes(rows), *self._losses(by), *unrated_notes(self.computed.unrated)),
            empty="no usage, fees or capacity in the complete part of the period",
            shown=_as_shown(rows, by),
            null_texts=_null_texts(by, self.computed.lines),
        )

    def _notes(self, rows: pl.DataFrame) -> Iterator[str]:
        """The exchange rates that amounts were translated at, and breaches that they alone made."""
        rates = self.computed.rates
        if rates.height:
            told = (
                f"{name} {plain_rate(low)}{f' to {plain_rate(high)}' if low != high else ''}"
                f"{' (of the month before)' if estimated else ''}"
                for name, low, high, estimated in rates.iter_rows()
            )
            yield f"in {self.currency} per unit, month average: {', '.join(told)}"
        if "breach_by_fx" in rows.columns:
            who = rows.filter(pl.col("breach_by_fx"))["customer"].unique().sort().to_list()
            if who:
                names = ", ".join(who[:3]) + (f" and {len(who) - 3} more" if len(who) > 3 else "")
                yield f"below the floor by exchange rates alone, not at contract rates: {names}"

    def _losses(self, by: Sequence[str]) -> Iterator[str]:
        """Why those who lose money do, where a row is a customer or what customers have."""
        if len(by) != 1 or by[0] not in _LOSING:
            return
        yield from loss_notes(self.computed.lines, by[0], self.currency, self.provenance.period.name)
        nobodys = self.computed.lines.filter(pl.col("customer").is_null())
        if by[0] in _NONE_OF_IT and nobodys.height:
            yield (
                f"of the cost of {_NONE_OF_IT[by[0]]} {money(Decimal(nobodys['cost'].sum()))} {self.currency} is "
                "capacity that nobody used"
            )

    def usage(self) -> Report:
        """What each customer used, by day, customer and product; every attempt counts, once."""
        by = ["day", "customer", "product"]
        sums = ["requests", "billable_requests", *METERS]
        lines = self.computed.lines.filter(pl.col("line") == "usage")
        rows = _with_token_totals(lines.group_by(by).agg(pl.col(sums).sum()).sort(by, nulls_last=False))
        total = _with_token_totals(lines.select(pl.col(sums).sum()))
        declared = [*by, *(column.name for column in columns.USAGE_SUMS)]
        return Report(
            name="usage",
            title="Usage by day, customer, product",
            columns=select(columns.USAGE, declared),
            rows=rows.select(declared),
            total=as_total(total, rows.select(declared)),
            provenance=self.provenance,
            empty="no usage in the complete part of the period",
        )

    def plans(self) -> Report:
        """The customers of every plan in tenths by what they cost, those who cost most first."""
        rows = plan_deciles(self.computed.lines)
        of_plans = self.computed.lines.filter(pl.col("plan").is_not_null())
        ranks = {name: 9 for name in ("charge_unrated", "cost_unrated") if not rows[name].any()}
        laid_out = tuple(
            replace(column, rank=ranks.get(column.name, column.rank)) for column in columns.PLANS
        )
        declared = [column.name for column in columns.PLANS]
        return Report(
            name="plans",
            title="Plans by cost decile",
            columns=columns.in_currency(laid_out, self.currency),
            rows=rows.select(declared),
            total=as_total(summarise(of_plans, [], self.books), rows.select(declared)),
            provenance=self.provenance,
            notes=(*_plan_notes(rows, of_plans, self.books), *unrated_notes(self.computed.unrated)),
            empty="no customer had a plan in the complete part of the period",
            null_texts={"customer": "(several)"},
        )

    def unrated_by(self, text: str | None = None) -> Report:
        """What could not be priced or costed; quantities are summed by meter, amounts by currency."""
        by = choose_by(text, UNRATED_BY, _UNRATED_DEFAULT, "unrated")
        key = [*by, "meter", "currency"]
        some = [pl.col(name) for name in ("quantity", "amount")]
        rows = (
            self.computed.unrated.group_by(key)
            .agg(pl.when(column.is_not_null().any()).then(column.sum()) for column in some)
            .sort(key, nulls_last=False)
        )
        declared = [*by, "meter", "quantity", "amount", "currency"]
        rows = rows.select(declared)
        return Report(
            name="unrated",
            title=f"Unrated by {', '.join(by)}",
            columns=select(columns.UNRATED, declared),
            rows=rows,
            total=rows.clear(),
            provenance=self.provenance,
            empty="everything in the complete part of the period could be priced and costed",
            null_texts=dict.fromkeys(by, "-"),
        )


def unrated_notes(unrated: pl.DataFrame) -> list[str]:
    """One line that says how much could not be rated, by side and reason; none when all could."""
    if not unrated.height:
        return []
    groups = (
        unrated.group_by("side", "reason")
        .agg(
            pl.col("quantity")
            .filter(pl.col("meter").is_in([*INPUT_METERS, *OUTPUT_METERS]))
            .sum()
            .alias("tokens"),
            pl.col("customer").drop_nulls().unique().sort().alias("customers"),
        )
        .sort("side", "reason")
    )
    parts = []
    for row in groups.iter_rows(named=True):
        who = row["customers"]
        names = ", ".join(who[:3]) + (f" and {len(who) - 3} more" if len(who) > 3 else "")
        tokens = f" {row['tokens']:,} tokens" if row["tokens"] else ""
        parts.append(f"{row['side']} {row['reason']}{tokens}{f' ({names})' if names else ''}")
    return [f"unrated, not in these figures: {'; '.join(parts)}; see `metering report unrated`"]


def _plan_notes(deciles: pl.DataFrame, lines: pl.DataFrame, books: Books) -> Iterator[str]:
    """One line for each plan: who is in it, its margin, who loses money, and why a row is a customer."""
    losing = deciles.group_by("plan").agg(pl.col("customers", "losing").sum())
    told = summarise(lines, ["plan"], books).join(losing, on="plan", validate="1:1").sort("plan")
    for row in told.iter_rows(named=True):
        count, ratio_of = row["customers"], row["margin_ratio"]
        earned = f"{money(row['margin'])} {row['currency']}"
        if ratio_of is not None:
            earned += f" ({ratio(ratio_of)} of revenue)"
        few = "; fewer than ten: each customer is a row" if count < 10 else ""
        yield f"{row['plan']}: {counted(count, 'customer')}, margin {earned}, {row['losing']:,} lose money{few}"


def plain_rate(rate: int) -> str:
    """A rate in 10**-12 per unit, without zeros at its end."""
    return f"{(Decimal(rate) * QUANTUM).normalize():f}"


def _with_token_totals(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(
        pl.sum_horizontal(pl.col(meter).cast(SUM) for meter in INPUT_METERS)
        .cast(SUM)
        .alias("total_input_tokens"),
        pl.sum_horizontal(pl.col(meter).cast(SUM) for meter in OUTPUT_METERS)
        .cast(SUM)
        .alias("total_output_tokens"),
    )


def _as_shown(rows: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """The order of a table: days in theirs, else the smallest margin first; idle capacity, nobody's, last.

    By project, a customer that carries nothing beside its projects has no row of that nothing.
    """
    if PROJECT in by:
        unsaid = pl.col(PROJECT) == ""
        something = pl.any_horizontal(pl.col("revenue", "cost", "idle_share") != 0)
        rows = rows.filter(pl.col(PROJECT).is_not_null() | something)
        rows = rows.with_columns(pl.when(unsaid).then(pl.lit("(not said)")).otherwise(PROJECT).alias(PROJECT))
    about = [name for name in by if name not in ("day", "line", "pool", PROJECT)]
    idle = [pl.all_horizontal(pl.col(about).is_null())] if about else []
    if "line" in by:
        idle = [pl.col("line").is_in(_CAPACITY_LINES)]
    if "day" in by:
        return rows.sort("day", *idle, *(name for name in by if name != "day"), nulls_last=True)
    return rows.sort(*idle, "margin", *by, nulls_last=True)


def _null_texts(by: Sequence[str], lines: pl.DataFrame) -> dict[str, str]:
    """What a table says where a row is about nobody or nothing: fees have no product, idle capacity no customer."""
    nobodys = lines.filter(pl.col("customer").is_null())["line"]
    capacity = "(idle capacity)" if (nobodys == "idle").all() else "(unused capacity)"
    who = {"customer", "kind", "segment"} & set(by)
    texts = dict.fromkeys(by, "(none)" if who or "line" in by else "(fees, idle)")
    named = {name: text for name, text in _NONE_OF_IT.items() if name in by}
    if who and PROJECT in by:
        named[PROJECT] = "(fees, idle)"
    return texts | dict.fromkeys(who, capacity) | named


#: What stands for nothing of these: customers without a plan have none, beside idle capacity and the like.
_NONE_OF_IT: Final = {"pool": "(none)", "plan": "(no plan)", "contract": "(no contract)"}


#: Lines of capacity that no customer used.
_CAPACITY_LINES: Final = ("idle", "undelivered", "carved_out")


def export_reports(margin_of: MarginReport) -> Sequence[Report]:
    """The reports of an export, in the order of its manifest."""
    return (
        margin_of.by("customer"),
        margin_of.by(",".join(MARGIN_BY), name="margin_lines"),
        margin_of.usage(),
        margin_of.capacity.by("pool"),
        margin_of.capacity.by("hour", name="capacity_hours"),
        margin_of.unrated_by(",".join(UNRATED_BY)),
    )
