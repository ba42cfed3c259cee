"""The chain and the binary format: golden values that may never change, and what each byte depends on."""

import struct
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.meters import FIRST_METERS, FURTHER_METERS, METERS
from metering.store.chain import GENESIS, aligned, batch_head, batch_root, head, text_digest
from metering.store.ledger_rows import (
    FURTHER_COLUMNS,
    LEDGER_COLUMNS,
    LEDGER_ROW,
    Rows,
    from_copy_binary,
    to_copy_binary,
)

INTEGERS = {"instant": "<i8", "int8": "<i8", "int4": "<i4", "int2": "<i2"}


def rows(count: int = 3) -> Rows:
    """Rows in which every column holds something else."""
    made = np.zeros(count, LEDGER_ROW)
    for place, (name, kind) in enumerate(LEDGER_COLUMNS.items(), 1):
        if kind == "uuid":
            made[name] = np.frombuffer(bytes(place + at for at in range(16)) * count, "S16")
        else:
            made[name] = np.arange(count) + 10 * place
    made["ordinal"] = np.arange(count)
    return made


def named(count: int, **changed: bytes) -> dict[str, object]:
    digests = {name: text_digest(name) for name in ("series", "sources", "projects", "seats")} | changed
    return {name: np.array([digest] * count, "S16") for name, digest in digests.items()}


def with_further() -> Rows:
    made = rows()
    for at, meter in enumerate(FURTHER_COLUMNS):
        made[meter][1:] = [at, 2**31 - 1]
    return made


def test_the_root_of_rows_with_further_meters_is_of_a_version_of_its_own() -> None:
    root = batch_root(with_further(), **named(3), event_ids=["", "an id", ""])  # type: ignore[arg-type]
    assert root.hex() == "41d59c68960de66e600b6239bc1b3331ca8a5cbd397c2f5bd7a319fcb42435b3"
    for meter in FURTHER_COLUMNS:
        changed = with_further()
        changed[meter][0] = -1
        assert batch_root(changed, **named(3)) != batch_root(with_further(), **named(3))  # type: ignore[arg-type]


def test_golden_values() -> None:
    root = batch_root(rows(), **named(3), event_ids=["", "an id", ""])  # type: ignore[arg-type]
    assert root.hex() == "90281dc0f4fab61858a54ff37e6db4ccd4a0dd13e7c5c501c1e62d90d7562091"
    assert (
        batch_root(rows(0), **named(0)).hex()
        == "aaff1edc4bd6dd5e655f49549a1ead936d2e16dc90e9eae4b16510bebb885798"
    )  # type: ignore[arg-type]
    made = batch_head(
        GENESIS,
        kind="kafka",
        topic_uuid=UUID("00000000-0000-4000-8000-00000000000a"),
        partition=3,
        sequence=0,
        first_offset=100,
        next_offset=103,
        records=1,
        received=5,
        accepted=3,
        duplicate=1,
        conflict=0,
        rejected=1,
        root=root,
    )
    assert made.hex() == "458c7ffbcd4029895bd2cd9d0cff90abb9fa8719835d8d0cf7d06e3fbb582238"
    assert text_digest("gateway").hex() == "0e17e948aec5ab95624e39ef7a1545ec"


@pytest.mark.parametrize("column", [name for name in LEDGER_COLUMNS if name not in (
    "batch_id", "source_id", "series_id", "project_id", "seat_id")])  # fmt: skip
def test_a_root_depends_on_every_column(column: str) -> None:
    changed = rows()
    # of the last row: a changed ordinal must stay in order
    changed[column][2:] = b"other" if LEDGER_COLUMNS[column] == "uuid" else changed[column][2:] + 1
    assert batch_root(changed, **named(3)) != batch_root(rows(), **named(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["series", "sources", "projects", "seats"])
def test_a_root_depends_on_what_ids_stand_for_and_not_on_the_ids(name: str) -> None:
    other = named(3, **{name: text_digest("another")})
    assert batch_root(rows(), **other) != batch_root(rows(), **named(3))  # type: ignore[arg-type]
    renumbered = rows()
    for column in ("batch_id", "source_id", "series_id", "project_id", "seat_id"):
        renumbered[column] += 1000
    assert batch_root(renumbered, **named(3)) == batch_root(rows(), **named(3))  # type: ignore[arg-type]


def test_a_root_depends_on_the_sign_of_the_source_and_on_every_id_text() -> None:
    negated = rows()
    negated["source_id"] *= -1
    roots = {
        batch_root(rows(), **named(3)),  # type: ignore[arg-type]
        batch_root(negated, **named(3)),  # type: ignore[arg-type]
        batch_root(rows(), **named(3), event_ids=["a", "", ""]),  # type: ignore[arg-type]
        batch_root(rows(), **named(3), event_ids=["", "a", ""]),  # type: ignore[arg-type]
        batch_root(rows(), **named(3), event_ids=["a", "b", ""]),  # type: ignore[arg-type]
        batch_root(rows(), **named(3), event_ids=["ab", "", ""]),  # type: ignore[arg-type]
    }
    assert len(roots) == 6
    assert batch_root(rows(), **named(3)) == batch_root(rows(), **named(3), event_ids=["", "", ""])  # type: ignore[arg-type]


def test_rows_out_of_order_are_refused() -> None:
    with pytest.raises(AssertionError, match="ordinal order"):
        batch_root(rows()[::-1], **named(3))  # type: ignore[arg-type]


def test_fields_cannot_run_into_each_other() -> None:
    heads = [
        head("chain", GENESIS, *fields)
        for fields in (
            ("ab", "c"),
            ("a", "bc"),
            ("abc",),
            ("abc", None),
            ("abc", ""),
            (1,),
            ("\0\0\0\0\0\0\0\1",),
        )
    ]
    assert len(set(heads[:5])) == 5
    # an integer and its eight bytes are one encoding: the order of the fields tells which it is
    assert heads[5] == heads[6]


def test_digests_that_end_in_zeros_keep_them() -> None:
    names = {1: b"a" + bytes(15), 2: bytes(16), 3: bytes(15) + b"a"}
    assert aligned(np.array([3, 1, 2, 1]), names).tobytes() == names[3] + names[1] + names[2] + names[1]


columns = {
    name: st.binary(min_size=16, max_size=16)
    if kind == "uuid"
    else st.integers(np.iinfo(INTEGERS[kind]).min, np.iinfo(INTEGERS[kind]).max)
    for name, kind in LEDGER_COLUMNS.items()
} | {
    **dict.fromkeys(FURTHER_COLUMNS, st.one_of(st.just(0), st.integers(-(2**31), 2**31 - 1))),
    "occurred_at": st.integers(0, 2**60),
    "duration_ms": st.integers(-1, 2**31 - 1),
}


def plain(row: dict[str, int | bytes], text: bytes) -> bytes:
    """One tuple of binary COPY, field by field."""
    out = struct.pack(">h", len(LEDGER_COLUMNS) + 2)
    for name, kind in LEDGER_COLUMNS.items():
        value = row[name]
        if name == "duration_ms" and value == -1:
            out += struct.pack(">i", -1)
        elif isinstance(value, bytes):
            out += struct.pack(">i", 16) + value
        elif kind == "instant":
            out += struct.pack(">iq", 8, value - 946_684_800_000_000)
        else:
            code = {"int8": "q", "int4": "i", "int2": "h"}[kind]
            out += struct.pack(f">i{code}", struct.calcsize(f">{code}"), value)
    further = struct.pack(">5i", *(row[name] for name in FURTHER_COLUMNS))
    further = further if any(further) else b""
    return out + struct.pack(">i", len(text)) + text + struct.pack(">i", len(further)) + further


ledger_rows = st.tuples(
    st.fixed_dictionaries(columns),
    st.one_of(
        st.just(""), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
    ),
)


@given(st.lists(ledger_rows, max_size=8))
def test_copy_binary_is_what_a_plain_encoder_writes(made: list[tuple[dict[str, int | bytes], str]]) -> None:
    packed = np.zeros(len(made), LEDGER_ROW)
    for at, (row, _) in enumerate(made):
        for name, value in row.items():
            packed[at][name] = value
    texts = [text for _, text in made]
    wanted = b"".join(plain(row, text.encode()) for row, text in made)
    assert to_copy_binary(packed, texts) == b"PGCOPY\n\xff\r\n\0" + bytes(8) + wanted + b"\xff\xff"
    assert to_copy_binary(packed) == to_copy_binary(packed, [""] * len(made))


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
def test_what_is_written_is_read_again(count: int) -> None:
    kinds = {"key": "uuid", "at": "instant", "big": "int8", "middle": "int4", "small": "int2"}
    wire = b"".join(
        struct.pack(
            ">hi16siqiqiiih",
            5,
            16,
            bytes([at % 256]) * 15 + b"\0",
            8,
            at - 946_684_800_000_000,
            8,
            -at,
            4,
            at,
            2,
            7,
        )
        for at in range(count)
    )
    read = from_copy_binary(b"PGCOPY\n\xff\r\n\0" + bytes(8) + wire + b"\xff\xff", kinds)
    assert read["at"].tolist() == list(range(count))
    assert read["big"].tolist() == [-at for at in range(count)]
    assert read["middle"].tolist() == list(range(count))
    assert read["key"].tobytes() == b"".join(bytes([at % 256]) * 15 + b"\0" for at in range(count))
    assert set(read["small"].tolist()) <= {7}


@pytest.mark.parametrize(
    ("wire", "says"),
    [
        (b"not a copy at all....", "not a stream"),
        (b"PGCOPY\n\xff\r\n\0" + bytes(8) + struct.pack(">hii", 1, 4, 7), "NULL or a column"),
        (b"PGCOPY\n\xff\r\n\0" + bytes(8) + struct.pack(">hi", 1, -1) + b"\xff\xff", "NULL or a column"),
        (b"PGCOPY\n\xff\r\n\0" + bytes(8) + struct.pack(">hhhi", 1, 0, 2, 7) + b"\xff\xff", "column a"),
        (b"PGCOPY\n\xff\r\n\0" + bytes(8) + struct.pack(">hii", 2, 4, 7) + b"\xff\xff", "number of columns"),
    ],
)
def test_a_stream_that_is_not_what_was_asked_for_is_refused(wire: bytes, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        from_copy_binary(wire, {"a": "int4"})


def test_meters_are_in_the_order_of_the_house() -> None:
    names = list(LEDGER_COLUMNS)
    assert tuple(names[names.index(METERS[0]) :][: len(FIRST_METERS)]) == FIRST_METERS == METERS[:7]
    assert tuple(FURTHER_COLUMNS) == FURTHER_METERS == METERS[7:]
