"""Archived days of the ledger: one Parquet file each, at any fsspec address; and reading the ledger through them.

An entry of `archives` decides where a day is: from its commit on, whoever begins to read takes the file and
leaves out what Postgres may still hold of that day. Its partition is closed, detached and dropped after that.
Only rows in partitions of days are archived; those with a hashed id lie in the unordered partition for good.
"""

import hashlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Final

import fsspec
import numpy as np
import numpy.typing as npt
import polars as pl
from fsspec.implementations.local import LocalFileSystem
from polars.io.plugins import register_io_source
from sqlalchemy import Connection, text

from metering.errors import BadInput, Unavailable, WrongWorld
from metering.frames.frame import INSTANT
from metering.store import ledger_rows, partitions
from metering.store.ledger_rows import (
    COPY_COLUMNS,
    FURTHER_COLUMNS,
    LEDGER_COLUMNS,
    LEDGER_ROW,
    Rows,
    record_dtype,
)
from metering.store.partitions import key_floor
from metering.store.postgres import driver

_NUMBERS: Final[Mapping[str, pl.DataType]] = {
    "instant": INSTANT,
    "int8": pl.Int64(),
    "int4": pl.Int32(),
    "int2": pl.Int16(),
}
_COLUMNS: Final = {**LEDGER_COLUMNS, **FURTHER_COLUMNS}
#: Columns of an archive: those of the ledger in table order, each further meter one; keys are 16 bytes. Files
#: written before there were further meters lack theirs.
ARCHIVE: Final[Mapping[str, pl.DataType]] = {
    **{name: pl.Binary() if kind == "uuid" else _NUMBERS[kind] for name, kind in _COLUMNS.items()},
    "event_id": pl.String(),
}
#: Rows in memory at a time, about, and in a row group of the file.
ROWS_AT_ONCE: Final = 100_000
#: Files that are kept near, so that reading day by day fetches each of them once.
_NEAR_MAX: Final = 4
_PIECE: Final = 1024 * 1024


@dataclass(frozen=True)
class Archive:
    """A day that lies in a file. `first_batch_id` and `last_batch_id` bound its batches; None: it is empty."""

    day: date
    address: str
    rows: int
    size_bytes: int
    sha256: bytes
    first_batch_id: int | None
    last_batch_id: int | None
    archived_at: datetime | None = None  # None: written, and not entered yet

    def __str__(self) -> str:
        return f"the archive of {self.day} at {self.address}"


@dataclass
class _Near:
    """A file whose checksum was compared: where it is, and what has to stay open for it to stay."""

    path: Path
    stamp: tuple[int, int, int]
    held: IO[bytes] | None


_near: OrderedDict[tuple[str, bytes], _Near] = OrderedDict()


def archives(connection: Connection) -> list[Archive]:
    """The days that lie in files, as the snapshot of `connection` knows it, oldest first.

    Until the transaction ends no partition is detached under it.
    """
    partitions.hold(connection)
    rows = connection.execute(
        text(
            "SELECT day, address, rows, bytes, sha256, first_batch_id, last_batch_id, archived_at FROM archives "
            "WHERE restored_at IS NULL ORDER BY day"
        )
    )
    return [
        Archive(day, address, count, size, bytes(digest), first, last, archived_at)
        for day, address, count, size, digest, first, last, archived_at in rows
    ]


def in_postgres(archived: Sequence[Archive]) -> str:
    """The SQL condition for the rows of `usage_events` that are not read from files."""
    if not archived:
        return "true"
    return f"event_key >= '{key_floor(_midnight(archived[-1].day + timedelta(days=1)))}'"


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


# ---- reading -------------------------------------------------------------------------------------------


def read_batches(
    connection: Connection, batch_ids: Sequence[int], columns: Mapping[str, str], condition: str = "true"
) -> dict[int, Rows]:
    """As ledger_rows.read_batches, from Postgres and from the files of archived days.

    `condition` is one that both SQL and polars understand. Raises WrongWorld that names the file when one is
    missing or is not what was written.
    """
    archived = archives(connection)
    found = ledger_rows.read_batches(
        driver(connection), batch_ids, columns, f"({condition}) AND {in_postgres(archived)}"
    )
    for frame in _of_batches(archived, batch_ids, pl.sql_expr(condition), ("batch_id", *columns)):
        for (batch_id,), part in frame.group_by("batch_id"):
            rows = to_rows(part, columns, record_dtype(columns))
            before = found.get(int(str(batch_id)))
            found[int(str(batch_id))] = rows if before is None else np.concatenate([before, rows])
    return found


def read_texts(connection: Connection, batch_ids: Sequence[int]) -> dict[int, dict[int, str]]:
    """The texts of those event ids that are not their key, by batch and ordinal."""
    archived = archives(connection)
    texts: dict[int, dict[int, str]] = {}
    stored = text(
        "SELECT batch_id, ordinal, event_id FROM usage_events "
        f"WHERE batch_id = ANY(:batch_ids) AND event_id <> '' AND {in_postgres(archived)}"
    )
    rows: list[Any] = list(connection.execute(stored, {"batch_ids": list(batch_ids)}))
    for frame in _of_batches(
        archived, batch_ids, pl.col("event_id") != "", ("batch_id", "ordinal", "event_id")
    ):
        rows += frame.rows()
    for batch_id, ordinal, event_id in rows:
        texts.setdefault(batch_id, {})[ordinal] = event_id
    return texts


def scan(archive: Archive) -> pl.LazyFrame:
    """The rows of an archive, its file compared with what was written."""
    rows = pl.scan_parquet(_fetched(archive), schema=dict(ARCHIVE), missing_columns="insert")
    return rows.with_columns(pl.col(*FURTHER_COLUMNS).fill_null(0))


def _of_batches(
    archived: Sequence[Archive], batch_ids: Sequence[int], condition: pl.Expr, columns: Sequence[str]
) -> Iterator[pl.DataFrame]:
    if not archived or not batch_ids:
        return
    first, last = min(batch_ids), max(batch_ids)
    wanted = pl.col("batch_id").is_in(list(batch_ids))
    for archive in archived:
        if archive.first_batch_id is None or archive.last_batch_id is None:
            continue
        if archive.first_batch_id <= last and first <= archive.last_batch_id:
            frame = scan(archive).filter(pl.col("batch_id").is_between(first, last), wanted, condition)
            yield frame.select(list(dict.fromkeys(columns))).collect()


def to_rows(frame: pl.DataFrame, columns: Mapping[str, str], dtype: np.dtype[np.void] = LEDGER_ROW) -> Rows:
    """The rows of an archive in memory: `dtype` has (at least) `columns`."""
    rows = np.zeros(frame.height, dtype)
    for name, kind in columns.items():
        if kind == "uuid":
            rows[name] = np.frombuffer(b"".join(frame[name].to_list()), "S16")
        else:
            rows[name] = frame[name].to_physical().fill_null(-1).to_numpy()
    return rows


def to_frame(rows: Rows, texts: Mapping[int, str]) -> pl.DataFrame:
    """The ledger rows of one batch, in ordinal order, as ARCHIVE."""
    rows = rows[np.argsort(rows["ordinal"], kind="stable")]
    columns: dict[str, Any] = {}
    for name, kind in _COLUMNS.items():
        column: npt.NDArray[Any] = rows[name]
        if kind == "uuid":
            data = column.tobytes()
            columns[name] = pl.Series([data[at : at + 16] for at in range(0, len(data), 16)], dtype=pl.Binary)
        else:
            columns[name] = pl.Series(column.astype(LEDGER_ROW[name])).cast(ARCHIVE[name])
    columns["event_id"] = pl.Series([texts.get(at, "") for at in rows["ordinal"].tolist()], dtype=pl.String)
    return pl.DataFrame(columns).with_columns(
        pl.when(pl.col("duration_ms") >= 0).then(pl.col("duration_ms")).alias("duration_ms")
    )


def filesystem(address: str) -> tuple[Any, str]:
    """The file system of an fsspec address and the path in it. Raises BadInput for one that is none."""
    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ValueError, ImportError) as error:
        raise BadInput(
            f"'{address}' cannot be used as an address: {error}; give a folder or an fsspec address, and install "
            "what it needs (s3fs for s3://, gcsfs for gs://, adlfs for abfs://)"
        ) from None
    return system, str(path)


def _fetched(archive: Archive) -> Path:
    """The file of an archive, near and compared with its checksum; files on this machine stay where they are."""
    key = (archive.address, archive.sha256)
    near = _near.get(key)
    if near is not None and near.path.exists() and _stamp(near.path) == near.stamp:
        _near.move_to_end(key)
        return near.path
    if near is not None:
        del _near[key]
    system, path = filesystem(archive.address)
    try:
        if isinstance(system, LocalFileSystem):
            near = _Near(Path(path), _stamp(Path(path)), None)
        else:
            # open for as long as it is near; then the system removes it
            held = tempfile.NamedTemporaryFile(prefix="metering-archive-", suffix=".parquet")  # noqa: SIM115
            system.get_file(path, held.name)
            near = _Near(Path(held.name), _stamp(Path(held.name)), held)
    except FileNotFoundError:
        raise WrongWorld(f"{archive} is missing; put the file back where it was") from None
    except OSError as error:
        raise WrongWorld(f"{archive} cannot be read: {error}") from error
    size, digest = checksum(near.path)
    if size != archive.size_bytes:
        raise WrongWorld(
            f"{archive} has {size:,} bytes, {archive.size_bytes:,} were written: it was cut off or replaced; "
            "put the right file back"
        )
    if digest != archive.sha256:
        raise WrongWorld(
            f"{archive} has SHA-256 {digest.hex()[:16]}, {archive.sha256.hex()[:16]} was written: it was "
            "altered; put the right file back"
        )
    _near[key] = near
    while len(_near) > _NEAR_MAX:
        _, oldest = _near.popitem(last=False)
        if oldest.held is not None:
            oldest.held.close()
    return near.path


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def checksum(path: Path) -> tuple[int, bytes]:
    """Size and SHA-256 of a file."""
    hasher, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            hasher.update(piece)
            size += len(piece)
    return size, hasher.digest()


# ---- writing -------------------------------------------------------------------------------------------


def partition(day: date) -> str:
    """The name of the partition of a day."""
    return f"usage_events_{day:%Y%m%d}"


def batches_of(connection: Connection, day: date) -> list[tuple[int, int]]:
    """The batches that brought rows of a partition, and how many each, in order."""
    rows = connection.execute(text(f"SELECT batch_id, count(*) FROM {partition(day)} GROUP BY 1 ORDER BY 1"))
    return [(batch_id, count) for batch_id, count in rows]


def read_day(connection: Connection, day: date, batches: Sequence[tuple[int, int]]) -> Iterator[pl.DataFrame]:
    """The rows of a partition as ARCHIVE, sorted by batch and ordinal, a group of batches at a time."""
    low, high = (key_floor(_midnight(one)) for one in (day, day + timedelta(days=1)))
    within = f"event_key >= '{low}' AND event_key < '{high}'"
    stored = text(
        "SELECT batch_id, ordinal, event_id FROM usage_events "
        f"WHERE batch_id = ANY(:batch_ids) AND event_id <> '' AND {within}"
    )
    for group in grouped(batches):
        found = ledger_rows.read_batches(driver(connection), group, _COLUMNS, within)
        texts: dict[int, dict[int, str]] = {}
        for row in connection.execute(stored, {"batch_ids": group}):
            texts.setdefault(row.batch_id, {})[row.ordinal] = row.event_id
        yield pl.concat([to_frame(found[one], texts.get(one, {})) for one in group])


def grouped(batches: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Batches (with their rows) in groups of about ROWS_AT_ONCE rows."""
    group: list[int] = []
    rows = 0
    for batch_id, count in batches:
        if group and rows + count > ROWS_AT_ONCE:
            yield group
            group, rows = [], 0
        group.append(batch_id)
        rows += count
    if group:
        yield group


def write_day(connection: Connection, day: date, folder: str) -> Archive:
    """Write the rows of a partition, as the snapshot of `connection` shows them, to a file in `folder`.

    Its name holds its checksum, so that nothing is ever overwritten by something else. Nothing is entered.
    Raises Unavailable where the address cannot be written to.
    """
    batches = batches_of(connection, day)

    def frames(
        columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, size: int | None
    ) -> Iterator[pl.DataFrame]:
        yield from read_day(connection, day, batches)

    with tempfile.TemporaryDirectory(prefix="metering-archive-") as near:
        file = Path(near) / "day.parquet"
        if batches:
            source = register_io_source(frames, schema=dict(ARCHIVE), validate_schema=True)
            source.sink_parquet(file, compression="zstd", row_group_size=ROWS_AT_ONCE, maintain_order=True)
        else:
            pl.DataFrame(schema=dict(ARCHIVE)).write_parquet(file, compression="zstd")
        size, digest = checksum(file)
        system, path = filesystem(folder)
        # from the file system's own path: it knows how its addresses are written
        place = f"{path.rstrip('/')}/{partition(day)}-{digest.hex()[:16]}.parquet"
        try:
            system.makedirs(path, exist_ok=True)
            system.put_file(str(file), place)
            if isinstance(system, LocalFileSystem):
                _make_durable(Path(place))
        except OSError as error:
            raise Unavailable(
                f"{day} could not be written to {folder}: {error}; nothing was entered or dropped. "
                "Make METERING_ARCHIVE_ADDRESS writable, with room"
            ) from error
    return Archive(
        day,
        str(system.unstrip_protocol(place)),
        sum(count for _, count in batches),
        size,
        digest,
        batches[0][0] if batches else None,
        batches[-1][0] if batches else None,
    )


def _make_durable(path: Path) -> None:
    """On disk before anything is dropped for it: the file, and its name in the folder."""
    for each in (path, path.parent):
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def first_difference(connection: Connection, archive: Archive) -> str | None:
    """Compare a file, read back from its address, with the partition, row by row; None when they are the same."""
    written = scan(archive)
    rows = 0
    for frame in read_day(connection, archive.day, batches_of(connection, archive.day)):
        read = written.slice(rows, frame.height).collect()
        if not read.equals(frame, null_equal=True):
            return (
                f"{archive} differs from its partition in batches {frame['batch_id'][0]} "
                f"to {frame['batch_id'][-1]}"
            )
        rows += frame.height
    held = written.select(pl.len()).collect().item()
    return None if rows == held else f"{archive} holds {held:,} rows, its partition {rows:,}"


def enter(connection: Connection, archive: Archive) -> bool:
    """Close a day for good and say where it lies, in the caller's transaction under the lock KNOWLEDGE.

    False, and nothing is changed, when rows came in after the file was written. The first statement of the
    transaction: it waits for those who write into the day, and the snapshot comes after them.
    """
    connection.exec_driver_sql("SET LOCAL lock_timeout = '1s'")
    connection.exec_driver_sql(f"LOCK TABLE ONLY {partition(archive.day)} IN SHARE ROW EXCLUSIVE MODE")
    rows = connection.execute(text(f"SELECT count(*) FROM {partition(archive.day)}")).scalar_one()
    if rows != archive.rows:
        return False
    connection.exec_driver_sql(
        f"CREATE TRIGGER archived BEFORE INSERT ON {partition(archive.day)} "
        "FOR EACH ROW EXECUTE FUNCTION refuse_archived_day()"
    )
    connection.execute(
        text(
            "INSERT INTO archives (day, address, rows, bytes, sha256, first_batch_id, last_batch_id) "
            "VALUES (:day, :address, :rows, :size_bytes, :sha256, :first_batch_id, :last_batch_id)"
        ),
        vars(archive),
    )
    connection.execute(
        text("UPDATE ledger_floor SET floor_at = greatest(floor_at, :floor)"),
        {"floor": _midnight(archive.day + timedelta(days=1))},
    )
    return True


def leftovers(connection: Connection) -> list[date]:
    """Archived days whose partition, or what is left of it, is still there."""
    days = connection.execute(
        text(
            "SELECT day FROM archives WHERE restored_at IS NULL "
            "AND to_regclass('usage_events_' || to_char(day, 'YYYYMMDD')) IS NOT NULL ORDER BY day"
        )
    )
    return list(days.scalars())


def refill(connection: Connection, archive: Archive) -> None:
    """Make the table of an archived day again, from its file, beside the ledger. Commits.

    What an attempt left that died is thrown away. Nobody reads the table before it is attached.
    """
    name = partition(archive.day)
    written = scan(archive)
    connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")
    connection.exec_driver_sql(f"CREATE TABLE {name} (LIKE usage_events INCLUDING ALL EXCLUDING IDENTITY)")
    for at in range(0, archive.rows, ROWS_AT_ONCE):
        frame = written.slice(at, ROWS_AT_ONCE).collect()
        copied = ledger_rows.to_copy_binary(to_rows(frame, _COLUMNS), frame["event_id"].to_list())
        with (
            driver(connection).cursor() as cursor,
            cursor.copy(f"COPY {name} ({', '.join(COPY_COLUMNS)}) FROM STDIN (FORMAT binary)") as copy,
        ):
            copy.write(copied)
    low, high = (key_floor(_midnight(one)) for one in (archive.day, archive.day + timedelta(days=1)))
    # so that attaching it has nothing to look through
    connection.exec_driver_sql(
        f"ALTER TABLE {name} ADD CONSTRAINT of_its_day CHECK (event_key >= '{low}' AND event_key < '{high}')"
    )
    connection.commit()


def reopen(connection: Connection, archive: Archive) -> None:
    """Attach what `refill` made, end the entry and lower the floor, in the caller's transaction under KNOWLEDGE."""
    name = partition(archive.day)
    low, high = (key_floor(_midnight(one)) for one in (archive.day, archive.day + timedelta(days=1)))
    connection.exec_driver_sql("SET LOCAL lock_timeout = '1s'")
    connection.exec_driver_sql(
        f"ALTER TABLE usage_events ATTACH PARTITION {name} FOR VALUES FROM ('{low}') TO ('{high}')"
    )
    connection.exec_driver_sql(f"ALTER TABLE {name} DROP CONSTRAINT of_its_day")
    connection.execute(
        text("UPDATE archives SET restored_at = clock_timestamp() WHERE day = :day AND restored_at IS NULL"),
        {"day": archive.day},
    )
    connection.execute(
        text("UPDATE ledger_floor SET floor_at = least(floor_at, :floor)"), {"floor": _midnight(archive.day)}
    )
