"""The loop that all workers share: step until told to stop; retry only what is unavailable; log what happens."""

import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

import psycopg
import structlog
from sqlalchemy.exc import DBAPIError

from metering.errors import MeteringError, Unavailable, WrongWorld
from metering.settings import Settings

#: Does one bounded piece of work; True when there may be more at once, False when there was nothing to do.
Step = Callable[[], bool]

#: SQLSTATE classes and codes after which memory is forgotten and the connection opened anew.
_PASSING = ("08", "25P03", "40", "53", "55P03", "57", "58")


def show_progress(text: str) -> None:
    """One line on a terminal that tells how far the work is; the next one, or a log line, takes its place."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[2K{text}")
        sys.stderr.flush()


def _clear_progress(
    logger: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    show_progress("")
    return event


def configure_logging(settings: Settings) -> None:
    """Structured logs on stderr: for people on a terminal, JSON lines otherwise."""
    terminal = sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _clear_progress,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; the work in hand is finished first. Restores the handlers."""
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def database_errors() -> Iterator[None]:
    """Translate database errors by SQLSTATE: what passes becomes Unavailable, a wrong world WrongWorld."""
    try:
        yield
    except (psycopg.Error, DBAPIError) as error:
        raise translate(error) from error


def translate(error: psycopg.Error | DBAPIError) -> Exception:
    """The error of the house for a database error; itself when it is the program that is wrong."""
    origin = error.orig if isinstance(error, DBAPIError) else error
    text = str(origin).strip().splitlines()[0] if str(origin).strip() else type(origin).__name__
    sqlstate = getattr(origin, "sqlstate", None)
    if sqlstate is None and isinstance(origin, psycopg.OperationalError | psycopg.InterfaceError):
        return Unavailable(f"the connection to Postgres broke off: {text}")
    if sqlstate is not None and sqlstate.startswith(_PASSING):
        return Unavailable(f"Postgres: {text} (SQLSTATE {sqlstate})")
    if sqlstate is not None and (sqlstate.startswith("42") or "no partition of relation" in text):
        return WrongWorld(f"the database is not what this program expects: {text} (SQLSTATE {sqlstate})")
    return error


def run(
    name: str,
    opened: Callable[[], AbstractContextManager[Step]],
    *,
    settings: Settings,
    interval_seconds: float,
    until_idle: bool = False,
    stopping: threading.Event | None = None,
) -> None:
    """Open, step until stopped, close. Unavailable closes, waits with jittered backoff and opens again.

    `opened` yields the step with its connections; leaving it releases them. With `until_idle` the loop ends
    at the first step that found nothing to do, and Unavailable is not retried. Every other error ends the
    worker: its supervisor restarts it.
    """
    log = structlog.get_logger().bind(worker=name)
    with stop_on_signal() as signalled:
        stop = stopping or signalled
        backoff = 0.5
        while not stop.is_set() and not signalled.is_set():
            try:
                with database_errors(), opened() as step:
                    log.info("started")
                    while not stop.is_set() and not signalled.is_set():
                        began = time.monotonic()
                        did_something = step()
                        backoff = 0.5
                        if did_something:
                            continue
                        if until_idle:
                            log.info("idle")
                            return
                        signalled.wait(max(0.0, interval_seconds - (time.monotonic() - began)))
            except Unavailable as error:
                if until_idle:
                    raise
                pause = min(backoff, settings.retry_backoff_seconds_max) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
                log.warning("unavailable", error=str(error), retry_seconds=round(pause, 2))
                backoff *= 2
                signalled.wait(pause)
            except MeteringError as error:
                log.error("stopped", error=str(error))
                raise
        log.info("stopped on request")
