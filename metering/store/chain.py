"""The hash chain: what a batch and a watermark are called in 32 bytes, by a fixed encoding.

Version 1, big-endian throughout, every text and every optional value length-prefixed:

    field     = uint32 length, bytes         an integer is 8 bytes (int64), absent: length 2**32 - 1
    row       = ROW, 159 bytes               surrogate ids are replaced by digests of what they stand for
    id text   = uint32 ordinal, uint32 length, bytes          only of rows whose event id is not the key
    root      = SHA-256( "metering batch root", version, row count, row size, rows, id text count, id texts )
                version 2, only where a row has further meters: then follow their count and for each
                uint32 ordinal, int32 of every further meter
    head      = SHA-256( field* )            field 1 the name of the chain, 2 the version, 3 the previous head

A series is named by the digest of its dimensions, a source, project or seat by that of its text, so that the
same ledger in another database, where the ids differ, has the same heads. The first previous head of every
chain is GENESIS.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

import numpy as np
import numpy.typing as npt

from metering.meters import FIRST_METERS
from metering.store.ledger_rows import Rows, further_bytes, has_further

CHAIN_VERSION: Final = 1
#: Of the root of a batch that has rows with further meters.
FURTHER_VERSION: Final = 2
GENESIS: Final = bytes(32)

#: A row as it is hashed. `compensating` is 1 where the source id is negative; `duration_ms` -1: unknown.
ROW: Final = np.dtype(
    [
        ("ordinal", ">i4"),
        ("event_key", "S16"),
        ("source", "S16"),
        ("compensating", "u1"),
        ("request_key", "S16"),
        ("occurred_at", ">i8"),  # microseconds since 1970
        ("digest", ">i8"),
        ("series", "S16"),
        ("project", "S16"),
        ("seat", "S16"),
        ("duration_ms", ">i4"),
        *((meter, ">i4") for meter in FIRST_METERS),
        ("attempt", ">i2"),
        ("event_type", ">i2"),
        ("usage_source", ">i2"),
        ("nonbillable_reason", ">i2"),
        ("digest_version", ">i2"),
    ]
)
_SAME: Final = tuple(
    name for name in ROW.names or () if name not in ("source", "compensating", "series", "project", "seat")
)
#: Rows encoded at once: they stay in the processor's cache.
_CHUNK: Final = 1_000
_ABSENT: Final = struct.pack(">I", 2**32 - 1)

Digests = npt.NDArray[np.bytes_] | npt.NDArray[np.void] | npt.NDArray[np.uint8]


def text_digest(text: str) -> bytes:
    """The 16 bytes that name a source, a project or a seat (BLAKE2b of its text); that of '' names none."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def aligned(ids: npt.NDArray[np.integer], digests: Mapping[int, bytes]) -> npt.NDArray[np.bytes_]:
    """The digest of each id, as an array beside `ids`. An id without one is a KeyError."""
    known, positions = np.unique(ids, return_inverse=True)
    return np.frombuffer(b"".join(digests[one] for one in known.tolist()), "S16")[positions]


def batch_root(
    rows: Rows,
    *,
    series: Digests,
    sources: Digests,
    projects: Digests,
    seats: Digests,
    event_ids: Sequence[str] | None = None,
) -> bytes:
    """The root of a batch: SHA-256 over its ledger rows in ordinal order.

    `rows` are LEDGER_ROWs. The digests are aligned with them, (n,) of S16 or V16 or (n, 16) of uint8; id 0,
    no series, project or seat, is named by `text_digest("")`. `event_ids` are aligned too, '' where the key is
    the id; None means all ''. Rows out of order are an assert.
    """
    encoded = np.empty(len(rows), ROW)
    for start in range(0, len(rows), _CHUNK):
        piece = slice(start, start + _CHUNK)
        encode_rows(
            rows[piece],
            encoded[piece],
            series=series[piece],
            sources=sources[piece],
            projects=projects[piece],
            seats=seats[piece],
        )
    return root_of(encoded, event_ids, further_of(rows))


def encode_rows(
    rows: Rows, into: Rows, *, series: Digests, sources: Digests, projects: Digests, seats: Digests
) -> None:
    """Write LEDGER_ROWs `into` as many ROWs, as they are hashed; the digests are as in `batch_root`."""
    for name in _SAME:
        into[name] = rows[name]
    into["compensating"] = rows["source_id"] < 0
    for name, digests in (("series", series), ("source", sources), ("project", projects), ("seat", seats)):
        into[name] = _sixteens(digests, len(rows))


def further_of(rows: Rows) -> bytes:
    """What the further meters of rows in ordinal order add to their root; nothing where no row has any."""
    chosen = np.flatnonzero(has_further(rows))
    if not len(chosen):
        return b""
    some = rows[chosen]
    numbers = further_bytes(some)
    ordinals = some["ordinal"].astype(">i4").view(np.uint8).reshape(-1, 4)
    return struct.pack(">Q", len(chosen)) + np.hstack([ordinals, numbers]).tobytes()


def root_of(encoded: Rows, event_ids: Sequence[str] | None = None, further: bytes = b"") -> bytes:
    """The root of a batch from its ROWs in ordinal order, and their id texts ('' or None: the key is the id).

    `further` is what `further_of` says of the same rows.
    """
    assert bool((np.diff(encoded["ordinal"]) > 0).all()), "rows of a batch are hashed in ordinal order"
    hasher = hashlib.sha256(b"metering batch root")
    version = FURTHER_VERSION if further else CHAIN_VERSION
    hasher.update(struct.pack(">IQI", version, len(encoded), ROW.itemsize))
    hasher.update(encoded.view(np.uint8).data if len(encoded) else b"")
    texts = (
        []
        if event_ids is None
        else [
            struct.pack(">iI", ordinal, len(text)) + text
            for ordinal, text in zip(
                encoded["ordinal"].tolist(), (one.encode() for one in event_ids), strict=True
            )
            if text
        ]
    )
    hasher.update(struct.pack(">Q", len(texts)))
    hasher.update(b"".join(texts))
    hasher.update(further)
    return hasher.digest()


def _sixteens(digests: Digests, count: int) -> npt.NDArray[np.bytes_]:
    named = np.ascontiguousarray(digests).view("S16").reshape(-1)
    assert len(named) == count, f"{len(named)} digests for {count} rows"
    return named


def batch_head(
    previous_head: bytes,
    *,
    kind: str,
    topic_uuid: UUID | None,
    partition: int | None,
    sequence: int,
    first_offset: int,
    next_offset: int,
    records: int,
    received: int,
    accepted: int,
    duplicate: int,
    conflict: int,
    rejected: int,
    root: bytes,
) -> bytes:
    """The head of an intake after a batch; `previous_head` is that of the batch before (GENESIS at 0)."""
    topic = None if topic_uuid is None else topic_uuid.bytes
    counts = (records, received, accepted, duplicate, conflict, rejected)
    return head(
        "metering batch",
        previous_head,
        kind,
        topic,
        partition,
        sequence,
        first_offset,
        next_offset,
        *counts,
        root,
    )


def head(chain: str, previous_head: bytes, *fields: str | bytes | int | None) -> bytes:
    """SHA-256 over the name of a chain, the version, the previous head and the fields of one entry."""
    return hashlib.sha256(b"".join(map(_field, (chain, CHAIN_VERSION, previous_head, *fields)))).digest()


def _field(value: str | bytes | int | None) -> bytes:
    if value is None:
        return _ABSENT
    if isinstance(value, int):
        value = struct.pack(">q", value)
    elif isinstance(value, str):
        value = value.encode()
    return struct.pack(">I", len(value)) + value
