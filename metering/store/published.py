"""Heads of the chains as they leave the database, and the database held against heads that left it earlier.

A chain proves nothing against somebody who may rewrite all of it. A copy of its heads somewhere else does: what
was rewritten before them, chain and all, no longer leads to them.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from metering.store.books import read_revision
from metering.store.chain import GENESIS
from metering.store.watermarks import Watermark, read_watermark, watermarks


def heads(connection: Connection, watermark_id: int) -> dict[str, Any]:
    """The heads of all chains as of a watermark, as JSON values: the same at any later time, on any machine.

    Those of the intakes stand in the watermark's positions, and its own head covers them.
    """
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
        "interventions": _interventions(connection, watermark.pinned_at),
        "period_closes": _period_close(connection, watermark_id),
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


def _interventions(connection: Connection, until: datetime) -> dict[str, Any] | None:
    """The last intervention before a watermark was pinned; None without any. A pin waits for one in the making."""
    row = connection.execute(
        text(
            "SELECT intervention_id, encode(previous_head, 'hex') AS previous_head, encode(head, 'hex') AS head "
            "FROM interventions WHERE intervened_at <= :until ORDER BY intervention_id DESC LIMIT 1"
        ),
        {"until": until},
    ).one_or_none()
    return None if row is None else dict(row._mapping)


def _period_close(connection: Connection, watermark_id: int) -> dict[str, Any] | None:
    """The last month that was closed as of a watermark; None without any."""
    row = connection.execute(
        text(
            "SELECT month::text AS month, encode(previous_head, 'hex') AS previous_head, encode(head, 'hex') AS head "
            "FROM period_closes WHERE watermark_id <= :watermark ORDER BY month DESC LIMIT 1"
        ),
        {"watermark": watermark_id},
    ).one_or_none()
    return None if row is None else dict(row._mapping)


def difference(connection: Connection, published: Sequence[tuple[str, Mapping[str, Any]]]) -> str | None:
    """What the database no longer leads to of heads that were published, in words; None: it leads to all.

    `published` are (name, what `heads` gave). They are looked at in order of their watermarks, so that the first
    difference lies between the last ones that match and those that do not.
    """
    known = {one.watermark_id: one for one in watermarks(connection)}
    matched = "nothing published before it was given"
    for name, facts in sorted(published, key=lambda pair: int(pair[1]["watermark"]["watermark_id"])):
        wrong = _difference(connection, facts, known)
        if wrong is not None:
            return f"{name}: {wrong}; {matched}"
        matched = (
            f"what {name} published, as of watermark {facts['watermark']['watermark_id']}, still matches"
        )
    return None


def _difference(
    connection: Connection, facts: Mapping[str, Any], known: Mapping[int, Watermark]
) -> str | None:
    told = facts["watermark"]
    for position in told["positions"]:
        wrong = _batch_difference(connection, position)
        if wrong is not None:
            return wrong
    for chain, table, number in (
        ("catalog", "catalog_revisions", "catalog_revision"),
        ("interventions", "interventions", "intervention_id"),
        ("period_closes", "period_closes", "month"),
    ):
        published = facts.get(chain)
        if published is not None:
            found = connection.execute(
                text(f"SELECT encode(head, 'hex') FROM {table} WHERE {number} = :number"),
                {"number": published[number]},
            ).scalar_one_or_none()
            if found != published["head"]:
                return _told(
                    f"{number.replace('_', ' ').removesuffix(' id')} {published[number]}",
                    found,
                    published["head"],
                )
    own = known.get(int(told["watermark_id"]))
    name = f"watermark {told['watermark_id']}"
    if own is None or own.head.hex() != told["head"]:
        return _told(name, None if own is None else own.head.hex(), told["head"])
    if own.positions != told["positions"]:
        return f"{name} has the head that was published and other positions"
    return None


def _batch_difference(connection: Connection, position: Mapping[str, Any]) -> str | None:
    """The last batch that a published position stands behind, as it is now."""
    sequence = int(position["next_sequence"]) - 1
    place = (
        position["kind"]
        if position["partition"] is None
        else f"{position['topic']}, partition {position['partition']}"
    )
    row = connection.execute(
        text(
            "SELECT batch_id, encode(head, 'hex') AS head FROM ingest_batches "
            "WHERE intake_id = :intake AND sequence = :sequence"
        ),
        {"intake": position["intake_id"], "sequence": sequence},
    ).one_or_none()
    found = GENESIS.hex() if sequence < 0 else None if row is None else row.head
    if found == position["chain_head"]:
        return None
    batch = "" if row is None else f" (batch {row.batch_id})"
    name = f"intake {position['intake_id']} ({place}): the batch of sequence {sequence}{batch}"
    return _told(name, found, position["chain_head"])


def _told(name: str, found: str | None, published: str) -> str:
    if found is None:
        return f"{name} is not in this database; head {published[:16]} was published of it"
    return (
        f"{name} has head {found[:16]}, {published[:16]} was published: its history up to there was rewritten"
    )


def _text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
