"""What must hold inside an object and between objects, beyond the type of each field."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from metering.catalog.documents import MISSING, Fault, KeyPath
from metering.catalog.fields import COUNT_MAX, decimal_text, instant_text
from metering.catalog.objects import Customer, Model
from metering.catalog.placed import Placed, breakpoint_known, ends, known, overlaps, priced_meters, spans
from metering.catalog.prices import CostBook, PriceBook, Priced
from metering.catalog.quotas import Quota, quota_faults
from metering.catalog.shapes import ANY, CatalogObject
from metering.catalog.supply import CapacityContract, ExchangeRates, SupplierCommitment
from metering.catalog.supply_rules import capacity_contract, exchange_rates, supplier_commitment
from metering.catalog.terms import Contract, Entitlement
from metering.meters import METERS


@dataclass
class Named:
    """Names that a reference may use: of sound objects, and of those whose own faults are already listed."""

    customers: set[str] = field(default_factory=set)
    price_books: set[str] = field(default_factory=set)
    cost_books: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    served: set[tuple[str, str]] = field(default_factory=set)
    pools: set[str] = field(default_factory=set)
    suppliers: set[str] = field(default_factory=set)

    def add(self, cls: type[CatalogObject], name: object, seller: object = None) -> None:
        """Note the name of an object, whatever else is wrong with it; `seller`: its provider or supplier."""
        if not isinstance(name, str):
            return
        if cls is Customer:
            self.customers.add(name)
        elif cls is PriceBook:
            self.price_books.add(name)
        elif cls is CostBook:
            self.cost_books.add(name)
            self.suppliers.add(str(seller))
        elif cls is Model:
            self.models.add(name)
            self.served.add((str(seller), name))
        elif cls is CapacityContract:
            self.pools.add(name)
            self.suppliers.add(str(seller))


def check(placed: Sequence[Placed], broken: Named, *, references: bool) -> list[Fault]:
    """Every fault inside and between objects. `broken` names objects that failed already.

    With `references` false (a file could not be read) names are not looked up: what is missing may be there.
    """
    faults = list(_twice(placed))
    pools = {one.item.pool: one.item for one in placed if isinstance(one.item, CapacityContract)}
    for one in placed:
        item = one.item
        if isinstance(item, Customer):
            faults += spans(one, ("dated",), item.dated, lambda row: ())
        elif isinstance(item, PriceBook | CostBook):
            faults += _prices(one, item.prices)
        elif isinstance(item, Contract):
            faults += _contract(one, item, pools)
        elif isinstance(item, CapacityContract):
            faults += capacity_contract(one, item)
        elif isinstance(item, Quota):
            faults += quota_faults(one, item)
        elif isinstance(item, SupplierCommitment):
            faults += supplier_commitment(one, item)
        elif isinstance(item, ExchangeRates):
            faults += exchange_rates(one, item)
    faults += _carve_outs(placed)
    faults += _contracts_of_one_customer(placed)
    if references:
        for one in placed:
            broken.add(type(one.item), *_identity(one.item))
        faults += _references(placed, broken)
    return faults


def _identity(item: CatalogObject) -> tuple[str, str | None]:
    if isinstance(item, Model):
        return item.model, item.provider
    if isinstance(item, CostBook):
        return item.book, item.provider
    if isinstance(item, CapacityContract):
        return item.pool, item.supplier
    return item.object_name, None


def _twice(placed: Sequence[Placed]) -> Iterator[Fault]:
    first: dict[tuple[str, str], Placed] = {}
    for one in placed:
        key = (one.item.kind, one.item.object_name)
        if key in first:
            yield one.fault(
                (),
                key[1],
                f"this {key[0].replace('_', ' ')} is already defined at {first[key].place}; keep one of them",
            )
        else:
            first[key] = one


def _prices(one: Placed, rows: Sequence[Priced]) -> Iterator[Fault]:
    yield from spans(
        one,
        ("prices",),
        rows,
        lambda row: (
            *(row.item, row.tier, row.region, row.above_input_tokens),
            *(getattr(row, "hours", None), ",".join(sorted(getattr(row, "meters", [])))),
        ),
    )
    for index, row in enumerate(rows):
        path: KeyPath = ("prices", index)
        yield from breakpoint_known(one, path, row.above_input_tokens)
        for meter in row.per_million:
            if meter not in METERS:
                yield one.fault(
                    (*path, "per_million", meter), meter, f"is not a meter; meters are {', '.join(METERS)}"
                )
        for base in rows if row.above_input_tokens else ():
            same = (base.item, base.tier, base.region) == (row.item, row.tier, row.region)
            lacking = priced_meters(base.per_million) - priced_meters(row.per_million)
            if same and base.above_input_tokens < row.above_input_tokens and lacking:
                yield one.fault(
                    (*path, "per_million"),
                    MISSING,
                    f"has no price for {', '.join(sorted(lacking))}, which requests below "
                    f"{row.above_input_tokens} tokens have; past the breakpoint all tokens of a request "
                    "take these prices, so name them all",
                )
                break


def _contract(one: Placed, contract: Contract, pools: Mapping[str, CapacityContract]) -> Iterator[Fault]:
    yield from ends(one, (), contract.effective_from, contract.effective_until)
    fees = []
    for index, fee in enumerate(contract.fees):
        path: KeyPath = ("fees", index)
        start, until = yield from _within(one, path, contract, fee.effective_from, fee.effective_until)
        fees.append((fee.fee, start, until, one, path))
    yield from overlaps(fees)
    promised = []
    for index, row in enumerate(contract.entitlements):
        path = ("entitlements", index)
        start, until = yield from _within(one, path, contract, row.effective_from, row.effective_until)
        dimensions = pools[row.pool].dimensions if row.pool in pools else []
        only = dimensions[0].dimension if len(dimensions) == 1 else None
        promised.append(((row.pool, row.dimension or only), start, until, one, path))
        yield from _promised(one, path, row)
    yield from overlaps(promised)


def _within(
    one: Placed, path: KeyPath, contract: Contract, start: datetime | None, until: datetime | None
) -> Generator[Fault, None, tuple[datetime, datetime | None]]:
    """A span inside of a contract's, which it defaults to; returns it."""
    start, until = start or contract.effective_from, until or contract.effective_until
    yield from ends(one, path, start, until)
    if start < contract.effective_from:
        yield one.fault(
            (*path, "effective_from"),
            instant_text(start),
            f"lies before the contract's ({instant_text(contract.effective_from)}); move one of them",
        )
    if contract.effective_until and until and until > contract.effective_until:
        yield one.fault(
            (*path, "effective_until"),
            instant_text(until),
            f"lies after the contract's ({instant_text(contract.effective_until)}); move one of them",
        )
    return start, until


def _promised(one: Placed, path: KeyPath, row: Entitlement) -> Iterator[Fault]:
    if (row.units is None) == (row.stated is None):
        yield one.fault(
            path,
            MISSING if row.units is None else decimal_text(row.units),
            "must promise either `units` of the pool or, where the contract speaks another unit, "
            "`stated`; write one of them",
        )
    elif row.units_promised > COUNT_MAX:
        yield one.fault(
            path, decimal_text(row.units_promised), f"is more than {COUNT_MAX} units; check units_each"
        )


def _carve_outs(placed: Sequence[Placed]) -> Iterator[Fault]:
    """Events name a carve-out as their pool, so its name is no pool's and in one pool only."""
    pools = [(one, one.item) for one in placed if isinstance(one.item, CapacityContract)]
    first: dict[str, Placed] = {}
    names = {pool.pool: one for one, pool in pools}
    for one, pool in pools:
        for index, row in enumerate(pool.carve_outs):
            taken = names.get(row.carve_out) or first.setdefault(row.carve_out, one)
            if taken is not one or row.carve_out in names:
                what = "a pool" if row.carve_out in names else "a carve-out of another pool"
                yield one.fault(
                    ("carve_outs", index, "carve_out"),
                    row.carve_out,
                    f"is the name of {what} ({taken.place}), and events name either; choose another name",
                )


def _contracts_of_one_customer(placed: Sequence[Placed]) -> Iterator[Fault]:
    seen: set[str] = set()
    rows = []
    for one in placed:
        if isinstance(one.item, Contract) and one.item.contract not in seen:
            seen.add(one.item.contract)
            rows.append((one.item.customer, one.item.effective_from, one.item.effective_until, one, ()))
    yield from overlaps(rows)


def _references(placed: Sequence[Placed], named: Named) -> Iterator[Fault]:
    customers = {one.item.customer: one.item for one in placed if isinstance(one.item, Customer)}
    books = {one.item.book: one.item for one in placed if isinstance(one.item, CostBook)}
    pools = {one.item.pool: one.item for one in placed if isinstance(one.item, CapacityContract)}
    for one in placed:
        item = one.item
        if isinstance(item, Contract):
            yield from known(one, ("customer",), item.customer, named.customers, "customer")
            if item.price_book is not None:
                yield from known(one, ("price_book",), item.price_book, named.price_books, "price book")
            if item.customer in customers:
                starts = min(row.effective_from for row in customers[item.customer].dated)
                if item.effective_from < starts:
                    yield one.fault(
                        ("effective_from",),
                        instant_text(item.effective_from),
                        f"lies before the customer's first dated entry ({instant_text(starts)}); move one",
                    )
            for index, promise in enumerate(item.entitlements):
                yield from known(one, ("entitlements", index, "pool"), promise.pool, named.pools, "pool")
                if promise.pool in pools:
                    yield from _entitled(one, ("entitlements", index), promise, pools[promise.pool])
        elif isinstance(item, Quota):
            for index, model in enumerate(item.models):
                if (item.provider, model) not in named.served:
                    yield one.fault(
                        ("models", index),
                        model,
                        f"provider {item.provider} serves no such model; list it under models",
                    )
            if not item.models and item.provider not in {provider for provider, _ in named.served}:
                yield one.fault(
                    ("provider",), item.provider, "serves no model; list what it serves under models"
                )
        elif isinstance(item, SupplierCommitment):
            yield from known(one, ("supplier",), item.supplier, named.suppliers, "supplier")
        elif isinstance(item, Model) and item.cost_book is not None:
            yield from known(one, ("cost_book",), item.cost_book, named.cost_books, "cost book")
            if item.cost_book in books and books[item.cost_book].provider != item.provider:
                yield one.fault(
                    ("cost_book",),
                    item.cost_book,
                    f"is a book of provider {books[item.cost_book].provider}, and this model is served by "
                    f"{item.provider}; name a cost book of {item.provider}",
                )
        elif isinstance(item, CostBook):
            for index, row in enumerate(item.prices):
                if (item.provider, row.model) not in named.served:
                    yield one.fault(
                        ("prices", index, "model"),
                        row.model,
                        f"provider {item.provider} serves no such model; list it under models",
                    )
        elif isinstance(item, CapacityContract):
            if item.on_demand_book is not None:
                yield from known(one, ("on_demand_book",), item.on_demand_book, named.cost_books, "cost book")
            for place, dimension in enumerate(item.dimensions):
                for index, table in enumerate(dimension.burndown):
                    for position, model in enumerate(table.models):
                        path: KeyPath = ("dimensions", place, "burndown", index, "models", position)
                        yield from known(one, path, model, named.models | {ANY}, "model")


def _entitled(one: Placed, path: KeyPath, row: Entitlement, pool: CapacityContract) -> Iterator[Fault]:
    names = [dimension.dimension for dimension in pool.dimensions]
    if row.dimension is None and len(names) > 1:
        yield one.fault(
            (*path, "dimension"), MISSING, f"is required: pool {pool.pool} has {', '.join(names)}; add it"
        )
    elif row.dimension is not None:
        yield from known(one, (*path, "dimension"), row.dimension, names, f"dimension of pool {pool.pool}")
    if row.unit is not None and row.unit != pool.unit:
        yield one.fault(
            (*path, "unit"),
            row.unit,
            f"pool {pool.pool} is measured in {pool.unit}; write `stated` with how many {pool.unit} one "
            f"{row.unit} is (units_each) and why",
        )
    if row.stated is not None and row.stated.unit == pool.unit:
        yield one.fault(
            (*path, "stated", "unit"), row.stated.unit, "is the pool's own unit; write `units` without stated"
        )
