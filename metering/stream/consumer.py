"""Reading the topic: raw records, dealt out by a consumer group, from positions that only Postgres knows."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, NamedTuple

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.errors import (
    IllegalStateError,
    KafkaError,
    LogTruncationError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from kafka.structs import OffsetAndMetadata

from metering.errors import Unavailable, WrongWorld
from metering.settings import Settings
from metering.stream.topics import instant_of, kafka_errors, outside_log

#: Where an assigned partition waits, paused, until its position is claimed: without one poll() raises.
_PLACEHOLDER = 0
#: Session timeouts of polling without being a member of the group, after which to begin anew.
_UNJOINED_SESSIONS_MAX = 2.0
#: The type of a record's timestamp that the broker sets.
_LOG_APPEND_TIME = 1
#: What is looked at of a content-type header.
_HEADER_BYTES_MAX = 400


class Record(NamedTuple):
    """The bytes at one offset, and what the broker says of them.

    `stamped_by_log`: `appended_at` is of the broker's clock, not of the producer's.
    """

    offset: int
    value: bytes | None
    content_type: str | None
    appended_at: datetime
    stamped_by_log: bool


@dataclass(frozen=True)
class Fetched:
    """What one poll brought of one partition: its records (perhaps none) and the position after them."""

    partition: int
    records: list[Record]
    next_offset: int


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Runs on kafka-python's I/O thread: it marks, pauses and seeks, and never blocks."""

    def __init__(self, consumer: "Consumer") -> None:
        self._consumer = consumer

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._consumer._assigned([at.partition for at in assigned])

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._consumer._revoked([at.partition for at in revoked])


class Consumer:
    """A member of the consumer group. After any exception it must be closed and never polled again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.kafka_topic
        self._lock = threading.Lock()
        self._generation: dict[int, int] = {}  # of each assigned partition, counted up at each assignment
        self._counter = 0
        self._pending: set[int] = set()
        self._unjoined_seconds: float | None = 0.0  # None: a member; what it was dealt may be nothing
        with kafka_errors(settings):
            self._kafka = KafkaConsumer(
                bootstrap_servers=settings.kafka_bootstrap.split(","),
                bootstrap_timeout_ms=10_000,
                group_id=settings.consumer_group,
                enable_auto_commit=False,
                auto_offset_reset="none",
                isolation_level="read_committed",
                allow_auto_create_topics=False,
                session_timeout_ms=settings.session_timeout_ms,
                max_partition_fetch_bytes=max(1, settings.fetch_bytes_max // 4),
                fetch_max_bytes=settings.fetch_bytes_max,
                fetch_max_wait_ms=100,
                receive_message_max_bytes=max(100_000_000, 2 * settings.fetch_bytes_max),
                metrics_enabled=False,
            )
            self._kafka.subscribe([self._topic], listener=_Listener(self))
            # a member that joins before it knows the partitions is dealt none, and has to join again
            self._kafka.partitions_for_topic(self._topic)

    def __enter__(self) -> "Consumer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._kafka.close(autocommit=False, timeout_ms=5_000)
        except KafkaError:
            # the broker notices at the session timeout; positions are in Postgres either way
            return

    def _assigned(self, partitions: list[int]) -> None:
        with self._lock:
            self._unjoined_seconds = None
            for partition in partitions:
                at = TopicPartition(self._topic, partition)
                self._kafka.pause(at)
                self._kafka.seek(at, _PLACEHOLDER)
                self._counter += 1
                self._generation[partition] = self._counter
                self._pending.add(partition)

    def _revoked(self, partitions: list[int]) -> None:
        with self._lock:
            self._unjoined_seconds = 0.0
            for partition in partitions:
                self._generation.pop(partition, None)
                self._pending.discard(partition)

    def pending(self) -> list[int]:
        """Partitions that were assigned and wait, paused, for their position."""
        with self._lock:
            return sorted(self._pending)

    def owned(self) -> dict[int, int]:
        """The partitions that are assigned and started, each with the generation of its assignment."""
        with self._lock:
            return {at: number for at, number in self._generation.items() if at not in self._pending}

    def start(self, partition: int, offset: int) -> int | None:
        """Read a pending partition from `offset` on; None if it was taken away meanwhile, else its generation."""
        at = TopicPartition(self._topic, partition)
        with self._lock:
            generation = self._generation.get(partition)
            if generation is None:
                return None
            try:
                self._kafka.seek(at, offset)
                self._kafka.resume(at)
            except (IllegalStateError, KeyError, ValueError):
                return None
            self._pending.discard(partition)
            return generation

    def release(self, partition: int) -> None:
        """Stop reading a partition whose ownership was lost: pause it and claim it again, if still assigned."""
        with self._lock:
            if partition in self._generation:
                at = TopicPartition(self._topic, partition)
                self._kafka.pause(at)
                self._kafka.seek(at, _PLACEHOLDER)
                self._counter += 1
                self._generation[partition] = self._counter
                self._pending.add(partition)

    def poll(self, *, timeout_seconds: float, records_max: int) -> list[Fetched]:
        """What the started partitions bring, with the position after it; partitions in order.

        A partition that changed hands meanwhile is left out: it will be read again from its claimed position.
        Raises WrongWorld where the log no longer holds the position or cannot be parsed, Unavailable where the
        group does not take us in.
        """
        before = self.owned()
        try:
            polled = self._kafka.poll(timeout_ms=int(timeout_seconds * 1000), max_records=records_max)
            positions = {at: self._position(at) for at in before}
        except (OffsetOutOfRangeError, NoOffsetForPartitionError, LogTruncationError) as error:
            raise WrongWorld(self._out_of_range(error)) from error
        except KafkaError as error:
            if getattr(error, "retriable", False):
                raise Unavailable(f"Kafka at {self._settings.kafka_bootstrap}: {error}") from error
            raise WrongWorld(
                f"topic '{self._topic}' cannot be read on from here: {type(error).__name__}: {error}; "
                "nothing was skipped. If the log holds a damaged or unreadable batch, repair it or have the codec installed"
            ) from error
        self._joined(timeout_seconds)
        after = self.owned()
        fetched = []
        for partition, position in sorted(positions.items()):
            if after.get(partition) != before[partition] or position is None:
                continue
            records = [_record(raw) for raw in polled.get(TopicPartition(self._topic, partition), ())]
            if records and position <= records[-1].offset:
                # the position is one step behind what poll() handed out: what was handed out counts
                position = records[-1].offset + 1
            fetched.append(Fetched(partition, records, position))
        return fetched

    def _joined(self, waited_seconds: float) -> None:
        """Count what was waited for the group. kafka-python may wait for an answer that it has missed for ever."""
        limit = _UNJOINED_SESSIONS_MAX * self._settings.session_timeout_ms / 1000
        with self._lock:
            if self._unjoined_seconds is not None:
                self._unjoined_seconds += waited_seconds
            waited = self._unjoined_seconds or 0.0
        if waited > limit:
            group = self._settings.consumer_group
            raise Unavailable(f"consumer group '{group}' has not taken this worker in for {waited:.0f} s")

    def _position(self, partition: int) -> int | None:
        try:
            offset: int | None = self._kafka.position(TopicPartition(self._topic, partition), timeout_ms=0)
        except (IllegalStateError, KeyError):
            return None
        return offset

    def _out_of_range(self, error: KafkaError) -> str:
        """Name the position we need and what the log holds, for the first partition where they disagree."""
        try:
            started = [TopicPartition(self._topic, partition) for partition in sorted(self.owned())]
            first = self._kafka.beginning_offsets(started, timeout_ms=5_000)
            last = self._kafka.end_offsets(started, timeout_ms=5_000)
        except KafkaError as second:
            return f"topic '{self._topic}' does not hold our position: {error} (its bounds: {second})"
        for at in started:
            position = self._position(at.partition)
            if position is not None and (
                wrong := outside_log(self._topic, at.partition, position, first[at], last[at])
            ):
                return wrong
        return f"topic '{self._topic}' did not hold our position when it was asked: {error}; start the worker again"

    def commit_advisory(self, offsets: dict[int, int]) -> None:
        """Tell the group how far we are, for lag displays. Never read back, never waited for."""
        committed = {
            TopicPartition(self._topic, partition): OffsetAndMetadata(offset, "", -1)
            for partition, offset in offsets.items()
        }
        self._kafka.commit_async(committed)


def _record(raw: Any) -> Record:
    content_type = _content_type(raw.headers) if raw.headers else None
    stamped_by_log = raw.timestamp_type == _LOG_APPEND_TIME
    return Record(raw.offset, raw.value, content_type, instant_of(raw.timestamp), stamped_by_log)


def _content_type(headers: Iterable[tuple[str, bytes | None]]) -> str | None:
    content_type = None
    for name, value in headers:
        if name.lower() == "content-type" and value is not None:
            # kept beside every reject of the record: bounded, and no text of the database holds a NUL
            content_type = value[:_HEADER_BYTES_MAX].decode("utf-8", "replace").replace("\0", "\ufffd")
    return content_type
