"""The demo: one synthetic day of an AI company, from Kafka records to a margin report and a Slack alert."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from sqlalchemy import text as sql

from metering.delivery.tables import printable
from metering.errors import BadInput, MeteringError
from metering.money import round_to_minor_unit
from metering.periods import month_start, next_month_start, parse_period
from metering.settings import Settings, read_settings
from metering.store import postgres
from sandbox import servers, slack
from sandbox.workload import Expectation, Workload
from workers import reports
from workers.send import send_lines

EVENTS: Final = 320_000
SEED: Final = 7
WORKERS: Final = 2
#: Lines of a tree that the demo shows.
_EXPLAINED: Final = 24
CATALOG: Final = Path(__file__).resolve().parent.parent / "examples" / "catalog"
_OUTCOMES: Final = ("received", "accepted", "duplicate", "conflict", "rejected")


@dataclass
class Demo:
    """One telling of the story, in a sandbox folder; what it has done already it does not do again."""

    folder: Path
    events: int
    console: Console
    settings: Settings
    day: date

    def environment(self) -> dict[str, str]:
        """The environment of the commands that the demo runs."""
        addresses = servers.addresses(self.folder)
        return {**os.environ, **addresses.variables(), "METERING_LOG_LEVEL": "warning"}

    def chapter(self, title: str) -> None:
        """A heading."""
        self.console.print()
        self.console.print(Rule(f"[bold]{title}", align="left", style="dim"))

    def run(self, *arguments: str, show: bool = True) -> str:
        """Run one `metering` command as a user would type it; its output, or its error as ours."""
        if show:
            self.console.print(f"[dim]$ metering {' '.join(arguments)}[/]", highlight=False)
        done = subprocess.run(
            [sys.executable, "-m", "metering", *arguments],
            env={**self.environment(), "COLUMNS": str(self.console.width), **_color(self.console)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise MeteringError(f"`metering {' '.join(arguments)}` failed:\n{done.stderr.strip()}")
        return done.stdout

    def report(self, *arguments: str) -> None:
        """Run a report and print it."""
        sys.stdout.write(self.run(*arguments))
        sys.stdout.flush()

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """A spinner while something takes its time, and how long it took."""
        began = time.monotonic()
        with self.console.status(what):
            yield
        self.console.print(f"{what} [dim]{time.monotonic() - began:.1f} s[/]", highlight=False)


def demo_day(settings: Settings, now: datetime) -> date:
    """The last UTC day that ended before now less the allowed lateness: its numbers are complete."""
    return (now - timedelta(seconds=settings.allowed_lateness_seconds)).date() - timedelta(days=1)


def tell(folder: Path, events: int, now: datetime) -> None:
    """Tell the whole story. A second run in the same folder reuses what is there."""
    if not CATALOG.is_dir():
        raise BadInput(f"{CATALOG} is not there: the demo needs the examples of a source checkout")
    began = time.monotonic()
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(
        "[bold]metering[/]: which customers are served at a profit, and how well is contracted compute used?"
    )
    with console.status("starting Postgres and Kafka on loopback") as status:
        addresses = servers.up(folder, lambda line: status.update(line))
    settings = read_settings(
        database_url=addresses.database_url,
        kafka_bootstrap=addresses.kafka_bootstrap,
        slack_webhook_url=addresses.slack_webhook_url,
    )
    demo = Demo(folder, events, console, settings, demo_day(settings, now))
    console.print(
        f"Postgres, Kafka and a stand-in for Slack are up in {folder} [dim]{time.monotonic() - began:.1f} s[/]"
    )

    demo.chapter("A database, a topic, a catalog")
    demo.run("init")
    applied = demo.run("catalog", "apply", _shown(CATALOG), "--yes", "--reason", "demo")
    console.print(
        applied.strip().splitlines()[-1] if applied.strip() else "the catalog is in force", highlight=False
    )

    rate = _events(demo)
    _margin(demo)
    _capacity(demo)
    _bills(demo)
    _explain(demo)
    demo.chapter("Should we buy more, or less?")
    demo.report("plan", "capacity", "--period", str(demo.day))
    _refused(demo)
    _alert(demo)
    _export(demo)
    demo.chapter("How fast")
    if rate:
        console.print(rate, highlight=False)
    console.print(f"The whole story took {time.monotonic() - began:.0f} s.", highlight=False)
    demo.chapter("Try next")
    command = ".venv/bin/metering" if Path(".venv/bin/metering").exists() else "metering"
    for line in (
        f"{command} report now",
        f"{command} report margin --period {demo.day} --by customer,product",
        f"{command} verify",
    ):
        console.print(f"  {line}", highlight=False)
    console.print(
        f"\nThe servers go on running; `{command} sandbox down` stops them.", style="dim", highlight=False
    )


def _shown(path: Path) -> str:
    """A path as a person here would type it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _color(console: Console) -> dict[str, str]:
    return {"FORCE_COLOR": "1"} if console.is_terminal else {}


# ---- the events of a day -------------------------------------------------------------------------------


def _events(demo: Demo) -> str:
    """Produce the day, read it with two workers, fold it; returns how fast that went ('' if it was there)."""
    demo.chapter(f"A day of traffic: {demo.day}")
    told = demo.folder / f"demo-{demo.day}-{demo.events}.json"
    if told.exists():
        expected = Expectation(**json.loads(told.read_text()))
        demo.console.print("This day is in the ledger already; it is not sent again.")
        _identity(demo, expected)
        return ""
    with demo.working(f"inventing {demo.events:,} requests of a dozen customers"):
        workload = Workload(demo.day, demo.events, SEED)
        expected = workload.expectation()
    caught_up = workload.caught_up(now())
    expected = replace(
        expected, lines=expected.lines + len(caught_up), accepted=expected.accepted + len(caught_up)
    )
    with demo.working(f"sending {expected.lines:,} events, 100 in a record"):
        send_lines(demo.settings, chain(workload.lines(), caught_up), "workload", raw=True)
    began = time.monotonic()
    with demo.working(f"{WORKERS} ingest workers read them into the ledger"):
        _ingest(demo)
    ingested = time.monotonic() - began
    began = time.monotonic()
    with demo.working("folding the ledger into quarter hours and pool minutes"):
        demo.run("work", "fold", "--until-idle", show=False)
    folded = time.monotonic() - began
    _identity(demo, expected)
    told.write_text(json.dumps(vars(expected)))
    return (
        f"{expected.lines:,} events were read exactly once in {ingested:.1f} s, the start of {WORKERS} processes included: "
        f"{expected.lines / ingested:,.0f} events/s;\nfolded in {folded:.1f} s. `make bench` measures it properly."
    )


def _ingest(demo: Demo) -> None:
    command = [sys.executable, "-m", "metering", "work", "ingest", "--until-idle"]
    workers = [
        subprocess.Popen(
            command, env=demo.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for _ in range(WORKERS)
    ]
    for worker in workers:
        _, said = worker.communicate()
        if worker.returncode:
            raise MeteringError(f"an ingest worker failed:\n{said.strip()}")


def _identity(demo: Demo, expected: Expectation) -> None:
    """Print that nothing was lost, by the ledger's own count and by the generator's."""
    with postgres.reading(demo.settings) as connection:
        row = connection.execute(
            sql(
                f"SELECT {', '.join(f'coalesce(sum({name}), 0)::bigint' for name in _OUTCOMES)} FROM ingest_batches"
            )
        ).one()
    counts = dict(zip(_OUTCOMES, row, strict=True))
    demo.console.print(
        "received {received:,} = accepted {accepted:,} + duplicate {duplicate:,} + conflict {conflict:,} "
        "+ rejected {rejected:,}".format(**counts),
        style="bold",
        highlight=False,
    )
    rejected = sum(expected.rejected.values())
    agrees = (counts["accepted"], counts["duplicate"], counts["rejected"]) == (
        expected.accepted, expected.duplicates, rejected,
    )  # fmt: skip
    if agrees:
        demo.console.print("The generator of the events counted the same, independently.", highlight=False)
    else:
        demo.console.print(
            f"The generator of this day alone counted {expected.accepted:,} accepted, {expected.duplicates:,} duplicate, "
            f"{rejected:,} rejected; the ledger holds other input too.",
            highlight=False,
        )


# ---- what came of it -----------------------------------------------------------------------------------


def _margin(demo: Demo) -> None:
    demo.chapter("Which customers are served at a profit?")
    demo.report("report", "margin", "--period", str(demo.day))


def _money(amount: Decimal) -> str:
    return f"{amount:,.2f}"


def _whole(burn: Decimal) -> str:
    return f"{burn:,.0f}"


def _capacity(demo: Demo) -> None:
    demo.chapter("How full was the contracted capacity, and what stood idle or spilled?")
    demo.report("report", "capacity", "--period", str(demo.day))
    with postgres.reading(demo.settings) as connection:
        found = reports.capacity_report(connection, demo.settings, parse_period(str(demo.day))).by()
    for row in found.rows.iter_rows(named=True):
        if row["idle_cost"] is None:  # a carve-out: what it costs is part of what its pool costs
            continue
        spilled = (
            f"{_whole(row['spill'])} burn units spilled to on-demand" if row["spill"] else "nothing spilled"
        )
        demo.console.print(
            f"[bold]{row['pool']}[/] was full in {row['minutes_at_limit']:,} of {row['minutes']:,} minutes, and "
            f"{spilled}; all the same {_money(row['idle_cost'])} of {_money(row['recognised_cost'])} "
            f"{row['currency']} stood idle.",
            highlight=False,
        )


def _bills(demo: Demo) -> None:
    demo.chapter("Does the cost tie to the suppliers' bills?")
    file = demo.folder / f"bills-{demo.day}.yaml"
    if file.exists():
        demo.console.print("The invoices were entered when this day was first told.")
    else:
        file.write_text(_invoices(demo), encoding="utf-8")
        demo.report("bills", "add", _shown(file), "--format", "table")
    demo.report("report", "closure", "--period", f"{demo.day:%Y-%m}", "--by", "term")
    demo.console.print(
        "Each supplier's terms sum to its recognised cost, and that with what is prepaid to its bills; `idle` is large "
        "because only one day of this month has traffic.",
        highlight=False,
    )


def _explain(demo: Demo) -> None:
    demo.chapter("Where does a number come from?")
    with postgres.reading(demo.settings) as connection:
        found = reports.margin_report(connection, demo.settings, parse_period(str(demo.day)))
    paying = found.summary.filter(kind="paying").sort("charge", "customer", descending=[True, False])
    if paying.height:
        cell = [f"customer={paying['customer'][0]}", "margin", "--day", str(demo.day)]
        told = demo.run("explain", "margin", *cell).splitlines()
        demo.console.print("\n".join(told[:_EXPLAINED]), highlight=False, markup=False)
        demo.console.print(
            f"... {max(0, len(told) - _EXPLAINED)} more lines; every number is the sum of what stands below it.",
            style="dim",
            highlight=False,
        )


def _invoices(demo: Demo) -> str:
    """What the suppliers would send: each pool's fee of the month, and the day on demand, metered 0.4 % higher."""
    month, after = month_start(demo.day).date(), next_month_start(demo.day).date()
    with postgres.reading(demo.settings) as connection:
        found = reports.margin_report(connection, demo.settings, parse_period(str(demo.day)))
        entered = connection.execute(
            sql("SELECT count(*) FROM bills WHERE document LIKE :month"), {"month": f"%-{month:%Y-%m}"}
        ).scalar_one()
    bills = []
    fees = found.books.capacity_fees.join(found.books.pools.drop("currency"), on="pool")
    if not entered:
        for fee in fees.filter(per="month").sort("pool").iter_rows(named=True):
            bills.append(_invoice(fee["supplier"], f"{fee['pool']}-{month:%Y-%m}", fee["currency"]))
            bills.append(_charge(1, "pool", fee["pool"], fee["amount"], month, after))
    bought = found.by("provider,model_served").rows.filter(provider="cirrus").sort("model_served")
    bills.append(_invoice("cirrus", f"on-demand-{demo.day}", found.currency))
    for number, row in enumerate(bought.iter_rows(named=True), start=1):
        metered = round_to_minor_unit(row["cost_on_demand"] * Decimal("1.004"))
        bills.append(
            _charge(number, "on_demand", row["model_served"], metered, demo.day, demo.day + timedelta(days=1))
        )
    return "bills:\n" + "".join(bills)


def _invoice(supplier: str, document: str, currency: str) -> str:
    return f"  - supplier: {supplier}\n    document: {document}\n    currency: {currency}\n    lines:\n"


def _charge(line: int, kind: str, name: str, amount: Decimal, start: date, until: date) -> str:
    return (
        f'      - {{line: "{line}", category: charge, object_kind: {kind}, object: {name}, '
        f"amount: {amount:f}, service_from: {start}, service_until: {until}}}\n"
    )


def _refused(demo: Demo) -> None:
    demo.chapter("What was rejected, and what has no price?")
    table = Table(
        "rejected as", "events", "for example", box=None, header_style="bold", width=demo.console.width
    )
    table.columns[1].justify = "right"
    for column in table.columns:
        column.no_wrap = True
    table.columns[2].ratio = 1
    with postgres.reading(demo.settings) as connection:
        for row in connection.execute(
            sql(
                "SELECT code, count(*) AS events, min(detail) AS detail FROM rejects GROUP BY code ORDER BY 2 DESC, 1"
            )
        ):
            table.add_row(row.code, f"{row.events:,}", Text(printable(row.detail)))
    demo.console.print("Each is kept with its bytes, its place in Kafka and what would be right:")
    demo.console.print(table)
    demo.console.print(
        "\nWhat has no price is accepted, and a line of its own, never zero. Once the catalog has the price, "
        "the same report has the charge:"
    )
    demo.report("report", "unrated", "--period", str(demo.day), "--by", "side,reason,product")


def _alert(demo: Demo) -> None:
    demo.chapter("What the on-call channel was told")
    before = len(slack.read_messages(demo.folder))
    demo.run("work", "evaluate", "--until-idle")
    demo.run("work", "deliver", "--until-idle")
    messages = slack.read_messages(demo.folder)
    if messages and len(messages) == before:
        demo.console.print("Nothing new: an alert is told once, and this one is open since it was told.")
    for message in messages[-2:]:
        demo.console.print(slack.panel(message))
    if not messages:
        demo.console.print("Nothing: no margin is below its floor.")


def _export(demo: Demo) -> None:
    demo.chapter("Files for finance")
    at = demo.folder.parent / "exports"
    at.mkdir(parents=True, exist_ok=True)
    taken = [
        int(name) for folder in at.iterdir() if (name := folder.name.removeprefix(f"{demo.day}-")).isdigit()
    ]
    folder = at / f"{demo.day}-{max(taken, default=0) + 1}"
    demo.run("export", _shown(folder), "--period", str(demo.day))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    table = Table("file", "rows", "bytes", "SHA-256", box=None, header_style="bold")
    table.columns[1].justify = table.columns[2].justify = "right"
    for entry in manifest["files"]:
        table.add_row(
            entry["file"], f"{entry['rows']:,}", f"{entry['bytes']:,}", f"{entry['sha256'][:16]}..."
        )
    demo.console.print(table, highlight=False)
    demo.console.print(
        f"All of {_shown(folder)}, as of watermark {manifest['watermark_id']}; manifest.json has the whole sums and "
        f"the chain heads. Exported again as of {manifest['watermark_id']}, they are the same bytes.",
        highlight=False,
    )


def now() -> datetime:
    """The clock of the demo."""
    return datetime.now(UTC)
