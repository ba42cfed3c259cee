"""Voids, refusals and heartbeats on the wire: every field, every way to be wrong, and digests that may never change."""

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given

from metering.events import Decoded, notices
from metering.events.notices import CONTENT, notice_digests
from tests.test_events import (
    _ABSENT,
    DOCUMENT,
    GOOD,
    accounted,
    changed,
    decoded,
    json_values,
    numbered,
    rejected,
    st,
    to_bytes,
)

VOID: dict[str, Any] = {
    "specversion": "1.0",
    "id": "01a19100-0000-7000-8000-0000000000a1",
    "source": "desk",
    "type": "inference.void.v1",
    "subject": "acme-robotics",
    "time": "2026-10-31T11:59:58Z",
    "data": {"source": "gateway/us-west", "id": "order-7", "side": "both", "reason": "double"},
}
REFUSED: dict[str, Any] = {
    "specversion": "1.0",
    "id": "01a19100-0000-7000-8000-0000000000a2",
    "source": "gateway/us-west",
    "type": "inference.refused.v1",
    "subject": "acme-robotics",
    "time": "2026-10-31T11:59:58Z",
    "data": {
        "request_id": "req-1",
        "attempt": 2,
        "reason": "pool_full",
        "product": "lumen",
        "tier_sold": "standard",
        "provider": "own",
        "model": "lumen-large",
        "region": "us-west",
        "capacity_pool": "block-a",
        "project": "arm",
        "seat": "seat-1",
        "estimated_input_tokens": 4_000,
        "estimated_output_tokens": 0,
    },
}
LEAST_REFUSED = {"request_id": "r", "reason": "customer_limit", "model": "m", "tier_sold": "t"}
HEARTBEAT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "01a19100-0000-7000-8000-0000000000a3",
    "source": "gateway/us-west",
    "type": "inference.heartbeat.v1",
    "time": "2026-10-31T11:59:58Z",
    "data": {"sequence": 17, "complete_until": "2026-10-31T11:59:55.5+00:00"},
}
ALL = (VOID, REFUSED, HEARTBEAT)


def one(event: dict[str, Any]) -> dict[str, Any]:
    """The only notice of a record, without what its kind does not have."""
    result = decoded(to_bytes(event))
    assert result.rejects.is_empty(), result.rejects.rows()
    (row,) = result.notices.rows(named=True)
    kept = {"record", "index", "event_id", "source", "occurred_at", "kind", *CONTENT[row["kind"]]}
    assert all(value is None for name, value in row.items() if name not in kept)
    return {name: row[name] for name in ("kind", *CONTENT[row["kind"]])}


def test_every_field_arrives() -> None:
    data = {name: value for name, value in REFUSED["data"].items() if name != "capacity_pool"}
    assert one(VOID) == {
        "kind": "void", "target_source": "gateway/us-west", "target_id": "order-7", "side": "both", "reason": "double",
    }  # fmt: skip
    assert one(REFUSED) == {"kind": "refused", "customer": "acme-robotics", "pool": "block-a", **data}
    until = datetime(2026, 10, 31, 11, 59, 55, 500_000, tzinfo=UTC)
    assert one(HEARTBEAT) == {"kind": "heartbeat", "sequence": 17, "complete_until": until}


def test_defaults() -> None:
    void = one(changed(VOID, subject=_ABSENT, data__side=_ABSENT, data__reason=None))
    assert (void["side"], void["reason"]) == ("charge", None)
    refused = one(changed(REFUSED, data=LEAST_REFUSED))
    assert {name: value for name, value in refused.items() if value is not None} == {
        "kind": "refused", "customer": "acme-robotics", "attempt": 1, "product": "m", "region": "global", **LEAST_REFUSED,
    }  # fmt: skip
    # who the customer was stands in the event itself: whatever a void or heartbeat says is ignored
    assert one(changed(HEARTBEAT, subject=["?"]))["sequence"] == 17


def test_they_travel_with_usage_in_one_record() -> None:
    events = [numbered(1), VOID, numbered(2), {"oops": 1}, REFUSED, HEARTBEAT, changed(VOID, id="", note=1)]
    for value in (to_bytes(events), b"\n".join(map(to_bytes, events))):
        result = decoded(value)
        assert result.events["index"].to_list() == [0, 2]
        assert result.notices.select("index", "kind").rows() == [
            (1, "void"), (4, "refused"), (5, "heartbeat"),
        ]  # fmt: skip
        assert rejected(result) == [(0, 3, "missing_field", "specversion"), (0, 6, "id_invalid", "id")]
        assert json.loads(result.rejects["payload"][1])["note"] == 1


def test_unknown_fields_are_dropped_and_counted() -> None:
    result = decoded(
        to_bytes([changed(VOID, prompt="x", data__text="y"), changed(HEARTBEAT, data__load=0.5)])
    )
    assert result.notices.height == 2
    assert result.unknown_fields == {"desk": 2, "gateway/us-west": 1}


WRONG: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    *((event, {"id": "x" * 201}, "id_invalid", "id") for event in ALL),
    *((event, {"source": ""}, "source_invalid", "source") for event in ALL),
    *((event, {"source": "adjustments"}, "source_invalid", "source") for event in ALL),
    *((event, {"time": "soon"}, "time_invalid", "time") for event in ALL),
    *((event, {"time": "2026-10-31T12:05:01Z"}, "time_from_future", "time") for event in ALL),
    *((event, {"time": "2001-01-01T00:00:00Z"}, "too_old", "time") for event in ALL),
    *((event, {"id": "ffffffff-ffff-7000-8000-000000000001"}, "id_from_future", "id") for event in ALL),
    *((event, {"specversion": "2.0"}, "spec_version_unsupported", "specversion") for event in ALL),
    *((event, {"type": event["type"] + "1"}, "type_not_supported", "type") for event in ALL),
    *((event, {"data": []}, "wrong_type", "data") for event in ALL),
    (VOID, {"data__source": _ABSENT}, "missing_field", "data.source"),
    (VOID, {"data__id": None}, "missing_field", "data.id"),
    (VOID, {"data__id": ""}, "text_invalid", "data.id"),
    (VOID, {"data__source": "s" * 201}, "text_invalid", "data.source"),
    (VOID, {"data__side": "cost"}, "value_unknown", "data.side"),
    (VOID, {"data__reason": "a\0b"}, "text_invalid", "data.reason"),
    (VOID, {"data__reason": 7}, "wrong_type", "data.reason"),
    (REFUSED, {"subject": _ABSENT}, "missing_field", "subject"),
    (REFUSED, {"subject": ""}, "text_invalid", "subject"),
    (REFUSED, {"data__request_id": _ABSENT}, "missing_field", "data.request_id"),
    (REFUSED, {"data__attempt": 0}, "quantity_out_of_range", "data.attempt"),
    (REFUSED, {"data__reason": "mood"}, "value_unknown", "data.reason"),
    (REFUSED, {"data__model": _ABSENT}, "missing_field", "data.model"),
    (REFUSED, {"data__tier_sold": _ABSENT}, "missing_field", "data.tier_sold"),
    (REFUSED, {"data__product": ""}, "text_invalid", "data.product"),
    (REFUSED, {"data__capacity_pool": None}, "pool_missing", "data.capacity_pool"),
    (REFUSED, {"data__seat": "\0"}, "text_invalid", "data.seat"),
    (REFUSED, {"data__estimated_input_tokens": -1}, "quantity_out_of_range", "data.estimated_input_tokens"),
    (REFUSED, {"data__estimated_output_tokens": 2**31}, "quantity_out_of_range", "data.estimated_output_tokens"),
    (REFUSED, {"data__estimated_output_tokens": 1.0}, "wrong_type", "data.estimated_output_tokens"),
    (HEARTBEAT, {"data__sequence": 0}, "quantity_out_of_range", "data.sequence"),
    (HEARTBEAT, {"data__sequence": 2**63}, "quantity_out_of_range", "data.sequence"),
    (HEARTBEAT, {"data__sequence": "1"}, "wrong_type", "data.sequence"),
    (HEARTBEAT, {"data__complete_until": _ABSENT}, "missing_field", "data.complete_until"),
    (HEARTBEAT, {"data__complete_until": ""}, "time_invalid", "data.complete_until"),
    (HEARTBEAT, {"data__complete_until": "2026-10-31T12:00:00"}, "time_invalid", "data.complete_until"),
    (HEARTBEAT, {"data__complete_until": "0001-01-01T00:00:00+00:01"}, "time_invalid", "data.complete_until"),
    (HEARTBEAT, {"data__complete_until": "2099-01-01T00:00:00Z"}, "time_from_future", "data.complete_until"),
]  # fmt: skip


@pytest.mark.parametrize(("event", "changes", "code", "field"), WRONG, ids=lambda value: str(value)[:60])
def test_one_wrong_notice_is_one_reject_and_its_neighbours_stay(
    event: dict[str, Any], changes: dict[str, Any], code: str, field: str
) -> None:
    wrong = changed(event, **changes)
    result = decoded(to_bytes(wrong), to_bytes([numbered(2), wrong, changed(HEARTBEAT, id="h")]))
    assert rejected(result) == [(0, 0, code, field), (1, 1, code, field)]
    assert result.events.select("record", "index").rows() == [(1, 0)]
    assert result.notices.select("record", "index").rows() == [(1, 2)]
    assert json.loads(result.rejects["payload"][0]) == wrong


def test_a_heartbeat_may_look_as_far_ahead_as_an_event() -> None:
    edge = changed(HEARTBEAT, data__complete_until="2026-10-31T12:05:00Z")
    assert decoded(to_bytes(edge)).notices.height == 1


@given(
    st.sampled_from(ALL),
    st.dictionaries(
        st.sampled_from([*VOID, *(f"data__{name}" for event in ALL for name in event["data"])]),
        json_values,
        max_size=4,
    ),
)
def test_the_decoder_never_raises_on_mutated_notices(event: dict[str, Any], changes: dict[str, Any]) -> None:
    outer = dict(sorted(changes.items(), key=lambda change: -change[0].count("__")))
    wrong = changed(event, **outer)
    result = decoded(to_bytes(wrong), to_bytes([numbered(2), wrong, HEARTBEAT]))
    assert accounted(result, 0, 1)
    assert accounted(result, 1, 3)


# ---- identity of the content -----------------------------------------------------------------------------

#: These may never change: resends in the field would become conflicts, and `verify` would find differences.
GOLDEN = [
    (VOID, 2_078_504_141_280_867_168),
    (changed(VOID, data={"source": "s", "id": "x"}), -9_030_045_356_618_334_637),
    (REFUSED, 3_843_828_052_095_396_714),
    (changed(REFUSED, data=LEAST_REFUSED), 5_291_214_050_503_197_208),
    (HEARTBEAT, -4_386_489_830_664_243_602),
]  # fmt: skip


def digests(*events: dict[str, Any]) -> list[int]:
    result: Decoded = decoded(to_bytes(list(events)))
    assert result.rejects.is_empty(), result.rejects.rows()
    return notice_digests(result.notices)


def test_golden_digests() -> None:
    assert digests(*(event for event, _ in GOLDEN)) == [digest for _, digest in GOLDEN]


OTHER_CONTENT: dict[str, dict[str, list[Any]]] = {
    "inference.void.v1": {"source": ["other"], "id": ["other"], "side": ["charge"], "reason": [None, "other"]},
    "inference.refused.v1": {
        **{name: ["other"] for name in REFUSED["data"] if name not in ("attempt", "reason")},
        **{name: [1, None] for name in ("estimated_input_tokens", "estimated_output_tokens")},
        "attempt": [1], "reason": ["customer_limit"], "project": [None, "seat-1"], "seat": [None, "arm"],
    },
    "inference.heartbeat.v1": {"sequence": [18], "complete_until": ["2026-10-31T11:59:55.500001Z"]},
}  # fmt: skip


@pytest.mark.parametrize("event", ALL, ids=lambda event: event["type"])
def test_any_other_content_is_another_digest_and_the_source_is_no_content(event: dict[str, Any]) -> None:
    others = [
        changed(event, **{f"data__{name}": value})
        for name, values in OTHER_CONTENT[event["type"]].items()
        for value in values
    ]
    assert set(OTHER_CONTENT[event["type"]]) == set(event["data"])
    others += [changed(event, id="other"), changed(event, time="2026-10-31T11:59:59Z")]
    found = digests(event, *others)
    assert len(set(found)) == len(found)
    assert (
        digests(changed(event, source="elsewhere"), changed(event, datacontenttype="a/b")) == [found[0]] * 2
    )


# ---- the document ----------------------------------------------------------------------------------------


def test_the_document_has_every_field_and_examples_that_are_read() -> None:
    text = DOCUMENT.read_text()
    section = text.split("## Voids, refusals, heartbeats")[1].split("\n## ")[0]
    for event, fence, kind in zip(
        ALL, ("void", "refusal", "heartbeat"), ("void", "refused", "heartbeat"), strict=True
    ):
        for name in event["data"]:
            assert f"`{name}`" in section, name
        (example,) = re.findall(rf"```json {fence}\n(.*?)```", section, re.DOTALL)
        result = decoded(example.encode())
        assert result.notices["kind"].to_list() == [kind], result.rejects.rows()
        assert result.unknown_fields == {}
    assert all(f"`{name}`" in text for name in notices.TYPES)
    assert GOOD["type"] == notices.TYPES[0]
