"""Reconcile: a supplier's usage file beside what the ledger says that this supplier served."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import polars as pl
from sqlalchemy import Connection

from metering.bills.usage_export import UsageExport
from metering.core.reconciliation import REACH, STATUSES, reconcile
from metering.delivery import columns
from metering.delivery.report import Report, instant, select
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.frame import INSTANT
from metering.money import ratio, to_quanta
from metering.periods import Period, ceil_to_quarter
from metering.settings import Settings
from metering.store.rollups import read_served
from workers.reports import known

RAN_ON: Final = ("pool", "overflow", "on_demand")
_SAYS: Final = {
    "matched": "match",
    "differs": "differ",
    "theirs_only": "are in the file alone",
    "ours_only": "are in the ledger alone",
}


@dataclass(frozen=True)
class Reconciliation:
    """The report, and whether there was something to compare and all of it matched."""

    report: Report
    matched: bool


def reconcile_usage(
    connection: Connection,
    settings: Settings,
    supplier: str,
    export: UsageExport,
    tolerance_ratio: Decimal,
    as_of: int | None = None,
    ran_on: Sequence[str] = RAN_ON,
) -> Reconciliation:
    """Compare a supplier's usage file with the ledger, by its hours or days, models and units; reads only.

    `ran_on`: what of our usage the file is about, some of RAN_ON.

    What is after the cut is not compared, and the report says how much that is. BadInput for a supplier of whom
    neither the catalog nor the ledger knows a model.
    """
    first, last = export.buckets["starts"].min(), export.buckets["ends"].max()
    period = Period(f"usage of {supplier}", first, ceil_to_quarter(last))  # type: ignore[arg-type]
    provenance, books = known(connection, settings, period, as_of)
    complete = provenance.cut.until
    buckets = export.buckets.filter(pl.col("ends") <= pl.lit(complete, dtype=INSTANT))
    served = read_served(connection, period.start - REACH, period.until + REACH, as_of, supplier)
    served = served.filter(pl.col("ran_on").is_in(ran_on))
    if served.is_empty():
        _refuse_unknown(supplier, books)
    theirs = export.theirs.join(buckets.select("starts"), on="starts", how="semi")
    rows = reconcile(theirs, served, books, buckets, export.precision, tolerance_ratio)
    left_out = export.buckets.height - buckets.height
    notes = _notes(rows)
    if left_out:
        notes.append(
            f"{left_out} of {export.buckets.height} hours or days of the file end after "
            f"{instant(complete)}, up to which input is complete: they are not compared"
        )
    declared = [column.name for column in columns.RECONCILED]
    # what does not match is what the reader is here for
    shown = rows.sort(pl.col("status") == "matched", *rows.columns[:1], "model", "unit").select(declared)
    report = Report(
        name="reconciliation",
        title=f"Usage of {supplier}: theirs against ours",
        columns=select(columns.RECONCILED, declared),
        rows=rows.select(declared),
        total=rows.select(declared).clear(),
        provenance=provenance,
        notes=tuple(notes),
        empty="neither the file nor the ledger has usage in the complete part of it",
        shown=shown,
    )
    return Reconciliation(report, bool(rows.height and (rows["status"] == "matched").all()))


def _refuse_unknown(supplier: str, books: Books) -> None:
    known_suppliers = sorted(books.models["provider"].unique())
    if supplier not in known_suppliers:
        raise BadInput(
            f"--supplier '{supplier}' serves no model of the catalog and no usage; "
            f"the catalog knows {', '.join(known_suppliers) or 'none'}"
        )


def _notes(rows: pl.DataFrame) -> list[str]:
    counts = {status: rows.filter(pl.col("status") == status).height for status in STATUSES}
    said = ", ".join(f"{count:,} {_SAYS[status]}" for status, count in counts.items() if count)
    notes = [f"of {rows.height:,} rows {said}"] if rows.height else []
    for reason, count in sorted(rows["reason"].drop_nulls().value_counts().iter_rows()):
        notes.append(f"likely reason of {count:,}: {_REASONS.get(reason.split()[0], '{}').format(reason)}")
    captured = (
        rows.group_by("unit")
        .agg(pl.col("ours", "theirs").sum())
        .with_columns(ratio(pl.col("ours"), pl.col("theirs")).alias("captured"))
        .filter(pl.col("captured").is_not_null())
        .sort("unit")
    )
    if captured.height:
        shares = ", ".join(f"{unit} {share * 100:.2f} %" for unit, _, _, share in captured.iter_rows())
        notes.append(f"captured, ours of theirs: {shares}")
    amounts = rows.filter(pl.col("amount_ours").is_not_null()).group_by("currency").agg(
        to_quanta(pl.col("amount_ours")).sum().alias("ours"),
        to_quanta(pl.col("amount_theirs")).sum().alias("theirs"),
    ).with_columns(ratio(pl.col("ours"), pl.col("theirs")).alias("captured"))  # fmt: skip
    for currency, _, _, share in amounts.sort("currency").iter_rows():
        if share is not None:
            notes.append(f"captured of their amounts in {currency}: {share * 100:.2f} %")
    return notes


_REASONS: Final = {
    "time_zone": "{}: moved by so many hours, ours match: their hours or days are not UTC",
    "cache_counted_twice": "they match ours with the cache reads counted once more",
    "reasoning_counted_twice": "they match ours with the reasoning tokens counted once more",
    "unbilled_attempts_left_out": "they match ours without the attempts that we do not bill (retries, failures)",
    "rounding": "the difference is below the step in which the file is written",
    "price": "the quantities match, the amounts do not: their price is not that of the cost book",
}
