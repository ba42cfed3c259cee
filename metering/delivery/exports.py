"""Files: a report as CSV, JSON or Parquet, and a folder of them with a manifest; never half a file."""

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from metering.delivery.report import Kind, Report, instant
from metering.errors import BadInput, MeteringError, WrongWorld
from metering.money import MONEY

MANIFEST: Final = "manifest.json"
MANIFEST_FORMAT: Final = 1
#: The type of each kind of column in Parquet; fixed by the kind, never by the values in it.
PARQUET_TYPES: Final[dict[Kind, pl.DataType | type[pl.DataType]]] = {
    "text": pl.String,
    "day": pl.Date,
    "instant": pl.Datetime("us", "UTC"),
    "count": pl.Int64,
    "quantity": pl.Decimal(38, 0),
    "burn": pl.Decimal(38, 6),
    "money": MONEY,
    "ratio": pl.Decimal(38, 6),
    "flag": pl.Boolean,
}
_ANOTHER: Final = "give a folder that does not exist yet"


def typed(report: Report, frame: pl.DataFrame) -> pl.DataFrame:
    """The rows (or the total) of a report with the types of its file. A count beyond Int64 raises."""
    return frame.select(
        pl.col(column.name).cast(PARQUET_TYPES[column.kind], strict=True) for column in report.columns
    )


def _plain(report: Report, frame: pl.DataFrame) -> pl.DataFrame:
    """Types that text formats write exactly: integers as digits, decimals with all places, ISO 8601 Z."""
    return typed(report, frame).with_columns(
        pl.col(column.name).cast(pl.Int128)
        if column.kind == "quantity"
        else pl.col(column.name).dt.strftime("%Y-%m-%dT%H:%M:%SZ")
        for column in report.columns
        if column.kind in ("quantity", "instant")
    )


def write_csv(report: Report, path: Path) -> None:
    """Rows only, one header line, comma, LF, UTF-8; null is an empty field, an empty text is `""`."""
    path.write_bytes(to_text(report, "csv").encode())


def write_parquet(report: Report, path: Path) -> None:
    """Rows only, zstd, with every setting fixed: the same rows give the same bytes."""
    # by way of memory: on a full disk polars says many things, and Python which error it is
    file = io.BytesIO()
    typed(report, report.rows).write_parquet(
        file, compression="zstd", compression_level=3, statistics=True, row_group_size=131_072
    )
    path.write_bytes(file.getbuffer())


def write_json(report: Report, path: Path) -> None:
    """One object: what the report stands on, its rows (one a line) and its total; see docs/reports.md."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(_json_parts(report))


def to_text(report: Report, form: str) -> str:
    """The report as CSV or JSON text, byte for byte what the file would hold."""
    if form == "json":
        return "".join(_json_parts(report))
    return _plain(report, report.rows).write_csv(line_terminator="\n", quote_style="necessary")


def _json_parts(report: Report) -> Iterator[str]:
    head = {"report": report.name, **provenance_facts(report), "notes": list(report.notes)}
    yield json.dumps(head, ensure_ascii=False, indent=1)[:-2] + ',\n "rows": ['
    # by LF alone: a text may hold other characters that str.splitlines takes for the end of a line
    lines = _plain(report, report.rows).write_ndjson().split("\n")[:-1]
    yield "".join(("\n  " if at == 0 else ",\n  ") + line for at, line in enumerate(lines))
    yield "\n ],\n" if lines else "],\n"
    totals = _plain(report, report.total).write_ndjson().split("\n")[:-1]
    yield f' "total": {totals[0] if totals else "null"}\n}}\n'


def provenance_facts(report: Report) -> dict[str, Any]:
    """Period, cut and point of knowledge, as JSON values."""
    stands_on = report.provenance
    complete = stands_on.complete_until
    return {
        "period": stands_on.period.name,
        "from": instant(stands_on.period.start),
        "until": instant(stands_on.period.until),
        "cut_at": instant(stands_on.cut.until),
        "complete": stands_on.whole,
        "complete_until": None if complete is None else instant(complete),
        "watermark_id": stands_on.watermark_id,
        "catalog_revision": stands_on.catalog_revision,
        "program_version": stands_on.program_version,
    }


WRITERS: Final[dict[str, Callable[[Report, Path], None]]] = {
    "csv": write_csv,
    "json": write_json,
    "parquet": write_parquet,
}


@contextmanager
def _disk(name: str, folder: Path) -> Iterator[None]:
    """Turn what the disk says into an error that names the file and what is free."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise _disk_error(error.errno, name, folder) from None


def _disk_error(number: int, name: str, folder: Path) -> MeteringError:
    reason = os.strerror(number)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free
        return WrongWorld(
            f"cannot write {name}: {reason}; {free / 2**20:,.1f} MiB were free at {there}. "
            "Nothing was left under the final name; make room (or raise the quota) and run it again"
        )
    return BadInput(f"cannot write {name}: {reason}; give a place where this user may write")


def save(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file beside its final name and rename it there; an existing file is replaced whole.

    If the process dies in the middle, a hidden `.NAME.partial-PID` stays and the final name is untouched.
    """
    if path.is_dir():
        raise BadInput(f"--output {path} is a folder; give a file")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with _disk(str(path), path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(partial)
            _sync(partial)
            partial.replace(path)
    finally:
        # what kept it from being written may keep it from being removed: that error is the one to tell
        with suppress(OSError):
            partial.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Exported:
    """What `export` did: the folder, and whether it was there already, byte for byte."""

    folder: Path
    files: tuple[str, ...]
    already_there: bool


def export(folder: Path, reports: Sequence[Report], knowledge: dict[str, Any]) -> Exported:
    """Write each report as CSV and Parquet, and the manifest, into `folder`: all of it or nothing.

    `knowledge` are the facts of the watermark (JSON values) for the manifest. The files are written into a
    sibling folder that is renamed at the end. A folder that holds the very same bytes is left as it is; one
    that holds anything else is refused by name: an export is never overwritten.
    If the process dies in the middle, a hidden `.NAME.partial-PID` stays and `folder` is untouched.
    """
    _refuse_file(folder)
    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        with _disk(str(folder), folder.parent):
            partial.mkdir(parents=True)
        names = _write_all(partial, folder, reports, knowledge)
        if folder.exists() and any(folder.iterdir()):
            _refuse_unless_same(partial, folder, names)
            return Exported(folder, names, already_there=True)
        with _disk(str(folder), folder.parent):
            _sync(partial)
            partial.replace(folder)
            _sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(folder, names, already_there=False)


def refuse_unless_empty(folder: Path) -> None:
    """Raise BadInput where an export as of a new watermark cannot go, before anything is pinned or written."""
    _refuse_file(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise BadInput(f"{folder} holds {_holding(folder)}; {_ANOTHER}")


def _refuse_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file; {_ANOTHER}")


def _write_all(
    partial: Path, folder: Path, reports: Sequence[Report], knowledge: dict[str, Any]
) -> tuple[str, ...]:
    entries = []
    for report in reports:
        for form in ("csv", "parquet"):
            name = f"{report.name}.{form}"
            with _disk(str(folder / name), folder.parent):
                WRITERS[form](report, partial / name)
                _sync(partial / name)
            rows = report.rows.height
            entries.append({"file": name, "report": report.name, "rows": rows, **_sum(partial / name)})
    facts = {} if not reports else provenance_facts(reports[0])
    manifest = {"manifest_format": MANIFEST_FORMAT, **facts, **knowledge, "files": entries}
    with _disk(str(folder / MANIFEST), folder.parent):
        (partial / MANIFEST).write_text(_json(manifest), encoding="utf-8", newline="\n")
        _sync(partial / MANIFEST)
    return (*(str(entry["file"]) for entry in entries), MANIFEST)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def _sum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _refuse_unless_same(written: Path, folder: Path, names: Sequence[str]) -> None:
    present = {entry.name for entry in folder.iterdir()}
    for name in names:
        if name not in present:
            raise BadInput(f"{folder} holds {_holding(folder)}, and no {name}; {_ANOTHER}")
        if _sum(folder / name) != _sum(written / name):
            raise BadInput(f"{folder} holds {_holding(folder)}, and {name} would differ; {_ANOTHER}")
    if extra := sorted(present - set(names)):
        raise BadInput(f"{folder} also holds {extra[0]}, which is not part of this export; {_ANOTHER}")


def _holding(folder: Path) -> str:
    """What a folder is, as far as its manifest tells."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return f"an export of {manifest['period']} as of watermark {manifest['watermark_id']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "files that are not this export"
