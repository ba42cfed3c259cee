"""What must hold in plans and contracts: fees, discounts, commitments, credits, limits, periods, and what they name."""

from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from metering.catalog.documents import MISSING, Fault, KeyPath
from metering.catalog.fields import COUNT_MAX, decimal_text, instant_text
from metering.catalog.placed import Placed, ends, known, overlaps, spans
from metering.catalog.price_rules import COUNTED_METERS, hours_known, meters_known, prices, quarter_hours
from metering.catalog.prices import PriceBook
from metering.catalog.quotas import REQUESTS
from metering.catalog.spans import OPEN
from metering.catalog.supply import CapacityContract
from metering.catalog.terms import (
    Commitment,
    Contract,
    Discount,
    Entitlement,
    Fee,
    Limit,
    Plan,
    Window,
)
from metering.meters import METERS

_Row = tuple[Hashable, datetime, datetime | None, Placed, KeyPath]
#: The first instant that a catalog may name: from when what a plan says without a start holds.
_ALWAYS: Final = datetime(1970, 1, 1, tzinfo=UTC)


def plan(one: Placed, item: Plan) -> Iterator[Fault]:
    """Every fault of a plan that needs no other object to be seen."""
    fees: list[_Row] = []
    for index, fee in enumerate(item.fees):
        path: KeyPath = ("fees", index)
        yield from _fee(one, path, fee)
        if fee.per == "span":
            yield one.fault(
                (*path, "per"), "span", "is for one contract's own span; write the fee into the contract"
            )
        fees.append(_dated(one, path, fee.fee, fee))
    limits: list[_Row] = []
    for index, limit in enumerate(item.limits):
        path = ("limits", index)
        yield from _limit(one, path, limit)
        limits.append(_dated(one, path, limit.limit, limit))
    yield from _weighed_alike(one, item.limits)
    for rows in (fees, limits):
        for _, start, until, _, path in rows:
            yield from ends(one, path, start, until)
        yield from overlaps(rows)


def _dated(one: Placed, path: KeyPath, name: str, row: Fee | Limit) -> _Row:
    return name, row.effective_from or _ALWAYS, row.effective_until, one, path


def contract(one: Placed, item: Contract, pools: Mapping[str, CapacityContract]) -> Iterator[Fault]:
    """Every fault of a contract that needs no plan and no price book to be seen."""
    yield from ends(one, (), item.effective_from, item.effective_until)
    yield from _periods(one, item)
    yield from prices(one, item.prices, ())
    for index, row in enumerate(item.prices):
        yield from _inside(one, ("prices", index), item, row.effective_from, row.effective_until)
    fees: list[_Row] = []
    for index, fee in enumerate(item.fees):
        path: KeyPath = ("fees", index)
        yield from _fee(one, path, fee)
        start, until = yield from _within(one, path, item, fee.effective_from, fee.effective_until)
        if fee.per == "span" and until is None:
            yield one.fault(
                (*path, "effective_until"),
                MISSING,
                "is required: the amount is for a span; say where it ends",
            )
        fees.append((fee.fee, start, until, one, path))
    yield from overlaps(fees)
    yield from _discounts(one, item)
    yield from _commitments(one, item)
    yield from _credits(one, item)
    limits: list[_Row] = []
    for index, limit in enumerate(item.limits):
        path = ("limits", index)
        yield from _limit(one, path, limit)
        start, until = yield from _within(one, path, item, limit.effective_from, limit.effective_until)
        limits.append((limit.limit, start, until, one, path))
    yield from overlaps(limits)
    yield from _weighed_alike(one, item.limits)
    yield from _entitlements(one, item, pools)


def _periods(one: Placed, item: Contract) -> Iterator[Fault]:
    if item.billing is not None:
        if item.billing.months == 0:
            yield one.fault(
                ("billing", "months"), 0, "must be more than 0: a period is a month or several; 12 is a year"
            )
        yield from quarter_hours(one, ("billing", "zone"), item.billing.zone, item.effective_from)
    least, most = item.minimum_per_period, item.maximum_per_period
    if least is not None and most is not None and least > most:
        yield one.fault(
            ("minimum_per_period",),
            decimal_text(least),
            f"is larger than maximum_per_period ({decimal_text(most)}); lower it",
        )


def _within(
    one: Placed, path: KeyPath, item: Contract, start: datetime | None, until: datetime | None
) -> Generator[Fault, None, tuple[datetime, datetime | None]]:
    """A span that ends after it starts, inside of a contract's, which it defaults to; returns it."""
    start, until = start or item.effective_from, until or item.effective_until
    yield from ends(one, path, start, until)
    yield from _inside(one, path, item, start, until)
    return start, until


def _inside(
    one: Placed, path: KeyPath, item: Contract, start: datetime, until: datetime | None
) -> Iterator[Fault]:
    if start < item.effective_from:
        yield one.fault(
            (*path, "effective_from"),
            instant_text(start),
            f"lies before the contract's ({instant_text(item.effective_from)}); move one of them",
        )
    if item.effective_until and until and until > item.effective_until:
        yield one.fault(
            (*path, "effective_until"),
            instant_text(until),
            f"lies after the contract's ({instant_text(item.effective_until)}); move one of them",
        )


def _fee(one: Placed, path: KeyPath, fee: Fee) -> Iterator[Fault]:
    if (fee.amount is None) == (fee.amount_per_month is None):
        yield one.fault(
            (*path, "amount"),
            MISSING if fee.amount is None else decimal_text(fee.amount),
            "a fee says either `amount`, with what it is `per`, or `amount_per_month`; write one of them",
        )
    elif fee.amount is None and fee.per != "month":
        yield one.fault(
            (*path, "per"), fee.per, "does not go with amount_per_month; write `amount` in its place"
        )


# ---- discounts, commitments, credits -------------------------------------------------------------------


def _discounts(one: Placed, item: Contract) -> Iterator[Fault]:
    rows: list[_Row] = []
    for index, row in enumerate(item.discounts):
        path: KeyPath = ("discounts", index)
        start, until = yield from _within(one, path, item, row.effective_from, row.effective_until)
        if (row.ratio is None) == (row.amount_per_period is None):
            yield one.fault(
                path,
                row.discount,
                "takes off either a `ratio` or an `amount_per_period`; write one of them",
            )
        elif row.amount_per_period is not None and row.product is not None:
            yield one.fault(
                (*path, "product"),
                row.product,
                "a fixed amount is off the whole contract; leave the product out, or write a ratio",
            )
        rows += [(group, start, until, one, path) for group in _places(row)]
    yield from dict.fromkeys(overlaps(rows))


def _places(row: Discount) -> Iterator[Hashable]:
    """What a discount takes in its span: its name, and where it is a ratio its product or the whole contract."""
    yield "name", row.discount, row.product
    if row.ratio is not None:
        yield "ratio", row.product


def _commitments(one: Placed, item: Contract) -> Iterator[Fault]:
    for index, row in enumerate(item.commitments):
        path: KeyPath = ("commitments", index)
        if row.commitment in [other.commitment for other in item.commitments[:index]]:
            yield one.fault(
                (*path, "commitment"),
                row.commitment,
                "is the name of another one of this contract; write its tranches there, or choose another name",
            )
        for other in item.commitments[:index]:
            shared = set(row.meters) & set(other.meters)
            if shared and set(row.meters) != set(other.meters) and _meet(row, other):
                yield one.fault(
                    (*path, "meters"),
                    ", ".join(row.meters),
                    f"count {', '.join(sorted(shared))} that commitment {other.commitment} counts too, beside other "
                    "meters: no unit counts twice; name the same meters in both, or none of each other's",
                )
        yield from _tranches(one, path, item, row)
        yield from _rolled_over(one, path, row)


def _meet(one: Commitment, other: Commitment) -> bool:
    """Whether there may be usage that counts toward both: of one product, at one time."""
    (start, until), (other_start, other_until) = (
        (
            min(tranche.effective_from for tranche in each.tranches),
            max(
                each.roll_over_until or _ALWAYS,
                *(tranche.effective_until or OPEN for tranche in each.tranches),
            ),
        )
        for each in (one, other)
    )
    if max(start, other_start) >= min(until, other_until):
        return False
    return not one.products or not other.products or bool(set(one.products) & set(other.products))


def _tranches(one: Placed, path: KeyPath, item: Contract, row: Commitment) -> Iterator[Fault]:
    in_units = row.tranches[0].units is not None
    for index, tranche in enumerate(row.tranches):
        here: KeyPath = (*path, "tranches", index)
        yield from _inside(one, here, item, tranche.effective_from, tranche.effective_until)
        if tranche.effective_until is None:
            yield one.fault(
                (*here, "effective_until"), MISSING, "is required: what is committed is due at an end; add it"
            )
        if (tranche.amount is None) == (tranche.units is None):
            yield one.fault(
                here,
                MISSING if tranche.amount is None else decimal_text(tranche.amount),
                "must commit either an `amount` of money or `units`; write one of them",
            )
        elif (tranche.units is not None) != in_units:
            yield one.fault(
                here,
                tranche.units if tranche.amount is None else decimal_text(tranche.amount),
                "the tranches of a commitment are all in money or all in units; write two commitments",
            )
        elif not (tranche.amount or tranche.units):
            yield one.fault(here, 0, "must be more than 0; take the tranche out")
    yield from spans(one, (*path, "tranches"), row.tranches, lambda tranche: ())
    yield from meters_known(one, (*path, "meters"), row.meters)
    if in_units and not row.meters:
        yield one.fault(
            (*path, "meters"), MISSING, "is required: name the meters of which units are committed; add it"
        )
    if row.meters and not in_units:
        yield one.fault(
            (*path, "meters"),
            row.meters,
            "only holds where units are committed; take it out, or write `units` in place of amounts",
        )


def _rolled_over(one: Placed, path: KeyPath, row: Commitment) -> Iterator[Fault]:
    if row.shortfall_rule != "roll_over":
        cap, until = row.roll_over_cap_ratio, row.roll_over_until
        given = {
            "roll_over_cap_ratio": None if cap is None else decimal_text(cap),
            "roll_over_until": until and instant_text(until),
        }
        for field, value in given.items():
            if value is not None:
                yield one.fault(
                    (*path, field),
                    value,
                    f"only holds with `shortfall_rule: roll_over`, not {row.shortfall_rule}",
                )
    elif row.roll_over_until is not None:
        earliest = min(tranche.effective_until or OPEN for tranche in row.tranches)
        if row.roll_over_until <= earliest:
            yield one.fault(
                (*path, "roll_over_until"),
                instant_text(row.roll_over_until),
                f"nothing could roll over: the first tranche ends at {instant_text(earliest)}; name a later one",
            )


def _credits(one: Placed, item: Contract) -> Iterator[Fault]:
    for index, row in enumerate(item.credits):
        path: KeyPath = ("credits", index)
        yield from _within(one, path, item, row.effective_from, row.effective_until)
        if row.amount == 0:
            yield one.fault((*path, "amount"), 0, "must be more than 0; take the credit out")
        if row.credit in [other.credit for other in item.credits[:index]]:
            yield one.fault(
                (*path, "credit"),
                row.credit,
                "is the name of another one of this contract; choose another name",
            )


# ---- limits and entitlements ---------------------------------------------------------------------------


def _limit(one: Placed, path: KeyPath, limit: Limit) -> Iterator[Fault]:
    yield from _window(one, (*path, "window"), limit.window)
    if limit.quantity == 0:
        yield one.fault(
            (*path, "quantity"), 0, "must be more than 0; a limit of 0 would turn everything away"
        )
    for meter in limit.weights:
        if meter not in COUNTED_METERS:
            yield one.fault(
                (*path, "weights", meter),
                meter,
                f"is not a meter; meters are {', '.join(METERS)} and {REQUESTS}",
            )
    if not any(limit.weights.values()):
        yield one.fault((*path, "weights"), MISSING, "counts nothing; give a meter a weight above 0")


def _window(one: Placed, path: KeyPath, window: Window) -> Iterator[Fault]:
    lengths = {"anchored_minutes": window.anchored_minutes, "fixed_minutes": window.fixed_minutes}
    said = [name for name, length in lengths.items() if length is not None]
    said += ["minute"] if window.minute else []
    if len(said) != 1:
        yield one.fault(
            path,
            " and ".join(said) if said else MISSING,
            "must be one of `minute: true`, `anchored_minutes` (from the first use on) or `fixed_minutes` with "
            "an `anchor`",
        )
    for name, length in lengths.items():
        if length == 0:
            yield one.fault(
                (*path, name), 0, "must be more than 0: in a window without length nothing can be used"
            )
    if window.fixed_minutes is not None and window.anchor is None:
        yield one.fault(
            (*path, "anchor"), MISSING, "is required: say when one of the fixed windows begins; add it"
        )
    if window.anchor is not None and window.fixed_minutes is None:
        yield one.fault(
            (*path, "anchor"),
            instant_text(window.anchor),
            "only holds with `fixed_minutes`: an anchored window begins at the first use; take it out",
        )


def _weighed_alike(one: Placed, limits: Sequence[Limit]) -> Iterator[Fault]:
    """The rows of one limit over time weigh the same, for one table of weights serves the limit."""
    first: dict[str, tuple[int, Limit]] = {}
    for index, row in enumerate(limits):
        before, same = first.setdefault(row.limit, (index, row))
        if same.weights != row.weights:
            line = one.document.line((*one.path, "limits", before))
            yield one.fault(
                ("limits", index, "weights"),
                row.limit,
                f"are not those of the same limit at {one.document.file}:{line}; a limit weighs the same over its "
                "life: write the same, or choose another name",
            )


def _entitlements(one: Placed, item: Contract, pools: Mapping[str, CapacityContract]) -> Iterator[Fault]:
    promised: list[_Row] = []
    for index, row in enumerate(item.entitlements):
        path: KeyPath = ("entitlements", index)
        start, until = yield from _within(one, path, item, row.effective_from, row.effective_until)
        dimensions = pools[row.pool].dimensions if row.pool in pools else []
        only = dimensions[0].dimension if len(dimensions) == 1 else None
        promised.append(((row.pool, row.dimension or only), start, until, one, path))
        yield from _promised(one, path, row)
    yield from overlaps(promised)


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


# ---- between a contract, its plan and its book ----------------------------------------------------------


def terms_of(
    one: Placed,
    item: Contract,
    plans: Mapping[str, Plan],
    books: Mapping[str, PriceBook],
) -> Iterator[Fault]:
    """What a contract says against the book that it or its plan names. Unknown names are listed elsewhere."""
    book_name = item.price_book or (
        plans[item.plan].price_book if item.plan is not None and item.plan in plans else None
    )
    if item.plan is None and item.price_book is None:
        yield one.fault(
            ("price_book",), MISSING, "is required: name a price book, or a `plan`, which has one"
        )
    own_book = f"{book_name} for {item.contract}"
    if item.prices and own_book in books:
        yield one.fault(
            ("contract",),
            item.contract,
            f"the prices of this contract make a book {own_book!r}, and there is a price book of this name; "
            "rename one of them",
        )
    book = books.get(book_name or "")
    if book is None:
        return
    yield from hours_known(one, item.prices, book)
    for index, row in enumerate(item.commitments):
        over = books.get(row.overage_book or "")
        if over is not None and over.currency != book.currency:
            yield one.fault(
                ("commitments", index, "overage_book"),
                over.book,
                f"is in {over.currency}, and the contract's book {book.book} in {book.currency}; a commitment "
                f"is in the currency of its contract: name a book in {book.currency}",
            )
    if any(row.of == "cost" for row in book.percentages):
        given = {
            "minimum_per_period": item.minimum_per_period is not None,
            "maximum_per_period": item.maximum_per_period is not None,
            "discounts": any(row.amount_per_period is not None for row in item.discounts),
            "commitments": bool(item.commitments),
            "credits": bool(item.credits),
        }
        for field in (name for name, said in given.items() if said):
            yield one.fault(
                (field,),
                book.book,
                "charges a percentage of cost (cost-plus), which is only known with the bills, so nothing may be "
                f"measured on it: take {field} out, or name another book",
            )


def products_known(one: Placed, item: Contract | Plan, products: Sequence[str]) -> Iterator[Fault]:
    """Products that discounts, commitments, credits and limits are about are sold somewhere in this catalog."""
    named: list[tuple[KeyPath, str]] = []
    if isinstance(item, Contract):
        for index, row in enumerate(item.discounts):
            named += [(("discounts", index, "product"), row.product)] if row.product is not None else []
        for section in ("commitments", "credits"):
            for index, part in enumerate(getattr(item, section)):
                named += [
                    ((section, index, "products", place), product)
                    for place, product in enumerate(part.products)
                ]
    for index, limit in enumerate(item.limits):
        named += [(("limits", index, "products", place), name) for place, name in enumerate(limit.products)]
    for path, product in named:
        yield from known(one, path, product, products, "product")
