"""The stream that ingest is measured with: synthetic usage events, put on the topic beforehand."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from kafka import KafkaProducer

from metering.events.identity import uuid7_texts
from metering.settings import Settings

#: The stream's own clock: so many events end in each of its seconds.
EVENTS_PER_SECOND: Final = 10_000
#: A resend follows its original by at most so many events.
RESENT_AFTER_EVENTS_MAX: Final = 200_000
CUSTOMERS: Final = 400
_PROFILES: Final = 1_000
_CHUNK: Final = 20_000
_PRODUCTS: Final = (("lumen-large", "block-a"), ("lumen-small", "block-a"), ("lumen-mini", None))


@dataclass(frozen=True)
class Stream:
    """`events` distinct events, the last at `until`, and a share of them once more; deterministic.

    Ids are UUIDv7s that carry the time at which the request began or, with `random_ids`, UUIDv4s.
    """

    events: int
    events_per_record: int
    resent_ratio: float
    until: datetime
    seed: int = 7
    random_ids: bool = False

    @property
    def resent(self) -> int:
        """How many events come twice."""
        return round(self.events * self.resent_ratio)

    def records(self) -> Iterator[bytes]:
        """The values of the records, in order: a JSON array each, or a lone event."""
        waiting: list[bytes] = []
        for text in self._with_resends():
            waiting.append(text)
            if len(waiting) == self.events_per_record:
                yield self._record(waiting)
                waiting = []
        if waiting:
            yield self._record(waiting)

    def _record(self, texts: list[bytes]) -> bytes:
        return texts[0] if self.events_per_record == 1 else b"[" + b",".join(texts) + b"]"

    def _with_resends(self) -> Iterator[bytes]:
        chosen = random.Random(self.seed)
        # place in the stream -> texts that come again there; an original is at hand when its resend is due
        again = set(chosen.sample(range(self.events), self.resent))
        due: dict[int, list[bytes]] = {}
        for place, text in enumerate(self._texts()):
            yield text
            yield from due.pop(place, ())
            if place in again:
                last = min(place + RESENT_AFTER_EVENTS_MAX, self.events - 1)
                due.setdefault(chosen.randint(min(place + 1, last), last), []).append(text)
        for texts in due.values():
            yield from texts

    def _texts(self) -> Iterator[bytes]:
        generator = np.random.default_rng(self.seed)
        profiles = _profiles(generator)
        weights = 1.0 / np.arange(1, _PROFILES + 1)
        weights /= weights.sum()
        until_ms = int(self.until.timestamp() * 1000)
        for start in range(0, self.events, _CHUNK):
            size = min(_CHUNK, self.events - start)
            places = np.arange(start, start + size)
            ended = until_ms - (self.events - places) * 1000 // EVENTS_PER_SECOND
            sent = generator.integers(200, 6_000, size)
            read = (sent * generator.random(size) * 0.8).astype(np.int64)
            answered = generator.integers(10, 1_500, size)
            reasoned = (answered * generator.random(size) * 0.4).astype(np.int64)
            took = 150 + answered * 3
            tails = np.frombuffer(generator.bytes(10 * size), np.uint8).reshape(size, 10)
            began = (ended - took).astype(np.int64)
            columns = (
                _uuid4_texts(began, tails) if self.random_ids else uuid7_texts(began, tails),
                generator.choice(_PROFILES, size, p=weights).tolist(),
                np.datetime_as_string((ended * 1000 + 7).astype("datetime64[us]"), unit="us").tolist(),
                range(start, start + size),
                zip(*(column.tolist() for column in (sent, read, answered, reasoned, took)), strict=True),
            )
            for id_, profile, time, number, (a, b, c, d, e) in zip(*columns, strict=True):
                head, body = profiles[profile]
                yield (
                    f'{{"specversion":"1.0","id":"{id_}","type":"inference.usage.v1",{head},"time":"{time}Z",'
                    f'"data":{{"request_id":"req-{number}","attempt":1,{body},"usage":{{"input_tokens":{a},'
                    f'"cache_read_tokens":{b},"output_tokens":{c},"reasoning_tokens":{d}}},"duration_ms":{e},'
                    f'"accelerator_ms":{e // 4}}}}}'
                ).encode()


def _uuid4_texts(millis: npt.NDArray[np.int64], tails: npt.NDArray[np.uint8]) -> list[str]:
    """UUIDv4 texts of the same bits as the UUIDv7s, their time at the end."""
    blob = np.hstack([tails, millis.astype(">i8").view(np.uint8).reshape(-1, 8)[:, 2:]]).tobytes().hex()
    texts = (blob[at : at + 32] for at in range(0, len(blob), 32))
    return [f"{t[:8]}-{t[8:12]}-4{t[13:16]}-a{t[17:20]}-{t[20:]}" for t in texts]


def _profiles(generator: np.random.Generator) -> list[tuple[str, str]]:
    """The parts of an event that are its series, source, project and seat: a gateway's usual combinations."""
    profiles = []
    for _ in range(_PROFILES):
        customer = int(generator.integers(CUSTOMERS))
        product, pool = _PRODUCTS[int(generator.integers(len(_PRODUCTS)))]
        spilled = pool is not None and generator.random() < 0.1
        ran_on = "on_demand" if pool is None else "overflow" if spilled else "pool"
        capacity = "null" if pool is None else f'"{pool}"'
        region = ("us-east", "eu-west")[int(generator.integers(2))]
        head = f'"source":"gateway-{customer % 3}","subject":"customer-{customer:04d}"'
        body = (
            f'"provider":"own","product":"{product}","tier_sold":"standard","model_served":"{product}",'
            f'"tier_served":"standard","region":"{region}","capacity_pool":{capacity},"ran_on":"{ran_on}",'
            f'"billable":true,"project":"project-{int(generator.integers(50))}",'
            f'"seat":"seat-{int(generator.integers(200))}","usage_convention":"inclusive",'
            f'"usage_source":"provider"'
        )
        profiles.append((head, body))
    return profiles


def produce(settings: Settings, stream: Stream) -> int:
    """Put the stream on the topic, records dealt round the partitions; returns the bytes of their values."""
    producer: Any = KafkaProducer(
        bootstrap_servers=settings.kafka_bootstrap.split(","),
        enable_idempotence=True,
        compression_type="lz4",
        linger_ms=20,
        batch_size=256 * 1024,
        max_request_size=2 * settings.record_bytes_max,
    )
    size = 0
    for number, value in enumerate(stream.records()):
        producer.send(settings.kafka_topic, value, partition=number % settings.kafka_partitions)
        size += len(value)
    producer.flush()
    producer.close()
    return size
