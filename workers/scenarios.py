"""What if: a scenario file applied to the books and to recorded usage, and the same reports computed again."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final

import polars as pl
from sqlalchemy import Connection

from metering.catalog import CatalogObjects, Entry
from metering.catalog.books import books as books_of
from metering.catalog.documents import Fault, KeyPath
from metering.catalog.placed import Placed
from metering.catalog.rules import Named, check
from metering.catalog.scenarios import (
    NO_POOL,
    ChangePrice,
    Chosen,
    Delay,
    Demanded,
    Drop,
    Move,
    MoveCustomers,
    PlacedChange,
    RaiseLimits,
    ReplaceBurndown,
    ReplaceFee,
    Resize,
    Scale,
    Scenario,
    read_scenario,
    refuse,
)
from metering.catalog.shapes import ANY
from metering.catalog.supply import Burndown, CapacityContract
from metering.core import scenario as suppose
from metering.core.capacity import capacity
from metering.core.costs import reach
from metering.core.extra_demand import Filled
from metering.core.margin import Margin, margin
from metering.core.scenario import Traffic, Which, settled, without_bills
from metering.frames.books import Books
from metering.periods import Period
from metering.settings import Settings
from metering.store.books import read_catalog
from metering.store.rollups import read_pool_customer_usage, read_pool_usage, read_usage
from workers.compared import Compared
from workers.demand import books_with, known_names, raised_limits, traffic_with
from workers.planning import Say
from workers.reports import known, usage_of_terms

_PARTS: Final = ("company", "pool", "plan", "segment", "customer")
_BURN: Final = ("contracted", "served", "idle", "overrun", "spill")
_MONEY: Final = (
    *("charge", "fee", "revenue", "cost_pool", "cost_on_demand", "cost", "margin"),
    *("cost_loaded", "margin_loaded"),
)


def what_if(
    connection: Connection,
    settings: Settings,
    file: Path,
    period: Period,
    as_of: int | None,
    *,
    say: Say = lambda _: None,
) -> Compared:
    """The period as it was recorded, and as it would have been: margin and capacity of both.

    `connection` is one snapshot; nothing is written. What suppliers billed for the pools that the scenario buys or
    changes is left out on both sides, so that both are what the contracts say. Where limits are raised there are two
    sides that would have been: a lower and an upper bound. A name that is neither in the catalog nor came before in
    the file raises BadInput by file and line.
    """
    scenario = read_scenario(file)
    provenance, books = known(connection, settings, period, as_of)
    objects = read_catalog(connection, provenance.catalog_revision)
    cut, complete = provenance.cut, provenance.complete_until
    span = reach(books, cut, complete)
    rebuilt, touched = _touched(scenario, books, objects)
    base = without_bills(books, rebuilt)
    after = _books(scenario, base, objects, cut.start)
    say("reading recorded usage")
    usage = read_usage(connection, span.start, span.until, as_of)
    pool_usage = read_pool_usage(connection, span.start, span.until, as_of)
    entitled = set(base.entitlements["pool"].unique()) | set(after.entitlements["pool"].unique())
    named = None if touched is None else sorted({*touched, *entitled})
    minutes = read_pool_customer_usage(connection, span.start, span.until, as_of, named)
    recorded = Traffic(usage, minutes)
    rest = pool_usage.filter(~pl.col("pool").is_in(minutes["pool"].unique().implode()))

    def computed(traffic: Traffic, of: Books, earlier: pl.DataFrame, more: Filled | None = None) -> Margin:
        parts = [(traffic.usage, traffic.pool_usage(), traffic.minutes)]
        parts += [] if more is None else [(more.usage, more.pool_usage, more.pool_customer_usage)]
        by_quarter, by_minute, by_customer = (pl.concat(frames) for frames in zip(*parts, strict=True))
        return margin(
            by_quarter,
            pl.concat([rest, by_minute]),
            of,
            cut,
            settings.reporting_currency,
            pool_customer_usage=by_customer,
            terms_usage=pl.concat([earlier, by_quarter.select(earlier.columns)]),
            complete_until=complete,
        )

    say("computing what was")
    outside = ~pl.col("quarter_start").is_between(span.start, span.until, closed="left")
    before = computed(recorded, base, usage_of_terms(connection, base, provenance).filter(outside))
    say("applying the scenario")
    supposed, arrived = _traffic(scenario, recorded, cut.start)
    pools = sorted(set(after.pools["pool"]) | set(books.pools["pool"])) if touched is None else touched
    found = settled(supposed, capacity(pool_usage, base, span), after, span, arrived, pools)
    held = raised_limits(connection, scenario, base, after, provenance)
    bounds = () if held is None else held.filled(found.traffic.pool_usage(), after, cut)
    say("computing what would have been")
    earlier = usage_of_terms(connection, after, provenance).filter(outside)
    afters = tuple(computed(found.traffic, after, earlier, more) for more in bounds or (None,))
    alone = all(isinstance(placed.change, RaiseLimits) for placed in scenario.changes)
    others = computed(found.traffic, after, earlier) if bounds and not alone else None
    stuck = {*found.stuck, *(pool for more in bounds for pool in more.stuck)}
    return Compared(
        scenario,
        provenance,
        base,
        settings.reporting_currency,
        before,
        afters,
        others,
        tuple(sorted(stuck)),
        tuple(rebuilt),
        held,
        bounds,
    )


def _touched(scenario: Scenario, books: Books, objects: CatalogObjects) -> tuple[list[str], list[str] | None]:
    """(pools that are bought or changed, pools whose minutes may change; None: any); refuses names not there.

    Traffic that no pool narrows down includes that of carve-outs, and of pools that nobody knows.
    """
    pools = set(books.pools["pool"])
    customers = set(books.customers["customer"])
    models = set(books.models["model"])
    providers = set(books.models["provider"])
    rebuilt: set[str] = set()
    touched: set[str] = set()
    won: set[str] = set()
    every = False
    faults: list[Fault] = []

    def there(placed: PlacedChange, field: str, names: set[str], what: str, *more: str) -> None:
        value = getattr(placed.change, field)
        if value is not None and value not in names and value not in more:
            told = ", ".join(sorted(names)[:20]) or "none"
            faults.append(placed.fault(field, value, f"is not a {what} of the catalog; there are {told}"))

    def weighed(placed: PlacedChange, path: KeyPath, tables: list[Burndown]) -> None:
        for index, table in enumerate(tables):
            for position, name in enumerate(table.models):
                if name not in models and name != ANY:
                    place = (*placed.path, *path, index, "models", position)
                    told = (
                        f"is not a model of the catalog; there are {', '.join(sorted(models)[:20]) or 'none'}"
                    )
                    faults.append(placed.document.fault(place, name, told))

    for placed in scenario.changes:
        change = placed.change
        if isinstance(change, CapacityContract):
            pools.add(change.pool)
            rebuilt.add(change.pool)
            there(placed, "on_demand_book", set(books.cost_books["book"]), "cost book")
            for index, dimension in enumerate(change.dimensions):
                weighed(placed, ("dimensions", index, "burndown"), dimension.burndown)
        elif isinstance(change, Chosen):
            there(placed, "pool", pools, "pool", NO_POOL)
            there(placed, "customer", customers | won, "customer")
            there(placed, "model", models, "model")
            if change.pool is None:
                every = True
            elif change.pool != NO_POOL:
                touched.add(change.pool)
            if isinstance(change, Move):
                there(placed, "to_pool", pools, "pool")
                there(placed, "to_model", models, "model")
                there(placed, "to_provider", providers, "provider")
                if change.to_pool is not None:
                    touched.add(change.to_pool)
        elif isinstance(change, Demanded):
            faults += known_names(placed, books, objects, won)
            every = every or not isinstance(change, (ChangePrice, MoveCustomers))
        else:
            there(placed, "pool", pools, "pool")
            rebuilt.add(change.pool)
            if isinstance(change, ReplaceBurndown):
                weighed(placed, ("tables",), change.tables)
    if faults:
        refuse(faults)
    return sorted(rebuilt), None if every else sorted(rebuilt | touched)


def _books(scenario: Scenario, books: Books, objects: CatalogObjects, start: datetime) -> Books:
    """The books with every change of capacity made, in order; without a date from the start of the period."""
    for placed in scenario.changes:
        change = placed.change
        if isinstance(change, CapacityContract):
            books = suppose.bought(books, _with(objects, change), change.pool)
        elif isinstance(change, Resize):
            since = change.effective_from or start
            books = suppose.resized(books, change.pool, since, units=change.units, factor=change.factor)
        elif isinstance(change, Drop):
            books = suppose.without(books, change.pool, change.effective_from or start)
        elif isinstance(change, Delay):
            books = suppose.delayed(books, change.pool, change.days)
        elif isinstance(change, ReplaceFee):
            books = _with_fee(books, placed, change, start)
        elif isinstance(change, ReplaceBurndown):
            books = _with_burndown(books, objects, scenario, placed, change)
        else:
            books = books_with(placed, books, objects, start)
    return books


def _with(objects: CatalogObjects, contract: CapacityContract) -> Books:
    entries = dict(objects.entries)
    entries[(contract.kind, contract.object_name)] = Entry(contract, "", 0)
    return books_of(CatalogObjects(entries), 0)


def _with_fee(books: Books, placed: PlacedChange, change: ReplaceFee, start: datetime) -> Books:
    fees = set(books.capacity_fees.filter(pl.col("pool") == change.pool)["fee"])
    if change.fee not in fees:
        told = ", ".join(sorted(fees)) or "none"
        refuse([placed.fault("fee", change.fee, f"is not a fee of pool {change.pool}; there are {told}")])
    since = change.effective_from or start
    return suppose.with_fee(books, change.pool, change.fee, since, amount=change.amount, per=change.per)


def _with_burndown(
    books: Books, objects: CatalogObjects, scenario: Scenario, placed: PlacedChange, change: ReplaceBurndown
) -> Books:
    bought = {
        one.change.pool: one.change for one in scenario.changes if isinstance(one.change, CapacityContract)
    }
    contracts = {item.pool: item for item, _ in objects.of(CapacityContract)} | bought
    contract = contracts[change.pool]
    names = [one.dimension for one in contract.dimensions]
    if change.dimension not in names:
        told = f"is not a dimension of pool {change.pool}; there are {', '.join(names)}"
        refuse([placed.fault("dimension", change.dimension, told)])
    dimensions = [
        one.model_copy(update={"burndown": change.tables}) if one.dimension == change.dimension else one
        for one in contract.dimensions
    ]
    replaced = contract.model_copy(update={"dimensions": dimensions})
    said = check([Placed(replaced, placed.document, placed.path)], Named(), references=False)
    if said:
        refuse(said)
    other = _with(objects, replaced)
    of = pl.col("pool") == change.pool
    tables = pl.concat([books.burndown.filter(~of), other.burndown.filter(of)])
    return replace(books, burndown=tables)


def _traffic(scenario: Scenario, recorded: Traffic, start: datetime) -> tuple[Traffic, list[str]]:
    """The traffic with every change made, in order, and the pools to which some of it came."""
    arrived: list[str] = []
    for placed in scenario.changes:
        change = placed.change
        if not isinstance(change, Chosen):
            recorded = traffic_with(placed, recorded, start)
            continue
        pool = "-" if change.pool == NO_POOL else change.pool
        which = Which(change.customer, change.model, pool, change.effective_from)
        if isinstance(change, Scale):
            recorded = suppose.scaled(recorded, which, change.factor)
        elif isinstance(change, Move):
            to = {"model_served": change.to_model, "provider": change.to_provider, "pool": change.to_pool}
            recorded = suppose.moved(
                recorded,
                which,
                change.share,
                {name: value for name, value in to.items() if value is not None},
            )
            if change.to_pool is not None:
                arrived.append(change.to_pool)
    return recorded, arrived
