"""Explanations: what a cell of a report needs is read, no more, and the core takes it apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final

import polars as pl
from sqlalchemy import Connection

from metering.core.costs import reach
from metering.core.explain_margin import COLUMNS, Cell, explain_margin
from metering.core.margin import Margin, margin
from metering.delivery.report import Provenance
from metering.errors import BadInput
from metering.frames import POOL_CUSTOMER_USAGE, POOL_USAGE, USAGE, Books
from metering.periods import Period
from metering.results import LINE_KEY
from metering.settings import Settings
from metering.store.books import read_catalog
from metering.store.rollups import (
    read_pool_customer_usage,
    read_pool_usage,
    read_usage,
    read_usage_of,
)
from metering.tree import Node
from workers.reports import known

REPORTS: Final = ("margin",)
#: Columns of margin that no pool takes part in.
_WITHOUT_POOLS: Final = ("revenue", "charge", "fee", "cost_on_demand", "billable_requests")
#: Columns that other customers' entitlements decide.
_MOVED: Final = ("margin_loaded", "cost_loaded", "cost_by_cause", "idle_share", "cause_shift")
_NAMED_MAX: Final = 12


@dataclass(frozen=True)
class Explanation:
    """A tree and what it stands on."""

    tree: Node
    provenance: Provenance
    title: str


def parse_cell(words: Sequence[str], names: Sequence[str], default: str) -> tuple[dict[str, str | None], str]:
    """`customer=acme product=- charge`: what a cell is about (`-`: nobody, nothing), and its column."""
    where: dict[str, str | None] = {}
    columns = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            columns.append(word)
        elif name not in names:
            raise BadInput(f"'{word}': a cell has no {name}; it is about any of {', '.join(names)}")
        elif name in where:
            raise BadInput(f"'{word}': {name} is named twice; name it once")
        else:
            where[name] = None if value == "-" else value
    if len(columns) > 1:
        raise BadInput(f"'{columns[0]}' and '{columns[1]}': a cell has one column; name one")
    return where, columns[0] if columns else default


def explain_margin_cell(
    connection: Connection, settings: Settings, words: Sequence[str], period: Period, as_of: int | None
) -> Explanation:
    """Take a cell of the margin report apart; `connection` is one snapshot.

    Read are the rows of the customer that the cell names and, for what pools cost, of the pools that it used:
    their cost is shared with all who used them. BadInput for a cell that does not exist names what does.
    """
    where, column = parse_cell(words, tuple(LINE_KEY), "margin")
    if column not in COLUMNS:
        raise BadInput(f"margin has no column '{column}' that has parts; give one of {', '.join(COLUMNS)}")
    provenance, books = known(connection, settings, period, as_of)
    usage, computed = _computed(connection, settings, provenance, books, where, column)
    cell = Cell(_typed(where), column)
    customers = books.customers["customer"].unique().sort().to_list()
    _refuse_unknown(computed.lines, customers, where, cell, period.name)
    places = _places(connection, provenance.catalog_revision)
    tree = explain_margin(
        usage, computed, books, cell, lambda kind, name: places.get((kind, name), "not in the catalog")
    )
    about = " ".join(word for word in words if "=" in word) or "the company"
    return Explanation(tree, provenance, f"{column} of {about}")


def _typed(where: Mapping[str, str | None]) -> dict[str, Any]:
    typed: dict[str, Any] = dict(where)
    if where.get("day") is not None:
        try:
            typed["day"] = date.fromisoformat(str(where["day"]))
        except ValueError:
            raise BadInput(f"'day={where['day']}': give a day, such as 2026-11-21") from None
    return typed


def _refuse_unknown(
    lines: pl.DataFrame, customers: Sequence[str], where: Mapping[str, str | None], cell: Cell, period: str
) -> None:
    """Every value of the cell is there by itself, and all of them together."""
    if lines.filter(cell.lines).height:
        return
    for name, value in cell.where.items():
        # the lines of a customer alone know of no other
        there = customers if name == "customer" else lines[name].unique().sort().to_list()
        if value is not None and value not in there:
            listed = ", ".join("-" if each is None else str(each) for each in there[:_NAMED_MAX])
            more = f" and {len(there) - _NAMED_MAX} more" if len(there) > _NAMED_MAX else ""
            raise BadInput(
                f"'{name}={where[name] or '-'}': margin has no such line in {period}; there are "
                f"{listed or 'no lines at all'}{more}"
            )
    rest = [
        " ".join(f"{name}={'-' if value is None else value}" for name, value in row.items())
        for row in lines.select(list(cell.where))
        .unique()
        .sort(list(cell.where))
        .head(_NAMED_MAX)
        .iter_rows(named=True)
    ]
    raise BadInput(
        f"margin has no line {' '.join(f'{name}={value}' for name, value in where.items())} in {period}; there are "
        f"{'; '.join(rest) or 'no lines at all'}"
    )


def _computed(
    connection: Connection,
    settings: Settings,
    provenance: Provenance,
    books: Books,
    where: Mapping[str, str | None],
    column: str,
) -> tuple[pl.DataFrame, Margin]:
    """The margin of what the cell needs: (usage, margin)."""
    cut, as_of = provenance.cut, provenance.watermark_id
    customer = where.get("customer")
    pools: list[str] | None = None  # all
    mine = USAGE.empty()
    if customer is not None and column not in _MOVED:
        mine = read_usage_of(connection, cut.start, cut.until, as_of, customer)
        pools = [] if column in _WITHOUT_POOLS else _pools_of(mine)
    if where.get("line") == "fee":
        pools = []
    months = reach(books, cut, provenance.complete_until)
    if pools is None:
        usage = [read_usage(connection, months.start, months.until, as_of)]
        by_minute = read_pool_usage(connection, months.start, months.until, as_of)
        by_customer = read_pool_customer_usage(connection, cut.start, cut.until, as_of)
        used = books
    else:
        used = _of_pools(books, pools)
        months = reach(used, cut, provenance.complete_until)
        usage = [mine.filter(~pl.col("pool").is_in(pools).fill_null(value=False))]
        by_minute, by_customer = POOL_USAGE.empty(), POOL_CUSTOMER_USAGE.empty()
        if pools:
            usage.append(read_usage(connection, months.start, months.until, as_of, pools))
            by_minute = read_pool_usage(connection, months.start, months.until, as_of, pools)
    read = pl.concat(usage)
    computed = margin(
        read,
        by_minute,
        used,
        cut,
        settings.reporting_currency,
        pool_customer_usage=by_customer,
        complete_until=provenance.complete_until,
    )
    return read, computed


def _pools_of(usage: pl.DataFrame) -> list[str]:
    return usage.filter(pl.col("ran_on") == "pool")["pool"].drop_nulls().unique().sort().to_list()


def _of_pools(books: Books, pools: Sequence[str]) -> Books:
    """The books with the capacity of these pools alone, and nothing that moves cost between customers."""
    here = pl.col("pool").is_in(list(pools))
    return replace(
        books,
        pools=books.pools.filter(here).with_columns(pl.lit("none").alias("idle_policy")),
        capacity_steps=books.capacity_steps.filter(here),
        capacity_fees=books.capacity_fees.filter(here),
        burndown=books.burndown.filter(here),
        multipliers=books.multipliers.filter(here),
        entitlements=books.entitlements.clear(),
        bill_lines=books.bill_lines.filter(pl.col("object").is_in(list(pools))),
    )


def _places(connection: Connection, catalog_revision: int) -> dict[tuple[str, str], str]:
    """Where every object of the catalog stands: revision, file and line."""
    entries = read_catalog(connection, catalog_revision).entries
    found = {
        key: f"revision {entry.catalog_revision}, {entry.file}:{entry.line}" for key, entry in entries.items()
    }
    for (kind, name), place in list(found.items()):
        # prices of its own make a book of the contract
        if kind == "contract":
            found[kind, name] = place
    return found


def explained(
    connection: Connection,
    settings: Settings,
    report: str,
    words: Sequence[str],
    period: Period,
    as_of: int | None,
    *,
    batches: bool = False,
) -> Explanation:
    """The tree of a cell of one of REPORTS."""
    if report not in REPORTS:
        raise BadInput(f"explain '{report}': give one of {', '.join(REPORTS)}")
    return explain_margin_cell(connection, settings, words, period, as_of)
