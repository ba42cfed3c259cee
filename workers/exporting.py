"""Exports: pin a point of knowledge, write every report of a period as of it, and what they stand on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metering.delivery.exports import MANIFEST, Exported, export, refuse_unless_empty
from metering.delivery.report import Provenance
from metering.errors import BadInput
from metering.periods import Period
from metering.settings import Settings
from metering.store.postgres import connect, reading
from metering.store.published import heads
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
        assert as_of is not None
        with reading(settings) as connection:
            computed = margin_report(connection, settings, period, as_of)
            facts = {"reporting_currency": settings.reporting_currency, **heads(connection, as_of)}
    return PeriodExport(computed.provenance, export(folder, export_reports(computed), facts))


def read_published(path: Path) -> tuple[str, Mapping[str, Any]]:
    """The name of a manifest and the heads in it; `path` may be the folder of its export. BadInput for any other file."""
    file = path / MANIFEST if path.is_dir() else path
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        watermark = manifest["watermark"]
        int(watermark["watermark_id"])
        for position in watermark["positions"]:
            int(position["next_sequence"]), str(position["chain_head"])
    except OSError as error:
        raise BadInput(f"--against {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise BadInput(
            f"--against {file} is not the manifest of an export; give the manifest.json that `metering export` wrote"
        ) from None
    return str(file), manifest
