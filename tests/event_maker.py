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
    return _changed(made, changes)


def void(name: object, at: datetime, target: tuple[str, str], **changes: Any) -> dict[str, Any]:
    """A void of the event `target`, a pair of source and id."""
    data = {"source": target[0], "id": target[1]}
    return _changed(_notice("void", event_id(name, at), "desk", at, data), changes)


def refusal(name: object, at: datetime, **changes: Any) -> dict[str, Any]:
    """A refusal for a full pool."""
    data = {"request_id": f"request-{name}", "reason": "pool_full", "model": "lumen", "tier_sold": "standard"}
    made = _notice("refused", event_id(name, at), "gateway-1", at, {**data, "capacity_pool": "north"})
    return _changed({**made, "subject": "acme"}, changes)


def heartbeat(sequence: int, at: datetime, source: str = "gateway-1", **changes: Any) -> dict[str, Any]:
    """A heartbeat made at an instant and complete until then."""
    data = {"sequence": sequence, "complete_until": instant_text(at)}
    name = f"heartbeat {source} {sequence}"
    return _changed(_notice("heartbeat", event_id(name, at), source, at, data), changes)


def _notice(kind: str, name: str, source: str, at: datetime, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": name,
        "source": source,
        "type": f"inference.{kind}.v1",
        "time": instant_text(at),
        "data": data,
    }


def _changed(made: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for change, value in changes.items():
        *outer, key = change.split("__")
        target = made
        for name in outer:
            target = made["data"]["usage"] if name == "usage" else target[name]
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
