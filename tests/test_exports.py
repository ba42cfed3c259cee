"""Files of reports: what each format says exactly, the same bytes again, and never half a file."""

import csv
import errno
import hashlib
import io
import json
import os
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.delivery.exports import WRITERS, export, save, to_text
from metering.delivery.report import Column, Provenance, Report
from metering.errors import BadInput, WrongWorld
from metering.money import MONEY, RATIO
from metering.periods import parse_period

COLUMNS = (
    Column("day", "day", "day"),
    Column("customer", "text", "customer"),
    Column("window_start", "instant", "window"),
    Column("requests", "count", "requests"),
    Column("output_tokens", "quantity", "output"),
    Column("burn", "burn", "burn"),
    Column("margin", "money", "margin"),
    Column("margin_ratio", "ratio", "margin"),
    Column("breach", "flag", "breach"),
)
SCHEMA = {
    "day": pl.Date,
    "customer": pl.String,
    "window_start": pl.Datetime("us", "UTC"),
    "requests": pl.Int128,
    "output_tokens": pl.Int128,
    "burn": pl.Decimal(38, 6),
    "margin": MONEY,
    "margin_ratio": RATIO,
    "breach": pl.Boolean,
}
DAY = date(2026, 11, 21)
HOUR = datetime(2026, 11, 21, 10, tzinfo=UTC)
ROWS = [
    (
        DAY,
        'acme, "robotics"',
        HOUR,
        7,
        2**100,
        Decimal("0.1"),
        Decimal("-0.000000000001"),
        Decimal("-1.5"),
        True,
    ),
    (DAY, "", HOUR, 0, 0, Decimal(0), Decimal(1234), Decimal(1), False),
    (None, None, None, None, None, None, None, None, None),
]
COMPLETE = datetime(2026, 11, 22, 3, 7, tzinfo=UTC)


def report(rows: list[tuple[object, ...]] = ROWS, name: str = "margin", watermark_id: int = 7) -> Report:
    """A report of one row of each kind of trouble."""
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    period = parse_period("2026-11")
    provenance = Provenance(period, period.cut_at(COMPLETE), watermark_id, 3, COMPLETE, "0.1.0")
    return Report(name, "Margin", COLUMNS, frame, frame.head(1), provenance, notes=("unrated: 3 tokens",))


def test_csv_is_exact() -> None:
    assert to_text(report(), "csv") == (
        "day,customer,window_start,requests,output_tokens,burn,margin,margin_ratio,breach\n"
        '2026-11-21,"acme, ""robotics""",2026-11-21T10:00:00Z,7,1267650600228229401496703205376,'
        "0.100000,-0.000000000001,-1.500000,true\n"
        '2026-11-21,"",2026-11-21T10:00:00Z,0,0,0.000000,1234.000000000000,1.000000,false\n'
        ",,,,,,,,\n"
    )


def test_json_is_exact_and_says_what_it_stands_on() -> None:
    read = json.loads(to_text(report(), "json"))
    first = {
        "day": "2026-11-21",
        "customer": 'acme, "robotics"',
        "window_start": "2026-11-21T10:00:00Z",
        "requests": 7,
        "output_tokens": 2**100,
        "burn": "0.100000",
        "margin": "-0.000000000001",
        "margin_ratio": "-1.500000",
        "breach": True,
    }
    assert read.pop("rows") == [
        first,
        first
        | {"customer": "", "requests": 0, "output_tokens": 0, "burn": "0.000000"}
        | {"margin": "1234.000000000000", "margin_ratio": "1.000000", "breach": False},
        dict.fromkeys(first),
    ]
    assert read.pop("total") == first
    assert read == {
        "report": "margin",
        "period": "2026-11",
        "from": "2026-11-01T00:00Z",
        "until": "2026-12-01T00:00Z",
        "cut_at": "2026-11-22T03:00Z",
        "complete": False,
        "complete_until": "2026-11-22T03:07Z",
        "watermark_id": 7,
        "catalog_revision": 3,
        "program_version": "0.1.0",
        "notes": ["unrated: 3 tokens"],
    }


def test_json_without_rows_is_json() -> None:
    empty = report([])
    assert json.loads(to_text(empty, "json"))["rows"] == []
    assert json.loads(to_text(empty, "json"))["total"] is None
    assert to_text(empty, "csv").splitlines() == [",".join(SCHEMA)]


def test_parquet_types_do_not_depend_on_the_values(tmp_path: Path) -> None:
    for name, rows in (("some", ROWS), ("none", []), ("nulls", ROWS[2:])):
        WRITERS["parquet"](report(rows), tmp_path / name)
        read = pl.read_parquet(tmp_path / name)
        assert dict(read.schema) == SCHEMA | {"requests": pl.Int64(), "output_tokens": pl.Decimal(38, 0)} | {
            "day": pl.Date(),
            "customer": pl.String(),
            "breach": pl.Boolean(),
        }
        assert read.rows() == [
            tuple(Decimal(value) if at == 4 and value is not None else value for at, value in enumerate(row))
            for row in rows
        ]


@given(
    st.lists(
        st.tuples(
            st.dates() | st.none(),
            st.text(st.characters(exclude_categories=["Cs"])) | st.none(),
            st.none(),
            st.integers(-(2**63), 2**63 - 1),
            st.integers(-(10**38) + 1, 10**38 - 1),
            st.decimals(-(10**20), 10**20, places=6),
            st.decimals(-(10**14), 10**14, places=12),
            st.decimals(-1000, 1000, places=6),
            st.booleans() | st.none(),
        ),
        max_size=5,
    )
)
def test_json_and_csv_read_back_as_they_were(rows: list[tuple[object, ...]]) -> None:
    made = report(rows)
    read = json.loads(to_text(made, "json"))["rows"]
    for row, back in zip(rows, read, strict=True):
        day, customer, _, requests, tokens, burn, margin, ratio, breach = row
        assert (back["customer"], back["requests"], back["output_tokens"]) == (customer, requests, tokens)
        assert (Decimal(back["burn"]), Decimal(back["margin"])) == (burn, margin)
        assert (Decimal(back["margin_ratio"]), back["breach"]) == (ratio, breach)
        assert back["day"] == (None if day is None else day.isoformat())  # type: ignore[attr-defined]
    text = to_text(made, "csv")
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [line["customer"] for line in lines] == [row[1] or "" for row in rows]
    assert [Decimal(line["margin"]) for line in lines] == [row[6] for row in rows]


def test_a_count_beyond_64_bits_is_an_error_and_never_wraps(tmp_path: Path) -> None:
    too_many = [(*ROWS[0][:3], 2**63, *ROWS[0][4:])]
    with pytest.raises(pl.exceptions.InvalidOperationError, match="requests"):
        WRITERS["parquet"](report(too_many), tmp_path / "file")


# ---- folders ---------------------------------------------------------------------------------------------


def reports() -> list[Report]:
    return [report(), report(ROWS[:1], name="usage")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_export_is_whole_and_its_manifest_counts_and_sums_every_file(tmp_path: Path) -> None:
    done = export(tmp_path / "new" / "out", reports(), {"watermark": {"head": "ab"}})
    files = contents(done.folder)
    assert sorted(files) == ["manifest.json", "margin.csv", "margin.parquet", "usage.csv", "usage.parquet"]
    assert sorted(done.files) == sorted(files)
    manifest = json.loads(files.pop("manifest.json"))
    assert (manifest["period"], manifest["cut_at"], manifest["watermark"]) == (
        "2026-11",
        "2026-11-22T03:00Z",
        {"head": "ab"},
    )
    assert {
        entry["file"]: (entry["rows"], entry["bytes"], entry["sha256"]) for entry in manifest["files"]
    } == {
        name: (3 if name.startswith("margin") else 1, len(data), hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    }
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"], "nothing else is left beside it"


def test_two_exports_are_the_same_bytes_however_many_threads(tmp_path: Path) -> None:
    many = [(*ROWS[0][:3], at, at, *ROWS[0][5:]) for at in range(140_000)]
    export(tmp_path / "one", [report(many)], {})
    script = (
        "import sys; from pathlib import Path; from tests.test_exports import *\n"
        "many = [(*ROWS[0][:3], at, at, *ROWS[0][5:]) for at in range(140_000)]\n"
        "export(Path(sys.argv[1]), [report(many)], {})"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "two")],
        env=os.environ | {"POLARS_MAX_THREADS": "1"},
        check=True,
    )
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def written(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Which file each name is and when it was last written; when it was last read is left out: that may move."""
    stats = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def test_the_same_export_again_changes_nothing_and_says_so(tmp_path: Path) -> None:
    export(tmp_path / "out", reports(), {})
    before = written(tmp_path / "out")
    assert export(tmp_path / "out", reports(), {}).already_there
    assert written(tmp_path / "out") == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert not export(tmp_path / "out", reports(), {}).already_there
    assert (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ("another watermark", r"holds an export of 2026-11 as of watermark 6, and margin.csv would differ"),
        ("a file more", r"also holds notes.txt, which is not part of this export"),
        ("other files", r"holds files that are not this export, and no margin.csv"),
        ("a file", r"is a file; give a folder that does not exist yet"),
    ],
)
def test_what_is_there_is_never_overwritten(tmp_path: Path, there: str, message: str) -> None:
    out = tmp_path / "out"
    if there == "another watermark":
        export(out, [report(ROWS[:1], watermark_id=6)], {})
    elif there == "a file more":
        export(out, reports(), {})
        (out / "notes.txt").write_text("mine")
    elif there == "other files":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        out.write_text("mine")
    before = out.read_bytes() if out.is_file() else contents(out)
    with pytest.raises(BadInput, match=message):
        export(out, reports(), {})
    assert (out.read_bytes() if out.is_file() else contents(out)) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("form", ["csv", "json", "parquet", "folder"])
def test_a_full_disk_leaves_no_half_file_and_names_it(tmp_path: Path, form: str) -> None:
    """A file size limit stands in for a full disk: write() fails in the middle of a file."""
    writes = f"save(out, lambda path: WRITERS[{form!r}](made, path))"
    if form == "folder":
        writes = "export(out, [made], {})"
    script = (
        "import resource, sys; from pathlib import Path; from tests.test_exports import *\n"
        "import string, random; random.seed(1)\n"
        "rows = [(*ROWS[0][:1], random.randbytes(40).hex(), *ROWS[0][2:]) for _ in range(20_000)]\n"
        "made, out = report(rows), Path(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "try:\n"
        f"    {writes}\n"
        "except WrongWorld as error: print(error); sys.exit(error.exit_code)\n"
    )
    out = tmp_path / "out"
    ended = subprocess.run(
        [sys.executable, "-c", script, str(out)], capture_output=True, text=True, check=False
    )
    named = out / "margin.csv" if form == "folder" else out
    assert ended.returncode == 4, ended.stderr
    assert ended.stdout.startswith(f"cannot write {named}: File too large; ")
    assert "MiB were free" in ended.stdout
    assert list(tmp_path.iterdir()) == [], "neither a final nor a partial file is left"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_a_disk_without_any_room_is_told_by_its_number(form: str) -> None:
    with pytest.raises(OSError, match="No space left on device") as told:
        WRITERS[form](report(), Path("/dev/full"))
    assert told.value.errno == errno.ENOSPC


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "margin.csv"
    save(path, lambda partial: WRITERS["csv"](report(), partial))
    first = path.read_bytes()

    def breaks(partial: Path) -> None:
        partial.write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        save(path, breaks)
    assert path.read_bytes() == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["margin.csv"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("there", r"--output .*there is a folder; give a file"),
        ("file/in", r"cannot write .*file/in: (Not a directory|File exists)"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises((BadInput, WrongWorld), match=message):
        save(tmp_path / path, lambda partial: WRITERS["csv"](report(), partial))
