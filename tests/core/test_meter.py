"""The two conventions of reporting, the identity, the contradictions, both sides of every cliff."""

from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.core.usage import meter
from metering.frames.events import REPORTED_EVENTS
from metering.meters import (
    CONTEXT_BREAKPOINTS,
    FURTHER_METERS,
    INPUT_METERS,
    OUTPUT_METERS,
    QUANTITY_MAX,
    context_breakpoint,
)

COUNTS = (
    "input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "total_output_tokens",
    "reported_reasoning_tokens",
    "audio_input_tokens",
    "image_input_tokens",
    "audio_output_tokens",
    "image_output_tokens",
)
TEXT = (
    *("uncached_input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens"),
    *("output_tokens", "reasoning_tokens"),
)


def reported(*rows: dict[str, Any]) -> pl.DataFrame:
    usual: dict[str, Any] = {
        "record": 0,
        "event_id": "e",
        "source": "s",
        "occurred_at": datetime(2026, 10, 31, tzinfo=UTC),
        "customer": "acme",
        "request_id": "r",
        "attempt": 1,
        "product": "p",
        "tier_sold": "standard",
        "provider": "own",
        "model_served": "m",
        "tier_served": "standard",
        "region": "global",
        "pool": None,
        "ran_on": "on_demand",
        "billable": True,
        "nonbillable_reason": None,
        "project": None,
        "seat": None,
        "usage_convention": "inclusive",
        "usage_source": "provider",
        "duration_ms": None,
        "accelerator_ms": 0,
        "tool_calls": 0,
        "context_tokens": None,
        **dict.fromkeys(COUNTS, 0),
    }
    return REPORTED_EVENTS.conform(
        pl.DataFrame(
            [usual | {"index": index} | row for index, row in enumerate(rows)],
            schema=dict(REPORTED_EVENTS.columns),
        )
    )


# The worked rows: what a producer says -> what the meters hold. in, read, w5m, w1h, out, reasoning.
@pytest.mark.parametrize(
    ("convention", "counts", "meters"),
    [
        ("inclusive", (1000, 0, 0, 0, 200, 0), (1000, 0, 0, 0, 200, 0)),
        ("inclusive", (1000, 600, 100, 50, 200, 120), (250, 600, 100, 50, 80, 120)),
        ("inclusive", (700, 600, 100, 0, 120, 120), (0, 600, 100, 0, 0, 120)),
        ("disjoint", (1000, 600, 100, 50, 200, 120), (1000, 600, 100, 50, 200, 120)),
        ("disjoint", (0, 600, 0, 0, 0, 0), (0, 600, 0, 0, 0, 0)),
        ("disjoint", (QUANTITY_MAX,) * 6, (QUANTITY_MAX,) * 6),
    ],
)
def test_every_token_lands_in_one_meter(
    convention: str, counts: tuple[int, ...], meters: tuple[int, ...]
) -> None:
    events, contradictions = meter(
        reported({"usage_convention": convention, **dict(zip(COUNTS, counts, strict=False))})
    )
    assert contradictions.is_empty()
    assert events.select(TEXT).row(0) == meters
    assert events.select(FURTHER_METERS).row(0) == (0, 0, 0, 0, 0)


# in, read, audio in, images in, out, reasoning, audio out, images out -> uncached, visible
@pytest.mark.parametrize(
    ("convention", "counts", "uncached", "visible", "total_input"),
    [
        ("inclusive", (1000, 100, 200, 300, 900, 100, 200, 300), 400, 300, 1000),
        ("inclusive", (600, 100, 200, 300, 600, 100, 200, 300), 0, 0, 600),
        ("disjoint", (1000, 100, 200, 300, 900, 100, 200, 300), 1000, 900, 1600),
    ],
)
def test_audio_and_images_are_taken_out_of_text(
    convention: str, counts: tuple[int, ...], uncached: int, visible: int, total_input: int
) -> None:
    names = (
        *("input_tokens", "cache_read_tokens", "audio_input_tokens", "image_input_tokens"),
        *("total_output_tokens", "reported_reasoning_tokens", "audio_output_tokens", "image_output_tokens"),
    )
    told = {"usage_convention": convention, "tool_calls": 7, **dict(zip(names, counts, strict=True))}
    events, contradictions = meter(reported(told))
    assert contradictions.is_empty()
    (event,) = events.rows(named=True)
    assert (event["uncached_input_tokens"], event["output_tokens"]) == (uncached, visible)
    assert [event[name] for name in FURTHER_METERS] == [200, 200, 300, 300, 7]
    assert sum(event[name] for name in INPUT_METERS) == total_input


@pytest.mark.parametrize(
    ("counts", "field", "detail"),
    [
        (
            {"input_tokens": 99, "cache_read_tokens": 100},
            "data.usage.input_tokens",
            "usage_convention is inclusive, but usage.input_tokens (99) is less than "
            "usage.cache_read_tokens (100) inside it",
        ),
        (
            {"input_tokens": 99, "cache_read_tokens": 60, "cache_write_5m_tokens": 40},
            "data.usage.input_tokens",
            "usage_convention is inclusive, but usage.input_tokens (99) is less than "
            "usage.cache_read_tokens (60) + usage.cache_write_5m_tokens (40) inside it",
        ),
        (
            {"total_output_tokens": 5, "reported_reasoning_tokens": 6},
            "data.usage.output_tokens",
            "usage_convention is inclusive, but usage.output_tokens (5) is less than "
            "usage.reasoning_tokens (6) inside it",
        ),
        (
            {"input_tokens": 9, "audio_input_tokens": 5, "image_input_tokens": 5},
            "data.usage.input_tokens",
            "usage_convention is inclusive, but usage.input_tokens (9) is less than "
            "usage.audio_input_tokens (5) + usage.image_input_tokens (5) inside it",
        ),
    ],
)
def test_a_part_larger_than_its_whole_is_a_contradiction(
    counts: dict[str, int], field: str, detail: str
) -> None:
    events, contradictions = meter(reported({"input_tokens": 1}, counts))
    assert events["index"].to_list() == [0]
    assert contradictions.rows() == [(0, 1, field, detail)]


@pytest.mark.parametrize("edge", CONTEXT_BREAKPOINTS)
@pytest.mark.parametrize("convention", ["inclusive", "disjoint"])
def test_context_breakpoint_is_the_highest_strictly_exceeded(edge: int, convention: str) -> None:
    below = max((lower for lower in CONTEXT_BREAKPOINTS if lower < edge), default=0)
    cached = 1000
    sent = 0 if convention == "inclusive" else cached
    usage = {"usage_convention": convention, "cache_read_tokens": cached}
    events, _ = meter(
        reported(usage | {"input_tokens": edge - sent}, usage | {"input_tokens": edge + 1 - sent})
    )
    assert events["context_breakpoint"].to_list() == [below, edge]
    assert [context_breakpoint(edge), context_breakpoint(edge + 1)] == [below, edge]


def test_what_is_not_billable_counts_for_cost_alone() -> None:
    events, _ = meter(reported({}, {"billable": False, "nonbillable_reason": "retry"}))
    assert events["counts_for"].to_list() == ["charge_and_cost", "cost"]


quantities = st.one_of(st.integers(0, 20), st.integers(0, QUANTITY_MAX))


@given(
    rows=st.lists(st.tuples(st.sampled_from(["inclusive", "disjoint"]), *([quantities] * 10)), max_size=20)
)
def test_the_identity_holds_or_the_event_contradicts_itself(rows: list[tuple[Any, ...]]) -> None:
    frame = reported(
        *({"usage_convention": row[0], **dict(zip(COUNTS, row[1:], strict=True))} for row in rows)
    )
    events, contradictions = meter(frame)
    assert sorted([*events["index"], *contradictions["index"]]) == list(range(len(rows)))
    for event in events.iter_rows(named=True):
        convention, given_in, read, short, long, given_out, reasoning, *further = rows[event["index"]]
        inclusive = convention == "inclusive"
        assert sum(event[name] for name in INPUT_METERS) == given_in + (
            0 if inclusive else read + short + long + sum(further[:2])
        )
        assert sum(event[name] for name in OUTPUT_METERS) == given_out + (
            0 if inclusive else reasoning + sum(further[2:])
        )
        assert event["context_breakpoint"] == context_breakpoint(sum(event[name] for name in INPUT_METERS))
    for index in contradictions["index"]:
        convention, given_in, read, short, long, given_out, reasoning, *further = rows[index]
        assert convention == "inclusive"
        assert given_in < read + short + long + sum(further[:2]) or given_out < reasoning + sum(further[2:])


def test_long_context_follows_the_largest_sampling_and_that_is_a_part_of_the_input() -> None:
    """180k are compacted, 23k answered: no sampling is past 200k, though both together are; 203,001 are not inside."""
    rows = [{"input_tokens": 203_000, "context_tokens": said} for said in (None, 180_000, 203_000, 203_001)]
    events, contradictions = meter(reported(*rows))
    assert events["context_breakpoint"].to_list() == [200_000, 128_000, 200_000]
    assert contradictions.select("index", "field", "detail").rows() == [
        (
            3,
            "data.usage.context_tokens",
            "usage.context_tokens (203001) is more than the input (203000) of which it is a part",
        )
    ]
