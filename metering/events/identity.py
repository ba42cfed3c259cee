"""Who an event is: its key, the keys of requests and series, and the digest of its content.

Everything here is a function of bytes that may never change: golden values pin it in the tests.
"""

import binascii
import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

from metering.events.instants import Bytes, Mask, byte_table
from metering.frames.frame import INSTANT
from metering.frames.usage import DIMENSIONS
from metering.meters import FIRST_METERS, FURTHER_METERS

#: Version of the content digest: the order and encoding of its fields, and the seed of its hash.
DIGEST_VERSION: Final = 1
#: Version of the digest of events that have further meters.
FURTHER_DIGEST_VERSION: Final = 2
KEY_BYTES: Final = 16
#: The fields of the content digest that are texts of their own, in order. The source is half of the identity
#: and therefore not content.
_CONTENT_TEXTS: Final = ("event_id", "request_id", "nonbillable_reason", "project", "seat", "usage_source")
#: Those that many events share; the others differ from event to event and are never null.
_OFTEN_REPEATED: Final = frozenset({"nonbillable_reason", "project", "seat", "usage_source"})
_CROCKFORD: Final = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_BAD: Final = 255
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_HYPHENS: Final = (8, 13, 18, 23)
_NIBBLES: Final = np.array([place for place in range(36) if place not in _HYPHENS])
#: Digests of series that are remembered: a few kilobytes of text each.
_SERIES_REMEMBERED: Final = 8_192


def _lookup(alphabet: bytes) -> Bytes:
    table = np.full(256, _BAD, dtype=np.uint8)
    table[np.frombuffer(alphabet, dtype=np.uint8)] = np.arange(len(alphabet), dtype=np.uint8)
    return table


_HEX_VALUES: Final = _lookup(b"0123456789abcdef")
_CROCKFORD_VALUES: Final = _lookup(_CROCKFORD)


@dataclass(frozen=True)
class EventKeys:
    """The keys of a column of ids, row by row.

    `keys` is a NumPy array of S16 (big-endian, compares as the 128-bit number does; use `key_list` to get at
    the bytes: a lone element of S16 loses its trailing zeros). `key_is_id` says that the id's text follows
    from the key (canonical UUIDv7), so that the text need not be stored. `id_at` is the time inside the id
    (UTC, whole milliseconds), null where there is none.
    """

    keys: npt.NDArray[np.bytes_]
    key_is_id: npt.NDArray[np.bool_]
    id_at: pl.Series


def key_list(keys: npt.NDArray[np.bytes_]) -> list[bytes]:
    """The 16 bytes of every key."""
    blob = np.ascontiguousarray(keys).tobytes()
    return [blob[start : start + KEY_BYTES] for start in range(0, len(blob), KEY_BYTES)]


def event_keys(event_ids: pl.Series) -> EventKeys:
    """The 128-bit key of each id, a function of the id alone.

    - a canonical UUIDv7 (36 characters, lower case, version 7, variant 8..b) is its own key;
    - a canonical ULID (26 upper-case Crockford characters, the first at most 7) is its own 128 bits;
    - any other id is the BLAKE2b-128 of its UTF-8 with the top bit set, above every time until 6429.
    """
    count = len(event_ids)
    table = np.zeros((count, KEY_BYTES), dtype=np.uint8)
    timed = np.zeros(count, dtype=np.bool_)
    key_is_id = np.zeros(count, dtype=np.bool_)
    widths = event_ids.str.len_bytes().to_numpy()
    if count and (widths == 36).all() and (own := _all_uuid7(byte_table(event_ids, 36))) is not None:
        return EventKeys(own.view(f"S{KEY_BYTES}").reshape(count), ~key_is_id, _id_times(own))
    for width, read in ((36, _uuid7_table), (26, _ulid_table)):
        rows = np.flatnonzero(widths == width)
        if len(rows):
            same = event_ids if len(rows) == count else event_ids.gather(rows)
            keys, valid = read(byte_table(same, width))
            table[rows[valid]] = keys[valid]
            timed[rows[valid]] = True
            if width == 36:
                key_is_id[rows[valid]] = True
    others = np.flatnonzero(~timed)
    if len(others):
        blake2b = hashlib.blake2b
        hashed = [
            blake2b(text.encode(), digest_size=KEY_BYTES).digest()
            for text in event_ids.gather(others).to_list()
        ]
        table[others] = np.frombuffer(b"".join(hashed), dtype=np.uint8).reshape(-1, KEY_BYTES)
        table[others, 0] |= 0x80
    id_at = _id_times(table)
    if len(others):
        id_at = id_at.zip_with(pl.Series(timed), id_at.clear(count))
    return EventKeys(table.view(f"S{KEY_BYTES}").reshape(count), key_is_id, id_at)


def _id_times(keys: Bytes) -> pl.Series:
    """The first 48 bits of each key as milliseconds since 1970."""
    millis = keys.view(">u8")[:, 0].astype(np.int64) >> 16 & 0xFFFF_FFFF_FFFF
    return pl.Series("id_at", millis * 1000).cast(INSTANT)


def _uuid7_table(texts: Bytes) -> tuple[Bytes, Mask]:
    nibbles = _HEX_VALUES[texts[:, _NIBBLES]]
    hyphens = np.logical_and.reduce([texts[:, place] == ord("-") for place in _HYPHENS])
    valid: Mask = hyphens & (nibbles != _BAD).all(axis=1)
    valid &= (nibbles[:, 12] == 7) & (nibbles[:, 16] >= 8) & (nibbles[:, 16] <= 11)
    keys = np.bitwise_or(nibbles[:, 0::2] << 4, nibbles[:, 1::2] & 15, dtype=np.uint8)
    return keys, valid


def _all_uuid7(texts: Bytes) -> Bytes | None:
    """The keys where every text is a canonical UUIDv7, as it mostly is; None: read them one by one."""
    if not all((texts[:, place] == ord("-")).all() for place in _HYPHENS):
        return None
    digits = texts.tobytes().replace(b"-", b"")
    try:
        keys = binascii.unhexlify(digits)
    except binascii.Error:
        return None
    # with more hyphens it would be shorter, and upper case does not come out again
    if len(keys) != KEY_BYTES * len(texts) or binascii.hexlify(keys) != digits:
        return None
    table = np.frombuffer(keys, np.uint8).reshape(-1, KEY_BYTES)
    known = ((table[:, 6] >> 4) == 7).all() and ((table[:, 8] >> 6) == 2).all()
    return table if known else None


def _ulid_table(texts: Bytes) -> tuple[Bytes, Mask]:
    fives = _CROCKFORD_VALUES[texts]
    valid: Mask = (fives != _BAD).all(axis=1) & (fives[:, 0] <= 7)
    high = np.left_shift(fives, 3, dtype=np.uint8)[:, :, None]
    bits = np.unpackbits(high, axis=2)[:, :, :5].reshape(len(texts), 130)
    return np.packbits(bits[:, 2:], axis=1), valid


def uuid7_texts(millis: npt.NDArray[np.int64], tail: Bytes) -> list[str]:
    """Canonical UUIDv7 texts from milliseconds since 1970 and (n, 10) bytes of tail (74 bits used)."""
    table = np.empty((len(millis), KEY_BYTES), dtype=np.uint8)
    table[:, :6] = millis.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 2:]
    table[:, 6:] = tail
    table[:, 6] = (table[:, 6] & 0x0F) | 0x70
    table[:, 8] = (table[:, 8] & 0x3F) | 0x80
    blob = table.tobytes().hex()
    texts = (blob[start : start + 32] for start in range(0, len(blob), 32))
    return [f"{t[:8]}-{t[8:12]}-{t[12:16]}-{t[16:20]}-{t[20:]}" for t in texts]


def uuid7_text(at: datetime, tail: bytes) -> str:
    """One canonical UUIDv7 text from an aware instant and 10 bytes of tail."""
    millis = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    return uuid7_texts(np.array([millis]), np.frombuffer(tail[:10], dtype=np.uint8).reshape(1, 10))[0]


def is_uuid7(text: str) -> bool:
    """Whether an id is a canonical UUIDv7 and therefore its own key."""
    return _UUID7.fullmatch(text) is not None


def numbered(column: pl.Series) -> tuple[list[str | None], npt.NDArray[np.intp]]:
    """The distinct texts of a column, null last where there is one, and for every row which of them it is."""
    texts = column.drop_nulls().unique()
    numbers = column.cast(pl.Enum(texts)).to_physical().cast(pl.Int64)
    values: list[str | None] = texts.to_list()
    if numbers.null_count():
        numbers = numbers.fill_null(len(values))
        values.append(None)
    return values, numbers.to_numpy().astype(np.intp, copy=False)


def request_keys(customers: pl.Series, request_ids: pl.Series) -> npt.NDArray[np.bytes_]:
    """128-bit keys (S16) of (customer, request_id): BLAKE2b over both, each after its length in 4 bytes."""
    length = struct.Struct(">I").pack
    distinct, numbers = numbered(customers)
    # what begins with the customer is hashed so far once: a copy goes on with the request
    begun = [hashlib.blake2b(length_prefixed(customer), digest_size=KEY_BYTES).copy for customer in distinct]
    digests = []
    for number, request_id in zip(numbers.tolist(), request_ids.cast(pl.Binary).to_list(), strict=True):
        hashed = begun[number]()
        hashed.update(length(len(request_id)) + request_id)
        digests.append(hashed.digest())
    return np.frombuffer(b"".join(digests), dtype=f"S{KEY_BYTES}")


def length_prefixed(value: str | int | None) -> bytes:
    """A field after its length in 4 bytes; an integer as 8 bytes; null as the length 2**32 - 1 alone."""
    if value is None:
        return b"\xff\xff\xff\xff"
    encoded = value.encode() if isinstance(value, str) else struct.pack(">q", value)
    return struct.pack(">I", len(encoded)) + encoded


def series_digest(dimensions: Sequence[str | int | None]) -> bytes:
    """The 16-byte digest that names one series: BLAKE2b over its dimensions in the declared order."""
    return hashlib.blake2b(b"".join(map(length_prefixed, dimensions)), digest_size=KEY_BYTES).digest()


_remembered_digest = lru_cache(maxsize=_SERIES_REMEMBERED)(series_digest)


def series_numbers(dimensions: pl.DataFrame) -> tuple[list[bytes], npt.NDArray[np.intp]]:
    """The digests of the distinct series of a frame (columns of frames.DIMENSIONS), and which one each row has."""
    columns = list(DIMENSIONS)
    grouped = dimensions.select(columns).with_row_index("row").group_by(columns).agg("row")
    digests = [_remembered_digest(row) for row in grouped.select(columns).rows()]
    numbers = np.empty(dimensions.height, np.intp)
    numbers[grouped["row"].explode().to_numpy()] = np.repeat(
        np.arange(len(digests)), grouped["row"].list.len()
    )
    return digests, numbers


def series_digests(dimensions: pl.DataFrame) -> pl.Series:
    """A Binary series with the digest of each row's dimensions (columns of frames.DIMENSIONS)."""
    digests, numbers = series_numbers(dimensions)
    return pl.Series("series_digest", digests, dtype=pl.Binary).gather(numbers)


_CONTENT: Final = np.dtype(
    [
        ("series", f"V{KEY_BYTES}"),
        ("occurred_at", ">i8"),
        ("attempt", ">i2"),
        ("duration_ms", ">i4"),
        *((meter, ">i4") for meter in FIRST_METERS),
    ]
)


def content_digests(events: pl.DataFrame, series: npt.NDArray[np.bytes_] | None = None) -> pl.Series:
    """The signed 64-bit xxh3 of each event's content: every typed field, the id's text, never the source.

    Row encoding of version 1: digest of the series (16 bytes), occurred_at (microseconds, 8), attempt (2),
    duration_ms (4; -1 for none), FIRST_METERS (4 each), all big-endian; then the texts of the event each as
    `length:text` in UTF-8 bytes, or `-` for none. The seed is the version. An event that has any of FURTHER_METERS
    is encoded in version 2: as in version 1, with all of these (4 each) between the meters and the texts.
    `events` is a frames.EVENTS frame, `series` the digests of its series (S16) where the caller has them already.
    """
    if series is None:
        series = np.frombuffer(b"".join(series_digests(events).to_list()), dtype=f"S{KEY_BYTES}")
    fixed = np.empty(events.height, dtype=_CONTENT)
    fixed["series"] = series.view(f"V{KEY_BYTES}")
    fixed["occurred_at"] = events["occurred_at"].dt.timestamp("us").to_numpy()
    fixed["attempt"] = events["attempt"].to_numpy()
    fixed["duration_ms"] = events["duration_ms"].fill_null(-1).to_numpy()
    for meter in FIRST_METERS:
        fixed[meter] = events[meter].to_numpy()
    pieces = [piece for name in _CONTENT_TEXTS for piece in _content_pieces(events[name])]
    texts = pl.select(pl.concat_str(pieces))["piece"].cast(pl.Binary).to_list()
    hashed = xxhash.xxh3_64_intdigest
    # as an opaque type: numpy makes one bytes object of each row
    rows = fixed.view(f"V{_CONTENT.itemsize}").tolist()
    digests = [hashed(row + text, DIGEST_VERSION) for row, text in zip(rows, texts, strict=True)]
    further = np.flatnonzero(digest_versions(events) == FURTHER_DIGEST_VERSION)
    if len(further):
        numbers = events.select(FURTHER_METERS)[further].to_numpy().astype(">i4")
        for at, more in zip(further.tolist(), numbers, strict=True):
            digests[at] = hashed(rows[at] + more.tobytes() + texts[at], FURTHER_DIGEST_VERSION)
    return pl.Series("content_digest", np.array(digests, dtype=np.uint64).view(np.int64))


def digest_versions(events: pl.DataFrame) -> npt.NDArray[np.int16]:
    """The version in which `content_digests` encodes each event."""
    has = events.select(pl.any_horizontal(pl.col(FURTHER_METERS) != 0)).to_series().to_numpy()
    return np.where(has, FURTHER_DIGEST_VERSION, DIGEST_VERSION).astype(np.int16)


def _content_pieces(column: pl.Series) -> list[pl.Series]:
    """What a column of texts adds to the content of each event, in pieces to be joined."""
    if column.name in _OFTEN_REPEATED:
        distinct, numbers = numbered(column)
        told = ["-" if text is None else f"{len(text.encode())}:{text}" for text in distinct]
        return [pl.Series("piece", told, dtype=pl.String).gather(numbers)]
    sizes = column.str.len_bytes()
    lengths = pl.Series("piece", [f"{size}:" for size in range(int(sizes.to_numpy().max(initial=0)) + 1)])
    return [lengths.gather(sizes), column]
