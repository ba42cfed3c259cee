"""`metering archive`: days of the ledger that lie in files."""

import sys
from datetime import date
from typing import Final, Literal

import typer

from metering.errors import BadInput

#: Columns of a table that nobody's terminal limits.
_PIPE_WIDTH: Final = 200

app = typer.Typer(help="Days of the ledger that lie in files.", no_args_is_help=True, add_completion=False)
Day = typer.Argument(metavar="DATE", help="The day, YYYY-MM-DD (UTC).")


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise BadInput(f"'{text}' is not a day; give YYYY-MM-DD") from None


@app.command("day")
def archive(day: str = Day) -> None:
    """Write the oldest day to a file, read it back, and drop it from Postgres. Prints where it is."""
    from metering.settings import settings
    from workers import archive as worker
    from workers.loop import configure_logging

    configure_logging(settings())
    written = worker.archive_day(settings(), _day(day))
    typer.echo(
        f"{written.day}: {written.rows:,} rows, {written.size_bytes:,} bytes, SHA-256 {written.sha256.hex()}",
        err=True,
    )
    typer.echo(written.address)


@app.command("restore")
def restore(day: str = Day) -> None:
    """Bring the last archived day back into Postgres, row for row. Its file stays."""
    from metering.settings import settings
    from workers import archive as worker
    from workers.loop import configure_logging

    configure_logging(settings())
    restored = worker.restore_day(settings(), _day(day))
    typer.echo(f"{restored.day}: {restored.rows:,} rows are in Postgres again", err=True)


@app.command("list")
def list_archives() -> None:
    """List the archived days, oldest first."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from metering.settings import settings
    from workers import archive as worker

    archived, first = worker.list_archives(settings())
    table = Table(box=SIMPLE_HEAD, caption="times are UTC", caption_justify="left")
    for name in ("day", "rows", "bytes", "archived at", "sha256", "address"):
        justify: Literal["right", "left"] = "right" if name in ("rows", "bytes") else "left"
        table.add_column(name, justify=justify, no_wrap=name != "address")
    for one in archived:
        table.add_row(
            str(one.day),
            f"{one.rows:,}",
            f"{one.size_bytes:,}",
            f"{one.archived_at:%Y-%m-%d %H:%M:%S}",
            one.sha256.hex()[:12],
            one.address,
        )
    if archived:
        Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)
    typer.echo(
        f"{len(archived)} days are archived; "
        + ("no day is in Postgres" if first is None else f"the first day in Postgres is {first}"),
        err=True,
    )
