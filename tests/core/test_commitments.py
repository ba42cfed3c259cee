"""Commitments by hand: tranches, what rolls over, who draws first; and what must hold for any of them."""

from datetime import timedelta
from random import Random
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.core.commitments import (
    DRAWDOWN,
    DRAWN,
    ELIGIBLE,
    TRANCHES,
    Drawdown,
    continued,
    draw_down,
    pace,
)
from metering.core.effective import slices
from metering.frames.frame import SUM
from metering.periods import Period
from tests.text_tables import check, instant, read

LATER = instant("2030-01-01")
#: The example: charges of 0.8, 2.5 and 2.9 M in three years.
SPENT = """
slice_start | amount
2026-06-01  |   800_000
2027-02-01  | 2_000_000
2027-06-01  |   500_000
2028-06-01  | 2_900_000
"""


def tranches(text: str, **given: Any) -> pl.DataFrame:
    defaults = {"holder": "cloud", "commitment": "spend", "shortfall_rule": "true_up"}
    return read(text, TRANCHES, **{**defaults, **given})


def eligible(text: str, **given: Any) -> pl.DataFrame:
    return read(text, ELIGIBLE, **{"holder": "cloud", "account": "on_demand", **given})


def years(**given: Any) -> pl.DataFrame:
    return tranches(
        """
        effective_from | effective_until | committed
        2026-01-01     | 2027-01-01      | 1_000_000
        2027-01-01     | 2028-01-01      | 2_000_000
        2028-01-01     | 2029-01-01      | 3_000_000
        """,
        **given,
    )


def paid(spent: pl.DataFrame, done: Drawdown) -> int:
    return int(spent["amount"].sum() + done.tranches["shortfall"].sum())


def test_one_term_an_annual_true_up_and_one_with_roll_over_pay_what_they_should() -> None:
    spent = eligible(SPENT)
    one = tranches(
        """
        effective_from | effective_until | committed
        2026-01-01     | 2029-01-01      | 6_000_000
        """
    )
    assert paid(spent, draw_down(one, spent, LATER)) == 6_200_000
    annual = draw_down(years(), spent, LATER)
    assert paid(spent, annual) == 6_500_000
    check(
        annual.tranches,
        """
        effective_from | committed | drawdown  | shortfall | overage
        2026-01-01     | 1_000_000 |   800_000 |   200_000 |       0
        2027-01-01     | 2_000_000 | 2_000_000 |         0 | 500_000
        2028-01-01     | 3_000_000 | 2_900_000 |   100_000 |       0
        """,
    )
    rolled = draw_down(years(shortfall_rule="roll_over"), spent, LATER)
    assert paid(spent, rolled) == 6_300_000
    check(
        rolled.tranches,
        """
        effective_from | rolled | committed | drawdown  | rolled_over | shortfall | overage
        2026-01-01     | no     | 1_000_000 |   800_000 |     200_000 |         0 |       0
        2027-01-01     | yes    |   200_000 |   200_000 |           0 |         0 |       0
        2027-01-01     | no     | 2_000_000 | 2_000_000 |           0 |         0 | 300_000
        2028-01-01     | no     | 3_000_000 | 2_900_000 |           0 |   100_000 |       0
        """,
    )


def test_what_rolls_over_has_a_cap_and_an_end() -> None:
    # the cap lets 50 k of the 200 k roll: the rest is due at once
    capped = draw_down(years(shortfall_rule="roll_over", roll_over_max=50_000), eligible(SPENT), LATER)
    first = capped.tranches.row(0, named=True)
    assert (first["rolled_over"], first["shortfall"]) == (50_000, 150_000)
    # what rolled over expires before anything could draw it
    expired = draw_down(
        years(shortfall_rule="roll_over", roll_over_until="2027-02-01"), eligible(SPENT), LATER
    )
    check(
        expired.tranches.filter(pl.col("effective_from") < instant("2028-01-01")),
        """
        effective_from | rolled | committed | drawdown  | rolled_over | shortfall | overage
        2026-01-01     | no     | 1_000_000 |   800_000 |     200_000 |         0 |       0
        2027-01-01     | yes    |   200_000 |         0 |           0 |   200_000 |       0
        2027-01-01     | no     | 2_000_000 | 2_000_000 |           0 |         0 | 500_000
        """,
    )


def test_an_open_tranche_has_no_shortfall_yet_and_the_crossing_slice_is_split() -> None:
    done = draw_down(years(), eligible(SPENT), instant("2027-07-01"))
    check(
        done.tranches,
        """
        effective_from | drawdown  | shortfall | remaining | overage
        2026-01-01     |   800_000 |   200_000 |         0 |       0
        2027-01-01     | 2_000_000 |         0 |         0 | 500_000
        2028-01-01     |         0 |         0 | 3_000_000 |       0
        """,
    )
    crossing = eligible("slice_start | amount\n2026-02-01 | 900_000\n2026-03-01 | 300_000")
    done = draw_down(years(), crossing, LATER)
    check(done.drawn, "slice_start | amount\n2026-02-01 | 900_000\n2026-03-01 | 100_000")
    check(done.overage, "slice_start | amount\n2026-03-01 | 200_000")


def test_of_several_the_earliest_end_draws_first_and_each_draws_only_what_counts_toward_it() -> None:
    both = tranches(
        """
        commitment | effective_from | effective_until | committed | draws
        long       | 2026-01-01     | 2028-01-01      | 100       | all
        short      | 2026-01-01     | 2027-01-01      |  30       | on_demand
        """
    )
    spent = eligible(
        """
        slice_start | account   | amount
        2026-01-01  | on_demand | 20
        2026-01-01  | capacity  | 50
        2026-02-01  | on_demand | 25
        2027-02-01  | on_demand | 40
        """
    )
    done = draw_down(both, spent, LATER)
    check(
        done.drawn,
        """
        commitment | slice_start | account   | amount
        short      | 2026-01-01  | on_demand | 20
        short      | 2026-02-01  | on_demand | 10
        long       | 2026-01-01  | capacity  | 50
        long       | 2026-02-01  | on_demand | 15
        long       | 2027-02-01  | on_demand | 35
        """,
    )
    check(done.overage, "slice_start | account | amount\n2027-02-01 | on_demand | 5")


def test_pace_compares_with_an_even_drawdown_and_nothing_elapsed_has_none() -> None:
    rows = pl.DataFrame(
        {"drawn": [60, 0, 60], "committed": [100, 100, 0], "elapsed": [50, 0, 50]},
        schema=dict.fromkeys(("drawn", "committed", "elapsed"), SUM),
    )
    columns = [pl.col(name) for name in rows.columns]
    shown = rows.with_columns(pace(*columns, pl.lit(100, dtype=SUM)).alias("pace"))
    check(shown, "elapsed | committed | pace\n50 | 100 | 1.2\n0 | 100 | -\n50 | 0 | -")


def test_a_run_rate_goes_on_by_the_day_and_adds_up() -> None:
    spent = eligible("slice_start | amount\n2026-01-01 | 1_000\n2026-01-08 | 140\n2026-01-14 | 70")
    noon = instant("2026-01-15 12:00")
    future = continued(spent, noon, 7, slices(Period("ahead", noon, instant("2026-01-18"))))
    # the week before the cut holds 70 alone: 10 a day
    check(
        future,
        """
        slice_start      | amount
        2026-01-15 12:00 | 5
        2026-01-16 00:00 | 10
        2026-01-17 00:00 | 10
        """,
    )


def _world(dice: Random) -> tuple[pl.DataFrame, pl.DataFrame]:
    start = instant("2026-01-01")
    tranche_rows = []
    for commitment in ("a", "b", "c")[: dice.randint(1, 3)]:
        edge = dice.randint(0, 4)
        for _ in range(dice.randint(1, 3)):
            length = dice.randint(1, 6)
            rule = dice.choice(["true_up", "roll_over", "forfeit"])
            expires = dice.choice([None, start + timedelta(days=edge + length + dice.randint(0, 5))])
            tranche_rows.append(
                {
                    "holder": "s",
                    "commitment": commitment,
                    "effective_from": start + timedelta(days=edge),
                    "effective_until": start + timedelta(days=edge + length),
                    "committed": dice.choice([0, 5, 40, 100]),
                    "draws": dice.choice([[], ["x"], ["y"], ["x", "y"]]),
                    "shortfall_rule": rule,
                    "roll_over_max": dice.choice([None, 0, 10]),
                    "roll_over_until": expires if rule == "roll_over" else None,
                }
            )
            edge += length + dice.randint(0, 2)
    spent = [
        {
            "holder": holder,
            "slice_start": start + timedelta(days=day),
            "account": account,
            "part": part,
            "amount": amount,
        }
        for day in range(20)
        for account in ("x", "y", "z")
        for part in (1, 2)
        for holder in ("s", "t")
        if (amount := dice.choice([0, 0, 3, 17, 60]))
    ]
    return (
        TRANCHES.conform(pl.DataFrame(tranche_rows, schema=dict(TRANCHES.columns))),
        ELIGIBLE.conform(pl.DataFrame(spent, schema=dict(ELIGIBLE.columns))),
    )


@settings(max_examples=40)
@given(st.randoms(use_true_random=False))
def test_nothing_is_drawn_twice_or_lost(dice: Random) -> None:
    tranche_rows, spent = _world(dice)
    until = instant("2026-01-01") + timedelta(days=dice.randint(0, 25))
    done = draw_down(tranche_rows, spent, until)
    assert (done.tranches.columns, done.drawn.columns) == (list(DRAWDOWN.columns), list(DRAWN.columns))
    seen = spent.filter(pl.col("slice_start") < until)
    drawn, over = done.drawn["amount"].sum(), done.overage["amount"].sum()
    assert drawn + over == seen["amount"].sum()
    assert done.tranches["drawdown"].sum() == drawn
    # what rolled over is committed again, no more and no less, and never from what is still open
    rolled = done.tranches.filter("rolled")["committed"].sum()
    assert rolled == done.tranches["rolled_over"].sum()
    least = [pl.col(name).min() for name in ("drawdown", "rolled_over", "shortfall", "remaining")]
    assert min(done.tranches.select(least).row(0)) >= 0
    # the order of rows says nothing, and a holder without tranches has overage alone
    again = draw_down(tranche_rows.sample(fraction=1, shuffle=True, seed=1), spent.reverse(), until)
    assert again.tranches.equals(done.tranches)
    assert again.drawn.equals(done.drawn)
    assert not done.drawn["holder"].is_in(["t"]).any()
