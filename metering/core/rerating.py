"""Rerating: the same usage under two catalogs, and what differs, line by line; never a journal of differences."""

from collections.abc import Sequence
from typing import Final

import polars as pl

from metering.core.adjustment import adjustment
from metering.frames import Frame
from metering.money import MONEY
from metering.results import LINE_KEY

#: What a line is about, whatever a catalog says of its customer.
RERATED_KEY: Final = ("day", "customer", "line", "product", "tier_sold", "provider", "model_served", "pool")
#: What is compared: usage-basis cost, and with it the idle that is carried.
RERATED_AMOUNTS: Final = ("charge", "fee", "revenue", "cost", "cost_loaded")
_CHANGES: Final = [f"{name}_change" for name in RERATED_AMOUNTS]
_FLAGS: Final = ("charge_unrated", "cost_unrated")
#: Lines that differ, with what they were, what they are, and change = now - before, all in one currency.
RERATED: Final = Frame(
    "RERATED",
    {
        **{name: LINE_KEY[name] for name in RERATED_KEY},
        **{f"{name}_{what}": MONEY for name in RERATED_AMOUNTS for what in ("before", "now", "change")},
        **dict.fromkeys(_FLAGS, pl.Boolean),  # of the line now: a part has no price, or no cost
        "currency": pl.String,
    },
    key=RERATED_KEY,
    nullable=frozenset(RERATED_KEY) - {"day", "line"},
    laws={
        f"{name}_change = {name}_now - {name}_before": pl.col(f"{name}_change")
        == pl.col(f"{name}_now") - pl.col(f"{name}_before")
        for name in RERATED_AMOUNTS
    },
)


def rerated(now: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
    """RERATED of results.MARGIN_LINES of the same usage under two catalogs, in one currency.

    Kind, segment and whatever else a catalog says of a customer are summed over. Comparing a catalog with itself
    leaves no line.
    """
    key, amounts = list(RERATED_KEY), list(RERATED_AMOUNTS)
    changed = adjustment(now, before, by=key, amounts=amounts)
    sums = [
        lines.group_by(key).agg(
            *(pl.col(name).sum().alias(f"{name}_{what}") for name in amounts), pl.col(_FLAGS).any()
        )
        for lines, what in ((before, "before"), (now, "now"))
    ]
    was, is_ = sums[0].drop(_FLAGS), sums[1]
    currency = pl.concat([now["currency"], before["currency"]]).unique()
    rows = (
        changed.rename(dict(zip(amounts, _CHANGES, strict=True)))
        .join(was, on=key, how="left", nulls_equal=True, validate="1:1")
        .join(is_, on=key, how="left", nulls_equal=True, validate="1:1")
        .with_columns(
            *(
                pl.col(f"{name}_{what}").fill_null(pl.lit(0, dtype=MONEY))
                for name in amounts
                for what in ("before", "now")
            ),
            *(pl.col(name).fill_null(value=False) for name in _FLAGS),
            pl.lit(currency.item() if len(currency) else "").alias("currency"),
        )
    )
    return RERATED.conform(rows)


def summed(lines: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """RERATED lines by some of their key, the largest change of revenue less cost first; lines that cancel stay."""
    moved = pl.sum_horizontal(pl.col("revenue_change").abs(), pl.col("cost_change").abs())
    names = [name for name in RERATED.columns if RERATED.columns[name] == MONEY]
    return (
        lines.group_by(by)
        .agg(pl.col(names).sum(), pl.col(_FLAGS).any(), pl.col("currency").first())
        .sort([moved, *by], descending=[True, *(False for _ in by)], nulls_last=True)
    )
