"""Demand in scenarios, by command on a real ledger: prices, customers, plans, and limits with two bounds."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from metering.errors import BadInput
from metering.settings import Settings
from tests.ledger_builder import Event, Ledger
from tests.test_planning import ON_DEMAND, Run, run, scenario
from tests.test_report_commands import CATALOG, apply, pinned

__all__ = ["run"]
DAY = ("--period", "2026-11-21")
DEMAND = """
plans:
  - plan: team
    name: Team
    price_book: flat
    fees: [{fee: team, amount: 30, currency: USD}]
    limits:
      - {limit: a minute, holder: project, window: {minute: true}, quantity: 64, weights: {output_tokens: 1}}
  - {plan: metered, name: Metered, price_book: standard}
"""


def catalog() -> str:
    """acme on the flat plan at $30 a month, a dollar a day; bolt by the standard prices; a pool of 100 at $1 a day."""
    text = CATALOG.replace("name: Large}", "name: Large, cost_book: own-list}")
    bolt = "  - {customer: bolt, name: Bolt, dated: [{effective_from: 2026-01-01, kind: paying, segment: big}]}\n"
    text = text.replace("models:", bolt + "models:", 1)
    flat = (
        "  - book: flat\n    currency: USD\n    prices:\n      - product: chat\n        effective_from: 2026-01-01\n"
        "        per_million: {uncached_input_tokens: 0, output_tokens: 0}\n"
    )
    of_bolt = "  - {contract: bolt-1, customer: bolt, price_book: standard, effective_from: 2026-01-01}\n"
    text = text.replace("contracts:\n", flat + "contracts:\n" + of_bolt, 1)
    text = text.replace(
        "contract: acme-standard\n    customer: acme\n    price_book: standard",
        "contract: acme-1\n    customer: acme\n    plan: team",
    )
    return text + ON_DEMAND + DEMAND


@pytest.fixture
def ledger(settings: Settings, tmp_path: Path) -> Iterator[Ledger]:
    """At 10:00 one project is at its limit of 64 and is refused 40, another uses 16: 20 of 100 stand idle."""
    apply(settings, tmp_path / "catalog", catalog())
    made = Ledger(settings)
    intake = made.intake(0, seen_until="2026-11-22T21:02:30")
    pooled = {"pool": "block", "ran_on": "pool"}
    made.batch(
        intake,
        [
            Event("2026-11-21T10:00:00", (0, 64), project="one", **pooled),
            Event("2026-11-21T10:00:10", (0, 16), project="two", **pooled),
            Event("2026-11-21T11:00:00", (0, 50), customer="bolt", **pooled),
        ],
        until="2026-11-22T21:02:30",
    )
    for key, attempt in ((1, 1), (2, 2)):
        made.execute(
            "INSERT INTO refusals (event_key, source_id, batch_id, occurred_at, customer, request_id, attempt, "
            "reason, product, project, estimated_input_tokens, estimated_output_tokens) "
            f"SELECT '00000000-0000-7000-8000-00000000000{key}', 1, min(batch_id), '2026-11-21T10:00:30Z', 'acme', "
            f"'r-1', {attempt}, 'customer_limit', 'chat', 'one', 0, 40 FROM ingest_batches"
        )
    pinned(settings)
    yield made
    made.close()


def test_what_demand_would_cost(ledger: Ledger, run: Run, tmp_path: Path) -> None:
    def said(changes: str, by: str) -> dict[str, dict[str, object]]:
        file = scenario(tmp_path, f"scenario: Supposed\nchanges:\n{changes}")
        return {str(next(iter(row.values()))): row for row in run.rows("what-if", file, *DAY, "--by", by)}

    def change(changes: str, measure: str, end: str = "") -> str:
        return str(said(changes, "company")[measure][f"change{end}"]).rstrip("0").rstrip(".")

    # between the 40 that were refused and 64 more; 20 fit, the rest costs $10 a million; the plan's fee stays
    double = "  - raise_limits: {plan: team, factor: 2}\n"
    company = said(double, "company")
    assert [company["cost"][name] for name in ("change_lower", "change_upper")] == [
        "0.000200000000",
        "0.000440000000",
    ]
    assert company["revenue"]["change_upper"] == "0.000000000000"
    pool = said(double, "pool")["block"]
    assert [pool[f"served{end}"] for end in ("", "_lower", "_upper")] == [
        f"{n}.000000" for n in (130, 150, 150)
    ]
    assert [pool[f"spill{end}"] for end in ("", "_lower", "_upper")] == [f"{n}.000000" for n in (0, 20, 44)]
    plans = said(double, "plan")
    # the team takes idle that was nobody's, at what it costs the company: nothing
    assert set(plans) == {"team", "None"}
    assert sum(Decimal(str(row["change_lower"])) for row in plans.values()) == Decimal("-0.0002")
    # ... in twice the capacity nothing spills: a dollar a day, whatever they use
    both = "  - resize: {pool: block, factor: 2}\n" + double
    assert [change(both, "cost", end) for end in ("_lower", "_upper")] == ["1", "1"]
    shown = run("what-if", scenario(tmp_path, f"scenario: Both\nchanges:\n{both}"), *DAY).output
    shown = " ".join(shown.replace("\n", " ").split())
    assert (
        "Both: costs 1.00 USD more for 0.00 USD more revenue in 2026-11-21; over 30 days 30.00 USD more"
        in shown
    )
    # given that capacity, the limits cost nothing
    assert (
        "of it the raised limits, given the other changes: 0.00 USD more for 0.00 USD more revenue" in shown
    )
    assert (
        "block: of 40 to 64 more burn units 40 to 64 fill idle capacity that was paid for anyway, 0 spill"
        in shown
    )
    assert "1 window of 1 holder was binding; 1 request was turned away" in shown

    # what a table shows: what changes, before and after together
    assert "the same before and after: contracted, overrun, pool cost" in " ".join(
        run("what-if", scenario(tmp_path, f"scenario: Double\nchanges:\n{double}"), *DAY).output.split()
    )
    # bolt pays nothing any more on a plan whose fee is 1.00, in a pool that costs 1.00: why it loses, with the fee gone
    free = "  - move_customers: {customers: [acme, bolt], to_plan: metered}\n"
    free += "  - change_price: {book: standard, product: chat, factor: 0}\n"
    lost = run("what-if", scenario(tmp_path, f"scenario: Free\nchanges:\n{free}"), *DAY).output
    assert (
        "metered would lose <0.01 USD: earns 0.00 for 3 requests that cost <0.01 (<0.01 for capacity in pools): 0.00 "
        "against 0.30 per thousand" in " ".join(lost.split())
    )

    # 50 tokens at $15 a million
    assert change("  - change_price: {book: standard, product: chat, factor: 1.1}\n", "charge") == "0.000075"
    assert (
        change(
            "  - change_price: {book: standard, product: chat, per_million: {output_tokens: 5}}\n", "charge"
        )
        == "-0.0005"
    )
    assert change("  - lose_customer: {customer: bolt}\n", "revenue") == "-0.00075"
    win = said("  - win_customer: {like: bolt, factor: 2, customer: new}\n", "customer")["new"]
    assert (win["revenue"], win["revenue_after"]) == ("0.000000000000", "0.001500000000")
    # acme leaves its fee of a dollar a day, and pays 80 tokens
    assert change("  - move_customers: {from_plan: team, to_plan: metered}\n", "revenue") == "-0.9988"
    segments = said("  - move_customers: {customers: [bolt], to_plan: team}\n", "segment")
    assert segments["big"]["revenue_after"] == "1.000000000000"
    # a price of tomorrow changes nothing of today
    late = scenario(
        tmp_path,
        "changes:\n  - change_price: {book: standard, product: chat, factor: 2, effective_from: 2026-11-22}\n",
    )
    shown = " ".join(run("what-if", late, *DAY).output.split())
    assert "scenario.yaml:2 change_price takes effect at 2026-11-22T00:00Z, after the figures end" in shown
    assert "costs 0.00 USD more for 0.00 USD more revenue" in shown


REFUSED = [
    (
        "raise_limits: {plan: tea, factor: 2}",
        "scenario.yaml:3: changes[0].raise_limits.plan: 'tea': is not a plan of the catalog; there are metered, team",
    ),
    ("raise_limits: {plan: metered, factor: 2}", "names no limit; there are a minute of acme-1"),
    (
        "raise_limits: {plan: team, factor: 0.5}",
        "must be at least 1: what a smaller limit would have turned away",
    ),
    ("raise_limits: {factor: 2}", "give plan, contract or limit: which limits are raised"),
    (
        "change_price: {book: standart, product: chat, factor: 2}",
        "'standart': is not a price book of the catalog; there are flat, standard",
    ),
    (
        "change_price: {book: standard, product: chit, factor: 2}",
        "'chit': is not a product of price book standard; there are chat",
    ),
    ("change_price: {book: standard, product: chat}", "give factor or per_million, one of them"),
    (
        "change_price: {book: standard, product: chat, per_million: {cache_read_tokens: 1}}",
        "'cache_read_tokens': has no unit price in tier standard; there are output_tokens, reasoning_tokens, uncached",
    ),
    (
        "move_customers: {customers: [bold], to_plan: team}",
        "'bold': is not a customer of the catalog; there are acme, bolt",
    ),
    ("move_customers: {to_plan: team}", "give customers or from_plan, one of them"),
    ("move_customers: {from_plan: metered, to_plan: team}", "nobody is on this plan on 2026-11-21"),
    ("lose_customer: {customer: bold}", "'bold': is not a customer of the catalog"),
    ("win_customer: {like: bolt, customer: acme}", "'acme': is a customer already; give another name"),
]


def test_demand_is_refused_by_file_and_line(ledger: Ledger, run: Run, tmp_path: Path) -> None:
    for change, says in REFUSED:
        with pytest.raises(BadInput) as refused:
            run("what-if", scenario(tmp_path, f"scenario: x\nchanges:\n  - {change}\n"), *DAY)
        assert says in str(refused.value)
