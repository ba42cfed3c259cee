"""`metering explain` and `report bridge` on a real ledger: the tree of a cell is the cell, and says where it is from."""

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from metering.cli import closing, reports, standing
from metering.cli import explain as explaining
from metering.errors import BadInput
from metering.settings import Settings
from metering.store.postgres import connect
from tests.ledger_builder import Event, Ledger
from tests.test_report_commands import CATALOG, apply
from workers.fold import pin

Run = Callable[..., Result]
FEE = "\n    fees: [{fee: plan, amount_per_month: 30, currency: USD}]\ncapacity_contracts:"
TERMS = """
    fees: [{fee: plan, amount: 30, per: month, currency: USD}]
    commitments:
      - commitment: year
        paid: ahead
        shortfall_rule: true_up
        tranches: [{effective_from: 2026-11-01, effective_until: 2026-12-01, amount: 4.00}]
    credits:
      - {credit: launch, kind: promotional, amount: 3.00, effective_from: 2026-11-01, effective_until: 2026-12-01}
    entitlements: [{pool: block, units: 1}]
    limits:
      - {limit: hour, holder: customer, window: {anchored_minutes: 60}, quantity: 100, weights: {output_tokens: 1}}
capacity_contracts:"""


@pytest.fixture
def ledger(settings: Settings, tmp_path: Path) -> Iterator[Ledger]:
    """Two days of a catalog with a fee, in two partitions; complete to 20:45 of the second."""
    apply(settings, tmp_path / "catalog", CATALOG.replace("\ncapacity_contracts:", FEE))
    made = Ledger(settings)
    pooled = {"pool": "block", "ran_on": "pool"}
    for partition in (0, 1):
        made.batch(
            made.intake(partition, seen_until="2026-11-21T21:02:30"),
            [
                Event("2026-11-20T10:00:00", (1_000_000, 60), **pooled),
                Event("2026-11-21T10:00:00", (1_000_000, 70), **pooled),
                Event("2026-11-21T11:00:00", (500_000, 5), model="small", **pooled),
                Event("2026-11-21T10:00:10", (7, 3), customer="mystery-co", **pooled),
            ],
            until="2026-11-21T21:02:30",
        )
    with connect(settings, "fold") as connection:
        pin(connection, settings, "test")
    yield made
    made.close()


@pytest.fixture
def run(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process with the settings of this test."""
    for name, value in environment.items():
        if name.startswith("METERING_"):
            monkeypatch.setenv(name, value)
    root = typer.Typer()
    reports.mount(root)
    closing.mount(root)
    standing.mount(root)
    explaining.mount(root)

    def invoke(*arguments: str, fails: bool = False) -> Result:
        result = CliRunner().invoke(root, arguments)
        if not fails:
            assert result.exception is None, result.exception
        return result

    return invoke


def checked(tree: dict[str, Any]) -> int:
    """How many nodes a tree has; each with children is their sum."""
    children = tree.get("children", [])
    amount, *parts = (Decimal(node["amount"]) for node in (tree, *children))
    assert not parts or amount == sum(parts), tree
    return 1 + sum(map(checked, children))


def test_every_cell_is_the_report_and_a_cell_that_is_not_there_says_what_is(
    settings: Settings, ledger: Ledger, run: Run
) -> None:
    def rows(*arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(run("report", *arguments, "--format", "json").stdout)["rows"]
        return found

    def tree(*arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run("explain", *arguments, "--format", "json").stdout)
        assert checked(found["tree"])
        return found

    period = ("--period", "2026-11")
    [acme] = [row for row in rows("margin", *period) if row["customer"] == "acme"]
    for column in ("margin", "charge", "fee", "cost", "cost_loaded", "requests"):
        assert tree("margin", "customer=acme", column, *period)["tree"]["amount"] == str(acme[column]), column
    [block] = rows("capacity", "--period", "2026-11-21")
    for column in ("idle", "served", "burn", "overrun"):
        found = tree("capacity", "pool=block", column, "--day", "2026-11-21")["tree"]
        assert Decimal(found["amount"]) == Decimal(block[column]), column
    for column in ("recognised_cost", "idle_cost"):
        assert tree("capacity", "pool=block", column, *period)["tree"]["unit"] == "USD"
    for row in rows("closure", *period):
        words = [f"term={row['term']}", *([f"kind={row['kind']}"] if row["kind"] else [])]
        assert tree("closure", *words, *period)["tree"]["amount"] == row["usage"], row
    # as of a watermark: the same bytes whatever comes later
    whole = ("explain", "margin", "customer=acme", "charge", *period, "--as-of", "1", "--batches")
    before = run(*whole).stdout
    assert "5,000,000 x 3 per million, book standard (revision 1, catalog.yaml:" in before
    assert "events partition 1 " in before
    assert "offsets" in before
    assert max(map(len, before.splitlines())) <= 100
    batches = json.loads(run(*whole, "--format", "json").stdout)["batches"]
    assert batches["amount"] == "6"
    assert checked(batches) == 5
    ledger.batch(ledger.intake(2), [Event("2026-11-21T10:00:00", (9, 9))])
    assert run(*whole).stdout == before
    for words, says in (
        (("margin", "customer=acne"), "there are acme"),
        (("margin", "custmer=acme"), "a cell has no custmer; it is about any of day, line, customer"),
        (("margin", "product=x"), "there are -, chat"),
        (("margin", "cots"), "margin has no column 'cots'"),
        (("margin", "customer=acme", "cost", "fee"), "a cell has one column"),
        (
            ("margin", "line=fee", "product=chat"),
            "'product=chat': margin has no such line in 2026-11; there are -",
        ),
        (("margin", "line=fee", "kind=paying", "product=-", "segment=x"), "there are startup"),
        (("capacity", "pool=b"), "there are block"),
        (("capacity", "idle"), "pool=NAME; there are block"),
        (("closure", "term=idl"), "there are customers, idle"),
        (("closure", "supplier=x"), "there are supplier=northstar currency=USD"),
        (("now",), "give one of margin, contracts, balances"),
    ):
        found = run("explain", *words, *period, fails=True)
        assert isinstance(found.exception, BadInput), found.exception
        assert says in str(found.exception)


def test_commitments_credits_and_entitlements_are_told_to_their_parts(
    settings: Settings, ledger: Ledger, run: Run, tmp_path: Path
) -> None:
    apply(settings, tmp_path / "catalog", CATALOG.replace("\ncapacity_contracts:", TERMS))
    day = ("--period", "2026-11-21")

    def rows(report: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(run(report, *day, "--format", "json").stdout)["rows"]
        return found

    def tree(*arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run("explain", *arguments, *day, "--format", "json").stdout)
        assert checked(found["tree"])
        return dict(found["tree"])

    # 5 M tokens of input at 3 and 270 of output at 15: 15.00405, of which 4 were paid ahead and 3 given
    made = {row["what"]: row for row in rows("contracts")}
    assert made["commitment"]["drawn"] == "4.000000000000"
    for what, columns in (
        ("commitment", ("drawn", "overage", "shortfall_projected")),
        ("entitlement", ("drawn", "remaining", "pace_ratio")),
    ):
        for column in columns:
            found = tree("contracts", "customer=acme", f"what={what}", column)
            assert Decimal(found["amount"]) == Decimal(made[what][column]), column
    assert made["entitlement"]["pace_ratio"] != "0.000000"
    [row] = rows("balances")
    for column in ("unbilled", "promotional_left", "committed_left", "expiring"):
        assert Decimal(tree("balances", "contract=acme-standard", column)["amount"]) == Decimal(
            row[column]
        ), column
    unbilled = tree("balances", "customer=acme")
    parts = {part["name"]: part["amount"] for part in unbilled["children"]}
    assert parts == {
        "net": "15.004050000000",
        "less drawdown": "-4.000000000000",
        "less promotional_credit": "-3.000000000000",
        # to the cut at 20:45 of the 21st
        "fees": "20.864583333333",
    }
    # 140 at 10:00 of the 21st, which opens an hour, and 10 at 11:00
    [row] = json.loads(run("report", "limits", *day, "--format", "json").stdout)["rows"]
    for column in ("max_ratio", "p50_ratio", "least_headroom_ratio", "windows_binding", "holders"):
        assert Decimal(tree("limits", "limit=hour", column)["amount"]) == Decimal(row[column]), column
    opened = tree("limits", "customer=acme", "window_start=2026-11-21T10:00Z")
    assert opened["amount"] == "140"
    [exposed] = json.loads(run("report", "limits", "--pool", "block", *day, "--format", "json").stdout)[
        "rows"
    ]
    for column in ("exposure", "exposure_ratio", "available", "peak"):
        found = tree("limits", "pool=block", column)
        assert Decimal(found["amount"]) == Decimal(exposed[column]), column
    for words, says in (
        (("limits", "limit=day"), "no window of limit=day in 2026-11-21; limit may be hour"),
        (("limits", "held_by=x"), "held_by may be acme"),
        (("limits", "headroom_ratio"), "headroom_ratio is of one window, and there are 2"),
        (("limits", "pool=b"), "there are block"),
        (("limits", "pool=block", "used"), "has no column 'used' that has parts; give one of exposure"),
        (("contracts",), "say whose, customer=NAME or contract=NAME; there are acme"),
        (("contracts", "customer=acne"), "there are acme"),
        (
            ("contracts", "contract=acme-standard"),
            "name one row; there are customer=acme contract=acme-standard what=",
        ),
        (("contracts", "customer=acme", "what=terms"), "no such row in 2026-11-21; there are "),
        (
            ("contracts", "customer=acme", "what=commitment", "cost"),
            "no column 'cost' that has parts; give one of",
        ),
        (("contracts", "customer=acme", "what=entitlement", "projected"), "of an entitlement, give one of"),
        (("balances", "contract=x"), "no such contract; there are acme-standard"),
        (("balances", "customer=acme", "margin"), "no column 'margin' that has parts; give one of unbilled"),
    ):
        refused = run("explain", *words, *day, fails=True)
        assert isinstance(refused.exception, BadInput), refused.exception
        assert says in str(refused.exception)


def test_a_bridge_ends_at_the_margins_and_names_what_moved_them(ledger: Ledger, run: Run) -> None:
    days = ("--from", "2026-11-20", "--to", "2026-11-21")
    found = json.loads(run("report", "bridge", *days, "--format", "json").stdout)
    terms = {row["term"]: row for row in found["rows"]}
    first, *moved, last = (Decimal(row["margin"]) for row in found["rows"])
    assert first + sum(moved) == last
    # 3,000,150 tokens after 2,000,120: 6.00 of input and 0.0018 of output x 1,000,030 / 2,000,120
    assert terms["volume"]["revenue"] == "3.000809978400"
    assert any("what moved it most: " in note for note in found["notes"])
    assert json.loads(run("report", "bridge", *days, "--customer", "acme", "--format", "json").stdout)["rows"]
    assert run("report", "bridge", *days, "--segment", "startup", "--by", "customer").stdout
    # nobody carries idle in this ledger; a table leaves out what is less than half a cent, but for the two ends
    loaded = json.loads(run("report", "bridge", *days, "--basis", "loaded", "--format", "json").stdout)
    assert loaded["rows"] == found["rows"]
    table = run("report", "bridge", *days).stdout
    assert "margin of 2026-11-20" in table
    for term, row in terms.items():
        large = any(abs(Decimal(row[name])) >= Decimal("0.005") for name in ("revenue", "cost", "margin"))
        assert (f" {term} " in table) == (large or term.startswith("margin of"))
    for words, says in (
        (("--basis", "cause"), "give usage or loaded"),
        (("--customer", "acne"), "there are acme"),
        (("--segment", "nobody"), "there are startup"),
        (("--by", "product"), "give any of term, customer"),
    ):
        refused = run("report", "bridge", *days, *words, fails=True)
        assert isinstance(refused.exception, BadInput)
        assert says in str(refused.exception)
