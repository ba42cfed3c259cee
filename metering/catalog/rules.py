"""What must hold inside an object and between objects, beyond the type of each field."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from metering.catalog import price_rules, term_rules
from metering.catalog.documents import MISSING, Fault, KeyPath
from metering.catalog.fields import instant_text
from metering.catalog.objects import Customer, Model
from metering.catalog.placed import Placed, known, overlaps, spans
from metering.catalog.prices import CostBook, PriceBook
from metering.catalog.quotas import Quota, quota_faults
from metering.catalog.shapes import ANY, CatalogObject
from metering.catalog.supply import CapacityContract, ExchangeRates, SupplierCommitment
from metering.catalog.supply_rules import capacity_contract, exchange_rates, supplier_commitment
from metering.catalog.terms import Contract, Entitlement, Plan


@dataclass
class Named:
    """Names that a reference may use: of sound objects, and of those whose own faults are already listed."""

    customers: set[str] = field(default_factory=set)
    price_books: set[str] = field(default_factory=set)
    plans: set[str] = field(default_factory=set)
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
        elif cls is Plan:
            self.plans.add(name)
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
        elif isinstance(item, PriceBook):
            faults += price_rules.price_book(one, item)
        elif isinstance(item, CostBook):
            faults += price_rules.prices(one, item.prices, ())
        elif isinstance(item, Plan):
            faults += term_rules.plan(one, item)
        elif isinstance(item, Contract):
            faults += term_rules.contract(one, item, pools)
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
        every_price = not broken.price_books
        for one in placed:
            broken.add(type(one.item), *_identity(one.item))
        faults += _references(placed, broken, every_price=every_price)
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


def _products(placed: Sequence[Placed]) -> set[str]:
    """What is sold: every product that a price book or a contract has a price for, or charges for by its cost."""
    priced = [one.item.prices for one in placed if isinstance(one.item, PriceBook | Contract)]
    by_cost = {
        row.product
        for one in placed
        if isinstance(one.item, PriceBook)
        for row in one.item.percentages
        if row.of == "cost" and row.product is not None
    }
    return {row.product for rows in priced for row in rows} | by_cost


def _references(placed: Sequence[Placed], named: Named, *, every_price: bool) -> Iterator[Fault]:
    """Names that are nowhere. Without `every_price` a price book has faults, and what it sells is not known."""
    customers = {one.item.customer: one.item for one in placed if isinstance(one.item, Customer)}
    books = {one.item.book: one.item for one in placed if isinstance(one.item, CostBook)}
    pools = {one.item.pool: one.item for one in placed if isinstance(one.item, CapacityContract)}
    price_books = {one.item.book: one.item for one in placed if isinstance(one.item, PriceBook)}
    plans = {one.item.plan: one.item for one in placed if isinstance(one.item, Plan)}
    products = sorted(_products(placed) | named.models)
    for one in placed:
        item = one.item
        if isinstance(item, PriceBook):
            yield from price_rules.hours_known(one, item.prices, item)
            for index, charged in enumerate(item.percentages if every_price else ()):
                if charged.product is not None:
                    of: KeyPath = ("percentages", index, "product")
                    yield from known(one, of, charged.product, products, "product")
        elif isinstance(item, Plan):
            yield from known(one, ("price_book",), item.price_book, named.price_books, "price book")
            if every_price:
                yield from term_rules.products_known(one, item, products)
        elif isinstance(item, Contract):
            yield from known(one, ("customer",), item.customer, named.customers, "customer")
            if item.plan is not None:
                yield from known(one, ("plan",), item.plan, named.plans, "plan")
            if item.price_book is not None:
                yield from known(one, ("price_book",), item.price_book, named.price_books, "price book")
            for index, row in enumerate(item.commitments):
                if row.overage_book is not None:
                    path: KeyPath = ("commitments", index, "overage_book")
                    yield from known(one, path, row.overage_book, named.price_books, "price book")
            yield from term_rules.terms_of(one, item, plans, price_books)
            if every_price:
                yield from term_rules.products_known(one, item, products)
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
            for index, price in enumerate(item.prices):
                if (item.provider, price.model) not in named.served:
                    yield one.fault(
                        ("prices", index, "model"),
                        price.model,
                        f"provider {item.provider} serves no such model; list it under models",
                    )
        elif isinstance(item, CapacityContract):
            if item.on_demand_book is not None:
                yield from known(one, ("on_demand_book",), item.on_demand_book, named.cost_books, "cost book")
            for place, dimension in enumerate(item.dimensions):
                for index, table in enumerate(dimension.burndown):
                    for position, model in enumerate(table.models):
                        path = ("dimensions", place, "burndown", index, "models", position)
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
