"""Commands that put events on the topic: send, import azure-trace."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from workers.send import Progress

import_app = typer.Typer(help="Turn other people's files into events.", no_args_is_help=True)

_EVENTS_PER_RECORD = typer.Option(
    100, "--events-per-record", metavar="N", help="Most events in one Kafka record."
)


def mount(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("send")(send)
    app.add_typer(import_app, name="import")


def send(
    file: str = typer.Argument(
        metavar="FILE|-", help="Events, one JSON object a line; - reads standard input."
    ),
    events_per_record: int = _EVENTS_PER_RECORD,
    raw: bool = typer.Option(False, "--raw", help="Send every line as it is, JSON or not."),
) -> None:
    """Send events to Kafka. Exits non-zero if one was not acknowledged; sending again is always safe."""
    from metering.settings import settings
    from workers import send as worker

    with _progress() as progress:
        sent = worker.send(settings(), file, events_per_record=events_per_record, raw=raw, progress=progress)
    typer.echo(f"{sent:,} events sent to '{settings().kafka_topic}', all acknowledged", err=True)


@import_app.command("azure-trace")
def azure_trace(
    file: str = typer.Argument(metavar="FILE", help="CSV with TIMESTAMP, ContextTokens, GeneratedTokens."),
    trace: str = typer.Option("conv", "--trace", metavar="conv|code", help="Which of the two traces it is."),
    limit: int | None = typer.Option(None, "--limit", metavar="N", min=1, help="Only the first N rows."),
    events_per_record: int = _EVENTS_PER_RECORD,
) -> None:
    """Send the public Azure LLM inference trace of 2023 as events; a second import adds nothing."""
    from metering.settings import settings
    from workers import azure_trace as worker

    with _progress() as progress:
        sent = worker.import_trace(
            settings(), file, trace=trace, limit=limit, events_per_record=events_per_record, progress=progress
        )
    typer.echo(f"{sent:,} rows sent to '{settings().kafka_topic}', all acknowledged", err=True)


@contextmanager
def _progress() -> Iterator["Progress"]:
    """A line on stderr that counts what was sent; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda sent: None
        return
    bar = Progress(
        SpinnerColumn(),
        TextColumn("sending events"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("send", total=None)

        def show(sent: int) -> None:
            bar.update(task, completed=sent)

        yield show
