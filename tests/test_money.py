"""Money: exact conversions, half-even ratios, refusals by name."""

from decimal import Decimal
from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.errors import BadInput
from metering.frames.frame import SUM
from metering.money import (
    MONEY,
    RATIO,
    decimal_to_quanta,
    from_quanta,
    ratio,
    refuse_beyond,
    round_to_minor_unit,
    to_quanta,
)

QUANTA = st.integers(-(10**26) + 1, 10**26 - 1)


def one(value: int) -> pl.DataFrame:
    return pl.DataFrame({"n": [value]}, schema={"n": SUM})


@given(QUANTA)
def test_quanta_and_money_are_the_same_number(quanta):
    amount = one(quanta).select(from_quanta(pl.col("n"))).item()
    assert amount == Decimal(quanta).scaleb(-12)
    assert decimal_to_quanta(amount) == quanta
    assert pl.DataFrame({"a": [amount]}, schema={"a": MONEY}).select(to_quanta(pl.col("a"))).item() == quanta


def test_an_amount_finer_than_the_quantum_is_never_rounded_away():
    with pytest.raises(AssertionError, match="finer"):
        decimal_to_quanta(Decimal("0.0000000000001"))


@given(st.integers(-(2**86), 2**86), st.integers(-5, 2**86))
def test_ratios_are_half_even_at_six_places(numerator, denominator):
    frame = pl.DataFrame({"n": [numerator], "d": [denominator]}, schema={"n": SUM, "d": SUM})
    found = frame.select(ratio(pl.col("n"), pl.col("d")).alias("r"))
    assert found.schema["r"] == RATIO
    wanted = None if denominator <= 0 else round(Fraction(numerator, denominator) * 10**6)
    assert found.item() == (None if wanted is None else Decimal(f"{wanted}e-6"))


@pytest.mark.parametrize(
    ("numerator", "shown"), [(5, "0.000000"), (15, "0.000002"), (25, "0.000002"), (-5, "0")]
)
def test_a_half_goes_to_the_even_side(numerator, shown):
    frame = pl.DataFrame({"n": [numerator], "d": [10**7]}, schema={"n": SUM, "d": SUM})
    assert frame.select(ratio(pl.col("n"), pl.col("d"))).item() == Decimal(shown)


def test_a_limit_is_refused_by_name():
    with pytest.raises(BadInput, match=r"n is beyond 7 in \{'n': -8\}; look"):
        refuse_beyond(one(-8), "n", 7, "look")
    assert refuse_beyond(one(7), "n", 7, "look").height == 1


def test_rounding_to_the_minor_unit_is_half_even():
    assert round_to_minor_unit(Decimal("0.125")) == Decimal("0.12")
    assert round_to_minor_unit(Decimal("0.135")) == Decimal("0.14")
