"""A month's margin of one customer taken apart: from what is read for it to the tree."""

import time
from dataclasses import replace
from typing import Final

import polars as pl

from bench.margin import month, pool_usage_of, synthetic_books, synthetic_usage
from bench.measures import Measure, Progress
from metering.core.explain_margin import Cell, books_of, explain_margin
from metering.core.margin import margin
from metering.frames.usage import USAGE, Identified
from metering.tree import Node

SECONDS_MAX: Final = 1.0


def explain_measures(rows: int, customers: int, progress: Progress) -> list[Measure]:
    """Charge and margin of a customer out of many: its own usage and, of the pool, the quarter hours that it used.

    Reading these from Postgres is not on the clock, nor is the start of the program.
    """
    progress(f"explaining one of {customers:,} customers, {rows:,} rollup rows")
    usage = synthetic_usage(rows, customers, month())
    minutes, books = pool_usage_of(usage), synthetic_books(customers)
    whose = usage.series["customer"].unique().sort()[customers // 2]
    series = pl.col("series_id").is_in(
        usage.series.filter(pl.col("customer") == whose)["series_id"].implode()
    )
    mine = usage.rows.filter(series)
    pooled = usage.series.filter(pl.col("pool").is_not_null())["series_id"].implode()
    quarters = mine.filter(pl.col("series_id").is_in(pooled))["quarter_start"].unique().implode()
    shared = pl.col("series_id").is_in(pooled) & pl.col("quarter_start").is_in(quarters)
    beside = usage.rows.filter(series | shared)
    of_pool = minutes.filter(pl.col("minute").dt.truncate("15m").is_in(quarters))
    found = []
    for column, read, pool_usage in (("charge", mine, minutes.clear()), ("margin", beside, of_pool)):
        told = Identified(usage.series, read)
        known = books_of(books, whose)
        if pool_usage.is_empty():
            nothing = {
                name: getattr(books, name).clear() for name in ("pools", "capacity_steps", "capacity_fees")
            }
            known = replace(known, **nothing)
        began = time.perf_counter()
        made = margin(told, pool_usage, known, month(), "USD", terms_usage=USAGE.empty(), customer=whose)
        tree = explain_margin(told, made, known, Cell({"customer": whose}, column), _place)
        seconds = time.perf_counter() - began
        assert _nodes(tree) > 1, "what a customer used has parts"
        name = f"explain {column} of a customer, {read.height:,} of {rows:,} rows"
        found.append(Measure(name, seconds, "s", SECONDS_MAX, 1.0, "at most"))
    return found


def _place(kind: str, name: str) -> str:
    return f"{kind} {name}"


def _nodes(tree: Node) -> int:
    return 1 + sum(map(_nodes, tree.children))
