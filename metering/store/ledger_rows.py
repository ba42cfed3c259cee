"""Ledger rows in memory: one packed numpy row per event, and the binary formats that carry them.

A row has the columns of `usage_events` in table order, except the text `event_id`, which travels beside it
and is '' for every event whose key is its id. Integers are native, instants are microseconds since 1970 UTC,
keys are 16 raw bytes, a missing `duration_ms` is -1.

The further meters are numbers in memory and one value in the table: their 32-bit integers in order, big-endian,
or empty where all of them are 0. An empty value takes the one byte by which rows were padded.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg.pq import ExecStatus

from metering.meters import FIRST_METERS, FURTHER_METERS

Rows = npt.NDArray[np.void]

#: Kinds of fixed-width columns: (numpy type in memory, type on the wire).
_KINDS: Final = {
    "uuid": ("S16", "S16"),
    "instant": ("<i8", ">i8"),
    "int8": ("<i8", ">i8"),
    "int4": ("<i4", ">i4"),
    "int2": ("<i2", ">i2"),
    "further": ("V20", "V20"),
}
#: The fixed-width columns of the ledger in table order, each with its kind.
LEDGER_COLUMNS: Final[Mapping[str, str]] = {
    "event_key": "uuid",
    "request_key": "uuid",
    "occurred_at": "instant",
    "digest": "int8",
    "batch_id": "int8",
    "source_id": "int4",
    "ordinal": "int4",
    "series_id": "int4",
    "project_id": "int4",
    "seat_id": "int4",
    "duration_ms": "int4",
    **dict.fromkeys(FIRST_METERS, "int4"),
    "attempt": "int2",
    "event_type": "int2",
    "usage_source": "int2",
    "nonbillable_reason": "int2",
    "digest_version": "int2",
}
#: The columns that a COPY of `to_copy_binary` names, in its order.
COPY_COLUMNS: Final = (*LEDGER_COLUMNS, "event_id", "further_meters")
#: How reading and writing name the further meters of a row.
FURTHER_COLUMNS: Final[Mapping[str, str]] = dict.fromkeys(FURTHER_METERS, "int4")
_FURTHER_BYTES: Final = 4 * len(FURTHER_METERS)

#: Postgres counts microseconds from 2000-01-01, this program from 1970-01-01.
_EPOCH: Final = 946_684_800_000_000
_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"
#: Rows encoded at once: they stay in the processor's cache (20,000 at once take seven times as long).
_CHUNK: Final = 1_000
#: Rows that a read hands over at once.
_PIECES: Final = 65_536


def row_dtype(columns: Mapping[str, str]) -> np.dtype[np.void]:
    """The packed numpy row of `columns` (name -> uuid | instant | int8 | int4 | int2)."""
    return np.dtype([(name, _KINDS[kind][0]) for name, kind in columns.items()])


def _wire_dtype(columns: Mapping[str, str], *more: tuple[str, str]) -> np.dtype[np.void]:
    """One tuple of the binary COPY format: a field count, then a length before every field, then `more`."""
    fields: list[tuple[str, str]] = [("fields", ">i2")]
    for name, kind in columns.items():
        fields += [(f"{name} length", ">i4"), (name, _KINDS[kind][1])]
    return np.dtype([*fields, *more])


def _wire_template(columns: Mapping[str, str], dtype: np.dtype[np.void], fields: int) -> Rows:
    template = np.zeros(1, dtype)
    template["fields"] = fields
    for name, kind in columns.items():
        template[f"{name} length"] = np.dtype(_KINDS[kind][1]).itemsize
    return template


LEDGER_ROW: Final = row_dtype({**LEDGER_COLUMNS, **FURTHER_COLUMNS})
_LEDGER_WIRE: Final = _wire_dtype(LEDGER_COLUMNS, ("event_id length", ">i4"), ("further length", ">i4"))
_LEDGER_TEMPLATE: Final = _wire_template(LEDGER_COLUMNS, _LEDGER_WIRE, len(COPY_COLUMNS))


def take(rows: Rows, chosen: npt.NDArray[np.intp]) -> Rows:
    """The chosen rows, as `rows[chosen]` but as opaque bytes: numpy copies a row of fields field by field."""
    return rows.view(f"V{rows.dtype.itemsize}").take(chosen).view(rows.dtype)


def joined(pieces: Sequence[Rows]) -> Rows:
    """The rows of all pieces of one type in one array, copied as opaque bytes."""
    opaque = [piece.view(f"V{piece.dtype.itemsize}") for piece in pieces]
    return np.concatenate(opaque).view(pieces[0].dtype)


def to_copy_binary(rows: Rows, event_ids: Sequence[str] | None = None) -> bytes:
    """The bytes of `COPY usage_events (COPY_COLUMNS) FROM STDIN (FORMAT binary)` for LEDGER_ROWs, in order.

    `event_ids` is aligned with `rows`; None means that every key is its own id (all texts are ''). Rows
    without duration, with a text or with a further meter are slower by about four times.
    """
    texts = None if event_ids is None else [text.encode() for text in event_ids]
    assert texts is None or len(texts) == len(rows), f"{len(texts or ())} event ids for {len(rows)} rows"
    pieces = [_SIGNATURE]
    # what does not change from row to row is written once: assigning whole rows is what takes long
    wire = np.empty(min(len(rows), _CHUNK), _LEDGER_WIRE)
    wire[:] = _LEDGER_TEMPLATE
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        wire = wire[: len(chunk)]
        for name in LEDGER_COLUMNS:
            wire[name] = chunk[name]
        wire["occurred_at"] -= _EPOCH
        unknown = chunk["duration_ms"] < 0
        ids = texts[start : start + _CHUNK] if texts is not None else []
        further = has_further(chunk)
        if any(ids) or unknown.any() or further.any():
            pieces.append(_squeezed(wire, unknown, ids, further, further_bytes(chunk)).tobytes())
            for name in ("duration_ms length", "event_id length", "further length"):
                wire[name] = _LEDGER_TEMPLATE[name]
        else:
            pieces.append(wire.tobytes())
    return b"".join((*pieces, _TRAILER))


def has_further(rows: Rows) -> npt.NDArray[np.bool_]:
    """Which rows have a further meter that is not 0."""
    has: npt.NDArray[np.bool_] = np.logical_or.reduce([rows[name] != 0 for name in FURTHER_METERS])
    return has


def further_bytes(rows: Rows) -> npt.NDArray[np.uint8]:
    """The further meters of each row as they are stored and hashed: (n, 4 a meter), big-endian."""
    numbers = np.stack([rows[name] for name in FURTHER_METERS], axis=1, dtype=">i4", casting="equiv")
    return numbers.view(np.uint8).reshape(len(rows), _FURTHER_BYTES)


def meter_sql(meter: str, table: str = "") -> str:
    """The SQL expression for a meter of a ledger row, 0 where it has none; `table`: its name there."""
    column = f"{table}." if table else ""
    if meter not in FURTHER_METERS:
        return f"{column}{meter}"
    column += "further_meters"
    first = 4 * FURTHER_METERS.index(meter) + 1
    number = f"('x' || encode(substring({column} FROM {first} FOR 4), 'hex'))::bit(32)::integer"
    return f"CASE WHEN {column} = '' THEN 0 ELSE {number} END"


def _squeezed(
    wire: Rows,
    unknown: npt.NDArray[np.bool_],
    texts: list[bytes],
    has: npt.NDArray[np.bool_],
    further: npt.NDArray[np.uint8],
) -> npt.NDArray[np.uint8]:
    """The wire rows without the four bytes of unknown durations, each with its text and its further meters."""
    # the text stands between the two lengths at the end
    fixed = _LEDGER_WIRE.itemsize - 4
    wire["duration_ms length"][unknown] = -1
    wire["further length"] = np.where(has, _FURTHER_BYTES, 0)
    lengths = np.fromiter(map(len, texts), np.int32, len(texts)) if texts else np.zeros(len(wire), np.int32)
    wire["event_id length"] = lengths
    longest = int(lengths.max(initial=0))
    matrix = np.empty((len(wire), fixed + longest + 4 + _FURTHER_BYTES), np.uint8)
    encoded = wire.view(np.uint8).reshape(-1, fixed + 4)
    matrix[:, :fixed] = encoded[:, :fixed]
    matrix[:, fixed + longest : fixed + longest + 4] = encoded[:, fixed:]
    matrix[:, fixed + longest + 4 :] = further
    kept = np.ones(matrix.shape, np.bool_)
    fields = _LEDGER_WIRE.fields
    assert fields is not None
    at = fields["duration_ms"][1]
    kept[:, at : at + 4] = ~unknown[:, None]
    if longest:
        padded = np.array(texts, f"S{longest}").view(np.uint8).reshape(-1, longest)
        matrix[:, fixed : fixed + longest] = padded
        kept[:, fixed : fixed + longest] = np.arange(longest) < lengths[:, None]
    kept[:, fixed + longest + 4 :] = has[:, None]
    return matrix[kept]


def read_batches(
    connection: psycopg.Connection[Any],
    batch_ids: Sequence[int],
    columns: Mapping[str, str],
    condition: str = "true",
) -> dict[int, Rows]:
    """The rows of whole batches, by batch and in no order within it; a batch without rows is absent.

    `columns` are of the ledger, named as in LEDGER_COLUMNS and FURTHER_COLUMNS; integers are big-endian. Each
    batch comes as one value, and as another one of those rows that have further meters, if they are asked for:
    a client that takes row by row spends as much time on each as the server does. Memory: about 0.4 KiB a row;
    ask for a hundred thousand rows or so at once. Works in the transaction of `connection`.
    """
    if not batch_ids:
        return {}
    first = {name: kind for name, kind in columns.items() if name not in FURTHER_COLUMNS}
    further = len(first) < len(columns)
    fields = ", ".join(f"coalesce({name}, -1)" if name == "duration_ms" else name for name in first)
    sent = f"string_agg(record_send(ROW({fields})), '')"
    if further:
        sent = (
            f"{sent} FILTER (WHERE further_meters = ''), "
            f"string_agg(record_send(ROW({fields}, further_meters)), '') FILTER (WHERE further_meters <> '')"
        )
    # without statistics of today's partition the planner would read every partition whole; and what several
    # processes gather they would sort
    for off in ("enable_seqscan", "jit", "max_parallel_workers_per_gather"):
        connection.execute(f"SET LOCAL {off} = 0")
    with connection.cursor(binary=True) as cursor:
        found = cursor.execute(
            f"SELECT wanted, sent.* FROM unnest(%s::bigint[]) AS wanted CROSS JOIN LATERAL "
            f"(SELECT {sent} FROM usage_events WHERE batch_id = wanted AND {condition}) sent".encode(),
            (list(batch_ids),),
        ).fetchall()
    connection.execute("SET LOCAL enable_seqscan = on")
    if not further:
        return {batch_id: _from_records(value, first) for batch_id, value in found if value is not None}
    return {
        batch_id: _with_further(plain or b"", more or b"", first)
        for batch_id, plain, more in found
        if plain is not None or more is not None
    }


def _with_further(plain: bytes, more: bytes, first: Mapping[str, str]) -> Rows:
    """The rows of a batch that have no further meter (0 then) and those that have, sent as one value."""
    narrow, wide = record_dtype(first), record_dtype({**first, **FURTHER_COLUMNS})
    none = _from_records(plain, first)
    some = _from_records(more, {**first, "further_meters": "further"})
    rows = np.zeros(len(none) + len(some), wide)
    # as plain bytes, or numpy would copy field by field
    every = rows.view(np.uint8).reshape(len(rows), wide.itemsize)
    every[: len(none), : narrow.itemsize] = none.view(np.uint8).reshape(-1, narrow.itemsize)
    told = some.view(np.uint8).reshape(-1, some.dtype.itemsize)
    every[len(none) :, : narrow.itemsize] = told[:, : narrow.itemsize]
    numbers = np.ascontiguousarray(told[:, -_FURTHER_BYTES:]).view(">i4")
    for place, name in enumerate(FURTHER_METERS):
        rows[name][len(none) :] = numbers[:, place]
    return rows


def record_dtype(columns: Mapping[str, str]) -> np.dtype[np.void]:
    """The rows of `read_batches`: what stands before each column on the wire stands there too."""
    fields: list[tuple[str, str]] = [("fields", ">i4")]
    for name, kind in columns.items():
        fields += [(f"{name} type", ">u4"), (f"{name} length", ">i4"), (name, _KINDS[kind][1])]
    return np.dtype(fields)


def _from_records(value: bytes, columns: Mapping[str, str]) -> Rows:
    """What `record_send` makes of a row: a field count, then a type and a length before every field."""
    dtype = record_dtype(columns)
    assert len(value) % dtype.itemsize == 0, f"a NULL or a column of another type among {tuple(columns)}"
    # a copy, for one column is changed
    rows = np.frombuffer(bytearray(value), dtype)
    # a row of another width would leave the next one's count out of its place
    assert (rows["fields"] == len(columns)).all(), (
        f"a NULL or a column of another type among {tuple(columns)}"
    )
    for name, kind in columns.items():
        if kind == "instant":
            rows[name] += _EPOCH
    return rows


def from_copy_binary(data: bytes, columns: Mapping[str, str]) -> Rows:
    """The rows of a `COPY (SELECT ...) TO STDOUT (FORMAT binary)` whose columns are fixed-width and not null.

    `columns` names the selected columns in order, each with its kind (see LEDGER_COLUMNS). A NULL, another
    type or a truncated stream is an assert: the query and its reader disagree.
    """
    return _joined(list(_decoded(iter([data]), columns)), columns)


def copy_out(connection: psycopg.Connection[Any], query: str, columns: Mapping[str, str]) -> Iterator[Rows]:
    """Select fixed-width columns, not null, as arrays of at most about 64 thousand rows each.

    The rows come by COPY in the transaction of `connection`; memory is bounded by what the caller keeps.
    """
    return _decoded(copy_stream(connection, query, "FORMAT binary"), columns)


def select_rows(connection: psycopg.Connection[Any], query: str, columns: Mapping[str, str]) -> Rows:
    """All the rows of `copy_out` in one array."""
    return _joined(list(copy_out(connection, query, columns)), columns)


def _joined(pieces: list[Rows], columns: Mapping[str, str]) -> Rows:
    return np.concatenate(pieces) if pieces else np.empty(0, row_dtype(columns))


def copy_stream(connection: psycopg.Connection[Any], query: str, options: str) -> Iterator[bytes]:
    """The bytes of `COPY (query) TO STDOUT (options)`, in pieces of many rows.

    libpq hands over one row a call; asking it directly takes a quarter of the time of psycopg's generator.
    """
    # the statement begins the transaction where none is open, as every other one does
    connection.execute("SELECT")
    pgconn = connection.pgconn
    started = pgconn.exec_(f"COPY ({query}) TO STDOUT ({options})".encode())
    if started.status != ExecStatus.COPY_OUT:
        raise psycopg.errors.error_from_result(started)
    pieces: list[bytes] = []
    size, ended = 1, None
    try:
        while size > 0:
            size, piece = pgconn.get_copy_data(0)
            pieces.append(bytes(piece))
            if len(pieces) == _PIECES:
                yield b"".join(pieces)
                pieces = []
        yield b"".join(pieces)
    finally:
        # also when the reader stopped half way: the connection is usable again only after the last row
        while size > 0:
            size, _ = pgconn.get_copy_data(0)
        while (result := pgconn.get_result()) is not None:
            ended = ended or result
    if ended is None or ended.status != ExecStatus.COMMAND_OK:
        raise psycopg.errors.error_from_result(ended or started)


def _decoded(stream: Iterator[bytes], columns: Mapping[str, str]) -> Iterator[Rows]:
    dtype = _wire_dtype(columns)
    rest, begun = b"", False
    for piece in stream:
        rest += piece
        if not begun and len(rest) >= len(_SIGNATURE):
            assert rest[:11] == _SIGNATURE[:11], "not a stream of binary COPY"
            rest, begun = rest[len(_SIGNATURE) :], True
        # the trailer is shorter than any row, so that it is never taken for one
        if begun and (whole := len(rest) // dtype.itemsize):
            yield _rows_on_wire(np.frombuffer(rest, dtype, count=whole), columns)
            rest = rest[whole * dtype.itemsize :]
    assert begun and rest == _TRAILER, f"a NULL or a column of another type among {tuple(columns)}"  # noqa: PT018


def _rows_on_wire(wire: Rows, columns: Mapping[str, str]) -> Rows:
    rows = np.empty(len(wire), row_dtype(columns))
    template = _wire_template(columns, wire.dtype, len(columns))
    for at in range(0, len(wire), _CHUNK):
        chunk, into = wire[at : at + _CHUNK], rows[at : at + _CHUNK]
        assert (chunk["fields"] == len(columns)).all(), f"another number of columns than {tuple(columns)}"
        for name, kind in columns.items():
            length = f"{name} length"
            assert (chunk[length] == template[length]).all(), f"column {name}: NULL or not of kind {kind}"
            into[name] = chunk[name]
            if kind == "instant":
                into[name] += _EPOCH
    return rows
