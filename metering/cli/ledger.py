"""Commands that bring up and tend the ledger: init, partitions, stream, settings."""

import os
import sys
from datetime import date
from typing import TYPE_CHECKING, Final

import typer

from metering.errors import BadInput

if TYPE_CHECKING:
    from workers.interventions import Move

#: Variables that say where the sandbox keeps its data and its jars; not settings of the program.
OF_THE_SANDBOX: Final = frozenset({"METERING_SANDBOX_DIR", "METERING_SANDBOX_CACHE"})

partitions_app = typer.Typer(help="Days of the ledger.", no_args_is_help=True)
stream_app = typer.Typer(
    help="Recorded interventions in what is read. Each needs a reason.", no_args_is_help=True
)


def mount(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("init")(init)
    app.command("settings")(show_settings)
    app.add_typer(partitions_app, name="partitions")
    app.add_typer(stream_app, name="stream")


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise BadInput(f"'{text}' is not a day; give YYYY-MM-DD") from None


def init(
    ledger_from: str = typer.Option(
        "",
        "--ledger-from",
        metavar="DATE",
        help="First day that a new ledger takes events for (35 days ago by default).",
    ),
) -> None:
    """Bring an empty database and the Kafka topic to the current version. Safe to run again."""
    from metering.settings import settings
    from workers import provision

    for line in provision.provision(settings(), _day(ledger_from) if ledger_from else None):
        typer.echo(line, err=True)


@partitions_app.command("ensure")
def ensure(
    first: str = typer.Argument(metavar="FROM", help="First day, YYYY-MM-DD (UTC)."),
    until: str = typer.Argument(metavar="UNTIL", help="The day after the last one."),
) -> None:
    """Make the ledger's partitions of past days, lowering the ledger's floor to FROM."""
    from metering.settings import settings
    from workers import provision

    made = provision.ensure_days(settings(), _day(first), _day(until))
    typer.echo(
        f"{len(made)} days made" + (f": {made[0]} to {made[-1]}" if made else ", all were there"), err=True
    )


@stream_app.command("adopt")
def adopt(
    reason: str = typer.Option(..., "--reason", help="Why the new topic takes the place of the old one."),
) -> None:
    """Begin with a topic that was deleted and made again: from the first offset that it holds."""
    from metering.settings import settings
    from workers import provision

    for line in provision.adopt_topic(settings(), reason):
        typer.echo(line, err=True)


@stream_app.command("resume")
def resume(
    source: str = typer.Argument(
        "", metavar="SOURCE", help="The source that was stopped.", show_default=False
    ),
    reason: str = typer.Option(..., "--reason", help="What was found and mended; kept for good."),
    topic: bool = typer.Option(False, "--topic", help="In place of a source: the topic as a whole."),
) -> None:
    """Let a stopped source, or the topic, go on. What it sent meanwhile: `metering rejects replay`."""
    from metering.settings import settings
    from workers import provision

    if bool(source) == topic:
        raise BadInput("give a source, or --topic for the topic as a whole")
    typer.echo(provision.resume_source(settings(), source, reason), err=True)


@stream_app.command("skip")
def skip(
    partition: int = typer.Argument(metavar="PARTITION", min=0, help="The partition whose position moves."),
    to: int = typer.Option(..., "--to", metavar="OFFSET", min=0, help="The first offset to read again."),
    reason: str = typer.Option(..., "--reason", help="Why; kept for good."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do it without asking."),
) -> None:
    """Move a position past records that cannot be read, after showing what is skipped."""
    from metering.settings import settings
    from workers import interventions

    _move(interventions.plan_skip(settings(), partition, to), reason, yes)


@stream_app.command("gap")
def gap(
    partition: int | None = typer.Argument(
        None, metavar="PARTITION", min=0, help="The partition whose log does not hold our position."
    ),
    source: str | None = typer.Option(
        None, "--source", help="In its place: a source whose heartbeats have a gap."
    ),
    reason: str = typer.Option(..., "--reason", help="Why; kept for good."),
    to: int | None = typer.Option(
        None,
        "--to",
        metavar="OFFSET",
        min=0,
        help="Go on there (default: the log's first offset or, where it was truncated below us, its end).",
    ),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do it without asking."),
) -> None:
    """Go on where the log no longer holds our position, after showing what is lost.

    With --source: go on without the heartbeats that a source never sent again.
    """
    from metering.settings import settings
    from workers import interventions, provision

    if (partition is None) == (source is None) or (source is not None and to is not None):
        raise BadInput("give a partition (and perhaps --to), or --source: one of the two has a gap")
    if source is not None:
        typer.echo(provision.accept_gap(settings(), source, reason), err=True)
    elif partition is not None:
        _move(interventions.plan_gap(settings(), partition, to), reason, yes)


def _move(planned: "Move", reason: str, yes: bool) -> None:
    from metering.delivery.tables import printable
    from metering.settings import settings
    from metering.store.positions import checked_reason
    from workers import interventions

    checked_reason(reason)
    for line in planned.lines:
        typer.echo(printable(line))
    if not yes:
        if not sys.stdin.isatty():
            raise BadInput(
                "there is no terminal to ask on; nothing was done. Read what it says, then give --yes"
            )
        if not typer.confirm("Do this?", err=True):
            typer.echo("nothing was done", err=True)
            raise typer.Exit(1)
    typer.echo(interventions.apply(settings(), planned, reason), err=True)


def show_settings() -> None:
    """List every setting: its variable, its value now, and what it means."""
    from pydantic import SecretStr
    from rich.console import Console
    from rich.table import Table

    from metering.settings import Settings, settings

    now = settings()
    known = {f"METERING_{name.upper()}" for name in Settings.model_fields} | OF_THE_SANDBOX
    for name in sorted(os.environ):
        if name.startswith("METERING_") and name not in known:
            typer.echo(f"{name} is set, but is no setting: nothing reads it", err=True)
    console = Console()
    if not console.is_terminal:
        for name, field in Settings.model_fields.items():
            value = getattr(now, name)
            shown = "(secret)" if isinstance(value, SecretStr) else value
            typer.echo(f"METERING_{name.upper()}\t{shown}\t{field.description}")
        return
    table = Table("variable", "value", "meaning", box=None, header_style="bold")
    for name, field in Settings.model_fields.items():
        value = getattr(now, name)
        table.add_row(
            f"METERING_{name.upper()}",
            "(secret)" if isinstance(value, SecretStr) else str(value),
            field.description,
        )
    console.print(table)
