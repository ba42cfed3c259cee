"""Importing the public Azure LLM inference trace (2023): rows of a CSV file become usage events.

The trace has a time and two counts. What it lacks is laid over it, from the row's number alone, so that a
second import makes the same events and is all duplicates:

    source            import://azure-trace/conv (or .../code: `--trace`)
    id                UUIDv7: the row's time, and the hash of (source, row number, the row's text)
    time              TIMESTAMP, UTC, floored to the microsecond
    subject           trace-01 .. trace-05, about 40, 25, 18, 12, 5 of 100 rows, by a hash of the row number
    request_id        conv-<row number>, the first row of data being 1
    usage             input_tokens = ContextTokens, output_tokens = GeneratedTokens, inclusive
    served            provider azure, model and product chat-large, tier standard, region eastus
    ran on            pool ptu-chat; every row is billable, attempt 1
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Final

import msgspec

from metering.errors import BadInput
from metering.events.identity import uuid7_text
from metering.events.wire import USAGE_TYPE
from metering.meters import QUANTITY_MAX
from metering.settings import Settings
from workers.send import EVENTS_PER_RECORD, Progress, opened, send_lines

TRACES: Final = ("conv", "code")
_COLUMNS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
#: Customers, each with the upper end of its share of 100.
_CUSTOMERS: Final = (
    ("trace-01", 40),
    ("trace-02", 65),
    ("trace-03", 83),
    ("trace-04", 95),
    ("trace-05", 100),
)
_WANTED: Final = "the CSV of an Azure trace, such as AzureLLMInferenceTrace_conv.csv"
_TIME = re.compile(r"((?:19[7-9]\d|[2-9]\d{3})-\d{2}-\d{2}) (\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?")
_COUNT = re.compile(r"\d{1,10}")
_UNCHANGING: Final = {
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
}


def import_trace(
    settings: Settings,
    path: str,
    *,
    trace: str = "conv",
    limit: int | None = None,
    events_per_record: int = EVENTS_PER_RECORD,
    progress: Progress = lambda sent: None,
) -> int:
    """Send the rows of a trace as events; returns how many. Every row is read before the first is sent.

    Raises BadInput naming file, line, column and value, and what Producer raises.
    """
    if trace not in TRACES:
        raise BadInput(f"--trace {trace}: give one of {', '.join(TRACES)}")
    with opened(path, _WANTED) as lines:
        for _ in trace_events(lines, path, trace=trace, limit=limit):
            pass
    with opened(path, _WANTED) as lines:
        events = trace_events(lines, path, trace=trace, limit=limit)
        return send_lines(
            settings, events, path, events_per_record=events_per_record, raw=True, progress=progress
        )


def trace_events(
    lines: Iterable[bytes], path: str, *, trace: str = "conv", limit: int | None = None
) -> Iterator[bytes]:
    """The events of a trace's lines, header first, as JSON."""
    rows = iter(lines)
    header = _text(next(rows, b""), path, 1).removeprefix("\ufeff")
    if tuple(header.split(",")) != _COLUMNS:
        raise BadInput(f"{path}: line 1 is '{header[:80]}'; an Azure trace begins with {','.join(_COLUMNS)}")
    encode = msgspec.json.Encoder().encode
    for number, line in enumerate(islice(rows, limit), start=1):
        text = _text(line, path, number + 1)
        if text:
            yield encode(_event(text, number, trace, f"{path}: line {number + 1}"))


def _text(line: bytes, path: str, number: int) -> str:
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise BadInput(
            f"{path}: line {number} is not text in UTF-8; give the CSV file as published"
        ) from None


def _event(text: str, number: int, trace: str, place: str) -> dict[str, object]:
    fields = text.split(",")
    if len(fields) != len(_COLUMNS):
        raise BadInput(
            f"{place}: '{text[:80]}' has {len(fields)} columns; {','.join(_COLUMNS)} are {len(_COLUMNS)}"
        )
    occurred_at, time = _instant(fields[0], f"{place}, column {_COLUMNS[0]}")
    source = f"import://azure-trace/{trace}"
    tail = hashlib.blake2b(f"{source}\n{number}\n{text}".encode(), digest_size=10).digest()
    return {
        "specversion": "1.0",
        "id": uuid7_text(occurred_at, tail),
        "source": source,
        "type": USAGE_TYPE,
        "subject": customer_of(number),
        "time": time,
        "data": {
            "request_id": f"{trace}-{number}",
            **_UNCHANGING,
            "usage": {
                "input_tokens": _count(fields[1], f"{place}, column {_COLUMNS[1]}"),
                "output_tokens": _count(fields[2], f"{place}, column {_COLUMNS[2]}"),
            },
        },
    }


def customer_of(number: int) -> str:
    """The customer that a row number belongs to."""
    share = int.from_bytes(hashlib.blake2b(str(number).encode(), digest_size=8).digest()) % 100
    return next(customer for customer, end in _CUSTOMERS if share < end)


def _instant(text: str, place: str) -> tuple[datetime, str]:
    """The instant floored to the microsecond, and its RFC 3339 text."""
    match = _TIME.fullmatch(text)
    if match is not None:
        micros = (match[3] or "")[:6].ljust(6, "0")
        try:
            instant = datetime.fromisoformat(f"{match[1]}T{match[2]}.{micros}").replace(tzinfo=UTC)
        except ValueError:
            match = None
        else:
            return instant, f"{match[1]}T{match[2]}.{micros}Z"
    raise BadInput(f"{place}: '{text[:80]}' is not a time; it must look like 2023-11-16 18:15:46.6805900")


def _count(text: str, place: str) -> int:
    if _COUNT.fullmatch(text) and int(text) <= QUANTITY_MAX:
        return int(text)
    raise BadInput(
        f"{place}: '{text[:80]}' is not a count; it must be a whole number from 0 to {QUANTITY_MAX}"
    )
