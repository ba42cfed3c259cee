"""The objects that price: what customers pay for products, what we pay on demand for models, and by what rule."""

from abc import abstractmethod
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import ClassVar, Literal

from pydantic import Field

from metering.catalog.fields import (
    Amount,
    Count,
    Currency,
    Name,
    Price,
    Provider,
    Quantity,
    TimeOfDay,
    Weight,
    Zone,
)
from metering.catalog.shapes import ANY, CatalogObject, Span, Strict, no_rows, unsaid

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


class Priced(Span):
    """A price for one tier, region and context."""

    tier: Name = "standard"
    region: Name = ANY
    #: These prices hold for requests whose total input exceeds this many tokens; 0: for every request.
    above_input_tokens: Count = 0
    per_million: dict[str, Price] = Field(default_factory=dict, exclude_if=lambda prices: prices == {})

    @property
    @abstractmethod
    def item(self) -> str:
        """What is priced: the product, or the model served."""

    @property
    @abstractmethod
    def unit_prices(self) -> dict[str, Decimal]:
        """Per million units of each meter; empty where a rule prices."""


class PriceTier(Strict):
    """The price of a unit up to a quantity, and a flat amount for who comes so far."""

    #: the last unit of the tier; left out: it is open
    up_to: Quantity | None = None
    per_million: Price | None = None
    #: in place of per_million: of one unit
    each: Price | None = None
    flat_amount: Amount = unsaid(Decimal(0))


class Package(Strict):
    """The price of so many units at once."""

    units: Quantity
    amount: Amount
    counts: Literal["started", "full"] = unsaid("started")


class ProductPrice(Priced):
    """What a customer pays for a product: per million units of each meter, or by tiers or packages of some meters."""

    product: Name
    #: named hours of the book; left out: always
    hours: Name | None = None
    #: what the tiers or packages count together
    meters: list[str] = no_rows()
    model: Literal["unit", "graduated", "volume", "package"] = unsaid("unit")
    #: of the counter, before the first tier
    free_units: Quantity = unsaid(0)
    #: when the counter begins again: with the contract's period, or the day, month or year of its zone
    reset: Literal["period", "day", "month", "year", "never"] = unsaid("period")
    tiers: list[PriceTier] = no_rows()
    package: Package | None = None

    @property
    def item(self) -> str:
        return self.product

    @property
    def unit_prices(self) -> dict[str, Decimal]:
        return self.per_million if self.hours is None else {}


class ModelPrice(Priced):
    """What we pay on demand for a model."""

    model: Name
    per_million: dict[str, Price] = Field(min_length=1)

    @property
    def item(self) -> str:
        return self.model

    @property
    def unit_prices(self) -> dict[str, Decimal]:
        return self.per_million


class Hours(Strict):
    """Hours of a week in local time, in which some prices hold; until at or before from: into the next day."""

    hours: Name
    zone: Zone
    days: list[Day] = Field(min_length=1)
    from_: TimeOfDay = Field(alias="from")
    until: TimeOfDay


class Percentage(Span):
    """A charge that is a ratio of other charges, or of what the usage costs us (cost-plus)."""

    charge: Name
    of: Literal["charge", "cost"]
    #: left out: of every product
    product: Name | None = None
    ratio: Weight


def _price_order(row: Priced) -> tuple[str, str, str, int, str, str, datetime]:
    hours = getattr(row, "hours", None) or ""
    meters = ",".join(sorted(getattr(row, "meters", [])))
    return row.item, row.tier, row.region, row.above_input_tokens, hours, meters, row.effective_from


class PriceBook(CatalogObject):
    """What customers pay for products."""

    kind: ClassVar[str] = "price_book"
    section: ClassVar[str] = "price_books"
    name_field: ClassVar[str] = "book"
    book: Name
    currency: Currency
    hours: list[Hours] = no_rows()
    prices: list[ProductPrice] = Field(min_length=1)
    percentages: list[Percentage] = no_rows()

    def canonical(self) -> "PriceBook":
        return self.model_copy(
            update={
                "hours": sorted(self.hours, key=lambda row: (row.hours, row.days, row.from_)),
                "prices": in_order(self.prices),
                "percentages": sorted(
                    self.percentages, key=lambda row: (row.charge, row.product or "", row.effective_from)
                ),
            }
        )


def in_order(prices: list[ProductPrice]) -> list[ProductPrice]:
    """Prices in their one order; the order they were written in means nothing."""
    return sorted(prices, key=_price_order)


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


def priced_meters_of(row: ProductPrice) -> Iterator[str]:
    """The meters that a row prices by its counter, reasoning with output where it is not named."""
    yield from row.meters
    if "output_tokens" in row.meters and "reasoning_tokens" not in row.meters:
        yield "reasoning_tokens"
