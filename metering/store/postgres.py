"""Connections to Postgres: as one role, with every timeout set, and errors that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from metering.errors import BadInput, MeteringError, Unavailable, WrongWorld
from metering.settings import Settings

#: Session advisory lock that gives watermarks, folds and catalog revisions one order.
KNOWLEDGE: Final = 0x6B6E6F77
#: Session advisory lock of the one fold worker.
FOLD: Final = 0x666F6C64
#: Session advisory lock of the one settle worker.
SETTLE: Final = 0x736574
#: Session advisory lock of whoever archives or restores a day.
ARCHIVE: Final = 0x61726368


def _url(settings: Settings) -> URL:
    try:
        url = make_url(settings.database_url.get_secret_value())
    except ArgumentError:
        raise BadInput(
            "METERING_DATABASE_URL is not a URL; give postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        ) from None
    if not url.drivername.startswith("postgres"):
        raise BadInput(
            f"METERING_DATABASE_URL is of '{url.drivername}'; this program keeps its ledgers in Postgres"
        )
    return url.set(drivername="postgresql+psycopg")


def address(settings: Settings) -> str:
    """Where the database is, without any secret, for messages."""
    url = _url(settings)
    host = url.host or url.query.get("host") or "local socket"
    return f"{host}:{url.port or 5432}/{url.database}"


def _session(settings: Settings, role: str | None) -> dict[str, Any]:
    """libpq arguments: a role, the UTC clock, and a limit on every way to hang."""
    parameters = {
        "timezone": "UTC",
        "statement_timeout": settings.statement_timeout_ms,
        "lock_timeout": settings.lock_timeout_ms,
        "idle_in_transaction_session_timeout": settings.idle_in_transaction_session_timeout_ms,
        "tcp_keepalives_idle": 10,
        "tcp_keepalives_interval": 5,
        "tcp_keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    }
    if role is not None:
        parameters["role"] = f"{settings.role_prefix}{role}"
    return {
        "options": " ".join(f"-c {name}={value}" for name, value in parameters.items()),
        "application_name": f"metering {role or 'admin'}",
        "connect_timeout": 10,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    }


def connect_failure(settings: Settings, error: BaseException) -> MeteringError:
    """What a failed connection means to a person."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if 'parameter "role"' in str(error) or "permission denied to set role" in str(error):
        return WrongWorld(
            f"the database {address(settings)} does not let this user work as a metering role: {text}; "
            "run `metering init` as a user who may create roles, or ask its owner to grant the role"
        )
    if "does not exist" in str(error) and "database" in str(error):
        return WrongWorld(f"{text} (at {address(settings)}); create it, then run `metering init`")
    return Unavailable(
        f"cannot reach Postgres at {address(settings)}: {text}; "
        "is it running, and is METERING_DATABASE_URL right? (`metering sandbox up` starts one to try, "
        "which is found from the folder where that was run)"
    )


def connect(settings: Settings, role: str | None) -> Connection:
    """Open a SQLAlchemy connection that works as `role` (None: as the login user). The caller closes it.

    Raises Unavailable when nothing answers, WrongWorld when the roles or the database are not there.
    """
    engine = create_engine(_url(settings), poolclass=NullPool, connect_args=_session(settings, role))
    try:
        return engine.connect()
    except DBAPIError as error:
        raise connect_failure(settings, error.orig or error) from None


def connect_driver(settings: Settings, role: str) -> psycopg.Connection[tuple[Any, ...]]:
    """Open a bare psycopg connection as `role`, for the path where every statement and SQLSTATE counts."""
    arguments = _url(settings).set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        return psycopg.connect(arguments, **_session(settings, role))
    except psycopg.Error as error:
        raise connect_failure(settings, error) from None


def driver(connection: Connection) -> psycopg.Connection[tuple[Any, ...]]:
    """The psycopg connection under a SQLAlchemy one, for COPY inside the same transaction."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)
    return raw


@contextmanager
def reading(settings: Settings, role: str = "read", scratch: str | None = None) -> Iterator[Connection]:
    """One snapshot: a REPEATABLE READ, READ ONLY transaction. Nothing can be written in it.

    Except what `scratch` makes: a statement for temporary tables, which are gone with the connection.
    """
    from metering.store import schema

    with connect(settings, role) as connection:
        if scratch is not None:
            connection.exec_driver_sql(scratch)
            connection.commit()
        connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        # A report may run for longer than a worker's statement, and compute for longer between two of them.
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql("SET idle_in_transaction_session_timeout = '1h'")
        schema.check_version(connection)
        yield connection
        connection.rollback()


def take_lock(connection: Connection, lock: int) -> bool:
    """Take a session advisory lock until the connection closes; False while another session holds it."""
    got: bool = connection.execute(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": lock}).scalar_one()
    connection.commit()
    return got


def lock_holder(connection: Connection, lock: int) -> str:
    """Who holds a session advisory lock, in words. Ends the transaction."""
    # the rights of the login user show when its other sessions began; the worker's role does not see that
    connection.exec_driver_sql("SET LOCAL ROLE NONE")
    row = connection.execute(
        text(
            "SELECT pid, a.backend_start, a.client_addr "
            "FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) "
            "WHERE l.locktype = 'advisory' AND l.granted "
            "AND l.classid = 0 AND l.objid = :lock AND l.objsubid = 1 "
            "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ),
        {"lock": lock},
    ).first()
    connection.rollback()
    if row is None:
        return "nobody any more"
    since = "an unknown time" if row.backend_start is None else f"{row.backend_start:%Y-%m-%d %H:%M:%S} UTC"
    return f"backend {row.pid} from {row.client_addr or 'a local socket'}, since {since}"


@contextmanager
def knowledge(connection: Connection) -> Iterator[Connection]:
    """The lock KNOWLEDGE, then one REPEATABLE READ transaction, committed on success.

    The lock is taken before the transaction begins: a statement that waits for a lock inside of it has
    already taken its snapshot. If the process dies in the middle nothing was written and the server
    releases the lock.
    """
    connection.rollback()
    connection.execution_options(isolation_level="READ COMMITTED")
    connection.exec_driver_sql("SET lock_timeout = '60s'")
    connection.exec_driver_sql(f"SELECT pg_advisory_lock({KNOWLEDGE})")
    connection.commit()
    try:
        connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection
    finally:
        if not connection.invalidated and not connection.closed:
            connection.execution_options(isolation_level="READ COMMITTED")
            connection.exec_driver_sql(f"SELECT pg_advisory_unlock({KNOWLEDGE})")
            connection.exec_driver_sql("RESET lock_timeout")
            connection.commit()
