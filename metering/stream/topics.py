"""The topic: whether it is there, which one it is, how far each partition reaches."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from uuid import UUID

from kafka import TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic, OffsetSpec
from kafka.errors import (
    BrokerResponseError,
    InvalidTopicError,
    KafkaError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from kafka.protocol.consumer import IsolationLevel

from metering.errors import BadInput, Unavailable, WrongWorld
from metering.settings import Settings

#: A record of `record_bytes_max` and what the broker adds to it.
_RECORD_OVERHEAD_BYTES = 64 * 1024
#: Milliseconds whose instants are remembered.
_INSTANTS_REMEMBERED = 4_096


@dataclass(frozen=True)
class Topic:
    """A topic by name and UUID: made again under the same name it has another UUID."""

    name: str
    uuid: UUID
    partitions: tuple[int, ...]


@contextmanager
def kafka_errors(settings: Settings) -> Iterator[None]:
    """Translate Kafka's errors: no broker or a passing fault is Unavailable."""
    try:
        yield
    except (InvalidTopicError, UnknownTopicOrPartitionError) as error:
        raise WrongWorld(
            f"Kafka at {settings.kafka_bootstrap} has no topic '{settings.kafka_topic}' ({type(error).__name__}); "
            "run `metering init` to make it, or correct METERING_KAFKA_TOPIC"
        ) from error
    except KafkaError as error:
        raise Unavailable(
            f"cannot reach Kafka at {settings.kafka_bootstrap}: {error}; is it running, and is "
            "METERING_KAFKA_BOOTSTRAP right? (`metering sandbox up` starts one to try)"
        ) from error
    except OSError as error:
        raise Unavailable(f"cannot reach Kafka at {settings.kafka_bootstrap}: {error}") from error


class Admin:
    """A connection for questions about the topic. Use as a context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        with kafka_errors(settings):
            try:
                self._client = KafkaAdminClient(
                    bootstrap_servers=settings.kafka_bootstrap.split(","),
                    bootstrap_timeout_ms=10_000,
                    request_timeout_ms=10_000,
                )
            except ValueError as error:
                raise BadInput(
                    f"METERING_KAFKA_BOOTSTRAP '{settings.kafka_bootstrap}': {error}; give host:port"
                ) from None

    def __enter__(self) -> "Admin":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def find(self) -> Topic | None:
        """The topic of the settings, or None when there is none of that name."""
        with kafka_errors(self._settings):
            (found,) = self._client.describe_topics([self._settings.kafka_topic])
        if found["topic_id"] is None or found["error_code"] == UnknownTopicOrPartitionError.errno:
            return None
        partitions = tuple(sorted(partition["partition_index"] for partition in found["partitions"]))
        return Topic(found["name"], UUID(str(found["topic_id"])), partitions)

    def get(self) -> Topic:
        """The topic of the settings; WrongWorld when it does not exist."""
        topic = self.find()
        if topic is None or not topic.partitions:
            raise WrongWorld(
                f"Kafka at {self._settings.kafka_bootstrap} has no topic '{self._settings.kafka_topic}'; "
                "run `metering init` to make it, or correct METERING_KAFKA_TOPIC"
            )
        return topic

    def ensure(self) -> tuple[Topic, bool]:
        """The topic of the settings, made if absent. Safe to run again and by two at once."""
        found = self.find()
        if found is not None and found.partitions:
            return found, False
        new = NewTopic(
            self._settings.kafka_topic,
            self._settings.kafka_partitions,
            self._settings.kafka_replication_factor,
            topic_configs={
                # the broker's clock, so that a producer's cannot move `complete_until`
                "message.timestamp.type": "LogAppendTime",
                "compression.type": "lz4",
                "max.message.bytes": str(self._settings.record_bytes_max + _RECORD_OVERHEAD_BYTES),
            },
        )
        with kafka_errors(self._settings):
            try:
                self._client.create_topics([new])
            except TopicAlreadyExistsError:
                pass
            except BrokerResponseError as error:
                raise WrongWorld(
                    f"Kafka refuses to make topic '{self._settings.kafka_topic}': {error}; "
                    "make it by hand with message.timestamp.type=LogAppendTime, then run `metering init` again"
                ) from error
            self._client.wait_for_topics([self._settings.kafka_topic])
        return self.get(), True

    def check_positions(self, topic: Topic, positions: Mapping[int, int]) -> None:
        """Raise WrongWorld where a position (by partition) lies outside of the log, naming the offsets of both."""
        first, end = self.offsets(topic, earliest=True), self.offsets(topic, undecided=True)
        for partition, position in sorted(positions.items()):
            wrong = outside_log(topic.name, partition, position, first[partition], end[partition])
            if wrong is not None:
                raise WrongWorld(wrong)

    def offsets(self, topic: Topic, *, earliest: bool = False, undecided: bool = False) -> dict[int, int]:
        """Per partition: the offset after the last committed record, or the first offset still kept.

        With `undecided` the records of open transactions count: they were appended, whatever becomes of them.
        """
        spec = OffsetSpec.EARLIEST if earliest else OffsetSpec.LATEST
        asked = {TopicPartition(topic.name, partition): spec for partition in topic.partitions}
        with kafka_errors(self._settings):
            level = IsolationLevel.READ_UNCOMMITTED if undecided else IsolationLevel.READ_COMMITTED
            answer = self._client.list_partition_offsets(asked, isolation_level=level)
        return {at.partition: found.offset for at, found in answer.items()}


def outside_log(topic: str, partition: int, position: int, first: int, end: int) -> str | None:
    """What is wrong with a position that the log of a partition, offsets [first, end), does not reach; None: nothing."""
    if first <= position <= end:
        return None
    why = (
        f"lies before the first offset that the log still holds, {first}: records were removed before they were read"
        if position < first
        else f"lies beyond the end of the log, {end}: the log was truncated or restored, or the database is another one"
    )
    return (
        f"partition {partition} of topic '{topic}': our position {position} {why}. Nothing was skipped; a person has to "
        f"decide. To go on with what the log holds: `metering stream gap {partition} --reason ...`"
    )


@lru_cache(maxsize=_INSTANTS_REMEMBERED)
def instant_of(timestamp_ms: int) -> datetime:
    """A record's timestamp as an instant. Neighbours mostly share it: a batch of the log has one."""
    return datetime.fromtimestamp(timestamp_ms / 1000, tz=UTC)
