"""The quota report: how full the rate limits of what runs on demand were."""

from typing import Final

import polars as pl
from sqlalchemy import Connection

from metering.core.capacity import summarise_capacity
from metering.core.quotas import quota_use
from metering.core.windows import WINDOWS, capacity_hours_of_week, capacity_windows, in_burn_units
from metering.delivery import columns
from metering.delivery.report import Report, choose_by, select
from metering.errors import BadInput
from metering.frames.frame import SUM
from metering.periods import DAY, Period
from metering.results.costs import POOL_COST
from metering.settings import Settings
from metering.store.rollups import read_on_demand_usage
from workers.reports import known

#: What the rows may be about; of all but `quota` one at a time.
QUOTA_BY: Final = ("quota", *WINDOWS, "hour_of_week")
_ORDER: Final = ("quota", "dimension", "window_start", "hour_of_week")


def quota_report(
    connection: Connection, settings: Settings, period: Period, as_of: int | None, by: str | None = None
) -> Report:
    """Per quota and dimension for the whole period, or by one more of QUOTA_BY, on every minute in force.

    `connection` is one snapshot (store.postgres.reading); as_of None: live, the open interval included.
    """
    words = [word for word in choose_by(by, QUOTA_BY, ("quota",), "quotas") if word != "quota"]
    if len(words) > 1:
        raise BadInput(f"--by names both {words[0]} and {words[1]}; give one of them")
    provenance, books = known(connection, settings, period, as_of)
    minutes = pl.concat(
        quota_use(read_on_demand_usage(connection, week.start, week.until, as_of), books, week)
        for week in provenance.cut.runs(7 * DAY)
    )
    about = words[0] if words else "quota"
    if about == "quota":
        rows = summarise_capacity(minutes).drop("tightest", "pool_minutes_at_limit")
    elif about == "hour_of_week":
        rows = capacity_hours_of_week(minutes, POOL_COST.empty())
    else:
        rows = capacity_windows(minutes, POOL_COST.empty(), about)
    rows = rows.with_columns(
        in_burn_units(pl.col(name), pl.col("denominator")).alias(name)
        for name, dtype in rows.schema.items()
        if dtype == SUM
    ).rename({"pool": "quota"})
    limits = books.quotas.select("quota", "provider").unique()
    rows = rows.join(limits, on="quota", how="left", validate="m:1")
    declared = [column.name for column in columns.QUOTAS if column.name in rows.columns]
    rows = rows.select(declared).sort([name for name in _ORDER if name in declared])
    return Report(
        name="quotas",
        title=f"Quotas by quota, dimension{'' if about == 'quota' else ', ' + about.replace('_', ' ')}",
        columns=select(columns.QUOTAS, declared),
        rows=rows,
        total=rows.clear(),
        provenance=provenance,
        notes=(
            "a provider may count by shorter windows than the minute; what exceeds one of those and not its "
            "minute is not seen",
        )
        if rows.height
        else (),
        empty="the catalog has no quota in force in the complete part of the period",
    )
