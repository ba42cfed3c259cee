"""Order of input, batch boundaries, partitions and the number of workers change no total."""

import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic
from pydantic import SecretStr

from metering.settings import Settings
from tests.event_maker import event
from tests.test_settle import differences
from workers import fold, ingest, provision, settle

AT = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
EVENTS = 240


def events() -> list[dict[str, Any]]:
    """Usage of every kind, a fifth of it sent twice, and voids of some, before and after what they name."""
    made = []
    for number in range(EVENTS):
        at = AT + timedelta(minutes=number % 100)
        one = event(number, at, source=f"gateway-{number % 3}", subject=f"customer-{number % 7}")
        one["data"]["usage"]["output_tokens"] = number
        if number % 4 == 0:
            one["data"] |= {"capacity_pool": "north", "ran_on": "pool" if number % 8 else "overflow"}
        if number % 6 == 0:
            one["data"] |= {"billable": False, "nonbillable_reason": "retry"}
        if number % 11 == 0:
            one["id"] = f"order-{number}"
        made += [one] * (2 if number % 5 == 0 else 1)
        if number % 9 == 0:
            data = {"source": one["source"], "id": one["id"], "side": "both" if number % 2 else "charge"}
            taken_back = event(f"void {number}", at, source="desk", type="inference.void.v1", data=data)
            made.append(taken_back)
    return made


def send(settings: Settings, sent: list[dict[str, Any]], chance: random.Random, partitions: int) -> None:
    """Shuffled, in records of any size, to any partition."""
    chance.shuffle(sent)
    producer = KafkaProducer(bootstrap_servers=settings.kafka_bootstrap, enable_idempotence=True)
    while sent:
        size = chance.choice((1, 2, 10, 40))
        record, sent = sent[:size], sent[size:]
        value = "\n".join(map(json.dumps, record)).encode()
        producer.send(settings.kafka_topic, value, partition=chance.randrange(partitions))
    producer.flush()
    producer.close()


def outcome(connection: psycopg.Connection[Any]) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that is to be the same: what the ledger holds, the rollups, how many ended in which way."""
    series = "customer, product, pool, ran_on, counts_for, context_breakpoint"
    questions = {
        "ledger": f"SELECT event_key, source, sign(u.source_id), event_type, event_id, occurred_at, {series}, "
        "requests.key, attempt, uncached_input_tokens, output_tokens, digest FROM usage_events u "
        "LEFT JOIN series USING (series_id) JOIN sources s ON s.source_id = abs(u.source_id), "
        "LATERAL (SELECT request_key AS key) requests",
        "quarters": f"SELECT quarter_start, {series}, sum(requests), sum(uncached_input_tokens), sum(output_tokens) "
        f"FROM usage_quarters JOIN series USING (series_id) GROUP BY quarter_start, {series}",
        "minutes": "SELECT minute, pool, ran_on, model_served, sum(requests), sum(output_tokens) FROM pool_minutes "
        "GROUP BY minute, pool, ran_on, model_served",
        "customers": "SELECT minute, customer, pool, sum(requests), sum(output_tokens) FROM pool_customer_minutes "
        "JOIN series USING (series_id) GROUP BY minute, customer, pool",
        "holders": "SELECT minute, customer, product, p.project, s.seat, sum(requests), sum(output_tokens) "
        "FROM limit_minutes JOIN series USING (series_id) LEFT JOIN projects p USING (project_id) "
        "LEFT JOIN seats s USING (seat_id) GROUP BY minute, customer, product, p.project, s.seat",
        "ends": "SELECT kind, sum(received), sum(accepted), sum(duplicate), sum(conflict), sum(rejected) "
        "FROM ingest_batches JOIN stream_positions USING (intake_id) GROUP BY kind",
        "sources": "SELECT source, sum(accepted), sum(duplicate) FROM batch_sources JOIN sources USING (source_id) "
        "GROUP BY source",
        "settled": "SELECT void_key, outcome FROM settlements",
    }
    return {
        name: sorted(connection.execute(question).fetchall(), key=str) for name, question in questions.items()
    }


def taken_in(
    settings: Settings, workers: int, seed: int, partitions: int
) -> dict[str, list[tuple[Any, ...]]]:
    """The events through workers that take turns, each step a batch, then settled and folded."""
    list(provision.provision(settings))
    send(settings, events(), random.Random(seed), partitions)
    chance = random.Random(seed)
    crew = [ingest.opened(settings) for _ in range(workers)]
    entered = [one.__enter__() for one in crew]
    try:
        while not entered[0].idle():
            chance.choice(entered).step()
    finally:
        for one in crew:
            one.__exit__(None, None, None)
    settle.run(until_idle=True, settings=settings)
    fold.run(until_idle=True, settings=settings)
    assert differences(settings) == []
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        return outcome(connection)


def test_order_batches_partitions_and_workers_change_no_total(
    settings: Settings, empty_database_url: str, kafka_admin: KafkaAdminClient
) -> None:
    """Without contents in conflict even every row is the same, but for its place in a batch."""
    one = f"{settings.kafka_topic}-one"
    configuration = {"message.timestamp.type": "LogAppendTime"}
    kafka_admin.create_topics([NewTopic(one, 1, 1, topic_configs=configuration)])
    alone = settings.model_copy(
        update={
            "kafka_topic": one,
            "consumer_group": f"group-{one}",
            "database_url": SecretStr(empty_database_url),
            "batch_bytes_target": 4_000,
        }
    )
    first = taken_in(alone, workers=1, seed=1, partitions=1)
    second = taken_in(settings, workers=2, seed=2, partitions=4)
    assert first["settled"]
    assert {name for name in first if first[name] != second[name]} == set()
    assert len(first["ledger"]) == len({str(row) for row in first["ledger"]}) > EVENTS
