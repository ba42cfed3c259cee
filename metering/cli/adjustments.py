"""`metering adjustments`: quantities that a person enters, from a CSV file, with reason and author."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metering.cli.listing import FormatOption, show

if TYPE_CHECKING:
    from workers.adjust import AdjustmentPlan

app = typer.Typer(
    help="Quantities entered by hand, from a CSV file: docs/corrections.md names its columns.",
    no_args_is_help=True,
    add_completion=False,
)


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="A CSV file with a header, an adjustment a line.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Enter without asking.")] = False,
    author: Annotated[
        str | None,
        typer.Option("--author", help="Who enters rows that name no author.", show_default="you"),
    ] = None,
) -> None:
    """Enter the adjustments of a file, all or none, after showing what they add up to.

    The same file again enters nothing. An id that was entered with other content is named: exit code 1.
    """
    import sys

    from metering.errors import BadInput
    from metering.settings import settings
    from metering.store.positions import operator_name
    from metering.store.postgres import reading
    from workers import adjust
    from workers.loop import database_errors

    if author is not None and not (author.strip() and author.isprintable()):
        raise BadInput("--author must be one line of printable text")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}") from None
    found = adjust.read_file(settings(), str(file), content, author or operator_name())
    with database_errors(), reading(settings()) as connection:
        made = adjust.plan(connection, found)
        unknown = adjust.unknown_customers(connection, made.new)
    for conflict in made.conflicts:
        typer.echo(f"{file}: {conflict}", err=True)
    if made.conflicts:
        typer.echo("nothing was entered", err=True)
        raise typer.Exit(1)
    _print(made)
    for customer in unknown:
        typer.echo(f"customer '{customer}' is not in the catalog: its quantities stay unrated", err=True)
    if not made.new:
        return
    if not yes:
        if not sys.stdin.isatty():
            raise BadInput(
                "there is no terminal to ask on; nothing was entered. Read the plan, then give --yes"
            )
        if not typer.confirm("Enter these?", err=True):
            typer.echo("nothing was entered", err=True)
            raise typer.Exit(1)
    typer.echo(f"{adjust.append(settings(), made.new):,} adjustments entered", err=True)


@app.command("list")
def list_adjustments(
    customer: Annotated[str | None, typer.Option("--customer", help="Only those of this customer.")] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="The newest N at most.")] = 50,
    form: str = FormatOption,
) -> None:
    """List what was entered, the newest first."""
    from metering.meters import METERS
    from metering.settings import settings
    from metering.store.adjusting import entered
    from metering.store.postgres import reading
    from workers.loop import database_errors

    with database_errors(), reading(settings()) as connection:
        rows = entered(connection, customer=customer, limit=limit)
    if form == "table" or form == "auto":
        # a table has room for what differs from nothing; files have all of it
        used = [name for name in METERS if any(row[name] for row in rows)]
        short = (
            "id",
            "entered_at",
            "author",
            "occurred_at",
            "customer",
            "product",
            "model_served",
            *used,
            "reason",
        )
        if form == "table" or _on_terminal():
            rows = [{name: row[name] for name in short} for row in rows]
    show(rows, form, empty="nothing was entered")


def _on_terminal() -> bool:
    import sys

    return sys.stdout.isatty()


def _print(made: AdjustmentPlan) -> None:
    already = f", {len(made.entered):,} entered before" if made.entered else ""
    typer.echo(f"{len(made.new):,} new adjustments{already}")
    for customer, meter, count, quantity in (
        made.sums().select("customer", "meter", "adjustments", "quantity").rows()
    ):
        typer.echo(f"  {customer}: {quantity:+,} {meter} in {count:,}")
