"""The oracle: docs/events.md in plain Python, json module and rules, knowing nothing of the decoder.

`judge` says of one record how many events it holds and, for each, everything that is wrong with it, or what it
says. Slow and simple on purpose.
"""

import codecs
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

LARGEST = 2**31 - 1
#: Nesting beyond which a decoder may say that it broke, instead of what else is wrong.
DEEP = 200
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class Bounds:
    """The bounds of a record and of the times in it."""

    record_bytes_max: int
    record_events_max: int
    event_ahead_seconds_max: int
    id_ahead_seconds_max: int
    ledger_floor: datetime


@dataclass
class Verdict:
    """What the document says of one event: the codes it may be refused with (none: it is accepted), its fields.

    `odd`: it holds what a decoder may stumble over (a number beyond every range, deep nesting, a dropped field
    that is not UTF-8) and may be refused with any code; accepted it must not be where there are codes.
    """

    codes: set[str] = field(default_factory=set)
    fields: dict[str, Any] = field(default_factory=dict)
    odd: bool = False


@dataclass
class Judged:
    """A record: refused as a whole with one of `codes`, or its events in order, each as its bytes and verdict."""

    codes: set[str] = field(default_factory=set)
    events: list[tuple[bytes, Verdict]] = field(default_factory=list)


#: Stands where bytes were not UTF-8.
SPOILT = "\U0010fffe"
codecs.register_error("spoilt", lambda error: (SPOILT, cast(UnicodeDecodeError, error).end))
#: Numbers that no type holds.
_BEYOND = re.compile(rb"[0-9]{19}|[eE]\+?[0-9]{3}")
_ATTRIBUTES = frozenset(
    ("specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data")
)
_COUNTS = frozenset(
    [
        "input_tokens",
        "output_tokens",
        "cache_read_tokens",
        "cache_write_tokens",
        "cache_write_5m_tokens",
        "cache_write_1h_tokens",
        "reasoning_tokens",
        "audio_input_tokens",
        "audio_output_tokens",
        "image_input_tokens",
        "image_output_tokens",
        "tool_calls",
        "context_tokens",
    ]
)
#: What each provider's usage holds; inside are objects, or lists of them.
_INSIDE_INPUT: dict[str, Any] = {
    **dict.fromkeys(("cached_tokens", "cache_write_tokens", "text_tokens", "audio_tokens", "image_tokens")),
    "cached_tokens_details": dict.fromkeys(("text_tokens", "audio_tokens", "image_tokens")),
}
_INSIDE_OUTPUT = dict.fromkeys(
    (
        *("reasoning_tokens", "text_tokens", "audio_tokens", "image_tokens"),
        *("accepted_prediction_tokens", "rejected_prediction_tokens"),
    )
)
_ANTHROPIC: dict[str, Any] = {
    **dict.fromkeys(("input_tokens", "output_tokens")),
    **dict.fromkeys(("cache_read_input_tokens", "cache_creation_input_tokens")),
    "cache_creation": dict.fromkeys(("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")),
}
_KINDS_OF_TOKENS = dict.fromkeys(("modality", "tokenCount"))
FORMATS: dict[str, dict[str, Any]] = {
    "anthropic_messages": {
        **_ANTHROPIC,
        "service_tier": None,
        "iterations": {**_ANTHROPIC, "type": None},
        "server_tool_use": dict.fromkeys(("web_search_requests", "web_fetch_requests")),
    },
    "openai_chat": {
        **dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens")),
        "prompt_tokens_details": _INSIDE_INPUT,
        "completion_tokens_details": _INSIDE_OUTPUT,
    },
    "openai_responses": {
        **dict.fromkeys(("input_tokens", "output_tokens", "total_tokens")),
        "input_tokens_details": _INSIDE_INPUT,
        "output_tokens_details": _INSIDE_OUTPUT,
        "input_token_details": _INSIDE_INPUT,
        "output_token_details": _INSIDE_OUTPUT,
    },
    "gemini": {
        **dict.fromkeys(("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")),
        **dict.fromkeys(("cachedContentTokenCount", "toolUsePromptTokenCount", "totalTokenCount")),
        "promptTokensDetails": _KINDS_OF_TOKENS,
        "cacheTokensDetails": _KINDS_OF_TOKENS,
        "toolUsePromptTokensDetails": _KINDS_OF_TOKENS,
        "candidatesTokensDetails": _KINDS_OF_TOKENS,
    },
    "bedrock_converse": {
        **dict.fromkeys(("inputTokens", "outputTokens", "totalTokens")),
        **dict.fromkeys(("cacheReadInputTokens", "cacheWriteInputTokens")),
        "cacheDetails": dict.fromkeys(("ttl", "inputTokens")),
    },
    "otel_genai": {
        **{
            f"gen_ai.usage.{name}_tokens": None
            for name in (
                *("input", "output", "cache_read.input", "cache_write.input", "cache_creation.input"),
                "reasoning.output",
            )
        },
        **dict.fromkeys(("gen_ai.response.model", "openai.response.service_tier")),
    },
}
_BESIDE = frozenset(("model", "modelVersion", "service_tier", "serviceTier", "tool_calls"))
_DATA = {
    "inference.usage.v1": frozenset(
        [
            "request_id",
            "attempt",
            "provider",
            "model_served",
            "tier_served",
            "product",
            "tier_sold",
            "region",
            "capacity_pool",
            "ran_on",
            "billable",
            "nonbillable_reason",
            "project",
            "seat",
            "usage_convention",
            "usage_format",
            "usage",
            "usage_source",
            "duration_ms",
            "accelerator_ms",
        ]
    ),
    "inference.void.v1": frozenset(["source", "id", "side", "reason"]),
    "inference.refused.v1": frozenset(
        [
            "request_id",
            "attempt",
            "reason",
            "model",
            "tier_sold",
            "product",
            "provider",
            "region",
            "capacity_pool",
            "project",
            "seat",
            "estimated_input_tokens",
            "estimated_output_tokens",
        ]
    ),
    "inference.heartbeat.v1": frozenset(["sequence", "complete_until"]),
}


class NotJson(ValueError):
    """Bytes that are not JSON in UTF-8."""


class Huge(int):
    """An integer of more digits than anybody reads."""


class Real(float):
    """A number with a point or an exponent: never an integer, whatever its value."""


def judge(value: bytes | None, content_type: str | None, appended_at: datetime, bounds: Bounds) -> Judged:
    """What the document says of a record."""
    if not value or value.isspace():
        return Judged(codes={"empty_record"})
    if len(value) > bounds.record_bytes_max:
        return Judged(codes={"record_too_large"})
    form = form_of(content_type)
    if form is None:
        return Judged(codes={"content_type_unknown"})
    if form == "open":
        start = value.lstrip(b" \t\r\n")[:1]
        lines = any(line.lstrip(b" \t\r\n").startswith(b"{") for line in value.split(b"\n"))
        form = "array" if start == b"[" else "lines" if lines else "nothing"
    pieces: list[bytes] | None
    if form == "event":
        pieces = [value]
    elif form == "lines":
        pieces = [line for line in value.split(b"\n") if line and not line.isspace()]
    elif form == "array":
        pieces = elements(value)
    else:
        pieces = None
    if pieces is None:
        codes = {"not_json", "not_an_event", "decoder_failed"}
        # whether it breaks off before or after the event that is one too many
        return Judged(
            codes=codes | {"too_many_events"} if value.count(b",") >= bounds.record_events_max else codes
        )
    if len(pieces) > bounds.record_events_max:
        return Judged(codes={"too_many_events"})
    return Judged(events=[(piece, judge_event(piece, appended_at, bounds)) for piece in pieces])


def form_of(content_type: str | None) -> str | None:
    """The form that a content-type header names; None where it names none that is known."""
    if content_type is None or not content_type.strip():
        return "open"
    name, *parameters = content_type.split(";")
    for parameter in parameters:
        key, _, said = parameter.partition("=")
        known = ("utf-8", "utf8", "us-ascii")
        if key.strip().lower() == "charset" and said.strip().strip('"').lower() not in known:
            return None
    return {
        "application/cloudevents+json": "event",
        "application/cloudevents-batch+json": "array",
        "application/x-ndjson": "lines",
        "application/json": "open",
    }.get(name.strip().lower())


def elements(value: bytes) -> list[bytes] | None:
    """The elements of an array in outline: brackets and quotes balance, whatever is between the commas."""
    found: list[bytes] = []
    depth, start, inside, skip, ended = 0, 0, False, False, False
    for place, sign in enumerate(value.decode("latin-1")):
        if inside:
            if skip:
                skip = False
            elif sign == "\\":
                skip = True
            elif sign == '"':
                inside = False
            continue
        if ended or depth == 0:
            if sign in " \t\r\n":
                continue
            if ended or sign != "[":
                return None
            depth, start = 1, place + 1
        elif sign == '"':
            inside = True
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
            if depth == 0:
                ended = True
                found.append(value[start:place].strip(b" \t\r\n"))
        elif sign == "," and depth == 1:
            found.append(value[start:place].strip(b" \t\r\n"))
            start = place + 1
    if inside or not ended:
        return None
    return [] if value.translate(None, b" \t\r\n") == b"[]" else found


# ---- JSON, to the letter --------------------------------------------------------------------------------


@contextmanager
def room_for_nesting() -> Iterator[None]:
    """More recursion than any decoder under test has."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(6_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def read_json(piece: bytes) -> Any:
    """The value of JSON. Raises NotJson, also for NaN, Infinity, half a surrogate pair.

    Bytes that are not UTF-8 are SPOILT in it.
    """
    try:
        text = piece.decode("utf-8", "spoilt")
        with room_for_nesting():
            value = json.loads(
                text,
                parse_constant=_no_constant,
                parse_int=lambda digits: Huge(0) if len(digits) > 30 else int(digits),
                parse_float=Real,
                object_pairs_hook=_object,
            )
    except (json.JSONDecodeError, RecursionError) as error:
        raise NotJson(str(error)) from None
    _no_half_pairs(value)
    return value


def _listed(plain: Any) -> Any:
    """An event without the fields that are dropped."""
    if not isinstance(plain, dict):
        return plain
    kept = {name: value for name, value in plain.items() if name in _ATTRIBUTES}
    data = kept.get("data")
    if isinstance(data, dict):
        names = _DATA.get(str(plain.get("type")), frozenset())
        format_ = data.get("usage_format") if "usage_format" in names else None
        known = FORMATS.get(format_) if isinstance(format_, str) else None
        if known is not None:
            names |= _BESIDE
        kept["data"] = data = {name: value for name, value in data.items() if name in names}
        if isinstance(data.get("serviceTier"), dict):
            data["serviceTier"] = _known(data["serviceTier"], {"type": None})
        if known is not None:
            data["usage"] = _known(data.get("usage"), known)
        elif isinstance(data.get("usage"), dict):
            data["usage"] = {name: value for name, value in data["usage"].items() if name in _COUNTS}
    return kept


def _known(value: Any, names: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_known(one, names) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _known(inner, names[name]) if names[name] else inner
        for name, inner in value.items()
        if name in names
    }


def _no_constant(name: str) -> Any:
    raise NotJson(name)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, value in pairs:
        _no_half_pairs(key)
        _no_half_pairs(value)
    return dict(pairs)


def _no_half_pairs(value: Any) -> None:
    """Texts of this value alone: objects inside it were looked at when they were made."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError:
                raise NotJson("half a surrogate pair") from None
        elif isinstance(one, list):
            waiting += one


def depth_of(piece: bytes) -> int:
    """No less than how deeply a piece is nested."""
    depth = deepest = 0
    for sign in piece:
        if sign in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in b"]}":
            depth -= 1
    return deepest


# ---- one event ------------------------------------------------------------------------------------------


class _Reader:
    """Fields of an object: what is wrong with each goes to `codes`."""

    def __init__(self, found: dict[str, Any], codes: set[str]) -> None:
        self.found, self._codes = found, codes

    def _given(self, name: str, required: bool) -> Any:
        value = self.found.get(name)
        if value is None and required:
            self._codes.add("missing_field")
        return value

    def text(self, name: str, *, required: bool = False, code: str = "text_invalid") -> str | None:
        value = self._given(name, required)
        if value is None:
            return None
        if not isinstance(value, str):
            self._codes.add("wrong_type")
            return None
        if not 1 <= len(value.encode()) <= 200 or "\0" in value:
            self._codes.add(code)
        return value

    def word(self, name: str, words: tuple[str, ...], *, required: bool = False) -> str | None:
        value = self._given(name, required)
        if value is None:
            return None
        if not isinstance(value, str):
            self._codes.add("wrong_type")
            return None
        if value not in words:
            self._codes.add("value_unknown")
        return value

    def number(
        self, name: str, *, required: bool = False, least: int = 0, most: int | None = None
    ) -> int | None:
        value = self._given(name, required)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self._codes.add("wrong_type")
            return None
        if isinstance(value, Huge) or not least <= value <= (LARGEST if most is None else most):
            self._codes.add("quantity_out_of_range")
            return None
        return value

    def truth(self, name: str) -> bool | None:
        value = self._given(name, False)
        if value is None:
            return None
        if not isinstance(value, bool):
            self._codes.add("wrong_type")
            return None
        return value

    def kind(self, name: str) -> str | None:
        """A text whose size nobody minds."""
        value = self._given(name, False)
        if value is not None and not isinstance(value, str):
            self._codes.add("wrong_type")
            return None
        return value

    def maybe(self, name: str) -> "_Reader":
        """An object that may be left out."""
        return self.inner(name) if self.found.get(name) is not None else _Reader({}, self._codes)

    def several(self, name: str) -> "list[_Reader]":
        """A list of objects that may be left out."""
        value = self._given(name, False)
        if value is not None and not isinstance(value, list):
            self._codes.add("wrong_type")
        found = []
        for one in value if isinstance(value, list) else []:
            if not isinstance(one, dict):
                self._codes.add("missing_field" if one is None else "wrong_type")
            found.append(_Reader(one if isinstance(one, dict) else {}, self._codes))
        return found

    def inner(self, name: str) -> "_Reader":
        value = self._given(name, True)
        if value is not None and not isinstance(value, dict):
            self._codes.add("wrong_type")
        return _Reader(value if isinstance(value, dict) else {}, self._codes)


def judge_event(piece: bytes, appended_at: datetime, bounds: Bounds) -> Verdict:
    """What the document says of the bytes of one event."""
    verdict = Verdict(odd=depth_of(piece) > DEEP or _BEYOND.search(piece) is not None)
    try:
        plain = read_json(piece)
        if SPOILT in piece.decode("utf-8", "spoilt"):
            verdict.odd = True
            plain = _listed(plain)
            with room_for_nesting():
                if SPOILT in json.dumps(plain, ensure_ascii=False):
                    raise NotJson("not UTF-8")
    except NotJson:
        verdict.codes = {"not_json"}
        return verdict
    if not isinstance(plain, dict):
        verdict.codes = {"not_an_event"}
        return verdict
    codes = verdict.codes
    event = _Reader(plain, codes)
    version, kind = plain.get("specversion"), plain.get("type")
    for said, right, code in (
        (version, ("1.0",), "spec_version_unsupported"),
        (kind, tuple(_KINDS), "type_not_supported"),
    ):
        if said is None:
            codes.add("missing_field")
        elif not isinstance(said, str):
            codes.add("wrong_type")
        elif said not in right:
            codes.add(code)
    for ignored in ("datacontenttype", "dataschema"):
        if plain.get(ignored) is not None and not isinstance(plain[ignored], str):
            codes.add("wrong_type")
    if isinstance(kind, str) and kind not in _KINDS:
        # which fields it must have, nobody knows
        codes &= {"spec_version_unsupported", "type_not_supported"}
        return verdict
    kind = kind if isinstance(kind, str) else "inference.usage.v1"
    event_id, source = (
        event.text("id", required=True, code="id_invalid"),
        event.text("source", required=True, code="source_invalid"),
    )
    if source == "adjustments":
        codes.add("source_invalid")
    at = _instant(plain, codes)
    appended = (appended_at - EPOCH) // MICROSECOND
    floor = (bounds.ledger_floor - EPOCH) // MICROSECOND
    if at is not None:
        if at > appended + bounds.event_ahead_seconds_max * 1_000_000:
            codes.add("time_from_future")
        if at < floor:
            codes.add("too_old")
    id_at = time_of_id(event_id) if event_id is not None else None
    if id_at is not None:
        if id_at > appended + bounds.id_ahead_seconds_max * 1_000_000:
            codes.add("id_from_future")
        if id_at < floor:
            codes.add("too_old")
    verdict.fields = {"event_id": event_id, "source": source, "occurred_at": at}
    verdict.fields |= _KINDS[kind](event, event.inner("data"), codes)
    until = verdict.fields.get("complete_until")
    if until is not None and until > appended + bounds.event_ahead_seconds_max * 1_000_000:
        codes.add("time_from_future")
    return verdict


def _usage(event: _Reader, data: _Reader, codes: set[str]) -> dict[str, Any]:
    customer = event.text("subject", required=True)
    request_id = data.text("request_id", required=True)
    attempt = data.number("attempt", least=1, most=32_767)
    provider = data.text("provider", required=True)
    format_ = data.found.get("usage_format")
    if format_ is not None and not isinstance(format_, str):
        codes.add("wrong_type")
    elif format_ is not None and format_ not in FORMATS:
        codes.add("value_unknown")
    elif format_ is not None:
        data = _Reader(dict(data.found), codes)
        meters = _provided(format_, data, codes)
    model = data.text("model_served", required=True)
    tier = data.text("tier_served", required=True)
    product, tier_sold, region = (data.text(name) for name in ("product", "tier_sold", "region"))
    pool, project, seat = (data.text(name) for name in ("capacity_pool", "project", "seat"))
    ran_on = data.word("ran_on", ("pool", "overflow", "on_demand"))
    if ran_on in ("pool", "overflow") and pool is None:
        codes.add("pool_missing")
    if ran_on is None and pool is not None:
        codes.add("missing_field")
    billable = data.truth("billable")
    reason = data.word("nonbillable_reason", ("retry", "failure", "refund", "internal", "test", "other"))
    if (billable is False) != (reason is not None):
        codes.add("reason_contradicts")
    convention = data.word("usage_convention", ("inclusive", "disjoint"), required=format_ is None)
    usage_source = data.word("usage_source", ("provider", "estimated", "partial"))
    duration = data.number("duration_ms")
    accelerator = data.number("accelerator_ms") or 0
    if format_ is None:
        meters = _counted(data.inner("usage"), convention, codes)
    elif not isinstance(format_, str) or format_ not in FORMATS:
        meters = {}
    total = sum(meters.get(name, 0) for name in _INPUT)
    context = meters.pop("context_tokens", None)
    if context is not None and context > total:
        codes.add("counts_contradict")
    total = total if context is None else context
    return {
        "customer": customer,
        "request_id": request_id,
        "attempt": 1 if attempt is None else attempt,
        "product": model if product is None else product,
        "tier_sold": tier if tier_sold is None else tier_sold,
        "provider": provider,
        "model_served": model,
        "tier_served": tier,
        "region": "global" if region is None else region,
        "pool": pool,
        "ran_on": ran_on or "on_demand",
        "counts_for": "cost" if billable is False else "charge_and_cost",
        "nonbillable_reason": reason,
        "project": project,
        "seat": seat,
        "usage_source": usage_source or "provider",
        "duration_ms": duration,
        "context_breakpoint": max(
            edge for edge in (0, 128_000, 200_000, 256_000, 272_000, 512_000) if edge == 0 or total > edge
        ),
        **meters,
        "accelerator_ms": accelerator,
    }


_INPUT = (
    *("uncached_input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens"),
    *("audio_input_tokens", "image_input_tokens"),
)


def _counted(counts: _Reader, convention: str | None, codes: set[str]) -> dict[str, int]:
    """The meters of counts by one of the two conventions."""
    given = counts.number("input_tokens", required=True)
    output = counts.number("output_tokens", required=True)
    read = counts.number("cache_read_tokens") or 0
    short, long = counts.number("cache_write_5m_tokens"), counts.number("cache_write_1h_tokens")
    unsplit = counts.number("cache_write_tokens")
    reasoning = counts.number("reasoning_tokens") or 0
    if short is None and long is None:
        short, long = unsplit or 0, 0
    else:
        short, long = short or 0, long or 0
        if unsplit is not None and unsplit != short + long:
            codes.add("counts_contradict")
    further = {
        name: counts.number(name) or 0
        for name in (
            *("audio_input_tokens", "audio_output_tokens", "image_input_tokens", "image_output_tokens"),
            "tool_calls",
        )
    }
    uncached, visible = given or 0, output or 0
    if convention == "inclusive":
        uncached -= read + short + long + further["audio_input_tokens"] + further["image_input_tokens"]
        visible -= reasoning + further["audio_output_tokens"] + further["image_output_tokens"]
        if uncached < 0 or visible < 0:
            codes.add("counts_contradict")
    return {
        "uncached_input_tokens": uncached,
        "cache_read_tokens": read,
        "cache_write_5m_tokens": short,
        "cache_write_1h_tokens": long,
        "output_tokens": visible,
        "reasoning_tokens": reasoning,
        **further,
        **({} if (context := counts.number("context_tokens")) is None else {"context_tokens": context}),
    }


def _said(details: _Reader, of_input: bool) -> dict[str, Any]:
    """What a shape holds of an object, without what is left out."""
    shape = _INSIDE_INPUT if of_input else _INSIDE_OUTPUT
    found = {name: details.found[name] for name in shape if details.found.get(name) is not None}
    if (cached := found.get("cached_tokens_details")) and isinstance(cached, dict):
        inner = _INSIDE_INPUT["cached_tokens_details"]
        found["cached_tokens_details"] = {
            name: cached[name] for name in inner if cached.get(name) is not None
        }
    return found


def _anthropic(usage: _Reader, codes: set[str]) -> dict[str, int]:
    """The meters of one sampling, or of a whole message."""
    split = usage.maybe("cache_creation")
    short, long = (split.number(f"ephemeral_{life}_input_tokens") for life in ("5m", "1h"))
    written = usage.number("cache_creation_input_tokens")
    if short is None and long is None:
        short = written
    elif written is not None and written != (short or 0) + (long or 0):
        codes.add("counts_contradict")
    return {
        "uncached_input_tokens": usage.number("input_tokens", required=True) or 0,
        "output_tokens": usage.number("output_tokens", required=True) or 0,
        "cache_read_tokens": usage.number("cache_read_input_tokens") or 0,
        "cache_write_5m_tokens": short or 0,
        "cache_write_1h_tokens": long or 0,
    }


def _provided(format_: str, data: _Reader, codes: set[str]) -> dict[str, int]:
    """The meters of a provider's usage; the model and tier that it served go into `data` where they lack."""
    usage = data.inner("usage")
    tools = data.number("tool_calls")
    model, version, tier = (data.kind(name) for name in ("model", "modelVersion", "service_tier"))
    beside = data.found.get("serviceTier")
    if isinstance(beside, dict):
        beside = _Reader(beside, codes).kind("type")
    elif beside is not None:
        beside = data.kind("serviceTier")
    found = dict.fromkeys((*_INPUT, "output_tokens", "reasoning_tokens"), 0)
    found |= dict.fromkeys(("audio_output_tokens", "image_output_tokens", "tool_calls"), 0)
    own_model = own_tier = None
    wholes: list[tuple[int, int]] = []  # what must not be less than what

    def number(reader: _Reader, name: str, required: bool = False) -> int:
        return reader.number(name, required=required) or 0

    if format_ == "anthropic_messages":
        own_tier = usage.kind("service_tier")
        sampled = []
        for one in usage.several("iterations"):
            kind = one.word("type", ("message", "fallback_message", "compaction"), required=True)
            sampled.append((kind, _anthropic(one, codes)))
        counted = [_anthropic(usage, codes), *(counts for kind, counts in sampled if kind == "compaction")]
        tool = usage.maybe("server_tool_use")
        number(tool, "web_fetch_requests")
        found |= {
            **{name: sum(counts[name] for counts in counted) for name in counted[0]},
            "tool_calls": number(tool, "web_search_requests"),
        }
    elif format_ in ("openai_chat", "openai_responses"):
        sides = ("prompt", "completion") if format_ == "openai_chat" else ("input", "output")
        sent, answered = (number(usage, f"{side}_tokens", True) for side in sides)
        inside, within = (usage.maybe(f"{side}_tokens_details") for side in sides)
        if format_ == "openai_responses":
            for old, other in ((inside, "input_token_details"), (within, "output_token_details")):
                if usage.found.get(other) is not None:
                    apart = usage.maybe(other)
                    if old.found and _said(old, old is inside) != _said(apart, old is inside):
                        codes.add("counts_contradict")
                    inside, within = (apart, within) if old is inside else (inside, apart)
        of = {name: number(inside, name) for name in _INSIDE_INPUT if name != "cached_tokens_details"}
        cached = inside.maybe("cached_tokens_details")
        read = {kind: number(cached, f"{kind}_tokens") for kind in ("text", "audio", "image")}
        out = {name: number(within, name) for name in _INSIDE_OUTPUT}
        total = usage.number("total_tokens")
        if total is not None and total != sent + answered:
            codes.add("counts_contradict")
        fresh = sent - of["cached_tokens"] - of["cache_write_tokens"]
        visible = answered - out["reasoning_tokens"] - out["audio_tokens"] - out["image_tokens"]
        wholes += [(fresh, 0), (sent, of["audio_tokens"] + of["image_tokens"]), (visible, 0)]
        wholes += [(of["cached_tokens"], sum(read.values()))]
        wholes += [(of[f"{kind}_tokens"], read[kind]) for kind in ("audio", "image")]
        audio = min(of["audio_tokens"] - read["audio"], fresh)
        image = min(of["image_tokens"] - read["image"], fresh - audio)
        found |= {
            "uncached_input_tokens": fresh - audio - image,
            "cache_read_tokens": of["cached_tokens"],
            "cache_write_5m_tokens": of["cache_write_tokens"],
            "audio_input_tokens": audio,
            "image_input_tokens": image,
            "output_tokens": visible,
            "reasoning_tokens": out["reasoning_tokens"],
            "audio_output_tokens": out["audio_tokens"],
            "image_output_tokens": out["image_tokens"],
        }
    elif format_ == "gemini":
        prompt = number(usage, "promptTokenCount", True)
        cached, tool_input = (
            number(usage, "cachedContentTokenCount"),
            number(usage, "toolUsePromptTokenCount"),
        )
        answered, thoughts = number(usage, "candidatesTokenCount"), number(usage, "thoughtsTokenCount")
        total = usage.number("totalTokenCount")
        if total is not None and total != prompt + tool_input + answered + thoughts:
            codes.add("counts_contradict")
        kinds: dict[str, tuple[int, int]] = {}
        for name, whole in (
            ("promptTokensDetails", prompt),
            ("cacheTokensDetails", cached),
            ("toolUsePromptTokensDetails", tool_input),
            ("candidatesTokensDetails", answered),
        ):
            counted = [(one.kind("modality"), number(one, "tokenCount")) for one in usage.several(name)]
            wholes.append((whole, sum(count for _, count in counted)))
            kinds[name] = (
                sum(count for kind, count in counted if kind == "AUDIO"),
                sum(count for kind, count in counted if kind in ("IMAGE", "VIDEO")),
            )
        audio, image = (
            all_ - read
            for all_, read in zip(kinds["promptTokensDetails"], kinds["cacheTokensDetails"], strict=True)
        )
        fresh = prompt - cached
        wholes += [(fresh, 0), (audio, 0), (image, 0)]
        audio = min(audio, fresh)
        image = min(image, fresh - audio)
        heard, seen = kinds["toolUsePromptTokensDetails"]
        spoken, drawn = kinds["candidatesTokensDetails"]
        found |= {
            "uncached_input_tokens": fresh - audio - image + tool_input - heard - seen,
            "cache_read_tokens": cached,
            "audio_input_tokens": audio + heard,
            "image_input_tokens": image + seen,
            "output_tokens": answered - spoken - drawn,
            "reasoning_tokens": thoughts,
            "audio_output_tokens": spoken,
            "image_output_tokens": drawn,
        }
    elif format_ == "bedrock_converse":
        sent, answered = number(usage, "inputTokens", True), number(usage, "outputTokens", True)
        read, written = number(usage, "cacheReadInputTokens"), usage.number("cacheWriteInputTokens")
        lives = {"5m": 0, "1h": 0}
        details = usage.several("cacheDetails")
        for one in details:
            life = one.word("ttl", ("5m", "1h"), required=True)
            count = number(one, "inputTokens", True)
            if life in lives:
                lives[life] += count
        if not details:
            lives["5m"] = written or 0
        elif written is not None and written != sum(lives.values()):
            codes.add("counts_contradict")
        total = usage.number("totalTokens")
        if total is not None and total not in (
            sent + answered,
            sent + answered + read + sum(lives.values()),
        ):
            codes.add("counts_contradict")
        found |= {
            "uncached_input_tokens": sent,
            "output_tokens": answered,
            "cache_read_tokens": read,
            "cache_write_5m_tokens": lives["5m"],
            "cache_write_1h_tokens": lives["1h"],
        }
    else:
        own_model, own_tier = usage.kind("gen_ai.response.model"), usage.kind("openai.response.service_tier")
        name = "gen_ai.usage.{}_tokens"
        sent, answered = (number(usage, name.format(side), True) for side in ("input", "output"))
        read = number(usage, name.format("cache_read.input"))
        written, older = (usage.number(name.format(f"cache_{word}.input")) for word in ("write", "creation"))
        if written is not None and older is not None and written != older:
            codes.add("counts_contradict")
        written = (older if written is None else written) or 0
        reasoning = number(usage, name.format("reasoning.output"))
        wholes += [(sent, read + written), (answered, reasoning)]
        found |= {
            "uncached_input_tokens": sent - read - written,
            "output_tokens": answered - reasoning,
            "cache_read_tokens": read,
            "cache_write_5m_tokens": written,
            "reasoning_tokens": reasoning,
        }
    if any(whole < parts for whole, parts in wholes):
        codes.add("counts_contradict")
    if tools is not None:
        found["tool_calls"] = tools
    if max(found.values()) > LARGEST:
        codes.add("quantity_out_of_range")
    if format_ == "anthropic_messages" and sampled:
        largest = max(sum(counts[name] for name in _INPUT[:4]) for _, counts in sampled)
        found["context_tokens"] = min(largest, sum(found[name] for name in _INPUT))
    for field_, told in {
        "model_served": (own_model, model, version),
        "tier_served": (own_tier, tier, beside),
    }.items():
        if data.found.get(field_) is None:
            data.found[field_] = next((one for one in told if one is not None), None)
    return found


def _void(event: _Reader, data: _Reader, codes: set[str]) -> dict[str, Any]:
    return {
        "kind": "void",
        "target_source": data.text("source", required=True),
        "target_id": data.text("id", required=True),
        "side": data.word("side", ("charge", "both")) or "charge",
        "reason": data.text("reason"),
    }


def _refused(event: _Reader, data: _Reader, codes: set[str]) -> dict[str, Any]:
    names = ("request_id", "model", "tier_sold")
    told = {name: data.text(name, required=True) for name in names}
    told |= {name: data.text(name) for name in ("product", "provider", "region", "project", "seat")}
    reason = data.word("reason", ("customer_limit", "pool_full"), required=True)
    pool = data.text("capacity_pool")
    if reason == "pool_full" and pool is None:
        codes.add("pool_missing")
    attempt = data.number("attempt", least=1, most=32_767)
    guesses = {name: data.number(name) for name in ("estimated_input_tokens", "estimated_output_tokens")}
    return {
        "kind": "refused",
        "customer": event.text("subject", required=True),
        **told,
        **guesses,
        "attempt": 1 if attempt is None else attempt,
        "reason": reason,
        "product": told["model"] if told["product"] is None else told["product"],
        "region": "global" if told["region"] is None else told["region"],
        "pool": pool,
    }


def _heartbeat(event: _Reader, data: _Reader, codes: set[str]) -> dict[str, Any]:
    return {
        "kind": "heartbeat",
        "sequence": data.number("sequence", required=True, least=1, most=2**63 - 1),
        "complete_until": _instant(data.found, codes, "complete_until"),
    }


_KINDS = {
    "inference.usage.v1": _usage,
    "inference.void.v1": _void,
    "inference.refused.v1": _refused,
    "inference.heartbeat.v1": _heartbeat,
}

# ---- times ----------------------------------------------------------------------------------------------

_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:([Zz])|([+-])(\d\d):(\d\d))", re.ASCII
)
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def _instant(found: dict[str, Any], codes: set[str], name: str = "time") -> int | None:
    value = found.get(name)
    if value is None:
        codes.add("missing_field")
        return None
    if not isinstance(value, str):
        codes.add("wrong_type")
        return None
    at = read_instant(value)
    if at is None:
        codes.add("time_invalid")
    return at


def read_instant(text: str) -> int | None:
    """Microseconds since 1970 of an RFC 3339 text of at most 64 bytes with a zone; None where it is not one."""
    match = _RFC3339.fullmatch(text) if len(text.encode()) <= 64 else None
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(match[place]) for place in range(1, 7))
    try:
        local = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    micros = (local - EPOCH) // MICROSECOND + int((match[7] or "0")[:6].ljust(6, "0"))
    if match[8]:
        return micros
    hours, minutes = int(match[10]), int(match[11])
    if hours > 23 or minutes > 59:
        return None
    offset = (hours * 60 + minutes) * 60_000_000
    micros += -offset if match[9] == "+" else offset
    try:
        EPOCH + micros * MICROSECOND
    except OverflowError:
        return None
    return micros


def time_of_id(text: str) -> int | None:
    """Microseconds since 1970 of the time inside a canonical UUIDv7 or ULID; None where an id has none."""
    if _UUID7.fullmatch(text):
        return int(text.replace("-", "")[:12], 16) * 1000
    if _ULID.fullmatch(text):
        millis = 0
        for sign in text[:10]:
            millis = millis * 32 + _CROCKFORD.index(sign)
        return millis * 1000
    return None
