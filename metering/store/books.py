"""Catalog revisions in Postgres: appended under the lock KNOWLEDGE, chained, never updated or deleted."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Connection, func, insert, select
from sqlalchemy.dialects.postgresql import distinct_on

from metering.catalog.books import books
from metering.catalog.fields import instant_text
from metering.catalog.objects import CatalogObjects, Entry, body, body_digest, from_body, length_prefixed
from metering.catalog.plan import Plan, plan
from metering.errors import BadInput, Fenced
from metering.frames.books import Books
from metering.store.chain import GENESIS, head
from metering.store.postgres import knowledge
from metering.store.tables import catalog_objects, catalog_revisions

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Revision:
    """One applied catalog: who, when, why, and the head of the chain that ends with it."""

    catalog_revision: int
    applied_at: datetime
    applied_by: str
    reason: str
    program_version: str
    digest: bytes
    previous_head: bytes
    head: bytes


def latest_revision(connection: Connection) -> int:
    """The newest catalog revision; 0 where nothing was applied yet."""
    newest = connection.execute(select(func.max(catalog_revisions.c.catalog_revision))).scalar_one()
    return 0 if newest is None else int(newest)


def read_revision(connection: Connection, catalog_revision: int) -> Revision:
    """Who applied a revision, when and why. Raises BadInput if there is no such revision."""
    query = select(catalog_revisions).where(catalog_revisions.c.catalog_revision == catalog_revision)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise BadInput(
            f"there is no catalog revision {catalog_revision}; the newest is {latest_revision(connection)}"
            " (0: nothing was applied yet)"
        )
    return Revision(**row)


def read_catalog(connection: Connection, catalog_revision: int) -> CatalogObjects:
    """Every object as of a revision: its row with the largest revision <= it; what ended is included.

    Revision 0 is the empty catalog. Raises BadInput if there is no such revision.
    """
    if catalog_revision != 0:
        read_revision(connection, catalog_revision)
    table = catalog_objects.c
    query = (
        select(table.kind, table.catalog_revision, table.ended_at, table.file, table.line, table.body)
        .where(table.catalog_revision <= catalog_revision)
        .ext(distinct_on(table.kind, table.name))
        .order_by(table.kind, table.name, table.catalog_revision.desc())
    )
    entries = [
        Entry(from_body(row.kind, row.body), row.file, row.line, row.ended_at, row.catalog_revision)
        for row in connection.execute(query)
    ]
    return CatalogObjects({entry.key: entry for entry in entries})


def read_books(connection: Connection, catalog_revision: int) -> Books:
    """The books as of a revision; of revision 0 every frame is empty."""
    return books(read_catalog(connection, catalog_revision), catalog_revision)


def append_revision(
    connection: Connection,
    folder: CatalogObjects,
    *,
    shown: Plan,
    at: datetime,
    applied_by: str,
    reason: str,
    program_version: str,
) -> Revision | None:
    """Append what `shown` says as the next revision, and return it; None if there is nothing to append.

    The plan is made again under the lock KNOWLEDGE: if somebody else applied a catalog since `shown` was
    made, and the plan is no longer the same, nothing is written and Fenced says so. `at` is the instant of
    which `shown` was made. One transaction: if the process dies in the middle nothing was written.
    """
    with knowledge(connection):
        newest = latest_revision(connection)
        made = plan(read_catalog(connection, newest), folder, base_revision=newest, at=at)
        if not made.changes:
            return None
        if made.fingerprint() != shown.fingerprint():
            raise Fenced(
                f"catalog revision {newest} was applied since this plan was made against revision "
                f"{shown.base_revision}, and the plan changed; nothing was applied: "
                "run `metering catalog plan` again, then apply"
            )
        entries = [change.after for change in made.changes]
        number = newest + 1
        previous = GENESIS if newest == 0 else read_revision(connection, newest).head
        rows = [_row(entry, number) for entry in entries]
        digest = revision_digest([(*entry.key, entry.ended_at, entry.digest()) for entry in entries])
        revision = Revision(
            catalog_revision=number,
            applied_at=at,
            applied_by=applied_by,
            reason=reason,
            program_version=program_version,
            digest=digest,
            previous_head=previous,
            head=revision_head(previous, number, digest, at, applied_by, reason, program_version),
        )
        connection.execute(insert(catalog_revisions), vars(revision))
        connection.execute(insert(catalog_objects), rows)
    return revision


def _row(entry: Entry, catalog_revision: int) -> dict[str, object]:
    kind, name = entry.key
    content = body(entry.item)
    return {
        "kind": kind,
        "name": name,
        "catalog_revision": catalog_revision,
        "ended_at": entry.ended_at,
        "file": entry.file,
        "line": entry.line,
        "body": content,
        "digest": body_digest(kind, name, content),
    }


def revision_digest(rows: Sequence[tuple[str, str, datetime | None, bytes]]) -> bytes:
    """SHA-256 over a revision's objects (kind, name, end, digest), sorted by kind and name."""
    parts = [b"catalog-revision/1", str(len(rows)).encode()]
    for kind, name, ended_at, digest in sorted(rows, key=lambda row: row[:2]):
        end = b"" if ended_at is None else instant_text(ended_at).encode()
        parts += [kind.encode(), name.encode(), end, digest]
    return hashlib.sha256(length_prefixed(*parts)).digest()


def revision_head(
    previous: bytes,
    catalog_revision: int,
    digest: bytes,
    applied_at: datetime,
    applied_by: str,
    reason: str,
    program_version: str,
) -> bytes:
    """The head of the chain of catalogs after a revision: over the one before and all that its row says."""
    microseconds = (applied_at - _EPOCH) // timedelta(microseconds=1)
    return head(
        "metering catalog",
        previous,
        catalog_revision,
        digest,
        microseconds,
        applied_by,
        reason,
        program_version,
    )


def first_difference(connection: Connection, until: int | None = None) -> str | None:
    """The first catalog revision whose rows do not match its digest or chain, in words; None if all do.

    With `until` only the revisions up to that one are looked at.
    """
    previous, expected = GENESIS, 1
    for row in connection.execute(
        select(catalog_revisions).order_by(catalog_revisions.c.catalog_revision)
    ).mappings():
        revision = Revision(**row)
        number = revision.catalog_revision
        if until is not None and number > until:
            return (
                None
                if expected > until
                else f"catalog revision {expected} is missing: the next one is {number}"
            )
        if number != expected:
            return f"catalog revision {expected} is missing: the next one is {number}"
        rows = connection.execute(
            select(catalog_objects).where(catalog_objects.c.catalog_revision == number)
        ).all()
        for item in sorted(rows, key=lambda item: (item.kind, item.name)):
            if body_digest(item.kind, item.name, item.body) != item.digest:
                return f"catalog revision {number}: {item.kind} {item.name} does not match its digest"
        objects = [(item.kind, item.name, item.ended_at, item.digest) for item in rows]
        if revision_digest(objects) != revision.digest:
            return f"catalog revision {number}: its {len(rows)} objects do not match its digest"
        told = revision_head(
            previous,
            number,
            revision.digest,
            revision.applied_at,
            revision.applied_by,
            revision.reason,
            revision.program_version,
        )
        if revision.previous_head != previous or revision.head != told:
            return f"catalog revision {number} does not continue the chain of revision {number - 1}"
        previous, expected = revision.head, expected + 1
    if until is not None:
        return None if expected > until else f"catalog revision {expected} is missing"
    stray = connection.execute(
        select(catalog_objects.c.catalog_revision, catalog_objects.c.kind, catalog_objects.c.name)
        .where(catalog_objects.c.catalog_revision >= expected)
        .limit(1)
    ).one_or_none()
    if stray is not None:
        number = stray.catalog_revision
        return f"{stray.kind} {stray.name} belongs to catalog revision {number}, which is missing"
    return None
