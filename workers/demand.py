"""Demand in a scenario: its changes applied to books and traffic, and what raised limits would let through."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl
from sqlalchemy import Connection

from metering.catalog import CatalogObjects, Entry
from metering.catalog.books import books as books_of
from metering.catalog.documents import Fault
from metering.catalog.scenarios import (
    ChangePrice,
    LoseCustomer,
    MoveCustomers,
    PlacedChange,
    RaiseLimits,
    Scenario,
    WinCustomer,
    refuse,
)
from metering.catalog.terms import Contract, Plan
from metering.core import demand
from metering.core.extra_demand import Filled, filled
from metering.core.held_back import HeldBack, held_back, with_limits
from metering.core.limits import limit_windows, raised
from metering.core.scenario import Traffic
from metering.delivery.report import Provenance
from metering.frames.books import Books
from metering.periods import Period
from metering.results.limits import RAISED
from metering.store.rollups import read_held_usage
from workers.limit_reports import limited


def known_names(
    placed: PlacedChange, books: Books, objects: CatalogObjects, won: set[str]
) -> Iterator[Fault]:
    """Faults of names that the catalog does not have. won: customers that came before in the file; grows."""
    change = placed.change
    plans = {plan.plan for plan, _ in objects.of(Plan)}
    customers = set(books.customers["customer"]) | won

    def there(field: str, value: str | None, names: set[str], what: str) -> Iterator[Fault]:
        if value is not None and value not in names:
            told = ", ".join(sorted(names)[:20]) or "none"
            yield placed.fault(field, value, f"is not a {what} of the catalog; there are {told}")

    if isinstance(change, RaiseLimits):
        yield from there("plan", change.plan, plans, "plan")
        yield from there("contract", change.contract, set(books.contracts["contract"]), "contract")
        yield from there("limit", change.limit, set(books.limits["limit"]), "limit")
    elif isinstance(change, ChangePrice):
        yield from _price(placed, change, books)
    elif isinstance(change, MoveCustomers):
        yield from there("to_plan", change.to_plan, plans, "plan")
        yield from there("from_plan", change.from_plan, plans, "plan")
        for name in change.customers or ():
            yield from there("customers", name, customers, "customer")
    elif isinstance(change, LoseCustomer):
        yield from there("customer", change.customer, customers, "customer")
    elif isinstance(change, WinCustomer):
        yield from there("like", change.like, customers, "customer")
        yield from there("plan", change.plan, plans, "plan")
        if change.called in customers:
            says = "is a customer already; give another name"
            yield placed.fault("customer", change.called, says)
        won.add(change.called)


def _price(placed: PlacedChange, change: ChangePrice, books: Books) -> Iterator[Fault]:
    prices = pl.concat(
        [
            books.price_books.select("book", "item", "tier", "meter"),
            books.price_rules.select("book", "item", "tier"),
        ],
        how="diagonal",
    )
    columns = [("book", "price book", change.book), ("product", "product", change.product)]
    columns += [("tier", "tier", change.tier)] if change.tier else []
    for field, what, value in columns:
        column = "item" if field == "product" else field
        names = sorted(prices[column].unique())
        if value not in names:
            where = "the catalog" if field == "book" else f"price book {change.book}"
            yield placed.fault(
                field, value, f"is not a {what} of {where}; there are {', '.join(names[:20]) or 'none'}"
            )
            return
        prices = prices.filter(pl.col(column) == value)
    if change.per_million is not None:
        if change.tier is None:
            prices = prices.filter(pl.col("tier") == "standard")
        meters = sorted(prices["meter"].drop_nulls().unique())
        for meter in change.per_million:
            if meter not in meters:
                says = f"has no unit price in tier {change.tier or 'standard'}; there are {', '.join(meters) or 'none'}"
                yield placed.fault("per_million", meter, f"{says}. Tiers and packages change by a factor")


def books_with(placed: PlacedChange, books: Books, objects: CatalogObjects, start: datetime) -> Books:
    """The books with one change of demand made, from its date or the start of the period."""
    change = placed.change
    if isinstance(change, RaiseLimits):
        after, chosen = with_limits(
            books, change.factor, plan=change.plan, contract=change.contract, limit=change.limit
        )
        if not chosen.height:
            names = sorted(books.limits.select(pl.format("{} of {}", "limit", "contract").alias("of"))["of"])
            refuse(
                [
                    placed.fault(
                        "plan", change.plan, f"names no limit; there are {', '.join(names[:20]) or 'none'}"
                    )
                ]
            )
        return after
    if isinstance(change, ChangePrice):
        since = change.effective_from or start
        return demand.repriced(
            books, change.book, change.product, since,
            factor=change.factor, per_million=change.per_million, tier=change.tier,
        )  # fmt: skip
    if isinstance(change, MoveCustomers):
        since = change.effective_from or start
        for customer in moved(placed, books, since):
            books = demand.on_plan(books, _on_plan(objects, customer, change.to_plan, since), customer, since)
    elif isinstance(change, LoseCustomer):
        books = demand.lost(books, change.customer, change.effective_from or start)
    elif isinstance(change, WinCustomer):
        since = change.effective_from or start
        books = demand.won(books, change.like, change.called, since)
        if change.plan is not None:
            other = _on_plan(objects, change.called, change.plan, since)
            books = demand.on_plan(books, other, change.called, since)
    return books


def moved(placed: PlacedChange, books: Books, since: datetime) -> list[str]:
    """The customers that a change moves: those it names, or those on the plan then; refuses where nobody is."""
    change = placed.change
    assert isinstance(change, MoveCustomers)
    if change.customers is not None:
        return change.customers
    held = books.contract_terms.filter(
        (pl.col("plan") == change.from_plan)
        & (pl.col("effective_from") <= since)
        & (pl.col("effective_until").is_null() | (pl.col("effective_until") > since))
    )
    if not held.height:
        refuse([placed.fault("from_plan", change.from_plan, f"nobody is on this plan on {since:%Y-%m-%d}")])
    return sorted(held["customer"].unique())


def _on_plan(objects: CatalogObjects, customer: str, plan: str, since: datetime) -> Books:
    """Books in which a customer has a contract of nothing but a plan."""
    contract = Contract(contract=f"{customer} on {plan}", customer=customer, plan=plan, effective_from=since)
    others = {key: entry for key, entry in objects.entries.items() if not isinstance(entry.item, Contract)}
    return books_of(
        CatalogObjects({**others, (contract.kind, contract.object_name): Entry(contract, "", 0)}), 0
    )


def traffic_with(placed: PlacedChange, traffic: Traffic, start: datetime) -> Traffic:
    """The traffic with one change of demand made."""
    change = placed.change
    if isinstance(change, LoseCustomer):
        return demand.without_customer(traffic, change.customer, change.effective_from or start)
    if isinstance(change, WinCustomer):
        since = change.effective_from or start
        return demand.with_customer(traffic, change.like, change.called, change.factor, since)
    return traffic


@dataclass(frozen=True)
class Raised:
    """What raised limits would let through, between two bounds, and what is known of who was turned away."""

    extra: HeldBack
    windows: int  # binding windows of the limits that are raised
    holders: int
    refused_requests: int
    unestimated: int

    def filled(self, pool_usage: pl.DataFrame, books: Books, period: Period) -> tuple[Filled, Filled]:
        """What becomes of the extra beside the traffic as it settled: lower and upper bound."""
        return (
            filled(pool_usage, self.extra.low, books, period),
            filled(pool_usage, self.extra.high, books, period),
        )


def raised_limits(
    connection: Connection, scenario: Scenario, books: Books, after: Books, provenance: Provenance
) -> Raised | None:
    """Read the windows of limits and what was used in them; None where the scenario raises none.

    Windows of customers who leave, or move to another plan, count until they do.
    """
    changes = [one.change for one in scenario.changes if isinstance(one.change, RaiseLimits)]
    complete_until, period = provenance.complete_until, provenance.cut
    if not changes or complete_until is None:
        return None
    read = limited(connection, books, provenance)
    windows = limit_windows(read.usage, read.refused, books, period, complete_until)
    of = ["customer", "contract", "limit"]
    stay = windows
    for since, gone in _gone(scenario, books, period.start):
        stay = stay.filter(~pl.col("customer").is_in(gone) | (pl.col("binding_from") < since))
    parts = [RAISED.empty()]
    for change in changes:
        _, chosen = with_limits(
            books, change.factor, plan=change.plan, contract=change.contract, limit=change.limit
        )
        rows = stay.join(chosen.select(of).unique(), on=of, how="semi")
        if change.effective_from is not None:
            rows = rows.filter(pl.col("binding_from") >= change.effective_from)
        parts.append(raised(rows, change.factor))
    more = RAISED.conform(pl.concat(parts))
    span = more.select(pl.col("window_start").min(), pl.col("window_until").max()).row(0)
    used = read_held_usage(
        connection,
        span[0] or period.start,
        min(span[1] or period.start, complete_until),
        provenance.watermark_id,
        sorted(more["customer"].unique()),
    )
    said = stay.join(
        more.select(*of, "held_by", "window_start"), on=[*of, "held_by", "window_start"], how="semi"
    )
    return Raised(
        held_back(windows, more, used, books, after),
        more.height,
        more.select("customer", "held_by").n_unique(),
        int(said["refused_requests"].sum()),
        int(said["refused_unestimated"].sum()),
    )


def _gone(scenario: Scenario, books: Books, start: datetime) -> Iterator[tuple[datetime, Sequence[str]]]:
    for placed in scenario.changes:
        change = placed.change
        if isinstance(change, LoseCustomer):
            yield change.effective_from or start, [change.customer]
        elif isinstance(change, MoveCustomers):
            since = change.effective_from or start
            yield since, moved(placed, books, since)
