"""Sending: lines of JSON, from a file or a pipe, become records of many events each."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from metering.errors import BadInput, Unavailable
from metering.events.wire import BAD_BYTES
from metering.settings import Settings
from metering.stream.producer import Producer

EVENTS_PER_RECORD = 100
LINES = "application/x-ndjson"
#: The name of standard input on the command line.
STDIN = "-"
#: Told how many events have been handed over so far.
Progress = Callable[[int], None]

_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def send(
    settings: Settings,
    source: str,
    *,
    events_per_record: int = EVENTS_PER_RECORD,
    raw: bool = False,
    progress: Progress = lambda sent: None,
) -> int:
    """Send newline-delimited events from a file, or from standard input ('-'); returns how many.

    A file is read to its end before anything is sent, and BadInput names the line that is not a JSON object.
    Standard input is sent as it comes, up to such a line. `raw` sends every line as it is. Raises Unavailable
    where events were not acknowledged.
    """
    if source == STDIN:
        return send_lines(
            settings, sys.stdin.buffer, STDIN, events_per_record=events_per_record, raw=raw, progress=progress
        )
    if not raw:
        with opened(source, "a file of events, one a line") as lines:
            for _ in checked(lines, source, settings.record_bytes_max):
                pass
    with opened(source, "a file of events, one a line") as lines:
        return send_lines(
            settings, lines, source, events_per_record=events_per_record, raw=raw, progress=progress
        )


def send_lines(
    settings: Settings,
    lines: Iterable[bytes],
    name: str,
    *,
    events_per_record: int = EVENTS_PER_RECORD,
    raw: bool = False,
    progress: Progress = lambda sent: None,
) -> int:
    """Send lines, one event each, as records of at most `events_per_record`; returns how many events."""
    if not 1 <= events_per_record <= settings.record_events_max:
        raise BadInput(
            f"--events-per-record {events_per_record}: give 1 to {settings.record_events_max} "
            "(METERING_RECORD_EVENTS_MAX)"
        )
    sent = 0
    failed: BadInput | None = None
    with Producer(settings) as producer:
        events = filled(lines) if raw else checked(lines, name, settings.record_bytes_max)
        records = in_records(events, events_per_record, settings.record_bytes_max)
        try:
            for record in records:
                producer.send(b"\n".join(record), LINES, events=len(record))
                sent += len(record)
                progress(sent)
        except BadInput as error:
            failed = error
        receipt = producer.flush()
    if receipt.failed:
        raise Unavailable(
            f"{receipt.failed} of {sent} events were not acknowledged by Kafka ({receipt.first_error}); "
            "send them again: an event that did arrive is recognised by its id and counted once"
        )
    if failed is not None:
        raise BadInput(f"{failed}; events sent before it: {receipt.acknowledged:,}")
    return receipt.acknowledged


def filled(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines that hold anything, without their line ends."""
    for line in lines:
        stripped = line.strip(b" \t\r\n")
        if stripped:
            yield stripped


def checked(lines: Iterable[bytes], name: str, bytes_max: int) -> Iterator[bytes]:
    """The same; BadInput names the first line that is no JSON object or too large, after all before it were given."""
    name = "standard input" if name == STDIN else name
    for number, line in enumerate(lines, start=1):
        stripped = line.strip(b" \t\r\n")
        if not stripped:
            continue
        if len(stripped) > bytes_max:
            raise BadInput(
                f"{name}: line {number} has {len(stripped):,} bytes; a record holds at most {bytes_max:,} "
                "(METERING_RECORD_BYTES_MAX), and an event much less: correct it"
            )
        try:
            _object(stripped)
        except BAD_BYTES as error:
            raise BadInput(
                f"{name}: line {number} is not a JSON object: {error}; "
                "correct it (or use --raw to send lines as they are)"
            ) from None
        yield stripped


def in_records(events: Iterable[bytes], events_max: int, bytes_max: int) -> Iterator[list[bytes]]:
    """Group events into records within both bounds; an error of `events` comes after what was before it."""
    record: list[bytes] = []
    size = 0
    try:
        for event in events:
            if record and (len(record) == events_max or size + len(event) + 1 > bytes_max):
                yield record
                record, size = [], 0
            record.append(event)
            size += len(event) + 1
    except BadInput:
        if record:
            yield record
        raise
    if record:
        yield record


@contextmanager
def opened(path: str, wanted: str) -> Iterator[BinaryIO]:
    """A file to read; BadInput names it, why it cannot be read, and what is `wanted` instead."""
    try:
        file = Path(path).open("rb")  # noqa: SIM115  # only the opening is guarded, not what the reader does
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}; give {wanted}") from None
    with file:
        yield file
