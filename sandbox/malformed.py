"""Lines that a real stream also holds: each is wrong in one way, and named by the code it must get."""

import json
from datetime import UTC, date, datetime
from typing import Any

from metering.events.identity import uuid7_text
from metering.events.rejects import RejectCode


def malformed_lines(day: date, tail: bytes) -> list[tuple[bytes, str]]:
    """Some malformed lines of a day, each with its reject code. `tail`: 10 bytes that make its ids."""
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    long_ago, far_ahead = datetime(2001, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC)

    def event(number: int, at: datetime = noon, **changes: Any) -> dict[str, Any]:
        made: dict[str, Any] = {
            "specversion": "1.0",
            "id": uuid7_text(at, bytes([number]) + tail[1:]),
            "source": "gateway/us-west",
            "type": "inference.usage.v1",
            "subject": "corvid-games",
            "time": noon.isoformat(),
            "data": {
                "request_id": f"malformed-{number}",
                "provider": "own",
                "model_served": "lumen-small",
                "tier_served": "standard",
                "capacity_pool": "block-a",
                "ran_on": "pool",
                "usage_convention": "inclusive",
                "usage": {"input_tokens": 1_000, "output_tokens": 100},
            },
        }
        for path, value in changes.items():
            where, names = made, path.split("__")
            for name in names[:-1]:
                where = where[name]
            where[names[-1]] = value
        return made

    events: list[tuple[dict[str, Any], RejectCode]] = [
        (event(1, time="yesterday at noon"), RejectCode.TIME_INVALID),
        (event(2, time=noon.replace(tzinfo=None).isoformat()), RejectCode.TIME_INVALID),
        (event(3, data__usage__input_tokens=-5), RejectCode.QUANTITY_OUT_OF_RANGE),
        (event(4, data__usage__output_tokens=2**63), RejectCode.QUANTITY_OUT_OF_RANGE),
        (event(5, data__usage__output_tokens=12.5), RejectCode.WRONG_TYPE),
        (event(6, data__usage__cache_read_tokens=4_000), RejectCode.COUNTS_CONTRADICT),
        (event(7, data__usage__reasoning_tokens=101), RejectCode.COUNTS_CONTRADICT),
        (event(8, id="x" * 10_000), RejectCode.ID_INVALID),
        (event(9, long_ago), RejectCode.TOO_OLD),
        (event(10, far_ahead), RejectCode.ID_FROM_FUTURE),
        (event(11, time=far_ahead.isoformat()), RejectCode.TIME_FROM_FUTURE),
        (event(12, data__capacity_pool=None), RejectCode.POOL_MISSING),
        (event(13, data__ran_on="moon"), RejectCode.VALUE_UNKNOWN),
        (event(14, data__billable=False), RejectCode.REASON_CONTRADICTS),
        (event(15, type="inference.usage.v2"), RejectCode.TYPE_NOT_SUPPORTED),
        (event(16, specversion="0.3"), RejectCode.SPEC_VERSION_UNSUPPORTED),
        (event(17, subject=None), RejectCode.MISSING_FIELD),
        (event(18, subject="nul\0nul"), RejectCode.TEXT_INVALID),
    ]
    lines = [(json.dumps(made).encode(), str(code)) for made, code in events]
    lines.append((b'{"specversion":"1.0","id":"cut off in the mid', str(RejectCode.NOT_JSON)))
    lines.append((b'["not", "an", "object"]', str(RejectCode.NOT_AN_EVENT)))
    return lines
