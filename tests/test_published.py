"""Heads that left the house: in every manifest and once a day in Slack; a rewritten history does not lead to them."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from metering.cli import knowledge
from metering.delivery.messages import compose
from metering.errors import BadInput
from metering.periods import parse_period
from metering.settings import Settings, read_settings
from metering.store import positions, postgres
from metering.store.chain import batch_head
from metering.store.verify import verify
from metering.store.watermarks import watermark_head, watermarks
from tests.ledger_builder import TOPIC, Event, Ledger
from workers import evaluate, fold
from workers.exporting import export_period, read_published


@pytest.fixture
def settings(database_url: str) -> Settings:
    return read_settings(database_url=database_url, chain_heads_daily=True)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    """Two intakes; the first has two batches."""
    made = Ledger(settings)
    intakes = [made.intake(partition, seen_until="2026-11-01") for partition in range(2)]
    made.batch(intakes[0], [Event("2026-10-31 10:14:59"), Event("2026-10-31 10:15:00", (7, 1))])
    made.batch(intakes[0], [Event("2026-10-31 11:00:00")])
    made.batch(intakes[1], [Event("2026-10-31 12:00:00", (5, 5))])
    yield made
    made.close()


def intervene(settings: Settings, reason: str) -> None:
    with postgres.connect(settings, "operator") as connection, connection.begin():
        positions.intervene(connection, "resume", by="someone", reason=reason, details={})


def export(settings: Settings, folder: Path) -> Path:
    export_period(settings, folder, parse_period("2026-10"), None)
    return folder


def found(settings: Settings, *manifests: Path) -> dict[str, str]:
    with postgres.reading(settings) as connection:
        checks = verify(connection, roots=True, against=[read_published(path) for path in manifests])
        return {check.name: check.difference for check in checks if check.difference is not None}


def rewrite(settings: Settings, ledger: Ledger, batch_id: int) -> None:
    """Change what a batch says was rejected, and compute every head after it again, as its owner could."""
    ledger.execute(
        "UPDATE ingest_batches SET rejected = rejected + 1, received = received + 1 WHERE batch_id = %s",
        batch_id,
    )
    ledger.execute(
        "INSERT INTO batch_sources (batch_id, source_id, accepted, duplicate, conflict, rejected) "
        "VALUES (%s, 0, 0, 0, 0, 1)",
        batch_id,
    )
    ((intake_id,),) = ledger.execute("SELECT intake_id FROM ingest_batches WHERE batch_id = %s", batch_id)
    names = (
        "sequence",
        "first_offset",
        "next_offset",
        "records",
        "received",
        "accepted",
        "duplicate",
        "conflict",
        "rejected",
    )
    previous = bytes(32)
    for number, kind, topic, partition, root, *values in ledger.execute(
        f"SELECT batch_id, kind, topic_uuid, partition, root, {', '.join(f'b.{name}' for name in names)} "
        "FROM ingest_batches b JOIN stream_positions USING (intake_id) WHERE intake_id = %s ORDER BY sequence",
        intake_id,
    ):
        counts = dict(zip(names, values, strict=True))
        head = batch_head(
            previous, kind=kind, topic_uuid=topic, partition=partition, root=bytes(root), **counts
        )
        ledger.execute(
            "UPDATE ingest_batches SET previous_head = %s, head = %s WHERE batch_id = %s",
            previous,
            head,
            number,
        )
        previous = head
    ledger.execute("UPDATE stream_positions SET chain_head = %s WHERE intake_id = %s", previous, intake_id)
    with postgres.reading(settings) as connection:
        last = watermarks(connection)[-1]
    positions = [
        at | {"chain_head": previous.hex()} if at["intake_id"] == intake_id else at for at in last.positions
    ]
    last = replace(last, positions=positions)
    ledger.execute(
        "UPDATE watermarks SET positions = %s, head = %s WHERE watermark_id = %s",
        json.dumps(positions), watermark_head(last.previous_head, last), last.watermark_id,
    )  # fmt: skip


def test_a_manifest_has_the_heads_of_all_chains_and_a_rewritten_history_does_not_lead_to_them(
    settings: Settings, ledger: Ledger, tmp_path: Path
) -> None:
    first = export(settings, tmp_path / "first")
    assert json.loads((first / "manifest.json").read_text())["interventions"] is None
    intervene(settings, "before the second")
    ledger.batch(1, [Event("2026-10-31 11:30:00")])
    second = export(settings, tmp_path / "second")
    intervene(settings, "after it")
    manifest = json.loads((second / "manifest.json").read_text())
    heads = ledger.execute("SELECT encode(head, 'hex') FROM ingest_batches ORDER BY batch_id")
    assert [at["chain_head"] for at in manifest["watermark"]["positions"]] == [heads[3][0], heads[2][0]]
    told = ledger.execute("SELECT encode(head, 'hex') FROM interventions ORDER BY intervention_id")
    assert manifest["interventions"]["head"] == told[0][0]
    again = export_period(settings, second, parse_period("2026-10"), manifest["watermark_id"])
    assert again.exported.already_there, "an intervention made later does not change it"
    assert found(settings, first, second / "manifest.json") == {}

    # the chain inside is computed again: only the copy outside tells
    rewrite(settings, ledger, 4)
    assert found(settings) == {}
    seen = found(settings, second, first)["published heads"]
    assert (
        "second/manifest.json: intake 1 (events, partition 0): the batch of sequence 2 (batch 4) has head"
        in seen
    )
    assert "first/manifest.json published, as of watermark 1, still matches" in seen
    assert found(settings, first) == {}


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE interventions SET head = sha256('x')", "intervention 1 has head"),
        ("DELETE FROM interventions", "intervention 1 is not in this database"),
        (
            "UPDATE watermarks SET positions = '[]'",
            "watermark 1 has the head that was published and other positions",
        ),
        ("DELETE FROM watermarks", "watermark 1 is not in this database"),
        ("DELETE FROM ingest_batches WHERE batch_id = 2", "the batch of sequence 1 is not in this database"),
        ("UPDATE ingest_batches SET head = sha256('x') WHERE batch_id = 3", "(batch 3) has head"),
    ],
)
def test_what_was_taken_away_is_named(
    settings: Settings, ledger: Ledger, tmp_path: Path, statement: str, words: str
) -> None:
    intervene(settings, "once")
    folder = export(settings, tmp_path / "out")
    ledger.execute(statement)
    assert words in found(settings, folder)["published heads"]


def test_the_command_takes_manifests_and_refuses_other_files(
    settings: Settings, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    monkeypatch.setenv("METERING_DATABASE_URL", settings.database_url.get_secret_value())
    app = typer.Typer()
    knowledge.mount(app)
    folder = export(settings, tmp_path / "out")
    done = CliRunner().invoke(app, ["verify", "--against", str(folder)])
    assert (done.exit_code, "ok   published heads: 1 manifests" in done.stdout) == (0, True), done.output
    shown = CliRunner().invoke(app, ["watermark", "show", "1"])
    head = json.loads((folder / "manifest.json").read_text())["watermark"]["head"]
    assert head in shown.stdout
    assert "chain_head" in shown.stdout
    as_json = json.loads(CliRunner().invoke(app, ["watermark", "show", "1", "--format", "json"]).stdout)
    assert len(as_json["positions"]) == 2
    unknown = CliRunner().invoke(app, ["watermark", "show", "7"])
    assert "there is no watermark 7: there are watermarks 1 to 1" in str(unknown.exception)
    (tmp_path / "other.json").write_text("{}")
    for path, words in (
        (tmp_path / "other.json", "is not the manifest"),
        (tmp_path / "none", "No such file"),
    ):
        refused = CliRunner().invoke(app, ["verify", "--against", str(path)])
        assert isinstance(refused.exception, BadInput)
        assert words in str(refused.exception)


def test_heads_are_told_once_a_day(settings: Settings, ledger: Ledger) -> None:
    assert not evaluate.tell_heads(settings), "there is no watermark yet"
    with postgres.connect(settings, "fold") as connection:
        fold.pin(connection, settings, "test")
    intervene(settings, "after the pin")
    evaluate.run(settings, until_idle=True)
    evaluate.run(settings, until_idle=True)
    ((number, rule, message),) = ledger.execute("SELECT outbox_id, rule, message FROM outbox")
    assert rule == "chain_heads"
    ((head,),) = ledger.execute("SELECT encode(head, 'hex') FROM watermarks")
    post = compose(number, message)
    assert f"watermark 1 `{head}`" in post.text
    assert "intervention" not in post.text
    assert f"`{head}`" in post.blocks[0]["text"]["text"]
    quiet = settings.model_copy(update={"chain_heads_daily": False})
    ledger.execute("DELETE FROM outbox")
    evaluate.run(quiet, until_idle=True)
    assert ledger.execute("SELECT count(*) FROM outbox") == [(0,)]


def test_a_position_is_not_moved_within_a_pin(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres.reading(settings) as connection:
        at = positions.place(connection, TOPIC, 0)

    def move() -> None:
        with postgres.connect(settings, "operator") as connection, connection.begin():
            positions.move(connection, at, at.next_offset + 5, "skip", by="someone", reason="poison")

    moving = threading.Thread(target=move)
    append = fold.append_watermark

    def moved_meanwhile(*values: Any) -> Any:
        moving.start()
        moving.join(timeout=0.5)
        return append(*values)

    monkeypatch.setattr(fold, "append_watermark", moved_meanwhile)
    with postgres.connect(settings, "fold") as connection:
        fold.pin(connection, settings, "test")
    moving.join()
    for watermark_id in (1, None):
        with postgres.reading(settings) as connection:
            checks = verify(connection, roots=False, watermark_id=watermark_id)
            assert not [check for check in checks if check.difference]
