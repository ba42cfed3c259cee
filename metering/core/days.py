"""Days of a zone: how far an instant lies in them, so that what is earned by the day is earned by its quarter hours."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import polars as pl

from metering.frames.frame import INSTANT

#: A day of any length that daylight saving leaves (23, 23 1/2, 24, 24 1/2, 25 hours) is this many equal parts,
#: a whole number of them to each of its quarter hours.
DAY_PARTS: Final = 2400 * 23 * 47 * 49


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """When a day of the zone begins, UTC: at the change of the clock where that leaves it without a midnight."""
    return datetime.combine(day, time(), zone).astimezone(UTC)


def placed(rows: pl.DataFrame, *, at: str, zone: str, into: str) -> pl.DataFrame:
    """Give every row the place of its instant `at` in the days of its `zone` (an IANA name): `into`, Int64.

    place(t) = DAY_PARTS x (days from 1970-01-01 to the day of t + elapsed part of that day), so that equal days
    are equally long and within one every quarter hour is. `into`_day is the day. Null stays null.
    """
    wanted = rows.select(at, zone).drop_nulls().unique()
    pieces = [
        _placed(wanted.filter(pl.col(zone) == name), at, ZoneInfo(name), into)
        for name in wanted[zone].unique().sort()
    ]
    columns = [pl.Series(at, [], rows.schema[at]), pl.Series(zone, [], pl.String)]
    columns += [pl.Series(f"{into}_day", [], pl.Date), pl.Series(into, [], pl.Int64)]
    known = pl.concat([pl.DataFrame(columns), *pieces])
    return rows.join(known, on=[at, zone], how="left", validate="m:1")


def _placed(wanted: pl.DataFrame, at: str, zone: ZoneInfo, into: str) -> pl.DataFrame:
    local = wanted.with_columns(pl.col(at).dt.convert_time_zone(zone.key).dt.date().alias("_day"))
    days = local["_day"].unique().sort()
    began = pl.DataFrame(
        {
            "_day": days,
            "_began": [midnight(day, zone) for day in days],
            "_ended": [midnight(day + timedelta(days=1), zone) for day in days],
        },
        schema={"_day": pl.Date, "_began": INSTANT, "_ended": INSTANT},
    )
    elapsed = (pl.col(at) - pl.col("_began")).dt.total_minutes()
    minutes = (pl.col("_ended") - pl.col("_began")).dt.total_minutes()
    return local.join(began, on="_day", validate="m:1").select(
        at,
        pl.lit(zone.key).alias(wanted.columns[1]),
        pl.col("_day").alias(f"{into}_day"),
        (place_of_day(pl.col("_day")) + elapsed * DAY_PARTS // minutes).alias(into),
    )


def place_of_day(day: pl.Expr) -> pl.Expr:
    """The place at which a day begins."""
    return day.to_physical().cast(pl.Int64) * DAY_PARTS
