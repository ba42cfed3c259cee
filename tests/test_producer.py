"""Sending to a real Kafka: records, acknowledgements, bad lines, a missing topic, no broker; the trace."""

import gc
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaConsumer, TopicPartition

from metering.errors import BadInput, Unavailable, WrongWorld
from metering.events import DecodeLimits, RecordBytes, decode
from metering.settings import Settings, read_settings
from metering.stream.producer import Producer
from workers.azure_trace import customer_of, import_trace, trace_events
from workers.send import filled, in_records, send

TRACE = Path(__file__).resolve().parents[2] / "shared/data/azure_llm_2023/AzureLLMInferenceTrace_conv.csv"
LIMITS = DecodeLimits(4 * 1024 * 1024, 10_000, 300, 86_400, datetime(2023, 11, 1, tzinfo=UTC))
LINES = "application/x-ndjson"


@pytest.fixture(name="kafka_settings")
def kafka_settings_fixture(servers: Any, topic: str, kafka_admin: Any) -> Settings:
    """Settings that lead to this test's topic, once every broker knows of it; no database."""
    kafka_admin.wait_for_topics([topic])
    return read_settings(kafka_bootstrap=servers.kafka_bootstrap, kafka_topic=topic)


@pytest.fixture(name="arrived")
def arrived_fixture(kafka_settings: Settings) -> Iterator[Callable[[], list[Any]]]:
    """All records on the topic."""
    consumer = KafkaConsumer(
        bootstrap_servers=kafka_settings.kafka_bootstrap,
        enable_auto_commit=False,
        isolation_level="read_committed",
    )

    def read() -> list[Any]:
        partitions = [TopicPartition(kafka_settings.kafka_topic, number) for number in range(4)]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        consumer.seek_to_beginning(*partitions)
        records: list[Any] = []
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for found in consumer.poll(timeout_ms=1_000).values():
                records.extend(found)
        return records

    yield read
    consumer.close()


def event_lines(count: int) -> list[bytes]:
    return [
        json.dumps({"id": f"event-{number}", "note": "x" * (number % 7)}).encode() for number in range(count)
    ]


def values(records: list[Any]) -> list[bytes]:
    return sorted(line for record in records for line in record.value.split(b"\n"))


def test_a_file_becomes_records_of_many_events(
    kafka_settings: Settings, arrived: Callable[[], list[Any]], tmp_path: Path
) -> None:
    lines = event_lines(250)
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"\n".join(lines[:100]) + b"\r\n\n  \n" + b"\n".join(lines[100:]))
    seen: list[int] = []
    assert send(kafka_settings, str(file), progress=seen.append) == 250
    records = arrived()
    assert sorted(len(record.value.split(b"\n")) for record in records) == [50, 100, 100]
    assert values(records) == sorted(lines)
    assert {record.key for record in records} == {None}
    assert {tuple(record.headers) for record in records} == {(("content-type", LINES.encode()),)}
    assert seen == [100, 200, 250]


def test_a_bad_line_of_a_file_stops_it_before_anything_is_sent(
    kafka_settings: Settings, arrived: Callable[[], list[Any]], tmp_path: Path
) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"\n".join([*event_lines(150), b"", b"[1]", *event_lines(1)]))
    with pytest.raises(BadInput, match=r"events.ndjson: line 152 is not a JSON object"):
        send(kafka_settings, str(file))
    assert arrived() == []
    assert send(kafka_settings, str(file), raw=True) == 152
    assert b"[1]" in values(arrived())


def test_a_line_larger_than_a_record_is_named(
    kafka_settings: Settings, arrived: Callable[[], list[Any]], tmp_path: Path
) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(b'{"id": 1}\n{"id": "' + b"x" * kafka_settings.record_bytes_max + b'"}')
    with pytest.raises(
        BadInput, match=r"events.ndjson: line 2 has 4,194,314 bytes.*METERING_RECORD_BYTES_MAX"
    ):
        send(kafka_settings, str(file))
    assert arrived() == []


def test_standard_input_is_sent_up_to_a_bad_line(
    kafka_settings: Settings, arrived: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = io.BytesIO(b"\n".join([*event_lines(15), b"oops", *event_lines(1)]))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=given))
    with pytest.raises(
        BadInput, match=r"standard input: line 16 is not a JSON object.*events sent before it: 15"
    ):
        send(kafka_settings, "-", events_per_record=10)
    assert values(arrived()) == sorted(event_lines(15))


@pytest.mark.parametrize("events_per_record", [0, 10_001])
def test_events_per_record_has_bounds(
    kafka_settings: Settings, tmp_path: Path, events_per_record: int
) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"{}")
    with pytest.raises(BadInput, match="--events-per-record"):
        send(kafka_settings, str(file), events_per_record=events_per_record)


def test_what_is_not_acknowledged_is_counted(kafka_settings: Settings, tmp_path: Path) -> None:
    # more than the topic takes, so that the broker refuses the second record
    settings = kafka_settings.model_copy(update={"record_bytes_max": 12 * 1024 * 1024})
    file = tmp_path / "events.ndjson"
    noise = hashlib.shake_256(b"noise").digest(4_800_000).hex().encode()
    file.write_bytes(b'{"id": 1}\n{"id": "' + noise + b'"}\n{"id": 3}')
    with pytest.raises(Unavailable, match=r"[12] of 3 events were not acknowledged by Kafka \(Mes"):
        send(settings, str(file), events_per_record=1)


def test_a_record_too_large_for_the_settings(kafka_settings: Settings) -> None:
    with Producer(kafka_settings) as producer, pytest.raises(BadInput, match="METERING_RECORD_BYTES_MAX"):
        producer.send(b"x" * 5_000_000, None, events=1)


def test_a_topic_that_is_not_there(kafka_settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"{}")
    started = time.monotonic()
    with pytest.raises(WrongWorld, match=r"no topic 'nowhere'.*metering init"):
        send(kafka_settings.model_copy(update={"kafka_topic": "nowhere"}), str(file))
    assert time.monotonic() - started < 15


# a client that never found a broker leaves its sockets to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_broker(tmp_path: Path) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"{}")
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"cannot reach Kafka at 127\.0\.0\.1:1"):
        send(read_settings(kafka_bootstrap="127.0.0.1:1"), str(file))
    assert time.monotonic() - started < 15
    gc.collect()


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(BadInput, match="cannot be read"):
            send(read_settings(), str(path))


@given(
    lines=st.lists(st.binary(min_size=1, max_size=30).filter(lambda line: not line.isspace()), max_size=30),
    events_max=st.integers(1, 8),
    bytes_max=st.integers(1, 60),
)
def test_records_keep_order_and_bounds(lines: list[bytes], events_max: int, bytes_max: int) -> None:
    records = list(in_records(lines, events_max, bytes_max))
    assert [line for record in records for line in record] == lines
    assert all(1 <= len(record) <= events_max for record in records)
    assert all(len(record) == 1 or len(b"\n".join(record)) <= bytes_max for record in records)
    assert list(filled([b"  \r\n", b"\t a \n", b""])) == [b"a"]


# ---- the trace ------------------------------------------------------------------------------------------

HEADER = b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
ROWS = [b"2023-11-16 18:15:46.6805900,374,44\r\n", b"2023-11-16 18:15:50.9951690,396,109\r\n"]


def test_a_row_of_the_trace_is_an_event() -> None:
    first, second = trace_events([HEADER, *ROWS], "trace.csv")
    assert json.loads(first) == {
        "specversion": "1.0",
        "id": "018bd958-a2f8-76a7-bd5a-30c1296cc82e",
        "source": "import://azure-trace/conv",
        "type": "inference.usage.v1",
        "subject": "trace-01",
        "time": "2023-11-16T18:15:46.680590Z",
        "data": {
            "request_id": "conv-1",
            "attempt": 1,
            "provider": "azure",
            "product": "chat-large",
            "tier_sold": "standard",
            "model_served": "chat-large",
            "tier_served": "standard",
            "region": "eastus",
            "capacity_pool": "ptu-chat",
            "ran_on": "pool",
            "billable": True,
            "usage_convention": "inclusive",
            "usage_source": "provider",
            "usage": {"input_tokens": 374, "output_tokens": 44},
        },
    }
    assert json.loads(second)["id"] != json.loads(first)["id"]
    decoded = decode(
        [RecordBytes(b"\n".join([first, second]), LINES, datetime(2026, 1, 1, tzinfo=UTC))], limits=LIMITS
    )
    assert (decoded.events.height, decoded.unknown_fields) == (2, {})


def test_the_same_row_twice_is_two_events_and_the_same_file_twice_is_one() -> None:
    once = [json.loads(event)["id"] for event in trace_events([HEADER, ROWS[0], ROWS[0]], "trace.csv")]
    assert once[0] != once[1]
    assert [
        json.loads(event)["id"] for event in trace_events([HEADER, ROWS[0], ROWS[0]], "again.csv")
    ] == once
    code = [json.loads(event)["id"] for event in trace_events([HEADER, ROWS[0]], "trace.csv", trace="code")]
    assert code[0] != once[0]


def test_customers_share_the_rows() -> None:
    customers = [customer_of(number) for number in range(1, 20_001)]
    shares = [round(customers.count(f"trace-0{number}") / 200) for number in range(1, 6)]
    assert [abs(share - wanted) <= 1 for share, wanted in zip(shares, (40, 25, 18, 12, 5), strict=True)] == [
        True
    ] * 5


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"line 1 is ''; an Azure trace begins with TIMESTAMP,ContextTokens,GeneratedTokens"),
        ([b"TIMESTAMP,Tokens\n"], r"line 1 is 'TIMESTAMP,Tokens'"),
        ([HEADER, b"2023-11-16 18:15:46,1\n"], r"line 2: '2023-11-16 18:15:46,1' has 2 columns"),
        ([HEADER, b"yesterday,1,2\n"], r"line 2, column TIMESTAMP: 'yesterday' is not a time"),
        ([HEADER, b"2023-02-30 00:00:00,1,2\n"], r"column TIMESTAMP: '2023-02-30 00:00:00' is not a time"),
        ([HEADER, b"1066-10-14 09:00:00,1,2\n"], r"column TIMESTAMP: '1066-10-14 09:00:00' is not a time"),
        (
            [HEADER, ROWS[0], b"2023-11-16 18:15:46,1.5,2\n"],
            r"line 3, column ContextTokens: '1.5' is not a count",
        ),
        ([HEADER, b"2023-11-16 18:15:46,1,-2\n"], r"column GeneratedTokens: '-2' is not a count"),
        ([HEADER, b"2023-11-16 18:15:46,1,2147483648\n"], r"GeneratedTokens: '2147483648' is not a count"),
        ([HEADER, b"2023-11-16 18:15:46,1,\xff\n"], r"line 2 is not text in UTF-8"),
    ],
)
def test_a_bad_row_is_named(lines: list[bytes], message: str) -> None:
    with pytest.raises(BadInput, match=r"trace.csv: .*" + message.removeprefix("trace.csv: ")):
        list(trace_events(lines, "trace.csv"))


def test_a_bad_row_stops_the_import_before_anything_is_sent(
    kafka_settings: Settings, arrived: Callable[[], list[Any]], tmp_path: Path
) -> None:
    file = tmp_path / "trace.csv"
    file.write_bytes(HEADER + ROWS[0] * 300 + b"2023-11-16 18:15:46,x,2\n")
    with pytest.raises(BadInput, match=r"line 302, column ContextTokens: 'x'"):
        import_trace(kafka_settings, str(file))
    assert arrived() == []
    assert import_trace(kafka_settings, str(file), limit=300) == 300
    assert len(values(arrived())) == 300


@pytest.mark.skipif(not TRACE.exists(), reason=f"{TRACE.name} is not there")
def test_the_whole_trace() -> None:
    with TRACE.open("rb") as lines:
        events = list(trace_events(lines, TRACE.name))
    rows = [line.split(",") for line in TRACE.read_text().splitlines()[1:]]
    appended_at = datetime(2026, 1, 1, tzinfo=UTC)
    records = [
        RecordBytes(b"\n".join(events[at : at + 100]), LINES, appended_at)
        for at in range(0, len(events), 100)
    ]
    decoded = decode(records, limits=LIMITS)
    assert decoded.rejects.is_empty()
    assert decoded.events.height == decoded.events["event_id"].n_unique() == len(rows) == 19_366
    assert decoded.events["input_tokens"].to_list() == [int(row[1]) for row in rows]
    assert decoded.events["total_output_tokens"].to_list() == [int(row[2]) for row in rows]
    assert decoded.events["occurred_at"].dt.strftime("%Y-%m-%d %H:%M:%S%.6f").to_list() == [
        row[0][:26] for row in rows
    ]
