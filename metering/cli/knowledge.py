"""`metering watermark` pins and lists points of knowledge; `metering verify` compares what is kept."""

import sys
from pathlib import Path
from typing import Final, Literal

import typer

from metering.cli.listing import FormatOption

#: Columns of a table that nobody's terminal limits.
_PIPE_WIDTH: Final = 160

watermark = typer.Typer(help="Points of knowledge: a report as of one never changes.", no_args_is_help=True)


def mount(app: typer.Typer) -> None:
    """Add the commands to the root."""
    app.add_typer(watermark, name="watermark")
    app.command("verify")(verify)


@watermark.command("pin")
def pin(reason: str = typer.Option("by hand", "--reason", help="Why, for the record.")) -> None:
    """Fold all that is committed and pin it with the catalog as it is. Prints the watermark's number."""
    from metering.settings import settings
    from metering.store import postgres
    from workers import fold
    from workers.loop import database_errors

    with database_errors(), postgres.connect(settings(), "fold") as connection:
        pinned = fold.pin(connection, settings(), reason)
    until = (
        "nothing yet" if pinned.complete_until is None else f"{pinned.complete_until:%Y-%m-%d %H:%M:%S} UTC"
    )
    typer.echo(f"catalog revision {pinned.catalog_revision}, complete until {until}", err=True)
    typer.echo(pinned.watermark_id)


@watermark.command("list")
def list_watermarks() -> None:
    """List the watermarks, oldest first."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from metering.settings import settings
    from metering.store import postgres, watermarks
    from workers.loop import database_errors

    with database_errors(), postgres.reading(settings()) as connection:
        found = watermarks.watermarks(connection)
    table = Table(box=SIMPLE_HEAD, caption="times are UTC", caption_justify="left")
    for name in ("watermark", "pinned at", "catalog", "complete until", "intakes", "reason", "head"):
        justify: Literal["right", "left"] = "right" if name in ("watermark", "catalog", "intakes") else "left"
        table.add_column(name, justify=justify, no_wrap=name != "reason")
    for one in found:
        table.add_row(
            str(one.watermark_id),
            f"{one.pinned_at:%Y-%m-%d %H:%M:%S}",
            str(one.catalog_revision),
            f"{one.complete_until:%Y-%m-%d %H:%M:%S}" if one.complete_until else "-",
            str(len(one.positions)),
            one.reason,
            one.head.hex()[:12],
        )
    if found:
        Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)
    else:
        typer.echo("no watermark was pinned yet; `metering watermark pin` pins one", err=True)


@watermark.command("show")
def show_watermark(number: int = typer.Argument(metavar="ID", min=1), form: str = FormatOption) -> None:
    """Show a watermark: what it pins, the position and chain head of every intake, and its own head."""
    from metering.cli.listing import show, show_one
    from metering.settings import settings
    from metering.store import postgres
    from metering.store.watermarks import read_watermark
    from workers.loop import database_errors

    with database_errors(), postgres.reading(settings()) as connection:
        found = read_watermark(connection, number)
    facts = {name: value for name, value in vars(found).items() if name != "positions"}
    if form == "json":
        show_one({**facts, "positions": found.positions}, form)
    else:
        show_one(facts, form)
        show(found.positions, form, empty="it pins no intake")


def verify(
    chain: bool = typer.Option(
        False, "--chain", help="Also hash every ledger row again: the chain down to the last event."
    ),
    as_of: int | None = typer.Option(
        None, "--as-of", metavar="WATERMARK", help="Only what was there as of it.", show_default="all of it"
    ),
    against: list[Path] = typer.Option(
        [],
        "--against",
        metavar="MANIFEST",
        help="Also compare with heads published earlier, in an export's manifest; may be given again.",
        show_default=False,
    ),
) -> None:
    """Compare ledger, batches, rollups and chains with each other. Exit code 1 at a difference."""
    from rich.console import Console

    from metering.settings import settings
    from metering.store import archived_sums, postgres
    from metering.store.verify import verify as check_all
    from workers.exporting import read_published
    from workers.loop import database_errors

    progress = Console(stderr=True)
    differences = 0
    published = [read_published(path) for path in against]
    with database_errors(), postgres.reading(settings(), scratch=archived_sums.SCRATCH) as connection:
        for check in check_all(
            connection,
            roots=chain,
            watermark_id=as_of,
            against=published,
            progress=lambda message: progress.print(f"  {message}"),
        ):
            differences += check.difference is not None
            typer.echo(f"{'ok  ' if check.difference is None else 'BAD '} {check.name}: {check.seen}")
            if check.difference is not None:
                typer.echo(f"     first difference: {check.difference}")
    if differences:
        typer.echo(f"{differences} of the checks found a difference; the first of each is shown", err=True)
        raise typer.Exit(1)
    if not chain:
        typer.echo("every row was counted and summed; `--chain` also hashes them", err=True)
