"""Writing the topic: an idempotent producer that knows of every event whether the broker has it."""

from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from kafka import KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError

from metering.errors import BadInput
from metering.settings import Settings
from metering.stream.topics import Admin, kafka_errors

CONTENT_TYPE: Final = "content-type"
#: Bytes handed over and not yet acknowledged, at most; beyond it `send` waits.
UNACKNOWLEDGED_BYTES_MAX: Final = 32 * 1024 * 1024
#: Longest time until a record is acknowledged or given up.
DELIVERY_TIMEOUT_MS: Final = 15_000
_REQUEST_TIMEOUT_MS: Final = 10_000
_LINGER_MS: Final = 20
_BATCH_BYTES: Final = 1024 * 1024
#: Room for the headers and framing around a record's value.
_RECORD_OVERHEAD_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Receipt:
    """What became of the events handed over: acknowledged by the broker, or not, and the first reason why."""

    acknowledged: int
    failed: int
    first_error: str | None


class Producer:
    """Appends records to the topic of the settings. Use as a context manager, then read `receipt`.

    Without a key: nothing depends on order or affinity. Idempotent, so that a retry of the client never
    writes a record twice. Raises WrongWorld where the topic does not exist, Unavailable without a broker.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.kafka_topic
        self._pending: deque[tuple[Any, int, int]] = deque()  # (future, events, bytes), oldest first
        self._pending_bytes = 0
        self._acknowledged = 0
        self._failed = 0
        self._first_error: str | None = None
        with Admin(settings) as admin:
            admin.get()
        with kafka_errors(settings):
            self._producer = KafkaProducer(
                bootstrap_servers=settings.kafka_bootstrap.split(","),
                enable_idempotence=True,
                compression_type="lz4",
                linger_ms=_LINGER_MS,
                batch_size=_BATCH_BYTES,
                max_request_size=settings.record_bytes_max + _RECORD_OVERHEAD_BYTES,
                max_block_ms=DELIVERY_TIMEOUT_MS,
                request_timeout_ms=_REQUEST_TIMEOUT_MS,
                delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
                bootstrap_timeout_ms=_REQUEST_TIMEOUT_MS,
                allow_auto_create_topics=False,
            )

    def __enter__(self) -> "Producer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._producer.close(timeout=DELIVERY_TIMEOUT_MS / 1000 if kind is None else 0)

    def send(self, value: bytes, content_type: str | None, *, events: int) -> None:
        """Hand over one record that carries `events` events. Waits where too much is unacknowledged."""
        headers = [] if content_type is None else [(CONTENT_TYPE, content_type.encode())]
        with kafka_errors(self._settings):
            try:
                future = self._producer.send(self._topic, value=value, headers=headers)
            except MessageSizeTooLargeError:
                raise BadInput(
                    f"a record of {len(value)} bytes is larger than METERING_RECORD_BYTES_MAX "
                    f"({self._settings.record_bytes_max}); send fewer events per record"
                ) from None
        self._pending.append((future, events, len(value)))
        self._pending_bytes += len(value)
        while self._pending and (
            self._pending_bytes > UNACKNOWLEDGED_BYTES_MAX or self._pending[0][0].is_done
        ):
            self._settle_oldest()

    def flush(self) -> Receipt:
        """Wait until every record handed over is acknowledged or given up."""
        while self._pending:
            self._settle_oldest()
        return self.receipt

    @property
    def receipt(self) -> Receipt:
        """What is known so far."""
        return Receipt(self._acknowledged, self._failed, self._first_error)

    def _settle_oldest(self) -> None:
        future, events, size = self._pending.popleft()
        self._pending_bytes -= size
        try:
            # the client itself gives a record up earlier than this
            future.get(timeout=2 * DELIVERY_TIMEOUT_MS / 1000)
        except KafkaError as error:
            self._failed += events
            self._first_error = self._first_error or f"{type(error).__name__}: {error}"
        else:
            self._acknowledged += events
