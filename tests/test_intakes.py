"""Intakes that are not Kafka's: claimed and fenced as a partition is, chained, with companions beside the events."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import polars as pl
import psycopg
import pytest

from metering.errors import Fenced
from metering.events.identity import event_keys
from metering.settings import Settings
from metering.store import partitions, positions, postgres, verify
from metering.store.batch import Companion, Digests, Part, Refused, Reject
from metering.store.chain import text_digest
from metering.store.ledger import CAREFUL_BATCHES, Ledger
from metering.store.ledger_rows import LEDGER_ROW
from metering.store.positions import Claim
from tests.event_maker import event_id
from tests.ledger_part import empty_part

AT = datetime(2026, 10, 31, 12, tzinfo=UTC)


@pytest.fixture
def connection(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    with postgres.connect(settings, "owner") as owner:
        partitions.ensure(owner, date(2026, 10, 31), date(2026, 11, 1))
        today = datetime.now(UTC).date()
        partitions.ensure_rejects(owner, today, date.fromordinal(today.toordinal() + 2))
    with postgres.connect_driver(settings, "operator") as opened:
        opened.autocommit = True
        yield opened


def claimed(connection: psycopg.Connection[Any], settings: Settings, owner: str = "one") -> Claim:
    return positions.claim_intake(
        connection, "adjustments", role=f"{settings.role_prefix}operator", owner=owner
    )


def part_of(claim: Claim, names: list[str], *, source_id: int = 1, digest: int = 7) -> Part:
    rows = np.zeros(len(names), LEDGER_ROW)
    ids = [event_id(name, AT) for name in names]
    rows["event_key"] = event_keys(pl.Series(ids, dtype=pl.String)).keys
    rows["occurred_at"] = int(AT.timestamp() * 1_000_000)
    rows["source_id"], rows["digest"], rows["event_type"] = source_id, digest, 6
    rows["ordinal"], rows["digest_version"] = np.arange(len(names)), 1
    none, named = np.array([text_digest("")] * len(names), "S16"), text_digest("hand")
    return replace(
        empty_part(claim, next_offset=claim.next_offset + len(names)),
        records=len(names),
        rows=rows,
        event_ids=[""] * len(names),
        digests=Digests(none, np.array([named] * len(names), "S16"), none, none),
        refused=lambda chosen: [Refused(claim.next_offset + at, -1, "hand", ids[at], b"{}") for at in chosen],
        companions=(
            Companion(
                "adjustments",
                ("event_key", "source_id", "author", "reason"),
                [
                    (rows["event_key"][at : at + 1].tobytes().hex(), source_id, "ada", name)
                    for at, name in enumerate(names)
                ],
                range(len(names)),
            ),
            Companion("replays", ("reject_id",), [(claim.next_offset + 1,)]),
        ),
    )


def test_an_intake_is_made_once_and_its_older_claim_is_fenced(
    connection: psycopg.Connection[Any], settings: Settings
) -> None:
    first, second = claimed(connection, settings), claimed(connection, settings, "two")
    assert (first.intake_id, first.kind, first.partition) == (second.intake_id, "adjustments", None)
    assert second.epoch == first.epoch + 1
    ledger = Ledger(connection, 65_536)
    with pytest.raises(Fenced, match="the intake of adjustments was claimed by another worker"):
        ledger.append([part_of(first, ["a"])])
    assert connection.execute("SELECT count(*) FROM usage_events").fetchone() == (0,)


def test_companions_enter_with_the_events_that_are_accepted_and_each_source_is_counted(
    connection: psycopg.Connection[Any], settings: Settings
) -> None:
    connection.execute("INSERT INTO sources (source) VALUES ('hand')")
    ledger = Ledger(connection, 65_536)
    (after,) = ledger.append([part_of(claimed(connection, settings), ["a", "b"])])
    reject = Reject(9, -1, None, None, b"?", "not_json", None, "no JSON", 0, "text/x", AT)
    again = replace(part_of(after.claim, ["a", "b", "c", "c"]), rejects=[reject])
    again.rows["digest"][1] = 8
    (ended,) = ledger.append([again])
    assert (ended.accepted, ended.duplicate, ended.conflict, ended.rejected) == (1, 2, 1, 1)
    reasons = connection.execute("SELECT reason FROM adjustments ORDER BY 1").fetchall()
    assert reasons == [("a",), ("b",), ("c",)]
    assert connection.execute("SELECT reject_id FROM replays ORDER BY 1").fetchall() == [(1,), (3,)]
    counted = connection.execute(
        "SELECT source_id, sum(accepted), sum(duplicate), sum(conflict), sum(rejected) FROM batch_sources "
        "GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert counted == [(0, 0, 0, 0, 1), (1, 3, 2, 1, 0)]
    hours = connection.execute("SELECT source, received, accepted, rejected FROM source_hours ORDER BY 1")
    assert hours.fetchall() == [("", 1, 0, 1), ("hand", 6, 3, 0)]
    kept = connection.execute("SELECT content_type, appended_at FROM rejects").fetchall()
    assert kept == [("text/x", AT)]
    with postgres.reading(settings) as snapshot:
        found = {check.name: check.difference for check in verify.verify(snapshot, roots=False)}
    assert found["batch chain"] is None


def test_batches_after_a_resend_are_copied_in_pieces_and_after_many_looked_up_first(
    connection: psycopg.Connection[Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metering.store.ledger.PIECE_ROWS", 3)
    connection.execute("INSERT INTO sources (source) VALUES ('hand')")
    ledger = Ledger(connection, 65_536)
    claim = claimed(connection, settings)
    names = [f"event {number}" for number in range(120)]
    # each batch brings twenty, some of which the batches before brought: how many, how they are appended after
    batches = (
        (names[:20], 0, "at once"),
        ([*names[20:39], names[3]], 1, "in pieces"),
        ([*names[40:59], names[25]], 1, "in pieces"),
        ([names[60], *names[20:39]], 19, "looked up"),
        ([*names[61:80], names[61]], 1, "looked up"),
        ([*names[80:99], names[3]], 1, "in pieces"),
        (names[100:120], 0, "in pieces"),
    )
    for brought, duplicate, then in batches:
        (ended,) = ledger.append([part_of(claim, brought)])
        claim = ended.claim
        assert (ended.accepted, ended.duplicate, ended.conflict) == (len(brought) - duplicate, duplicate, 0)
        how = "looked up" if ledger._look_up_first else "in pieces"
        assert (how if ledger._careful else "at once") == then
    assert ledger._careful == CAREFUL_BATCHES - 1
    (rows,) = connection.execute("SELECT count(*) FROM usage_events").fetchone() or (0,)
    assert rows == len({name for brought, _, _ in batches for name in brought})
    with postgres.reading(settings) as snapshot:
        found = {check.name: check.difference for check in verify.verify(snapshot, roots=True)}
    assert found["batch chain"] is None
    assert found["ledger rows"] is None
