"""Verify: an honest ledger passes; whatever a superuser changes is found and named."""

from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from metering.errors import BadInput
from metering.settings import Settings, read_settings
from metering.store import postgres
from metering.store.verify import verify
from tests.ledger_builder import Event, Ledger
from workers import fold as worker


@pytest.fixture
def settings(database_url: str) -> Settings:
    return read_settings(database_url=database_url)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    made = Ledger(settings)
    yield made
    made.close()


@pytest.fixture
def honest(settings: Settings, ledger: Ledger) -> Ledger:
    """Three partitions, five batches, two watermarks, an open interval, and a batch not folded yet."""
    intakes = [ledger.intake(partition) for partition in range(3)]

    def events(hour: int) -> list[Event]:
        return [
            Event(f"2026-10-31 {hour}:14:59.999999", (100, 10), pool="north", ran_on="pool", project="alpha"),
            Event(f"2026-10-31 {hour}:15:00", (7, 1), customer="globex", duration_ms=12),
            Event(f"2026-10-31 {hour}:15:00", (5, 5), event_id=f"an id of {hour} o'clock"),
            Event(f"2026-10-31 {hour}:15:01", heartbeat=(hour, f"2026-10-31 {hour}:15:00")),
        ]

    ledger.batch(intakes[0], events(10), duplicate=1)
    pin(settings)
    ledger.batch(intakes[1], events(11), rejected=2)
    ledger.batch(intakes[0], [])
    pin(settings)
    ledger.batch(
        intakes[0],
        [Event("2026-10-31 10:15:00", (7, 1), customer="globex", compensates=True, event_type=5)],
    )
    worker.run(until_idle=True, settings=settings)
    ledger.batch(intakes[2], events(12))
    return ledger


def pin(settings: Settings) -> None:
    with postgres.connect(settings, "fold") as connection:
        worker.pin(connection, settings, "test")


def found(settings: Settings, *, roots: bool = True) -> dict[str, str]:
    """The differences by name of the check."""
    with postgres.reading(settings) as connection:
        checks = list(verify(connection, roots=roots))
    return {check.name: check.difference for check in checks if check.difference is not None}


def test_an_honest_ledger_passes_and_nothing_moves(settings: Settings, honest: Ledger) -> None:
    before = honest.rollups()
    with postgres.reading(settings) as connection:
        checks = list(verify(connection, roots=True))
    assert [(check.name, check.seen) for check in checks if check.difference is None] == [
        ("batch counts", "5 batches, 13 accepted events"),
        ("details", "3 voids, refusals and heartbeats"),
        ("batch chain", "5 heads of 3 intakes"),
        ("series", "3 digests"),
        ("ledger rows", "13 rows in 5 roots"),
        ("usage_quarters", "7 rows"),
        ("pool_minutes", "2 rows"),
        ("pool_customer_minutes", "2 rows"),
        ("limit_minutes", "7 rows"),
        ("fold positions", "4 batches folded"),
        ("watermarks", "2 heads"),
        ("catalog revisions", "0 revisions"),
        ("interventions", "0 heads"),
        ("bills", "0 documents, 0 lines"),
        ("period closes", "0 months"),
    ]
    assert found(settings) == found(settings, roots=False) == {}
    assert honest.rollups() == before


def test_an_empty_ledger_passes(settings: Settings) -> None:
    assert found(settings) == {}


BATCH = "batch_id = (SELECT min(batch_id) FROM ingest_batches)"
ROW = f"{BATCH} AND ordinal = 1"
ROOT = {"ledger rows": "ledger rows do not give its root"}
HEAD = {"batch chain": "its offsets, counts and root give"}
MOVED = "interval_id 1: the rollup has a row there, the ledger no usage"
COPIED = """
    INSERT INTO usage_events SELECT (made).* FROM (SELECT jsonb_populate_record(e, jsonb_build_object(
        'event_key', gen_random_uuid(), 'batch_id', 999, 'event_type', 2)) AS made
    FROM usage_events e LIMIT 1) n
"""
ADDED = """
    INSERT INTO usage_quarters SELECT quarter_start + interval '1 day', series_id, interval_id, requests,
        0, 0, 0, 0, 0, 0, 0 FROM usage_quarters LIMIT 1
"""
#: What a superuser does to a table, where; the checks that find it, each with words of its difference.
DAMAGE = [
    (
        "usage_quarters SET output_tokens = output_tokens + 1 WHERE interval_id = 2 AND series_id = 1",
        {"usage_quarters": "output_tokens sum to 10 in the ledger, the rollup says 11"},
    ),
    # the total stays: usage was moved to another watermark
    ("usage_quarters SET interval_id = 1 WHERE interval_id = 2", {"usage_quarters": MOVED}),
    ("pool_minutes SET pool = 'south'", {"pool_minutes": "pool north"}),
    ("pool_minutes SET requests = 0", {"pool_minutes": "sum to 1 in the ledger, the rollup says 0"}),
    (
        "pool_customer_minutes SET series_id = 2",
        {
            "pool_customer_minutes": "series_id 1, interval_id 1: the ledger has usage there, the rollup has no row"
        },
    ),
    (
        "limit_minutes SET project_id = 9",
        {"limit_minutes": "project_id 1, seat_id 0, interval_id 1: the ledger has usage there"},
    ),
    (
        f"usage_events SET output_tokens = 2 WHERE {ROW}",
        {
            **dict.fromkeys(
                ("usage_quarters", "limit_minutes"), "output_tokens sum to 2 in the ledger, the rollup says 1"
            ),
            **ROOT,
        },
    ),
    (f"usage_events SET digest = 0 WHERE {ROW}", ROOT),
    (f"usage_events SET duration_ms = NULL WHERE {ROW}", ROOT),
    (
        f"usage_events SET project_id = 77 WHERE {ROW}",
        {"limit_minutes": "project_id 0, seat_id 0, interval_id 1: the rollup has a row there", **ROOT},
    ),
    (f"usage_events SET ordinal = 2 WHERE {ROW}", {"ledger rows": "two ledger rows of ordinal 2"}),
    ("usage_events SET event_id = 'another' WHERE event_id <> ''", ROOT),
    ("projects SET project = 'beta'", ROOT),
    ("sources SET source = 'another'", ROOT),
    ("series SET customer = 'initech' WHERE customer = 'globex'", {"series": "'initech'"}),
    (
        f"ingest_batches SET accepted = accepted + 1, duplicate = duplicate - 1 WHERE {BATCH}",
        {"batch counts": "accepted 5 events, the ledger holds 4", **HEAD},
    ),
    (
        f"ingest_batches SET rejected = rejected + 1, received = received + 1 WHERE {BATCH}",
        {**HEAD, "batch counts": "the outcomes of its sources sum to"},
    ),
    (
        "batch_sources SET duplicate = duplicate + 1, rejected = rejected - 1 WHERE source_id = 0 AND rejected > 0",
        {"batch counts": "the outcomes of its sources sum to"},
    ),
    (
        f"usage_events SET source_id = (SELECT max(source_id) + 1 FROM sources) WHERE {ROW}",
        {"batch counts": "accepted 4 events of source 1, the ledger holds 3", **ROOT},
    ),
    (f"ingest_batches SET root = sha256('x') WHERE {BATCH}", {**HEAD, **ROOT}),
    (
        f"ingest_batches SET head = sha256('x') WHERE {BATCH}",
        {**HEAD, "watermarks": "watermark 1 pins intake 1"},
    ),
    (
        "stream_positions SET next_offset = next_offset + 1 WHERE intake_id = 3",
        {"batch chain": "intake 3 stands at sequence 1, offset 5"},
    ),
    (
        "fold_positions SET next_sequence = 9 WHERE intake_id = 2",
        {"fold positions": "intake 2 is folded to 9"},
    ),
    ("watermarks SET reason = 'other' WHERE watermark_id = 1", {"watermarks": "watermark 1 does not match"}),
    (
        "watermarks SET complete_until = now() WHERE watermark_id = 2",
        {"watermarks": "watermark 2 does not match"},
    ),
]
LOSS = [
    ("DELETE FROM usage_quarters WHERE interval_id = 3", {"usage_quarters": "the rollup has no row"}),
    (ADDED, {"usage_quarters": "the ledger no usage"}),
    (
        COPIED,
        {
            "batch counts": "1 ledger rows name batch 999, which does not exist",
            "details": "(batch 999) has no row in voids",
        },
    ),
    (
        f"DELETE FROM usage_events WHERE {ROW}",
        {
            "batch counts": "accepted 4 events, the ledger holds 3",
            "usage_quarters": "the ledger no usage",
            "limit_minutes": "the ledger no usage",
            **ROOT,
        },
    ),
    (
        "DELETE FROM ingest_batches WHERE intake_id = 1 AND sequence = 1",
        {"batch chain": "batch of sequence 1 is missing", "watermarks": "watermark 2 pins intake 1"},
    ),
    (
        "DELETE FROM watermarks WHERE watermark_id = 1",
        {
            "watermarks": "watermark 1 is missing",
            **dict.fromkeys(
                ("usage_quarters", "pool_minutes", "pool_customer_minutes", "limit_minutes"), "interval"
            ),
        },
    ),
]
STATEMENTS = [(f"UPDATE {change}", differences) for change, differences in DAMAGE] + LOSS


@pytest.mark.parametrize(
    ("statement", "differences"), STATEMENTS, ids=[each[0].strip()[:70] for each in STATEMENTS]
)
def test_damage_is_found_and_named(
    settings: Settings, honest: Ledger, statement: str, differences: dict[str, str]
) -> None:
    honest.execute(statement)
    seen = found(settings)
    assert seen.keys() == differences.keys(), seen
    for name, words in differences.items():
        assert words in seen[name]


def test_as_of_a_watermark_only_what_was_there_is_looked_at(settings: Settings, honest: Ledger) -> None:
    def seen(watermark_id: int) -> dict[str, tuple[str, str | None]]:
        with postgres.reading(settings) as connection:
            checks = verify(connection, roots=True, watermark_id=watermark_id)
            return {check.name: (check.seen, check.difference) for check in checks}

    then = seen(1)
    assert then["batch counts"] == ("1 batches, 4 accepted events", None)
    assert then["batch chain"] == ("1 heads of 1 intakes", None)
    assert then["ledger rows"] == ("4 rows in 1 roots", None)
    assert then["usage_quarters"] == ("3 rows", None)
    assert then["watermarks"] == ("1 heads", None)
    assert then["fold positions"] == ("1 batches folded", None)
    assert [difference for _, difference in (then | seen(2)).values() if difference] == []
    with pytest.raises(BadInput, match="there is no watermark 7"):
        seen(7)
    # what was damaged later is not of that time; what was damaged of then is
    honest.execute(
        "UPDATE usage_events SET digest = 0 WHERE batch_id = (SELECT max(batch_id) FROM ingest_batches)"
    )
    honest.execute("UPDATE usage_quarters SET requests = 9 WHERE interval_id = 2")
    honest.execute("DELETE FROM watermarks WHERE watermark_id = 2")
    assert seen(1) == then
    assert found(settings) != {}
    honest.execute(f"UPDATE usage_events SET output_tokens = 2 WHERE {ROW}")
    damaged = {name for name, (_, difference) in seen(1).items() if difference}
    assert damaged == {"usage_quarters", "limit_minutes", "ledger rows"}


def test_truncation_is_found(settings: Settings, honest: Ledger) -> None:
    honest.execute("TRUNCATE usage_events")
    assert found(settings, roots=False).keys() == {
        "batch counts", "details", "usage_quarters", "pool_minutes", "pool_customer_minutes",
        "limit_minutes",
    }  # fmt: skip


def test_the_command_exits_with_1_at_a_difference(
    settings: Settings, honest: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    from metering.cli import knowledge

    monkeypatch.setenv("METERING_DATABASE_URL", settings.database_url.get_secret_value())
    app = typer.Typer()
    knowledge.mount(app)
    sound = CliRunner().invoke(app, ["verify", "--chain"])
    assert sound.exit_code == 0
    assert "ok   usage_quarters: 7 rows" in sound.stdout
    assert "hashed 13 of 13 ledger rows" in sound.stderr
    honest.execute("DELETE FROM pool_minutes")
    damaged = CliRunner().invoke(app, ["verify"])
    assert damaged.exit_code == 1
    assert "BAD  pool_minutes: 0 rows" in damaged.stdout
    assert "first difference: minute 2026-10-31T10:14:00+00:00, pool north" in damaged.stdout
    pinned = CliRunner().invoke(app, ["watermark", "pin", "--reason", "by a test"])
    assert (pinned.exit_code, pinned.stdout) == (0, "3\n")
    listed = CliRunner().invoke(app, ["watermark", "list"])
    assert "by a test" in listed.stdout


def test_adjustments_count_their_quantities_and_no_request(settings: Settings, ledger: Ledger) -> None:
    at = "2026-10-31 10:00:00"
    up, down = (Event(at, (50, 5), event_type=6, compensates=sign) for sign in (False, True))
    ledger.batch(ledger.intake(), [Event(at), up, Event(at, compensates=True, event_type=5), down, up])
    worker.run(until_idle=True, settings=settings)
    assert ledger.execute("SELECT requests, uncached_input_tokens, output_tokens FROM usage_quarters") == [
        (0, 50, 5)
    ]
    assert found(settings) == {}
