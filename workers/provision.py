"""Bring a database and a topic up to what the program needs, and the recorded interventions in them."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import text

from metering.errors import BadInput, Unavailable
from metering.settings import Settings
from metering.store import heartbeats, partitions, positions, postgres, schema
from metering.stream.topics import Admin
from workers.loop import database_errors


def provision(settings: Settings, ledger_from: date | None = None) -> Iterator[str]:
    """Migrate, make the partitions ahead, make the topic, give every partition a position.

    Yields a line for each thing done. Safe to run again; if it dies in the middle a second run finishes.
    """
    with database_errors(), Admin(settings) as admin:
        schema.upgrade(settings)
        yield f"database {postgres.address(settings)}: at migration {schema.head()}"
        today = datetime.now(UTC).date()
        with postgres.connect(settings, "owner") as connection:
            floor = partitions.floor(connection)
            connection.rollback()
            first = ledger_from or (
                floor.date() if floor else today - timedelta(days=settings.ledger_back_days)
            )
            if floor and first < floor.date():
                raise BadInput(
                    f"--ledger-from {first} lies before this ledger's floor {floor.date()}; "
                    f"run `metering partitions ensure {first} {floor.date()}` to take older events"
                )
            if first > today:
                raise BadInput(f"--ledger-from {first} lies ahead; give today or an earlier day")
            made = [] if floor else partitions.ensure(connection, first, today + timedelta(days=1))
            made += partitions.ahead(connection, today, settings.partition_ahead_days)
            floor = partitions.floor(connection)
            until = partitions.made_until(connection)
        assert floor is not None
        yield f"ledger: from {floor.date()} to {until}, {len(made)} days made"
        topic, was_made = admin.ensure()
        with postgres.connect(settings, "operator") as connection, connection.begin():
            added = positions.register(
                connection, topic.name, topic.uuid, admin.offsets(topic, earliest=True)
            )
        state = "made" if was_made else "there"
        yield f"topic {topic.name}: {state}, {len(topic.partitions)} partitions, {len(added)} given a position"


def ensure_days(settings: Settings, first: date, until: date) -> list[date]:
    """Make the ledger's partitions of the days [first, until).

    Never while a day is archived or restored: the days beneath one that is archived are not read from Postgres.
    """
    with database_errors(), postgres.connect(settings, "owner") as connection:
        schema.check_version(connection)
        connection.rollback()
        if not postgres.take_lock(connection, postgres.ARCHIVE):
            holder = postgres.lock_holder(connection, postgres.ARCHIVE)
            raise Unavailable(
                f"a day is being archived or restored ({holder}); run the command again after it"
            )
        return partitions.ensure(connection, first, until)


def adopt_topic(settings: Settings, reason: str) -> Iterator[str]:
    """Begin with the topic as it is now in place of the one whose positions are stored."""
    with (
        database_errors(),
        Admin(settings) as admin,
        postgres.connect(settings, "operator") as connection,
    ):
        schema.check_version(connection)
        connection.rollback()
        topic = admin.get()
        first = admin.offsets(topic, earliest=True)
        with connection.begin():
            added = positions.adopt(
                connection, topic.name, topic.uuid, first, by=positions.operator_name(), reason=reason
            )
    for partition in added:
        yield f"partition {partition} of {topic.name} ({topic.uuid}) begins at offset {first[partition]}"


def resume_source(settings: Settings, source: str, reason: str) -> str:
    """Let a stopped source, or TOPIC as a whole, go on; recorded as an intervention."""
    reason = positions.checked_reason(reason)
    name = f"source '{source}'" if source else f"topic '{settings.kafka_topic}'"
    with database_errors(), postgres.connect(settings, "operator") as connection:
        schema.check_version(connection)
        stopped = connection.execute(
            text(
                "SELECT stopped, reason FROM source_stops WHERE source = :source ORDER BY source_stop_id DESC LIMIT 1"
            ),
            {"source": source},
        ).one_or_none()
        connection.rollback()
        if stopped is None or not stopped.stopped:
            raise BadInput(f"{name} is not stopped; `metering report now` lists what is")
        with connection.begin():
            number = positions.intervene(
                connection,
                "resume",
                by=positions.operator_name(),
                reason=reason,
                details={
                    **({"source": source} if source else {"topic": settings.kafka_topic}),
                    "stopped_for": stopped.reason,
                },
            )
            connection.execute(
                text(
                    "INSERT INTO source_stops (source, stopped, reason, intervention_id) "
                    "VALUES (:source, false, :reason, :number)"
                ),
                {"source": source, "reason": reason, "number": number},
            )
    return f"{name} goes on; recorded as intervention {number}"


def accept_gap(settings: Settings, source: str, reason: str) -> str:
    """Go on without the heartbeats that are missing of a source; recorded as an intervention."""
    reason = positions.checked_reason(reason)
    with database_errors(), postgres.connect(settings, "operator") as connection:
        schema.check_version(connection)
        connection.rollback()
        with connection.begin():
            number, gap = heartbeats.accept_gap(
                connection, source, by=positions.operator_name(), reason=reason
            )
    return f"source '{source}' goes on without heartbeat {gap.numbers}; recorded as intervention {number}"
