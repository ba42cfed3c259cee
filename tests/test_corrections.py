"""Corrections on their whole path: from Kafka through settle to the commands that a person reads."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from metering.cli import findings as commands
from metering.settings import Settings
from metering.store import postgres
from metering.store.verify import verify
from tests.event_maker import event, event_id, produce, void
from workers import fold, ingest, provision, settle

#: The first minute of yesterday: a closed day of the real ledger, with the real partitions.
AT = datetime.now(UTC).replace(hour=0, minute=1, second=0, microsecond=1) - timedelta(days=1)


def enter(settings: Settings, *events: dict[str, Any]) -> None:
    produce(settings, [list(events)])
    ingest.work(settings, until_idle=True)


def test_what_a_producer_voids_is_taken_back_and_what_it_bills_twice_is_found(
    settings: Settings, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    list(provision.provision(settings))
    monkeypatch.setenv("METERING_DATABASE_URL", environment["METERING_DATABASE_URL"])
    enter(
        settings,
        event("a", AT, data__project="p", data__seat="s"),
        event("b", AT, id="order-7"),
        event("twice", AT),
        event("twice-again", AT, data__request_id="request-twice", data__attempt=2),
        void("void-a", AT, ("gateway-1", event_id("a", AT)), data__side="both"),
        void("void-b", AT, ("gateway-1", "order-7")),
    )
    with postgres.connect(settings, "fold") as connection:
        pinned = fold.pin(connection, settings, "test")
    assert pinned.complete_until is not None
    assert pinned.complete_until > AT + timedelta(days=1), "yesterday is over"
    settle.run(until_idle=True, settings=settings)
    settle.run(until_idle=True, settings=settings)
    fold.run(until_idle=True, settings=settings)

    with psycopg.connect(settings.database_url.get_secret_value()) as database:
        assert database.execute("SELECT outcome, count(*) FROM settlements GROUP BY 1").fetchall() == [
            ("compensated", 2)
        ]
        assert database.execute(
            "SELECT counts_for, sum(requests)::int, sum(output_tokens)::int "
            "FROM usage_quarters JOIN series USING (series_id) GROUP BY 1 ORDER BY 1"
        ).fetchall() == [("charge", -1, -10), ("charge_and_cost", 3, 30)]
    with postgres.reading(settings) as reading:
        assert [check for check in verify(reading, roots=True) if check.difference] == []

    listed = CliRunner().invoke(commands.app, ["list", "--customer", "acme", "--format", "json"])
    (found,) = json.loads(listed.stdout)
    assert (found["kind"], found["day"], found["state"]) == ("double_billable", str(AT.date()), "opened")
    assert found["events"] == f"{event_id('twice', AT)}, {event_id('twice-again', AT)}"
    shown = CliRunner().invoke(commands.app, ["show", found["kind"], found["subject"], "--format", "tsv"])
    facts = dict(line.split("\t") for line in shown.stdout.splitlines())
    assert facts["says"] == "more than one billable event of one customer and request"
    assert facts["events 2 id"] == event_id("twice-again", AT)

    # voiding one of the two mends it; the list is empty, with --all it is there as resolved
    enter(settings, void("void-twice", AT, ("gateway-1", event_id("twice-again", AT)), data__side="both"))
    for _ in range(2):
        with postgres.connect(settings, "fold") as connection:
            fold.pin(connection, settings, "test")
        settle.run(until_idle=True, settings=settings)
    listed = CliRunner().invoke(commands.app, ["list"])
    assert (listed.stdout, listed.stderr) == ("", "there are no such findings\n")
    listed = CliRunner().invoke(commands.app, ["list", "--all", "--kind", "double_billable"])
    assert [line.split("\t")[2] for line in listed.stdout.splitlines()] == ["state", "resolved"]
    wrong = CliRunner().invoke(commands.app, ["list", "--kind", "double"])
    assert "is no kind of finding; they are double_billable" in str(wrong.exception)
    wrong = CliRunner().invoke(commands.app, ["show", "double_billable", "x"])
    assert "there is no finding double_billable x" in str(wrong.exception)
