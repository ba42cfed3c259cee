"""`metering catalog`: check a folder of YAML, plan what applying it would change, apply it, show it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

    from metering.catalog import CatalogObjects, Plan

app = typer.Typer(
    help="Customers, prices, costs and capacity: a folder of YAML files, applied as revisions.",
    no_args_is_help=True,
    add_completion=False,
)
Folder = Annotated[Path, typer.Argument(help="The folder that holds the whole catalog, as YAML files.")]

_COLORS = {"+": "green", "~": "yellow", "-": "red", "!": "bold magenta"}


@app.command()
def check(folder: Folder) -> None:
    """Read the folder and list everything that is wrong in it. Exit code 2 if anything is."""
    from metering.catalog import load_folder

    typer.echo(f"{folder}: the catalog is sound: {_counts(load_folder(folder))}")


@app.command()
def plan(folder: Folder) -> None:
    """Show what applying the folder would add, change and end. Changes nothing."""
    from metering.catalog import load_folder
    from metering.settings import settings
    from metering.store.postgres import reading

    objects = load_folder(folder)
    with reading(settings()) as connection:
        made, _ = _plan(connection, objects)
        _print(made)
        _show_impact(connection, made)


@app.command()
def apply(
    folder: Folder,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Apply without asking.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the revision.")] = "",
) -> None:
    """Append the folder as the next catalog revision, after showing the plan. Nothing is overwritten."""
    import sys

    from metering import __version__
    from metering.catalog import load_folder
    from metering.errors import BadInput
    from metering.settings import settings
    from metering.store.books import append_revision
    from metering.store.positions import operator_name
    from metering.store.postgres import connect, reading

    if not reason.isprintable():
        raise BadInput("--reason must be one line of printable text")
    objects = load_folder(folder)
    with reading(settings()) as connection:
        made, at = _plan(connection, objects)
        _print(made)
        _show_impact(connection, made)
    if not made.changes:
        return
    if not yes:
        if not sys.stdin.isatty():
            raise BadInput(
                "there is no terminal to ask on; nothing was applied. Read the plan, then give --yes"
            )
        if not typer.confirm("Apply this?", err=True):
            typer.echo("nothing was applied", err=True)
            raise typer.Exit(1)
    with connect(settings(), "operator") as connection:
        revision = append_revision(
            connection,
            objects,
            shown=made,
            at=at,
            applied_by=operator_name(),
            reason=reason,
            program_version=__version__,
        )
    if revision is None:
        typer.echo(
            "somebody else applied the same catalog in the meantime; there was nothing left to do", err=True
        )
        return
    typer.echo(
        f"applied catalog revision {revision.catalog_revision} (head {revision.head.hex()[:16]})", err=True
    )


@app.command()
def show(
    revision: Annotated[
        int | None, typer.Option("--revision", min=0, help="As of this revision.", show_default="the newest")
    ] = None,
    as_of: Annotated[
        int | None,
        typer.Option(
            "--as-of",
            metavar="WATERMARK",
            help="As of the revision that a watermark pins, which is what a report --as-of it reads.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the objects of the catalog as of a revision or a watermark, and who applied it, when and why."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from metering.errors import BadInput
    from metering.settings import settings
    from metering.store.books import latest_revision, read_catalog, read_revision
    from metering.store.postgres import reading
    from metering.store.watermarks import read_watermark

    if revision is not None and as_of is not None:
        raise BadInput("--revision and --as-of both name a revision; give one of them")
    with reading(settings()) as connection:
        if as_of is not None:
            revision = read_watermark(connection, as_of).knowledge.catalog_revision
        number = latest_revision(connection) if revision is None else revision
        objects = read_catalog(connection, number)
        applied = read_revision(connection, number) if number else None
    if applied is None:
        typer.echo("no catalog was applied yet; `metering catalog apply FOLDER` applies one", err=True)
        return
    console = Console(highlight=False)
    why = f": {applied.reason}" if applied.reason else ""
    title = (
        f"catalog revision {number}, applied {applied.applied_at:%Y-%m-%d %H:%M:%S}Z "
        f"by {applied.applied_by}{why}\n"
        f"head {applied.head.hex()}"
    )
    console.print(Text(title))
    table = Table("kind", "name", "written at", "revision", "ended", box=SIMPLE_HEAD, pad_edge=False)
    table.columns[3].justify = "right"
    for entry in (objects.entries[key] for key in sorted(objects.entries)):
        ended = "" if entry.ended_at is None else f"{entry.ended_at:%Y-%m-%d %H:%M}Z"
        table.add_row(
            entry.item.kind.replace("_", " "),
            Text(entry.item.object_name),
            Text(f"{entry.file}:{entry.line}"),
            str(entry.catalog_revision),
            ended,
            style="dim" if ended else None,
        )
    console.print(table)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a catalog file, for editors: it completes fields and marks mistakes.

    Write it to a file beside the catalog and begin each YAML file with
    `# yaml-language-server: $schema=catalog.schema.json`.
    """
    import json

    from metering.catalog.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def _plan(connection: Connection, objects: CatalogObjects) -> tuple[Plan, datetime]:
    from datetime import UTC, datetime

    from metering.catalog import plan as compare
    from metering.store.books import latest_revision, read_catalog

    newest = latest_revision(connection)
    at = datetime.now(UTC)
    return compare(read_catalog(connection, newest), objects, base_revision=newest, at=at), at


def _print(made: Plan) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for line in made.lines():
        console.print(Text(line, style=_COLORS.get(line.strip()[:1], "")))


def _show_impact(connection: Connection, made: Plan) -> None:
    """Show every charge and cost of recorded usage that a backdated plan would change, per customer and in total."""
    import sys

    from metering.delivery import tables
    from metering.settings import settings
    from metering.store.books import read_catalog
    from workers.loop import database_errors, show_progress
    from workers.rerating import impact

    with database_errors():
        applied = read_catalog(connection, made.base_revision)
        found = impact(connection, settings(), applied, made, progress=show_progress)
    if found is not None:
        tables.show(found.by_customer(), sys.stdout)


def _counts(objects: CatalogObjects) -> str:
    counted = [f"{count} {section.replace('_', ' ')}" for section, count in objects.counts().items() if count]
    return ", ".join(counted)
