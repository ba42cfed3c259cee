"""Exports: pin a point of knowledge, write every report of a period as of it, and what they stand on."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from metering.delivery.exports import Exported, export, refuse_unless_empty
from metering.delivery.report import Provenance
from metering.periods import Period
from metering.settings import Settings
from metering.store.books import read_revision
from metering.store.postgres import connect, reading
from metering.store.watermarks import read_watermark
from workers.fold import pin
from workers.loop import database_errors
from workers.reports import export_reports, margin_report


@dataclass(frozen=True)
class PeriodExport:
    """What was exported, and what it stands on."""

    provenance: Provenance
    exported: Exported


def export_period(settings: Settings, folder: Path, period: Period, as_of: int | None) -> PeriodExport:
    """Write the reports of a period as of a watermark (None: pin one first) into `folder`.

    Two exports of a period at one watermark, by one program version, are the same bytes. If the process dies
    in the middle, the watermark stays pinned and `folder` is untouched. BadInput, before anything is pinned,
    for a `folder` that an export as of a new watermark cannot be.
    """
    if as_of is None:
        refuse_unless_empty(folder)
    with database_errors():
        if as_of is None:
            with connect(settings, "fold") as connection:
                as_of = pin(connection, settings, "export").watermark_id
        with reading(settings) as connection:
            computed = margin_report(connection, settings, period, as_of)
            facts = {"reporting_currency": settings.reporting_currency, **_facts(connection, as_of)}
    return PeriodExport(computed.provenance, export(folder, export_reports(computed), facts))


def _facts(connection: Connection, watermark_id: int | None) -> dict[str, Any]:
    """What the manifest says of the watermark: the same at any later time, on any machine.

    The chain heads of the positions, the catalog and the watermark leave the database here: only that makes
    the chains a proof against its owner.
    """
    assert watermark_id is not None
    watermark = read_watermark(connection, watermark_id)
    facts: dict[str, Any] = {
        "watermark": {
            "watermark_id": watermark.watermark_id,
            "pinned_at": _text(watermark.pinned_at),
            "reason": watermark.reason,
            "program_version": watermark.program_version,
            "previous_head": watermark.previous_head.hex(),
            "head": watermark.head.hex(),
            "positions": watermark.positions,
        },
        "catalog": None,
    }
    if watermark.catalog_revision:
        revision = read_revision(connection, watermark.catalog_revision)
        facts["catalog"] = {
            "catalog_revision": revision.catalog_revision,
            "applied_at": _text(revision.applied_at),
            "digest": revision.digest.hex(),
            "previous_head": revision.previous_head.hex(),
            "head": revision.head.hex(),
        }
    return facts


def _text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
