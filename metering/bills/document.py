"""A supplier's bill: a document of lines, each an amount for an object over a span; what its content is called."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Final

from metering.catalog.fields import decimal_text
from metering.catalog.objects import length_prefixed

CATEGORIES: Final = ("charge", "credit", "true_up")
OBJECT_KINDS: Final = ("pool", "on_demand", "commitment", "overhead")
#: Places of a currency's minor unit, where they are not two.
_MINOR_DIGITS: Final = {
    **dict.fromkeys(("CLP", "ISK", "JPY", "KRW", "PYG", "UGX", "VND", "XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def minor_digits(currency: str) -> int:
    """Decimals of a currency's minor unit: 2 of USD, 0 of JPY."""
    return _MINOR_DIGITS.get(currency, 2)


def shortest(amount: Decimal) -> Decimal:
    """The same amount with at least two decimals, and no zeros beyond them."""
    finest = int(amount.normalize().as_tuple().exponent)
    return amount.quantize(Decimal(1).scaleb(min(finest, -2)))


@dataclass(frozen=True)
class BillLine:
    """An amount that a supplier invoiced, credited or trued up, for service in [service_from, service_until)."""

    line: str  # its name within the document
    category: str  # charge | credit | true_up
    object_kind: str  # pool | on_demand | commitment | overhead
    object: str | None
    amount: Decimal  # a credit is <= 0, a charge >= 0
    service_from: datetime
    service_until: datetime
    description: str | None = None
    split_of: str | None = None  # the line of the document of which this is a part

    @property
    def terms(self) -> tuple[str, str, str | None, datetime, datetime]:
        """What the amount is for: two lines that differ in it are of different things."""
        return self.category, self.object_kind, self.object, self.service_from, self.service_until

    def _fields(self) -> Iterator[bytes]:
        for text in (self.line, self.category, self.object_kind, self.object, decimal_text(self.amount)):
            yield (text or "").encode()
        for at in (self.service_from, self.service_until):
            yield str((at - _EPOCH) // timedelta(microseconds=1)).encode()
        for text in (self.description, self.split_of):
            yield (text or "").encode()


@dataclass(frozen=True)
class Bill:
    """One document of a supplier, in one currency. `posted_month` None: the first open month for it."""

    supplier: str
    document: str
    currency: str
    lines: tuple[BillLine, ...]
    posted_month: date | None = None

    @property
    def name(self) -> str:
        """How a message calls it."""
        return f"{self.supplier} {self.document}"

    @property
    def total(self) -> Decimal:
        """The sum of its lines."""
        return sum((line.amount for line in self.lines), Decimal(0))

    def digest(self) -> bytes:
        """SHA-256 of what the document says, lines in order of their names, every field length-prefixed.

        When it was entered, by whom, from which file and to which month it is posted are no part of it.
        """
        parts = [
            b"metering bill/1",
            *(part.encode() for part in (self.supplier, self.document, self.currency)),
        ]
        parts.append(str(len(self.lines)).encode())
        for line in sorted(self.lines, key=lambda one: one.line):
            parts += line._fields()
        return hashlib.sha256(length_prefixed(*parts)).digest()
