"""The wire format: every form of record, every default, every way to be wrong, and neighbours left alone."""

import copy
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.core.usage import meter
from metering.events import Decoded, DecodeLimits, RecordBytes, decode, refuse, wire
from metering.events.columns import _CHUNK_EVENTS
from metering.events.instants import parse_instants
from metering.events.rejects import Fault, RejectCode
from metering.frames.events import REJECTS
from metering.meters import FURTHER_METERS

APPENDED_AT = datetime(2026, 10, 31, 12, 0, tzinfo=UTC)
LIMITS = DecodeLimits(
    record_bytes_max=4 * 1024 * 1024,
    record_events_max=10_000,
    event_ahead_seconds_max=300,
    id_ahead_seconds_max=86_400,
    ledger_floor=datetime(2026, 10, 1, tzinfo=UTC),
)
GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "id": "01a19100-0000-7000-8000-000000000001",
    "source": "gateway/us-west",
    "type": "inference.usage.v1",
    "subject": "acme-robotics",
    "time": "2026-10-31T11:59:58.123456Z",
    "data": {
        "request_id": "req-1",
        "attempt": 2,
        "provider": "own",
        "product": "lumen-small",
        "tier_sold": "standard",
        "model_served": "lumen-large",
        "tier_served": "priority",
        "region": "us-west",
        "capacity_pool": "block-a",
        "ran_on": "pool",
        "billable": False,
        "nonbillable_reason": "retry",
        "project": "arm",
        "seat": "seat-007",
        "usage_convention": "inclusive",
        "usage_source": "estimated",
        "duration_ms": 1_500,
        "accelerator_ms": 800,
        "usage": {
            "input_tokens": 1_000,
            "cache_read_tokens": 600,
            "cache_write_5m_tokens": 100,
            "cache_write_1h_tokens": 50,
            "output_tokens": 200,
            "reasoning_tokens": 120,
            **{meter: at for at, meter in enumerate(FURTHER_METERS, 1)},
            "context_tokens": 900,
        },
    },
}
LEAST: dict[str, Any] = {
    "specversion": "1.0",
    "id": "any text",
    "source": "s",
    "type": "inference.usage.v1",
    "subject": "c",
    "time": "2026-10-31T12:00:00Z",
    "data": {
        "request_id": "r",
        "provider": "own",
        "model_served": "m",
        "tier_served": "batch",
        "usage_convention": "disjoint",
        "usage": {"input_tokens": 1, "output_tokens": 2},
    },
}
#: Ellipsis: an object whose name in a test is the same in every process.
_ABSENT = ...


def changed(event: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with `data__usage__input_tokens=1` and the like set; _ABSENT takes a field out."""
    made = copy.deepcopy(event)
    for path, value in changes.items():
        where, (*outer, name) = made, path.split("__")
        for step in outer:
            where = where[step]
        if value is _ABSENT:
            del where[name]
        else:
            where[name] = value
    return made


def numbered(number: int, event: dict[str, Any] = GOOD) -> dict[str, Any]:
    return changed(event, id=f"01a19100-0000-7000-8000-{number:012x}")


def to_bytes(event: object) -> bytes:
    return json.dumps(event).encode()


def decoded(*values: bytes | None, content_type: str | None = None) -> Decoded:
    return decode([RecordBytes(value, content_type, APPENDED_AT) for value in values], limits=LIMITS)


def rejected(result: Decoded) -> list[tuple[int, int, str, str | None]]:
    return result.rejects.select("record", "index", "code", "field").rows()


def ids(result: Decoded) -> list[str]:
    return result.events["event_id"].to_list()


# ---- what is said, and what is not -----------------------------------------------------------------------


def test_every_field_arrives() -> None:
    (row,) = decoded(to_bytes(GOOD)).events.rows(named=True)
    assert row == {
        "record": 0,
        "index": 0,
        "event_id": "01a19100-0000-7000-8000-000000000001",
        "source": "gateway/us-west",
        "occurred_at": datetime(2026, 10, 31, 11, 59, 58, 123456, tzinfo=UTC),
        "customer": "acme-robotics",
        "request_id": "req-1",
        "attempt": 2,
        "product": "lumen-small",
        "tier_sold": "standard",
        "provider": "own",
        "model_served": "lumen-large",
        "tier_served": "priority",
        "region": "us-west",
        "pool": "block-a",
        "ran_on": "pool",
        "billable": False,
        "nonbillable_reason": "retry",
        "project": "arm",
        "seat": "seat-007",
        "usage_convention": "inclusive",
        "usage_source": "estimated",
        "duration_ms": 1_500,
        "input_tokens": 1_000,
        "cache_read_tokens": 600,
        "cache_write_5m_tokens": 100,
        "cache_write_1h_tokens": 50,
        "total_output_tokens": 200,
        "reported_reasoning_tokens": 120,
        "accelerator_ms": 800,
        **{meter: at for at, meter in enumerate(FURTHER_METERS, 1)},
        "context_tokens": 900,
    }


def test_defaults() -> None:
    (row,) = decoded(to_bytes(LEAST)).events.rows(named=True)
    expected = {
        "attempt": 1,
        "product": "m",
        "tier_sold": "batch",
        "region": "global",
        "pool": None,
        "ran_on": "on_demand",
        "billable": True,
        "nonbillable_reason": None,
        "project": None,
        "seat": None,
        "usage_source": "provider",
        "duration_ms": None,
        "cache_read_tokens": 0,
        "cache_write_5m_tokens": 0,
        "cache_write_1h_tokens": 0,
        "reported_reasoning_tokens": 0,
        "accelerator_ms": 0,
    }
    assert {name: row[name] for name in expected} == expected


def test_null_is_the_same_as_absent_where_a_field_is_optional() -> None:
    optional = [name for name in wire.DATA_FIELDS if name not in LEAST["data"]]
    counts = [name for name in wire.COUNT_FIELDS if name not in LEAST["data"]["usage"]]
    nulls = changed(
        LEAST,
        **{f"data__{name}": None for name in optional},
        **{f"data__usage__{name}": None for name in counts},
    )
    assert decoded(to_bytes(nulls)).events.equals(decoded(to_bytes(LEAST)).events)


@pytest.mark.parametrize(
    ("counts", "short", "long"),
    [
        ({"cache_write_tokens": 70}, 70, 0),
        ({"cache_write_tokens": 70, "cache_write_5m_tokens": 50, "cache_write_1h_tokens": 20}, 50, 20),
        ({"cache_write_tokens": 20, "cache_write_1h_tokens": 20}, 0, 20),
        ({"cache_write_5m_tokens": 5}, 5, 0),
        ({"cache_write_tokens": 0}, 0, 0),
    ],
)
def test_a_cache_write_that_is_not_split_is_5m(counts: dict[str, int], short: int, long: int) -> None:
    event = changed(LEAST, **{f"data__usage__{name}": count for name, count in counts.items()})
    (row,) = decoded(to_bytes(event)).events.rows(named=True)
    assert (row["cache_write_5m_tokens"], row["cache_write_1h_tokens"]) == (short, long)


def test_the_last_of_duplicate_keys_wins() -> None:
    text = to_bytes(LEAST).replace(b'"subject": "c"', b'"subject": 17, "subject": "first", "subject": "last"')
    text = text.replace(b'"input_tokens": 1', b'"input_tokens": "x", "input_tokens": 9')
    (row,) = decoded(text).events.rows(named=True)
    assert (row["customer"], row["input_tokens"]) == ("last", 9)


# ---- times -----------------------------------------------------------------------------------------------

TIMES = """
2026-10-31T11:59:58Z                    2026-10-31 11:59:58.000000
2026-10-31t11:59:58z                    2026-10-31 11:59:58.000000
2026-10-31T11:59:58.1Z                  2026-10-31 11:59:58.100000
2026-10-31T11:59:58.1234567Z            2026-10-31 11:59:58.123456
2026-10-31T11:59:58.999999999999Z       2026-10-31 11:59:58.999999
2026-10-31T13:59:58.5+02:00             2026-10-31 11:59:58.500000
2026-10-31T11:59:58-00:00               2026-10-31 11:59:58.000000
2026-10-30T23:59:58.000001-12:00        2026-10-31 11:59:58.000001
2024-02-29T00:00:00Z                    2024-02-29 00:00:00.000000
2000-02-29T00:00:00Z                    2000-02-29 00:00:00.000000
1969-12-31T23:59:59.5Z                  1969-12-31 23:59:59.500000
2026-02-29T00:00:00Z                    refused
1900-02-29T00:00:00Z                    refused
2026-04-31T00:00:00Z                    refused
2026-13-01T00:00:00Z                    refused
2026-00-01T00:00:00Z                    refused
2026-01-00T00:00:00Z                    refused
0000-01-01T00:00:00Z                    refused
0001-01-01T00:00:00+00:01               refused
9999-12-31T23:59:59-00:01               refused
2026-10-31T24:00:00Z                    refused
2026-10-31T23:60:00Z                    refused
2026-06-30T23:59:60Z                    refused
2026-10-31T11:59:58                     refused
2026-10-31_11:59:58Z                    refused
2026-10-31T11:59:58.Z                   refused
2026-10-31T11:59:58,5Z                  refused
2026-10-31T11:59:58.5                   refused
2026-10-31T11:59:58+02                  refused
2026-10-31T11:59:58+0200                refused
2026-10-31T11:59:58+24:00               refused
2026-10-31T11:59:58+02:60               refused
2026-10-31T11:59:58*02:00               refused
2026-10-31                              refused
20261031T115958Z                        refused
1793447998                              refused
2026-10-31T1\u0661:59:58Z                refused
now                                     refused
"""


def test_times() -> None:
    rows = [line.split(maxsplit=1) for line in TIMES.strip().splitlines()]
    instants = parse_instants(pl.Series("time", [text for text, _ in rows]))
    found = instants.dt.strftime("%Y-%m-%d %H:%M:%S%.6f").fill_null("refused").to_list()
    assert list(zip([text for text, _ in rows], found, strict=True)) == [(text, said) for text, said in rows]


@given(
    st.lists(st.text(max_size=40) | st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat), max_size=20)
)
def test_times_agree_with_the_standard_library(texts: list[str]) -> None:
    instants = parse_instants(pl.Series("time", texts, dtype=pl.String))
    for text, instant in zip(texts, instants.dt.strftime("%Y-%m-%dT%H:%M:%S%.6f").to_list(), strict=True):
        if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?\+00:00", text, re.ASCII):
            assert instant is not None
            assert datetime.fromisoformat(instant) == datetime.fromisoformat(text).replace(tzinfo=None)
        elif instant is not None:
            assert re.match(r"\d{4}-\d\d-\d\d[Tt]", text)


def test_bounds_of_time() -> None:
    edge = APPENDED_AT + timedelta(seconds=300)
    after = edge + timedelta(microseconds=1)
    floor = LIMITS.ledger_floor
    before = floor - timedelta(microseconds=1)
    result = decoded(*(to_bytes(changed(LEAST, time=at.isoformat())) for at in (edge, after, floor, before)))
    assert result.events["record"].to_list() == [0, 2]
    assert rejected(result) == [(1, 0, "time_from_future", "time"), (3, 0, "too_old", "time")]


def test_bounds_of_the_time_inside_an_id() -> None:
    def uuid7(at: datetime) -> str:
        text = f"{int(at.timestamp() * 1000):012x}"
        return f"{text[:8]}-{text[8:]}-7000-8000-000000000001"

    day = timedelta(days=1)
    millisecond = timedelta(milliseconds=1)
    ahead, floor = APPENDED_AT + day, LIMITS.ledger_floor
    wanted = [
        (uuid7(ahead), None),
        (uuid7(ahead + millisecond), "id_from_future"),
        (uuid7(floor), None),
        (uuid7(floor - millisecond), "too_old"),
        (uuid7(datetime(2001, 1, 1, tzinfo=UTC)), "too_old"),
        (uuid7(datetime(2099, 1, 1, tzinfo=UTC)), "id_from_future"),
        ("ffffffff-ffff-7000-8000-000000000001", "id_from_future"),
        ("00000000000000000000000000", "too_old"),
        ("7ZZZZZZZZZZZZZZZZZZZZZZZZZ", "id_from_future"),
        ("not a time at all", None),
    ]
    result = decoded(*(to_bytes(changed(LEAST, id=text)) for text, _ in wanted))
    codes: dict[int, str] = {record: code for record, _, code, _ in rejected(result)}
    assert [(text, codes.get(record)) for record, (text, _) in enumerate(wanted)] == wanted


# ---- everything that is wrong ----------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str, str | None]] = [
    ({"specversion": "0.3"}, "spec_version_unsupported", "specversion"),
    ({"specversion": 1.0}, "wrong_type", "specversion"),
    ({"specversion": _ABSENT}, "missing_field", "specversion"),
    ({"type": "inference.heartbeat.v1", "data": {"sequence": 1}}, "missing_field", "data.complete_until"),
    ({"type": "inference.void.v1", "data": _ABSENT}, "missing_field", "data"),
    ({"type": "inference.refused.v1"}, "missing_field", "data.reason"),
    ({"type": "something.else"}, "type_not_supported", "type"),
    ({"type": None}, "missing_field", "type"),
    ({"id": _ABSENT}, "missing_field", "id"),
    ({"id": None}, "missing_field", "id"),
    ({"id": 17}, "wrong_type", "id"),
    ({"id": ""}, "id_invalid", "id"),
    ({"id": "x" * 201}, "id_invalid", "id"),
    ({"id": "\u20ac" * 67}, "id_invalid", "id"),
    ({"id": "x" * 10_000}, "id_invalid", "id"),
    ({"id": "nul\0"}, "id_invalid", "id"),
    ({"source": ""}, "source_invalid", "source"),
    ({"source": "s" * 201}, "source_invalid", "source"),
    ({"source": "\0"}, "source_invalid", "source"),
    ({"source": "adjustments"}, "source_invalid", "source"),
    ({"source": _ABSENT}, "missing_field", "source"),
    ({"subject": _ABSENT}, "missing_field", "subject"),
    ({"subject": ""}, "text_invalid", "subject"),
    ({"subject": "a\0b"}, "text_invalid", "subject"),
    ({"time": _ABSENT}, "missing_field", "time"),
    ({"time": None}, "missing_field", "time"),
    ({"time": ""}, "time_invalid", "time"),
    ({"time": 1_793_447_998}, "wrong_type", "time"),
    ({"time": "2026-10-31T11:59:58"}, "time_invalid", "time"),
    ({"time": "2026-10-31T12:05:01Z"}, "time_from_future", "time"),
    ({"time": "2001-01-01T00:00:00Z"}, "too_old", "time"),
    ({"data": _ABSENT}, "missing_field", "data"),
    ({"data": []}, "wrong_type", "data"),
    ({"data__request_id": _ABSENT}, "missing_field", "data.request_id"),
    ({"data__provider": _ABSENT}, "missing_field", "data.provider"),
    ({"data__model_served": _ABSENT}, "missing_field", "data.model_served"),
    ({"data__tier_served": None}, "missing_field", "data.tier_served"),
    ({"data__usage_convention": _ABSENT}, "missing_field", "data.usage_convention"),
    ({"data__usage_convention": "both"}, "value_unknown", "data.usage_convention"),
    ({"data__usage_source": "guess"}, "value_unknown", "data.usage_source"),
    ({"data__ran_on": "moon"}, "value_unknown", "data.ran_on"),
    ({"data__ran_on": _ABSENT}, "missing_field", "data.ran_on"),
    ({"data__capacity_pool": None}, "pool_missing", "data.capacity_pool"),
    ({"data__capacity_pool": None, "data__ran_on": "overflow"}, "pool_missing", "data.capacity_pool"),
    ({"data__capacity_pool": ""}, "text_invalid", "data.capacity_pool"),
    ({"data__nonbillable_reason": "mood"}, "value_unknown", "data.nonbillable_reason"),
    ({"data__nonbillable_reason": None}, "reason_contradicts", "data.nonbillable_reason"),
    ({"data__billable": True}, "reason_contradicts", "data.nonbillable_reason"),
    ({"data__billable": _ABSENT}, "reason_contradicts", "data.nonbillable_reason"),
    ({"data__billable": 1}, "wrong_type", "data.billable"),
    ({"data__billable": "false"}, "wrong_type", "data.billable"),
    ({"data__attempt": 0}, "quantity_out_of_range", "data.attempt"),
    ({"data__attempt": 32_768}, "quantity_out_of_range", "data.attempt"),
    ({"data__attempt": True}, "wrong_type", "data.attempt"),
    ({"data__duration_ms": -1}, "quantity_out_of_range", "data.duration_ms"),
    ({"data__duration_ms": 2**31}, "quantity_out_of_range", "data.duration_ms"),
    ({"data__accelerator_ms": 1.5}, "wrong_type", "data.accelerator_ms"),
    ({"data__project": "p" * 201}, "text_invalid", "data.project"),
    ({"data__seat": ""}, "text_invalid", "data.seat"),
    ({"data__usage": None}, "missing_field", "data.usage"),
    ({"data__usage__input_tokens": _ABSENT}, "missing_field", "data.usage.input_tokens"),
    ({"data__usage__output_tokens": None}, "missing_field", "data.usage.output_tokens"),
    ({"data__usage__input_tokens": -1}, "quantity_out_of_range", "data.usage.input_tokens"),
    ({"data__usage__input_tokens": 2**31}, "quantity_out_of_range", "data.usage.input_tokens"),
    ({"data__usage__input_tokens": 2**63}, "quantity_out_of_range", "data.usage.input_tokens"),
    ({"data__usage__input_tokens": 10**400}, "quantity_out_of_range", "data.usage.input_tokens"),
    ({"data__usage__input_tokens": 1000.0}, "wrong_type", "data.usage.input_tokens"),
    ({"data__usage__input_tokens": "1000"}, "wrong_type", "data.usage.input_tokens"),
    ({"data__usage__input_tokens": True}, "wrong_type", "data.usage.input_tokens"),
    ({"data__usage__cache_read_tokens": [1]}, "wrong_type", "data.usage.cache_read_tokens"),
    ({"data__usage__cache_write_tokens": 1}, "counts_contradict", "data.usage.cache_write_tokens"),
]


@pytest.mark.parametrize(("changes", "code", "field"), WRONG, ids=lambda value: str(value)[:60])
def test_one_wrong_event_is_one_reject_and_its_neighbours_stay(
    changes: dict[str, Any], code: str, field: str | None
) -> None:
    wrong = changed(GOOD, **changes)
    good = [numbered(2), numbered(3)]
    for value, content_type in (
        (to_bytes([good[0], wrong, good[1]]), None),
        (b"\n".join(map(to_bytes, [good[0], wrong, good[1]])), "application/x-ndjson"),
    ):
        result = decoded(value, content_type=content_type)
        assert rejected(result) == [(0, 1, code, field)]
        assert result.rejects["payload"][0] == to_bytes(wrong)
        assert result.events["index"].to_list() == [0, 2]
        assert len(result.rejects["detail"][0]) <= 500
    lone = decoded(to_bytes(wrong))
    assert rejected(lone) == [(0, 0, code, field)]


def test_a_reject_is_named_where_its_name_can_be_kept() -> None:
    result = decoded(
        to_bytes(changed(GOOD, data__attempt=0)),
        to_bytes(changed(GOOD, id="x" * 300)),
        to_bytes(changed(GOOD, source="\0", data__attempt=0)),
        to_bytes(changed(GOOD, id=5)),
    )
    assert result.rejects.select("source", "event_id").rows() == [
        ("gateway/us-west", GOOD["id"]),
        ("gateway/us-west", None),
        (None, GOOD["id"]),
        ("gateway/us-west", None),
    ]


BROKEN_PIECES: list[tuple[bytes, str]] = [
    (b'{"id": NaN}', "not_json"),
    (b'{"id": "\xff"}', "not_json"),
    (b'{"id": "\xed\xa0\x80"}', "not_json"),
    (rb'{"id": "\ud800"}', "not_json"),
    (rb'{"id": "\udc00 alone"}', "not_json"),
    (b'{"id": "raw \x00 nul"}', "not_json"),
    (b'{"id": 01}', "not_json"),
    (b'{"id": 1,}', "not_json"),
    (b"{id: 1}", "not_json"),
    (b"\xef\xbb\xbf{}", "not_json"),
    (b"17", "not_an_event"),
    (b'"text"', "not_an_event"),
    (b"null", "not_an_event"),
    (b"[{}]", "not_an_event"),
    (b'{"id": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", "decoder_failed"),
    (b'{"x": ' + b'{"x":' * 5_000 + b"1" + b"}" * 5_000 + b"}", "decoder_failed"),
]


@pytest.mark.parametrize(
    ("piece", "code"), BROKEN_PIECES, ids=[piece[:20].hex() for piece, _ in BROKEN_PIECES]
)
@pytest.mark.parametrize("form", ["array", "lines"])
def test_a_piece_that_is_no_event_leaves_its_neighbours(piece: bytes, code: str, form: str) -> None:
    pieces = [to_bytes(numbered(1)), piece, to_bytes(numbered(2))]
    value = b"[" + b",".join(pieces) + b"]" if form == "array" else b"\n".join(pieces)
    result = decoded(value)
    assert rejected(result) == [(0, 1, code, None)]
    assert result.rejects["payload"].to_list() == [piece]
    assert ids(result) == [numbered(1)["id"], numbered(2)["id"]]


# ---- forms of a record -----------------------------------------------------------------------------------

ONE, TWO = to_bytes(numbered(1)), to_bytes(numbered(2))
PRETTY = json.dumps(numbered(1), indent=2).encode()


@pytest.mark.parametrize(
    ("value", "content_type", "found", "rejects"),
    [
        (ONE, None, 1, []),
        (ONE, "application/cloudevents+json", 1, []),
        (PRETTY, "application/cloudevents+json; charset=utf-8", 1, []),
        (b"[" + ONE + b"," + TWO + b"]", None, 2, []),
        (b" \n[" + ONE + b"]\n", None, 1, []),
        (b"[" + ONE + b"," + TWO + b"]", "application/cloudevents-batch+json", 2, []),
        (b"[" + ONE + b"]", "application/json", 1, []),
        (ONE, "application/json", 1, []),
        (b"[]", None, 0, []),
        (ONE + b"\n\n \r\n" + TWO + b"\r\n", None, 2, []),
        (ONE + b"\n" + TWO, "Application/X-NDJSON", 2, []),
        (ONE + b"\n" + TWO, "", 2, []),
        (b"oops\n" + ONE, None, 1, [(0, 0, "not_json", None)]),
        (None, None, 0, [(0, -1, "empty_record", None)]),
        (b"", None, 0, [(0, -1, "empty_record", None)]),
        (b" \r\n\t", "application/x-ndjson", 0, [(0, -1, "empty_record", None)]),
        (b"oops", None, 0, [(0, -1, "not_json", None)]),
        (b"17", None, 0, [(0, -1, "not_an_event", None)]),
        (ONE, "text/plain", 0, [(0, -1, "content_type_unknown", None)]),
        (ONE, "application/json; charset=latin-1", 0, [(0, -1, "content_type_unknown", None)]),
        (ONE, "application/cloudevents-batch+json", 0, [(0, -1, "not_an_event", None)]),
        (b"[" + ONE + b"]", "application/cloudevents+json", 0, [(0, 0, "not_an_event", None)]),
        (PRETTY, "application/cloudevents-batch+json", 0, [(0, -1, "not_an_event", None)]),
        (b"[" + ONE + b"," + TWO[:-9], None, 0, [(0, -1, "not_json", None)]),
        (b"[" + ONE + b",]", None, 1, [(0, 1, "not_json", None)]),
        (b"[" + ONE + b"] []", None, 0, [(0, -1, "not_json", None)]),
        (ONE + TWO, None, 0, [(0, 0, "not_json", None)]),
        (b"[" + ONE + b" " + TWO + b"]", None, 0, [(0, 0, "not_json", None)]),
    ],
)
def test_forms_of_a_record(
    value: bytes | None, content_type: str | None, found: int, rejects: list[tuple[Any, ...]]
) -> None:
    result = decoded(value, content_type=content_type)
    assert (result.events.height, rejected(result)) == (found, rejects)


def test_text_inside_strings_is_never_read_as_events() -> None:
    hidden = to_bytes(changed(GOOD, data__project=TWO.decode() + "," + TWO.decode()))
    broken = b'[{"id": "cut},' + hidden + b',{"id": cut"}]'
    assert decoded(broken).events.is_empty()


def test_bounds_of_a_record() -> None:
    limits = DecodeLimits(len(ONE) + 2, 2, 300, 86_400, LIMITS.ledger_floor)

    def codes(value: bytes) -> list[str]:
        result = decode([RecordBytes(value, None, APPENDED_AT)], limits=limits)
        return result.rejects["code"].to_list()

    assert codes(b"[" + ONE + b"]") == []
    assert codes(b"[" + ONE + b" ]") == ["record_too_large"]
    assert codes(b"[{},{}]") == ["missing_field"] * 2
    assert codes(b"[{},{},{}]") == ["too_many_events"]
    assert codes(b"[{},NaN,{}]") == ["too_many_events"]
    assert codes(b"{}\n{}\n\n{}") == ["too_many_events"]
    # of an array of millions no more than one too many are ever held
    assert wire.elements_of(b"[" + b"0," * 500_000 + b"{}]", 2) == [b"0"] * 3


def test_many_records_keep_their_places() -> None:
    count = 3 * _CHUNK_EVENTS + 7
    events = [numbered(number) for number in range(count)]
    result = decoded(*(to_bytes(events[start : start + 10]) for start in range(0, count, 10)))
    assert ids(result) == [event["id"] for event in events]
    assert result.events.select("record", "index").rows() == [divmod(number, 10) for number in range(count)]


# ---- unknown fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["array", "lines", "lone"])
def test_unknown_fields_are_dropped_and_counted_by_source(form: str) -> None:
    prompt = "never to be kept"
    chatty = changed(GOOD, traceparent="00", data__prompt=prompt, data__usage__audio={"deep": [prompt]})
    events = [numbered(1, chatty), numbered(2), changed(numbered(3), source="other", dataschema="x", note=1)]
    pieces = [to_bytes(event) for event in events]
    values = {"array": [to_bytes(events)], "lines": [b"\n".join(pieces)], "lone": pieces}[form]
    result = decoded(*values)
    assert result.events.height == 3
    assert result.unknown_fields == {"gateway/us-west": 3, "other": 1}
    assert prompt not in str(result.events.to_dicts())


def test_unknown_fields_may_hold_anything_that_is_json() -> None:
    odd = b'"x\\u0000": ["\\u0000", 1e400, "' + b"\xff" + b'"], "data": '
    result = decoded(ONE.replace(b'"data": ', odd), b"[" + ONE.replace(b'"data": ', odd) + b"]")
    assert result.events.height == 2
    assert sum(result.unknown_fields.values()) >= 2


# ---- rejects later on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["array", "lines"])
def test_refuse_finds_the_bytes_again(form: str) -> None:
    events = [numbered(1), changed(numbered(2), data__usage__reasoning_tokens=201), numbered(3)]
    value = to_bytes(events) if form == "array" else b"\n\n".join(map(to_bytes, events))
    records = [RecordBytes(b"oops", None, APPENDED_AT), RecordBytes(value, None, APPENDED_AT)]
    result = decode(records, limits=LIMITS)
    accepted, contradictions = meter(result.events)
    assert accepted["index"].to_list() == [0, 2]
    refused = contradictions.with_columns(code=pl.lit(str(RejectCode.COUNTS_CONTRADICT)))
    rejects = refuse(records, events=result.events, refused=refused)
    assert rejects.schema == REJECTS.empty().schema
    (row,) = rejects.rows(named=True)
    assert (row["record"], row["index"], row["code"]) == (1, 1, "counts_contradict")
    assert (row["source"], row["event_id"]) == ("gateway/us-west", events[1]["id"])
    assert json.loads(row["payload"]) == events[1]


# ---- properties ------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
paths = st.sampled_from(
    [
        *GOOD,
        *(f"data__{name}" for name in wire.DATA_FIELDS),
        *(f"data__usage__{name}" for name in wire.COUNT_FIELDS),
    ]
)


def accounted(result: Decoded, record: int, count: int) -> bool:
    """Every event of a record is in one of the frames, never in two; or the whole record is a reject."""
    places = [
        *result.events.filter(pl.col("record") == record)["index"],
        *result.notices.filter(pl.col("record") == record)["index"],
        *result.rejects.filter(pl.col("record") == record)["index"],
    ]
    return sorted(places) in ([-1], list(range(count)))


@given(
    values=st.lists(st.none() | st.binary(max_size=200) | st.text(max_size=100).map(str.encode), max_size=5),
    content_type=st.sampled_from([None, *wire._FORMS, "text/plain"]),
)
def test_the_decoder_never_raises_on_bytes(values: list[bytes | None], content_type: str | None) -> None:
    result = decoded(*values, content_type=content_type)
    assert result.events.is_empty()
    assert set(result.rejects["code"]) <= set(RejectCode)


@given(st.binary(max_size=400), st.sampled_from([b"[%b]", b"[%b,%b]", b'{"a":%b}\n%b']))
def test_the_decoder_never_raises_between_brackets(piece: bytes, outline: bytes) -> None:
    decoded(outline.replace(b"%b", piece))


@given(changes=st.dictionaries(paths, json_values, max_size=4))
def test_the_decoder_never_raises_on_mutated_events(changes: dict[str, Any]) -> None:
    outer = sorted(changes.items(), key=lambda change: -change[0].count("__"))
    wrong = changed(GOOD, **dict(outer))
    values = [to_bytes(wrong), to_bytes([numbered(2), wrong, numbered(3)])]
    result = decoded(*values)
    assert accounted(result, 0, 1)
    assert accounted(result, 1, 3)
    assert {0, 2} <= set(result.events.filter(pl.col("record") == 1)["index"])


@given(cut=st.integers(0, len(ONE)), junk=st.binary(max_size=6))
def test_a_line_cut_anywhere_leaves_its_neighbours(cut: int, junk: bytes) -> None:
    broken = (ONE[:cut] + junk + ONE[cut + len(junk) :]).replace(b"\n", b" ")
    result = decoded(b"\n".join([TWO, broken, to_bytes(numbered(3))]), content_type="application/x-ndjson")
    assert {TWO_ID, numbered(3)["id"]} <= set(ids(result))


TWO_ID = numbered(2)["id"]
stream_lines = st.lists(
    st.sampled_from(
        [
            *(to_bytes(numbered(number)) for number in range(4)),
            to_bytes(changed(GOOD, note="unknown")),
            to_bytes(changed(GOOD, data__attempt=0)),
            to_bytes(changed(GOOD, time="soon")),
            b"{oops",
        ]
    ),
    max_size=12,
)


@settings(max_examples=50)
@given(
    lines=stream_lines,
    cuts=st.lists(
        st.tuples(st.integers(1, 5), st.sampled_from(["lines", "array", "open"])), min_size=12, max_size=12
    ),
)
def test_cutting_a_stream_into_records_in_any_way_gives_the_same_events(
    lines: list[bytes], cuts: list[tuple[int, str]]
) -> None:
    records, rest = [], lines
    for size, form in cuts:
        piece, rest = rest[:size], rest[size:]
        if not piece:
            break
        outlined = form == "array" and b"{oops" not in piece
        value = b"[" + b",".join(piece) + b"]" if outlined else b"\n".join(piece)
        records.append(RecordBytes(value, "application/x-ndjson" if form == "lines" else None, APPENDED_AT))
    records.extend(RecordBytes(line, None, APPENDED_AT) for line in rest)
    one_each = decode([RecordBytes(line, None, APPENDED_AT) for line in lines], limits=LIMITS)
    cut = decode(records, limits=LIMITS)
    places = ["record", "index"]
    assert cut.events.drop(places).equals(one_each.events.drop(places))
    assert cut.rejects["payload"].to_list() == one_each.rejects["payload"].to_list()
    assert cut.rejects["code"].to_list() == one_each.rejects["code"].to_list()
    assert cut.unknown_fields == one_each.unknown_fields


# ---- the document ----------------------------------------------------------------------------------------

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "events.md"


def test_the_document_lists_exactly_the_codes() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|$", DOCUMENT.read_text(), re.MULTILINE)
    listed = {code: meaning for code, meaning in rows if code in set(RejectCode)}
    section = DOCUMENT.read_text().split("## Reject codes")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)`", section, re.MULTILINE) == list(RejectCode)
    assert listed == {str(code): code.meaning for code in RejectCode}
    assert len(RejectCode) >= 20


def test_the_document_names_every_field() -> None:
    text = DOCUMENT.read_text()
    for name in (*wire.EVENT_FIELDS, *wire.DATA_FIELDS, *wire.COUNT_FIELDS):
        assert f"`{name}`" in text, name


def _check_example(fence: str, content_type: str, events: int) -> Callable[[], None]:
    def check() -> None:
        (example,) = re.findall(rf"```{fence}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
        result = decoded(example.encode(), content_type=content_type)
        assert result.rejects.is_empty(), result.rejects.rows()
        assert result.events.height == events
        assert result.unknown_fields == {}

    return check


test_the_example_of_one_event_is_read = _check_example("json event", "application/cloudevents+json", 1)
test_the_example_of_a_batch_is_read = _check_example("json batch", "application/cloudevents-batch+json", 2)
test_the_example_of_lines_is_read = _check_example("json lines", "application/x-ndjson", 2)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("-5", "it is -5"),
        ("1.5", "it is 1.5"),
        ("true", "it is true"),
        ("9223372036854775808", "it is 9223372036854775808"),
        ("9" * 300, ""),
        ('"a prompt"', ""),
    ],
)
def test_a_wrong_number_is_said_and_a_text_is_not(value: str, said: str) -> None:
    plain = json.dumps(changed(GOOD, data__usage__input_tokens=0)).replace(
        '"input_tokens": 0', f'"input_tokens": {value}'
    )
    fault = wire.decode_event(plain.encode())
    assert isinstance(fault, Fault)
    assert fault.field == "data.usage.input_tokens"
    assert said in fault.detail
    assert "prompt" not in fault.detail
