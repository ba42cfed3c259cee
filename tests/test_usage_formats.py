"""Six providers' usage objects, as tables: what each says and the meters that it lands in, or what contradicts."""
# ruff: noqa: E501

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.core.usage import meter
from metering.events import Decoded
from metering.events.providers import USAGE_FORMATS
from metering.meters import INPUT_METERS, METERS, OUTPUT_METERS
from tests.test_events import DOCUMENT, LEAST, changed, decoded, rejected, to_bytes

#: Usage, then what it lands in; meters that are not named are 0.
SHORT = {
    "uncached": "uncached_input_tokens",
    "read": "cache_read_tokens",
    "w5m": "cache_write_5m_tokens",
    "w1h": "cache_write_1h_tokens",
    "output": "output_tokens",
    "reasoning": "reasoning_tokens",
    "audio_in": "audio_input_tokens",
    "audio_out": "audio_output_tokens",
    "image_in": "image_input_tokens",
    "image_out": "image_output_tokens",
    "tools": "tool_calls",
}
LANDS = {
    "anthropic_messages": """
        {"input_tokens": 10, "output_tokens": 5} -> uncached 10, output 5
        {"input_tokens": 0, "output_tokens": 0} ->
        {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 70} -> uncached 10, read 70, output 5
        {"input_tokens": 0, "output_tokens": 5, "cache_read_input_tokens": 70} -> read 70, output 5
        {"input_tokens": 10, "output_tokens": 5, "cache_creation_input_tokens": 30} -> uncached 10, w5m 30, output 5
        {"input_tokens": 1, "output_tokens": 2, "cache_creation_input_tokens": 30, "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20}} -> uncached 1, w5m 10, w1h 20, output 2
        {"input_tokens": 1, "output_tokens": 2, "cache_creation": {"ephemeral_1h_input_tokens": 20}} -> uncached 1, w1h 20, output 2
        {"input_tokens": 1, "output_tokens": 2, "cache_creation_input_tokens": 30, "cache_creation": {"ephemeral_5m_input_tokens": null}} -> uncached 1, w5m 30, output 2
        {"input_tokens": 1, "output_tokens": 2, "cache_creation_input_tokens": 0, "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}} -> uncached 1, output 2
        {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": null, "cache_creation": null, "server_tool_use": null} -> uncached 1, output 2
        {"input_tokens": 1, "output_tokens": 2, "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 9}} -> uncached 1, output 2, tools 3
        {"input_tokens": 45000, "output_tokens": 1234, "iterations": [{"type": "compaction", "input_tokens": 180000, "output_tokens": 3500}, {"type": "message", "input_tokens": 23000, "output_tokens": 1000}, {"type": "message", "input_tokens": 22000, "output_tokens": 234}]} -> uncached 225000, output 4734
        {"input_tokens": 0, "output_tokens": 0, "iterations": [{"type": "compaction", "input_tokens": 8, "output_tokens": 4, "cache_read_input_tokens": 70, "cache_creation_input_tokens": 30, "cache_creation": {"ephemeral_1h_input_tokens": 30}}]} -> uncached 8, read 70, w1h 30, output 4
        {"input_tokens": 1, "output_tokens": 2, "iterations": []} -> uncached 1, output 2
        {"input_tokens": 1, "output_tokens": 2, "iterations": [{"type": "message", "input_tokens": 9, "output_tokens": 0}, {"type": "fallback_message", "model": "m", "input_tokens": 1, "output_tokens": 2}]} -> uncached 1, output 2
    """,
    "openai_chat": """
        {"prompt_tokens": 10, "completion_tokens": 5} -> uncached 10, output 5
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0} ->
        {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150, "prompt_tokens_details": {"cached_tokens": 30}, "completion_tokens_details": {"reasoning_tokens": 20}} -> uncached 70, read 30, output 30, reasoning 20
        {"prompt_tokens": 30, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 30}, "completion_tokens_details": {"reasoning_tokens": 20}} -> read 30, reasoning 20
        {"prompt_tokens": 30, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": null}} -> uncached 30, output 20
        {"prompt_tokens": 30, "completion_tokens": 20, "total_tokens": null, "prompt_tokens_details": null, "completion_tokens_details": null} -> uncached 30, output 20
        {"prompt_tokens": 30, "completion_tokens": 20, "completion_tokens_details": {"accepted_prediction_tokens": 8, "rejected_prediction_tokens": 7}} -> uncached 30, output 20
        {"prompt_tokens": 100, "completion_tokens": 50, "prompt_tokens_details": {"audio_tokens": 60, "cached_tokens": 10}, "completion_tokens_details": {"audio_tokens": 40, "reasoning_tokens": 10}} -> uncached 30, read 10, audio_in 60, audio_out 40, reasoning 10
        {"prompt_tokens": 100, "completion_tokens": 0, "prompt_tokens_details": {"audio_tokens": 60, "cached_tokens": 80}} -> read 80, audio_in 20
        {"prompt_tokens": 100, "completion_tokens": 0, "prompt_tokens_details": {"cache_write_tokens": 40, "image_tokens": 60}} -> w5m 40, image_in 60
    """,
    "openai_responses": """
        {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15} -> uncached 10, output 5
        {"input_tokens": 0, "output_tokens": 0} ->
        {"input_tokens": 100, "input_tokens_details": {"cached_tokens": 30}, "output_tokens": 50, "output_tokens_details": {"reasoning_tokens": 20}, "total_tokens": 150} -> uncached 70, read 30, output 30, reasoning 20
        {"input_tokens": 30, "input_tokens_details": {"cached_tokens": 30}, "output_tokens": 20, "output_tokens_details": {"reasoning_tokens": 20}} -> read 30, reasoning 20
        {"input_tokens": 30, "input_tokens_details": {"cached_tokens": null}, "output_tokens": 20, "output_tokens_details": null} -> uncached 30, output 20
        {"input_tokens": 30, "input_tokens_details": {"text_tokens": 10, "image_tokens": 20}, "output_tokens": 20, "output_tokens_details": {"image_tokens": 20}} -> uncached 10, image_in 20, image_out 20
        {"total_tokens": 230, "input_tokens": 130, "output_tokens": 100, "input_token_details": {"text_tokens": 90, "audio_tokens": 40, "cached_tokens": 70, "cached_tokens_details": {"text_tokens": 45, "audio_tokens": 25}}, "output_token_details": {"text_tokens": 20, "audio_tokens": 80}} -> uncached 45, audio_in 15, read 70, output 20, audio_out 80
        {"input_tokens": 130, "output_tokens": 0, "input_tokens_details": {"audio_tokens": 40, "image_tokens": 30, "cached_tokens": 70, "cached_tokens_details": {"text_tokens": 60, "audio_tokens": null}}} -> audio_in 40, image_in 20, read 70
    """,
    "gemini": """
        {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15} -> uncached 10, output 5
        {"promptTokenCount": 10, "totalTokenCount": 10} -> uncached 10
        {"promptTokenCount": 0, "candidatesTokenCount": 0, "totalTokenCount": 0} ->
        {"promptTokenCount": 100, "cachedContentTokenCount": 30, "candidatesTokenCount": 50, "thoughtsTokenCount": 20, "totalTokenCount": 170} -> uncached 70, read 30, output 50, reasoning 20
        {"promptTokenCount": 30, "cachedContentTokenCount": 30, "candidatesTokenCount": null, "thoughtsTokenCount": 20} -> read 30, reasoning 20
        {"promptTokenCount": 500, "candidatesTokenCount": 120, "toolUsePromptTokenCount": 300, "thoughtsTokenCount": 10, "totalTokenCount": 930} -> uncached 800, output 120, reasoning 10
        {"promptTokenCount": 100, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 10}, {"modality": "AUDIO", "tokenCount": 50}, {"modality": "IMAGE", "tokenCount": 30}, {"modality": "VIDEO", "tokenCount": 10}], "candidatesTokenCount": 9, "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 7}]} -> uncached 10, audio_in 50, image_in 40, output 2, image_out 7
        {"promptTokenCount": 100, "cachedContentTokenCount": 60, "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 50}, {"modality": "DOCUMENT", "tokenCount": 50}], "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 50}]} -> uncached 40, read 60
        {"promptTokenCount": 100, "cachedContentTokenCount": 60, "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 50}, {"modality": "TEXT"}]} -> audio_in 40, read 60
        {"promptTokenCount": 1, "toolUsePromptTokenCount": 9, "toolUsePromptTokensDetails": [{"modality": "IMAGE", "tokenCount": 4}], "candidatesTokenCount": 3, "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 3}]} -> uncached 6, image_in 4, audio_out 3
    """,
    "bedrock_converse": """
        {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15} -> uncached 10, output 5
        {"inputTokens": 0, "outputTokens": 0} ->
        {"inputTokens": 10, "outputTokens": 5, "totalTokens": 115, "cacheReadInputTokens": 70, "cacheWriteInputTokens": 30} -> uncached 10, read 70, w5m 30, output 5
        {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15, "cacheReadInputTokens": 70, "cacheWriteInputTokens": 30} -> uncached 10, read 70, w5m 30, output 5
        {"inputTokens": 0, "outputTokens": 5, "cacheReadInputTokens": 70, "cacheWriteInputTokens": null} -> read 70, output 5
        {"inputTokens": 1, "outputTokens": 2, "cacheWriteInputTokens": 30, "cacheDetails": [{"ttl": "1h", "inputTokens": 20}, {"ttl": "5m", "inputTokens": 10}]} -> uncached 1, w5m 10, w1h 20, output 2
        {"inputTokens": 1, "outputTokens": 2, "cacheDetails": [{"ttl": "1h", "inputTokens": 20}]} -> uncached 1, w1h 20, output 2
        {"inputTokens": 1, "outputTokens": 2, "cacheWriteInputTokens": 30, "cacheDetails": []} -> uncached 1, w5m 30, output 2
    """,
    "otel_genai": """
        {"gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 5} -> uncached 10, output 5
        {"gen_ai.usage.input_tokens": 0, "gen_ai.usage.output_tokens": 0, "gen_ai.usage.cache_read.input_tokens": 0} ->
        {"gen_ai.usage.input_tokens": 100, "gen_ai.usage.output_tokens": 50, "gen_ai.usage.cache_read.input_tokens": 30, "gen_ai.usage.cache_write.input_tokens": 20, "gen_ai.usage.reasoning.output_tokens": 20} -> uncached 50, read 30, w5m 20, output 30, reasoning 20
        {"gen_ai.usage.input_tokens": 100, "gen_ai.usage.output_tokens": 50, "gen_ai.usage.cache_creation.input_tokens": 20} -> uncached 80, w5m 20, output 50
        {"gen_ai.usage.input_tokens": 20, "gen_ai.usage.output_tokens": 50, "gen_ai.usage.cache_creation.input_tokens": 20, "gen_ai.usage.cache_write.input_tokens": 20} -> w5m 20, output 50
        {"gen_ai.usage.input_tokens": 30, "gen_ai.usage.output_tokens": 20, "gen_ai.usage.cache_read.input_tokens": 30, "gen_ai.usage.reasoning.output_tokens": 20} -> read 30, reasoning 20
        {"gen_ai.usage.input_tokens": 30, "gen_ai.usage.output_tokens": 20, "gen_ai.usage.cache_read.input_tokens": null} -> uncached 30, output 20
    """,
}
#: Usage, then code, field and what is said of it.
REFUSED = {
    "anthropic_messages": """
        {"output_tokens": 5} -> missing_field data.usage.input_tokens data.usage.input_tokens is missing; it is required
        {"input_tokens": null, "output_tokens": 5} -> missing_field data.usage.input_tokens data.usage.input_tokens is null; it is required
        {"input_tokens": 1, "output_tokens": 2, "cache_creation_input_tokens": 31, "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20}} -> counts_contradict data.usage.cache_creation_input_tokens in data.usage cache_creation_input_tokens (31) is not cache_creation.ephemeral_5m_input_tokens (10) + cache_creation.ephemeral_1h_input_tokens (20)
        {"input_tokens": 1, "output_tokens": 2, "cache_creation_input_tokens": 0, "cache_creation": {"ephemeral_5m_input_tokens": 1}} -> counts_contradict data.usage.cache_creation_input_tokens in data.usage cache_creation_input_tokens (0) is not cache_creation.ephemeral_5m_input_tokens (1) + cache_creation.ephemeral_1h_input_tokens (0)
        {"input_tokens": 1, "output_tokens": 2, "iterations": [{"type": "advisor_message", "model": "m", "input_tokens": 823, "output_tokens": 1612}]} -> value_unknown data.usage.iterations[0].type data.usage.iterations[0].type: Invalid enum value 'advisor_message'; see docs/events.md for its values
        {"input_tokens": 1, "output_tokens": 2, "iterations": [{"type": "compaction", "output_tokens": 4}]} -> missing_field data.usage.iterations[0].input_tokens data.usage.iterations[0].input_tokens is missing; it is required
        {"input_tokens": 1, "output_tokens": 2, "iterations": [{"type": "compaction", "input_tokens": 3, "output_tokens": 4, "cache_creation_input_tokens": 7, "cache_creation": {"ephemeral_1h_input_tokens": 6}}]} -> counts_contradict data.usage.iterations[0].cache_creation_input_tokens in data.usage iterations[0].cache_creation_input_tokens (7) is not iterations[0].cache_creation.ephemeral_5m_input_tokens (0) + iterations[0].cache_creation.ephemeral_1h_input_tokens (6)
        {"input_tokens": 1.0, "output_tokens": 2} -> wrong_type data.usage.input_tokens data.usage.input_tokens: Expected `int`, got `float`; it is 1.0
    """,
    "openai_chat": """
        {"prompt_tokens": 5} -> missing_field data.usage.completion_tokens data.usage.completion_tokens is missing; it is required
        {"prompt_tokens": 29, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 30}} -> counts_contradict data.usage.prompt_tokens in data.usage prompt_tokens (29) is less than prompt_tokens_details.cached_tokens (30) inside it
        {"prompt_tokens": 0, "completion_tokens": 19, "completion_tokens_details": {"reasoning_tokens": 20}} -> counts_contradict data.usage.completion_tokens in data.usage completion_tokens (19) is less than completion_tokens_details.reasoning_tokens (20) inside it
        {"prompt_tokens": 5, "completion_tokens": 0, "prompt_tokens_details": {"audio_tokens": 6}} -> counts_contradict data.usage.prompt_tokens in data.usage prompt_tokens (5) is less than prompt_tokens_details.audio_tokens (6) inside it
        {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 170, "completion_tokens_details": {"reasoning_tokens": 20}} -> counts_contradict data.usage.total_tokens in data.usage total_tokens (170) is not prompt_tokens (100) + completion_tokens (50)
        {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": -1}} -> quantity_out_of_range data.usage.prompt_tokens_details.cached_tokens data.usage.prompt_tokens_details.cached_tokens: Expected `int` >= 0; it is -1
    """,
    "openai_responses": """
        {"input_tokens": 29, "output_tokens": 0, "input_tokens_details": {"cached_tokens": 30}} -> counts_contradict data.usage.input_tokens in data.usage input_tokens (29) is less than input_tokens_details.cached_tokens (30) inside it
        {"input_tokens": 0, "output_tokens": 19, "output_tokens_details": {"reasoning_tokens": 20}} -> counts_contradict data.usage.output_tokens in data.usage output_tokens (19) is less than output_tokens_details.reasoning_tokens (20) inside it
        {"input_tokens": 9, "output_tokens": 0, "input_tokens_details": {"cached_tokens": 3}, "input_token_details": {"cached_tokens": 4}} -> counts_contradict data.usage.input_tokens_details in data.usage input_tokens_details and input_token_details say different things; send one of them
        {"input_tokens": 9, "output_tokens": 0, "input_tokens_details": {"audio_tokens": 3, "cached_tokens": 5, "cached_tokens_details": {"audio_tokens": 4}}} -> counts_contradict data.usage.input_tokens_details.audio_tokens in data.usage input_tokens_details.audio_tokens (3) is less than input_tokens_details.cached_tokens_details.audio_tokens (4) inside it
        {"input_tokens": 9, "output_tokens": 0, "input_tokens_details": {"audio_tokens": 6, "cached_tokens": 3, "cached_tokens_details": {"audio_tokens": 4}}} -> counts_contradict data.usage.input_tokens_details.cached_tokens in data.usage input_tokens_details.cached_tokens (3) is less than input_tokens_details.cached_tokens_details.audio_tokens (4) inside it
        {"input_tokens": 1, "output_tokens": 2, "total_tokens": 0} -> counts_contradict data.usage.total_tokens in data.usage total_tokens (0) is not input_tokens (1) + output_tokens (2)
    """,
    "gemini": """
        {"candidatesTokenCount": 5} -> missing_field data.usage.promptTokenCount data.usage.promptTokenCount is missing; it is required
        {"promptTokenCount": 29, "cachedContentTokenCount": 30} -> counts_contradict data.usage.promptTokenCount in data.usage promptTokenCount (29) is less than cachedContentTokenCount (30) inside it
        {"promptTokenCount": 10, "candidatesTokenCount": 5, "thoughtsTokenCount": 3, "totalTokenCount": 15} -> counts_contradict data.usage.totalTokenCount in data.usage totalTokenCount (15) is not promptTokenCount (10) + candidatesTokenCount (5) + toolUsePromptTokenCount (0) + thoughtsTokenCount (3)
        {"promptTokenCount": 5, "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 6}]} -> counts_contradict data.usage.promptTokenCount in data.usage promptTokenCount (5) is less than promptTokensDetails (6) inside it
        {"promptTokenCount": 50, "cachedContentTokenCount": 9, "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 5}], "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 9}]} -> counts_contradict data.usage.promptTokensDetails in data.usage AUDIO in promptTokensDetails (5) is less than AUDIO in cacheTokensDetails (9) inside it
        {"promptTokenCount": 2147483647, "toolUsePromptTokenCount": 1} -> quantity_out_of_range data.usage counts of data.usage add up to more than 2147483647
    """,
    "bedrock_converse": """
        {"inputTokens": 10, "outputTokens": 5, "totalTokens": 16} -> counts_contradict data.usage.totalTokens in data.usage totalTokens (16) is not inputTokens (10) + outputTokens (5) + cacheReadInputTokens (0) + cacheWriteInputTokens (0)
        {"inputTokens": 1, "outputTokens": 2, "cacheWriteInputTokens": 31, "cacheDetails": [{"ttl": "1h", "inputTokens": 20}]} -> counts_contradict data.usage.cacheWriteInputTokens in data.usage cacheWriteInputTokens (31) is not 5m in cacheDetails (0) + 1h in cacheDetails (20)
        {"inputTokens": 1, "outputTokens": 2, "cacheDetails": [{"ttl": "2h", "inputTokens": 20}]} -> value_unknown data.usage.cacheDetails[0].ttl data.usage.cacheDetails[0].ttl: Invalid enum value '2h'; see docs/events.md for its values
    """,
    "otel_genai": """
        {"gen_ai.usage.output_tokens": 5} -> missing_field data.usage.gen_ai.usage.input_tokens data.usage.gen_ai.usage.input_tokens is missing; it is required
        {"gen_ai.usage.input_tokens": 29, "gen_ai.usage.output_tokens": 5, "gen_ai.usage.cache_read.input_tokens": 20, "gen_ai.usage.cache_creation.input_tokens": 10} -> counts_contradict data.usage.gen_ai.usage.input_tokens in data.usage gen_ai.usage.input_tokens (29) is less than gen_ai.usage.cache_read.input_tokens (20) + gen_ai.usage.cache_creation.input_tokens (10) inside it
        {"gen_ai.usage.input_tokens": 29, "gen_ai.usage.output_tokens": 5, "gen_ai.usage.reasoning.output_tokens": 6} -> counts_contradict data.usage.gen_ai.usage.output_tokens in data.usage gen_ai.usage.output_tokens (5) is less than gen_ai.usage.reasoning.output_tokens (6) inside it
        {"gen_ai.usage.input_tokens": 29, "gen_ai.usage.output_tokens": 5, "gen_ai.usage.cache_write.input_tokens": 2, "gen_ai.usage.cache_creation.input_tokens": 3} -> counts_contradict data.usage.gen_ai.usage.cache_write.input_tokens in data.usage gen_ai.usage.cache_write.input_tokens (2) is not gen_ai.usage.cache_creation.input_tokens (3)
    """,
}


def rows(table: str) -> list[tuple[dict[str, Any], str]]:
    lines = [line.strip().rpartition(" ->") for line in table.strip().splitlines()]
    return [(json.loads(usage), said.strip()) for usage, _, said in lines]


def event(usage_format: object, usage: object, **data: object) -> dict[str, Any]:
    around = {f"data__{name}": value for name, value in data.items()}
    return changed(
        LEAST, data__usage_convention=..., data__usage_format=usage_format, data__usage=usage, **around
    )


def metered(result: Decoded) -> dict[str, int]:
    assert rejected(result) == []
    events, contradictions = meter(result.events)
    assert contradictions.is_empty()
    (row,) = events.select(METERS).rows(named=True)
    return {name: count for name, count in row.items() if count}


@pytest.mark.parametrize("usage_format", USAGE_FORMATS)
def test_every_token_lands_in_one_meter(usage_format: str) -> None:
    for usage, said in rows(LANDS[usage_format]):
        expected = dict(part.rsplit(" ", 1) for part in said.split(", ") if part)
        assert metered(decoded(to_bytes(event(usage_format, usage)))) == {
            SHORT[name]: int(count) for name, count in expected.items()
        }, usage


@pytest.mark.parametrize("usage_format", USAGE_FORMATS)
def test_what_contradicts_is_named_as_the_provider_names_it(usage_format: str) -> None:
    for usage, said in rows(REFUSED[usage_format]):
        result = decoded(to_bytes(event(usage_format, usage)))
        assert result.rejects.select("code", "field", "detail").rows() == [tuple(said.split(" ", 2))], usage
        assert result.events.is_empty()


def test_long_context_is_told_of_the_largest_sampling() -> None:
    sampled = [
        {
            "type": "compaction",
            "input_tokens": 150_000,
            "output_tokens": 3_500,
            "cache_read_input_tokens": 30_000,
        },
        {"type": "message", "input_tokens": 23_000, "output_tokens": 1_000},
    ]
    usage = {"input_tokens": 23_000, "output_tokens": 1_000, "iterations": sampled}
    events, _ = meter(decoded(to_bytes(event("anthropic_messages", usage))).events)
    assert events.select("uncached_input_tokens", "cache_read_tokens", "context_breakpoint").rows() == [
        (173_000, 30_000, 128_000)
    ]


OPENAI = {"prompt_tokens": 9, "completion_tokens": 4}


@pytest.mark.parametrize(
    ("usage_format", "usage", "data", "model", "tier"),
    [
        ("openai_chat", OPENAI, {"model": "gpt-x-2026-08-01", "service_tier": "priority"}, "gpt-x-2026-08-01", "priority"),
        ("gemini", {"promptTokenCount": 1}, {"modelVersion": "gemini-x", "service_tier": "flex"}, "gemini-x", "flex"),
        ("bedrock_converse", {"inputTokens": 1, "outputTokens": 1}, {"model": "b", "serviceTier": {"type": "reserved"}}, "b", "reserved"),
        ("bedrock_converse", {"inputTokens": 1, "outputTokens": 1}, {"model": "b", "serviceTier": "default"}, "b", "default"),
        ("anthropic_messages", {"input_tokens": 1, "output_tokens": 1, "service_tier": "batch"}, {"model": "c", "service_tier": "auto"}, "c", "batch"),
        (
            "otel_genai",
            {"gen_ai.usage.input_tokens": 1, "gen_ai.usage.output_tokens": 1, "gen_ai.response.model": "m1", "openai.response.service_tier": "flex"},
            {},
            "m1",
            "flex",
        ),
        # what the event says itself comes first: it may translate the provider's word
        ("openai_chat", OPENAI, {"model": "gpt-x-2026-08-01", "model_served": "gpt-x", "service_tier": "default", "tier_served": "standard"}, "gpt-x", "standard"),
    ],
)  # fmt: skip
def test_served_tier_and_model_are_the_providers(
    usage_format: str, usage: object, data: dict[str, object], model: str, tier: str
) -> None:
    made = event(usage_format, usage, **{"model_served": None, "tier_served": None, **data})
    (row,) = decoded(to_bytes(made)).events.rows(named=True)
    assert (row["model_served"], row["tier_served"], row["product"], row["tier_sold"]) == (
        model,
        tier,
        model,
        tier,
    )


def test_tier_or_model_that_nobody_says_is_missing() -> None:
    for name in ("model_served", "tier_served"):
        made = event("openai_chat", OPENAI, **{name: None})
        assert rejected(decoded(to_bytes(made))) == [(0, 0, "missing_field", f"data.{name}")]


@pytest.mark.parametrize(
    ("usage_format", "code"), [("claude", "value_unknown"), ("", "value_unknown"), (7, "wrong_type"), ({}, "wrong_type")]
)  # fmt: skip
def test_an_unknown_format_is_refused_by_name(usage_format: object, code: str) -> None:
    result = decoded(to_bytes(event(usage_format, OPENAI)))
    assert rejected(result) == [(0, 0, code, "data.usage_format")]


def test_no_format_is_the_convention_of_old() -> None:
    plain = changed(LEAST, data__usage_format=None)
    assert decoded(to_bytes(plain)).events.equals(decoded(to_bytes(LEAST)).events)


def test_calls_of_tools_that_the_object_leaves_out_are_said_beside_it() -> None:
    assert metered(decoded(to_bytes(event("openai_chat", OPENAI, tool_calls=2))))["tool_calls"] == 2


def test_unknown_fields_are_counted_at_every_depth() -> None:
    usage = {
        "promptTokenCount": 7,
        "trafficType": "ON_DEMAND",
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 7, "x": 1}, {"y": {}, "z": []}],
    }
    result = decoded(to_bytes(event("gemini", usage, model="m", prompt="never kept")))
    assert (result.unknown_fields, metered(result)) == ({"s": 5}, {"uncached_input_tokens": 7})


def test_neighbours_of_every_form_are_read_beside_each_other() -> None:
    """Plain events, providers' ones, escaped names, duplicate keys, in lines and arrays, alone and mixed."""
    one = json.dumps(event("openai_chat", OPENAI))
    escaped = one.replace("usage_format", "usage\\u005fformat")
    twice = one.replace('"usage_format": ', '"usage_format": 3, "usage_format": ')
    late = one.replace('"usage": {', '"usage": 5, "usage": {')
    wrong = json.dumps(event("openai_chat", {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 4}))
    lines = [json.dumps(LEAST), one, escaped, twice, late, wrong, json.dumps(LEAST)]
    for value in ("\n".join(lines), f"[{','.join(lines)}]"):
        result = decoded(value.encode())
        assert rejected(result) == [(0, 5, "counts_contradict", "data.usage.total_tokens")]
        assert result.events["index"].to_list() == [0, 1, 2, 3, 4, 6]
        assert result.events["input_tokens"].to_list() == [1, 9, 9, 9, 9, 1]
    assert decoded(b'{"data": {"usage_format": "gemini"}}').rejects["code"].to_list() == ["missing_field"]
    assert decoded(one.encode()[:-3]).rejects["code"].to_list() == ["not_json"]


def test_the_examples_of_the_document_come_to_what_it_says() -> None:
    (example,) = re.findall(r"```json formats\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    result = decoded(example.encode(), content_type="application/x-ndjson")
    assert (rejected(result), result.unknown_fields) == ([], {})
    events, _ = meter(result.events)
    assert events.select(METERS[:6]).rows() == [
        (10, 70, 10, 20, 5, 0),
        (40, 60, 0, 0, 30, 20),
        (40, 60, 0, 0, 30, 20),
        (60, 60, 0, 0, 50, 20),
        (10, 70, 30, 0, 5, 0),
        (50, 30, 20, 0, 30, 20),
    ]
    assert events["tool_calls"].to_list() == [2, 0, 0, 0, 0, 0]
    assert set(re.findall(r"`(\w+)` \|", DOCUMENT.read_text())) >= set(USAGE_FORMATS)


small = st.one_of(st.none(), st.integers(0, 30))


@given(small, small, small, small, small, small)
def test_totals_are_kept_to_the_token(
    cached: int | None, audio: int | None, image: int | None, reasoned: int | None, spoken: int | None, extra: int | None
) -> None:  # fmt: skip
    """Whatever stands inside, the input meters sum to the prompt and the output meters to the completion."""
    usage = {
        "prompt_tokens": 60 + (extra or 0),
        "completion_tokens": 60,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": audio, "image_tokens": image},
        "completion_tokens_details": {"reasoning_tokens": reasoned, "audio_tokens": spoken},
    }
    found = metered(decoded(to_bytes(event("openai_chat", usage))))
    assert sum(found.get(name, 0) for name in INPUT_METERS) == 60 + (extra or 0)
    assert sum(found.get(name, 0) for name in OUTPUT_METERS) == 60
    assert found.get("cache_read_tokens", 0) == (cached or 0)
