"""Usage as providers report it: their own usage objects, decoded into counts beside each other.

Some counts stand inside a total, some beside it; which, each format knows, so that no token is counted twice.
A format names its fields as the provider does, and so does what is wrong with them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Literal, cast, get_args

import msgspec

from metering.events import wire
from metering.events.rejects import Fault, RejectCode, quoted
from metering.events.wire import Counts, Data, Event
from metering.meters import QUANTITY_MAX

_Quantity = wire.Quantity
_Said = _Quantity | None


class _Struct(msgspec.Struct, gc=False, kw_only=True):
    pass


# ---- the objects -----------------------------------------------------------------------------------------


class CacheCreation(_Struct):
    """Anthropic's cache writes by how long they live."""

    ephemeral_5m_input_tokens: _Said = None
    ephemeral_1h_input_tokens: _Said = None


class ServerToolUse(_Struct):
    """Anthropic's tools: searches are billed by the call, fetches by their tokens alone."""

    web_search_requests: _Said = None
    web_fetch_requests: _Said = None


class AnthropicTokens(_Struct):
    """Anthropic's tokens: the input is beside the cache, the output holds the thinking."""

    input_tokens: _Quantity
    output_tokens: _Quantity
    cache_read_input_tokens: _Said = None
    cache_creation_input_tokens: _Said = None
    cache_creation: CacheCreation | None = None


class Iteration(AnthropicTokens, kw_only=True):
    """One sampling of a message: inside the totals or, a compaction of what was said before, beside them.

    An advisor's is beside them too and ran another model: it has no place in this event.
    """

    type: Literal["message", "fallback_message", "compaction"]


class AnthropicMessages(AnthropicTokens):
    """`usage` of a message: the totals are the sum of its samplings without compactions."""

    iterations: list[Iteration] | None = None
    server_tool_use: ServerToolUse | None = None
    service_tier: str | None = None


class CachedDetails(_Struct):
    """What OpenAI's cached tokens are of."""

    text_tokens: _Said = None
    audio_tokens: _Said = None
    image_tokens: _Said = None


class InputDetails(_Struct):
    """What stands inside OpenAI's input."""

    cached_tokens: _Said = None
    cached_tokens_details: CachedDetails | None = None
    cache_write_tokens: _Said = None
    text_tokens: _Said = None
    audio_tokens: _Said = None
    image_tokens: _Said = None


class OutputDetails(_Struct):
    """What stands inside OpenAI's output; predictions, accepted or not, are tokens of it like others."""

    reasoning_tokens: _Said = None
    text_tokens: _Said = None
    audio_tokens: _Said = None
    image_tokens: _Said = None
    accepted_prediction_tokens: _Said = None
    rejected_prediction_tokens: _Said = None


class OpenAIChat(_Struct):
    """`usage` of a chat completion: the totals hold everything."""

    prompt_tokens: _Quantity
    completion_tokens: _Quantity
    total_tokens: _Said = None
    prompt_tokens_details: InputDetails | None = None
    completion_tokens_details: OutputDetails | None = None


class OpenAIResponses(_Struct):
    """`usage` of a response: as of a chat completion, under other names. Of speech the details are `token_details`."""

    input_tokens: _Quantity
    output_tokens: _Quantity
    total_tokens: _Said = None
    input_tokens_details: InputDetails | None = None
    output_tokens_details: OutputDetails | None = None
    input_token_details: InputDetails | None = None
    output_token_details: OutputDetails | None = None


class ModalityCount(_Struct):
    """Gemini's tokens of one kind. A count of 0 is left out."""

    modality: str | None = None
    tokenCount: _Said = None  # noqa: N815


_Kinds = list[ModalityCount] | None


class Gemini(_Struct):
    """`usageMetadata`: the prompt holds the cached content; results of tools and thoughts are beside."""

    promptTokenCount: _Quantity  # noqa: N815
    # zeros are left out of it; what is missing besides shows in the total
    candidatesTokenCount: _Said = None  # noqa: N815
    thoughtsTokenCount: _Said = None  # noqa: N815
    cachedContentTokenCount: _Said = None  # noqa: N815
    toolUsePromptTokenCount: _Said = None  # noqa: N815
    totalTokenCount: _Said = None  # noqa: N815
    promptTokensDetails: _Kinds = None  # noqa: N815
    cacheTokensDetails: _Kinds = None  # noqa: N815
    toolUsePromptTokensDetails: _Kinds = None  # noqa: N815
    candidatesTokensDetails: _Kinds = None  # noqa: N815


class CacheDetail(_Struct):
    """Bedrock's cache writes of one life."""

    ttl: Literal["5m", "1h"]
    inputTokens: _Quantity  # noqa: N815


class BedrockConverse(_Struct):
    """`usage` of Converse: the input is beside the cache."""

    inputTokens: _Quantity  # noqa: N815
    outputTokens: _Quantity  # noqa: N815
    totalTokens: _Said = None  # noqa: N815
    cacheReadInputTokens: _Said = None  # noqa: N815
    cacheWriteInputTokens: _Said = None  # noqa: N815
    cacheDetails: list[CacheDetail] | None = None  # noqa: N815


class OTelGenAI(
    _Struct,
    rename={
        "input_tokens": "gen_ai.usage.input_tokens",
        "output_tokens": "gen_ai.usage.output_tokens",
        "cache_read": "gen_ai.usage.cache_read.input_tokens",
        "cache_write": "gen_ai.usage.cache_write.input_tokens",
        "cache_creation": "gen_ai.usage.cache_creation.input_tokens",
        "reasoning": "gen_ai.usage.reasoning.output_tokens",
        "model": "gen_ai.response.model",
        "service_tier": "openai.response.service_tier",
    },
):
    """Attributes of a span: the totals hold everything."""

    input_tokens: _Quantity
    output_tokens: _Quantity
    cache_read: _Said = None
    cache_write: _Said = None
    cache_creation: _Said = None
    reasoning: _Said = None
    model: str | None = None
    service_tier: str | None = None


# ---- what they mean --------------------------------------------------------------------------------------


class _Contradiction(Exception):
    """Two counts that cannot both be true: the field at fault (the last word of its name), both with numbers."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail)
        self.field, self.detail = field.rpartition(" ")[2], detail


Named = tuple[str, int]


def _sum(parts: Sequence[Named]) -> str:
    return " + ".join(f"{name} ({count})" for name, count in parts)


def _equal(whole: Named, parts: Sequence[Named]) -> None:
    if whole[1] != sum(count for _, count in parts):
        raise _Contradiction(whole[0], f"{whole[0]} ({whole[1]}) is not {_sum(parts)}")


def _inside(whole: Named, parts: Sequence[Named]) -> int:
    """What is left of a whole without the parts inside it; a negative rest is a contradiction."""
    rest = whole[1] - sum(count for _, count in parts)
    if rest < 0:
        told = [part for part in parts if part[1]]
        raise _Contradiction(whole[0], f"{whole[0]} ({whole[1]}) is less than {_sum(told)} inside it")
    return rest


def _anthropic(usage: AnthropicMessages) -> Counts:
    total = _sampled("", usage)
    largest = 0
    for place, one in enumerate(usage.iterations or ()):
        sampling = _sampled(f"iterations[{place}].", one)
        largest = max(largest, sum(sampling[:-1]))
        if one.type == "compaction":
            total = [sum(pair) for pair in zip(total, sampling, strict=True)]
    sent, read, short, long, answered = total
    return Counts(
        input_tokens=sent,
        output_tokens=answered,
        cache_read_tokens=read,
        cache_write_5m_tokens=short,
        cache_write_1h_tokens=long,
        tool_calls=None if usage.server_tool_use is None else usage.server_tool_use.web_search_requests,
        # an attempt that was declined is listed too, and is in no total
        context_tokens=min(largest, sum(total[:-1])) if usage.iterations else None,
    )


def _sampled(where: str, usage: AnthropicTokens) -> list[int]:
    """Input, cache read, writes for 5 minutes and an hour, output; `where` they stand is part of their names."""
    written = usage.cache_creation_input_tokens
    split = usage.cache_creation
    short, long = written or 0, 0
    if split is not None and (
        split.ephemeral_5m_input_tokens is not None or split.ephemeral_1h_input_tokens is not None
    ):
        short, long = split.ephemeral_5m_input_tokens or 0, split.ephemeral_1h_input_tokens or 0
        if written is not None:
            parts = (
                (f"{where}cache_creation.ephemeral_5m_input_tokens", short),
                (f"{where}cache_creation.ephemeral_1h_input_tokens", long),
            )
            _equal((f"{where}cache_creation_input_tokens", written), parts)
    return [usage.input_tokens, usage.cache_read_input_tokens or 0, short, long, usage.output_tokens]


def _openai(
    names: tuple[str, str],
    counts: tuple[int, int, int | None],
    inner: tuple[str, InputDetails | None],
    outer: tuple[str, OutputDetails | None],
) -> Counts:
    (sent_name, answered_name), (sent, answered, total) = names, counts
    of_input, of_output = inner[0], outer[0]
    into, out = inner[1] or InputDetails(), outer[1] or OutputDetails()
    read, written = into.cached_tokens or 0, into.cache_write_tokens or 0
    audio, images = into.audio_tokens or 0, into.image_tokens or 0
    cached = ((f"{of_input}.cached_tokens", read), (f"{of_input}.cache_write_tokens", written))
    fresh = _inside((sent_name, sent), cached)
    kinds = ((f"{of_input}.audio_tokens", audio), (f"{of_input}.image_tokens", images))
    _inside((sent_name, sent), kinds)
    of_cached = into.cached_tokens_details or CachedDetails()
    held = f"{of_input}.cached_tokens_details"
    read_kinds = [
        (f"{held}.{kind}_tokens", getattr(of_cached, f"{kind}_tokens") or 0)
        for kind in ("text", "audio", "image")
    ]
    _inside(cached[0], read_kinds)
    audio = _inside(kinds[0], read_kinds[1:2])
    images = _inside(kinds[1], read_kinds[2:])
    # where it does not say what was cached, text was first
    audio = min(audio, fresh)
    images = min(images, fresh - audio)
    reasoning = out.reasoning_tokens or 0
    spoken, drawn = out.audio_tokens or 0, out.image_tokens or 0
    visible = _inside(
        (answered_name, answered),
        (
            (f"{of_output}.reasoning_tokens", reasoning),
            (f"{of_output}.audio_tokens", spoken),
            (f"{of_output}.image_tokens", drawn),
        ),
    )
    if total is not None:
        _equal(("total_tokens", total), ((sent_name, sent), (answered_name, answered)))
    return Counts(
        input_tokens=fresh - audio - images,
        output_tokens=visible,
        cache_read_tokens=read,
        cache_write_5m_tokens=written,
        cache_write_1h_tokens=0,
        reasoning_tokens=reasoning,
        audio_input_tokens=audio,
        image_input_tokens=images,
        audio_output_tokens=spoken,
        image_output_tokens=drawn,
    )


def _openai_chat(usage: OpenAIChat) -> Counts:
    return _openai(
        ("prompt_tokens", "completion_tokens"),
        (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens),
        ("prompt_tokens_details", usage.prompt_tokens_details),
        ("completion_tokens_details", usage.completion_tokens_details),
    )


def _openai_responses(usage: OpenAIResponses) -> Counts:
    return _openai(
        ("input_tokens", "output_tokens"),
        (usage.input_tokens, usage.output_tokens, usage.total_tokens),
        _one_of(usage, "input_tokens_details", "input_token_details"),
        _one_of(usage, "output_tokens_details", "output_token_details"),
    )


def _one_of(usage: _Struct, first: str, second: str) -> tuple[str, Any]:
    """A field that has two names, under the one that it was sent by."""
    one, other = getattr(usage, first), getattr(usage, second)
    if one is not None and other is not None and one != other:
        raise _Contradiction(first, f"{first} and {second} say different things; send one of them")
    return (first, one) if other is None else (second, other)


_MODALITIES: Final = {"AUDIO": "audio", "IMAGE": "image", "VIDEO": "image"}


def _by_kind(name: str, details: _Kinds, whole: Named) -> tuple[int, int]:
    """Tokens of audio, and of images and video, in the details of a count; all others are text."""
    found = {"audio": 0, "image": 0, "text": 0}
    for one in details or ():
        found[_MODALITIES.get(one.modality or "", "text")] += one.tokenCount or 0
    _inside(whole, ((name, sum(found.values())),))
    return found["audio"], found["image"]


def _gemini(usage: Gemini) -> Counts:
    prompt = ("promptTokenCount", usage.promptTokenCount)
    cached = ("cachedContentTokenCount", usage.cachedContentTokenCount or 0)
    tools = ("toolUsePromptTokenCount", usage.toolUsePromptTokenCount or 0)
    answered = ("candidatesTokenCount", usage.candidatesTokenCount or 0)
    thoughts = ("thoughtsTokenCount", usage.thoughtsTokenCount or 0)
    if usage.totalTokenCount is not None:
        _equal(("totalTokenCount", usage.totalTokenCount), (prompt, answered, tools, thoughts))
    fresh = _inside(prompt, (cached,))
    audio, images = _by_kind("promptTokensDetails", usage.promptTokensDetails, prompt)
    read_audio, read_images = _by_kind("cacheTokensDetails", usage.cacheTokensDetails, cached)
    audio = _inside(("AUDIO in promptTokensDetails", audio), (("AUDIO in cacheTokensDetails", read_audio),))
    images = _inside(
        ("IMAGE in promptTokensDetails", images), (("IMAGE in cacheTokensDetails", read_images),)
    )
    # where it does not say what was cached, text was first
    audio = min(audio, fresh)
    images = min(images, fresh - audio)
    heard, seen = _by_kind("toolUsePromptTokensDetails", usage.toolUsePromptTokensDetails, tools)
    spoken, drawn = _by_kind("candidatesTokensDetails", usage.candidatesTokensDetails, answered)
    return Counts(
        input_tokens=fresh - audio - images + tools[1] - heard - seen,
        output_tokens=answered[1] - spoken - drawn,
        cache_read_tokens=cached[1],
        reasoning_tokens=thoughts[1],
        audio_input_tokens=audio + heard,
        image_input_tokens=images + seen,
        audio_output_tokens=spoken,
        image_output_tokens=drawn,
    )


def _bedrock(usage: BedrockConverse) -> Counts:
    read, written = usage.cacheReadInputTokens or 0, usage.cacheWriteInputTokens
    short, long = written or 0, 0
    if usage.cacheDetails:
        short, long = (
            sum(one.inputTokens for one in usage.cacheDetails if one.ttl == ttl) for ttl in ("5m", "1h")
        )
        if written is not None:
            parts = (("5m in cacheDetails", short), ("1h in cacheDetails", long))
            _equal(("cacheWriteInputTokens", written), parts)
    if usage.totalTokens is not None:
        parts = (("inputTokens", usage.inputTokens), ("outputTokens", usage.outputTokens))
        # with the cache, as the service counts, or without it, as its reference says
        if usage.totalTokens != usage.inputTokens + usage.outputTokens:
            cached = (("cacheReadInputTokens", read), ("cacheWriteInputTokens", short + long))
            _equal(("totalTokens", usage.totalTokens), (*parts, *cached))
    return Counts(
        input_tokens=usage.inputTokens,
        output_tokens=usage.outputTokens,
        cache_read_tokens=read,
        cache_write_5m_tokens=short,
        cache_write_1h_tokens=long,
    )


def _otel(usage: OTelGenAI) -> Counts:
    name = "gen_ai.usage."
    read, reasoning = usage.cache_read or 0, usage.reasoning or 0
    if usage.cache_write is not None and usage.cache_creation is not None:
        older = (f"{name}cache_creation.input_tokens", usage.cache_creation)
        _equal((f"{name}cache_write.input_tokens", usage.cache_write), (older,))
    written = usage.cache_creation if usage.cache_write is None else usage.cache_write
    write_name = "cache_creation" if usage.cache_write is None else "cache_write"
    cached = (
        (f"{name}cache_read.input_tokens", read),
        (f"{name}{write_name}.input_tokens", written or 0),
    )
    return Counts(
        input_tokens=_inside((f"{name}input_tokens", usage.input_tokens), cached),
        output_tokens=_inside(
            (f"{name}output_tokens", usage.output_tokens),
            ((f"{name}reasoning.output_tokens", reasoning),),
        ),
        cache_read_tokens=read,
        cache_write_5m_tokens=written or 0,
        reasoning_tokens=reasoning,
    )


# ---- events that hold them ---------------------------------------------------------------------------------


class ServiceTier(_Struct):
    """Bedrock's tier beside its usage."""

    type: str | None = None


_Format = Literal[
    "anthropic_messages", "openai_chat", "openai_responses", "gemini", "bedrock_converse", "otel_genai"
]
#: What `usage_format` may be.
USAGE_FORMATS: Final[tuple[str, ...]] = get_args(_Format)


class ProviderData(Data, gc=False, kw_only=True):
    """Data around a provider's usage: model and tier may be those that stand in the answer, beside the usage."""

    usage_format: _Format  # type: ignore[assignment]
    usage_convention: Literal["inclusive", "disjoint"] | None = None  # type: ignore[assignment]
    model_served: str | None = None  # type: ignore[assignment]
    tier_served: str | None = None  # type: ignore[assignment]
    model: str | None = None
    modelVersion: str | None = None  # noqa: N815
    service_tier: str | None = None
    serviceTier: str | ServiceTier | None = None  # noqa: N815
    tool_calls: _Said = None
    usage: msgspec.Raw  # type: ignore[assignment]


_DECODED: Final[Mapping[str, tuple[type[_Struct], Callable[[Any], Counts]]]] = {
    "anthropic_messages": (AnthropicMessages, _anthropic),
    "openai_chat": (OpenAIChat, _openai_chat),
    "openai_responses": (OpenAIResponses, _openai_responses),
    "gemini": (Gemini, _gemini),
    "bedrock_converse": (BedrockConverse, _bedrock),
    "otel_genai": (OTelGenAI, _otel),
}
assert tuple(_DECODED) == USAGE_FORMATS, "every format is decoded"


def _shape(usage: type[_Struct]) -> type[Event]:
    data = msgspec.defstruct(
        f"{usage.__name__}Data", [("usage", usage)], bases=(ProviderData,), kw_only=True, gc=False
    )
    made = msgspec.defstruct(
        f"{usage.__name__}Event", [("data", data)], bases=(Event,), kw_only=True, gc=False
    )
    return cast(type[Event], made)


_SHAPES: Final = {name: _shape(usage) for name, (usage, _) in _DECODED.items()}
_DECODERS: Final = {name: msgspec.json.Decoder(shape) for name, shape in _SHAPES.items()}


class _PeekedData(_Struct):
    usage_format: Any = None


class _Peeked(_Struct):
    data: _PeekedData


_peek: Final = msgspec.json.Decoder(_Peeked).decode


def _format_said(piece: bytes) -> Any:
    try:
        return _peek(piece).data.usage_format
    except wire.BAD_BYTES:
        pass
    try:
        return wire.decode_any(piece)["data"]["usage_format"]
    except (*wire.BAD_BYTES, KeyError, TypeError, IndexError):
        return None


def decode_provider_event(piece: bytes) -> tuple[Event, int] | Fault | None:
    """Read a usage event with a provider's usage: (event, unknown fields dropped), or what is wrong with it.

    The event comes out with counts that are disjoint, as if it had been sent so. None: it names no format, or
    is no event of usage.
    """
    said = _format_said(piece)
    if said is None:
        return None
    shape = _SHAPES.get(said) if isinstance(said, str) else None
    event: Event | None = None
    if shape is not None:
        with suppress(*wire.BAD_BYTES):
            event = _DECODERS[said].decode(piece)
    plain = None
    try:
        plain = wire.decode_any(piece)
    except wire.BAD_BYTES:
        # what is dropped may hold bytes that nobody can read: they do no harm to an event that could be read
        if event is None:
            return None
    if event is None:
        if (fault := wire.envelope_fault(plain)) is not None:
            return None if fault.code is RejectCode.TYPE_NOT_SUPPORTED else fault
        if not isinstance(said, str):
            return Fault(RejectCode.WRONG_TYPE, "data.usage_format", "data.usage_format: it must be a text")
        if shape is None:
            detail = f"data.usage_format is {quoted(said)}; it must be {', '.join(USAGE_FORMATS)}"
            return Fault(RejectCode.VALUE_UNKNOWN, "data.usage_format", detail)
        try:
            # the last of duplicate keys wins, also where an earlier one has the wrong type
            event = msgspec.convert(plain, shape)
        except wire.BAD_BYTES as failed:
            return wire.fault_of(failed, plain)
    settled = _settled(event, said)
    if isinstance(settled, Fault):
        return settled
    assert shape is not None, "an event was read by its shape"
    return settled, 1 if plain is None else _count_unknown(plain, _FIELDS[shape])


def _settled(event: Event, name: str) -> Event | Fault:
    """The event with counts beside each other, and with the model and tier that the provider says it served.

    What the event says itself comes first: it may be the word of the price book for the provider's.
    """
    data: Any = event.data
    try:
        counts = _DECODED[name][1](data.usage)
    except _Contradiction as found:
        return Fault(
            RejectCode.COUNTS_CONTRADICT, f"data.usage.{found.field}", f"in data.usage {found.detail}"
        )
    if data.tool_calls is not None:
        counts.tool_calls = data.tool_calls
    if max(value or 0 for value in msgspec.structs.astuple(counts)) > QUANTITY_MAX:
        detail = f"counts of data.usage add up to more than {QUANTITY_MAX}"
        return Fault(RejectCode.QUANTITY_OUT_OF_RANGE, "data.usage", detail)
    beside = data.serviceTier.type if isinstance(data.serviceTier, ServiceTier) else data.serviceTier
    served = {
        "model_served": (getattr(data.usage, "model", None), data.model, data.modelVersion),
        "tier_served": (getattr(data.usage, "service_tier", None), data.service_tier, beside),
    }
    fields = {field: getattr(data, field) for field in wire.DATA_FIELDS}
    for field, told in served.items():
        if fields[field] is None:
            fields[field] = next((one for one in told if one is not None), None)
        if fields[field] is None:
            detail = f"data.{field} is missing, and nothing of the provider's says it; it is required"
            return Fault(RejectCode.MISSING_FIELD, f"data.{field}", detail)
    fields |= {"usage": counts, "usage_convention": "disjoint", "usage_format": None}
    around = {field: getattr(event, field) for field in wire.EVENT_FIELDS}
    return Event(**(around | {"data": Data(**fields)}))


_Shape = Mapping[str, Any]


def _fields(shape: type[msgspec.Struct]) -> _Shape:
    """The fields of a shape by their names on the wire, with those of the shapes inside it."""
    return {field.encode_name: _inner(field.type) for field in msgspec.structs.fields(shape)}


def _inner(kind: Any) -> _Shape | None:
    for one in (kind, *get_args(kind)):
        if isinstance(one, type) and issubclass(one, msgspec.Struct):
            return _fields(one)
        for inside in get_args(one):
            if isinstance(inside, type) and issubclass(inside, msgspec.Struct):
                return _fields(inside)
    return None


_FIELDS: Final = {shape: _fields(shape) for shape in _SHAPES.values()}


def _count_unknown(plain: Any, known: _Shape) -> int:
    if isinstance(plain, list):
        return sum(_count_unknown(one, known) for one in plain)
    if not isinstance(plain, dict):
        return 0
    inner = sum(_count_unknown(plain[name], of) for name, of in known.items() if of and name in plain)
    return len(plain.keys() - known.keys()) + inner
