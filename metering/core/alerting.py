"""Alerting: which alerts open and which resolve, from what is found now and what was said before."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

import polars as pl

from metering.frames.frame import Frame
from metering.money import MONEY, ZERO
from metering.periods import QUARTER, Period, floor_to_quarter, month_start, next_month_start

#: How long into a month the month before is still judged: late usage and a worker that was down.
MONTH_BEFORE: Final = timedelta(days=3)

#: What a rule found: one row per scope (a customer) and period that it judged.
FINDINGS: Final = Frame(
    "FINDINGS",
    {
        "scope": pl.String,
        "period": pl.String,
        "holds": pl.Boolean,  # the condition is met: open
        "clear": pl.Boolean,  # it is safely not met: resolve. Neither: leave the alert as it is
        "impact": MONEY,  # how much is at stake, in the reporting currency; 0 where it does not hold
    },
    key=("scope", "period"),
    laws={
        "holds or clear, not both": ~(pl.col("holds") & pl.col("clear")),
        "impact is not negative": pl.col("impact") >= 0,
    },
)
#: The last entry of each alert of one rule. Odd sequences opened it, even ones resolved it.
STATES: Final = Frame(
    "STATES",
    {"scope": pl.String, "sequence": pl.Int32, "state": pl.String},
    key=("scope",),
    laws={
        "odd is opened, even is resolved": pl.col("state")
        == pl.when(pl.col("sequence") % 2 == 1).then(pl.lit("opened")).otherwise(pl.lit("resolved"))
    },
)
#: Entries to append. `period` is the one whose numbers tell why.
CHANGES: Final = Frame(
    "CHANGES",
    {"scope": pl.String, "sequence": pl.Int32, "state": pl.String, "period": pl.String, "impact": MONEY},
    key=("scope",),
    laws=STATES.laws,
)


def judged_periods(complete_until: datetime | None) -> list[Period]:
    """The months that money alerts judge, oldest first; none when nothing is complete. The caller cuts them.

    The month of the last complete quarter hour, and the month before it until three days into it. So a month
    is judged to its very end, however far behind the data are, and no clock is asked.
    """
    if complete_until is None:
        return []
    edge = floor_to_quarter(complete_until)
    start = month_start((edge - QUARTER).date())
    months = [start]
    if edge - start <= MONTH_BEFORE:
        months.insert(0, month_start((start - QUARTER).date()))
    return [Period(f"{month:%Y-%m}", month, next_month_start(month.date())) for month in months]


def margin_findings(summary: pl.DataFrame, period: str, resolve_band_ratio: Decimal) -> pl.DataFrame:
    """Findings of the rule margin_breach from margins by customer, on the floor's basis (margin.on_floor_basis).

    holds = breach (margin < floor x revenue, or revenue <= 0 with cost > 0). clear = no floor in force; or no
    breach, no cost unknown, and margin >= (floor + band) x revenue. band = `resolve_band_ratio`, but at most
    half of what lies between the floor and 1. impact = floor x revenue - margin, the money that is missing.
    """
    customers = summary.filter(pl.col("customer").is_not_null())
    holds = pl.col("breach").fill_null(value=False)
    floor = pl.col("floor_ratio").fill_null(ZERO)
    has_floor = pl.col("floor_ratio").is_not_null() & (pl.col("kind") == "paying").fill_null(value=False)
    half_of_room = (pl.lit(1, dtype=MONEY) - floor) * pl.lit(Decimal("0.5"), dtype=MONEY)
    band = pl.min_horizontal(half_of_room, pl.lit(resolve_band_ratio, dtype=MONEY))
    above_band = ~pl.col("cost_unrated") & (pl.col("margin") >= (floor + band) * pl.col("revenue"))
    missing = floor * pl.col("revenue") - pl.col("margin")
    return FINDINGS.conform(
        customers.select(
            pl.col("customer").alias("scope"),
            pl.lit(period).alias("period"),
            holds.alias("holds"),
            (~holds & (~has_floor | above_band)).alias("clear"),
            pl.when(holds).then(missing).otherwise(pl.lit(ZERO, dtype=MONEY)).cast(MONEY).alias("impact"),
        )
    )


def changes(findings: pl.DataFrame, states: pl.DataFrame, period: str) -> pl.DataFrame:
    """What to append to the alerts of one rule: each opens at most once and resolves at most once in between.

    findings: FINDINGS of every period judged; states: STATES. An alert opens when it is not open and its
    condition holds in any period (`period` of the entry: the one with the largest impact), and resolves when
    it is open and clear in all of them. A scope that the rule did not find at all is clear, in `period`.
    """
    found = (
        findings.sort("impact", "period", descending=True)
        .group_by("scope", maintain_order=True)
        .agg(
            pl.col("holds").any(),
            pl.col("clear").all(),
            pl.col("impact").first(),
            pl.when(pl.col("holds").any())
            .then(pl.col("period").filter(pl.col("holds")).first())
            .otherwise(pl.col("period").max())
            .alias("period"),
        )
    )
    both = found.join(states, on="scope", how="full", coalesce=True, validate="1:1").with_columns(
        pl.col("holds").fill_null(value=False),
        pl.col("clear").fill_null(value=True),
        pl.col("sequence").fill_null(0),
        pl.col("period").fill_null(period),
        pl.col("impact").fill_null(ZERO).cast(MONEY),
        (pl.col("state") == "opened").fill_null(value=False).alias("is_open"),
    )
    opens, resolves = ~pl.col("is_open") & pl.col("holds"), pl.col("is_open") & pl.col("clear")
    return CHANGES.conform(
        both.filter(opens | resolves).with_columns(
            (pl.col("sequence") + 1).cast(pl.Int32).alias("sequence"),
            pl.when(opens).then(pl.lit("opened")).otherwise(pl.lit("resolved")).alias("state"),
        )
    )


def messages(appended: pl.DataFrame, per_rule_max: int) -> list[pl.DataFrame]:
    """Share out entries (CHANGES) to messages: each its own, or one digest of a kind.

    More than `per_rule_max` of a kind are one digest; exactly that many still go one by one. Openings come
    first, the largest impact before smaller ones, ties by scope.
    """
    shared: list[pl.DataFrame] = []
    for state in ("opened", "resolved"):
        rows = appended.filter(pl.col("state") == state).sort("impact", "scope", descending=[True, False])
        shared.extend([rows] if rows.height > per_rule_max else rows.iter_slices(1))
    return [rows for rows in shared if rows.height]
