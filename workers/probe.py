"""Probe: one look at whether the workers are well, and whether one that starts here could work. It writes nothing."""

from datetime import UTC, datetime

from metering.errors import Unavailable, WrongWorld
from metering.settings import Settings
from metering.store import partitions, positions, postgres, pulse
from metering.stream.topics import Admin
from workers.loop import database_errors


def health(settings: Settings) -> str:
    """One line when all is well. Raises Unavailable when the database does not answer or something stands still.

    Well is: the schema is this program's; every partition moved or was confirmed as read to its end within
    `probe_stall_seconds`; no batch has waited longer than that for a fold that nobody runs.
    """
    most = settings.probe_stall_seconds
    with database_errors(), postgres.reading(settings) as connection:
        moved = pulse.moves(connection)
        waits = pulse.unfolded_seconds(connection)
    if not moved:
        raise WrongWorld("no partition has a position; run `metering init`")
    still = [one for one in moved if one.seconds_ago is None or one.seconds_ago > most]
    if still:
        first = still[0]
        since = (
            "was never read"
            if first.moved_at is None
            else f"stands still since {first.moved_at:%Y-%m-%d %H:%M:%S} UTC"
        )
        more = f" and {len(still) - 1} more" if len(still) > 1 else ""
        raise Unavailable(f"partition {first.partition}{more} {since}; is an ingest worker running?")
    if waits > most:
        raise Unavailable(f"a batch waits for the fold since {waits:.0f} seconds; is a fold worker running?")
    last = min(one.seconds_ago or 0.0 for one in moved)
    return (
        f"healthy: {len(moved)} partitions move or are read to their end, the last {max(0.0, last):.0f} s ago"
    )


def ready(settings: Settings) -> str:
    """One line when a worker that starts now could work. Raises what it would stop or wait for.

    Ready is: the database answers and its schema is this program's; today has a partition; the broker answers,
    and its topic is the one whose positions are stored.
    """
    today = datetime.now(UTC).date()
    with database_errors(), postgres.reading(settings) as connection:
        if not partitions.has_day(connection, today):
            raise WrongWorld(f"the ledger has no partition for {today}; run `metering init`")
        stored = positions.topic_uuid(connection, settings.kafka_topic)
    with Admin(settings) as admin:
        topic = admin.get()
    if stored is None:
        raise WrongWorld(f"topic '{topic.name}' has no positions in this database; run `metering init`")
    if stored != topic.uuid:
        raise WrongWorld(positions.remade(topic.name, stored, topic.uuid))
    return f"ready: database {postgres.address(settings)}, topic {topic.name} with {len(topic.partitions)} partitions"
