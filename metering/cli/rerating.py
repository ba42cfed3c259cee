"""`metering rerate`: what charges and costs are under the catalog in force, and were under an earlier revision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metering.cli.reports import AsOf, PeriodOption, read_period


def mount(root: typer.Typer) -> None:
    """Mount `rerate` on the root command."""
    root.command("rerate")(rerate)


def rerate(
    period: PeriodOption = None,
    from_revision: Annotated[
        int | None,
        typer.Option(
            "--from-revision",
            metavar="N",
            help="Compare with this catalog revision. [default: the one before that in force]",
            show_default=False,
        ),
    ] = None,
    as_of: AsOf = None,
    folder: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="The folder for the files.", file_okay=False)
    ] = Path(),
) -> None:
    """Write every charge and cost of a period that differs between two catalog revisions, as CSV and Parquet.

    A row per customer, line and day. The files name both revisions; the same usage and revisions give the same
    bytes, and replace what was there.
    """
    import sys

    from metering.delivery import tables
    from metering.settings import settings
    from metering.store.postgres import reading
    from workers.loop import database_errors, show_progress
    from workers.rerating import rerate as compare

    span = read_period(period)
    with database_errors(), reading(settings()) as connection:
        done = compare(connection, settings(), span, from_revision, as_of, progress=show_progress)
    tables.show(done.by_customer(), sys.stderr)
    for path in done.save(folder):
        typer.echo(str(path))
