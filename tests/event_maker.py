"""Events for tests, as a producer would write them."""

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from kafka import KafkaProducer

from metering.events.identity import uuid7_text
from metering.settings import Settings


def instant_text(at: datetime) -> str:
    """RFC 3339 in UTC."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def event_id(name: object, at: datetime) -> str:
    """A UUIDv7 that carries the instant and is the same for the same name."""
    return uuid7_text(at, hashlib.blake2b(str(name).encode(), digest_size=10).digest())


def event(name: object, at: datetime, **changes: Any) -> dict[str, Any]:
    """A usage event; `changes` go to its top level, `data__x` to its data, `usage__x` to its counts."""
    made: dict[str, Any] = {
        "specversion": "1.0",
        "id": event_id(name, at),
        "source": "gateway-1",
        "type": "inference.usage.v1",
        "subject": "acme",
        "time": instant_text(at),
        "data": {
            "request_id": f"request-{name}",
            "provider": "own",
            "model_served": "lumen",
            "tier_served": "standard",
            "usage_convention": "inclusive",
            "usage": {"input_tokens": 100, "output_tokens": 10},
        },
    }
    for change, value in changes.items():
        where, _, key = change.rpartition("__")
        target = {"": made, "data": made["data"], "usage": made["data"]["usage"]}[where]
        target[key] = value
    return made


def produce(
    settings: Settings, values: Iterable[bytes | list[dict[str, Any]]], partition: int | None = None
) -> None:
    """Send records: bytes as they are, lists of events as a JSON array."""
    producer = KafkaProducer(bootstrap_servers=settings.kafka_bootstrap, enable_idempotence=True)
    for value in values:
        encoded = value if isinstance(value, bytes) else json.dumps(value).encode()
        producer.send(settings.kafka_topic, encoded, partition=partition)
    producer.flush()
    producer.close()
