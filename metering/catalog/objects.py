"""The objects of a catalog: what a customer, a book or a contract is, field by field."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from metering.catalog.fields import Amount, Count, Currency, Instant, Name, Price, Provider, Ratio, Weight

#: The key of a burndown table for every meter that it does not name.
OTHER_METERS: Final = "other_meters"
ANY: Final = "*"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Span(_Strict):
    """Half-open [effective_from, effective_until), UTC, on quarter hours; without an end: open."""

    effective_from: Instant
    effective_until: Instant | None = None


class CatalogObject(_Strict):
    """One thing that the catalog names. `kind` and `object_name` identify it over all revisions."""

    kind: ClassVar[str]
    #: The YAML key that holds a list of these.
    section: ClassVar[str]
    #: The field that holds the name.
    name_field: ClassVar[str]

    @property
    def object_name(self) -> str:
        """The name under which revisions follow this object."""
        return str(getattr(self, self.name_field))

    def canonical(self) -> "CatalogObject":
        """The same object with its lists in one order: the order they were written in means nothing."""
        return self


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


class Fee(_Strict):
    """An amount per calendar month that does not depend on usage; its span defaults to the contract's."""

    fee: Name
    amount_per_month: Amount
    currency: Currency
    effective_from: Instant | None = None
    effective_until: Instant | None = None


class Contract(CatalogObject, Span):
    """What was agreed with a customer."""

    kind: ClassVar[str] = "contract"
    section: ClassVar[str] = "contracts"
    name_field: ClassVar[str] = "contract"
    contract: Name
    customer: Name
    price_book: Name
    fees: list[Fee] = []
    margin_floor_ratio: Ratio | None = None
    floor_basis: Literal["usage", "loaded"] = "usage"

    def canonical(self) -> "Contract":
        def order(row: Fee) -> tuple[str, datetime]:
            return row.fee, row.effective_from or self.effective_from

        return self.model_copy(update={"fees": sorted(self.fees, key=order)})


class Burndown(Span):
    """Burn units of the pool per unit of each meter, for some models and one context."""

    models: list[Name] = Field(min_length=1)
    above_input_tokens: Count = 0
    weights: dict[str, Weight] = Field(min_length=1)


class Dimension(_Strict):
    """What a pool is bought in; a pool with separate input and output has two of these."""

    dimension: Name
    unit_burn_per_minute: Count
    fee_share_ratio: Ratio = Decimal(1)
    burndown: list[Burndown] = Field(min_length=1)


class Step(Span):
    """Units of each dimension, and the fee for all of them, over a span: a ramp is several steps."""

    units: dict[str, Count] = Field(min_length=1)
    fee_per_month: Amount

    @field_validator("units", mode="before")
    @classmethod
    def _one_number_is_dimension_all(cls, units: object) -> object:
        return units if isinstance(units, dict | list | None) else {"all": units}


class CapacityContract(CatalogObject):
    """What we bought ahead from a supplier: a pool."""

    kind: ClassVar[str] = "capacity_contract"
    section: ClassVar[str] = "capacity_contracts"
    name_field: ClassVar[str] = "pool"
    pool: Name
    supplier: Name
    unit: Name
    currency: Currency
    idle_policy: Literal["none", "burn", "entitlement"] = "none"
    dimensions: list[Dimension] = Field(min_length=1)
    steps: list[Step] = Field(min_length=1)

    def canonical(self) -> "CapacityContract":
        def order(row: Burndown) -> tuple[list[str], int, datetime]:
            return row.models, row.above_input_tokens, row.effective_from

        dimensions = []
        for dimension in sorted(self.dimensions, key=lambda row: row.dimension):
            tables = [row.model_copy(update={"models": sorted(row.models)}) for row in dimension.burndown]
            dimensions.append(dimension.model_copy(update={"burndown": sorted(tables, key=order)}))
        steps = sorted(self.steps, key=lambda row: row.effective_from)
        return self.model_copy(update={"dimensions": dimensions, "steps": steps})


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
    cls.kind: cls for cls in (Customer, Model, PriceBook, CostBook, Contract, CapacityContract, Source)
}
SECTIONS: Final[Mapping[str, type[CatalogObject]]] = {cls.section: cls for cls in OBJECTS.values()}


def body(item: CatalogObject) -> dict[str, Any]:
    """The object as JSON: amounts and instants as text in their one spelling, lists in their one order."""
    dumped = item.canonical().model_dump(mode="json", exclude_none=True)
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
