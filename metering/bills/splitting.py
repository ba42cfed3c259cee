"""Credits of a whole invoice, split over its charges: largest remainder, to the minor unit, nothing lost."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from metering.bills.document import BillLine, minor_digits
from metering.money import decimal_to_quanta


def split_over(charges: Sequence[BillLine], credit: BillLine, currency: str) -> list[BillLine]:
    """The parts of a credit that names no object, one for each charge, in proportion to their amounts.

    Each part is of the object of its charge and of the span of the credit, named `CREDIT/CHARGE`. The parts
    sum to the credit exactly; the unit is the currency's minor unit or, of a finer credit, its last place;
    ties go to the charge that stands first. A part of nothing is left out. Some charge is above 0.
    """
    exponent = credit.amount.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    unit = Decimal(1).scaleb(min(exponent, -minor_digits(currency)))
    total = int(abs(credit.amount) / unit)
    weights = [decimal_to_quanta(line.amount) for line in charges]
    whole = sum(weights)
    assert whole > 0, "nothing to split over"
    parts = [total * weight // whole for weight in weights]
    order = sorted(range(len(charges)), key=lambda at: (-(total * weights[at] % whole), at))
    for at in order[: total - sum(parts)]:
        parts[at] += 1
    sign = -1 if credit.amount < 0 else 1
    return [
        replace(
            credit,
            line=f"{credit.line}/{charge.line}",
            object_kind=charge.object_kind,
            object=charge.object,
            amount=sign * part * unit,
            split_of=credit.line,
        )
        for charge, part in zip(charges, parts, strict=True)
        if part
    ]
