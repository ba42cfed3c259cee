"""Keys and digests: golden values that may never change, and what they promise."""

import hashlib
import struct
import uuid
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from metering.events.identity import (
    DIGEST_VERSION,
    content_digests,
    digest_versions,
    event_keys,
    is_uuid7,
    key_list,
    request_keys,
    series_digests,
    uuid7_text,
    uuid7_texts,
)
from metering.frames.events import EVENTS
from metering.frames.usage import DIMENSIONS
from metering.meters import FIRST_METERS, FURTHER_METERS, METERS

# id -> key, whether the key is the id, the time inside it
KEYS = [
    ("01a19100-0000-7000-8000-000000000001", "01a19100000070008000000000000001", True, 1793434058752),
    ("01a19100-0000-7fff-bfff-ffffffffffff", "01a1910000007fffbfffffffffffffff", True, 1793434058752),
    ("01a19100-0000-7000-8000-000000000100", "01a19100000070008000000000000100", True, 1793434058752),
    ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "01563e3ab5d3d6764c61efb99302bd5b", False, 1469922850259),
    ("7ZZZZZZZZZZZZZZZZZZZZZZZZZ", "ffffffffffffffffffffffffffffffff", False, 281474976710655),
    # whatever is not canonical is hashed
    ("01A19100-0000-7000-8000-000000000001", "", False, None),
    ("01a19100-0000-4000-8000-000000000001", "", False, None),
    ("01a19100-0000-7000-c000-000000000001", "", False, None),
    ("01a19100000070008000000000000001", "", False, None),
    ("01a19100-0000-7000-8000-00000000000g", "", False, None),
    ("01a19100_0000-7000-8000-000000000001", "", False, None),
    ("01arz3ndektsv4rrffq69g5fav", "", False, None),
    ("81ARZ3NDEKTSV4RRFFQ69G5FAV", "", False, None),
    ("01ARZ3NDEKTSV4RRFFQ69G5FAU", "", False, None),
    ("01ARZ3NDEKTSV4RRFFQ69G5FAI", "", False, None),
    ("req-1", "", False, None),
    ("\u20ac" * 12, "", False, None),
    ("x", "", False, None),
]
HASHED = {
    "01A19100-0000-7000-8000-000000000001": "abb6f18b70465b5b81d5dab0cc387f3d",
    "req-1": "f7a85bff5dd350f1d6d66f116fe042a9",
    "\u20ac" * 12: "da69e73f87622157743e4db4042cb91b",
    "x": "c42a44457137672b3218c1007dc8f76a",
}


def test_golden_keys_of_ids_with_a_time() -> None:
    timed = [row for row in KEYS if row[3] is not None]
    keys = event_keys(pl.Series("event_id", [row[0] for row in timed]))
    assert [key.hex() for key in key_list(keys.keys)] == [row[1] for row in timed]
    assert keys.key_is_id.tolist() == [row[2] for row in timed]
    assert keys.id_at.dt.epoch("ms").to_list() == [row[3] for row in timed]


def test_golden_keys_of_other_ids() -> None:
    keys = event_keys(pl.Series("event_id", list(HASHED)))
    assert [key.hex() for key in key_list(keys.keys)] == list(HASHED.values())


def test_any_other_id_is_hashed_above_every_time() -> None:
    others = [row[0] for row in KEYS if row[3] is None]
    keys = event_keys(pl.Series("event_id", others))
    for text, key in zip(others, key_list(keys.keys), strict=True):
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        assert key == bytes([digest[0] | 0x80]) + digest[1:]
    assert not keys.key_is_id.any()
    assert keys.id_at.null_count() == len(others)


@given(st.lists(st.one_of(st.sampled_from([row[0] for row in KEYS]), st.text(max_size=40)), max_size=20))
def test_a_key_depends_on_its_id_alone(texts: list[str]) -> None:
    together = event_keys(pl.Series("event_id", texts, dtype=pl.String))
    alone = [event_keys(pl.Series("event_id", [text])) for text in texts]
    assert key_list(together.keys) == [key_list(one.keys)[0] for one in alone]
    assert together.key_is_id.tolist() == [bool(one.key_is_id[0]) for one in alone]
    assert together.key_is_id.tolist() == [is_uuid7(text) for text in texts]


@given(millis=st.integers(0, 2**47 - 1), tail=st.binary(min_size=10, max_size=10))
def test_a_uuid7_of_ours_is_its_own_key(millis: int, tail: bytes) -> None:
    (text,) = uuid7_texts(np.array([millis]), np.frombuffer(tail, dtype=np.uint8).reshape(1, 10))
    keys = event_keys(pl.Series("event_id", [text]))
    assert str(uuid.UUID(text)) == text
    assert uuid.UUID(text).version == 7
    assert key_list(keys.keys) == [uuid.UUID(text).bytes]
    assert bool(keys.key_is_id[0])
    assert keys.id_at.dt.epoch("ms").to_list() == [millis]


def test_one_uuid7_from_an_instant() -> None:
    at = datetime(2023, 11, 16, 18, 15, 46, 680999, tzinfo=UTC)
    assert uuid7_text(at, bytes(range(10))) == "018bd958-a2f8-7001-8203-040506070809"


def test_keys_sort_as_numbers_do() -> None:
    texts = ["x", "01a19100-0000-7000-8000-000000000100", "01a19100-0000-7000-8000-0000000000ff"]
    keys = event_keys(pl.Series("event_id", texts)).keys
    assert np.argsort(keys).tolist() == [2, 1, 0]


def test_golden_request_keys() -> None:
    keys = request_keys(
        pl.Series(["acme-robotics", "acme", "acme-robotics", "ac"]),
        pl.Series(["req-1", "x", "\u20ac", "mex"]),
    )
    assert [key.hex() for key in key_list(keys)] == [
        "e78c4600cd58e0f5c8e45b7c797ab10c",
        "0ed951bccb2ea67e61a31991c2872c6b",
        "be113a67e7a6c5f55907f3035407dc68",
        "ab8bcb3d88265c31be77edaf71d8fd98",
    ]
    assert request_keys(pl.Series([], dtype=pl.String), pl.Series([], dtype=pl.String)).shape == (0,)


USUAL: dict[str, object] = {
    "record": 0,
    "index": 0,
    "event_id": "01a19100-0000-7000-8000-000000000001",
    "source": "gateway/us-west",
    "occurred_at": datetime(2026, 10, 31, 11, 59, 58, 123456, tzinfo=UTC),
    "customer": "acme-robotics",
    "product": "lumen-small",
    "tier_sold": "standard",
    "provider": "own",
    "model_served": "lumen-large",
    "tier_served": "standard",
    "region": "us-west",
    "pool": "block-a",
    "ran_on": "pool",
    "counts_for": "cost",
    "context_breakpoint": 128_000,
    "request_id": "req-1",
    "attempt": 2,
    "nonbillable_reason": "retry",
    "project": "arm",
    "seat": None,
    "usage_source": "provider",
    "duration_ms": 1_500,
    **{name: number for number, name in enumerate(FIRST_METERS, start=1)},
    **dict.fromkeys(FURTHER_METERS, 0),
}


def events(*rows: dict[str, object]) -> pl.DataFrame:
    made = [USUAL | {"index": index} | row for index, row in enumerate(rows)]
    return EVENTS.conform(pl.DataFrame(made, schema=dict(EVENTS.columns)))


def test_golden_series_digests() -> None:
    digests = series_digests(events({}, {"pool": None}, {"context_breakpoint": 0}, {}))
    assert [digest.hex() for digest in digests] == [
        "812684ec12e665ada35a2b0ce8544021",
        "54c9056a2ce4d63cab4a9e8e9eb8869e",
        "a59c2d3f8b375df7f016b08e3c216149",
        "812684ec12e665ada35a2b0ce8544021",
    ]


def test_golden_content_digests() -> None:
    assert DIGEST_VERSION == 1
    digests = content_digests(events({}, {"seat": "seat-007", "duration_ms": None}, {"attempt": 1}))
    assert digests.to_list() == [1188731598643450830, -4641818652900717287, -5725795496029950552]
    assert digests.dtype == pl.Int64
    assert content_digests(events()).to_list() == []


def test_further_meters_are_in_a_version_of_their_own() -> None:
    made = events({}, {"tool_calls": 1}, {meter: at for at, meter in enumerate(FURTHER_METERS, 8)}, {})
    assert digest_versions(made).tolist() == [1, 2, 2, 1]
    digests = content_digests(made).to_list()
    assert digests == [1188731598643450830, -5839540832667444587, 4629958780148701495, 1188731598643450830]
    row = made.row(1, named=True)
    texts = [
        row[name]
        for name in ("event_id", "request_id", "nonbillable_reason", "project", "seat", "usage_source")
    ]
    plain = (
        series_digests(made)[1]
        + struct.pack(">qhi", made["occurred_at"].dt.timestamp("us")[1], row["attempt"], row["duration_ms"])
        + struct.pack(">7i5i", *range(1, 8), 0, 0, 0, 0, 1)
        + b"".join(b"-" if text is None else f"{len(text.encode())}:{text}".encode() for text in texts)
    )
    assert xxhash.xxh3_64_intdigest(plain, 2) == digests[1] + 2**64


CHANGES: dict[str, object] = {
    "event_id": "other",
    "occurred_at": datetime(2026, 10, 31, 11, 59, 58, 123457, tzinfo=UTC),
    "context_breakpoint": 0,
    "attempt": 1,
    "duration_ms": None,
    "pool": None,
    "nonbillable_reason": None,
    "project": None,
    "seat": "seat-007",
    "usage_source": "partial",
    **dict.fromkeys(METERS, 99),
}
TEXTS = [name for name in DIMENSIONS if name not in CHANGES] + ["request_id"]


@pytest.mark.parametrize("field", [*CHANGES, *TEXTS])
def test_a_change_of_any_field_changes_the_digest(field: str) -> None:
    one, other = content_digests(events({}, {field: CHANGES.get(field, "other")}))
    assert one != other


@pytest.mark.parametrize("change", [{"source": "elsewhere"}, {"record": 5}])
def test_where_it_came_from_is_not_content(change: dict[str, object]) -> None:
    assert content_digests(events(change)).to_list() == content_digests(events({})).to_list()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"project": "ab", "seat": "c"}, {"project": "a", "seat": "bc"}),
        ({"project": None, "seat": "x"}, {"project": "x", "seat": None}),
        ({"project": "1:x"}, {"project": "x"}),
        ({"duration_ms": None}, {"duration_ms": 0}),
        ({"product": "ab", "tier_sold": "c"}, {"product": "a", "tier_sold": "bc"}),
    ],
)
def test_neighbours_do_not_run_into_each_other(one: dict[str, object], other: dict[str, object]) -> None:
    first, second = content_digests(events(one, other))
    assert first != second


@given(st.lists(st.sampled_from([{}, *({name: value} for name, value in CHANGES.items())]), max_size=8))
def test_a_digest_depends_on_its_row_alone(rows: list[dict[str, object]]) -> None:
    together = content_digests(events(*rows)).to_list()
    assert together == [content_digests(events(row))[0] for row in rows]
