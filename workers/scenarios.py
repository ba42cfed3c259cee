"""What if: a scenario file applied to the books and to recorded usage, and the same reports computed twice."""

from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
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
    Chosen,
    Delay,
    Drop,
    Move,
    PlacedChange,
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
from metering.core.margin import Margin, margin, summarise
from metering.core.scenario import Traffic, Which, settled, without_bills
from metering.core.windows import in_burn_units
from metering.delivery import columns
from metering.delivery.report import Provenance, Report, choose_by, select
from metering.frames import Books
from metering.money import ratio
from metering.periods import Period
from metering.settings import Settings
from metering.store.books import read_catalog
from metering.store.rollups import read_pool_customer_usage, read_pool_usage, read_usage
from workers.planning import Say
from workers.reports import known, unrated_notes

_PARTS: Final = ("company", "pool", "customer")
_BURN: Final = ("contracted", "served", "idle", "overrun", "spill")
_MONEY: Final = ("charge", "fee", "revenue", "cost_pool", "cost_on_demand", "cost", "margin")


def what_if(
    connection: Connection,
    settings: Settings,
    file: Path,
    period: Period,
    as_of: int | None,
    *,
    say: Say = lambda _: None,
) -> "Compared":
    """The period as it was recorded, and as it would have been: margin and capacity of both.

    `connection` is one snapshot; nothing is written. What suppliers billed for the pools that the scenario
    changes is left out on both sides, so that both are what the contracts say. A name that is neither in the
    catalog nor bought before raises BadInput by file and line.
    """
    scenario = read_scenario(file)
    provenance, books = known(connection, settings, period, as_of)
    objects = read_catalog(connection, provenance.catalog_revision)
    span = reach(books, provenance.cut, provenance.complete_until)
    touched = _touched(scenario, books)
    base = without_bills(books, touched)
    after = _books(scenario, base, objects, provenance.cut.start)
    say("reading recorded usage")
    usage = read_usage(connection, span.start, span.until, as_of)
    pool_usage = read_pool_usage(connection, span.start, span.until, as_of)
    entitled = set(base.entitlements["pool"].unique()) | set(after.entitlements["pool"].unique())
    # traffic that no pool narrows down includes that of carve-outs, and of pools that nobody knows
    every = any(isinstance(one.change, Chosen) and one.change.pool is None for one in scenario.changes)
    named = None if every else sorted({*touched, *entitled})
    minutes = read_pool_customer_usage(connection, span.start, span.until, as_of, named)
    recorded = Traffic(usage, minutes)
    say("computing what was")
    currency = settings.reporting_currency
    complete = provenance.complete_until
    before = margin(
        usage,
        pool_usage,
        base,
        provenance.cut,
        currency,
        pool_customer_usage=minutes,
        complete_until=complete,
    )
    say("applying the scenario")
    supposed, arrived = _traffic(scenario, recorded)
    found = settled(supposed, capacity(pool_usage, base, span), after, span, arrived, touched)
    rest = pool_usage.filter(~pl.col("pool").is_in(minutes["pool"].unique().implode()))
    say("computing what would have been")
    then = margin(
        found.traffic.usage,
        pl.concat([rest, found.traffic.pool_usage()]),
        after,
        provenance.cut,
        currency,
        pool_customer_usage=found.traffic.minutes,
        complete_until=complete,
    )
    return Compared(
        scenario.name, provenance, base, after, currency, before, then, found.stuck, tuple(touched)
    )


def _touched(scenario: Scenario, books: Books) -> list[str]:
    """The pools whose minutes may change; refuses names that are not there."""
    pools = set(books.pools["pool"])
    customers = set(books.customers["customer"])
    models = set(books.models["model"])
    providers = set(books.models["provider"])
    touched: set[str] = set()
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
            touched.add(change.pool)
            there(placed, "on_demand_book", set(books.cost_books["book"]), "cost book")
            for index, dimension in enumerate(change.dimensions):
                weighed(placed, ("dimensions", index, "burndown"), dimension.burndown)
        elif isinstance(change, Chosen):
            there(placed, "pool", pools, "pool", NO_POOL)
            there(placed, "customer", customers, "customer")
            there(placed, "model", models, "model")
            if change.pool is None:
                touched |= pools
            elif change.pool != NO_POOL:
                touched.add(change.pool)
            if isinstance(change, Move):
                there(placed, "to_pool", pools, "pool")
                there(placed, "to_model", models, "model")
                there(placed, "to_provider", providers, "provider")
                if change.to_pool is not None:
                    touched.add(change.to_pool)
        else:
            there(placed, "pool", pools, "pool")
            touched.add(change.pool)
            if isinstance(change, ReplaceBurndown):
                weighed(placed, ("tables",), change.tables)
    if faults:
        refuse(faults)
    return sorted(touched)


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


def _traffic(scenario: Scenario, recorded: Traffic) -> tuple[Traffic, list[str]]:
    """The traffic with every change made, in order, and the pools to which some of it came."""
    arrived: list[str] = []
    for placed in scenario.changes:
        change = placed.change
        if not isinstance(change, Chosen):
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


@dataclass(frozen=True)
class Compared:
    """A period before and after a scenario."""

    name: str
    provenance: Provenance
    books_before: Books
    books_after: Books
    currency: str
    before: Margin
    after: Margin
    stuck: tuple[str, ...]
    touched: tuple[str, ...]

    def by(self, text: str) -> Report:
        """The company, one row per pool and dimension, or one per customer that it changes."""
        (part,) = choose_by(text, _PARTS, ("pool",), "what-if")[:1]
        rows = {"company": self._company, "pool": self._pools, "customer": self._customers}[part]()
        laid_out = columns.in_currency(select(columns.WHAT_IF, rows.columns), self.currency)
        return Report(
            name=f"what_if_{part}",
            title=f"{self.name}: {part}, before and after",
            columns=laid_out,
            rows=rows,
            total=rows.clear(),
            provenance=self.provenance,
            notes=tuple(self._notes()) if part != "customer" else (),
            empty="nothing changes",
            null_texts={"customer": "(idle capacity)"},
        )

    def _company(self) -> pl.DataFrame:
        rows = []
        for measure in _MONEY:
            sums = [_amount(side.lines, measure) for side in (self.before, self.after)]
            rows.append(
                {"measure": measure, "before": sums[0], "after": sums[1], "change": sums[1] - sums[0]}
            )
        money = self.before.lines.schema["cost"]
        return pl.DataFrame(
            rows, schema={"measure": pl.String, "before": money, "after": money, "change": money}
        )

    def _pools(self) -> pl.DataFrame:
        by = ["pool", "dimension"]
        sides, costs = [], []
        for side in (self.before, self.after):
            sums = side.capacity.utilization.group_by(by).agg(
                pl.col("denominator").first(), *(pl.col(name).sum() for name in _BURN)
            )
            cost = side.lines.group_by("pool").agg(pl.col("cost_pool").sum(), pl.col("cost_on_demand").sum())
            used = ratio(pl.col("served"), pl.col("contracted")).alias("served_of_contracted_ratio")
            sides.append(
                sums.with_columns(
                    used, *(in_burn_units(pl.col(name), pl.col("denominator")).alias(name) for name in _BURN)
                ).drop("denominator")
            )
            costs.append(cost)
        before, after = sides
        rows = before.join(after, on=by, how="full", coalesce=True, suffix="_after").sort(by)
        # a pool that is no more may still have traffic that was meant for it
        rows = rows.join(costs[0], on="pool", how="left", validate="m:1")
        rows = rows.join(costs[1], on="pool", how="left", validate="m:1", suffix="_after").sort(by)
        order = [*_BURN, "served_of_contracted_ratio", "cost_pool", "cost_on_demand"]
        return rows.select(*by, *(f"{name}{side}" for name in order for side in ("", "_after")))

    def _customers(self) -> pl.DataFrame:
        until = self.provenance.cut.until
        kept = ["customer", "revenue", "cost", "margin"]
        before = summarise(self.before.lines, ["customer"], self.books_before, until).select(kept)
        after = summarise(self.after.lines, ["customer"], self.books_after, until).select(kept)
        rows = before.join(after, on="customer", how="full", coalesce=True, suffix="_after", nulls_equal=True)
        names = [f"{name}{side}" for name in kept[1:] for side in ("", "_after")]
        rows = rows.with_columns(pl.col(names).fill_null(0))
        changed = pl.any_horizontal(pl.col(name) != pl.col(f"{name}_after") for name in kept[1:])
        change = (pl.col("margin_after") - pl.col("margin")).alias("change")
        return (
            rows.filter(changed)
            .select("customer", *names, change)
            .sort("change", "customer", nulls_last=True)
        )

    def _notes(self) -> list[str]:
        notes = []
        if self.stuck:
            notes.append(
                f"{', '.join(self.stuck)}: no provider sells these models on demand, so what exceeds the pool is "
                "shown as overrun, at no cost: a lower bound"
            )
        billed = self.touched and not self.books_before.bill_lines.is_empty()
        if billed:
            notes.append(
                f"{', '.join(self.touched)}: costs are what the contracts say on both sides, without their bills"
            )
        unrated = unrated_notes(self.after.unrated)
        return notes + [f"after: {note}" for note in unrated]


def _amount(lines: pl.DataFrame, measure: str) -> Decimal:
    if measure == "margin":
        return _amount(lines, "revenue") - _amount(lines, "cost")
    total = lines[measure].sum()
    return total if isinstance(total, Decimal) else Decimal(total or 0)
