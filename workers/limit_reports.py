"""The report of limits: how much of them was used, where they bind, whom they turn away, and what they promise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Final

import polars as pl
from sqlalchemy import Connection

from metering.core.capacity import capacity
from metering.core.exposure import exposure, limit_burn
from metering.core.limit_refusals import unlimited_refusals
from metering.core.limits import limit_reach, limit_windows, summarise_limits
from metering.core.windows import in_burn_units
from metering.delivery import columns
from metering.delivery.report import Provenance, Report, choose_by, select
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.usage import LIMIT_REFUSED, LIMIT_USAGE
from metering.periods import Period
from metering.results.limits import LIMIT_WINDOWS, LIMITS_BY
from metering.settings import Settings
from metering.store.refusals import read_limit_refused
from metering.store.rollups import read_limit_usage, read_pool_usage, read_usage
from workers.capacity_reports import known_pool
from workers.reports import known

#: What the rows may be about, one at a time.
BY: Final = (*LIMITS_BY, "window")


@dataclass(frozen=True)
class Limited:
    """What limits are counted in: `usage` (frames.LIMIT_USAGE) and `refused` (frames.LIMIT_REFUSED) of `reach`."""

    reach: Period
    usage: pl.DataFrame
    refused: pl.DataFrame


def limited(
    connection: Connection, books: Books, provenance: Provenance, customers: Sequence[str] | None = None
) -> Limited:
    """Read what the windows need that touch a report's cut; nothing where no limit is in force in it.

    customers: only what they used; None: all who have limits.
    """
    reach = limit_reach(books.limits, provenance.cut, provenance.complete_until)
    if customers is None:
        customers = books.limits["customer"].unique().sort().to_list()
    if not customers:
        return Limited(reach, LIMIT_USAGE.empty(), LIMIT_REFUSED.empty())
    span = (reach.start, reach.until, provenance.watermark_id)
    return Limited(
        reach, read_limit_usage(connection, *span, customers), read_limit_refused(connection, *span)
    )


def limits_report(
    connection: Connection, settings: Settings, period: Period, as_of: int | None, *, by: str | None = None
) -> Report:
    """The windows that touch a period up to its cut, by one of BY. BadInput for two, or for another word."""
    about = choose_by(by, BY, ("limit",), "limits")
    if len(about) > 1:
        raise BadInput(f"--by names both {about[0]} and {about[1]}; give one of {', '.join(BY)}")
    provenance, books = known(connection, settings, period, as_of)
    return LimitReport(provenance, books, limited(connection, books, provenance)).by(about[0])


def exposure_report(
    connection: Connection, settings: Settings, period: Period, as_of: int | None, pool: str
) -> Report:
    """What a pool would burn if every holder used its limit. BadInput names the pools where there is none such."""
    provenance, books = known(connection, settings, period, as_of)
    pools = known_pool(pool, books)
    rows, _ = exposed(connection, books, provenance, pool, pools)
    burned = ("exposure", "available", "peak")
    rows = rows.with_columns(
        in_burn_units(pl.col(name), pl.col("denominator")).alias(name) for name in burned
    )
    declared = [column.name for column in columns.EXPOSURE]
    rows = rows.select(declared)
    # a row of all limits together is of no plan or contract
    nobodys = [
        pl.when(pl.col("limit").is_null()).then(pl.lit("")).otherwise(name).alias(name)
        for name in ("plan", "contract")
    ]
    return Report(
        name="exposure",
        title=f"Exposure of {pool} to limits",
        columns=columns.EXPOSURE,
        rows=rows,
        total=rows.clear(),
        provenance=provenance,
        notes=tuple(_exposure_notes(rows)),
        empty=f"no limit of what burned {pool} was in force at the end of the complete part of the period",
        shown=rows.with_columns(nobodys),
        null_texts={**_NULLS, "limit": "(all together)"},
    )


def exposed(
    connection: Connection, books: Books, provenance: Provenance, pool: str, pools: Sequence[str] | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(results.EXPOSURE, results.LIMIT_BURN) of a pool (with those whose carve-out it is) up to a report's cut."""
    cut = provenance.cut
    read = limited(connection, books, provenance)
    usage = read_usage(connection, cut.start, cut.until, provenance.watermark_id)
    pool_usage = read_pool_usage(connection, cut.start, cut.until, provenance.watermark_id, pools)
    minutes = capacity(pool_usage, books, cut)
    here = pl.col("pool") == pool
    burn = limit_burn(usage, books, cut).filter(here)
    utilization = pl.concat([minutes.utilization, minutes.carve_outs]).filter(here)
    return exposure(read.usage, burn, utilization, books, cut), burn


def _exposure_notes(rows: pl.DataFrame) -> list[str]:
    whole = pl.col("limit").is_null() | (pl.len().over("dimension", "window_minutes") == 1)
    return [
        f"windows of {_length(row['window_minutes'])}, {row['dimension']}: the limits of {row['holders']:,} holders "
        f"are {_times(row['exposure_ratio'])} what is available"
        + (
            f"; at the fullest they burned {_times(row['peak_ratio'])}"
            if row["peak_ratio"] is not None
            else ""
        )
        for row in rows.filter(whole).iter_rows(named=True)
        if row["exposure_ratio"] is not None
    ]


def _times(share: Decimal) -> str:
    return f"{share:.2f} x"


def _length(minutes: int) -> str:
    for unit, name in ((1440, "d"), (60, "h")):
        if minutes % unit == 0:
            return f"{minutes // unit} {name}"
    return f"{minutes} min"


@dataclass(frozen=True)
class LimitReport:
    """The limits of a period: `windows`, from which every table of it is made."""

    provenance: Provenance
    books: Books
    read: Limited

    @cached_property
    def windows(self) -> pl.DataFrame:
        """results.LIMIT_WINDOWS of the cut."""
        cut, complete_until = self.provenance.cut, self.provenance.complete_until
        if complete_until is None or not cut.minutes:
            return LIMIT_WINDOWS.empty()
        return limit_windows(self.read.usage, self.read.refused, self.books, cut, complete_until)

    def by(self, about: str) -> Report:
        """By limit, plan, customer or holder; or every window, the least headroom first in tables."""
        rows = self._every_window() if about == "window" else summarise_limits(self.windows, about)
        catalogue = columns.LIMIT_WINDOWS if about == "window" else columns.LIMITS
        # a holder counts as one
        left_out = ("holders", "holders_binding") if about == "holder" else ()
        declared = [
            column.name for column in catalogue if column.name in rows.columns and column.name not in left_out
        ]
        rows = rows.select(declared)
        key = LIMITS_BY.get(about, LIMIT_WINDOWS.key)
        order = (
            ["headroom_ratio"] if about == "window" else ["refused_requests", "windows_binding", "max_ratio"]
        )
        return Report(
            name="limits",
            title=f"Limits by {about}",
            columns=select(catalogue, declared),
            rows=rows,
            total=rows.clear(),
            provenance=self.provenance,
            notes=tuple(self._notes()),
            empty="no limit was in force, or nothing was used under one, in the complete part of the period",
            # whom it turns away most, or who has least room, first
            shown=rows.sort(
                [*order, *key],
                descending=[about != "window"] * len(order) + [False] * len(key),
                nulls_last=False,
            ),
            null_texts=_NULLS,
        )

    def _every_window(self) -> pl.DataFrame:
        units = [
            in_burn_units(pl.col(name), pl.col("denominator")).alias(name) for name in ("used", "refused")
        ]
        return self.windows.with_columns(units)

    def _notes(self) -> list[str]:
        cut = self.provenance.cut
        notes = []
        unestimated = self.windows["refused_unestimated"].sum()
        if unestimated:
            notes.append(
                f"{unestimated:,} refused requests have no estimate: what was refused is a lower bound"
            )
        if not self.windows["refused_requests"].sum() and self.windows["binding"].any():
            notes.append(
                "limits were reached, and no event says that a request was refused: what was turned away is not known"
            )
        open_ = self.windows["open"].sum()
        if open_:
            notes.append(f"{open_:,} windows are still open: more may be used of them")
        strangers = unlimited_refusals(self.read.refused, self.books, cut)
        if strangers.height:
            names = ", ".join(strangers["customer"][:3])
            more = f" and {strangers.height - 3} more" if strangers.height > 3 else ""
            notes.append(
                f"{strangers['requests'].sum():,} requests were refused by a limit that the catalog does not have, "
                f"of {names}{more}; not in the figures"
            )
        return notes


_NULLS: Final[Mapping[str, str]] = {"plan": "(own)", "contract": "(of the plan)", "binding_from": "-"}
