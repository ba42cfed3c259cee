"""Adjustments: quantities entered by hand, all of a file or none, once; each fault by line, column and remedy."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from metering.cli import adjustments as commands
from metering.errors import BadInput, MeteringError, Unavailable
from metering.events.adjustments import Adjustment, read_adjustments
from metering.events.laws import DecodeLimits
from metering.settings import Settings, read_settings
from metering.store import postgres
from metering.store.ledger import Ledger as Store
from metering.store.verify import verify
from tests.ledger_builder import Event, Ledger, instant
from tests.test_settle import settlements
from workers import adjust, fold, settle

HEADER = (
    "id,customer,provider,model_served,tier_served,occurred_at,reason,uncached_input_tokens,output_tokens"
)
ROW = "{},acme,own,large,standard,2026-10-31T10:00:00Z,lost by the gateway,{},{}"
LIMITS = DecodeLimits.of(read_settings(), datetime(2026, 10, 1, tzinfo=UTC))
NOW = datetime(2026, 11, 1, tzinfo=UTC)


def lines(*rows: str, header: str = HEADER) -> bytes:
    return "\n".join((header, *rows)).encode()


def read(content: bytes) -> tuple[list[Adjustment], list[str]]:
    found, faults = read_adjustments(content, author="ann", adjustments_max=3, limits=LIMITS, now=NOW)
    return found, [str(fault) for fault in faults]


def test_what_a_line_leaves_out_is_as_on_the_wire() -> None:
    (one,), faults = read(lines(ROW.format("a-1", "-5", "")))
    assert faults == []
    assert one.dimensions == (
        *("acme", "large", "standard", "own", "large", "standard", "global"),
        *(None, "on_demand", "charge_and_cost", 0),
    )
    assert (one.sign, one.meters, one.author, one.line) == (-1, (-5, *[0] * 11), "ann", 2)
    # the author is not content; a golden value: digests in a ledger must be computed again for good
    assert one.digest() == 5096140937197345747


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file is empty"),
        (b"\xff\xfe", "line 1: this is not UTF-8"),
        (lines(), "the file has a header and no adjustment"),
        (lines("x", header="id,colour"), "line 1: colour: there is no such column"),
        (lines("x", header=HEADER + ",id"), "line 1: id: stands twice"),
        (lines("x", header="id,output_tokens"), "line 1: customer: the column is missing"),
        (lines("x", header=HEADER.split(",unc")[0]), "line 1: no column is a quantity"),
        (lines(*[ROW.format(name, 1, 1) for name in "abcd"]), "the file has 4 adjustments; at most 3"),
        (lines("a,b"), "line 2: has 2 cells, the header has 9"),
        (lines(ROW.format("", 1, 1)), "line 2: id: is empty"),
        (lines(ROW.format("a", 1, 1), ROW.format("a", 1, 1)), "line 3: id: 'a' stands in line 2 already"),
        (lines(ROW.format("a" * 201, 1, 1)), "line 2: id: has 201 bytes, at most 200"),
        (lines(ROW.format('"a\x07"', 1, 1)), "line 2: id: 'a\\x07' holds a control character"),
        (lines(ROW.format('"a', 1, 1)), "line 2: this is not CSV"),
        (lines(ROW.format("a", "1.5", 1)), "line 2: uncached_input_tokens: '1.5' is not a whole number"),
        (lines(ROW.format("a", 2**31, 1)), "line 2: uncached_input_tokens: 2147483648 is beyond 2147483647"),
        (lines(ROW.format("a", "", 0)), "line 2: no quantity is given"),
        (lines(ROW.format("a", 1, -1)), "line 2: uncached_input_tokens: is 1, but output_tokens is -1"),
        (lines(ROW.format("a", 1, 1).replace("Z", "")), "line 2: occurred_at: '2026-10-31T10:00:00' is not a time"),
        (lines(ROW.format("a", 1, 1).replace("2026", "2025")), "line 2: occurred_at: 2025-10-31T10:00:00Z lies before"),
        (lines(ROW.format("a", 1, 1).replace("2026", "2027")), "line 2: occurred_at: 2027-10-31T10:00:00Z lies in the"),
        (lines(ROW.format("019a0000-0000-7000-8000-000000000000", 1, 1)), "line 2: id: the time inside '019a0000"),
        (lines(ROW.format("a", 1, 1) + ",pool", header=HEADER + ",ran_on"), "line 2: capacity_pool: is empty, but"),
        (lines(ROW.format("a", 1, 1) + ",x", header=HEADER + ",capacity_pool"), "line 2: ran_on: is empty; beside"),
        (lines(ROW.format("a", 1, 1) + ",both", header=HEADER + ",counts_for"), "line 2: counts_for: 'both' is none"),
    ],
)  # fmt: skip
def test_a_fault_names_line_column_and_remedy(content: bytes, told: str) -> None:
    found, faults = read(content)
    assert found == []
    assert faults[0].startswith(told)


# ---- into the ledger -----------------------------------------------------------------------------------


@pytest.fixture
def settings(database_url: str) -> Settings:
    return read_settings(database_url=database_url)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    made = Ledger(settings)
    made.execute("INSERT INTO ledger_floor (floor_at) VALUES ('2026-10-01Z')")
    yield made
    made.close()


Run = Callable[..., Result]


@pytest.fixture
def run(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Enter a file of these rows in this process, with the settings of this test."""
    monkeypatch.setenv("METERING_DATABASE_URL", settings.database_url.get_secret_value())

    def enter(*rows: str, yes: bool = True, header: str = HEADER) -> Result:
        file = tmp_path / "adjustments.csv"
        file.write_bytes(lines(*rows, header=header))
        return CliRunner().invoke(commands.app, ["add", str(file), *(["--yes"] if yes else [])])

    return enter


def state(ledger: Ledger) -> list[Any]:
    tables = ("usage_events", "adjustments", "ingest_batches", "series", "batch_sources")
    return [sorted(ledger.execute(f"SELECT * FROM {table}"), key=str) for table in tables]


def test_a_file_enters_once_and_counts_no_request(
    settings: Settings, ledger: Ledger, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (ROW.format("up", 100, 10), ROW.format("down", -30, 0))
    asked = run(*rows, yes=False)
    assert "no terminal to ask on" in str(asked.exception)
    assert "acme: +70 uncached_input_tokens in 2" in asked.stdout
    assert ledger.execute("SELECT count(*) FROM usage_events") == [(0,)]

    def die(*arguments: object) -> None:
        raise psycopg.OperationalError("the process died")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "_write_batch_row", die)
        assert isinstance(run(*rows).exception, Unavailable)
    assert ledger.execute("SELECT count(*) FROM adjustments") == [(0,)]

    assert run(*rows).exit_code == 0
    entered = state(ledger)
    assert ledger.execute(
        "SELECT event_id, sign(source_id)::int, event_type, uncached_input_tokens, a.reason, a.author <> '' "
        "FROM adjustments a JOIN usage_events USING (event_key, source_id) ORDER BY 1"
    ) == [
        ("down", -1, 6, -30, "lost by the gateway", True),
        ("up", 1, 6, 100, "lost by the gateway", True),
    ]
    again = run(*rows)
    assert (again.exit_code, again.stdout) == (0, "0 new adjustments, 2 entered before\n")
    assert state(ledger) == entered

    # other content, and the other sign, are conflicts; what is new beside them does not enter either
    other = run(ROW.format("up", 101, 10), ROW.format("down", 30, 0), ROW.format("new", 1, 0))
    assert other.exit_code == 1
    assert "line 2: id: 'up' was entered before with other content" in other.stderr
    assert "line 3: id: 'down' was entered before with the other sign" in other.stderr
    assert state(ledger) == entered

    fold.run(until_idle=True, settings=settings)
    sums = "SELECT sum(requests)::int, sum(uncached_input_tokens)::int, sum(output_tokens)::int FROM usage_quarters"
    assert ledger.execute(sums) == [(0, 70, 10)]

    # a void takes back events, never an adjustment
    intake = ledger.intake()
    ledger.batch(intake, [
        Event("2026-10-31T11:00:00", event_id=f"v-{name}", voids=name, voids_source="adjustments", side="both")
        for name in ("up", "down")
    ])  # fmt: skip
    settle.run(until_idle=True, settings=settings)
    assert settlements(ledger) == {"v-up": "void_of_other", "v-down": "void_of_other"}
    with postgres.reading(settings) as connection:
        assert [check for check in verify(connection, roots=True) if check.difference] == []
    listed = CliRunner().invoke(commands.app, ["list", "--customer", "acme"])
    assert [line.split("\t")[0] for line in listed.stdout.splitlines()] == ["id", "up", "down"]


def test_a_pool_never_burned_less_than_nothing(ledger: Ledger, run: Run) -> None:
    """What adjustments added to a minute they may take away; what events burned only voids take back."""
    header = HEADER + ",capacity_pool,ran_on,counts_for"
    ledger.batch(ledger.intake(), [Event("2026-10-31T10:00:00", pool="north", ran_on="pool")])

    def enter(*rows: tuple[str, int, str]) -> Result:
        return run(
            *(f"{ROW.format(name, amount, '')},north,pool,{counts_for}" for name, amount, counts_for in rows),
            header=header,
        )

    refused = enter(("down", -3, ""))
    assert refused.exit_code == 1
    assert "line 2: uncached_input_tokens: -3 takes 3 more from the pool in that minute" in refused.stderr
    assert enter(("charge", -3, "charge"), ("down", -3, ""), ("up", 3, "")).exit_code == 0
    assert enter(("down", -3, ""), ("more", -1, "")).exit_code == 1
    assert enter(("again", 4, "")).exit_code == 0
    assert enter(("less", -4, "")).exit_code == 0
    assert ledger.execute("SELECT count(*) FROM adjustments") == [(5,)]


def test_two_who_enter_at_once_enter_once(settings: Settings, ledger: Ledger) -> None:
    found = adjust.read_file(settings, "a.csv", lines(ROW.format("a", 1, 0)), "ann")
    assert adjust.append(settings, found) == 1
    with pytest.raises(BadInput, match="somebody else entered"):
        adjust.append(settings, found)
    assert ledger.execute("SELECT count(*) FROM adjustments") == [(1,)]


def test_an_error_of_a_file_names_it_and_the_rest_is_counted(settings: Settings, ledger: Ledger) -> None:
    rows = [ROW.format("", 1, 0)] * 22
    with pytest.raises(MeteringError) as raised:
        adjust.read_file(settings, "a.csv", lines(*rows), "ann")
    told = str(raised.value).splitlines()
    assert told[0] == "a.csv: line 2: id: is empty; every adjustment has one"
    assert told[-2:] == ["and 2 more", "nothing was entered"]
    assert ledger.execute("SELECT floor_at FROM ledger_floor") == [(instant("2026-10-01"),)]
