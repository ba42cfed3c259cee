"""Looking back: records read again by partition and offset, outside of any consumer group; it moves nothing."""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from metering.settings import Settings
from metering.stream.consumer import Record, _record
from metering.stream.topics import kafka_errors

#: Longest wait for records that the broker does not hand out (those of an open transaction, for example).
_WAIT_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Look:
    """Records in order of offset, where the look ended, and what kept it from going further (None: nothing)."""

    records: list[Record]
    next_offset: int
    problem: str | None


class Lookback:
    """A reader of single places of the topic. Use as a context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kafka: KafkaConsumer | None = None

    def __enter__(self) -> "Lookback":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def look(self, partition: int, first: int, until: int, *, records_max: int) -> Look:
        """The committed records of [first, until), at most `records_max`, as far as they can be read.

        A damaged batch, a codec that is missing, an offset that the log does not hold or a transaction that
        stays open ends the look; `problem` says so. Raises Unavailable where no broker answers.
        """
        at = TopicPartition(self._settings.kafka_topic, partition)
        records: list[Record] = []
        position, problem, waited_since = first, None, time.monotonic()
        kafka = self._opened()
        kafka.assign([at])
        kafka.seek(at, first)
        while position < until and len(records) < records_max and problem is None:
            try:
                polled = kafka.poll(timeout_ms=200, max_records=records_max - len(records)).get(at, ())
                reached = kafka.position(at, timeout_ms=0)
            except OffsetOutOfRangeError:
                problem = f"the log does not hold offset {position}"
            except KafkaError as error:
                problem = f"offset {position} cannot be read: {type(error).__name__}: {error}"
            else:
                records += [_record(raw) for raw in polled if raw.offset < until]
                # the position is one step behind what poll() handed out
                reached = max(reached or 0, polled[-1].offset + 1 if polled else 0)
                if reached > position:
                    position, waited_since = reached, time.monotonic()
                elif time.monotonic() - waited_since > _WAIT_SECONDS:
                    problem = f"the broker hands out nothing from offset {position} on (an open transaction, or the end)"
        if problem is not None:
            # after an exception out of poll() a consumer is never polled again
            self._close()
        return Look(records, min(position, until), problem)

    def record(self, partition: int, offset: int) -> Record | None:
        """The record at an offset; None where the log no longer holds it."""
        found = self.look(partition, offset, offset + 1, records_max=1).records
        return found[0] if found and found[0].offset == offset else None

    def _opened(self) -> KafkaConsumer:
        if self._kafka is None:
            with kafka_errors(self._settings):
                self._kafka = KafkaConsumer(
                    bootstrap_servers=self._settings.kafka_bootstrap.split(","),
                    bootstrap_timeout_ms=10_000,
                    group_id=None,
                    enable_auto_commit=False,
                    auto_offset_reset="none",
                    isolation_level="read_committed",
                    allow_auto_create_topics=False,
                    max_partition_fetch_bytes=self._settings.fetch_bytes_max,
                    fetch_max_bytes=self._settings.fetch_bytes_max,
                    fetch_max_wait_ms=100,
                    receive_message_max_bytes=max(100_000_000, 2 * self._settings.fetch_bytes_max),
                    metrics_enabled=False,
                )
        return self._kafka

    def _close(self) -> None:
        if self._kafka is not None:
            self._kafka.close(autocommit=False, timeout_ms=1_000)
            self._kafka = None
