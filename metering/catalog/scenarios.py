"""A scenario file: what is supposed of supply and demand, change by change, read as strictly as a catalog."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final, Literal, TypeAlias

from pydantic import BaseModel, Field, ValidationError

from metering.catalog.documents import MISSING, Document, Fault, KeyPath, read_document
from metering.catalog.fields import Amount, Count, Instant, Name, Price, Weight
from metering.catalog.files import problem
from metering.catalog.placed import Placed
from metering.catalog.rules import Named, check
from metering.catalog.shapes import Strict
from metering.catalog.supply import Burndown, CapacityContract
from metering.errors import BadInput
from metering.meters import METERS


class Resize(Strict):
    """A pool has other units from an instant on: so many in every dimension, or a factor of what it has."""

    pool: Name
    units: Count | None = None
    factor: Weight | None = None
    effective_from: Instant | None = None


class Drop(Strict):
    """A pool ends."""

    pool: Name
    effective_from: Instant | None = None


class Delay(Strict):
    """A pool begins later: what it would have had until then is lost, with the fees of that time."""

    pool: Name
    days: Count


class ReplaceBurndown(Strict):
    """A dimension of a pool burns by other tables; they say from when on."""

    pool: Name
    dimension: Name = "all"
    tables: list[Burndown] = Field(min_length=1)


class ReplaceFee(Strict):
    """A fee of a pool is another amount from an instant on."""

    pool: Name
    fee: Name = "step"
    amount: Amount
    per: Literal["month", "span", "unit_hour", "unit_day", "unit_month"] | None = None
    effective_from: Instant | None = None


class Chosen(Strict):
    """Traffic of a customer, of a model served, meant for a pool (`none`: for no pool); left out: all of it."""

    customer: Name | None = None
    model: Name | None = None
    pool: Name | None = None
    effective_from: Instant | None = None


class Scale(Chosen):
    """Traffic x factor."""

    factor: Weight


class Move(Chosen):
    """A share of the traffic runs as another model, at another provider, or is meant for another pool."""

    share: Weight = Decimal(1)
    to_model: Name | None = None
    to_provider: Name | None = None
    to_pool: Name | None = None


class RaiseLimits(Strict):
    """Limits of a plan, of a contract, or of a name become a factor of what they are."""

    plan: Name | None = None
    contract: Name | None = None
    limit: Name | None = None
    factor: Weight
    effective_from: Instant | None = None


class ChangePrice(Strict):
    """A product costs a factor of what it does in a price book, or other unit prices."""

    book: Name
    product: Name
    tier: Name | None = None
    factor: Weight | None = None
    per_million: dict[str, Price] | None = Field(default=None, min_length=1)
    effective_from: Instant | None = None


class MoveCustomers(Strict):
    """Customers, or all of a plan, get another plan in place of what they agreed on."""

    customers: list[Name] | None = Field(default=None, min_length=1)
    from_plan: Name | None = None
    to_plan: Name
    effective_from: Instant | None = None


class LoseCustomer(Strict):
    """A customer is gone, with its traffic and its contracts."""

    customer: Name
    effective_from: Instant | None = None


class WinCustomer(Strict):
    """A customer comes with a factor of the traffic of another, on that one's terms or on a plan."""

    like: Name
    factor: Weight = Decimal(1)
    customer: Name | None = None
    plan: Name | None = None
    effective_from: Instant | None = None

    @property
    def called(self) -> str:
        """The name of the customer in reports."""
        return self.customer or f"like {self.like}"


Demanded: TypeAlias = RaiseLimits | ChangePrice | MoveCustomers | LoseCustomer | WinCustomer
Change: TypeAlias = (
    CapacityContract | Resize | Drop | Delay | ReplaceBurndown | ReplaceFee | Scale | Move | Demanded
)
CHANGES: Final[Mapping[str, type[Change]]] = {
    "buy": CapacityContract,
    "resize": Resize,
    "drop": Drop,
    "delay": Delay,
    "replace_burndown": ReplaceBurndown,
    "replace_fee": ReplaceFee,
    "scale_traffic": Scale,
    "move_traffic": Move,
    "raise_limits": RaiseLimits,
    "change_price": ChangePrice,
    "move_customers": MoveCustomers,
    "lose_customer": LoseCustomer,
    "win_customer": WinCustomer,
}
#: A longer delay is a slip of the pen.
_DAYS_MAX: Final = 3650
#: What `pool` says of traffic that was meant for none.
NO_POOL: Final = "none"


@dataclass(frozen=True)
class PlacedChange:
    """A change where it was read."""

    change: Change
    document: Document
    path: KeyPath

    @property
    def name(self) -> str:
        """What the file calls this change: resize, raise_limits, ..."""
        return str(self.path[-1])

    @property
    def place(self) -> str:
        """File and line, to point a person at it."""
        return f"{self.document.file}:{self.document.line(self.path)}"

    def fault(self, field: str, value: object, says: str) -> Fault:
        """A fault of one of its fields."""
        return self.document.fault((*self.path, field), value, says)


@dataclass(frozen=True)
class Scenario:
    """A name, and changes in the order in which they are made."""

    name: str
    changes: tuple[PlacedChange, ...]


def read_scenario(path: Path) -> Scenario:
    """The scenario of a YAML file, or BadInput that lists every fault by file and line."""
    document = read_document(path, path.name)
    faults = list(document.faults)
    changes: list[PlacedChange] = []
    content = document.content
    if isinstance(content, dict):
        faults += [
            document.fault((key,), key, "is not a field here; known are scenario, changes")
            for key in content
            if key not in ("scenario", "changes")
        ]
        name = content.get("scenario")
        if name is not None and not isinstance(name, str):
            faults.append(document.fault(("scenario",), name, "must be text; put it in quotes"))
        rows = content.get("changes")
        if not isinstance(rows, list) or not rows:
            faults.append(
                document.fault(("changes",), rows, f"must list changes, each one of {', '.join(CHANGES)}")
            )
        for index, row in enumerate(rows if isinstance(rows, list) else []):
            for found in _change(document, ("changes", index), row):
                if isinstance(found, Fault):
                    faults.append(found)
                else:
                    changes.append(found)
    elif not faults:
        faults.append(document.fault((), content, "must be a mapping with scenario and changes"))
    if faults:
        refuse(faults)
    assert isinstance(content, dict)
    return Scenario(str(content.get("scenario") or path.stem), tuple(changes))


def refuse(faults: list[Fault]) -> None:
    """Raise BadInput that lists the faults."""
    lines = "\n".join(str(fault) for fault in sorted(faults))
    raise BadInput(f"the scenario cannot be computed\n{lines}")


def _change(document: Document, path: KeyPath, row: object) -> Iterator[PlacedChange | Fault]:
    names = [str(key) for key in row] if isinstance(row, dict) else []
    if not isinstance(row, dict) or len(names) != 1 or names[0] not in CHANGES:
        yield document.fault(path, row, f"must be one change: one of {', '.join(CHANGES)}")
        return
    cls, place = CHANGES[names[0]], (*path, names[0])
    try:
        made = cls.model_validate(row[names[0]])
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            value = MISSING if error["type"] == "missing" else error["input"]
            yield document.fault((*place, *error["loc"]), value, problem(_as_model(cls), error))
        return
    found = PlacedChange(made, document, place)
    said = list(_sense(found))
    if isinstance(made, CapacityContract):
        said += check([Placed(made, document, place)], Named(), references=False)
    if said:
        yield from said
    else:
        yield found


def _as_model(cls: type[Change]) -> type[BaseModel]:
    return cls


def _sense(placed: PlacedChange) -> Iterator[Fault]:
    change = placed.change
    if isinstance(change, Resize) and (change.units is None) == (change.factor is None):
        yield placed.fault("units", change.units, "give units or factor, one of them")
    if isinstance(change, Delay) and change.days > _DAYS_MAX:
        yield placed.fault("days", change.days, f"is longer than {_DAYS_MAX} days, ten years")
    if isinstance(change, Move):
        if change.to_model is None and change.to_pool is None and change.to_provider is None:
            yield placed.fault("to_model", None, "give to_model, to_provider or to_pool: where it moves")
        if not 0 < change.share <= 1:
            yield placed.fault("share", change.share, "must be above 0 and at most 1")
    if isinstance(change, RaiseLimits):
        if change.plan is None and change.contract is None and change.limit is None:
            yield placed.fault("plan", None, "give plan, contract or limit: which limits are raised")
        if change.factor < 1:
            says = "must be at least 1: what a smaller limit would have turned away is not known"
            yield placed.fault("factor", change.factor, says)
    if isinstance(change, ChangePrice):
        if (change.factor is None) == (change.per_million is None):
            yield placed.fault("factor", change.factor, "give factor or per_million, one of them")
        for meter in change.per_million or ():
            if meter not in METERS:
                yield placed.fault("per_million", meter, f"is not a meter; there are {', '.join(METERS)}")
    if isinstance(change, MoveCustomers) and (change.customers is None) == (change.from_plan is None):
        yield placed.fault("customers", change.customers, "give customers or from_plan, one of them")
