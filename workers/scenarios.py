"""What if: a scenario file applied to the books and to recorded usage, and the same reports computed again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
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
from metering.core.demand import Filled
from metering.core.margin import Margin, margin
from metering.core.scenario import Traffic, Which, settled, without_bills
from metering.core.windows import in_burn_units
from metering.delivery import columns
from metering.delivery.report import Provenance, Report, choose_by, instant, select
from metering.frames import Books
from metering.money import ratio
from metering.periods import Period
from metering.settings import Settings
from metering.store.books import read_catalog
from metering.store.rollups import read_pool_customer_usage, read_pool_usage, read_usage
from workers.demand import Raised, books_with, known_names, raised_limits, traffic_with
from workers.planning import Say
from workers.reports import known, unrated_notes, usage_of_terms

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
) -> "Compared":
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
    stuck = {*found.stuck, *(pool for more in bounds for pool in more.stuck)}
    return Compared(
        scenario,
        provenance,
        base,
        settings.reporting_currency,
        before,
        afters,
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


@dataclass(frozen=True)
class Compared:
    """A period before and after a scenario. afters: one, or where limits are raised the lower and the upper bound."""

    scenario: Scenario
    provenance: Provenance
    books_before: Books
    currency: str
    before: Margin
    afters: tuple[Margin, ...]
    stuck: tuple[str, ...]
    rebuilt: tuple[str, ...]
    raised: Raised | None
    filled: tuple[Filled, ...]

    @cached_property
    def _sides(self) -> dict[str, Margin]:
        """Each side under the end of its columns' names."""
        ends = ("_after",) if len(self.afters) == 1 else ("_lower", "_upper")
        return {"": self.before, **dict(zip(ends, self.afters, strict=True))}

    def by(self, text: str, *, concluding: bool = True) -> Report:
        """The company, one row per pool and dimension, or one per plan, segment or customer that it changes.

        concluding: the notes end on what it costs and who pays.
        """
        (part,) = choose_by(text, _PARTS, ("pool",), "what-if")[:1]
        rows = {"company": self._company, "pool": self._pools}.get(part, lambda: self._changed(part))()
        laid_out = columns.in_currency(select(columns.WHAT_IF, rows.columns), self.currency)
        notes = [*self._notes()] if part in ("company", "pool") else []
        return Report(
            name=f"what_if_{part}",
            title=f"{self.scenario.name}: {part}, before and after",
            columns=laid_out,
            rows=rows,
            total=rows.clear(),
            provenance=self.provenance,
            notes=tuple([*notes, *self._conclusion()] if concluding else notes),
            empty="nothing changes",
            null_texts={
                "customer": "(idle capacity)",
                "segment": "(idle capacity)",
                "plan": "(no plan, idle)",
            },
        )

    def _company(self) -> pl.DataFrame:
        rows = []
        for measure in _MONEY:
            sums = {end: _amount(side.lines, measure) for end, side in self._sides.items()}
            row: dict[str, object] = {"measure": measure}
            for end, amount in sums.items():
                row |= (
                    {f"amount{end}": amount}
                    if not end
                    else {f"amount{end}": amount, f"change{end}": amount - sums[""]}
                )
            rows.append(row)
        money = self.before.lines.schema["cost"]
        schema = {name: pl.String if name == "measure" else money for name in rows[0]}
        return _named(pl.DataFrame(rows, schema=schema))

    def _pools(self) -> pl.DataFrame:
        by = ["pool", "dimension"]
        rows: pl.DataFrame | None = None
        for end, side in self._sides.items():
            sums = side.capacity.utilization.group_by(by).agg(
                pl.col("denominator").first(), *(pl.col(name).sum() for name in _BURN)
            )
            used = ratio(pl.col("served"), pl.col("contracted")).alias("served_of_contracted_ratio")
            one = sums.with_columns(
                used, *(in_burn_units(pl.col(name), pl.col("denominator")).alias(name) for name in _BURN)
            ).drop("denominator")
            one = one.rename({name: f"{name}{end}" for name in one.columns if name not in by})
            rows = one if rows is None else rows.join(one, on=by, how="full", coalesce=True)
        assert rows is not None
        for end, side in self._sides.items():
            cost = side.lines.group_by("pool").agg(
                pl.col(name).sum().alias(f"{name}{end}") for name in ("cost_pool", "cost_on_demand")
            )
            # a pool that is no more may still have traffic that was meant for it
            rows = rows.join(cost, on="pool", how="left", validate="m:1")
        order = [*_BURN, "served_of_contracted_ratio", "cost_pool", "cost_on_demand"]
        return rows.sort(by).select(*by, *(f"{name}{end}" for name in order for end in self._sides))

    def _changed(self, part: str) -> pl.DataFrame:
        kept = ["revenue", "cost", "margin"]
        rows: pl.DataFrame | None = None
        for end, side in self._sides.items():
            sums = side.lines.group_by(part).agg(pl.col("revenue", "cost").sum())
            sums = sums.with_columns((pl.col("revenue") - pl.col("cost")).alias("margin"))
            one = sums.select(part, *(pl.col(name).alias(f"{name}{end}") for name in kept))
            rows = (
                one if rows is None else rows.join(one, on=part, how="full", coalesce=True, nulls_equal=True)
            )
        assert rows is not None
        ends = [end for end in self._sides if end]
        rows = rows.with_columns(
            pl.col([f"{name}{end}" for name in kept for end in self._sides]).fill_null(0)
        )
        changed = pl.any_horizontal(pl.col(name) != pl.col(f"{name}{end}") for name in kept for end in ends)
        rows = rows.filter(changed).with_columns(
            (pl.col(f"margin{end}") - pl.col("margin")).alias(f"change{end}") for end in ends
        )
        order = [f"{name}{end}" for name in kept for end in self._sides] + [f"change{end}" for end in ends]
        return _named(rows.select(part, *order).sort(f"change{ends[-1]}", part, nulls_last=True))

    def _notes(self) -> Iterator[str]:
        if self.stuck:
            yield (
                f"{', '.join(self.stuck)}: no provider sells these models on demand, so what exceeds the pool is "
                "shown as overrun, at no cost: a lower bound"
            )
        if self.rebuilt and not self.books_before.bill_lines.is_empty():
            yield (
                f"{', '.join(self.rebuilt)}: costs are what the contracts say on both sides, without their bills"
            )
        cut = self.provenance.cut
        for placed in self.scenario.changes:
            since = getattr(placed.change, "effective_from", None)
            if isinstance(since, datetime) and since >= cut.until:
                yield (
                    f"{placed.place} {placed.name} takes effect at {instant(since)}, after the figures end "
                    f"({instant(cut.until)}): it changes nothing here"
                )
        yield from self._who_was_turned_away()
        for note in dict.fromkeys(note for side in self.afters for note in unrated_notes(side.unrated)):
            yield f"after: {note}"

    def _who_was_turned_away(self) -> Iterator[str]:
        held = self.raised
        if held is None:
            return
        if not held.windows:
            yield "no window of the limits that are raised was binding: nobody would have used more"
            return
        yield (
            f"{held.windows:,} windows of {held.holders:,} holders were binding; {held.refused_requests:,} requests "
            "were turned away in them. Lower: what those asked for; upper: all that the raised limits let through"
        )
        if not held.refused_requests:
            yield "no refusal names these limits: the lower bound is 0, because who was turned away left no trace"
        elif held.unestimated:
            yield f"{held.unestimated:,} of them came without an estimate of their tokens: the lower bound is too low"
        if held.extra.unmixed:
            yield (
                f"{held.extra.unmixed:,} binding windows used nothing, so that nobody knows of what their extra would "
                "be: it is left out, and both bounds are too low"
            )

    def _conclusion(self) -> Iterator[str]:
        """What it costs and who pays, in a sentence."""
        cut = self.provenance.cut
        if not cut.minutes:
            return

        def changes(measure: str) -> list[Decimal]:
            was = _amount(self.before.lines, measure)
            return [_amount(side.lines, measure) - was for side in self.afters]

        cost, revenue = changes("cost"), changes("revenue")
        monthly = Fraction(30 * 1440, cut.minutes)
        said = (
            f"{self.scenario.name}: costs {_span(cost, self.currency)} for {_span(revenue, self.currency, 'revenue')} "
            f"in {self.provenance.period.name}"
        )
        if monthly != 1:
            said += f"; over 30 days {_span([_times(one, monthly) for one in cost], self.currency)} for "
            said += _span([_times(one, monthly) for one in revenue], self.currency, "revenue")
        margins = [a - b for a, b in zip(revenue, cost, strict=True)]
        said += f"; the margin changes by {_range([f'{one:+,.2f}' for one in margins])} {self.currency}"
        yield said
        yield from self._who_pays()

    def _who_pays(self) -> Iterator[str]:
        for row in (
            pl.concat([one.burn for one in self.filled])
            .select("pool", "dimension")
            .unique()
            .sort("pool", "dimension")
            .iter_rows()
            if self.filled
            else ()
        ):
            pool, dimension = row
            sums = []
            for one in self.filled:
                found = one.burn.filter((pl.col("pool") == pool) & (pl.col("dimension") == dimension))
                sums.append(
                    found.select(pl.col("extra", "filled", "spilled") // pl.col("denominator")).row(0)
                    if found.height
                    else (0, 0, 0)
                )
            extra, idle, spill = (_range([f"{one:,}" for one in of]) for of in zip(*sums, strict=True))
            named = pool if dimension == "all" else f"{pool} {dimension}"
            yield (
                f"{named}: of {extra} more burn units {idle} fill idle capacity that was paid for anyway, "
                f"{spill} spill and are paid on demand"
            )


def _named(rows: pl.DataFrame) -> pl.DataFrame:
    """The columns under the names of the report: before, after and change where a row has one measure."""
    names = {
        "amount": "before",
        "amount_after": "after",
        "amount_lower": "after_lower",
        "amount_upper": "after_upper",
    }
    names |= {"change_after": "change"}
    return rows.rename({name: to for name, to in names.items() if name in rows.columns})


def _times(amount: Decimal, factor: Fraction) -> Decimal:
    return amount * factor.numerator / factor.denominator


def _range(texts: Sequence[str]) -> str:
    """One text, or two as a range."""
    return " to ".join(dict.fromkeys(texts))


def _span(amounts: Sequence[Decimal], currency: str, what: str = "") -> str:
    """0.00 to 300.00 USD more, 12.50 USD less, -3.00 to +4.00 USD."""
    named = f" {what}" if what else ""
    rounded = [round(amount, 2) for amount in amounts]
    if all(amount >= 0 for amount in rounded):
        return f"{_range([f'{amount:,.2f}' for amount in rounded])} {currency} more{named}"
    if all(amount <= 0 for amount in rounded):
        return f"{_range([f'{-amount:,.2f}' for amount in rounded])} {currency} less{named}"
    return f"{_range([f'{amount:+,.2f}' for amount in rounded])} {currency}{named}"


def _amount(lines: pl.DataFrame, measure: str) -> Decimal:
    if measure.startswith("margin"):
        return _amount(lines, "revenue") - _amount(lines, measure.replace("margin", "cost"))
    total = lines[measure].sum()
    return total if isinstance(total, Decimal) else Decimal(total or 0)
