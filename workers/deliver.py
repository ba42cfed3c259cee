"""Deliver: what waits in the outbox is posted to Slack, oldest first, one a second, at least once.

The attempt is recorded after the answer. If the process dies in between, or the answer is lost, the message
is posted again; its number tells people that it is the same. One deliverer works at a time.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from sqlalchemy import Connection

from metering.delivery.messages import compose
from metering.delivery.slack import Answer, Post, check_webhook, post
from metering.settings import Settings
from metering.store import outbox, postgres, schema
from workers import loop

#: Longest that a step sleeps: the loop looks in between whether it shall stop.
NAP_SECONDS_MAX = 1.0


class Delivery:
    """The deliverer's session: what it has already said, and whether it holds the lock."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self.connection = connection
        self.settings = settings
        self.log = structlog.get_logger().bind(worker="deliver")
        self.claimed = False
        self.said: str | None = None

    def step(self) -> bool:
        """Post the message that is due, or nap until it may be. False: none is due, or not our turn."""
        if self.settings.slack_webhook_url is None:
            self._say(
                "no webhook: messages stay in the outbox; set METERING_SLACK_WEBHOOK_URL to deliver them"
            )
            return False
        if not self.claimed and not self._claim():
            return False
        waiting = outbox.next_due(self.connection)
        since = outbox.seconds_since_attempt(self.connection)
        # No transaction is open while we nap or talk to Slack: neither may hold the database up.
        self.connection.commit()
        if waiting is None:
            return False
        early = 0.0 if since is None else self.settings.deliver_interval_seconds - since
        if early > 0:
            time.sleep(min(early, NAP_SECONDS_MAX))
            return True
        answer = self._post(waiting)
        self._record(waiting, answer)
        return True

    def _claim(self) -> bool:
        holder = outbox.claim_delivery(self.connection)
        self.connection.commit()
        if holder is not None:
            self._say(f"{holder} is at work; waiting for it to end")
            return False
        self.claimed = True
        return True

    def _say(self, what: str) -> None:
        """Warn once, not once a second."""
        if self.said != what:
            self.said = what
            self.log.warning(what)

    def _post(self, waiting: outbox.Waiting) -> Answer:
        assert self.settings.slack_webhook_url is not None
        message = self._compose(waiting)
        if isinstance(message, Answer):
            return message
        return post(self.settings.slack_webhook_url, message, self.settings.slack_timeout_seconds)

    def _compose(self, waiting: outbox.Waiting) -> Post | Answer:
        """A row that no message can be made of is given up: it must not hold up those behind it."""
        try:
            return compose(waiting.outbox_id, waiting.message)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            return Answer(
                "given_up", None, f"no message can be made of this row: {type(error).__name__}: {error}"
            )

    def _record(self, waiting: outbox.Waiting, answer: Answer) -> None:
        attempt = waiting.attempts + 1
        outcome, detail, retry_seconds = answer.outcome, answer.detail, None
        if outcome == "retry" and attempt >= self.settings.slack_attempts_max:
            outcome, detail = "given_up", f"{detail}; given up after {attempt} attempts"
        if outcome == "retry":
            retry_seconds = pause_seconds(attempt, answer.retry_after_seconds, self.settings)
        outbox.append_attempt(
            self.connection,
            waiting.outbox_id,
            outcome=outcome,
            status=answer.status,
            detail=detail,
            retry_seconds=retry_seconds,
        )
        self.connection.commit()
        facts: dict[str, Any] = {"outbox_id": waiting.outbox_id, "rule": waiting.rule, "scope": waiting.scope}
        facts |= {
            "attempt": attempt,
            "status": answer.status,
            "detail": detail,
            "retry_seconds": retry_seconds,
        }
        {"delivered": self.log.info, "retry": self.log.warning, "given_up": self.log.error}[outcome](
            outcome, **facts
        )


def pause_seconds(attempt: int, retry_after_seconds: int | None, settings: Settings) -> float:
    """Seconds until a message is tried again after its `attempt`-th attempt (1 is the first).

    What Slack asks for, or else 1, 2, 4, ... doubled each time; at most `slack_retry_seconds_max`.
    With the settings as they come the 20 attempts of a message span three and a half days.
    """
    wanted = 2.0 ** min(attempt - 1, 40) if retry_after_seconds is None else float(retry_after_seconds)
    return min(max(wanted, settings.deliver_interval_seconds), float(settings.slack_retry_seconds_max))


@contextmanager
def opened(settings: Settings) -> Iterator[loop.Step]:
    """One connection for as long as the deliverer works: its session holds the lock."""
    if settings.slack_webhook_url is not None:
        check_webhook(settings.slack_webhook_url)
    with postgres.connect(settings, "deliver") as connection:
        schema.check_version(connection)
        connection.commit()
        delivery = Delivery(connection, settings)
        yield delivery.step
        backlog = outbox.read_backlog(connection)
        if backlog.undelivered or backlog.given_up:
            next_at = backlog.next_at.isoformat() if backlog.next_at else None
            delivery.log.info(
                "outbox", undelivered=backlog.undelivered, next_at=next_at, given_up=backlog.given_up
            )


def run(settings: Settings, *, until_idle: bool = False) -> None:
    """Deliver until stopped; with `until_idle` until no message is due."""
    loop.run(
        "deliver",
        lambda: opened(settings),
        settings=settings,
        interval_seconds=settings.deliver_interval_seconds,
        until_idle=until_idle,
    )


if __name__ == "__main__":
    from metering.cli import main

    main(["work", "deliver", *sys.argv[1:]])
