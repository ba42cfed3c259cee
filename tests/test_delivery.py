"""Deliver on a real Postgres, to a webhook that misbehaves: at least once, one at a time, at its pace."""

import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from metering.errors import BadInput, Unavailable
from metering.settings import Settings, read_settings
from metering.store import outbox, postgres
from tests.test_slack import facts, told
from tests.webhook import PATH, Behaviour, Webhook, webhook
from workers import deliver
from workers.deliver import pause_seconds

PACE = 0.02
SLOWER = 100


@pytest.fixture
def slack() -> Iterator[Webhook]:
    with webhook() as running:
        yield running


@pytest.fixture
def settings(database_url: str, slack: Webhook, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Retries wait SLOWER times as long: none is due before a test says so, however slow the machine."""
    monkeypatch.setattr(deliver, "pause_seconds", lambda *given: SLOWER * pause_seconds(*given))
    return read_settings(
        database_url=database_url,
        slack_webhook_url=slack.url,
        deliver_interval_seconds=PACE,
        slack_timeout_seconds=0.5,
    )


def put(settings: Settings, *scopes: str, message: dict[str, Any] | None = None, sequence: int = 1) -> None:
    with postgres.connect(settings, "evaluate") as connection, connection.begin():
        for scope in scopes:
            alert = facts(name=scope, alert=f"margin_breach/{scope}/{sequence}")
            state = "opened" if sequence % 2 else "resolved"
            one = told(alert, state=state) if message is None else message
            outbox.append_message(connection, "margin_breach", scope, sequence, one)


def attempts(settings: Settings) -> list[tuple[Any, ...]]:
    """(outbox_id, attempt, outcome, status) in the order in which they were made."""
    with postgres.connect(settings, "read") as connection:
        rows = connection.exec_driver_sql(
            "SELECT outbox_id, attempt, outcome, status FROM outbox_attempts ORDER BY attempted_at, outbox_id"
        )
        return [tuple(row) for row in rows]


def move(settings: Settings, days: int) -> None:
    """Move every attempt and its retry in time: -1 makes all due, as if a day had passed."""
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        connection.execute(
            "UPDATE outbox_attempts SET retry_at = retry_at + %(by)s, "
            "attempted_at = attempted_at + least(%(by)s, '0')",
            {"by": timedelta(days=days)},
        )


def run(settings: Settings) -> None:
    deliver.run(settings, until_idle=True)


def names(slack: Webhook) -> list[str]:
    """Which alerts were posted, in order."""
    return [
        post["blocks"][-1]["elements"][0]["text"].removeprefix("alert margin_breach/")
        for post in slack.received
    ]


def test_messages_go_out_once_oldest_first_and_not_faster_than_said(
    settings: Settings, slack: Webhook
) -> None:
    slow = settings.model_copy(update={"deliver_interval_seconds": 0.25})
    put(slow, "a", "b", "c")
    run(slow)
    assert names(slack) == ["a/1", "b/1", "c/1"]
    assert all(
        after - before >= 0.25 for before, after in zip(slack.posted_at, slack.posted_at[1:], strict=False)
    )
    assert attempts(slow) == [(1, 1, "delivered", 200), (2, 1, "delivered", 200), (3, 1, "delivered", 200)]
    run(slow)
    assert len(slack.received) == 3
    assert len(attempts(slow)) == 3


def test_the_pace_holds_over_a_restart(settings: Settings, slack: Webhook) -> None:
    slow = settings.model_copy(update={"deliver_interval_seconds": 0.3})
    put(slow, "a")
    run(slow)
    put(slow, "b")
    run(slow)
    assert slack.posted_at[1] - slack.posted_at[0] >= 0.3


def test_429_holds_everything_back_for_as_long_as_slack_says(settings: Settings, slack: Webhook) -> None:
    slack.script.append(Behaviour(429, "rate_limited", {"Retry-After": "3"}))
    put(settings, "a", "b")
    run(settings)
    assert attempts(settings) == [(1, 1, "retry", 429)]
    with postgres.connect(settings, "read") as connection:
        held = connection.exec_driver_sql("SELECT retry_at - attempted_at FROM outbox_attempts").scalar_one()
        assert round(held.total_seconds()) == 3 * SLOWER
    run(settings)
    assert names(slack) == ["a/1"]
    move(settings, days=-1)
    run(settings)
    assert names(slack) == ["a/1", "a/1", "b/1"]
    assert attempts(settings)[1:] == [(1, 2, "delivered", 200), (2, 1, "delivered", 200)]


def test_a_retry_comes_by_itself_when_its_time_has_come(
    settings: Settings, slack: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver, "pause_seconds", pause_seconds)
    slack.script.append(Behaviour(429, "rate_limited", {"Retry-After": "1"}))
    put(settings, "a", "b")
    deadline = time.monotonic() + 20
    while len(slack.received) < 3 and time.monotonic() < deadline:
        run(settings)
    assert names(slack) == ["a/1", "a/1", "b/1"]
    assert slack.posted_at[1] - slack.posted_at[0] >= 1


@pytest.mark.parametrize(
    ("behaviour", "status"),
    [(Behaviour(500), 500), (Behaviour(503), 503), (Behaviour(None), None)],
    ids=["500", "503", "lost answer"],
)
def test_what_passes_is_tried_again_as_the_same_message(
    settings: Settings, slack: Webhook, behaviour: Behaviour, status: int | None
) -> None:
    slack.script.append(behaviour)
    put(settings, "a")
    run(settings)
    assert attempts(settings) == [(1, 1, "retry", status)]
    run(settings)
    assert len(slack.received) == 1
    move(settings, days=-1)
    run(settings)
    assert attempts(settings) == [(1, 1, "retry", status), (1, 2, "delivered", 200)]
    assert slack.received[0] == slack.received[1]
    assert "message 1 (the same number again is the same message)" in json.dumps(slack.received[1])


def test_a_timeout_is_tried_again(settings: Settings, slack: Webhook) -> None:
    answered = threading.Event()
    slack.script.append(Behaviour(wait=answered))
    put(settings, "a")
    run(settings)
    answered.set()
    assert attempts(settings) == [(1, 1, "retry", None)]


def test_pauses_double_and_the_last_attempt_gives_up_visibly(settings: Settings, slack: Webhook) -> None:
    few = settings.model_copy(update={"slack_attempts_max": 4})
    slack.script.extend([Behaviour(500)] * 4)
    put(few, "a")
    pauses = []
    for _ in range(5):
        run(few)
        with postgres.connect(few, "read") as connection:
            pauses = connection.exec_driver_sql(
                "SELECT extract(epoch FROM retry_at - attempted_at)::float8, detail "
                "FROM outbox_attempts ORDER BY attempt"
            ).all()
        move(few, days=-1)
    assert [pause if pause is None else round(pause, 1) for pause, _ in pauses] == [100.0, 200.0, 400.0, None]
    assert [outcome for _, _, outcome, _ in attempts(few)] == ["retry", "retry", "retry", "given_up"]
    assert pauses[-1][1].endswith("given up after 4 attempts")
    assert len(slack.received) == 4


@pytest.mark.parametrize(
    ("attempt", "retry_after", "seconds"),
    [
        (1, None, 1),
        (2, None, 2),
        (11, None, 1024),
        (18, None, 86400),
        (1000, None, 86400),
        (1, 30, 30),
        (9, 30, 30),
        (1, 0, PACE),
        (1, 10**8, 86400),
    ],
)
def test_how_long_a_retry_waits(
    settings: Settings, attempt: int, retry_after: int | None, seconds: float
) -> None:
    assert pause_seconds(attempt, retry_after, settings) == seconds


def test_what_is_refused_is_given_up_and_holds_nobody_up(settings: Settings, slack: Webhook) -> None:
    slack.script.extend(
        [Behaviour(400, "invalid_payload"), Behaviour(302, "", {"Location": slack.url.get_secret_value()})]
    )
    put(settings, "a", "b", "c")
    run(settings)
    assert attempts(settings) == [(1, 1, "given_up", 400), (2, 1, "given_up", 302), (3, 1, "delivered", 200)]
    assert slack.requests == [f"POST {PATH}"] * 3
    run(settings)
    assert len(slack.received) == 3


def test_a_row_that_is_no_message_is_given_up(settings: Settings, slack: Webhook) -> None:
    put(settings, "a", message={"rule": "margin_breach"})
    put(settings, "b", message=told(facts(revenue="much")))
    put(settings, "c")
    run(settings)
    assert attempts(settings) == [
        (1, 1, "given_up", None),
        (2, 1, "given_up", None),
        (3, 1, "delivered", 200),
    ]
    assert names(slack) == ["c/1"]


def test_nothing_is_resolved_before_it_was_opened(settings: Settings, slack: Webhook) -> None:
    slack.script.append(Behaviour(500))
    put(settings, "a")
    put(settings, "a", sequence=2)
    run(settings)
    assert names(slack) == ["a/1"]
    move(settings, days=-1)
    run(settings)
    assert names(slack) == ["a/1", "a/1", "a/2"]


def test_after_days_without_slack_all_that_waited_goes_out_with_the_first_that_succeeds(
    settings: Settings, slack: Webhook
) -> None:
    slack.script.extend([Behaviour(503)] * 3)
    put(settings, "a", "b", "c")
    run(settings)
    assert [outcome for _, _, outcome, _ in attempts(settings)] == ["retry"] * 3
    move(settings, days=3)
    put(settings, "d")
    run(settings)
    assert names(slack) == ["a/1", "b/1", "c/1", "d/1", "a/1", "b/1", "c/1"]


def test_death_between_the_post_and_its_record_posts_again(
    settings: Settings, slack: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(settings, "a")

    def dies(*_: Any, **__: Any) -> None:
        raise Unavailable("the connection to Postgres broke off")

    with monkeypatch.context() as patched:
        patched.setattr(outbox, "append_attempt", dies)
        with pytest.raises(Unavailable):
            run(settings)
    assert attempts(settings) == []
    run(settings)
    assert names(slack) == ["a/1", "a/1"]
    assert attempts(settings) == [(1, 1, "delivered", 200)]


def test_a_second_deliverer_says_who_works_and_takes_over_after_it(
    settings: Settings, slack: Webhook, capfd: pytest.CaptureFixture[str]
) -> None:
    put(settings, "a")
    with deliver.opened(settings) as first:
        assert first()
        put(settings, "b")
        with deliver.opened(settings) as second:
            assert [second(), second(), second()] == [False, False, False]
            assert names(slack) == ["a/1"]
            said = capfd.readouterr()
            assert (said.out + said.err).count("is at work; waiting for it to end") == 1
            assert "Postgres backend" in said.out + said.err
    run(settings)
    assert names(slack) == ["a/1", "b/1"]


def test_two_deliverers_at_once_post_each_message_once(settings: Settings, slack: Webhook) -> None:
    put(settings, *"abcdefgh")
    stopping = threading.Event()

    def steps() -> None:
        with deliver.opened(settings) as step:
            while not stopping.is_set():
                if not step():
                    time.sleep(PACE)

    workers = [threading.Thread(target=steps) for _ in range(2)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 20
    while len(attempts(settings)) < 8 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.2)
    stopping.set()
    for worker in workers:
        worker.join()
    assert names(slack) == [f"{letter}/1" for letter in "abcdefgh"]


def test_without_a_webhook_messages_stay_with_one_warning(
    settings: Settings, slack: Webhook, capfd: pytest.CaptureFixture[str]
) -> None:
    none = settings.model_copy(update={"slack_webhook_url": None})
    put(none, "a")
    with deliver.opened(none) as step:
        assert [step(), step(), step()] == [False, False, False]
    said = capfd.readouterr()
    assert (said.out + said.err).count("set METERING_SLACK_WEBHOOK_URL") == 1
    assert attempts(none) == []
    run(settings)
    assert names(slack) == ["a/1"]


def test_an_address_that_is_not_allowed_stops_the_worker_without_being_shown(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    elsewhere = SecretStr("https://example.com/services/T0/B0/topsecret")
    put(settings, "a")
    with pytest.raises(BadInput) as refused:
        run(settings.model_copy(update={"slack_webhook_url": elsewhere}))
    assert "topsecret" not in str(refused.value) + "".join(capfd.readouterr())
    assert attempts(settings) == []


def test_the_address_is_nowhere_to_be_read(
    settings: Settings, slack: Webhook, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    slack.script.extend(
        [Behaviour(None), Behaviour(500, slack.url.get_secret_value()), Behaviour(404, PATH), Behaviour(302)]
    )
    put(settings, *"abcd")
    put(settings, "e", message={"bad": True})
    run(settings)
    with postgres.connect(settings, "read") as connection:
        stored = connection.exec_driver_sql(
            "SELECT row_to_json(o)::text || row_to_json(a)::text "
            "FROM outbox o JOIN outbox_attempts a USING (outbox_id)"
        ).scalars()
        written = "".join(stored) + "".join(capfd.readouterr()) + caplog.text + repr(settings)
    assert len(attempts(settings)) == 5
    assert "secretsecretsecret" not in written
    assert PATH not in written


def test_the_deliverer_can_only_append_attempts(settings: Settings) -> None:
    put(settings, "a")
    for statement in (
        "UPDATE outbox SET message = '{}'",
        "DELETE FROM outbox",
        "INSERT INTO outbox (rule, scope, sequence, message) VALUES ('r', 's', 1, '{}')",
        "DELETE FROM outbox_attempts",
        "UPDATE outbox_attempts SET outcome = 'delivered'",
    ):
        with postgres.connect_driver(settings, "deliver") as connection:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
            connection.rollback()
