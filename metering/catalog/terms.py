"""The objects of agreements with customers: contracts, and the plans that many contracts share."""

from datetime import datetime
from decimal import Decimal
from typing import ClassVar, Literal

from pydantic import Field

from metering.catalog.fields import (
    Amount,
    AnchorDay,
    Count,
    Currency,
    Instant,
    Name,
    Quantity,
    Ratio,
    Units,
    Weight,
    Zone,
    decimal_text,
)
from metering.catalog.prices import ProductPrice, in_order
from metering.catalog.shapes import CatalogObject, Span, Strict, all_unless_said, no_rows, unsaid


class Fee(Strict):
    """An amount that does not depend on usage, earned evenly; its span defaults to the contract's."""

    fee: Name
    kind: Literal["plan", "seat", "reservation"] = unsaid("plan")
    #: this or `amount` with `per: month`
    amount_per_month: Amount | None = None
    amount: Amount | None = None
    per: Literal["month", "year", "span"] = unsaid("month")
    #: how many of them: seats
    quantity: Count = unsaid(1)
    currency: Currency
    effective_from: Instant | None = None
    effective_until: Instant | None = None

    @property
    def amount_each(self) -> Decimal:
        """The amount of one; 0 where neither form is given."""
        return self.amount_per_month if self.amount_per_month is not None else self.amount or Decimal(0)


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


class Window(Strict):
    """The time over which a limit counts: one of a minute, anchored at the first use, or fixed from an anchor."""

    minute: bool = unsaid(default=False)
    anchored_minutes: Count | None = None
    fixed_minutes: Count | None = None
    #: of fixed windows: when one begins
    anchor: Instant | None = None


class Limit(Strict):
    """The most weighted quantity that each holder may use in one window; its span defaults to the contract's."""

    limit: Name
    holder: Literal["customer", "project", "seat"]
    window: Window
    quantity: Quantity
    #: what one unit of each meter counts; `requests` may be weighed too, what is not named counts nothing
    weights: dict[str, Weight] = Field(min_length=1)
    #: left out: every product counts
    products: list[Name] = all_unless_said()
    effective_from: Instant | None = None
    effective_until: Instant | None = None


class Billing(Strict):
    """The periods of a contract: so many months from a day of the month, at midnight of a zone."""

    anchor_day: AnchorDay = unsaid(1)
    zone: Zone = unsaid("UTC")
    months: Count = unsaid(1)


class Discount(Strict):
    """What is taken off: of a product, of the whole contract, or an amount per period."""

    discount: Name
    product: Name | None = None
    ratio: Ratio | None = None
    amount_per_period: Amount | None = None
    effective_from: Instant | None = None
    effective_until: Instant | None = None


class CommittedTranche(Span):
    """What a customer committed to over one span: an amount of money, or units of some meters."""

    amount: Amount | None = None
    units: Quantity | None = None


class Commitment(Strict):
    """What a customer committed to use, tranche by tranche, and what happens to what it does not."""

    commitment: Name
    #: left out: every product draws it down
    products: list[Name] = all_unless_said()
    #: of units: the meters that count
    meters: list[str] = no_rows()
    paid: Literal["ahead", "in_arrears"]
    shortfall_rule: Literal["true_up", "roll_over", "forfeit"]
    #: 1: take-or-pay
    shortfall_ratio: Ratio = unsaid(Decimal(1))
    #: of the tranche's amount; left out: no cap
    roll_over_cap_ratio: Ratio | None = None
    #: left out: the end of the last tranche
    roll_over_until: Instant | None = None
    #: left out: what is above costs what the contract says
    overage_book: Name | None = None
    tranches: list[CommittedTranche] = Field(min_length=1)


class Credit(Strict):
    """An amount granted: promotional (it reduces revenue) or prepaid (it does not)."""

    credit: Name
    kind: Literal["promotional", "prepaid"]
    amount: Amount
    #: left out: every product
    products: list[Name] = all_unless_said()
    #: left out: the contract's
    effective_from: Instant | None = None
    #: left out: it does not expire
    effective_until: Instant | None = None


class Plan(CatalogObject):
    """What contracts that name it have, unless they say otherwise."""

    kind: ClassVar[str] = "plan"
    section: ClassVar[str] = "plans"
    name_field: ClassVar[str] = "plan"
    plan: Name
    name: Name
    price_book: Name
    fees: list[Fee] = no_rows()
    limits: list[Limit] = no_rows()
    margin_floor_ratio: Ratio | None = None
    floor_basis: Literal["usage", "loaded"] = unsaid("usage")

    def canonical(self) -> "Plan":
        return self.model_copy(
            update={
                "fees": sorted(self.fees, key=lambda row: row.fee),
                "limits": sorted(self.limits, key=lambda row: row.limit),
            }
        )


class Contract(CatalogObject, Span):
    """What was agreed with a customer."""

    kind: ClassVar[str] = "contract"
    section: ClassVar[str] = "contracts"
    name_field: ClassVar[str] = "contract"
    contract: Name
    customer: Name
    plan: Name | None = None
    #: left out: the plan's
    price_book: Name | None = None
    billing: Billing | None = None
    #: in place of those of the book, cell by cell
    prices: list[ProductPrice] = no_rows()
    discounts: list[Discount] = no_rows()
    minimum_per_period: Amount | None = None
    maximum_per_period: Amount | None = None
    #: none: the plan's
    fees: list[Fee] = Field(default_factory=list)
    commitments: list[Commitment] = no_rows()
    credits: list[Credit] = no_rows()
    #: one of the plan's name goes before it
    limits: list[Limit] = no_rows()
    entitlements: list[Entitlement] = no_rows()
    #: left out: the plan's
    margin_floor_ratio: Ratio | None = None
    floor_basis: Literal["usage", "loaded"] = "usage"

    def canonical(self) -> "Contract":
        def begins(row: Fee | Entitlement | Discount | Limit) -> datetime:
            return row.effective_from or self.effective_from

        return self.model_copy(
            update={
                "prices": in_order(self.prices),
                "discounts": sorted(
                    self.discounts, key=lambda row: (row.discount, row.product or "", begins(row))
                ),
                "fees": sorted(self.fees, key=lambda row: (row.fee, begins(row))),
                "commitments": sorted(
                    (
                        row.model_copy(
                            update={"tranches": sorted(row.tranches, key=lambda part: part.effective_from)}
                        )
                        for row in self.commitments
                    ),
                    key=lambda row: row.commitment,
                ),
                "credits": sorted(self.credits, key=lambda row: row.credit),
                "limits": sorted(self.limits, key=lambda row: (row.limit, begins(row))),
                "entitlements": sorted(
                    self.entitlements, key=lambda row: (row.pool, row.dimension or "", begins(row))
                ),
            }
        )
