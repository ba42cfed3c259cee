"""Two catalogs on one ledger: what a backdated price would change before it is applied, and the file of what it did."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import typer
from typer.testing import CliRunner, Result

from metering.cli import catalog, rerating
from metering.core.margin import margin
from metering.core.rerating import by_customer, compared, differing, moved
from metering.errors import BadInput
from metering.periods import parse_period
from metering.settings import Settings
from tests.core import example_books as a
from tests.ledger_builder import Event, Ledger
from tests.test_report_commands import CATALOG, apply
from tests.text_tables import check
from workers import fold

CHEAPER = CATALOG.replace("uncached_input_tokens: 3,", "uncached_input_tokens: 2,")
#: Graduated: the first 1.5 million tokens in at 3, the rest at 1; output as before.
TIERED = CATALOG.replace(
    "        per_million: {uncached_input_tokens: 3, output_tokens: 15}",
    """\
        per_million: {output_tokens: 15}
      - product: chat
        effective_from: 2026-01-01
        meters: [uncached_input_tokens]
        model: graduated
        tiers: [{up_to: 1_500_000, per_million: 3}, {per_million: 1}]""",
)


@pytest.fixture
def ledger(settings: Settings, tmp_path: Path) -> Iterator[Ledger]:
    """A million tokens in and 100 out for acme on the 20th and the 21st, complete until 20:45; later ones are not."""
    apply(settings, tmp_path / "first")
    made = Ledger(settings)
    intake = made.intake(0, seen_until="2026-11-21T21:02:30")
    made.batch(
        intake,
        [
            Event(at, (1_000_000, 100), pool="block", ran_on="pool")
            for at in ("2026-11-20T10:00:00", "2026-11-21T10:00:00", "2026-11-21T20:45:00")
        ],
        until="2026-11-21T21:02:30",
    )
    fold.run(until_idle=True, settings=settings)
    yield made
    made.close()


def test_a_backdated_price_is_shown_before_it_is_applied_and_rerated_after(
    ledger: Ledger,
    settings: Settings,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in environment.items():
        if name.startswith("METERING_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "140")
    root = typer.Typer()
    root.add_typer(catalog.app, name="catalog")
    rerating.mount(root)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(root, arguments)

    def folder(name: str, text: str) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "catalog.yaml").write_text(text)
        return str(tmp_path / name)

    alone = run("rerate", "--period", "2026-11").exception
    assert isinstance(alone, BadInput)
    assert "there is none before it" in str(alone)
    # a name touches no amount: nothing is asked, nothing is shown
    assert "What changes" not in run("catalog", "plan", folder("named", CATALOG.replace("Acme", "A."))).stdout
    unused = CATALOG.replace("output_tokens: 15}", "output_tokens: 15, cache_read_tokens: 1}")
    shown = run("catalog", "plan", folder("unused", unused)).stdout
    assert "nothing changes: every charge and every cost of recorded usage stays" in " ".join(shown.split())
    # 1,000,000 at 3 on the 20th; on the 21st half a million at 3 and half at 1
    shown = run("catalog", "plan", folder("tiered", TIERED)).stdout
    assert "acme 6.00 5.00 -1.00" in " ".join(shown.split())
    cheaper = folder("cheaper", CHEAPER)
    shown = run("catalog", "plan", cheaper).stdout
    assert "What changes from catalog revision 1 to 2" in shown
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    # 2 x (1,000,000 at 3, then at 2, and 100 at 15 per million); a pool costs what it costs
    (acme,) = [row for row in rows if row.startswith("acme ")]
    assert acme.startswith("acme 6.00 4.00 -2.00")
    (total,) = [row for row in rows if row.startswith("total ")]
    assert total.startswith("total 6.00 4.00 -2.00")
    applied = run("catalog", "apply", cheaper, "--yes")
    assert applied.stdout == shown
    out = str(tmp_path / "out")
    written = run("rerate", "--period", "2026-11", "--output", out).stdout.split()
    stem = "rerate-2026-11-revision-1-to-2"
    assert [Path(name).name for name in written] == [f"{stem}.csv", f"{stem}.parquet"]
    check(
        pl.read_parquet(written[1]),
        """
        day        | customer | line  | revenue_before | revenue_now | revenue_change | from_revision | to_revision
        2026-11-20 | acme     | usage | 3.0015         | 2.0015      | -1             | 1             | 2
        2026-11-21 | acme     | usage | 3.0015         | 2.0015      | -1             | 1             | 2
        """,
    )
    first = [Path(name).read_bytes() for name in written]
    assert b"from_revision,to_revision" in first[0]
    assert run("rerate", "--period", "2026-11", "--from-revision", "1", "--output", out).exception is None
    assert [Path(name).read_bytes() for name in written] == first
    unknown = run("rerate", "--period", "2026-11", "--from-revision", "2", "--output", out).exception
    assert "the catalog in force is revision 2; revisions 1 to 1 can be compared with it" in str(unknown)


def test_lines_that_differ_say_what_they_were_and_what_they_are() -> None:
    """A price that goes away leaves its usage unrated; a cost that moves is a line's too; what stays is left out."""
    usage = a.usage(
        """
        quarter_start    | product | model_served | provider | output_tokens
        2026-03-05 10:00 | large   | large        | cirrus   | 1_000_000
        2026-03-05 10:00 | small   | large        | cirrus   | 1_000_000
        2026-03-06 10:00 | large   | large        | cirrus   | 1_000_000
        """
    )
    book = "item | effective_from | effective_until | meter | unit_price\n"
    cost = "book | item | effective_from | meter | unit_price\n on-demand | large | 2026-01-01 | output_tokens | 1\n"
    small = " small | 2026-01-01 | - | output_tokens | 2\n"
    before = a.books(
        price_books=a.prices(f"{book}{small} large | 2026-01-01 | - | output_tokens | 5"),
        cost_books=a.prices(cost),
    )
    now = a.books(
        price_books=a.prices(f"{book}{small} large | 2026-03-06 | - | output_tokens | 5"),
        cost_books=a.prices(
            cost.replace("| 2026-01-01 | output_tokens | 1", "| 2026-03-06 | output_tokens | 1")
        ),
    )
    period = parse_period("2026-03")
    lines = [margin(usage, a.pool_usage(usage), books, period, "USD").lines for books in (now, before)]
    everything = compared(*lines)
    found = differing(everything)
    check(
        found,
        """
        day        | product | charge_before | charge_now | charge_change | cost_before | cost_now | charge_unrated
        2026-03-05 | large   | 5             | 0          | -5            | 1           | 0        | yes
        2026-03-05 | small   | 2             | 2          | 0             | 1           | 0        | no
        """,
    )
    check(
        moved(by_customer(everything), found),
        """
        customer | line | revenue_before | revenue_now | revenue_change | cost_before | cost_now | cost_change
        acme     | -    | 12             | 7           | -5             | 3           | 1        | -2
        """,
    )
    of_one_day = found.filter(pl.col("product") == "small").with_columns(pl.lit("other").alias("customer"))
    assert moved(by_customer(everything), of_one_day)["line"].to_list() == ["unchanged"]
    assert differing(compared(lines[0], lines[0])).is_empty()
