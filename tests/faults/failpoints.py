"""Failpoints: a point before and after every statement, COPY and COMMIT that a worker sends, by construction.

`install()` makes psycopg's connections (SQLAlchemy's too) pass a point around everything that they send, and
the consumer one after a poll that brought records and around the advisory commit. What happens at a point is
said by the environment of the process:

    FAULTS_JOURNAL   a file that gets a JSON line for every point, written before anything happens there
    FAULTS_COUNT     points are numbered from the first one on in whose statement this regular expression is found
    FAULTS_AT        JSON [[where, action], ...]; `where` is #NUMBER or a regular expression that is searched in
                     "WHEN STATEMENT"; each rule strikes once. Actions: kill, stop, raise, sleep SECONDS
    FAULTS_KAFKA     host:port to which every connection to Kafka goes instead
    FAULTS_CONSUMER  JSON of further arguments for the Kafka consumer; `assignors` names its classes

WHEN is `before` or `after`; of a COPY also `inside`: half of the bytes of the first write are with the server.
"""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.copy import Copy, LibpqWriter


class Injected(psycopg.OperationalError):
    """What the action `raise` raises: a connection that broke off."""


class _Points:
    """Which points were passed, and what is to happen at which."""

    def __init__(self) -> None:
        rules = json.loads(os.environ.get("FAULTS_AT", "[]"))
        self._rules = [(where, action) for where, action in rules]
        self._number: int | None = None
        self._count_from = os.environ.get("FAULTS_COUNT", "")
        path = os.environ.get("FAULTS_JOURNAL")
        self._journal = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def pass_by(self, when: str, statement: str | bytes, backend: int | None = None) -> None:
        text = " ".join((statement.decode() if isinstance(statement, bytes) else statement).split())
        if self._number is None and re.search(self._count_from, text):
            self._number = 0
        number = self._number
        if number is not None:
            self._number = number + 1
        struck = [rule for rule in self._rules if self._is_at(rule[0], number, f"{when} {text}")]
        if self._journal is not None:
            line = {"number": number, "backend": backend, "when": when, "statement": text}
            line["struck"] = [action for _, action in struck]
            os.write(self._journal, json.dumps(line).encode() + b"\n")
        for rule in struck:
            self._rules.remove(rule)
            _act(rule[1])

    def _is_at(self, where: str, number: int | None, point: str) -> bool:
        if where.startswith("#"):
            return number == int(where[1:])
        return re.search(where, point) is not None


def _act(action: str) -> None:
    verb, _, argument = action.partition(" ")
    if verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif verb == "sleep":
        time.sleep(float(argument))
    elif verb == "raise":
        raise Injected("injected: the connection is lost")
    else:
        raise ValueError(f"no such action: {action}")


_points: _Points | None = None


def _at() -> _Points:
    global _points
    if _points is None:
        _points = _Points()
    return _points


@contextmanager
def _around(statement: str | bytes, connection: Any) -> Iterator[None]:
    """The points before and after a statement, also one that fails."""
    backend = connection.info.backend_pid
    _at().pass_by("before", statement, backend)
    try:
        yield
    finally:
        _at().pass_by("after", statement, backend)


class _Writer(LibpqWriter):
    """Hands the first half of a COPY's first write to the server, and passes the point `inside`."""

    def __init__(self, cursor: Any, statement: str) -> None:
        super().__init__(cursor, flush_threshold=0)
        self._statement = statement
        self._passed = False

    def write(self, data: Any) -> None:
        if not self._passed:
            self._passed = True
            half = len(data) // 2
            super().write(data[:half])
            _at().pass_by("inside", self._statement, self.connection.info.backend_pid)
            data = data[half:]
        super().write(data)


class _Cursor(psycopg.Cursor[Any]):
    def _maybe_prepare_gen(self, pgq: Any, **options: Any) -> Any:
        with _around(pgq.query, self._conn):
            yield from super()._maybe_prepare_gen(pgq, **options)

    def _start_copy_gen(self, statement: Any, params: Any = None) -> Any:
        # a BEGIN that this brings about has points of its own
        yield from self._start_query()
        _at().pass_by("before", statement, self._conn.info.backend_pid)
        yield from super()._start_copy_gen(statement, params)

    @contextmanager
    def copy(self, statement: Any, params: Any = None, *, writer: Any = None) -> Iterator[Copy]:
        backend = self._conn.info.backend_pid
        try:
            with super().copy(statement, params, writer=writer or _Writer(self, statement)) as copy:
                yield copy
        finally:
            _at().pass_by("after", statement, backend)


class _Connection(psycopg.Connection[Any]):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.cursor_factory = _Cursor

    def _exec_command(self, command: Any, *arguments: Any, **options: Any) -> Any:
        text = command if isinstance(command, str | bytes) else command.as_string(self)
        with _around(text, self):
            return (yield from super()._exec_command(command, *arguments, **options))


class _Libpq:
    """A libpq connection with points around what goes out by `exec_`, up to the end of its results."""

    def __init__(self, connection: Any) -> None:
        self._pgconn = connection.pgconn
        self._backend = connection.info.backend_pid

    def exec_(self, command: bytes) -> Any:
        self._command = command
        _at().pass_by("before", command, self._backend)
        return self._pgconn.exec_(command)

    def get_result(self) -> Any:
        result = self._pgconn.get_result()
        if result is None:
            _at().pass_by("after", self._command, self._backend)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pgconn, name)


def install() -> None:
    """Give every connection of this process its points. Before anything else of the program is imported."""
    psycopg.connect = _Connection.connect
    psycopg.Cursor = _Cursor
    _install_copy_out()
    _install_kafka()


def _install_copy_out() -> None:
    """The one place that speaks to libpq itself."""
    from metering.store import ledger_rows

    copy_stream = ledger_rows.copy_stream

    class Speaking:
        def __init__(self, connection: Any) -> None:
            self.execute = connection.execute
            self.pgconn = _Libpq(connection)

    def stream(connection: Any, query: str, options: str) -> Iterator[bytes]:
        return copy_stream(Speaking(connection), query, options)

    ledger_rows.copy_stream = stream


def _install_kafka() -> None:
    import kafka.net.inet
    from kafka.coordinator.assignors import cooperative_sticky, roundrobin

    from metering.stream import consumer

    connect_ex = kafka.net.inet.KafkaNetSocket.connect_ex
    poll, commit = consumer.Consumer.poll, consumer.Consumer.commit_advisory
    made = consumer.KafkaConsumer
    assignors = {
        "cooperative": cooperative_sticky.CooperativeStickyAssignor,
        "roundrobin": roundrobin.RoundRobinPartitionAssignor,
    }

    def redirected(self: Any, sock: Any, address: Any) -> Any:
        proxy = os.environ.get("FAULTS_KAFKA")
        if proxy:
            host, port = proxy.rsplit(":", 1)
            address = (host, int(port))
        return connect_ex(self, sock, address)

    def polled(self: Any, **options: Any) -> Any:
        fetched = poll(self, **options)
        if any(part.records for part in fetched):
            _at().pass_by("after", "poll")
        return fetched

    def committed(self: Any, offsets: dict[int, int]) -> None:
        _at().pass_by("before", "advisory commit")
        commit(self, offsets)
        _at().pass_by("after", "advisory commit")

    def configured(*arguments: Any, **options: Any) -> Any:
        further = json.loads(os.environ.get("FAULTS_CONSUMER", "{}"))
        if "assignors" in further:
            further["partition_assignment_strategy"] = [assignors[name] for name in further.pop("assignors")]
        return made(*arguments, **options, **further)

    kafka.net.inet.KafkaNetSocket.connect_ex = redirected
    consumer.Consumer.poll = polled
    consumer.Consumer.commit_advisory = committed
    consumer.KafkaConsumer = configured
