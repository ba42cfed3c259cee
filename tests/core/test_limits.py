"""Limits: windows, headroom, refusals and what larger limits would burn, by hand computation."""

from datetime import datetime
from decimal import Decimal

import polars as pl
import pytest

from metering.core.limits import limit_windows, raised, raised_demand
from metering.errors import BadInput
from metering.frames import LIMIT_REFUSED, LIMIT_USAGE, LIMIT_WEIGHTS, LIMITS, Books
from metering.periods import Period, parse_period
from metering.results import LIMIT_BURN, LIMIT_WINDOWS, UTILIZATION
from tests.text_tables import check, instant, read

DAY = parse_period("2026-03-10")
BEFORE = "2026-01-01"


def books(limits: str, weights: str = "", **defaults: object) -> Books:
    said = {"customer": "acme", "contract": "acme", "effective_from": BEFORE, "window_minutes": 1, **defaults}
    rows = read(limits, LIMITS, **said)
    if weights:
        return Books(1, limits=rows, limit_weights=read(weights, LIMIT_WEIGHTS, denominator=1))
    each = rows.select("contract", "limit").unique()
    plain = each.with_columns(pl.lit("output_tokens").alias("meter"), weight=1, denominator=1)
    return Books(
        1,
        limits=rows,
        limit_weights=LIMIT_WEIGHTS.conform(plain.cast({"weight": pl.Int64, "denominator": pl.Int64})),
    )


def usage(text: str) -> pl.DataFrame:
    return read(text, LIMIT_USAGE, customer="acme", product="large", project="", seat="")


def refusals(text: str) -> pl.DataFrame:
    return read(text, LIMIT_REFUSED, customer="acme", product="large")


def windows(
    used: pl.DataFrame,
    of: Books,
    turned_away: pl.DataFrame | None = None,
    period: Period = DAY,
    until: datetime | None = None,
) -> pl.DataFrame:
    refused = LIMIT_REFUSED.empty() if turned_away is None else turned_away
    return limit_windows(used, refused, of, period, until or instant("2026-04-01"))


THREE = """
    minute           | output_tokens
    2026-03-10 10:07 | 1
    2026-03-10 14:50 | 60
    2026-03-10 15:02 | 60
"""


def test_an_anchored_window_opens_at_the_first_use_and_a_clock_would_tell_another_story() -> None:
    limits = """
        limit    | holder   | window   | window_minutes | quantity | anchor_at
        anchored | customer | anchored | 300            | 100      | -
        clock    | customer | fixed    | 300            | 100      | 2026-03-10
    """
    check(
        windows(usage(THREE), books(limits)),
        """
        limit    | window_start     | window_until     | used | headroom_ratio | binding | binding_from
        anchored | 2026-03-10 10:07 | 2026-03-10 15:07 | 121  | -0.21          | yes     | 2026-03-10 15:02
        clock    | 2026-03-10 10:00 | 2026-03-10 15:00 | 61   | 0.39           | no      | -
        clock    | 2026-03-10 15:00 | 2026-03-10 20:00 | 60   | 0.4            | no      | -
        """,
    )


def subscribers() -> pl.DataFrame:
    """A thousand seats in one window of a limit of 100; 400 of them reached it, 30 units of each were refused."""
    one = read(
        """
        holder | plan | limit      | held_by | window_start     | window_until     | quantity | used | binding
        seat   | team | five hours | -       | 2026-03-10 10:00 | 2026-03-10 15:00 | 100      | 40   | no
        """.replace("| - ", "| x "),
        LIMIT_WINDOWS,
        customer="acme",
        contract="acme",
        window="fixed",
        window_minutes=300,
        denominator=1,
        open=False,
        headroom_ratio="0.6",
    )
    seat = pl.format("seat-{}", pl.int_range(1000).cast(pl.String).str.zfill(4))
    full = pl.int_range(1000) < 400
    opened = pl.lit(instant("2026-03-10 10:00")).cast(one.schema["binding_from"])
    return LIMIT_WINDOWS.conform(
        pl.concat([one] * 1000).with_columns(
            seat.alias("held_by"),
            full.alias("binding"),
            pl.when(full).then(opened).alias("binding_from"),
            pl.when(full).then(100).otherwise(40).cast(pl.Int128).alias("used"),
            pl.when(full).then(1).otherwise(0).cast(pl.Int64).alias("refused_requests"),
            pl.when(full).then(30).otherwise(0).cast(pl.Int128).alias("refused"),
        )
    )


def minutes(idle: int, burn: int = 0) -> pl.DataFrame:
    """300 minutes of a pool with so much idle in each."""
    one = read(
        "pool | dimension | minute | denominator\nnorth | all | 2026-03-10 10:00 | 1",
        UTILIZATION,
    )
    sums = {"contracted": idle + burn, "available": idle + burn, "burn": burn, "served": burn, "idle": idle}
    return UTILIZATION.conform(
        pl.concat([one] * 300).with_columns(
            pl.col("minute") + pl.duration(minutes=pl.int_range(300)),
            *(pl.lit(value, dtype=pl.Int128).alias(name) for name, value in sums.items()),
        )
    )


BURN = """
    plan | limit      | pool  | dimension | use  | use_denominator | burn | denominator
    team | five hours | north | all       | 8000 | 1               | 8000 | 1
"""


def test_doubling_the_limit_of_a_thousand_subscribers() -> None:
    more = raised(subscribers(), Decimal(2), plans=["team"])
    assert more.height == 400
    assert more.select(pl.col("extra_low", "extra_high").sum()).row(0) == (12_000, 40_000)
    extra = raised_demand(more, read(BURN, LIMIT_BURN), minutes(25_000 // 300), DAY)
    names = [f"{what}_{bound}" for bound in ("low", "high") for what in ("extra", "filled", "spill")]
    # 83 idle in each of 300 minutes is 24,900: 100 less than the 25,000 of the example
    assert extra.select(pl.col(names).sum()).row(0) == (12_000, 12_000, 0, 40_000, 24_900, 15_100)
    one = raised_demand(
        more.with_columns(window_until=instant("2026-03-10 10:01")),
        read(BURN, LIMIT_BURN),
        minutes(25_000),
        DAY,
    )
    assert one.select(names).rows() == [(12_000, 12_000, 0, 40_000, 25_000, 15_000)]
    # at $0.02 a unit
    assert one["spill_high"].item() * Decimal("0.02") == 300


def test_the_burn_of_an_extra_is_that_of_the_use_and_splits_whole_units_first_minutes_first() -> None:
    more = raised(subscribers().filter(pl.col("held_by") == "seat-0000"), Decimal("1.1"))
    assert more.select("quantity_after", "extra_low", "extra_high").rows() == [(110, 10, 10)]
    extra = raised_demand(
        more.with_columns(binding_from=instant("2026-03-10 14:57")),
        read(BURN.replace("8000 | 1               | 8000", "8000 | 1               | 4000"), LIMIT_BURN),
        minutes(0),
        DAY,
    )
    # 10 used more burn 5, over 14:57, 14:58 and 14:59
    assert extra.select("extra_high", "spill_high").rows() == [(2, 2), (2, 2), (1, 1)]
    with pytest.raises(BadInput, match="factor of at least 1"):
        raised(subscribers(), Decimal("0.5"))
    assert raised(subscribers(), Decimal(1))["extra_high"].sum() == 0
    assert raised(subscribers(), Decimal(2), plans=["other"]).is_empty()
