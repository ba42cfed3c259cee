"""The objects of the supply side: pools bought ahead, commitments to suppliers, exchange rates."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, ClassVar, Final, Literal, NamedTuple

from pydantic import BeforeValidator, Field, WithJsonSchema

from metering.catalog.fields import (
    Amount,
    Count,
    Currency,
    FeeByDimension,
    Instant,
    Minute,
    Name,
    Rate,
    Ratio,
    Weight,
)
from metering.catalog.shapes import CatalogObject, Span, Strict, no_rows, unsaid

#: The key of a burndown table for every meter that it does not name.
OTHER_METERS: Final = "other_meters"
#: The dimension of a pool that is bought in one: `units: 48` is `units: {all: 48}`.
DIMENSION_ALL: Final = "all"
#: What a step's fee fields are called among the fees of a pool, and what each is per.
STEP_FEES: Final[Mapping[str, tuple[str, str]]] = {
    "fee_per_month": ("step", "month"),
    "fee_upfront": ("upfront", "span"),
    "fee_per_unit_hour": ("unit hours", "unit_hour"),
    "fee_per_unit_day": ("unit days", "unit_day"),
    "fee_per_unit_month": ("unit months", "unit_month"),
}
PER_UNIT: Final = ("unit_hour", "unit_day", "unit_month")


def _by_dimension(units: object) -> object:
    return units if isinstance(units, dict | list | None) else {DIMENSION_ALL: units}


UnitsByDimension = Annotated[
    dict[str, Count],
    BeforeValidator(_by_dimension),
    Field(min_length=1),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer", "minimum": 0}, {"type": "object"}],
            "description": "units, or for each dimension its own: `units: 48` is `units: {all: 48}`",
        }
    ),
]


class Burndown(Span):
    """Burn units of the pool per unit of each meter, for some models and one context."""

    models: list[Name] = Field(min_length=1)
    above_input_tokens: Count = 0
    weights: dict[str, Weight] = Field(min_length=1)


class Multiplier(Span):
    """What the burn of requests served in a region or tier is multiplied by; several of them stack."""

    by: Literal["region", "tier"]
    value: Name
    multiplier: Weight


class Dimension(Strict):
    """What a pool is bought in; a pool with separate input and output has two of these."""

    dimension: Name
    unit_burn_per_minute: Count
    fee_share_ratio: Ratio = Decimal(1)
    burndown: list[Burndown] = Field(min_length=1)
    multipliers: list[Multiplier] = no_rows()


class Step(Span):
    """Units of each dimension, and what they cost, over a span: a ramp is several steps."""

    units: UnitsByDimension
    fee_per_month: FeeByDimension | None = None
    #: for the whole span of the step
    fee_upfront: FeeByDimension | None = None
    fee_per_unit_hour: FeeByDimension | None = None
    fee_per_unit_day: FeeByDimension | None = None
    fee_per_unit_month: FeeByDimension | None = None


class CapacityFee(Strict):
    """A fee of the whole contract; its span defaults to the term."""

    fee: Name
    amount: Amount
    per: Literal["month", "span", "unit_hour", "unit_day", "unit_month"]
    #: left out: split over the dimensions by their fee_share_ratio
    dimension: Name | None = None
    #: left out: the contract's
    currency: Currency | None = None
    effective_from: Instant | None = None
    effective_until: Instant | None = None


class CarveOut(Strict):
    """Units set aside for a named purpose. Traffic on them names the carve-out as its pool."""

    carve_out: Name
    units: UnitsByDimension
    effective_from: Minute
    effective_until: Minute | None = None
    purpose: Name | None = None


class Undelivered(Strict):
    """Units contracted that the supplier did not make available: the basis of a claim."""

    units: UnitsByDimension
    effective_from: Minute
    effective_until: Minute
    reason: Name


class FeeTerm(NamedTuple):
    """One fee of a pool with the span in which it is due, and where in the contract it is written."""

    fee: str
    dimension: str | None
    amount: Decimal
    per: str
    currency: str
    effective_from: datetime
    effective_until: datetime | None
    path: tuple[str | int, ...]


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
    recognition: Literal["as_billed", "straight_line_days", "capacity_hours"] = unsaid("as_billed")
    #: the cost book of what the served tokens would have cost on demand; left out: each model's own
    on_demand_book: Name | None = None
    window_seconds: Count = unsaid(60)
    units_min: Count = unsaid(0)
    units_sold_in: Count = unsaid(1)
    lead_time_days: Count | None = None
    #: left out: it ends with its last step
    renews_for_months: Count | None = None
    notice_days: Count | None = None
    dimensions: list[Dimension] = Field(min_length=1)
    steps: list[Step] = Field(min_length=1)
    fees: list[CapacityFee] = no_rows()
    carve_outs: list[CarveOut] = no_rows()
    undelivered: list[Undelivered] = no_rows()

    @property
    def term_from(self) -> datetime:
        """When the first step begins."""
        return min(step.effective_from for step in self.steps)

    @property
    def term_until(self) -> datetime | None:
        """When the last step ends, or would without a renewal; None: open."""
        ends = [step.effective_until for step in self.steps]
        return None if None in ends else max(end for end in ends if end is not None)

    @property
    def runs_until(self) -> datetime | None:
        """Until when capacity is contracted: with a renewal it runs on until a revision says otherwise."""
        return None if self.renews_for_months else self.term_until

    def runs_on(self, until: datetime | None) -> datetime | None:
        """An end as it holds: one at the end of the term moves on with the renewal."""
        return self.runs_until if until == self.term_until else until

    def fee_terms(self) -> Iterator[FeeTerm]:
        """Every fee: those of the steps, then those of the contract.

        With a renewal the monthly and unit fees of the last step run on, and those of the contract that name
        no end. A fee per unit is of the one dimension that there is, unless it names another.
        """
        only = self.dimensions[0].dimension if len(self.dimensions) == 1 else None
        for index, step in enumerate(self.steps):
            for field, (fee, per) in STEP_FEES.items():
                given = getattr(step, field)
                until = step.effective_until if per == "span" else self.runs_on(step.effective_until)
                for dimension, amount in (given if isinstance(given, dict) else {None: given}).items():
                    if amount is not None:
                        yield FeeTerm(
                            fee=fee,
                            dimension=dimension or (only if per in PER_UNIT else None),
                            amount=amount,
                            per=per,
                            currency=self.currency,
                            effective_from=step.effective_from,
                            effective_until=until,
                            path=("steps", index, field),
                        )
        for index, row in enumerate(self.fees):
            yield FeeTerm(
                fee=row.fee,
                dimension=row.dimension or (only if row.per in PER_UNIT else None),
                amount=row.amount,
                per=row.per,
                currency=row.currency or self.currency,
                effective_from=row.effective_from or self.term_from,
                effective_until=row.effective_until
                or (self.term_until if row.per == "span" else self.runs_until),
                path=("fees", index),
            )

    def canonical(self) -> "CapacityContract":
        def order(row: Burndown) -> tuple[list[str], int, datetime]:
            return row.models, row.above_input_tokens, row.effective_from

        dimensions = []
        for dimension in sorted(self.dimensions, key=lambda row: row.dimension):
            tables = [row.model_copy(update={"models": sorted(row.models)}) for row in dimension.burndown]
            stacked = sorted(dimension.multipliers, key=lambda row: (row.by, row.value, row.effective_from))
            update = {"burndown": sorted(tables, key=order), "multipliers": stacked}
            dimensions.append(dimension.model_copy(update=update))
        return self.model_copy(
            update={
                "dimensions": dimensions,
                "steps": sorted(self.steps, key=lambda row: row.effective_from),
                "fees": sorted(
                    self.fees,
                    key=lambda row: (row.fee, row.dimension or "", row.effective_from or self.term_from),
                ),
                "carve_outs": sorted(self.carve_outs, key=lambda row: (row.carve_out, row.effective_from)),
                "undelivered": sorted(self.undelivered, key=lambda row: (row.effective_from, row.reason)),
            }
        )


class Tranche(Span):
    """What is committed over one span: an amount of money, or units of something."""

    amount: Amount | None = None
    units: Count | None = None
    #: of what `units` are counted
    unit: Name | None = None


class SupplierCommitment(CatalogObject):
    """What we committed to use of a supplier, tranche by tranche, and what happens to what we do not."""

    kind: ClassVar[str] = "supplier_commitment"
    section: ClassVar[str] = "supplier_commitments"
    name_field: ClassVar[str] = "commitment"
    commitment: Name
    supplier: Name
    currency: Currency
    draws: Literal["on_demand", "capacity", "all"]
    shortfall_rule: Literal["true_up", "roll_over", "forfeit"]
    #: 1: take-or-pay
    shortfall_ratio: Ratio = Decimal(1)
    #: of the tranche's amount; left out: no cap
    roll_over_cap_ratio: Ratio | None = None
    #: left out: the end of the last tranche
    roll_over_until: Instant | None = None
    tranches: list[Tranche] = Field(min_length=1)

    def canonical(self) -> "SupplierCommitment":
        return self.model_copy(update={"tranches": sorted(self.tranches, key=lambda row: row.effective_from)})


class DatedRate(Strict):
    """A rate that holds from an instant until the next one of its list."""

    effective_from: Instant
    rate: Rate


class ExchangeRates(CatalogObject):
    """What one unit of a currency is in another, dated: monthly averages, or the rates of a contract."""

    kind: ClassVar[str] = "exchange_rate"
    section: ClassVar[str] = "exchange_rates"
    name_field: ClassVar[str] = "from"
    currency: Currency = Field(alias="from")
    into: Currency = Field(alias="to")
    rate_kind: Literal["month_average", "contract"] = Field(alias="kind")
    rates: list[DatedRate] = Field(min_length=1)

    @property
    def object_name(self) -> str:
        return f"{self.currency}/{self.into}/{self.rate_kind}"

    def canonical(self) -> "ExchangeRates":
        return self.model_copy(update={"rates": sorted(self.rates, key=lambda row: row.effective_from)})
