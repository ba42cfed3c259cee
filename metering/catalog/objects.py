"""The objects of a catalog: customers, models and sources field by field, all kinds by name, and their bodies."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Final, Literal, TypeVar

from pydantic import Field

from metering.catalog.fields import Count, Name, Provider
from metering.catalog.prices import CostBook, PriceBook
from metering.catalog.quotas import Quota
from metering.catalog.shapes import CatalogObject, Span
from metering.catalog.supply import CapacityContract, ExchangeRates, SupplierCommitment
from metering.catalog.terms import Contract, Plan


class CustomerKind(Span):
    """What a customer is over a span of time."""

    kind: Literal["paying", "trial", "free", "internal", "research"]
    segment: Name


class Customer(CatalogObject):
    """A customer, by the id that events carry as `subject`."""

    kind: ClassVar[str] = "customer"
    section: ClassVar[str] = "customers"
    name_field: ClassVar[str] = "customer"
    customer: Name
    name: Name
    dated: list[CustomerKind] = Field(min_length=1)

    def canonical(self) -> "Customer":
        return self.model_copy(update={"dated": sorted(self.dated, key=lambda row: row.effective_from)})


class Model(CatalogObject):
    """A model served by a provider; where we pay for it on demand, the cost book that says how much."""

    kind: ClassVar[str] = "model"
    section: ClassVar[str] = "models"
    name_field: ClassVar[str] = "model"
    model: Name
    provider: Provider
    name: Name
    cost_book: Name | None = None

    @property
    def object_name(self) -> str:
        return f"{self.provider}/{self.model}"


class Source(CatalogObject):
    """A registered source: a producer of events that reports regularly and may hold `complete_until` back."""

    kind: ClassVar[str] = "source"
    section: ClassVar[str] = "sources"
    name_field: ClassVar[str] = "source"
    source: Name
    name: Name
    #: after so long without a heartbeat the source is a finding
    silent_after_seconds: Count = 900


OBJECTS: Final[Mapping[str, type[CatalogObject]]] = {
    cls.kind: cls
    for cls in (
        *(Customer, Model, PriceBook, CostBook, Plan, Contract),
        *(CapacityContract, Quota, SupplierCommitment, ExchangeRates, Source),
    )
}
SECTIONS: Final[Mapping[str, type[CatalogObject]]] = {cls.section: cls for cls in OBJECTS.values()}


def body(item: CatalogObject) -> dict[str, Any]:
    """The object as JSON: amounts and instants as text in their one spelling, lists in their one order."""
    dumped = item.canonical().model_dump(mode="json", exclude_none=True, by_alias=True)
    assert isinstance(dumped, dict)
    return dumped


def from_body(kind: str, content: Mapping[str, Any]) -> CatalogObject:
    """The object that `body` wrote."""
    return OBJECTS[kind].model_validate(content)


def length_prefixed(*parts: bytes) -> bytes:
    """Each part behind its length in 8 bytes, so that no two lists of parts have the same encoding."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def body_digest(kind: str, name: str, content: Mapping[str, Any]) -> bytes:
    """SHA-256 of one object: version, kind, name and the body as JSON with sorted keys, length-prefixed."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(
        length_prefixed(b"catalog-object/1", kind.encode(), name.encode(), text.encode())
    ).digest()


@dataclass(frozen=True)
class Entry:
    """An object with the place it was written at; from the database also its revision and when it ended."""

    item: CatalogObject
    file: str
    line: int
    ended_at: datetime | None = None
    catalog_revision: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """Kind and name."""
        return self.item.kind, self.item.object_name

    def digest(self) -> bytes:
        """Digest of what the object says; where it is written and when it ended do not count."""
        return body_digest(*self.key, body(self.item))


Kind = TypeVar("Kind", bound=CatalogObject)


@dataclass(frozen=True)
class CatalogObjects:
    """The objects of a folder, or of a catalog as of one revision (what ended included), by kind and name."""

    entries: Mapping[tuple[str, str], Entry] = field(default_factory=dict)

    def of(self, cls: type[Kind]) -> Iterator[tuple[Kind, Entry]]:
        """The objects of one class with their entries, by name."""
        for _, entry in sorted(self.entries.items()):
            if isinstance(entry.item, cls):
                yield entry.item, entry

    def counts(self) -> dict[str, int]:
        """How many objects there are of each section, the ended ones left out."""
        live = [entry.item.section for entry in self.entries.values() if entry.ended_at is None]
        return {section: live.count(section) for section in SECTIONS}
