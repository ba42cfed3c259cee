"""FOCUS cost-and-usage files as bills: which column becomes what, and which rows are no billed cost.

BilledCost is what enters. EffectiveCost is the supplier's own amortisation of what it billed: it never enters,
for recognised cost follows the schedule of our contract; its sum is told beside. ListCost and ContractedCost
are prices, not bills. Rows without billed cost (usage that a commitment covers) and tax are left out and told.
"""

import re
from collections.abc import Mapping as Map
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final

from metering.bills.rows import Draft, Table
from metering.catalog.documents import Document, Fault, read_text
from metering.catalog.fields import NAME_BYTES_MAX, PLAIN_NUMBER, decimal_text
from metering.money import QUANTUM

#: What each field of a line is read from, the first of the columns that is filled.
_COLUMNS: Final[Map[str, tuple[str, ...]]] = {
    "amount": ("BilledCost",),
    "currency": ("BillingCurrency",),
    "category": ("ChargeCategory",),
    "service_from": ("ChargePeriodStart",),
    "service_until": ("ChargePeriodEnd",),
    "supplier": ("InvoiceIssuerName", "ProviderName", "ServiceProviderName"),
    "document": ("InvoiceId", "BillingPeriodStart"),
    "description": ("ChargeDescription",),
}
_IDS: Final = ("CommitmentDiscountId", "CapacityReservationId", "ResourceId")
_CATEGORIES: Final = {
    "Usage": "charge", "Purchase": "charge", "Credit": "credit", "Adjustment": "true_up", "Tax": "tax",
}  # fmt: skip
#: Columns that only these files have.
_MARKS: Final = frozenset({"BilledCost", "EffectiveCost", "ChargeCategory", "ChargePeriodStart"})
_OTHERWISE: Final = ("overhead", "on_demand")
_DESCRIPTION_MAX: Final = 200
_US_DATE: Final = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{2}|\d{4})")
_SCIENTIFIC: Final = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?[eE][-+]?[0-9]{1,2}")
#: For every number that a cell may hold: a context of fewer digits refuses to round it.
_EXACT: Final = Context(prec=2 * NAME_BYTES_MAX)
_US_NUMBER: Final = re.compile(r"(-?)\$?(-?)(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?")
REMEDY_SUPPLIER: Final = "; say which one it is under `suppliers:` in the --map file"
REMEDY_LOCALE: Final = (
    "; `locale: en-US` in the --map file reads 5/1/25 (May 1st) and $1,234.50, as spreadsheets write them"
)


@dataclass(frozen=True)
class Rule:
    """A row whose `column` holds `value` is about this object."""

    column: str
    value: str
    object_kind: str
    object: str | None


@dataclass(frozen=True)
class Mapping:
    """How names in a supplier's file are ours: what a --map file says."""

    suppliers: Map[str, str] = field(default_factory=dict)
    objects: Sequence[Rule] = ()
    constants: Map[str, str] = field(default_factory=dict)  # columns that the file lacks
    otherwise: str | None = None  # what a row is about that nothing names
    locale: str | None = None


NO_MAPPING: Final = Mapping()
_KEYS: Final = ("suppliers", "objects", "constants", "otherwise", "locale")


def read_mapping(file: str, content: bytes) -> tuple[Mapping, list[Fault]]:
    """Read a --map file: YAML of `suppliers`, `objects`, `constants`, `otherwise`, `locale`, each optional."""
    document = read_text(file, content)
    if document.faults:
        return NO_MAPPING, list(document.faults)
    if not isinstance(document.content, dict):
        return NO_MAPPING, [
            document.fault((), document.content, f"is a mapping of any of {', '.join(_KEYS)}")
        ]
    said = document.content
    faults = [
        document.fault((name,), said[name], f"there is no such key; known are {', '.join(_KEYS)}")
        for name in said
        if name not in _KEYS
    ]
    names: dict[str, dict[str, str]] = {}
    for key in ("suppliers", "constants"):
        value = said.get(key) or {}
        if isinstance(value, dict) and all(isinstance(one, str | Decimal) for one in value.values()):
            names[key] = {name: str(one) for name, one in value.items()}
        else:
            faults.append(document.fault((key,), value, "is a mapping of names to names"))
    for key, allowed in (("otherwise", _OTHERWISE), ("locale", ("en-US",))):
        if said.get(key) is not None and said[key] not in allowed:
            faults.append(document.fault((key,), said[key], f"is none of {', '.join(allowed)}"))
    rules = _rules(document, said.get("objects") or [], faults)
    if faults:
        return NO_MAPPING, faults
    return Mapping(
        names["suppliers"], rules, names["constants"], said.get("otherwise"), said.get("locale")
    ), []


def _rules(document: Document, objects: object, faults: list[Fault]) -> list[Rule]:
    shape = "is {column, value, object_kind, object}; object is left out of overhead"
    if not isinstance(objects, list):
        faults.append(document.fault(("objects",), objects, f"is a list; each {shape}"))
        return []
    rules = []
    for at, rule in enumerate(objects):
        if (
            not isinstance(rule, dict)
            or not {"column", "value", "object_kind"}
            <= rule.keys()
            <= {"column", "value", "object_kind", "object"}
            or not all(isinstance(one, str | Decimal) for one in rule.values())
        ):
            faults.append(document.fault(("objects", at), rule, shape))
            continue
        said = {name: str(one) for name, one in rule.items()}
        rules.append(Rule(said["column"], said["value"], said["object_kind"], said.get("object")))
    return rules


def is_focus(header: Sequence[str]) -> bool:
    """The header is that of a FOCUS file, whole or in part."""
    return bool(_MARKS & set(header))


def drafts(
    file: str,
    table: Table,
    mapping: Mapping,
    pools: Map[str, str],
    commitments: Map[str, str],
    models: AbstractSet[tuple[str, str]],
) -> tuple[list[Draft], list[Fault], tuple[str, ...]]:
    """The rows that are billed, as lines of bills; what is wrong; and what was left out.

    A document is an invoice or, where the file names none, a billing period. A row is about the first of: what
    a rule of the mapping says; the pool, commitment or model that one of its ids names. A credit that names
    none is one of the whole invoice.
    """
    have = {*table.header, *mapping.constants}
    missing = [
        Fault(file, 1, " or ".join(columns), "", "the column is missing: " + _why_needed(columns[0]))
        for name, columns in _COLUMNS.items()
        if name != "description" and not have & set(columns)
    ]
    if missing:
        return [], missing, ()
    found: list[Draft] = []
    faults: list[Fault] = []
    left_out: dict[str, list[Decimal]] = {"tax": [], "no billed cost": []}
    effective = Decimal(0)
    rounded: list[Decimal] = []
    for line, raw in table.rows:
        row = {
            name: cell for name, cell in {**mapping.constants, **raw}.items() if cell not in ("null", "NULL")
        }
        draft = _draft(line, row, mapping)
        amount = draft.cells.get("amount", "")
        number = Decimal(amount) if PLAIN_NUMBER.fullmatch(amount) else None
        if number is not None and len(amount) <= NAME_BYTES_MAX and (kept := _to_places(number)) != number:
            rounded.append(_EXACT.subtract(kept, number))
            number, draft = kept, replace(draft, cells={**draft.cells, "amount": format(kept, "f")})
        told = row.get("ChargeCategory", "")
        if told not in _CATEGORIES:
            faults.append(draft.fault(file, "category", told, f"is none of {', '.join(_CATEGORIES)}"))
            continue
        amortised = _number(row.get("EffectiveCost", ""), mapping)
        effective += Decimal(amortised) if PLAIN_NUMBER.fullmatch(amortised) else 0
        if number is not None and (told == "Tax" or not number):
            left_out["tax" if told == "Tax" else "no billed cost"].append(number)
            continue
        category = _category(told, row.get("ChargeClass"), number)
        kind, name = _object(row, draft.cells.get("supplier", ""), mapping, pools, commitments, models)
        if kind is None and told == "Credit":
            kind = "invoice"
        if kind is None:
            ids = ", ".join(f"{one} {row[one]!r}" for one in _IDS if one in row) or "it has no id"
            problem = (
                f"nothing says what this row is for ({ids}): no pool, commitment or model of that name. Say it "
                "under `objects:` in the --map file, or `otherwise: overhead` there for all such rows"
            )
            faults.append(Fault(file, line, "/".join(_IDS), "", problem))
            continue
        more = {"category": category, "object_kind": kind} | ({} if name is None else {"object": name})
        found.append(Draft(line, {**draft.cells, **more}, draft.columns))
    if not faults and not found:
        problem = "no row has a billed cost: nothing of this file was invoiced. EffectiveCost is amortised, not billed"
        faults.append(Fault(file, 1, "BilledCost", "", problem))
    return found, faults, tuple(_notes(left_out, effective, rounded))


def _why_needed(column: str) -> str:
    return (
        "FOCUS files have it; ask the supplier for the whole file, or say what stands in all of its rows under "
        f"`constants: {{{column}: ...}}` in the --map file"
    )


def _draft(line: int, row: Map[str, str], mapping: Mapping) -> Draft:
    cells: dict[str, str] = {"line": str(line)}
    columns: dict[str, str] = {"object": "/".join(_IDS)}
    for name, candidates in _COLUMNS.items():
        column = next((one for one in candidates if one in row), candidates[0])
        columns[name] = column
        if column in row:
            cells[name] = row[column]
    for name in ("service_from", "service_until"):
        if name in cells:
            cells[name] = _date(cells[name], mapping)
    if "amount" in cells:
        cells["amount"] = _number(cells["amount"], mapping)
    if columns["document"] == "BillingPeriodStart" and "document" in cells:
        cells["document"] = _date(cells["document"], mapping)[: len("2026-10")]
    if "supplier" in cells:
        cells["supplier"] = mapping.suppliers.get(cells["supplier"], cells["supplier"])
    if "description" in cells:
        # ours to shorten: it names nothing
        text = "".join(letter if letter.isprintable() else " " for letter in cells["description"])
        cells["description"] = text[:_DESCRIPTION_MAX].strip()
    return Draft(line, cells, columns)


def _category(told: str, charge_class: str | None, amount: Decimal | None) -> str:
    if charge_class == "Correction":
        return "true_up"
    category = _CATEGORIES[told]
    if amount is None or (category == "charge") == (amount >= 0):
        return category
    # usage that is given back is a credit; a credit that is taken back is none
    return "credit" if category == "charge" else "true_up"


def _object(
    row: Map[str, str],
    supplier: str,
    mapping: Mapping,
    pools: Map[str, str],
    commitments: Map[str, str],
    models: AbstractSet[tuple[str, str]],
) -> tuple[str | None, str | None]:
    for rule in mapping.objects:
        if row.get(rule.column) == rule.value:
            return rule.object_kind, rule.object
    for column in _IDS:
        name = row.get(column)
        if name is None:
            continue
        if name in pools:
            return "pool", name
        if name in commitments:
            return "commitment", name
        if (supplier, name) in models:
            return "on_demand", name
    if row.get("ChargeCategory") != "Credit" and mapping.otherwise is not None:
        return mapping.otherwise, None
    return None, None


def _date(text: str, mapping: Mapping) -> str:
    match = _US_DATE.fullmatch(text) if mapping.locale == "en-US" else None
    if match is None:
        return text
    month, day, year = (int(part) for part in match.groups())
    try:
        return datetime(year + 2000 if year < 100 else year, month, day).date().isoformat()  # noqa: DTZ001
    except ValueError:
        return text


def _to_places(number: Decimal) -> Decimal:
    """The number to the places of a quantum, half-even: exports divide prices, no invoice is finer."""
    return number.quantize(QUANTUM, ROUND_HALF_EVEN, _EXACT)


def _number(text: str, mapping: Mapping) -> str:
    if _SCIENTIFIC.fullmatch(text):
        return format(Decimal(text), "f")
    match = _US_NUMBER.fullmatch(text) if mapping.locale == "en-US" else None
    if match is None:
        return text
    before, after, whole, rest = match.groups()
    return (before or after) + whole.replace(",", "") + (rest or "")


def _notes(
    left_out: Map[str, Sequence[Decimal]], effective: Decimal, rounded: Sequence[Decimal]
) -> list[str]:
    notes = []
    if rounded:
        notes.append(
            f"{len(rounded)} amounts have more than 12 decimals and are rounded to 12, which changes their sum by "
            f"{sum(rounded, Decimal(0)):f}"
        )
    if taxed := left_out["tax"]:
        notes.append(
            f"{len(taxed)} rows of tax, {decimal_text(sum(taxed, Decimal(0)))}, are left out: tax is no cost"
        )
    if free := left_out["no billed cost"]:
        notes.append(
            f"{len(free)} rows without billed cost are left out: what covers them was billed elsewhere"
        )
    notes.append(f"EffectiveCost sums to {decimal_text(effective)}: amortised by the supplier, not entered")
    return notes
