"""The objects of a catalog, field by field: customers, models, books, contracts, sources; and their bodies."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, Final, Literal, TypeVar

from pydantic import Field

from metering.catalog.fields import (
    Amount,
    Count,
    Currency,
    Instant,
    Name,
    Price,
    Provider,
    Ratio,
    Units,
    decimal_text,
)
from metering.catalog.quotas import Quota
from metering.catalog.shapes import ANY, CatalogObject, Span, Strict, no_rows
from metering.catalog.supply import CapacityContract, ExchangeRates, SupplierCommitment


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


class Priced(Span):
    """Prices per million units of each meter, for one tier, region and context."""

    tier: Name = "standard"
    region: Name = ANY
    #: These prices hold for requests whose total input exceeds this many tokens; 0: for every request.
    above_input_tokens: Count = 0
    per_million: dict[str, Price] = Field(min_length=1)

    @property
    @abstractmethod
    def item(self) -> str:
        """What is priced: the product, or the model served."""


class ProductPrice(Priced):
    """What a customer pays for a product."""

    product: Name

    @property
    def item(self) -> str:
        return self.product


class ModelPrice(Priced):
    """What we pay on demand for a model."""

    model: Name

    @property
    def item(self) -> str:
        return self.model


def _price_order(row: Priced) -> tuple[str, str, str, int, datetime]:
    return row.item, row.tier, row.region, row.above_input_tokens, row.effective_from


class PriceBook(CatalogObject):
    """What customers pay for products."""

    kind: ClassVar[str] = "price_book"
    section: ClassVar[str] = "price_books"
    name_field: ClassVar[str] = "book"
    book: Name
    currency: Currency
    prices: list[ProductPrice] = Field(min_length=1)

    def canonical(self) -> "PriceBook":
        return self.model_copy(update={"prices": sorted(self.prices, key=_price_order)})


class CostBook(CatalogObject):
    """What we pay a provider on demand for the models that it serves."""

    kind: ClassVar[str] = "cost_book"
    section: ClassVar[str] = "cost_books"
    name_field: ClassVar[str] = "book"
    book: Name
    provider: Provider
    currency: Currency
    prices: list[ModelPrice] = Field(min_length=1)

    def canonical(self) -> "CostBook":
        return self.model_copy(update={"prices": sorted(self.prices, key=_price_order)})


class Fee(Strict):
    """An amount per calendar month that does not depend on usage; its span defaults to the contract's."""

    fee: Name
    amount_per_month: Amount
    currency: Currency
    effective_from: Instant | None = None
    effective_until: Instant | None = None


class Stated(Strict):
    """What a contract says in another unit, and how it becomes units of the pool: quantity x units_each."""

    quantity: Units
    unit: Name
    units_each: Units
    because: Name

    @property
    def text(self) -> str:
        """The conversion as a person reads it: 20 seat x 0.25: four seats share a machine."""
        return f"{decimal_text(self.quantity)} {self.unit} x {decimal_text(self.units_each)}: {self.because}"


class Entitlement(Strict):
    """Units of a pool promised to a customer in every minute; its span defaults to the contract's."""

    pool: Name
    #: may be left out where the pool has one dimension
    dimension: Name | None = None
    #: this or `stated`
    units: Units | None = None
    #: the pool's, where it is said
    unit: Name | None = None
    stated: Stated | None = None
    effective_from: Instant | None = None
    effective_until: Instant | None = None

    @property
    def units_promised(self) -> Decimal:
        """Units of the pool, exactly; 0 where neither form is given."""
        if self.stated is not None:
            return self.stated.quantity * self.stated.units_each
        return self.units or Decimal(0)


class Contract(CatalogObject, Span):
    """What was agreed with a customer."""

    kind: ClassVar[str] = "contract"
    section: ClassVar[str] = "contracts"
    name_field: ClassVar[str] = "contract"
    contract: Name
    customer: Name
    price_book: Name
    fees: list[Fee] = Field(default_factory=list)
    entitlements: list[Entitlement] = no_rows()
    margin_floor_ratio: Ratio | None = None
    floor_basis: Literal["usage", "loaded"] = "usage"

    def canonical(self) -> "Contract":
        def order(row: Fee) -> tuple[str, datetime]:
            return row.fee, row.effective_from or self.effective_from

        def place(row: Entitlement) -> tuple[str, str, datetime]:
            return row.pool, row.dimension or "", row.effective_from or self.effective_from

        return self.model_copy(
            update={
                "fees": sorted(self.fees, key=order),
                "entitlements": sorted(self.entitlements, key=place),
            }
        )


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
        *(Customer, Model, PriceBook, CostBook, Contract),
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
