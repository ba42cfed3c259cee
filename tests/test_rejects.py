"""What was refused: looked at, and let in after a fix, once however often it is replayed."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient
from typer.testing import CliRunner

from metering.cli import refused as commands
from metering.errors import BadInput, Fenced, Unavailable
from metering.settings import Settings
from metering.store import postgres
from metering.store.ledger import Ledger
from metering.store.refused import Chosen
from metering.store.verify import verify
from tests.event_maker import event, event_id, produce
from workers import fold, ingest, provision
from workers.comparing import compare
from workers.replay import replay

NOW = datetime.now(UTC)
AT = NOW - timedelta(hours=1)
#: Before the ledger's floor, until `partitions ensure` lowers it.
EARLY = NOW - timedelta(days=50)


@pytest.fixture
def ready(settings: Settings) -> Settings:
    """A database with partitions and positions for the test's topic; little is kept of a reject."""
    list(provision.provision(settings))
    return settings.model_copy(update={"reject_bytes_max": 700})


@pytest.fixture
def database(ready: Settings) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection, for looking."""
    with psycopg.connect(ready.database_url.get_secret_value(), autocommit=True) as connection:
        yield connection


@pytest.fixture
def run(ready: Settings, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command of `rejects` or `conflicts` with the test's settings."""
    for name in ("DATABASE_URL", "KAFKA_BOOTSTRAP", "KAFKA_TOPIC"):
        value = getattr(ready, name.lower())
        monkeypatch.setenv(f"METERING_{name}", value if isinstance(value, str) else value.get_secret_value())

    def invoke(app: Any, *arguments: str) -> tuple[str, str]:
        done = CliRunner().invoke(app, arguments)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout, done.stderr

    return invoke


def everything(database: psycopg.Connection[Any]) -> list[Any]:
    tables = (
        "usage_events",
        "rejects",
        "conflicts",
        "ingest_batches",
        "replays",
        "series",
        "sources",
        "source_stops",
    )
    counts = [database.execute(f"SELECT count(*) FROM {table}").fetchone() for table in tables]
    return [counts, database.execute("SELECT * FROM stream_positions ORDER BY 1").fetchall()]


def kept_ids(database: psycopg.Connection[Any]) -> list[str]:
    return sorted(row[0] for row in database.execute("SELECT event_key::text FROM usage_events"))


def test_what_is_acceptable_after_a_fix_enters_once_and_the_rest_stays(
    ready: Settings, database: psycopg.Connection[Any], kafka_admin: KafkaAdminClient
) -> None:
    narrow = ready.model_copy(update={"record_events_max": 4})
    early = [event(f"early-{n}", EARLY) for n in range(4)]
    bad = event("never", AT, usage__cache_read_tokens=1_000)
    crowd = [*(event(f"crowd-{n}", AT) for n in range(5)), bad]
    lost = [event(f"lost-{n}", AT) for n in range(5)]
    produce(ready, [early, crowd, b"{oops"], partition=0)
    produce(ready, [lost], partition=1)
    ingest.work(narrow, until_idle=True)
    kafka_admin.delete_records({TopicPartition(ready.kafka_topic, 1): 1})
    codes = database.execute("SELECT code, count(*) FROM rejects GROUP BY 1 ORDER BY 1").fetchall()
    assert codes == [("not_json", 1), ("too_many_events", 2), ("too_old", 4)]
    assert kept_ids(database) == []

    before = everything(database)
    still_bad = replay(narrow, Chosen())
    assert (still_bad.accepted, still_bad.done) == (0, 0)
    assert still_bad.still == {"not_json": 1, "too_many_events": 1, "bytes_cut": 1, "too_old": 4}
    after = everything(database)
    assert after[0] == before[0], "a replay of what is still bad adds no row"

    day = EARLY.date()
    provision.ensure_days(ready, day, day + timedelta(days=1))
    # two of them were sent again meanwhile, one with another content
    produce(ready, [[early[0], event("early-1", EARLY, usage__output_tokens=11)]], partition=2)
    ingest.work(ready, until_idle=True)
    before = everything(database)
    trial = replay(ready, Chosen(), dry_run=True)
    assert everything(database) == before, "a dry run takes everything back"
    done = replay(ready, Chosen())
    assert trial == done
    assert (done.accepted, done.duplicate, done.conflict, done.done) == (2 + 5, 1, 1, 4 + 1)
    assert done.refused_events == 1, "of the crowd one is a reject of its own now"
    assert done.still == {"not_json": 1, "bytes_cut": 1}
    assert "log no longer holds partition 1, offset 0" in done.examples["bytes_cut"].detail
    entered = {made["id"] for made in [*early, *crowd[:5]]}
    assert kept_ids(database) == sorted(entered)
    own = database.execute("SELECT code, event_id FROM rejects ORDER BY reject_id DESC LIMIT 1").fetchone()
    assert own == ("counts_contradict", bad["id"])
    batch = database.execute(
        "SELECT kind, first_offset, b.next_offset, records, received, accepted, duplicate, conflict, rejected "
        "FROM ingest_batches b JOIN stream_positions USING (intake_id) WHERE kind = 'replay'"
    ).fetchall()
    assert batch == [("replay", 0, 5, 5, 10, 7, 1, 1, 1)]

    before = everything(database)[0]
    again = replay(ready, Chosen())
    assert (again.accepted, again.done, again.still) == (
        0,
        0,
        {"not_json": 1, "bytes_cut": 1, "counts_contradict": 1},
    )
    assert everything(database)[0] == before
    with postgres.connect(ready, "fold") as connection:
        fold.pin(connection, ready, "after the replay")
    with postgres.reading(ready) as connection:
        assert [check for check in verify(connection, roots=True) if check.difference] == []


def test_a_runaway_producer_is_stopped_by_name_resumed_and_replayed_and_nothing_is_lost(
    ready: Settings, database: psycopg.Connection[Any]
) -> None:
    strict = ready.model_copy(update={"series_new_per_batch_max": 10})
    runaway = [event(n, AT, source="runaway", data__model_served=f"model-{n}") for n in range(50)]
    produce(ready, [[*runaway, event("good", AT)]], partition=0)
    ingest.work(strict, until_idle=True)
    assert kept_ids(database) == [event_id("good", AT)]
    series = database.execute("SELECT count(*) FROM series").fetchone()
    assert series == (1,)

    held = replay(strict, Chosen(source="runaway"))
    assert (held.accepted, held.still) == (0, {"source_stopped": 50}), "a stopped source stays stopped"
    provision.resume_source(strict, "runaway", "the gateway's build was rolled back")
    who = database.execute(
        "SELECT kind, reason, details->>'source', by LIKE '%@%' FROM interventions"
    ).fetchall()
    assert who == [("resume", "the gateway's build was rolled back", "runaway", True)]
    done = replay(strict, Chosen(code="source_stopped"))
    assert (done.accepted, done.done, done.still.total()) == (50, 50, 0), (
        "the brake does not trip on a replay"
    )
    assert kept_ids(database) == sorted([made["id"] for made in runaway] + [event_id("good", AT)])
    assert database.execute("SELECT stopped FROM source_stops ORDER BY 1").fetchall() == [(False,), (True,)]
    (of_runaway,) = database.execute(
        "SELECT count(*) FROM usage_events JOIN sources USING (source_id) WHERE source = 'runaway'"
    ).fetchall()
    assert of_runaway == (50,), "under the event's own source"


def test_of_two_replays_one_goes_on_and_what_the_store_refuses_stays(
    ready: Settings, database: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    produce(ready, [[event(n, EARLY, usage__output_tokens=n) for n in range(10, 16)]], partition=0)
    ingest.work(ready, until_idle=True)
    provision.ensure_days(ready, EARLY.date(), EARLY.date() + timedelta(days=1))
    append = Ledger.append

    def meet(ledger: Ledger, parts: list[Any]) -> Any:
        monkeypatch.setattr(Ledger, "append", append)
        database.execute("UPDATE stream_positions SET epoch = epoch + 1 WHERE kind = 'replay'")
        return append(ledger, parts)

    monkeypatch.setattr(Ledger, "append", meet)
    with pytest.raises(Unavailable, match="another replay has taken over") as raised:
        replay(ready, Chosen())
    assert isinstance(raised.value.__cause__, Fenced)
    assert kept_ids(database) == []

    database.execute("ALTER TABLE usage_events ADD CONSTRAINT never_13 CHECK (output_tokens <> 13)")
    for dry_run in (True, False):
        done = replay(ready, Chosen(), dry_run=dry_run)
        assert (done.accepted, done.done, done.still) == (5, 5, {"store_refused": 1})
    assert len(kept_ids(database)) == 5


def test_the_commands_list_show_and_replay(
    ready: Settings, database: psycopg.Connection[Any], run: Any
) -> None:
    produce(ready, [b'{"a": "\\u001b[31m"}', [event("early", EARLY)]], partition=0)
    ingest.work(ready, until_idle=True)
    out, _ = run(commands.rejects, "list", "--format", "json")
    newest, oldest = json.loads(out)
    assert (newest["code"], newest["source"], newest["replayed_at"]) == ("too_old", "gateway-1", None)
    table, _ = run(commands.rejects, "list", "--code", "too_old")
    assert table.splitlines()[0].split("\t")[:3] == ["reject_id", "rejected_at", "code"]
    assert len(table.splitlines()) == 2
    assert run(commands.rejects, "list", "--until", "2020-01-01")[1] == "there are no such rejects\n"
    with pytest.raises(BadInput, match="'too_new' is no reject code; they are empty_record"):
        run(commands.rejects, "list", "--code", "too_new")
    with pytest.raises(BadInput, match="give a day or a time"):
        run(commands.rejects, "list", "--since", "yesterday")
    with pytest.raises(BadInput, match="there is no reject 999"):
        run(commands.rejects, "show", "999")
    shown, _ = run(commands.rejects, "show", str(oldest["reject_id"]))
    assert "record_offset" in shown
    assert '"a": "\\u001b[31m"' in shown, "no control character reaches the terminal"

    provision.ensure_days(ready, EARLY.date(), EARLY.date() + timedelta(days=1))
    number = str(newest["reject_id"])
    with pytest.raises(BadInput, match="there is no reject 999; nothing was replayed"):
        run(commands.rejects, "replay", number, "999")
    assert "would be: 1 entered" in run(commands.rejects, "replay", number, "--dry-run")[1]
    out, said = run(commands.rejects, "replay")
    assert "1 entered, 0 duplicate, 0 conflict, 1 still refused (1 rejects are done)" in said
    assert out.splitlines()[1].startswith("missing_field\t1\t")
    out, _ = run(commands.rejects, "show", number, "--format", "json")
    assert json.loads(out)["replayed_at"] is not None


def test_a_conflict_is_shown_side_by_side_with_what_differs(
    ready: Settings, database: psycopg.Connection[Any], run: Any
) -> None:
    produce(ready, [[event("a", AT, data__project="alpha")]], partition=0)
    other = event("a", AT, subject="globex", usage__output_tokens=11, data__request_id="another")
    produce(ready, [[other], [event("b", AT)]], partition=0)
    ingest.work(ready, until_idle=True)
    (number,) = database.execute("SELECT conflict_id FROM conflicts").fetchone() or (0,)
    found = compare(ready, number)
    differing = {line.field: (line.accepted, line.refused) for line in found.lines if line.differs}
    assert differing.pop("request")[0].startswith("another (")
    assert differing == {
        "customer": ("acme", "globex"),
        "project": ("alpha", None),
        "output_tokens": (10, 11),
    }
    assert found.notes == ()
    out, _ = run(commands.conflicts, "list")
    assert event_id("a", AT) in out
    out, _ = run(commands.conflicts, "show", str(number))
    assert "≠\tcustomer\tacme\tglobex" in out
    assert "\tattempt\t1\t1" in out
    fields = json.loads(run(commands.conflicts, "show", str(number), "--format", "json")[0])["fields"]
    assert [line["field"] for line in fields if line["differs"]] == [
        "customer",
        "project",
        "request",
        "output_tokens",
    ]
    # a void that says another thing the second time, and one whose id was usage before
    void = event("v", AT, type="inference.void.v1", data={"source": "gateway-1", "id": event_id("a", AT)})
    both = {**void, "data": {**void["data"], "side": "both"}}
    produce(ready, [[void], [both], [{**void, "id": event_id("a", AT)}]], partition=0)
    ingest.work(ready, until_idle=True)
    of_void, of_usage = (
        compare(ready, row[0])
        for row in database.execute("SELECT conflict_id FROM conflicts ORDER BY 1 OFFSET 1").fetchall()
    )
    assert [(line.field, line.accepted, line.refused) for line in of_void.lines if line.differs] == [
        ("side", "charge", "both")
    ]
    assert (of_usage.lines[0].accepted, of_usage.lines[0].refused) == ("usage", "void")
    with pytest.raises(BadInput, match="there is no conflict 999"):
        compare(ready, 999)
