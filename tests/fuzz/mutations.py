"""Mutations: real records made wrong, in their bytes and in their structure, by a seeded chance."""

import json
import random
from collections.abc import Sequence
from typing import Any, NamedTuple


class Seed(NamedTuple):
    """A record's value and its content-type header."""

    value: bytes | None
    content_type: str | None


class Token(str):
    """Text that is written into JSON as it stands."""


class Pairs(list[tuple[Any, Any]]):
    """An object whose keys may repeat."""


CONTENT_TYPES = (
    None,
    "application/cloudevents+json",
    "application/cloudevents-batch+json",
    "application/x-ndjson",
    "application/json",
)
ODD_CONTENT_TYPES = (
    "",
    " ",
    ";",
    "text/plain",
    "application/avro",
    'Application/JSON ; charset="UTF-8"',
    "application/json; charset=latin-1",
    "application/json;charset",
    "application/x-ndjson; x=1; charset=utf8",
    "application/cloudevents-batch+json\x00",
    "\ufffd\ud7ff",
    "application/cloudevents+json, application/json",
)
TOKENS = (
    *("null", "true", "false", "NaN", "Infinity", "-Infinity", "-0", "0", "00", "01", "+1", "1.", ".5"),
    *("1.0", "1e3", "1E400", "-1e-400", "1e", "0x10", "1_000", "--1", "-", "'a'", "undefined"),
    *('"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\\u0000"', '"\\u0041"', '"\\x41"', '"\\u12"'),
    *('"\t"', '"\\/"', '"\x7f"', '""', '" "', "[]", "{}", "[[]]", "[,]", "{,}", '{"a"}', '{"a":}', "{1:2}"),
    *("9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616"),
    *("2147483647", "2147483648", "-1", "32767", "32768", "1" * 31, "1" * 400, "9" * 5_000, "1." + "3" * 400),
    *("/*x*/1", "1//", "1 2", "\u2028", "\ufeff1", '"\u2028"', '"\ufeff"'),
)
BYTES = (
    *(
        b"\x00",
        b"\xff",
        b"\xc3",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xef\xbb\xbf",
        b"\xe2\x82",
    ),
    *(b"\n", b"\r", b"\r\n", b"\x0b", b"\x0c", b"\x85", b"\x1e", b"\t", b" ", b"\\", b"\\u", b'"', b"\\\\"),
    *(b"[", b"]", b"{", b"}", b",", b":", b"}{", b"}\n{", b"],[", b"/", b"*", b"-", b"e", b"."),
)
TEXTS = (
    *(
        "",
        " ",
        "\0",
        "a\0b",
        "x" * 200,
        "x" * 201,
        "é" * 100,
        "é" * 101,
        "\U0001f600" * 50,
        "\U0001f600" * 51,
    ),
    *(
        "\u202e",
        "\u2028",
        "a\nb",
        '"',
        "\\",
        "inference.usage.v1",
        "inference.void.v1",
        "inference.refused.v1",
    ),
    *("inference.heartbeat.v1", "1.0", "1", "pool", "overflow", "on_demand", "POOL", "inclusive", "disjoint"),
    *("provider", "estimated", "partial", "charge", "both", "customer_limit", "pool_full", "retry", "refund"),
    *(
        "anthropic_messages",
        "openai_chat",
        "gemini",
        "bedrock_converse",
        "otel_genai",
        "AUDIO",
        "IMAGE",
        "5m",
    ),
    *("acme", "gateway-1", "null", "true", "\ud7ff\ue000", "\ufffe", "\x7f\x80"),
)
IDS = (
    "01a191d4-ba00-7281-9973-d13836362a87",  # 2026-10-31
    "01A191D4-BA00-7281-9973-D13836362A87",
    "01a191d4-ba00-4281-9973-d13836362a87",
    "01a191d4-ba00-7281-c973-d13836362a87",
    "01a191d4ba0072819973d13836362a87",
    "00000000-0000-7000-8000-000000000000",
    "ffffffff-ffff-7fff-bfff-ffffffffffff",
    "01KD8X9EG0000000000000000A",
    "7ZZZZZZZZZZZZZZZZZZZZZZZZZ",
    "8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
    "01kd8x9eg0000000000000000a",
    "00000000000000000000000000",
    "0000000000000000000000000U",
    "order-7",
)
TIMES = (
    *("2026-10-31T11:59:58Z", "2026-10-31t11:59:58z", "2026-10-31 11:59:58Z", "2026-10-31T11:59:58"),
    *(
        "2026-10-31T11:59:58.123456789Z",
        "2026-10-31T11:59:58.Z",
        "2026-10-31T11:59:58,5Z",
        "2026-10-31T11:59:60Z",
    ),
    *("2026-10-31T24:00:00Z", "2026-02-29T00:00:00Z", "2026-10-32T00:00:00Z", "2026-13-01T00:00:00Z"),
    *(
        "2026-10-31T11:59:58+02:00",
        "2026-10-31T11:59:58-00:00",
        "2026-10-31T11:59:58+24:00",
        "2026-10-31T11:59:58+1:00",
    ),
    *(
        "2026-10-31T12:05:00Z",
        "2026-10-31T12:05:00.000001Z",
        "2026-09-26T00:00:00Z",
        "2026-09-25T23:59:59.999999Z",
    ),
    *(
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59.999999-23:59",
        "2099-01-01T00:00:00Z",
    ),
    *(
        "2026-10-31T11:59:58." + "1" * 43 + "Z",
        "2026-10-31T11:59:58." + "1" * 44 + "Z",
        "\uff12\uff10\uff12\uff16-10-31T11:59:58Z",
    ),
    *(
        "2026-10-31T11:59:58+0200",
        "2026-10-31T11:59:58 Z",
        " 2026-10-31T11:59:58Z",
        "+2026-10-31T11:59:58Z",
        "1793447998",
    ),
)
NAMES = (
    *("id", "source", "type", "time", "subject", "specversion", "data", "datacontenttype", "dataschema"),
    *("request_id", "attempt", "provider", "product", "tier_sold", "model_served", "tier_served", "region"),
    *(
        "capacity_pool",
        "ran_on",
        "billable",
        "nonbillable_reason",
        "project",
        "seat",
        "usage_convention",
        "usage",
    ),
    *("usage_source", "duration_ms", "accelerator_ms", "input_tokens", "output_tokens", "cache_read_tokens"),
    *("cache_write_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "reasoning_tokens", "prompt"),
    *(
        "side",
        "reason",
        "model",
        "estimated_input_tokens",
        "estimated_output_tokens",
        "sequence",
        "complete_until",
    ),
    *("usage_format", "service_tier", "serviceTier", "modelVersion", "tool_calls", "audio_input_tokens"),
    *(
        "cache_creation",
        "prompt_tokens_details",
        "completion_tokens_details",
        "promptTokensDetails",
        "total_tokens",
    ),
    *("iterations", "input_token_details", "cached_tokens_details", "context_tokens"),
    *("totalTokenCount", "thoughtsTokenCount", "cacheDetails", "gen_ai.usage.cache_read.input_tokens"),
    *("", "ID", "id ", "\0", "\u00e9", "__proto__"),
)


def mutated(chance: random.Random, seeds: Sequence[Seed]) -> Seed:
    """A record made of the seeds: one to a few mutations, of structure, bytes and header."""
    value, content_type = chance.choice(seeds)
    value = value or b""
    if chance.random() < 0.65:
        value = _structured(chance, value, seeds)
    if chance.random() < 0.45:
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            value = _bytewise(chance, value, seeds)
    if chance.random() < 0.15:
        content_type = chance.choice(CONTENT_TYPES if chance.random() < 0.7 else ODD_CONTENT_TYPES)
    if chance.random() < 0.002:
        return Seed(None, content_type)
    return Seed(value[:200_000], content_type)


def _structured(chance: random.Random, value: bytes, seeds: Sequence[Seed]) -> bytes:
    try:
        events = [_to_pairs(json.loads(value))]
        alone = not isinstance(events[0], list) or isinstance(events[0], Pairs)
        events = events if alone else events[0]
    except (ValueError, RecursionError):
        try:
            events = [_to_pairs(json.loads(line)) for line in value.split(b"\n") if line.strip()]
        except (ValueError, RecursionError):
            return value
        alone = False
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        if events:
            place = chance.randrange(len(events))
            events[place] = _edited(chance, events[place])
    if chance.random() < 0.1 and events:
        events = events * chance.choice((2, 3, 60))
        alone = False
    if chance.random() < 0.1:
        alone = not alone
    text = [_to_text(chance, event) for event in events]
    form = chance.random()
    if alone and len(text) == 1 and form < 0.8:
        joined = text[0]
    elif form < 0.5:
        joined = "[" + ", ".join(text) + "]"
    else:
        joined = "\n".join(text)
    return joined.encode("utf-8", "surrogatepass")


def _to_pairs(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs((key, _to_pairs(inner)) for key, inner in value.items())
    return [_to_pairs(inner) for inner in value] if isinstance(value, list) else value


def _edited(chance: random.Random, value: Any) -> Any:
    """The value with one thing changed somewhere inside it."""
    if isinstance(value, Pairs) and value and chance.random() < 0.95:
        place = chance.randrange(len(value))
        key, inner = value[place]
        made = Pairs(value)
        if isinstance(inner, Pairs) and chance.random() < 0.8:
            made[place] = (key, _edited(chance, inner))
            return made
        kind = chance.random()
        if kind < 0.15:
            del made[place]
        elif kind < 0.30:
            made.insert(chance.randrange(len(made) + 1), (key, _odd(chance, key)))
        elif kind < 0.40:
            made.append((chance.choice(NAMES), _odd(chance, "")))
        elif kind < 0.45:
            made[place] = (chance.choice(NAMES), inner)
        elif kind < 0.5:
            chance.shuffle(made)
        else:
            made[place] = (key, _odd(chance, key))
        return made
    return _odd(chance, "")


def _odd(chance: random.Random, key: Any) -> Any:
    kind = chance.random()
    if kind < 0.5:
        if key in ("time", "complete_until"):
            return chance.choice(TIMES)
        if key == "id":
            return chance.choice(IDS)
        if str(key).endswith(("_tokens", "Tokens", "TokenCount", "tokenCount", "_ms", "attempt", "sequence")):
            return chance.choice((0, 1, 100, 4062, 2**31 - 1, 2**31, -1, 2**63, 128_000, 128_001, None))
        if key == "billable":
            return chance.choice((True, False, None))
    if kind < 0.6:
        return Token(chance.choice(TOKENS))
    if kind < 0.9:
        return chance.choice(TEXTS)
    if kind < 0.92:
        depth = chance.choice((3, 150, 500, 990, 1_100, 30_000))
        opening, closing = chance.choice((("[", "]"), ('{"a":', "}")))
        return Token(opening * depth + "1" + closing * (depth if chance.random() < 0.8 else depth - 1))
    if kind < 0.94:
        return Token("[" + ",".join(["0"] * chance.choice((10, 3_000))) + "]")
    return chance.choice((None, True, False, 0, -1, 1.5, [], Pairs(), [None], Pairs([("a", 1)])))


def _to_text(chance: random.Random, value: Any) -> str:
    if isinstance(value, Token):
        return str(value)
    space = chance.choice(("", "", "", " ", "\r", "\t"))
    if isinstance(value, Pairs):
        inner = (f"{_quoted(chance, str(key))}:{space}{_to_text(chance, one)}" for key, one in value)
        return "{" + f",{space}".join(inner) + "}"
    if isinstance(value, list):
        return "[" + f",{space}".join(_to_text(chance, one) for one in value) + "]"
    return _quoted(chance, value) if isinstance(value, str) else json.dumps(value)


def _quoted(chance: random.Random, text: str) -> str:
    if chance.random() < 0.03:
        return '"' + "".join(f"\\u{ord(sign):04x}" if ord(sign) < 0x10000 else sign for sign in text) + '"'
    return json.dumps(text, ensure_ascii=chance.random() < 0.5)


def _bytewise(chance: random.Random, value: bytes, seeds: Sequence[Seed]) -> bytes:
    kind, size = chance.randrange(9), len(value)
    at = chance.randrange(size + 1)
    until = min(size, at + chance.choice((1, 1, 2, 8, 100)))
    if kind == 0 and size:
        at = min(at, size - 1)
        return value[:at] + bytes([value[at] ^ (1 << chance.randrange(8))]) + value[at + 1 :]
    if kind == 1:
        return value[:at] + chance.choice(BYTES) * chance.choice((1, 1, 1, 3, 2_000)) + value[at:]
    if kind == 2:
        return value[:at] + value[until:]
    if kind == 3:
        return value[:at]
    if kind == 4:
        return value[:until] + value[at:]
    if kind == 5:
        other = chance.choice(seeds).value or b""
        return value[:at] + other[chance.randrange(len(other) + 1) :]
    if kind == 6:
        return value[:at] + chance.choice(TOKENS).encode() + value[at:]
    if kind == 7:
        return (
            chance.choice((b"", b" ", b"\n", b"\xef\xbb\xbf", b"\x0b"))
            + value
            + chance.choice((b"", b" ", b"\n\n", b"x", b"\0"))
        )
    return value[:at] + bytes(chance.randrange(256) for _ in range(chance.choice((1, 4, 30)))) + value[until:]
