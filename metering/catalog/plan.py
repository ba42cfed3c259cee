"""What applying a folder would change: added, changed and ended objects, and since when usage is affected."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Final

from metering.catalog.books import books
from metering.catalog.fields import instant_text
from metering.catalog.objects import CatalogObjects, Entry, body, length_prefixed
from metering.catalog.promised import oversubscribed
from metering.catalog.spans import OPEN, Interval, minus
from metering.frames.books import Books
from metering.periods import ceil_to_quarter

#: Fields that, with effective_from, tell the rows of one list apart; the others are what may change.
_ROW_NAMES: Final = (
    "product",
    "model",
    "models",
    "tier",
    "region",
    "above_input_tokens",
    "fee",
    "pool",
    "dimension",
    "by",
    "value",
    "carve_out",
    "reason",
    *("hours", "days", "meters", "charge", "discount", "commitment", "credit", "limit"),
)
#: What a pool says of buying it: no number of a report about the past depends on it.
_TERMS_OF_BUYING: Final = (
    *("units_min", "units_sold_in", "lead_time_days", "term_from", "term_until"),
    *("renewal_months", "notice_days"),
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
Key = tuple[str, str]


@dataclass(frozen=True)
class Change:
    """One object that would get a row in the next revision. `before` is None when it is new."""

    mark: str  # + added, ~ changed, - ends
    before: Entry | None
    after: Entry
    details: tuple[str, ...] = ()
    #: The first instant from which reports could change, where it lies before the plan; else None.
    affects_since: datetime | None = None

    @property
    def title(self) -> str:
        """Mark, kind and name."""
        return f"{self.mark} {self.after.item.kind.replace('_', ' ')} {self.after.item.object_name}"


@dataclass(frozen=True)
class Plan:
    """The changes between the catalog as of `base_revision` and a folder, sorted by kind and name."""

    base_revision: int
    ends_at: datetime
    changes: tuple[Change, ...]
    #: Objects that nobody edited, whose rows change because of others, and since when.
    side_effects: tuple[tuple[Key, datetime], ...] = ()
    #: What is allowed and worth knowing before it is applied.
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> bytes:
        """SHA-256 over what each change starts from and leads to: equal for plans that say the same."""
        parts = [b"catalog-plan/1"]
        for change in self.changes:
            for entry in (change.before, change.after):
                parts.append(b"" if entry is None else entry.digest())
                parts.append(ended_text(entry).encode())
        return hashlib.sha256(length_prefixed(*parts)).digest()

    def lines(self) -> list[str]:
        """The plan as a person reads it; the first character of a line says what it is."""
        if not self.changes:
            return [f"no changes: catalog revision {self.base_revision} says the same as the folder"]
        lines = []
        for change in self.changes:
            lines.append(change.title)
            lines += [f"    {detail}" for detail in change.details]
            if change.affects_since is not None:
                lines.append(f"  ! {_affects(change.after.item.kind, change.affects_since)}")
        for (kind, name), since in self.side_effects:
            lines.append(
                f"  ! {kind.replace('_', ' ')} {name}, through the changes above: {_affects(kind, since)}"
            )
        lines += [f"  * note: {note}" for note in self.notes]
        count = {mark: sum(change.mark == mark for change in self.changes) for mark in "+~-"}
        lines.append(f"{count['+']} to add, {count['~']} to change, {count['-']} to end")
        return lines


def ended_text(entry: Entry | None) -> str:
    """When an object ended, as text; empty while it is in force."""
    return "" if entry is None or entry.ended_at is None else instant_text(entry.ended_at)


def plan(applied: CatalogObjects, folder: CatalogObjects, *, base_revision: int, at: datetime) -> Plan:
    """Compare the folder with the catalog as of `base_revision`, at the instant `at` (UTC).

    What the folder no longer names ends at the first quarter hour >= `at`. Removing a row *inside* an object
    is a change of that object: it is as if the row had never been there, and the plan says since when.
    """
    ends_at = ceil_to_quarter(at)
    changes: list[Change] = []
    for key in sorted({*applied.entries, *folder.entries}):
        before, after = applied.entries.get(key), folder.entries.get(key)
        if after is None:
            assert before is not None
            if before.ended_at is None:
                detail = f"the folder no longer names it: it ends at {instant_text(ends_at)}"
                changes.append(Change("-", before, replace(before, ended_at=ends_at), (detail,)))
        elif before is None:
            changes.append(Change("+", None, after, tuple(_added(after))))
        elif before.ended_at is not None:
            details = (f"named again: it had ended at {ended_text(before)}", *_differences(before, after))
            changes.append(Change("+", before, after, details))
        elif before.digest() != after.digest():
            changes.append(Change("~", before, after, tuple(_differences(before, after))))
    draft = Plan(base_revision, ends_at, tuple(changes))
    if not changes:
        return draft
    after_all = books(result(applied, draft), base_revision + 1)
    notes = tuple(oversubscribed(after_all, at))
    if base_revision == 0:
        return replace(draft, notes=notes)
    since = _affected(books(applied, base_revision), after_all)
    backdated = {key: instant for key, instant in since.items() if instant < at}
    edited = {change.after.key for change in changes}
    return Plan(
        base_revision,
        ends_at,
        tuple(replace(change, affects_since=backdated.get(change.after.key)) for change in changes),
        tuple((key, instant) for key, instant in sorted(backdated.items()) if key not in edited),
        notes,
    )


def result(applied: CatalogObjects, made: Plan) -> CatalogObjects:
    """The catalog as it is once the plan is applied."""
    revision = made.base_revision + 1
    changed = {change.after.key: replace(change.after, catalog_revision=revision) for change in made.changes}
    return CatalogObjects({**applied.entries, **changed})


_AFFECTED: Final = {"supplier_commitment": "what is due to suppliers", "exchange_rate": "translated amounts"}


def _affects(kind: str, since: datetime) -> str:
    if since == _EPOCH:
        return "affects all usage of this model, the past included"
    what = _AFFECTED.get(kind, "usage")
    return f"affects {what} since {instant_text(since)}"


def _leaves(content: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a body under a path that names rows by what tells them apart, not by their place."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _leaves(value, f"{path} {key}".strip())
    elif isinstance(content, list) and any(isinstance(row, Mapping) for row in content):
        for place, row in enumerate(content, 1):
            # of a price of a product, `model` says how it is counted, and that may change
            names = [name for name in _ROW_NAMES if name in row and (name != "model" or "product" not in row)]
            since = [f"from {row['effective_from']}"] if "effective_from" in row else []
            label = " ".join(["/".join(_scalar(row[name]) for name in names), *since]).strip() or str(place)
            rest = {key: value for key, value in row.items() if key not in (*names, "effective_from")}
            yield from _leaves(rest, f"{path} {label}".strip())
    else:
        yield path, _scalar(content)


def _scalar(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _differences(before: Entry, after: Entry) -> Iterator[str]:
    old, new = dict(_leaves(body(before.item))), dict(_leaves(body(after.item)))
    for path in sorted({*old, *new}):
        if path not in new:
            yield f"- {path}: {old[path]}"
        elif path not in old:
            yield f"+ {path}: {new[path]}"
        elif old[path] != new[path]:
            yield f"~ {path}: {old[path]} -> {new[path]}"


def _added(after: Entry) -> Iterator[str]:
    """The plain fields of a new object on one line; its rows are counted, the file shows them."""
    fields = []
    for key, value in body(after.item).items():
        if key == after.item.name_field or value == []:
            continue
        fields.append(f"{len(value)} {key}" if isinstance(value, list) else f"{key} {value}")
    yield ", ".join(fields)


def _timelines(made: Books) -> dict[Key, dict[tuple[Any, ...], list[Interval]]]:
    """Per object, every distinct content of its rows with the spans in which it holds.

    Tiers and hours hold when a rule that has them does, weights when their limit does. Of a book of a contract's
    own what differs from the book that it was made of is the contract's.
    """
    own_books = {
        book: (contract, book.removesuffix(f" for {contract}"))
        for contract, book in made.contracts.select("contract", "price_book").iter_rows()
        if book.endswith(f" for {contract}")
    }
    dates = ("effective_from", "effective_until")
    rules, limits = made.price_rules, made.limits.select("contract", "limit", *dates)
    named_hours = rules.select("book", "hours", *dates).unique()
    sources = [
        ("customer", "customer", made.customers),
        ("model", "model", made.models),
        ("contract", "contract", made.contracts),
        ("contract", "contract", made.fees),
        ("price_book", "book", made.price_books),
        ("price_book", "book", rules),
        ("price_book", "book", rules.select("book", "rule", *dates).join(made.price_tiers, on="rule")),
        ("price_book", "book", named_hours.join(made.price_hours, on=["book", "hours"])),
        ("price_book", "book", made.percentages),
        ("cost_book", "book", made.cost_books),
        ("capacity_contract", "pool", made.pools),
        ("capacity_contract", "pool", made.capacity_steps),
        ("capacity_contract", "pool", made.capacity_fees),
        ("capacity_contract", "pool", made.burndown),
        ("capacity_contract", "pool", made.multipliers),
        ("capacity_contract", "pool", made.set_aside),
        ("contract", "contract", made.entitlements),
        ("contract", "contract", made.contract_terms),
        ("contract", "contract", made.discounts),
        ("contract", "contract", made.commitments),
        ("contract", "contract", made.credit_grants),
        ("contract", "contract", made.limits),
        ("contract", "contract", limits.join(made.limit_weights, on=["contract", "limit"])),
        ("supplier_commitment", "commitment", made.supplier_commitments),
        ("exchange_rate", "currency", made.exchange_rates),
    ]
    lines: dict[Key, dict[tuple[Any, ...], list[Interval]]] = {}
    of_own: dict[tuple[str, str], dict[tuple[Any, ...], list[Interval]]] = {}
    for place, (kind, column, frame) in enumerate(sources):
        for row in frame.iter_rows(named=True):
            name = row[column]
            if kind == "model":
                name = f"{row['provider']}/{row['model']}"
            elif kind == "exchange_rate":
                name = f"{row['currency']}/{row['into']}/{row['kind']}"
            span = (row.pop("effective_from", _EPOCH), row.pop("effective_until", None) or OPEN)
            if frame is made.pools:
                span = (row["term_from"], OPEN)
                row = {key: value for key, value in row.items() if key not in _TERMS_OF_BUYING}
            if kind in ("customer", "model"):
                row.pop("name")
            own = own_books.get(row.get("price_book", row.get("book", "")))
            if own is not None:
                row["price_book" if "price_book" in row else "book"] = own[1]
            if "denominator" in row:
                numerator = "weight" if "weight" in row else "numerator"
                row[numerator] = Fraction(row[numerator], row.pop("denominator"))
            said = [tuple(value) if isinstance(value, list) else value for value in row.values()]
            into = lines.setdefault((kind, name), {})
            if own is not None and kind == "price_book":
                into = of_own.setdefault(own, {})
            into.setdefault((place, *said), []).append(span)
    for (contract, book), contents in of_own.items():
        for content, spans in contents.items():
            if left := minus(spans, lines.get(("price_book", book), {}).get(content, [])):
                lines.setdefault(("contract", contract), {}).setdefault(content, []).extend(left)
    return lines


def _affected(before: Books, after: Books) -> dict[Key, datetime]:
    """Per object whose rows differ, the first instant at which they do."""
    old, new = _timelines(before), _timelines(after)
    since: dict[Key, datetime] = {}
    for key in {*old, *new}:
        was, now = old.get(key, {}), new.get(key, {})
        for content in {*was, *now}:
            a, b = was.get(content, []), now.get(content, [])
            for start, _ in (*minus(a, b), *minus(b, a)):
                since[key] = min(start, since.get(key, start))
    return since
