"""A generator of events with plain dictionaries of what must come of them, and the comparison with the ledger."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from kafka import KafkaProducer

from metering.events.identity import uuid7_text
from metering.settings import Settings
from metering.store import postgres
from metering.store.verify import verify
from tests.event_maker import instant_text

#: What one accepted event must be in the ledger: occurred_at, customer, pool, uncached, cache read, output, reasoning.
Content = tuple[datetime, str, str | None, int, int, int, int]

SUMMED = ("requests", "uncached_input_tokens", "cache_read_tokens", "output_tokens", "reasoning_tokens")
POISON = (
    b"{",
    b"\x00\x01\xff\xfe",
    b'{"id": "\\ud800", "specversion": "1.0"}',
    b'[{"id": "a", "data": NaN}]',
    b"[" * 20_000,
    b'{"id": "a", "id": "b", "time": 1e999999}',
)


class Traffic:
    """Records for the partitions of a topic. Repeats of an event follow it in the same partition, so that the
    first content is the one that stands.
    """

    def __init__(self, seed: int, partitions: int = 4, sources: int = 3) -> None:
        self._random = random.Random(seed)
        self._partitions = partitions
        self._sources = sources
        self._number = 0
        self._sent: list[list[tuple[dict[str, Any], str]]] = [[] for _ in range(partitions)]
        self.accepted: dict[tuple[str, str], Content] = {}
        self.voided: dict[tuple[str, str], str] = {}
        self.voids = 0
        self._voidable: list[tuple[str, str]] = []
        self.outcomes: Counter[str] = Counter()

    def records(self, count: int, *, events: int = 50) -> Iterator[tuple[int, bytes]]:
        """`count` records of about `events` each, with the partition of each; noted as if they had been sent."""
        for _ in range(count):
            partition = self._random.randrange(self._partitions)
            if self._random.random() < 0.03:
                self.outcomes["rejected"] += 1
                yield partition, self._random.choice(POISON)
                continue
            made = [self._one(partition) for _ in range(self._random.randint(1, 2 * events))]
            yield partition, json.dumps(made).encode()

    def _one(self, partition: int) -> dict[str, Any]:
        draw = self._random.random()
        earlier = self._sent[partition]
        if draw < 0.05 and earlier:
            self.outcomes["duplicate"] += 1
            return self._random.choice(earlier)[0]
        if draw < 0.08 and earlier:
            self.outcomes["conflict"] += 1
            first = self._random.choice(earlier)[0]
            counts = {**first["data"]["usage"], "output_tokens": first["data"]["usage"]["output_tokens"] + 1}
            return {**first, "data": {**first["data"], "usage": counts}}
        if draw < 0.10:
            self.outcomes["rejected"] += 1
            return self._bad()
        if draw < 0.12 and self._voidable:
            self.outcomes["accepted"] += 1
            return self._void()
        made, content = self._good()
        self.outcomes["accepted"] += 1
        self._voidable.append((made["source"], made["id"]))
        self.accepted[(made["source"], made["id"])] = content
        if len(earlier) < 2_000 or self._random.random() < 0.1:
            earlier.append((made, made["id"]))
        return made

    def _void(self) -> dict[str, Any]:
        """A void of an event of any partition, that may be read after it; sometimes a second one of the same."""
        draw = self._random
        if self.voided and draw.random() < 0.1:
            target = draw.choice(list(self.voided))
        else:
            target = self._voidable.pop(draw.randrange(len(self._voidable)))
            self.voided[target] = draw.choice(("charge", "both"))
        self.voids += 1
        at = datetime.now(UTC) - timedelta(seconds=draw.uniform(1, 60))
        return {
            "specversion": "1.0",
            "id": uuid7_text(at, draw.randbytes(10)),
            "source": "billing-desk",
            "type": "inference.void.v1",
            "time": instant_text(at),
            "data": {"source": target[0], "id": target[1], "side": self.voided[target], "reason": "a test"},
        }

    def _good(self) -> tuple[dict[str, Any], Content]:
        """An event of some minute of the last days, mostly of the last hour."""
        draw = self._random
        self._number += 1
        seconds = draw.uniform(60, 3_600) if draw.random() < 0.9 else draw.uniform(3_600, 20 * 86_400)
        at = datetime.now(UTC) - timedelta(seconds=seconds)
        at = at.replace(microsecond=at.microsecond // 1000 * 1000)
        name = (
            uuid7_text(at, draw.randbytes(10)) if draw.random() < 0.9 else f"plain-{draw.getrandbits(64):x}"
        )
        cached, fresh = draw.choice((0, 0, draw.randrange(5_000))), draw.randrange(1, 5_000)
        visible, reasoning = draw.randrange(1, 2_000), draw.choice((0, draw.randrange(3_000)))
        customer = f"customer-{draw.randrange(20)}"
        pool = draw.choice((None, "north", "south"))
        data: dict[str, Any] = {
            "request_id": f"request-{self._number}",
            "provider": "own",
            "model_served": draw.choice(("lumen", "lumen-mini")),
            "tier_served": "standard",
            "usage_convention": "inclusive",
            "usage": {
                "input_tokens": fresh + cached,
                "cache_read_tokens": cached,
                "output_tokens": visible + reasoning,
                "reasoning_tokens": reasoning,
            },
        }
        if pool is not None:
            data |= {"capacity_pool": pool, "ran_on": "pool"}
        made = {
            "specversion": "1.0",
            "id": name,
            "source": f"gateway-{draw.randrange(self._sources)}",
            "type": "inference.usage.v1",
            "subject": customer,
            "time": instant_text(at),
            "data": data,
        }
        return made, (at, customer, pool, fresh, cached, visible, reasoning)

    def _bad(self) -> dict[str, Any]:
        made, _ = self._good()
        wrong = self._random.choice(("time", "future", "overflow", "contradiction", "id"))
        if wrong == "time":
            del made["time"]
        elif wrong == "future":
            made["time"] = instant_text(datetime.now(UTC) + timedelta(days=300))
        elif wrong == "overflow":
            made["data"]["usage"]["input_tokens"] = 2**62
        elif wrong == "contradiction":
            made["data"]["usage"]["cache_read_tokens"] = made["data"]["usage"]["input_tokens"] + 1
        else:
            made["id"] = "x" * 300
        return made

    def sums(
        self, minutes: int, *, pools: bool, customers: bool
    ) -> dict[tuple[datetime, str], tuple[int, ...]]:
        """Sums of what counts per span of `minutes` and pool (events without one left out), customer, or both.

        A void of side `charge` leaves the burn of its event where it is, one of side `both` does not.
        """
        summed: dict[tuple[datetime, str], tuple[int, ...]] = {}
        for identity, (at, customer, pool, *counts) in self.accepted.items():
            voided = self.voided.get(identity)
            if voided == "both" or (pools and pool is None) or (not pools and voided == "charge"):
                continue
            start = at.replace(minute=at.minute // minutes * minutes, second=0, microsecond=0)
            who = ([pool or ""] if pools else []) + ([customer] if customers else [])
            key = (start, " ".join(who))
            before = summed.get(key, (0,) * len(SUMMED))
            summed[key] = tuple(a + b for a, b in zip(before, (1, *counts), strict=True))
        return summed


def send(settings: Settings, records: Iterable[tuple[int, bytes]], pause_seconds: float = 0.0) -> None:
    """Send records to their partitions in order, each once; raises when the broker does not take one for minutes."""
    import time

    producer = KafkaProducer(
        bootstrap_servers=settings.kafka_bootstrap,
        enable_idempotence=True,
        delivery_timeout_ms=300_000,
        max_block_ms=300_000,
        compression_type="lz4",
    )
    try:
        sent = []
        for partition, value in records:
            sent.append(producer.send(settings.kafka_topic, value, partition=partition))
            if pause_seconds:
                time.sleep(pause_seconds)
        producer.flush()
        for future in sent:
            future.get(timeout=300)
    finally:
        producer.close()


def differences(
    settings: Settings, database: psycopg.Connection[Any], traffic: Traffic, *, folded: bool = True
) -> list[str]:
    """What is not as the dictionaries say: ids, contents, outcomes; with `folded` sums of the rollups, the chain."""
    found = []
    kept: dict[tuple[str, str], Content] = {}
    rows = 0
    for source, name, *content in database.execute(
        "SELECT s.source, CASE u.event_id WHEN '' THEN u.event_key::text ELSE u.event_id END, u.occurred_at, "
        "e.customer, e.pool, u.uncached_input_tokens, u.cache_read_tokens, u.output_tokens, u.reasoning_tokens "
        "FROM usage_events u JOIN sources s USING (source_id) JOIN series e USING (series_id) "
        "WHERE u.event_type = 1"
    ):
        rows += 1
        kept[(source, name)] = tuple(content)
    if rows != len(kept):
        found.append(f"{rows - len(kept)} ids stand twice in the ledger")
    lost, made = traffic.accepted.keys() - kept.keys(), kept.keys() - traffic.accepted.keys()
    if lost or made:
        found.append(f"{len(lost)} events are lost ({sorted(lost)[:3]}), {len(made)} were never sent")
    other = [key for key in kept.keys() & traffic.accepted.keys() if kept[key] != traffic.accepted[key]]
    if other:
        found.append(
            f"{len(other)} events have another content: {kept[other[0]]}, not {traffic.accepted[other[0]]}"
        )
    names = ("accepted", "duplicate", "conflict", "rejected")
    counted = database.execute(
        f"SELECT {', '.join(f'coalesce(sum({name}), 0)::int' for name in names)}, coalesce(sum(received), 0)::int, "
        "(SELECT count(*) FROM conflicts), (SELECT count(*) FROM rejects) "
        "FROM ingest_batches JOIN stream_positions USING (intake_id) WHERE kind = 'kafka'"
    ).fetchone()
    wanted = [traffic.outcomes[name] for name in names]
    wanted += [sum(wanted), traffic.outcomes["conflict"], traffic.outcomes["rejected"]]
    if list(counted or ()) != wanted:
        found.append(f"outcomes {counted}, not {wanted} (of {names}, received, conflicts, rejects)")
    if folded:
        found += _void_differences(database, traffic)
        found += _rollup_differences(database, traffic)
        with postgres.reading(settings) as connection:
            found += [f"{c.name}: {c.difference}" for c in verify(connection, roots=True) if c.difference]
    return found


def _void_differences(database: psycopg.Connection[Any], traffic: Traffic) -> list[str]:
    """Every void is there once and settled once; every event that is voided is taken back once, and no other."""
    found = []
    row = database.execute(
        "SELECT (SELECT count(*) FROM voids), (SELECT count(*) FROM settlements WHERE outcome = 'compensated'), "
        "(SELECT count(*) FROM settlements WHERE outcome = 'second_void'), (SELECT count(*) FROM settlements)"
    ).fetchone()
    first = len(traffic.voided)
    wanted = (traffic.voids, first, traffic.voids - first, traffic.voids)
    if row != wanted:
        found.append(f"voids, compensated, second voids, settled are {row}, not {wanted}")
    taken_back = database.execute(
        "SELECT s.source, CASE u.event_id WHEN '' THEN u.event_key::text ELSE u.event_id END "
        "FROM usage_events u JOIN usage_events c ON c.event_key = u.event_key AND c.source_id = -u.source_id "
        "JOIN sources s ON s.source_id = u.source_id WHERE u.source_id > 0"
    ).fetchall()
    if sorted(taken_back) != sorted(traffic.voided):
        found.append(f"{len(taken_back)} events are taken back, not {first}")
    return found


def _rollup_differences(database: psycopg.Connection[Any], traffic: Traffic) -> list[str]:
    totals = ", ".join(f"sum({name})::bigint" for name in SUMMED)
    quarters = f"SELECT quarter_start, customer, {totals} FROM usage_quarters JOIN series USING (series_id) GROUP BY 1, 2"
    minutes = f"SELECT minute, pool, {totals} FROM pool_minutes GROUP BY 1, 2"
    customers = (
        f"SELECT minute, pool || ' ' || customer, {totals} FROM pool_customer_minutes JOIN series USING (series_id) "
        "GROUP BY 1, 2"
    )
    holders = (
        f"SELECT minute, customer, {totals} FROM limit_minutes JOIN series USING (series_id) GROUP BY 1, 2"
    )
    found = []
    for name, query, wanted in (
        ("usage_quarters", quarters, traffic.sums(15, pools=False, customers=True)),
        ("pool_minutes", minutes, traffic.sums(1, pools=True, customers=False)),
        ("pool_customer_minutes", customers, traffic.sums(1, pools=True, customers=True)),
        ("limit_minutes", holders, traffic.sums(1, pools=False, customers=True)),
    ):
        kept = {(start, who): tuple(sums) for start, who, *sums in database.execute(query) if any(sums)}
        for key in sorted(kept.keys() | wanted.keys()):
            if kept.get(key) != wanted.get(key):
                found.append(f"{name} at {key}: {kept.get(key)}, not {wanted.get(key)}")
                break
    return found
