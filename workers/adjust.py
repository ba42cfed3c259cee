"""Adjustments: a file of quantities becomes ledger rows by an intake of its own, whole or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import add
from typing import Any, Final
from uuid import UUID

import numpy as np
import polars as pl
import psycopg
from sqlalchemy import Connection

from metering.errors import BadInput, Fenced, Unavailable, WrongWorld
from metering.events.adjustments import Adjustment, read_adjustments
from metering.events.identity import event_keys, key_list, series_digest
from metering.events.laws import DecodeLimits
from metering.frames.usage import DIMENSIONS
from metering.meters import METERS
from metering.settings import Settings
from metering.store import adjusting, partitions, positions, postgres
from metering.store.batch import Companion, Digests, Part, Refused
from metering.store.books import latest_revision, read_books
from metering.store.chain import text_digest
from metering.store.ledger import EVENT_TYPES, USAGE_SOURCES, Ledger
from metering.store.ledger_rows import LEDGER_ROW
from metering.store.names import Names
from workers.loop import database_errors

#: Faults of a file that a message names; the others are counted.
_FAULTS_SHOWN: Final = 20


@dataclass(frozen=True)
class AdjustmentPlan:
    """What entering a file would do: which of its adjustments are new, stand already, or contradict what stands."""

    new: list[Adjustment]
    entered: list[Adjustment]
    conflicts: list[str]  # in words, each with its line

    def sums(self) -> pl.DataFrame:
        """Per customer and meter, what the new ones add up to: customer, meter, adjustments, quantity."""
        rows = [
            (one.customer, meter, quantity)
            for one in self.new
            for meter, quantity in zip(METERS, one.meters, strict=True)
            if quantity
        ]
        schema = {"customer": pl.String, "meter": pl.String, "quantity": pl.Int64}
        return (
            pl.DataFrame(rows, schema=schema, orient="row")
            .group_by("customer", "meter")
            .agg(pl.len().cast(pl.Int64).alias("adjustments"), pl.col("quantity").sum())
            .sort("customer", "meter")
        )


def read_file(settings: Settings, name: str, content: bytes, author: str) -> list[Adjustment]:
    """The adjustments of a file. Raises BadInput that names file, line, column, value and what would be right."""
    with database_errors(), postgres.reading(settings) as connection:
        floor = partitions.floor(connection)
    if floor is None:
        raise WrongWorld("the ledger has no days yet; run `metering init`")
    found, faults = read_adjustments(
        content,
        author=author,
        adjustments_max=settings.adjustments_max,
        limits=DecodeLimits.of(settings, floor),
        now=datetime.now(UTC),
    )
    if faults:
        lines = [f"{name}: {fault}" for fault in faults[:_FAULTS_SHOWN]]
        if len(faults) > _FAULTS_SHOWN:
            lines.append(f"and {len(faults) - _FAULTS_SHOWN} more")
        raise BadInput("\n".join((*lines, "nothing was entered")))
    return found


def plan(connection: Connection, adjustments: Sequence[Adjustment]) -> AdjustmentPlan:
    """Compare a file with the ledger; changes nothing."""
    keys = _keys(adjustments)
    standing = adjusting.held(connection, keys)
    new, entered, conflicts = [], [], []
    for one, key in zip(adjustments, keys, strict=True):
        before = standing.get(key, [])
        if not before:
            new.append(one)
        elif all((found.sign, found.digest) == (one.sign, one.digest()) for found in before):
            entered.append(one)
        else:
            signs = {found.sign for found in before}
            content = "the other sign" if one.sign not in signs else "other content"
            conflicts.append(
                f"line {one.line}: id: '{one.event_id}' was entered before with {content}; "
                "an adjustment is never changed: correct it by another one, with an id of its own"
            )
    return AdjustmentPlan(new, entered, conflicts + _burned_below_nothing(connection, new))


def _burned_below_nothing(connection: Connection, new: Sequence[Adjustment]) -> list[str]:
    """What new adjustments would take from a pool's minute beyond what adjustments added there.

    What events burned is taken back by voids alone. So neither sum is ever negative, in whatever order voids
    and adjustments come, and a minute of a pool never burned less than nothing.
    """
    keys: dict[int, tuple[datetime, UUID]] = {}
    for one in new:
        values = dict(zip(DIMENSIONS, one.dimensions, strict=True))
        if values["pool"] is not None and values["counts_for"] != "charge":
            minute = one.occurred_at.replace(second=0, microsecond=0)
            keys[one.line] = (minute, UUID(bytes=series_digest(one.dimensions)))
    left = adjusting.added_to_pools(connection, [digest for _, digest in keys.values()])
    for one in new:
        if one.line in keys:
            before = left.get(keys[one.line], (0,) * len(METERS))
            left[keys[one.line]] = tuple(map(add, before, one.meters))
    told = []
    for one in new:
        if one.line not in keys:
            continue
        for meter, quantity, rest in zip(METERS, one.meters, left[keys[one.line]], strict=True):
            if quantity < 0 and rest < 0:
                told.append(
                    f"line {one.line}: {meter}: {quantity} takes {-rest} more from the pool in that minute than "
                    "adjustments have added; void the events instead (side both), or take back the charge "
                    "alone: counts_for charge"
                )
    return told


def unknown_customers(connection: Connection, adjustments: Sequence[Adjustment]) -> list[str]:
    """Customers that the catalog does not name: an adjustment of them is unrated until it does."""
    known = set(read_books(connection, latest_revision(connection)).customers["customer"])
    return sorted({one.customer for one in adjustments} - known)


def append(settings: Settings, adjustments: Sequence[Adjustment]) -> int:
    """Append new adjustments (those of a plan) in one transaction; returns how many.

    Raises BadInput, with nothing written, when one of them was entered since the plan was made. If the process
    dies in the middle nothing was written; once it is written, the same file again is found entered.
    """
    with database_errors(), postgres.connect_driver(settings, "operator") as connection:
        connection.autocommit = True
        claim = positions.claim_intake(
            connection,
            "adjustments",
            role=f"{settings.role_prefix}operator",
            owner=positions.operator_name(),
        )
        # from here on whoever else enters something fences this claim, or is fenced by it
        with postgres.reading(settings) as reading:
            now = plan(reading, adjustments)
        if now.entered or now.conflicts:
            raise BadInput("somebody else entered adjustments of this file meanwhile; run the command again")
        try:
            (appended,) = Ledger(connection, settings.reject_bytes_max).append(
                [_part(connection, settings, claim, adjustments)]
            )
        except Fenced:
            raise Unavailable(
                "somebody else enters adjustments at the same time; nothing was entered. Run the command again"
            ) from None
        except psycopg.errors.CheckViolation as error:
            if error.diag.constraint_name is not None:
                raise
            raise WrongWorld(partitions.missing(error)) from error
    assert appended.accepted == len(adjustments), "the plan was made behind the claim"
    return appended.accepted


def _keys(adjustments: Sequence[Adjustment]) -> list[UUID]:
    ids = pl.Series([one.event_id for one in adjustments], dtype=pl.String)
    return [UUID(bytes=key) for key in key_list(event_keys(ids).keys)]


def _part(
    connection: psycopg.Connection[tuple[Any, ...]],
    settings: Settings,
    claim: positions.Claim,
    adjustments: Sequence[Adjustment],
) -> Part:
    """The ledger rows of adjustments, and beside each who entered it and why."""
    names = Names(connection, settings.series_cache_entries_max)
    digests = [series_digest(one.dimensions) for one in adjustments]
    known = names.known_series(digests)
    absent = {
        digest: one.dimensions
        for digest, one in zip(digests, adjustments, strict=True)
        if digest not in known
    }
    if absent:
        known = names.make_series(absent)
    projects = names.ids("projects", [one.project for one in adjustments if one.project])
    seats = names.ids("seats", [one.seat for one in adjustments if one.seat])
    source_id = names.ids("sources", [adjusting.SOURCE])[adjusting.SOURCE]
    keys = event_keys(pl.Series([one.event_id for one in adjustments], dtype=pl.String))
    rows = np.zeros(len(adjustments), LEDGER_ROW)
    rows["event_key"] = keys.keys
    rows["occurred_at"] = pl.Series([one.occurred_at for one in adjustments]).dt.timestamp("us").to_numpy()
    rows["ordinal"] = np.arange(len(adjustments))
    rows["duration_ms"] = -1
    rows["event_type"] = EVENT_TYPES["adjustment"]
    rows["usage_source"] = USAGE_SOURCES["provider"]
    for at, one in enumerate(adjustments):
        row = rows[at]
        row["digest"] = one.digest()
        row["digest_version"] = one.digest_version
        row["source_id"] = one.sign * source_id
        row["series_id"] = known[digests[at]]
        row["project_id"] = projects[one.project] if one.project else 0
        row["seat_id"] = seats[one.seat] if one.seat else 0
        for meter, quantity in zip(METERS, one.meters, strict=True):
            row[meter] = quantity

    def refused(chosen: Sequence[int]) -> list[Refused]:
        return [
            Refused(claim.next_offset, at, adjusting.SOURCE, adjustments[at].event_id, b"") for at in chosen
        ]

    named = [
        (UUID(bytes=key), int(number), one.author, one.reason)
        for key, number, one in zip(key_list(keys.keys), rows["source_id"], adjustments, strict=True)
    ]
    return Part(
        claim=claim,
        next_offset=claim.next_offset + len(adjustments),
        records=len(adjustments),
        rows=rows,
        event_ids=[
            "" if is_key else one.event_id for one, is_key in zip(adjustments, keys.key_is_id, strict=True)
        ],
        digests=Digests(
            np.array(digests, "S16"),
            np.array([text_digest(adjusting.SOURCE)] * len(adjustments), "S16"),
            np.array([text_digest(one.project or "") for one in adjustments], "S16"),
            np.array([text_digest(one.seat or "") for one in adjustments], "S16"),
        ),
        rejects=[],
        unknown_fields=0,
        appended_until=None,
        seen_until=None,
        refused=refused,
        companions=(
            Companion(
                "adjustments",
                ("event_key", "source_id", "author", "reason"),
                named,
                of=range(len(named)),
            ),
        ),
    )
