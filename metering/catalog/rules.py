"""What must hold inside an object and between objects, beyond the type of each field."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeVar

from metering.catalog.documents import MISSING, Document, Fault, KeyPath
from metering.catalog.fields import instant_text
from metering.catalog.objects import (
    ANY,
    OTHER_METERS,
    CapacityContract,
    CatalogObject,
    Contract,
    CostBook,
    Customer,
    Model,
    PriceBook,
    Priced,
    Span,
)
from metering.meters import CONTEXT_BREAKPOINTS, METERS

#: The only dimension that is computed so far; input and output dimensions fit the same shape.
DIMENSION_ALL: Final = "all"


@dataclass(frozen=True)
class Placed:
    """An object where it was read."""

    item: CatalogObject
    document: Document
    path: KeyPath

    @property
    def line(self) -> int:
        """The line on which the object begins."""
        return self.document.line(self.path)

    @property
    def place(self) -> str:
        """File and line, to point a person at it."""
        return f"{self.document.file}:{self.line}"

    def fault(self, path: KeyPath, value: object, problem: str) -> Fault:
        """A fault at a path below this object."""
        return self.document.fault((*self.path, *path), value, problem)


@dataclass
class Named:
    """Names that a reference may use: of sound objects, and of those whose own faults are already listed."""

    customers: set[str] = field(default_factory=set)
    price_books: set[str] = field(default_factory=set)
    cost_books: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    served: set[tuple[str, str]] = field(default_factory=set)

    def add(self, cls: type[CatalogObject], name: object, provider: object = None) -> None:
        """Note the name of an object of class `cls`, whatever else is wrong with it."""
        if not isinstance(name, str):
            return
        if cls is Customer:
            self.customers.add(name)
        elif cls is PriceBook:
            self.price_books.add(name)
        elif cls is CostBook:
            self.cost_books.add(name)
        elif cls is Model:
            self.models.add(name)
            self.served.add((str(provider), name))


def check(placed: Sequence[Placed], broken: Named, *, references: bool) -> list[Fault]:
    """Every fault inside and between objects. `broken` names objects that failed already.

    With `references` false (a file could not be read) names are not looked up: what is missing may be there.
    """
    faults = list(_twice(placed))
    for one in placed:
        item = one.item
        if isinstance(item, Customer):
            faults += _spans(one, ("dated",), item.dated, lambda row: ())
        elif isinstance(item, PriceBook | CostBook):
            faults += _prices(one, item.prices)
        elif isinstance(item, Contract):
            faults += _contract(one, item)
        elif isinstance(item, CapacityContract):
            faults += _capacity(one, item)
    faults += _contracts_of_one_customer(placed)
    if references:
        for one in placed:
            broken.add(type(one.item), *_identity(one.item))
        faults += _references(placed, broken)
    return faults


def _identity(item: CatalogObject) -> tuple[str, str | None]:
    return (item.model, item.provider) if isinstance(item, Model) else (item.object_name, None)


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


def _ends(one: Placed, path: KeyPath, start: datetime, until: datetime | None) -> Iterator[Fault]:
    if until is not None and until <= start:
        yield one.fault(
            (*path, "effective_until"),
            instant_text(until),
            f"must be later than effective_from ({instant_text(start)})",
        )


def _overlaps(
    rows: Iterable[tuple[Hashable, datetime, datetime | None, Placed, KeyPath]],
) -> Iterator[Fault]:
    """Spans that overlap an earlier span of the same group."""
    groups: dict[Hashable, list[tuple[datetime, datetime | None, Placed, KeyPath]]] = defaultdict(list)
    for group, begins, ends, where, below in rows:
        groups[group].append((begins, ends, where, below))
    for members in groups.values():
        members.sort(key=lambda member: member[0])
        reaching = members[0]
        for member in members[1:]:
            before_start, before_until, before, before_path = reaching
            start, until, one, path = member
            if before_until is None or before_until > start:
                line = before.document.line((*before.path, *before_path))
                end = "open" if before_until is None else instant_text(before_until)
                other = f"{before.document.file}:{line} ({instant_text(before_start)} to {end})"
                remedy = (
                    "keep one of them"
                    if before_start == start
                    else f"give that one `effective_until: {instant_text(start)}` or start this one later"
                )
                yield one.fault(
                    (*path, "effective_from"),
                    instant_text(start),
                    f"overlaps {other}; {remedy}",
                )
            if before_until is not None and (until is None or until > before_until):
                reaching = member


Row = TypeVar("Row", bound=Span)


def _spans(
    one: Placed, path: KeyPath, rows: Sequence[Row], group: Callable[[Row], Hashable]
) -> Iterator[Fault]:
    for index, row in enumerate(rows):
        yield from _ends(one, (*path, index), row.effective_from, row.effective_until)
    yield from _overlaps(
        (group(row), row.effective_from, row.effective_until, one, (*path, index))
        for index, row in enumerate(rows)
    )


def _breakpoint(one: Placed, path: KeyPath, above: int) -> Iterator[Fault]:
    if above not in (0, *CONTEXT_BREAKPOINTS):
        known = ", ".join(str(edge) for edge in CONTEXT_BREAKPOINTS)
        yield one.fault((*path, "above_input_tokens"), above, f"must be one of {known}; leave it out for 0")


def priced_meters(meters: Iterable[str]) -> set[str]:
    """The meters that a table prices or weighs: reasoning counts as output where it is not named."""
    named = set(meters)
    return named | {"reasoning_tokens"} if "output_tokens" in named else named


def _prices(one: Placed, rows: Sequence[Priced]) -> Iterator[Fault]:
    yield from _spans(
        one, ("prices",), rows, lambda row: (row.item, row.tier, row.region, row.above_input_tokens)
    )
    for index, row in enumerate(rows):
        path: KeyPath = ("prices", index)
        yield from _breakpoint(one, path, row.above_input_tokens)
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


def _contract(one: Placed, contract: Contract) -> Iterator[Fault]:
    yield from _ends(one, (), contract.effective_from, contract.effective_until)
    rows = []
    for index, fee in enumerate(contract.fees):
        path: KeyPath = ("fees", index)
        start = fee.effective_from or contract.effective_from
        until = fee.effective_until or contract.effective_until
        yield from _ends(one, path, start, until)
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
        rows.append((fee.fee, start, until, one, path))
    yield from _overlaps(rows)


def _contracts_of_one_customer(placed: Sequence[Placed]) -> Iterator[Fault]:
    seen: set[str] = set()
    rows = []
    for one in placed:
        if isinstance(one.item, Contract) and one.item.contract not in seen:
            seen.add(one.item.contract)
            rows.append((one.item.customer, one.item.effective_from, one.item.effective_until, one, ()))
    yield from _overlaps(rows)


def _capacity(one: Placed, pool: CapacityContract) -> Iterator[Fault]:
    if pool.idle_policy != "none":
        yield one.fault(
            ("idle_policy",),
            pool.idle_policy,
            "is not computed yet: idle capacity stays a line of its own; write none",
        )
    names = [dimension.dimension for dimension in pool.dimensions]
    if names != [DIMENSION_ALL]:
        yield one.fault(
            ("dimensions",),
            ", ".join(names),
            f"only a single dimension named {DIMENSION_ALL} is computed yet; write one with that name",
        )
    if sum(dimension.fee_share_ratio for dimension in pool.dimensions) != 1:
        yield one.fault(
            ("dimensions",), MISSING, "the fee_share_ratio of a pool's dimensions must sum to exactly 1"
        )
    yield from _spans(one, ("steps",), pool.steps, lambda row: ())
    for index, step in enumerate(pool.steps):
        for name in sorted(set(names) ^ set(step.units)):
            problem = (
                f"no units are given for dimension {name}; add them"
                if name in names
                else f"there is no dimension {name}; it has {', '.join(names)}"
            )
            yield one.fault(("steps", index, "units"), name, problem)
    for place, dimension in enumerate(pool.dimensions):
        path: KeyPath = ("dimensions", place)
        if dimension.unit_burn_per_minute == 0:
            yield one.fault((*path, "unit_burn_per_minute"), 0, "must be more than 0")
        rows = []
        for index, table in enumerate(dimension.burndown):
            here: KeyPath = (*path, "burndown", index)
            yield from _ends(one, here, table.effective_from, table.effective_until)
            yield from _breakpoint(one, here, table.above_input_tokens)
            for model in table.models:
                group = (model, table.above_input_tokens)
                rows.append((group, table.effective_from, table.effective_until, one, here))
            yield from _weights(one, here, table.weights)
        yield from _overlaps(rows)


def _weights(one: Placed, path: KeyPath, weights: Mapping[str, object]) -> Iterator[Fault]:
    for meter in weights:
        if meter not in (*METERS, OTHER_METERS):
            yield one.fault(
                (*path, "weights", meter), meter, f"is not a meter; meters are {', '.join(METERS)}"
            )
    lacking = [meter for meter in METERS if meter not in priced_meters(weights)]
    if lacking and OTHER_METERS not in weights:
        yield one.fault(
            (*path, "weights"),
            MISSING,
            f"has no weight for {', '.join(lacking)}; name them, or say `{OTHER_METERS}: 0`",
        )


def _references(placed: Sequence[Placed], named: Named) -> Iterator[Fault]:
    customers = {one.item.customer: one.item for one in placed if isinstance(one.item, Customer)}
    books = {one.item.book: one.item for one in placed if isinstance(one.item, CostBook)}
    for one in placed:
        item = one.item
        if isinstance(item, Contract):
            yield from _known(one, ("customer",), item.customer, named.customers, "customer")
            yield from _known(one, ("price_book",), item.price_book, named.price_books, "price book")
            if item.customer in customers:
                starts = min(row.effective_from for row in customers[item.customer].dated)
                if item.effective_from < starts:
                    yield one.fault(
                        ("effective_from",),
                        instant_text(item.effective_from),
                        f"lies before the customer's first dated entry ({instant_text(starts)}); move one",
                    )
        elif isinstance(item, Model) and item.cost_book is not None:
            yield from _known(one, ("cost_book",), item.cost_book, named.cost_books, "cost book")
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
            for place, dimension in enumerate(item.dimensions):
                for index, table in enumerate(dimension.burndown):
                    for position, model in enumerate(table.models):
                        path: KeyPath = ("dimensions", place, "burndown", index, "models", position)
                        yield from _known(one, path, model, named.models | {ANY}, "model")


def _known(one: Placed, path: KeyPath, name: str, known: set[str], what: str) -> Iterator[Fault]:
    if name not in known:
        listed = ", ".join(sorted(known)[:8]) + (", ..." if len(known) > 8 else "")
        yield one.fault(path, name, f"no such {what} in this catalog; known are {listed or 'none'}")
