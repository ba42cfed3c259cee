"""As of a watermark: every report in every form is the same bytes, whatever came later, on another cluster too."""

import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import psycopg
import pytest

from metering.catalog import load_folder, plan
from metering.delivery import exports, tables
from metering.periods import parse_period
from metering.settings import Settings, read_settings
from metering.store import postgres
from metering.store.books import append_revision, latest_revision, read_catalog
from metering.store.verify import verify
from sandbox import postgres as sandbox_postgres
from tests.ledger_builder import Event, Ledger, instant
from tests.test_report_commands import CATALOG
from workers import fold, settle
from workers.exporting import export_period
from workers.rebuild import rebuild
from workers.reports import MARGIN_BY, UNRATED_BY, capacity_report, margin_report

PERIOD = parse_period("2026-11-20..2026-11-23")
#: What hangs on all usage of a contract's period: late usage moves its earlier lines.
AGREED = CATALOG.replace(
    """
        per_million: {uncached_input_tokens: 3, output_tokens: 15}
""",
    """
        meters: [uncached_input_tokens]
        model: volume
        tiers: [{up_to: 3_500_000, per_million: 3, flat_amount: 0.01}, {per_million: 1}]
      - {product: chat, effective_from: 2026-01-01, meters: [output_tokens], model: package,
         package: {units: 100, amount: 0.05}}
    percentages:
      - {charge: support, of: charge, ratio: 0.05, effective_from: 2026-01-01}
      - {charge: support, of: charge, product: chat, ratio: 0.10, effective_from: 2026-01-01}
""",
).replace(
    "    price_book: standard\n",
    """\
    price_book: standard
    billing: {anchor_day: 15, zone: America/New_York}
    discounts: [{discount: code, product: chat, ratio: 0.1}, {discount: launch, amount_per_period: 3}]
    minimum_per_period: 31
    fees: [{fee: block, kind: reservation, per: span, amount: 10, currency: USD, effective_until: 2027-01-01}]
    commitments:
      - {commitment: ramp, paid: in_arrears, shortfall_rule: true_up,
         tranches: [{effective_from: 2026-11-01, effective_until: 2026-11-21T12:00Z, amount: 12}]}
    credits: [{credit: promo, kind: promotional, amount: 1.5, effective_from: 2026-11-20}]
""",
)
POOLED = {"pool": "block", "ran_on": "pool"}


@pytest.fixture
def settings(database_url: str) -> Settings:
    return read_settings(database_url=database_url)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    made = Ledger(settings)
    made.execute("INSERT INTO ledger_floor (floor_at) VALUES ('2026-11-01Z')")
    yield made
    made.close()


def apply(settings: Settings, folder: Path, text: str) -> None:
    """Append a catalog as the next revision."""
    folder.mkdir()
    (folder / "catalog.yaml").write_text(text)
    objects, at = load_folder(folder), instant("2026-11-01")
    with postgres.connect(settings, "operator") as connection:
        base = latest_revision(connection)
        shown = plan(read_catalog(connection, base), objects, base_revision=base, at=at)
        append_revision(
            connection, objects, shown=shown, at=at, applied_by="test", reason="test", program_version="0.1.0"
        )


def event(name: str, at: str, tokens: tuple[int, int], **more: object) -> Event:
    return Event(f"2026-11-{at}:00", tokens, event_id=name, **more)  # type: ignore[arg-type]


def reports(settings: Settings, as_of: int | None, folder: Path) -> dict[str, bytes]:
    """Every report of the period in every form it comes in, and the files of an export: name -> bytes."""
    found: dict[str, bytes] = {}
    folder.mkdir()
    with postgres.reading(settings) as connection:
        margin = margin_report(connection, settings, PERIOD, as_of)
        capacity = capacity_report(connection, settings, PERIOD, as_of)
    made = {f"margin by {by}": margin.by(by) for by in (*MARGIN_BY, ",".join(MARGIN_BY))}
    made |= {f"capacity by {by}": capacity.by(by) for by in ("pool", "day", "hour", "minute")}
    made |= {"usage": margin.usage(), "unrated": margin.unrated_by()}
    made["unrated by all"] = margin.unrated_by(",".join(UNRATED_BY))
    for name, report in made.items():
        for form in ("csv", "json"):
            found[f"{name}, {form}"] = exports.to_text(report, form).encode()
        exports.WRITERS["parquet"](report, folder / "one.parquet")
        found[f"{name}, parquet"] = (folder / "one.parquet").read_bytes()
        page = io.StringIO()
        tables.show(report, page)
        found[f"{name}, table"] = page.getvalue().encode()
    if as_of is not None:
        done = export_period(settings, folder / "export", PERIOD, as_of)
        found |= {f"export, {name}": (folder / "export" / name).read_bytes() for name in done.exported.files}
    return found


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """The reports that are not the same bytes, by name."""
    assert one.keys() == other.keys()
    return [name for name in one if one[name] != other[name]]


def restored(settings: Settings, url: str) -> Settings:
    """The same database on another, empty cluster: its roles, then its dump."""
    programs = sandbox_postgres._programs()
    source = settings.database_url.get_secret_value()

    def run(program: str, *arguments: str, feed: bytes | None = None) -> bytes:
        command = [str(programs / program), *arguments]
        done = subprocess.run(
            command, input=feed, capture_output=True, check=False, env=os.environ | {"PGTZ": "UTC"}
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    roles = run("pg_dumpall", "--roles-only", "--dbname", source)
    # the user that makes a cluster is there already
    kept = b"\n".join(line for line in roles.split(b"\n") if not line.startswith(b"CREATE ROLE postgres"))
    run("psql", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", url, feed=kept)
    dump = run("pg_dump", "--format=custom", "--dbname", source)
    run("pg_restore", "--exit-on-error", "--dbname", url, feed=dump)
    return read_settings(database_url=url)


def _is_complete(margin: pl.DataFrame) -> None:
    """Every amount of a margin under terms is there, exact, and the columns of each row sum as they say."""
    assert not [name for name, dtype in margin.schema.items() if dtype.is_float()]
    amounts = margin.fill_null(0)
    for name in ("gross", "discount", "fee", "top_up", "shortfall", "promotional_credit"):
        assert amounts[name].sum() != 0, name
    col = pl.col
    assert amounts.filter(col("charge") != col("gross") - col("discount")).is_empty()
    earned = col("charge") + col("fee") + col("top_up") + col("overage_premium") + col("shortfall")
    earned += col("breakage") - col("promotional_credit")
    assert amounts.filter(col("revenue") != earned).is_empty()


def test_what_was_pinned_is_the_same_bytes_for_ever_and_on_a_restored_cluster(
    settings: Settings, ledger: Ledger, tmp_path: Path
) -> None:
    assert AGREED.count("support") == AGREED.count("2026-11-21T12:00Z") + 1
    apply(settings, tmp_path / "catalog", AGREED)
    first, second = ledger.intake(0), ledger.intake(1, seen_until="2026-11-21T21:02:30")
    ledger.batch(
        first,
        [
            event("a", "21T10:00", (1_000_000, 140), **POOLED),
            event("b", "21T10:01", (50, 10), **POOLED),
            event("c", "21T11:00", (2_000_000, 7), counts_for="cost"),
            event("d", "21T12:00", (500_000, 3), customer="mystery-co"),
            event("e", "21T13:00", (800_000, 9), model="unheard-of"),
            event("f", "21T14:00", (700_000, 9), pool="nowhere", ran_on="pool"),
        ],
        until="2026-11-21T21:02:30",
    )
    with postgres.connect(settings, "fold") as connection:
        pinned = fold.pin(connection, settings, "test").watermark_id
    assert pinned == 1
    kept = reports(settings, pinned, tmp_path / "kept")
    assert len(kept) > 60
    assert differing(reports(settings, pinned, tmp_path / "again"), kept) == []
    _is_complete(pl.read_parquet(tmp_path / "kept" / "export" / "margin.parquet"))

    # more of the same minutes, later ones, late ones, and what takes earlier ones back
    ledger.batch(
        second,
        [
            event("g", "21T10:00", (3_000_000, 1), **POOLED),
            event("h", "20T00:00", (40_000, 1), customer="late-co"),
            event("i", "21T22:00", (40_000, 1), **POOLED),
            event("void a", "21T20:00", (0, 0), voids="a", side="charge"),
            event("void b", "21T20:00", (0, 0), voids="b", side="both"),
        ],
        until="2026-11-22T23:00:00",
    )
    settle.run(until_idle=True, settings=settings)
    fold.run(until_idle=True, settings=settings)
    assert differing(reports(settings, pinned, tmp_path / "more"), kept) == []
    dearer = AGREED.replace("per_million: 3,", "per_million: 30,")
    dearer = dearer.replace("fee_per_month: 30", "fee_per_month: 90").replace(
        "segment: startup", "segment: frontier"
    )
    assert "per_million: 30," in dearer
    apply(settings, tmp_path / "dearer", dearer)
    with postgres.connect(settings, "fold") as connection:
        later = fold.pin(connection, settings, "test").watermark_id
    ledger.batch(second, [event("j", "21T10:02", (6, 6), **POOLED)], until="2026-11-23T01:00:00")
    fold.run(until_idle=True, settings=settings)
    assert differing(reports(settings, pinned, tmp_path / "later"), kept) == []
    ledger.execute(
        "UPDATE usage_quarters q SET output_tokens = q.output_tokens + 1 FROM series s "
        "WHERE s.series_id = q.series_id AND s.pool IS NULL"
    )
    assert differing(reports(settings, pinned, tmp_path / "damaged"), kept) != []
    assert rebuild(settings, dry_run=False).swapped
    assert differing(reports(settings, pinned, tmp_path / "rebuilt"), kept) == []
    # it is not that nothing moves: the other knowledge says something else in every report that has rows
    now = reports(settings, later, tmp_path / "second")
    assert {"margin by customer, csv", "capacity by minute, parquet"} <= set(differing(now, kept))

    with sandbox_postgres.throw_away(lambda line: None) as url:
        other = restored(settings, url)
        assert differing(reports(other, pinned, tmp_path / "other"), kept) == []
        assert differing(reports(other, later, tmp_path / "other second"), now) == []
        with postgres.reading(other) as connection:
            checks = list(verify(connection, roots=True))
        assert [check for check in checks if check.difference is not None] == []
        # knowledge goes on from there: the same events again are held, by their keys
        with psycopg.connect(url) as looking:
            held = looking.execute("SELECT count(*) FROM usage_events").fetchone()
        assert held == tuple(ledger.execute("SELECT count(*) FROM usage_events")[0])
