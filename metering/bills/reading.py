"""A file of bills, strictly: every document sound and of things that the catalog names, or what is wrong."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import PurePath
from typing import Final
from zoneinfo import ZoneInfo

import polars as pl

from metering.bills import focus
from metering.bills.document import CATEGORIES, OBJECT_KINDS, Bill, BillLine
from metering.bills.rows import Draft, Table, read_csv, read_parquet
from metering.bills.splitting import split_over
from metering.catalog.documents import Document, Fault, read_text
from metering.catalog.fields import NAME_BYTES_MAX, PLAIN_NUMBER
from metering.frames.books import Books
from metering.money import AMOUNT_MAX
from metering.periods import floor_to_quarter

#: A credit of a whole invoice: it has no object and is split over the charges of its document.
INVOICE: Final = "invoice"
OF_DOCUMENT: Final = ("supplier", "document", "currency")
OF_LINE: Final = (
    *("line", "category", "object_kind", "object", "amount", "service_from", "service_until", "description"),
)
COLUMNS: Final = (*OF_DOCUMENT, *OF_LINE, "posted_month")
_OPTIONAL: Final = ("object", "description", "posted_month")
REQUIRED: Final = tuple(name for name in COLUMNS if name not in _OPTIONAL)
_DECIMALS_MAX: Final = 12
_INSTANT: Final = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:?\d{2})?)?")
#: What names of lines that come of corrections end in.
_RESERVED: Final = ("(revision ", "(reversed by revision ")


@dataclass(frozen=True)
class Known:
    """What a bill may name: pools and commitments with their suppliers, models with who serves them for a price."""

    pools: Mapping[str, str] = field(default_factory=dict)
    commitments: Mapping[str, str] = field(default_factory=dict)
    models: frozenset[tuple[str, str]] = frozenset()  # (provider, model)

    @classmethod
    def of(cls, books: Books) -> "Known":
        """That of a catalog."""
        return cls(
            dict(books.pools.select("pool", "supplier").iter_rows()),
            dict(books.supplier_commitments.select("commitment", "supplier").unique().iter_rows()),
            frozenset(
                books.models.filter(pl.col("cost_book").is_not_null()).select("provider", "model").iter_rows()
            ),
        )

    @property
    def suppliers(self) -> list[str]:
        """Everybody whom we may owe."""
        serving = {provider for provider, _ in self.models}
        return sorted({*self.pools.values(), *self.commitments.values(), *serving})


@dataclass(frozen=True)
class BillFile:
    """What a file holds: documents, or faults (never both), and what a reader should know of how it was read."""

    bills: tuple[Bill, ...] = ()
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()


def read_bills(
    file: str,
    content: bytes,
    known: Known,
    *,
    zone: ZoneInfo | None = None,
    mapping: focus.Mapping = focus.NO_MAPPING,
    lines_max: int,
) -> BillFile:
    """Read a file by what it is: YAML, CSV of ours, or a FOCUS cost-and-usage file as CSV or Parquet.

    A time without a zone is of `zone`, or refused where that is None; a date is a UTC day. All documents are
    sound or none is taken.
    """
    ending = PurePath(file).suffix.lower()
    notes: tuple[str, ...] = ()
    if ending in (".yaml", ".yml"):
        drafts, faults = _yaml_drafts(read_text(file, content))
    else:
        table = read_parquet(file, content) if ending == ".parquet" else read_csv(file, content)
        if table.faults:
            return BillFile(faults=table.faults)
        if ending == ".parquet" or focus.is_focus(table.header):
            drafts, faults, notes = focus.drafts(
                file, table, mapping, known.pools, known.commitments, known.models
            )
        else:
            drafts, faults = _csv_drafts(file, table)
    if not faults and not drafts:
        faults = [Fault(file, 0, "", "", "holds no line of a bill")]
    if len(drafts) > lines_max:
        problem = (
            f"has {len(drafts):,} lines; at most {lines_max:,} enter at once (METERING_BILL_LINES_MAX): sum them by "
            "day and object, or cut the file by document"
        )
        faults = [Fault(file, 0, "", "", problem)]
    if faults:
        return BillFile(faults=tuple(faults))
    bills, faults = _bills(file, drafts, known, zone, lines_max)
    faults.sort(key=lambda fault: fault.line)
    return BillFile(faults=tuple(faults)) if faults else BillFile(tuple(bills), notes=notes)


def _csv_drafts(file: str, table: Table) -> tuple[list[Draft], list[Fault]]:
    faults = [
        Fault(file, 1, name, "", f"there is no such column; known are {', '.join(COLUMNS)}")
        for name in table.header
        if name not in COLUMNS
    ] + [
        Fault(file, 1, name, "", "the column is missing; every line of a bill has one")
        for name in REQUIRED
        if name not in table.header
    ]
    return [Draft(line, cells) for line, cells in table.rows], faults


def _yaml_drafts(document: Document) -> tuple[list[Draft], list[Fault]]:
    if document.faults:
        return [], list(document.faults)
    content = document.content
    if not (isinstance(content, dict) and list(content) == ["bills"] and isinstance(content["bills"], list)):
        return [], [
            document.fault((), content, "begins with `bills:`, a list of documents, and has nothing else")
        ]
    drafts: list[Draft] = []
    faults: list[Fault] = []
    for at, bill in enumerate(content["bills"]):
        place = ("bills", at)
        if not isinstance(bill, dict) or not isinstance(bill.get("lines"), list):
            known = ", ".join((*OF_DOCUMENT, "posted_month"))
            faults.append(document.fault(place, bill, f"is a document: {known}, and a list of lines"))
            continue
        head = {name: value for name, value in bill.items() if name != "lines"}
        faults += _unknown(document, place, head, (*OF_DOCUMENT, "posted_month"))
        for number, line in enumerate(bill["lines"]):
            where = (*place, "lines", number)
            if not isinstance(line, dict):
                faults.append(document.fault(where, line, f"is a line: {', '.join(OF_LINE)}"))
                continue
            faults += _unknown(document, where, line, OF_LINE)
            cells = {
                name: format(value, "f") if isinstance(value, Decimal) else str(value).strip()
                for name, value in {**head, **line}.items()
                if value is not None and str(value).strip()
            }
            drafts.append(Draft(document.line(where), cells))
    return drafts, faults


def _unknown(
    document: Document, place: tuple[str | int, ...], content: Mapping[str, object], known: Sequence[str]
) -> Iterator[Fault]:
    for name, value in content.items():
        if name not in known:
            yield document.fault(
                (*place, name), value, f"there is no such field; known are {', '.join(known)}"
            )
        elif isinstance(value, dict | list):
            yield document.fault((*place, name), value, "is a plain value")


def _bills(
    file: str, drafts: Sequence[Draft], known: Known, zone: ZoneInfo | None, lines_max: int
) -> tuple[list[Bill], list[Fault]]:
    faults: list[Fault] = []
    documents: dict[tuple[str, str], list[tuple[Draft, BillLine]]] = {}
    for draft in drafts:
        wrong = [*_text_faults(file, draft), *_object_faults(file, draft, known)]
        read = _read_values(file, draft, zone, wrong)
        faults += wrong
        if read is not None and not wrong:
            key = draft.cells["supplier"], draft.cells["document"]
            documents.setdefault(key, []).append((draft, read))
    if faults:
        return [], faults
    faults = [fault for lines in documents.values() for fault in _split_faults(file, lines, lines_max)]
    if faults:
        return [], faults
    bills = [
        _bill(file, supplier, document, lines, faults) for (supplier, document), lines in documents.items()
    ]
    return bills, faults


def _text_faults(file: str, draft: Draft) -> Iterator[Fault]:
    cells = draft.cells
    for name in REQUIRED:
        if name not in cells:
            yield draft.fault(file, name, "", "is empty; every line of a bill has one")
    for name, cell in cells.items():
        limit = 5 * NAME_BYTES_MAX if name == "description" else NAME_BYTES_MAX
        if len(cell.encode()) > limit:
            yield draft.fault(
                file, name, cell, f"has {len(cell.encode())} bytes, at most {limit}; shorten it"
            )
        elif not cell.isprintable():
            yield draft.fault(file, name, cell, "holds a control character; take it out")
    if any(word in cells.get("line", "") for word in _RESERVED):
        yield draft.fault(
            file,
            "line",
            cells["line"],
            "is named as a correction is; give the line the name that the invoice has",
        )
    if "currency" in cells and not re.fullmatch("[A-Z]{3}", cells["currency"]):
        yield draft.fault(
            file, "currency", cells["currency"], "is a currency of three capital letters, such as USD"
        )
    for name, allowed in (("category", CATEGORIES), ("object_kind", (*OBJECT_KINDS, INVOICE))):
        if name in cells and cells[name] not in allowed:
            yield draft.fault(file, name, cells[name], f"is none of {', '.join(allowed)}")


def _object_faults(file: str, draft: Draft, known: Known) -> Iterator[Fault]:
    """What the line is about is a thing of the catalog, and of this supplier."""
    cells = draft.cells
    supplier, kind, name = (cells.get(cell, "") for cell in ("supplier", "object_kind", "object"))
    if supplier and supplier not in known.suppliers:
        problem = (
            "no pool, commitment or model of the catalog is of this supplier; "
            f"there are {', '.join(known.suppliers) or 'none: apply a catalog first'}"
        )
        yield draft.fault(
            file, "supplier", supplier, problem + (focus.REMEDY_SUPPLIER if draft.columns else "")
        )
        return
    if kind in ("pool", "commitment"):
        things = known.pools if kind == "pool" else known.commitments
        own = sorted(thing for thing, owner in things.items() if owner == supplier)
        if not name:
            yield draft.fault(
                file, "object", "", f"is empty; name the {kind}: {', '.join(own) or 'there is none'}"
            )
        elif name not in things:
            problem = f"the catalog has no such {kind}; of {supplier} it has {', '.join(own) or 'none'}"
            yield draft.fault(file, "object", name, problem)
        elif things[name] != supplier:
            yield draft.fault(
                file, "object", name, f"is a {kind} of {things[name]}, the bill is of {supplier}"
            )
    elif kind == "on_demand":
        models = sorted(model for provider, model in known.models if provider == supplier)
        if (name and name not in models) or not models:
            problem = f"is no model that {supplier} serves; there are {', '.join(models) or 'none'}"
            yield draft.fault(file, "object", name, problem)
    elif name and kind in ("overhead", INVOICE):
        yield draft.fault(file, "object", name, f"{kind} has no object; say it in the description")
    if kind == INVOICE and cells.get("category") not in (None, "credit"):
        problem = "a line of the whole invoice is a credit; a charge names what it is for, or is overhead"
        yield draft.fault(file, "object_kind", kind, problem)


def _read_values(file: str, draft: Draft, zone: ZoneInfo | None, faults: list[Fault]) -> BillLine | None:
    cells = draft.cells
    amount = _amount(file, draft, faults)
    edges = [_instant(file, draft, name, zone, faults) for name in ("service_from", "service_until")]
    if "posted_month" in cells and _month(cells["posted_month"]) is None:
        faults.append(draft.fault(file, "posted_month", cells["posted_month"], "is no month; write 2026-10"))
    start, until = edges
    if start is None or until is None or amount is None:
        return None
    if until <= start:
        problem = f"the service ends at or before its start {cells['service_from']}; the end is not included"
        faults.append(draft.fault(file, "service_until", cells["service_until"], problem))
    return BillLine(
        cells.get("line", ""),
        cells.get("category", ""),
        cells.get("object_kind", ""),
        cells.get("object"),
        amount,
        start,
        until,
        cells.get("description"),
    )


def _amount(file: str, draft: Draft, faults: list[Fault]) -> Decimal | None:
    text = draft.cells.get("amount")
    if text is None:
        return None
    if not PLAIN_NUMBER.fullmatch(text):
        problem = "is not a plain decimal number such as 1234.50, without separators"
        remedy = focus.REMEDY_LOCALE if draft.columns else ""
        faults.append(draft.fault(file, "amount", text, problem + remedy))
        return None
    amount = Decimal(text)
    category = draft.cells.get("category")
    if abs(amount) >= AMOUNT_MAX:
        faults.append(draft.fault(file, "amount", text, f"is not below {AMOUNT_MAX:,}; check its unit"))
    elif text.partition(".")[2].rstrip("0")[_DECIMALS_MAX:]:
        problem = f"has more than {_DECIMALS_MAX} decimals; write it as it was invoiced"
        faults.append(draft.fault(file, "amount", text, problem))
    elif category == "charge" and amount < 0:
        problem = "a charge is 0 or more; what is given back is a credit, what is corrected a true_up"
        faults.append(draft.fault(file, "amount", text, problem))
    elif category == "credit" and amount > 0:
        faults.append(draft.fault(file, "amount", text, "a credit is 0 or less; write it with a minus"))
    return amount


def _instant(
    file: str, draft: Draft, name: str, zone: ZoneInfo | None, faults: list[Fault]
) -> datetime | None:
    text = draft.cells.get(name)
    if text is None:
        return None
    try:
        if not _INSTANT.fullmatch(text):
            raise ValueError
        at = datetime.fromisoformat(text)
    except ValueError:
        problem = "is not a date or time; write 2026-10-01 (a UTC day) or 2026-10-01T06:00Z"
        remedy = focus.REMEDY_LOCALE if draft.columns else ""
        faults.append(draft.fault(file, name, text, problem + remedy))
        return None
    if at.tzinfo is None and len(text) == len("2026-10-01"):
        at = at.replace(tzinfo=UTC)
    elif at.tzinfo is None:
        if zone is None:
            problem = (
                "has no zone; write 2026-10-01T06:00Z, or say with --zone Europe/Berlin whose time it is"
            )
            faults.append(draft.fault(file, name, text, problem))
            return None
        local = at.replace(tzinfo=zone)
        if local.utcoffset() != local.replace(fold=1).utcoffset():
            problem = (
                f"comes twice or never in {zone.key}: clocks change then; write it with its offset from UTC"
            )
            faults.append(draft.fault(file, name, text, problem))
            return None
        at = local
    if not 1970 < at.year < 9998:
        faults.append(draft.fault(file, name, text, "lies outside the years 1971 to 9997; correct it"))
        return None
    at = at.astimezone(UTC)
    if at != floor_to_quarter(at):
        faults.append(draft.fault(file, name, text, "is not on a quarter hour; use minute 00, 15, 30 or 45"))
    return at


def _month(text: str) -> date | None:
    try:
        return date.fromisoformat(f"{text}-01") if re.fullmatch(r"\d{4}-\d{2}", text) else None
    except ValueError:
        return None


def _split_faults(file: str, lines: Sequence[tuple[Draft, BillLine]], lines_max: int) -> Iterator[Fault]:
    """Credits of a whole invoice make a line for every charge: together they may not be too many."""
    given = [draft for draft, line in lines if line.object_kind == INVOICE]
    charges = sum(line.category == "charge" for _, line in lines)
    if given and len(given) * charges > lines_max:
        problem = (
            f"{len(given):,} credits of the whole invoice over {charges:,} charges make more than {lines_max:,} "
            "lines (METERING_BILL_LINES_MAX): sum the credits to one, or say what each is for"
        )
        yield given[0].fault(file, "object_kind", INVOICE, problem)


def _bill(
    file: str, supplier: str, document: str, lines: Sequence[tuple[Draft, BillLine]], faults: list[Fault]
) -> Bill:
    first = lines[0][0]
    for name, remedy in (
        ("currency", "a document has one; make a document of each currency"),
        ("posted_month", "a document is posted to one month"),
    ):
        for draft, _ in lines:
            if draft.cells.get(name) != first.cells.get(name):
                problem = f"in line {first.line} it is {first.cells.get(name) or 'empty'}: {remedy}"
                faults.append(draft.fault(file, name, draft.cells.get(name, ""), problem))
                break
    currency = first.cells["currency"]
    charges = [line for _, line in lines if line.category == "charge" and line.amount > 0]
    whole: list[BillLine] = []
    at: dict[str, int] = {}
    for draft, line in lines:
        parts = [line]
        if line.object_kind == INVOICE:
            if not charges:
                problem = (
                    f"{document} has no charge over which this could be split; name its object, or overhead"
                )
                faults.append(draft.fault(file, "object_kind", INVOICE, problem))
                continue
            parts = split_over(charges, line, currency)
        for part in parts:
            if (other := at.setdefault(part.line, draft.line)) != draft.line:
                problem = f"stands in line {other} already; within a document a line has a name of its own"
                faults.append(draft.fault(file, "line", part.line, problem))
        whole += parts
    posted = first.cells.get("posted_month")
    return Bill(supplier, document, currency, tuple(whole), _month(posted) if posted else None)
