"""Sizing: the cost curve on windows that a controller can add up, break-even, refusals, and where the minimum is."""

from collections import Counter
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from metering.core.capacity import capacity
from metering.core.planning import (
    DEMAND,
    Sizing,
    break_even,
    cost_curve,
    demand,
    mix_cost,
    refused_burn,
    size_pool,
)
from metering.core.recognition import recognised
from metering.frames.usage import POOL_USAGE, REFUSED_REQUESTS
from metering.periods import parse_period
from tests.core.example_books import books, bought, burndown, pool_usage, prices, usage
from tests.text_tables import check, instant, read

START = instant("2026-03-01")
QUANTA = 10**12
WINDOWS = (60, 70, 80, 85, 90, 95, 110, 120, 130, 150)


def asked(**dimensions: tuple[int, ...]) -> pl.DataFrame:
    """DEMAND of ten (or so) minutes in a row."""
    return DEMAND.conform(
        pl.DataFrame(
            [
                {
                    "pool": "block",
                    "dimension": name,
                    "minute": START + timedelta(minutes=at),
                    "denominator": 1,
                    "available": 100,
                    "carved_out": 0,
                    "served": min(amount, 100),
                    "burn": min(amount, 100),
                    "spill": amount - min(amount, 100),
                    "refused": 0,
                    "demand": amount,
                }
                for name, amounts in dimensions.items()
                for at, amount in enumerate(amounts)
            ],
            schema=dict(DEMAND.columns),
        )
    )


def sizing(c: str = "0.25", p: str = "1", sold_in: int = 1, offer: Fraction | None = None) -> Sizing:
    """100 units at `c` a unit and window; what they served costs `p` a unit of burn on demand."""
    return Sizing(
        pool="block",
        currency="USD",
        units={"all": 100},
        unit_burn={"all": 1},
        units_min=0,
        units_sold_in=sold_in,
        unit_cost=Fraction(c) * QUANTA,
        mix_cost={"all": int(Decimal(p) * 1000 * QUANTA)},
        mix_burn={"all": 1000},
        offer_cost=offer,
    )


def best(curve: pl.DataFrame) -> dict[str, object]:
    return curve.row(by_predicate=pl.col("best"), named=True)


def test_the_best_size_of_ten_windows() -> None:
    curve = cost_curve(asked(all=WINDOWS), sizing(), 1000)
    check(
        curve.filter(pl.col("units").is_in([0, 100, 110, 120, 130])),
        """
        units | capacity_cost | on_demand_cost | cost | minutes_above | above_ratio | best | today
        0     | 0             | 990            | 990  | 10            | 1           | no   | no
        100   | 250           | 110            | 360  | 4             | 0.4         | no   | yes
        110   | 275           | 70             | 345  | 3             | 0.3         | no   | no
        120   | 300           | 40             | 340  | 2             | 0.2         | yes  | no
        130   | 325           | 20             | 345  | 1             | 0.1         | no   | no
        """,
    )


def test_demand_that_was_cut_off_misleads() -> None:
    cut_off = cost_curve(asked(all=tuple(min(window, 100) for window in WINDOWS)), sizing(), 1000)
    assert best(cut_off)["units"] == 100
    assert best(cut_off)["cost"] == 250


def test_units_come_in_steps_and_a_tranche_has_its_own_price() -> None:
    assert best(cost_curve(asked(all=WINDOWS), sizing(sold_in=50), 1000))["units"] == 100
    # ten windows of one more unit for 0.15 each: up to where less than 15 % of the windows are above
    dear, cheap = Fraction(QUANTA * 9), Fraction(QUANTA * 3, 2)
    assert best(cost_curve(asked(all=WINDOWS), sizing(offer=cheap), 1000))["units"] == 130
    assert best(cost_curve(asked(all=WINDOWS), sizing(offer=dear), 1000))["units"] == 100


def test_two_dimensions_are_bought_together() -> None:
    """25 in + 2.5 out of each unit: 30 in and 1 out in one minute need 120 units of input; a sixth spills at 100."""
    two = Sizing(
        pool="block",
        currency="USD",
        units={"input": 100, "output": 100},
        unit_burn={"input": 250, "output": 25},
        units_min=0,
        units_sold_in=10,
        unit_cost=Fraction(QUANTA),
        mix_cost={"input": 300 * QUANTA, "output": 60 * QUANTA},
        mix_burn={"input": 30_000, "output": 1_000},
    )
    curve = cost_curve(asked(input=(30_000,), output=(1_000,)), two, 1000)
    check(
        curve.filter(pl.col("units") >= 100),
        """
        units | capacity_cost | on_demand_cost | spill_ratio | minutes_above
        100   | 100           | 60             | 0.166667    | 1
        110   | 110           | 30             | 0.083333    | 1
        120   | 120           | 0              | 0           | 0
        """,
    )


def test_without_an_on_demand_price_there_is_a_risk_and_no_best_size() -> None:
    bare = Sizing("block", "USD", {"all": 100}, {"all": 1}, 0, 10, Fraction(QUANTA, 4))
    curve = cost_curve(asked(all=WINDOWS), bare, 1000)
    assert not curve["best"].any()
    assert curve["cost"].null_count() == curve.height
    check(curve.filter(pl.col("today")), "above_ratio | spill_ratio\n 0.4 | 0.111111")


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=40),
    st.integers(1, 20),
    st.integers(2, 400),
)
def test_the_minimum_is_where_demand_exceeds_with_the_probability_of_the_price_ratio(
    windows: list[int], twentieths: int, sizes_max: int
) -> None:
    """P(demand > K*) <= c / p < P(demand > K* - 1), however few sizes are looked at."""
    found = best(cost_curve(asked(all=tuple(windows)), sizing(c=f"{twentieths / 20}"), sizes_max))
    size = found["units"]
    assert isinstance(size, int)
    counts = Counter(windows)

    def above(level: int) -> Fraction:
        return Fraction(sum(count for window, count in counts.items() if window > level), len(windows))

    assert above(size) <= Fraction(twentieths, 20)
    assert size == 0 or above(size - 1) > Fraction(twentieths, 20)


def test_break_even_of_a_published_offer() -> None:
    """25,000 in a minute for $75 a day against $1.25 a million: 2.08 / 1.25, above 1: it buys availability."""
    scale = Sizing(
        pool="scale",
        currency="USD",
        units={"input": 1},
        unit_burn={"input": 25_000},
        units_min=1,
        units_sold_in=1,
        unit_cost=Fraction(75 * QUANTA, 1440),
        mix_cost={"input": 1_250_000_000},  # what 1,000 tokens cost
        mix_burn={"input": 1_000},
    )
    found = break_even(scale)
    assert found is not None
    assert round(found, 4) == round(Fraction(5, 3), 4)


SOLD = """
    meter                 | unit_price
    uncached_input_tokens | 1
    output_tokens         | 4
"""


def test_a_pool_from_its_books() -> None:
    """An hour of 10 units, a fee that comes to $0.10 a minute; burn 8, spill 4 and 3 refused in its first minute."""
    world = books(
        **bought(
            """
            units | unit_burn_per_minute | fee_per_month
            10    | 1_000_000            | 4464
            """
        ),
        burndown=burndown(
            """
            meter                 | weight
            uncached_input_tokens | 1
            output_tokens         | 4
            """
        ),
        cost_books=prices(SOLD, book="on-demand", item="large"),
        models=pl.DataFrame(
            [{"model": "large", "provider": "own", "name": "Large", "cost_book": "on-demand"}]
        ),
    )
    period = parse_period("2026-03-01T00:00..2026-03-01T01:00")
    rows = usage(
        """
        quarter_start    | pool  | ran_on   | uncached_input_tokens | output_tokens
        2026-03-01 00:00 | block | pool     | 4_000_000             | 1_000_000
        2026-03-01 00:00 | block | overflow | 4_000_000             | 0
        """
    )
    refusals = read(
        """
        occurred_at      | request_id | model   | estimated_input_tokens | estimated_output_tokens
        2026-03-01 00:00 | r1         | large   | 1_000_000              | 500_000
        2026-03-01 00:00 | r2         | -       | 1_000_000              | -
        2026-03-01 00:00 | r3         | unknown | 1                      | -
        """,
        REFUSED_REQUESTS,
        customer="acme",
        pool="block",
    )
    burned, unknown = refused_burn(refusals, world)
    check(burned, "pool | refused\n block | 3_000_000")
    check(unknown, "pool | requests\n block | 2")
    used = capacity(POOL_USAGE.conform(pool_usage(rows)), world, period)
    wanted = demand(used.utilization, burned)
    check(
        wanted.filter(pl.col("demand") > 0),
        "burn | spill | refused | demand\n 8e6 | 4e6 | 3e6 | 15e6".replace("e6", "_000_000"),
    )
    mix = mix_cost(rows, world, period)
    check(mix, "pool | dimension | cost | missing\n block | all | 8_000_000_000_000 | -")
    sized = size_pool("block", wanted, mix, recognised(world, period), world, period, sizes_max=100)
    assert sized is not None
    # $0.01 a unit and minute; 8 million burn cost $8 on demand: 60 minutes of 15 units are dearer than 15
    assert sized.sizing.unit_cost == Fraction(QUANTA, 100)
    assert best(sized.curve)["units"] == 15
    check(
        sized.curve.filter(pl.col("units").is_in([0, 10, 15])),
        """
        units | capacity_cost | on_demand_cost | cost | minutes_above | today
        0     | 0             | 15             | 15   | 1             | no
        10    | 6             | 5              | 11   | 1             | yes
        15    | 9             | 0              | 9    | 0             | no
        """,
    )
    assert break_even(sized.sizing) == Fraction(1, 100)
    # dearer than on demand: nothing is worth buying
    offered = size_pool(
        "block",
        wanted,
        mix,
        recognised(world, period),
        world,
        period,
        unit_price=Decimal(44640),
        sizes_max=100,
    )
    assert offered is not None
    assert best(offered.curve)["units"] == 10
    assert cost_curve(wanted.clear(), sized.sizing, 10).height == 0
